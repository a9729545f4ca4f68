"""Has a network lost plasticity, does its optimizer stall, or neither? An experiment on copies."""

import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import chain, count, islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

from supple.diagnostics.copies import Trained, seeded, without_gradients
from supple.diagnostics.verdict import AS_IT_IS, FRESH_NETWORK, FRESH_OPTIMIZER, RESERVED, PlasticityTest
from supple.mitigators.optimizers import held_by, inner_optimizers, searches_lines
from supple.network.graph import unwrapped
from supple.network.population import Population

Loss = Callable[[nn.Module, Any], Tensor]
"""``loss(network, batch)``, one number."""
Step = Callable[[nn.Module, Any, Any], Tensor | float]
"""``step(network, optimizer, batch)`` trains on a batch and returns the loss that it had before."""

FEWEST_REPEATS = 3
"""The test stops early only after this many repeats: with fewer, 99 % intervals are too wide."""


def plasticity_test(
    network: nn.Module,
    loss: Loss | None,
    batches: Iterable[Any] | Callable[[], Iterable[Any]],
    *,
    optimizer: Any,
    fresh: Callable[[], nn.Module] | None = None,
    remedies: Mapping[str, Callable[[nn.Module, Any], object]] | None = None,
    step: Step | None = None,
    schedulers: Sequence[Any] = (),
    scaler: Any = None,
    steps: int = 500,
    repeats: int = 5,
    margin: float = 0.05,
    seed: int = 0,
    progress: bool = True,
) -> PlasticityTest:
    r"""Find out whether a network has lost plasticity, or its optimizer stalls, or neither.

    Copies are trained on the same batches in the same order: the network with its optimizer as they are (*A*); the
    network with a fresh optimizer (*B*); and a fresh network with a fresh optimizer (*C*). A repeat does this once;
    each repeat has another order and another fresh network. A copy's result is its mean loss over the last tenth of the
    steps, each before its step. Paired differences of the results decide, by their 95 % intervals (Student's t):

    ===============  ==================================================================================
    ``"network"``    it has lost plasticity: B − C and A − C are above the margin
    ``"optimizer"``  it stalls: A − B is above the margin, and B − C below it (or surely the smaller)
    ``"nothing"``    is lost: A − C is below the margin, and A − B not surely above it
    ``"undecided"``  anything else: an interval contains the margin, or the fresh network learned nothing, or
                     network and optimizer lose more than the margin only together
    ===============  ==================================================================================

    The network, its optimizer, its buffers, its modes and all random states are the same afterwards, bit for bit.
    Three copies, 500 steps and 5 repeats are 7,500 training steps at most. It stops after three or more repeats if the
    99 % intervals decide. Memory: one copy of the network and its optimizer at a time.

    Args:
        network: the network as it is now, in training mode or not; also wrapped by DistributedDataParallel or
            torch.compile (copies run uncompiled). Modules whose mode you changed keep it if the network is in training.
        loss: ``loss(network, batch)``, the training loss. Use mixed precision in it as in your loop. None if you give
            ``step``.
        batches: the next data. A list or tuple of batches is shuffled again in each repeat. A ``DataLoader`` should
            shuffle. A function that returns an iterable works too, and anything else that can be read again. If there
            are fewer batches than steps, they are read again.
        optimizer: the network's optimizer, or several in a list or tuple. Methods that are attached to it act on the
            copies too; other step hooks do not. Hooks that you put on the network's modules run in the copies, so let
            none of them collect outputs meanwhile. Copies are trained by the optimizers inside one that wraps others
            (Lookahead, Accelerate's); if you give ``step`` or ``remedies``, pass these yourself.
        fresh: builds a new network of the same architecture. When left out, every module draws new parameters with its
            own ``reset_parameters()``, and frozen parameters keep their values. Pass it if your code initializes the
            network in another way.
        remedies: by name, ``remedy(network, optimizer)``, which changes a copy before it trains with a fresh optimizer,
            or attaches a method to its optimizer.
        step: your own training step, ``step(network, optimizer, batch)``, for loops that are not one loss (agents,
            GANs) or that clip gradients. It takes one step and returns the loss before it. ``optimizer`` is one
            optimizer, or a tuple if you passed several.
        schedulers: torch's learning rate schedulers of the optimizer that step once per training step. Copies of them
            continue in every copy; ``ReduceLROnPlateau`` gets the loss of each step.
        scaler: the ``torch.amp.GradScaler``, if there is one.
        steps: training steps of a copy: as many as you train on each change of the data, if a fresh network clearly
            learns in them. With many more, a network that only learns more slowly catches up.
        repeats: at most this many; at least 2.
        margin: the difference that does not matter, as a fraction of what the fresh network learns (its first loss
            minus its result). With 0.05, 59 of 60 situations with a known truth were judged rightly
            (``benchmarks/situations.py``).
        seed: of the orders, the fresh networks and all random numbers in training.
        progress: whether to show it on stderr.

    Raises:
        TypeError: for a population, batches that can be read only once, or a loss that is not one number.
        ValueError: for no batches, fewer than 1 step or 2 repeats, a negative margin, a loss that does not depend on
            the network that it gets, an optimizer of another network, one that wraps others with ``step`` or
            ``remedies``, a remedy with the name of a compared copy or difference, or a network that cannot draw new
            parameters if ``fresh`` is left out.

    A fresh optimizer has the present hyperparameters, so a learning rate that was decayed to nothing is no stalling
    optimizer: no copy learns, and the verdict is "undecided". State that a third-party optimizer keeps outside its
    ``state`` is not renewed.
    """
    optimizers = tuple(optimizer) if isinstance(optimizer, list | tuple) else (optimizer,)
    remedies = dict(remedies or {})
    _check_data(network, batches, steps, repeats, margin)
    _check_training(network, optimizers, loss, step, remedies)
    _check_schedulers(schedulers, steps)
    inside = tuple(chain.from_iterable(map(inner_optimizers, optimizers)))
    live = Trained(unwrapped(network), inside, tuple(schedulers), scaler, isinstance(optimizer, list | tuple))
    arms = dict.fromkeys((AS_IT_IS, FRESH_OPTIMIZER, FRESH_NETWORK)) | remedies
    curves: dict[str, list[Tensor]] = {name: [] for name in arms}
    report = _Report(len(arms) * repeats * steps, progress)

    def train(name: str, repeat: int) -> Tensor:
        """The losses of a copy, which is freed before the next one is made."""
        reproducible = partial(seeded, seed + repeat, live.network, batches)
        with reproducible(), without_gradients(live.network), closing(live.copied()) as trained:
            _prepare(trained, name, fresh, arms[name], seed + repeat)
            one_step: Callable[[Any], Tensor | float]
            if step:
                one_step = partial(step, trained.network, trained.optimizer)
            elif loss:
                one_step = partial(_step, trained, loss)
            report_step = partial(report, f"repeat {repeat + 1} of at most {repeats}, {name}")
            with reproducible():
                return _losses(one_step, _read(batches, steps, seed + repeat), trained, report_step)

    for repeat in range(repeats):
        for name in arms:
            curves[name].append(train(name, repeat))
        result = PlasticityTest({name: torch.stack(rows) for name, rows in curves.items()}, margin)
        if repeat + 1 >= FEWEST_REPEATS and result.verdict_at(0.99) != "undecided":
            break
    report.end()
    return result


