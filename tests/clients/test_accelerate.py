"""Accelerate: prepared before or after attaching, accumulation, checkpoints."""

import pytest
import torch

from oracles.plain_loop import (
    adam,
    assert_differs,
    assert_same,
    batches,
    copies,
    mean_square,
    mlp,
    spectral,
    train_by_hand,
)

accelerate = pytest.importorskip("accelerate")


def train(accelerator, network, optimizer, inputs):
    for x in inputs:
        with accelerator.accumulate(network):
            accelerator.backward(mean_square(network, x))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(network.parameters(), 0.05)
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("attach_first", [False, True])
@pytest.mark.parametrize("decoupled", [False, True])
def test_each_step_is_the_one_written_by_hand(attach_first, decoupled):
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    network = mlp()
    by_hand, without = copies(network)
    optimizer = adam(network)
    method = spectral(network, decoupled=decoupled)
    if attach_first:
        method.attach(optimizer)
    network, optimizer = accelerator.prepare(network, optimizer)
    if not attach_first:
        method.attach(optimizer)
    with pytest.raises(RuntimeError, match="same one twice"):
        method.attach(optimizer)
    train(accelerator, network, optimizer, batches(8))
    for other, its in ((by_hand, spectral(by_hand, decoupled=decoupled)), (without, None)):
        train_by_hand(other, its, adam(other), batches(8), accumulate=2, clip=0.05)
    assert_same(network, by_hand)
    assert_differs(network, without)


def test_a_resumed_run_gives_the_same_bits(tmp_path):
    """A method is registered as it is: it has a state_dict()."""

    def begin():
        accelerator = accelerate.Accelerator(cpu=True)
        network = mlp()
        network, optimizer = accelerator.prepare(network, adam(network))
        accelerator.register_for_checkpointing(spectral(network).attach(optimizer))
        return accelerator, network, optimizer

    accelerator, network, optimizer = begin()
    train(accelerator, network, optimizer, batches(6)[:3])
    accelerator.save_state(str(tmp_path / "half"))
    train(accelerator, network, optimizer, batches(6)[3:])
    accelerator, again, optimizer = begin()
    accelerator.load_state(str(tmp_path / "half"))
    train(accelerator, again, optimizer, batches(6)[3:])
    assert_same(again, network)
    torch.testing.assert_close(*(m.state_dict()["0.weight"]["v"] for m in 2 * accelerator._custom_objects))
