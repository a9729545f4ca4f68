"""What the parts of gpu.py share: where to measure, training steps of several kinds, and their comparison."""

import itertools
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from networks import NETWORKS
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import supple
from supple import SpectralRegularizer

Record = Callable[..., None]
Step = Callable[[], object]

FORMS: dict[str, Callable[[nn.Module], object]] = {
    "none": lambda network: None,
    "spectral": SpectralRegularizer,
    "decoupled spectral": partial(SpectralRegularizer, decoupled=True),
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where to measure, and how much."""

    device: str
    tiny: bool

    def size(self, full: int, tiny: int) -> int:
        return tiny if self.tiny else full

    @property
    def is_cuda(self) -> bool:
        return self.device.startswith("cuda")

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, compiled; a dry run is spared that."""
        return function if self.tiny else torch.compile(function)

    def wait(self) -> None:
        """Until the device has done all that it was given."""
        if self.is_cuda:
            torch.cuda.synchronize()


def compare(
    setting: Setting,
    record: Record,
    what: str,
    variants: Mapping[str, Step],
    *,
    base: str,
    shared: Mapping[str, int] | None = None,
    **facts: Any,
) -> None:
    """Time variants that take turns; record each one's time, and its ratio to the base round by round.

    Args:
        setting: where to measure.
        record: takes the rows.
        what: is compared.
        variants: one step each.
        base: the name of the variant that others are compared with.
        shared: by how many members a variant's time is divided.
        facts: added to each row.
    """
    steps, rounds = setting.size(5, 1), setting.size(11, 2)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(-1, rounds):
        for name, step in variants.items():
            setting.wait()
            start = time.perf_counter()
            for _ in range(steps):
                step()
            setting.wait()
            if turn >= 0:  # the first turn warms up
                seconds[name].append((time.perf_counter() - start) / steps / (shared or {}).get(name, 1))
    for name, values in seconds.items():
        ratios = [value / of_base for value, of_base in zip(values, seconds[base], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        row = {"what": what, "variant": name, "milliseconds": 1e3 * statistics.median(values)}
        record(**row, **{f"times {base}": middle, "from": low, "to": high}, **facts, seconds=values)


def as_it_is(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def eager_step(setting: Setting, name: str, form: str, compiler: Callable[..., Any] = as_it_is) -> Step:
    """A training step of one of the networks, always on the same batch."""
    network, x, y = network_and_batch(setting, name)
    fused = True if compiler is as_it_is else None  # the fused kernel can't be compiled
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=fused)
    return plain_step(network, optimizer, form, x, y, compiler=compiler)


def network_and_batch(setting: Setting, name: str) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    if setting.tiny:
        return perceptron([4, 3, 2]), *batch_of(setting, (5, 4), 2)
    make, batch = NETWORKS[name]
    x, y = batch()
    return make().to(setting.device), x.to(setting.device), y.to(setting.device)


def plain_step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    form: str,
    x: Tensor,
    y: Tensor,
    *,
    autocast: torch.dtype | None = None,
    compiler: Callable[..., Any] = as_it_is,
) -> Step:
    mitigator = FORMS[form](network)
    if isinstance(mitigator, supple.Mitigator):
        mitigator.attach(optimizer)
    forward, update = compiler(network), compiler(optimizer.step)

    def step() -> None:
        with torch.autocast(x.device.type, autocast, enabled=autocast is not None):
            loss = cross_entropy(forward(x), y)
        optimizer.zero_grad()
        loss.backward()
        update()

    return step


def captured_step(setting: Setting, name: str, form: str) -> Step:
    """A training step in a CUDA graph."""
    network, x, y = network_and_batch(setting, name)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, capturable=True)
    step = plain_step(network, optimizer, form, x, y)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return partial(_replay, graph, step)


def _replay(graph: "torch.cuda.CUDAGraph", step: Step) -> None:
    graph.replay()  # the step is held because the graph works in its tensors


def at_precision(precision: str, step: Step) -> None:
    """One step with this precision of float32 products, in convolutions too."""
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = precision != "highest"
    step()


def laboratory_step(setting: Setting) -> Step:
    from supple.lab.run import Run
    from supple.lab.trainer import Trainer

    run = Run.of(
        "random-label-cifar10",
        "none",
        [0],
        scale="paper",
        dataset="gpu_steps:noise",
        batch_size=setting.size(250, 2),
        model="resnet18" if not setting.tiny else "conv",
        diagnostics=(),
    )
    trainer = Trainer(run, compiled=False, device=setting.device)
    steps = itertools.chain.from_iterable(trainer.steps(task) for task in range(run.tasks))
    return partial(next, steps)


def noise() -> tuple[Tensor, Tensor]:
    """Images of CIFAR-10's size: a step takes the same time whatever they show."""
    random = torch.Generator().manual_seed(0)
    images = torch.randint(256, (2500, 3, 32, 32), generator=random, dtype=torch.uint8)
    return images, torch.arange(2500) % 2


def perceptron(sizes: list[int]) -> nn.Sequential:
    layers = [nn.Sequential(nn.Linear(inputs, outputs), nn.ReLU()) for inputs, outputs in itertools.pairwise(sizes)]
    return nn.Sequential(*layers[:-1], layers[-1][0])


def batch_of(setting: Setting, shape: tuple[int, ...], classes: int) -> tuple[Tensor, Tensor]:
    return (
        torch.randn(shape, device=setting.device),
        torch.randint(classes, shape[:1], device=setting.device),
    )


def loss_of(network: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, tuple[()]]:
    return cross_entropy(network(x), y), ()