def _check_data(
    network: nn.Module, batches: Iterable[Any] | Callable[[], Iterable[Any]], steps: int, repeats: int, margin: float
) -> None:
    if isinstance(unwrapped(network), Population):
        raise TypeError("expected one network, got a Population: test population.member(0), and so on")
    if isinstance(batches, Iterator):
        raise TypeError(
            f"expected batches that can be read again, got a {type(batches).__name__}: pass a list, a DataLoader, or a "
            "function that returns an iterable"
        )
    if steps < 1 or repeats < 2:
        raise ValueError(f"expected at least 1 step and 2 repeats, got {steps} and {repeats}: 500 and 5 are usual")
    if not margin >= 0:
        raise ValueError(f"expected a margin of at least 0, got {margin}: 0.05 is usual")


def _check_training(
    network: nn.Module,
    optimizers: tuple[Any, ...],
    loss: Loss | None,
    step: Step | None,
    remedies: Mapping[str, Callable[[nn.Module, Any], object]],
) -> None:
    if (loss is None) == (step is None):
        raise TypeError("expected a loss or step=, got both or none: pass loss=None with step=")
    inside = [inner_optimizers(one) for one in optimizers]
    parameters = {id(parameter) for parameter in network.parameters()}
    if not any(held_by(one) & parameters for one in chain(*inside)):
        raise ValueError(
            "expected an optimizer of this network's parameters, got another: pass the one that trains the network"
        )
    if taken := [name for name in remedies if name in RESERVED]:
        raise ValueError(
            f"expected other names for remedies, got {taken[0]!r}, which the result uses itself: rename it"
        )
    for one, held in zip(optimizers, inside, strict=True):
        if (step or remedies) and held != [one]:
            kinds = ", ".join(type(inner).__name__ for inner in held)
            raise ValueError(
                f"expected optimizers that wrap no others for step= and remedies=, got a {type(one).__name__} that "
                f"wraps {kinds}: pass the inner optimizers as a list"
            )


