"""The parts of gpu.py: what each measures, row by row."""

import contextlib
import importlib.util
import io
import itertools
import time
import traceback
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from gpu_steps import (
    FORMS,
    Record,
    Setting,
    Step,
    at_precision,
    batch_of,
    captured_step,
    compare,
    eager_step,
    laboratory_step,
    loss_of,
    noise,
    perceptron,
    plain_step,
)
from networks import NETWORKS
from torch import nn

import supple
from supple import Population, SpectralRegularizer
from supple.training.learner import Learner
from supple.training.methods import METHODS
from supple.training.optimizers import OPTIMIZERS

TASK_METHODS = ("none", "spectral", "decoupled-spectral")
LARGE = ("mlp", "resnet18", "vit-tiny", "gpt2")
TESTS = ("mitigators", "network", "diagnostics", "lab/test_trainer.py", "rl/test_sac.py")


def waits(setting: Setting, record: Record) -> None:
    """Long enough for methods that act rarely; the first steps may check whether the method sees any activations."""
    for kind, (name, method) in itertools.product(("network", "population"), METHODS.items()):
        if not method.has_strength:
            continue

        def make() -> nn.Module:
            return nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 16), nn.Linear(16, 3))

        network = (make() if kind == "network" else Population(make, range(3))).to(setting.device)
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
        method.on(network, method.strength).attach(optimizer)
        x = torch.randn(*([3] if kind == "population" else []), 5, 8, device=setting.device)
        step, waited = 0, ""
        try:
            for step in range(setting.size(1_100 if kind == "network" else 100, 5)):
                with no_waiting(setting) if step >= 4 else contextlib.nullcontext():
                    optimizer.zero_grad()
                    network(x).square().mean().backward()
                    optimizer.step()
        except RuntimeError as error:
            frames = traceback.extract_tb(error.__traceback__)
            place = next((frame for frame in reversed(frames) if "supple" in frame.filename), frames[-1])
            waited = f"step {step}, {Path(place.filename).name}:{place.lineno}: {str(error).splitlines()[0]}"
        record(method=name, on=kind, waits=waited or "no")


@contextlib.contextmanager
def no_waiting(setting: Setting) -> Iterator[None]:
    """An error at the first operation that waits for the device; nothing on a CPU."""
    if not setting.is_cuda:
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def share(setting: Setting, record: Record) -> None:
    """Eager steps, and the same steps in a CUDA graph, which costs no launches."""
    torch.set_float32_matmul_precision("high")
    for name in LARGE[: setting.size(4, 1)]:
        variants = {form: eager_step(setting, name, form) for form in FORMS}
        compare(setting, record, f"{name}, eager", {**variants, "none again": variants["none"]}, base="none")
        if setting.is_cuda:
            captured = {form: captured_step(setting, name, form) for form in FORMS}
            compare(setting, record, f"{name}, CUDA graph", captured, base="none")


def compiled(setting: Setting, record: Record) -> None:
    """Compiled network and compiled optimizer."""
    torch.set_float32_matmul_precision("high")
    for name in ("mlp", "resnet18", "gpt2", "vit-tiny")[: setting.size(4, 1)]:
        torch.compiler.reset()
        began = time.perf_counter()
        variants = {form: eager_step(setting, name, form, setting.compiled) for form in FORMS}
        for _, step in itertools.product(range(3), variants.values()):
            step()
        setting.wait()
        compiling = time.perf_counter() - began
        compare(setting, record, name, variants, base="none", compiling=round(compiling, 1))


def populations(setting: Setting, record: Record) -> None:
    """Members in one compiled step, each relative to a plain eager loop over one network."""
    small, large = [784, 100, 100, 10], [784, 256, 256, 256, 256, 10]
    for form, members, sizes, batch, optimizer in (
        ("spectral", 10, small, 16, "sgd"),
        ("spectral", 64, small, 16, "sgd"),
        ("spectral", 30, large, 512, "adam"),
        ("none", 10, small, 16, "sgd"),
        ("none", 64, small, 16, "sgd"),
    )[: setting.size(5, 1)]:
        sizes = sizes if not setting.tiny else [4, 3, 2]
        torch.compiler.reset()
        network = perceptron(sizes).to(setting.device)
        by_name = {"sgd": torch.optim.SGD, "adam": partial(torch.optim.Adam, fused=True)}
        x, y = batch_of(setting, (batch, sizes[0]), sizes[-1])
        loop = plain_step(network, by_name[optimizer](network.parameters(), lr=1e-2), form, x, y)

        population = Population(partial(perceptron, sizes), range(members)).to(setting.device)
        mitigator = FORMS[form](population) or supple.Mitigator(population, 0.0)
        assert isinstance(mitigator, supple.Mitigator)
        learner = Learner(population, mitigator, 1e-2, optimizer=OPTIMIZERS[optimizer], compiled=not setting.tiny)
        step = setting.compiled(learner.learn)
        xs, ys = x.expand(members, *x.shape).contiguous(), y.expand(members, *y.shape).contiguous()
        variants = {"eager loop": loop, "population": partial(step, loss_of, xs, ys)}
        what = f"{members} of {'-'.join(map(str, sizes))}, batch {batch}, {form}"
        compare(setting, record, what, variants, base="eager loop", shared={"population": members})


