"""What a step in a CUDA graph needs: the same memory each time, and no number from the host."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from supple import SpectralRegularizer
from support.method_cases import backward, make_network, sgd

every_form = pytest.mark.parametrize("decoupled", [False, True])


class Uploads(TorchDispatchMode):
    """Records tensors made of numbers on the host, which a captured graph would never read again."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[str] = []

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operator.overloadpacket in (torch.ops.aten.lift_fresh, torch.ops.aten.scalar_tensor):
            self.operators.append(str(operator))
        return operator(*args, **(kwargs or {}))


@every_form
def test_a_step_stays_in_the_memory_of_the_one_before(decoupled, make):
    """A captured graph reads and writes where it did when it was captured."""
    network = make("mlp")
    optimizer = sgd(network)
    method = SpectralRegularizer(network, torch.tensor(0.1), decoupled=decoupled).attach(optimizer)
    backward("mlp", 0, network, optimizer)
    optimizer.step()  # the first step prepares what the others need

    def addresses() -> list[int]:
        tensors = [tensor for parameter in network.parameters() for tensor in (parameter, parameter.grad)]
        tensors += [tensor for entry in method.state.values() for tensor in entry.values()]
        return [tensor.data_ptr() for tensor in tensors]

    before = addresses()
    with Uploads() as uploads:
        optimizer.step()
    assert addresses() == before
    assert uploads.operators == []
    with Uploads() as uploads:
        torch.tensor([1.0])
    assert uploads.operators == ["aten.lift_fresh.default"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need CUDA")
@every_form
def test_a_step_in_a_cuda_graph_is_the_eager_one(decoupled):
    x, y = torch.randn(12, 4, device="cuda"), torch.randn(12, 3, device="cuda")
    networks = [make_network("mlp", device="cuda") for _ in range(2)]
    eager, captured = (step_of(network, x, y, decoupled) for network in networks)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # where torch wants the first steps before a capture
        for _ in range(3):
            captured()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # records the step, and does not take it
        captured()
    for _ in range(3):
        eager()
    for _ in range(5):
        x.normal_()
        graph.replay()
        eager()
    torch.testing.assert_close(*(dict(network.named_parameters()) for network in networks), rtol=1e-4, atol=1e-5)


def step_of(network: nn.Module, x: Tensor, y: Tensor, decoupled: bool) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01, capturable=True)
    SpectralRegularizer(network, torch.tensor(0.1, device=x.device), decoupled=decoupled).attach(optimizer)

    def step() -> None:
        optimizer.zero_grad(set_to_none=False)
        (network(x) - y).square().mean().backward()
        optimizer.step()

    return step