def _check_schedulers(schedulers: Sequence[Any], steps: int) -> None:
    for scheduler in schedulers:
        if isinstance(scheduler, OneCycleLR) and steps > (left := scheduler.total_steps - scheduler.last_epoch):
            raise ValueError(
                f"expected a OneCycleLR with at least {steps} steps left, got one with {left}: test with fewer steps, "
                "or leave it out, which keeps the present step size"
            )


def _prepare(
    trained: Trained,
    name: str,
    fresh: Callable[[], nn.Module] | None,
    remedy: Callable[[nn.Module, Any], object] | None,
    seed: int,
) -> None:
    """Turn a copy of the original into one of the compared copies."""
    if name != AS_IT_IS:
        trained.renew_optimizers()
    if name == FRESH_NETWORK:
        trained.start_over(unwrapped(fresh()) if fresh else None, seed)
    if remedy:
        remedy(trained.network, trained.optimizer)


def _losses(
    step: Callable[[Any], Tensor | float], batches: Iterable[Any], trained: Trained, report: Callable[[], None]
) -> Tensor:
    """Train on the batches; return the loss before each step."""
    losses = []
    with warnings.catch_warnings(), torch.enable_grad():
        # A scheduler misses the wrapper that it put around the original optimizer's step.
        warnings.filterwarnings("ignore", "Seems like `optimizer.step", UserWarning)
        for batch in batches:
            losses.append(torch.as_tensor(step(batch)).detach().reshape(()))
            for scheduler in trained.schedulers:
                scheduler.step(*([losses[-1]] if isinstance(scheduler, ReduceLROnPlateau) else []))
            report()
    return torch.stack(losses).double().cpu()


def _step(trained: Trained, loss: Loss, batch: Any) -> Tensor:
    """One training step; returns the loss before it."""
    for optimizer in trained.optimizers:
        optimizer.zero_grad()
    value = loss(trained.network, batch)
    if not (isinstance(value, Tensor) and value.numel() == 1):
        what = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"expected loss(network, batch) to return one number in a tensor, got {what}: return the mean")
    scaler = trained.scaler
    if value.requires_grad:
        (scaler.scale(value) if scaler else value).backward()
    if all(parameter.grad is None for parameter in trained.network.parameters()):
        raise ValueError(
            "expected loss(network, batch) to depend on its argument network, got no gradient for its parameters: use "
            "that argument in it, not the original network"
        )
    for optimizer in trained.optimizers:
        if scaler:
            scaler.step(optimizer)
        elif searches_lines(optimizer):  # it computes the loss again
            optimizer.step(partial(_closure, optimizer, loss, trained.network, batch))
        else:
            optimizer.step()
    if scaler:
        scaler.update()
    return value


def _closure(optimizer: Optimizer, loss: Loss, network: nn.Module, batch: Any) -> float:
    optimizer.zero_grad()
    value = loss(network, batch)
    value.backward()
    return value.item()


def _read(batches: Iterable[Any] | Callable[[], Iterable[Any]], steps: int, seed: int) -> Iterator[Any]:
    """``steps`` batches, read from the beginning as often as needed; a list in a random order each time."""
    left = steps
    for reading in count():
        torch.manual_seed(seed + 1_000_003 * reading)  # a DataLoader shuffles by it, whatever the training has drawn
        if isinstance(batches, list | tuple):
            some: Iterable[Any] = (batches[index] for index in torch.randperm(len(batches)).tolist())
        else:
            some = batches() if callable(batches) else batches
        before = left
        for batch in islice(some, left):
            left -= 1
            yield batch
        if left == 0:
            return
        if left == before:
            raise ValueError("expected at least one batch in each reading, got none: pass a list, or a DataLoader")


class _Report:
    """Shows on stderr what runs and how much time is left: in one line on a terminal, else twice a minute."""

    def __init__(self, steps: int, shown: bool) -> None:
        self._steps, self._shown, self._done = steps, shown, 0
        self._is_terminal = sys.stderr.isatty()
        self._period = 0.5 if self._is_terminal else 30.0
        self._began = self._last = time.monotonic()

    def __call__(self, what: str) -> None:
        self._done += 1
        now = time.monotonic()
        if self._shown and now - self._last >= self._period:
            self._last = now
            left = (now - self._began) / self._done * (self._steps - self._done)
            line = f"plasticity test: {what}, at most {left // 60:.0f}:{left % 60:02.0f} left"
            sys.stderr.write(f"\r\033[K{line}" if self._is_terminal else f"{line}\n")
            sys.stderr.flush()

    def end(self) -> None:
        if self._shown and self._is_terminal:
            sys.stderr.write("\r\033[K")