def agent(setting: Setting, record: Record) -> None:
    """Ten members in one update against one at a time, both compiled, and against an eager loop."""
    from supple.rl.presets import Constants
    from supple.rl.sac import SAC, Batch

    torch.set_float32_matmul_precision("high")
    observation, action, count = (78, 12, 256) if not setting.tiny else (3, 2, 4)
    constants = Constants(hidden=(256, 256) if not setting.tiny else (4,))
    random = partial(torch.randn, device=setting.device)

    def update(members: int, *, compiled: bool) -> Step:
        made = SAC(
            observation,
            action,
            constants,
            range(members),
            actor_method=SpectralRegularizer,
            critic_method=SpectralRegularizer,
            compiled=compiled,
            device=setting.device,
        )
        shape = members, count
        rewards, states = (random(*shape), torch.zeros(*shape, device=setting.device)), (*shape, observation)
        batch = Batch(random(*states), random(*shape, action).tanh(), *rewards, random(*states))
        return partial(made.update, batch, random(2, *shape, action))

    variants = {"eager loop": update(1, compiled=False)}
    if not setting.tiny:  # a tiny agent's compiling would take half a minute too
        variants |= {"one, compiled": update(1, compiled=True)}
    ten = update(setting.size(10, 2), compiled=not setting.tiny)
    variants |= {"ten, compiled": ten}
    compare(setting, record, "update", variants, base="eager loop", shared={"ten, compiled": setting.size(10, 2)})


def tests(setting: Setting, record: Record) -> None:
    """The tests that run on CUDA where there is one."""
    if importlib.util.find_spec("pytest") is None:
        record(what="skipped: pytest is not installed")
        return
    import pytest

    root = Path(__file__).resolve().parents[1]
    chosen = ["mitigators/test_captured.py"] if setting.tiny else TESTS
    options = ["--rootdir", str(root), "-p", "no:cacheprovider", "--continue-on-collection-errors", "--tb=line"]
    options += ["-k", "cuda" if setting.is_cuda else "cpu", *(str(root / "tests" / name) for name in chosen)]
    with contextlib.redirect_stdout(io.StringIO()) as output:
        pytest.main(options)
    printed = output.getvalue().splitlines()
    record(what=printed[-1], failed=[line for line in printed if line.startswith(("FAILED", "ERROR"))])


def resnet18(setting: Setting, record: Record) -> None:
    """The laboratory's steps against a plain loop in several precisions."""
    rows = setting.size(250, 2)
    images, labels = noise()
    x, y = images[:rows].to(setting.device).float() / 255, labels[:rows].to(setting.device)
    make = NETWORKS["resnet18" if not setting.tiny else "conv"][0]
    variants: dict[str, Step] = {}
    for name, precision, dtype, layout in (
        ("plain loop, float32", "highest", None, torch.contiguous_format),
        ("plain loop, TF32", "high", None, torch.contiguous_format),
        ("plain loop, bfloat16", "high", torch.bfloat16, torch.contiguous_format),
        ("plain loop, bfloat16, channels last", "high", torch.bfloat16, torch.channels_last),
    ):
        network = make().to(setting.device, memory_format=layout)
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
        inputs = x.contiguous(memory_format=layout)
        step = plain_step(network, optimizer, "none", inputs, y, autocast=dtype)
        variants[name] = partial(at_precision, precision, step)
    compare(setting, record, "resnet18", variants, base="plain loop, TF32")
    ours = {"plain loop, TF32": variants["plain loop, TF32"]}
    for name, precision in (("laboratory, float32", "highest"), ("laboratory, TF32", "high")):
        ours[name] = partial(at_precision, precision, laboratory_step(setting))
    compare(setting, record, "resnet18 in the laboratory", ours, base="plain loop, TF32")


def memory(setting: Setting, record: Record) -> None:
    """Peak memory of a step with each method."""
    for name in ("resnet18", "gpt2") if not setting.tiny else ("mlp",):
        for form in FORMS:
            step = eager_step(setting, name, form)
            for _ in range(3):
                step()
            setting.wait()
            if setting.is_cuda:
                torch.cuda.reset_peak_memory_stats()
                step()
                setting.wait()
            peak = torch.cuda.max_memory_allocated() / 2**20 if setting.is_cuda else 0.0
            record(network=name, method=form, peak_MiB=peak)
            del step
            if setting.is_cuda:
                torch.cuda.empty_cache()


def tasks(setting: Setting, record: Record, *, method: str, root: str) -> None:
    """ResNet-18 on CIFAR-10's random labels at the paper's scale; a later call goes on after the last finished task."""
    from supple.lab.run import Run
    from supple.lab.trainer import train
    from supple.runs.store import load

    if setting.tiny:
        sizes = {"examples": 50, "batch_size": 25, "epochs": 1, "tasks": 2, "model": "conv"}
        run = Run.of("random-label-cifar10", method, [0], dataset="gpu_steps:noise", diagnostics=(), **sizes)
    else:
        run = Run.of("random-label-cifar10", method, [0], scale="paper", matmul_precision="high", diagnostics=())
    recorded = 0

    def report(finished: float) -> None:
        nonlocal recorded
        if finished != int(finished) or finished <= recorded:
            return
        rows = load(root, {run.folder(root).name}).sort("task")
        for row in rows.filter(rows["metric"] == "train_accuracy").iter_rows(named=True):
            if row["task"] >= recorded:
                record(method=method, task=row["task"], train_accuracy=row["value"])
        recorded = int(finished)

    train(run, report, root=root)
