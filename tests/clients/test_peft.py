"""LoRA through peft: the adapters are regularized, the frozen base is left alone."""

import pytest
import torch

from oracles.plain_loop import adam, assert_same, batches, copies, mean_square, mlp, spectral, train_by_hand

peft = pytest.importorskip("peft")


def adapted(network):
    torch.manual_seed(3)
    model = peft.get_peft_model(network, peft.LoraConfig(r=2, target_modules=["0", "3"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # zero at first, where nothing pulls
                parameter.normal_()
    return model


def test_each_step_is_the_one_written_by_hand():
    model = adapted(mlp())
    by_hand, without = copies(model)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    optimizer = adam(model)
    spectral(model).attach(optimizer)
    for x in batches(5):
        optimizer.zero_grad()
        mean_square(model, x).backward()
        optimizer.step()
    train_by_hand(by_hand, spectral(by_hand), adam(by_hand), batches(5))
    train_by_hand(without, None, adam(without), batches(5))
    assert_same(model, by_hand)
    for (name, parameter), other in zip(model.named_parameters(), without.parameters(), strict=True):
        assert torch.equal(parameter, other) == ("lora" not in name), name
        assert torch.equal(parameter, before[name]) == ("lora" not in name), name
        assert (parameter.grad is None) == ("lora" not in name), name


def test_a_method_older_than_the_adapters_is_named():
    network = mlp()
    regularizer = spectral(network)
    with pytest.raises(ValueError, match=r"lora_A.*new in the network"):
        regularizer.attach(adam(adapted(network)))
