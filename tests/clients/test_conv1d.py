"""Transformers' Conv1D keeps its weight as (in, out); in an attention there are q, k and v beside each other."""

import pytest
import torch

from oracles.plain_loop import STRENGTH, spectral
from supple import L2InitRegularizer, ParsevalRegularizer, SpectralRegularizer, WeightClipping
from support.resting import resting
from support.zoo import relative_error

transformers = pytest.importorskip("transformers")


def gpt2(**options):
    torch.manual_seed(1)
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=12, vocab_size=17, **options)
    config.bos_token_id = config.eos_token_id = 0
    return transformers.GPT2LMHeadModel(config)


def conv1d_as_linear(network):
    """The matrices of GPT-2's Conv1D layers (out, in), cut out by hand."""
    block = network.transformer.h[0]
    return {
        "transformer.h.0.attn.c_attn.weight": [part.T for part in block.attn.c_attn.weight.chunk(3, dim=1)],
        "transformer.h.0.attn.c_proj.weight": [block.attn.c_proj.weight.T],
        "transformer.h.0.mlp.c_fc.weight": [block.mlp.c_fc.weight.T],
        "transformer.h.0.mlp.c_proj.weight": [block.mlp.c_proj.weight.T],
    }


def test_conv1d_is_a_transposed_matrix_and_attention_has_three():
    network = gpt2()
    roles = SpectralRegularizer(network).roles
    for name, matrices in conv1d_as_linear(network).items():
        parameter = network.get_parameter(name)
        stacked = torch.stack(matrices) if len(matrices) > 1 else matrices[0]
        assert torch.equal(roles[name].matrices(parameter), stacked)
        assert torch.equal(roles[name].fold(stacked, parameter), parameter)
        assert torch.equal(roles[name].matrices(parameter.expand(2, 5, *parameter.shape)[1, 3]), stacked)
    assert {role.kind for name, role in roles.items() if ".ln_" in name and name.endswith("weight")} == {"scale"}


def test_conv1d_in_a_cross_attention_has_two():
    roles = SpectralRegularizer(gpt2(add_cross_attention=True)).roles
    assert roles["transformer.h.0.crossattention.c_attn.weight"].layout == (2, 12, 12)
    assert roles["transformer.h.0.crossattention.q_attn.weight"].layout == (1, 12, 12)


@pytest.mark.parametrize("decoupled", [False, True])
def test_the_pull_lands_where_the_matrices_are(decoupled):
    network = gpt2()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(5.0)
    old = {name: [m.detach().clone() for m in cut] for name, cut in conv1d_as_linear(network).items()}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    spectral(network, decoupled=decoupled, power_iterations=200).attach(optimizer)
    resting(network)
    optimizer.step()
    for name, matrices in conv1d_as_linear(network).items():
        for before, after in zip(old[name], matrices, strict=True):
            left, sigmas, right = torch.linalg.svd(before.double())
            pull = 0.1 * STRENGTH * 4 * sigmas[0] * (sigmas[0] ** 2 - 1)
            wanted = before.double() - pull * torch.outer(left[:, 0], right[0])
            assert relative_error(after, wanted) < 1e-5, name


@pytest.mark.parametrize("method", [ParsevalRegularizer, WeightClipping, L2InitRegularizer])
def test_other_methods_take_a_conv1d_for_the_linear_layer_that_it_is(method):
    """The same numbers in a linear layer's order give the same steps."""

    def step(network, weight):
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        mitigator = method(network, strength=1.0)
        with torch.no_grad():
            weight.mul_(30.0)
        mitigator.attach(optimizer)
        before = weight.detach().clone()
        resting(network)
        optimizer.step()
        assert not torch.equal(before, weight), "it acts"
        return weight.detach()

    torch.manual_seed(0)
    head = torch.nn.Linear(4, 2)
    conv = transformers.pytorch_utils.Conv1D(4, 6)
    linear = torch.nn.Linear(6, 4)
    with torch.no_grad():
        linear.weight.copy_(conv.weight.T)
        linear.bias.copy_(conv.bias)
    torch.testing.assert_close(
        step(torch.nn.Sequential(conv, head), conv.weight).T, step(torch.nn.Sequential(linear, head), linear.weight)
    )
