"""The loop against the one that anybody would write: an ordinary network, torch's Adam, the method attached."""

from functools import partial

import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal
from torch import nn
from torch.nn.functional import cross_entropy

from supple import HareAndTortoise, SpectralRegularizer, WeightClipping
from supple.lab.datasets import DATASETS, Dataset, Examples
from supple.lab.methods import METHODS, Method
from supple.lab.models import MODELS, mlp
from supple.lab.problems import Run
from supple.lab.shifts import SHIFTS, batch_order
from supple.lab.trainer import Trainer, train

METRICS = ("train_accuracy", "train_loss", "spectral_norm", "weight_norm")
PATHS = ("one by one", "vectorised")
MORE_METHODS = {
    "spectral-but-one": Method(
        summary="a parameter left out", mitigator=partial(SpectralRegularizer, roles={"1.weight": None}), strength=0.3
    ),
    # Those of the table act too seldom, or on weights too large, to be seen within two dozen steps.
    "early-tortoise": Method(summary="", mitigator=partial(HareAndTortoise, every=5), strength=1.0),
    "tight-clipping": Method(summary="", mitigator=WeightClipping, strength=2.0),
}


def tiny_images():
    pixels = torch.randint(256, (50, 1, 4, 4), generator=torch.Generator().manual_seed(8), dtype=torch.uint8)
    return Dataset(Examples(pixels, torch.zeros(50, dtype=torch.int64)), None, None, 3, (0.0,), (1.0,))


def with_batch_norm(data, **options):
    # Without the bias, whose gradient is nothing but rounding, which Adam would blow up to whole steps.
    return nn.Sequential(
        nn.Flatten(), nn.Linear(16, 12, bias=False), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, data.classes)
    )


def with_dropout(data, **options):
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Dropout(0.3), nn.Linear(12, data.classes))


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    monkeypatch.setitem(DATASETS, "tiny", tiny_images)
    monkeypatch.setitem(MODELS, "tiny", partial(mlp, width=12, depth=2))
    monkeypatch.setitem(MODELS, "batch-norm", with_batch_norm)
    monkeypatch.setitem(MODELS, "dropout", with_dropout)
    for name, method in MORE_METHODS.items():
        monkeypatch.setitem(METHODS, name, method)
    yield
    torch.set_flush_denormal(False)  # a run switches it on for its process


def run_of(method, seeds=(4,), **changes):
    """Two tasks of 12 steps; 2 of the 50 images are left over in each epoch."""
    defaults = {"dataset": "tiny", "model": "tiny", "tasks": 2, "epochs": 4, "batch_size": 16, "step_size": 0.01}
    return Run.of("random-label-digits", method, seeds, **(defaults | changes))


def trainer_of(run, path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(torch, "compile", lambda step: step)
        return Trainer(run, compiled=path == "vectorised")


def learned(trainer):
    """All that was measured, ``(seed, task, metric)`` to value."""
    rows = [row for task in range(trainer.run.tasks) for row in trainer.learn(task)]
    found = {tuple(key): value for *key, value in rows}
    assert len(found) == len(rows)
    return found


def by_hand(run, seed):
    """The same run, one network, one step after the other."""
    data, method = DATASETS[run.dataset](), METHODS[run.method]
    inputs = data.train.images.float() / 255
    torch.manual_seed(seed)
    network = MODELS[run.model](data, **method.model)
    optimizer = torch.optim.Adam(network.parameters(), lr=run.step_size)
    mitigator = method.mitigator(network, run.strength)
    if any("random" in entry for entry in mitigator.state_dict().values()):
        mitigator = method.mitigator(network, run.strength, seed=seed)  # each member draws from its own seed
    mitigator.attach(optimizer)
    found = {}
    for task in range(run.tasks):
        labels = SHIFTS[run.shift](data, seed, task)
        for batch in batch_order(len(inputs), run.batch_size, run.epochs, seed, task):
            optimizer.zero_grad()
            cross_entropy(network(inputs[batch]), labels[batch]).backward()
            optimizer.step()
        values = measured_by_hand(network, inputs, labels)
        found |= {(seed, task, metric): value for metric, value in zip(METRICS, values, strict=True)}
    return network, found


@torch.no_grad()
def measured_by_hand(network, inputs, labels):
    network.eval()
    outputs = network(inputs)
    network.train()
    parameters = list(network.parameters())
    stretches = [torch.linalg.svdvals(parameter)[0] for parameter in parameters if parameter.ndim == 2]
    return (
        (outputs.argmax(1) == labels).float().mean().item(),
        cross_entropy(outputs, labels).item(),
        (sum(stretches) / len(stretches)).item(),
        torch.cat([parameter.flatten() for parameter in parameters]).norm().item(),
    )


def tensors(network):
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def assert_same(found, expected):
    """Two dictionaries of tensors or numbers are the same to the rounding of two dozen steps."""
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", [*METHODS, *MORE_METHODS])
def test_every_method_trains_as_by_hand(method, path, monkeypatch):
    run = run_of(method)
    expected, rows = by_hand(run, seed=4)
    trainer = trainer_of(run, path, monkeypatch)
    assert_same(learned(trainer), rows)
    assert_same(tensors(trainer.population.member(0)), tensors(expected))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", METHODS)
def test_a_population_is_its_members_trained_alone(method, path, monkeypatch):
    together = trainer_of(run_of(method, seeds=(4, 0, 9)), path, monkeypatch)
    rows = learned(together)
    for index, seed in enumerate((4, 0, 9)):
        alone = trainer_of(run_of(method, seeds=(seed,)), path, monkeypatch)
        assert_same({key: value for key, value in rows.items() if key[0] == seed}, learned(alone))
        assert_same(tensors(together.population.member(index)), tensors(alone.population.member(0)))


@pytest.mark.parametrize("path", PATHS)
def test_batch_norm_keeps_the_statistics_of_each_member(path, monkeypatch):
    run = run_of("spectral", seeds=(4, 7), model="batch-norm")
    trainer = trainer_of(run, path, monkeypatch)
    rows = learned(trainer)
    for index, seed in enumerate(run.seeds):
        network, expected = by_hand(run, seed)
        assert network[2].num_batches_tracked == 24
        assert_same({key: value for key, value in rows.items() if key[0] == seed}, expected)
        assert_same(tensors(trainer.population.member(index)), tensors(network))


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # what torch itself imports to compile
@pytest.mark.parametrize(
    ("method", "model"), [("spectral", "batch-norm"), ("decoupled-spectral", "tiny")], ids=lambda name: name
)
def test_compiled_steps_are_the_same(method, model):
    run = run_of(method, seeds=(4, 7), model=model)
    eager, compiled = (Trainer(run, compiled=choice) for choice in (False, True))
    assert_same(learned(compiled), learned(eager))
    assert_same(tensors(compiled.population), tensors(eager.population))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", METHODS)
def test_a_diverged_member_is_measured_and_does_not_touch_the_others(method, path, monkeypatch):
    run = run_of(method, seeds=(1, 2, 3))
    sound, sick = (trainer_of(run, path, monkeypatch) for _ in range(2))
    next(iter(sick.parameters.values()))[1] = float("nan")
    expected, found = learned(sound), learned(sick)
    others = [key for key in expected if key[0] != 2]
    assert {key: found[key] for key in others} == {key: expected[key] for key in others}
    assert all(torch.equal(a[[0, 2]], b[[0, 2]]) for a, b in zip(*map(parameters, (sound, sick)), strict=True))
    assert all(found[2, 1, metric] != found[2, 1, metric] for metric in METRICS[1:])


def parameters(trainer):
    return list(trainer.population.parameters())


def test_long_runs_are_compiled_and_short_ones_are_not(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda step: compiled.append(step) or step)
    for steps in (29_990, 30_000):  # 10 a task
        Trainer(run_of("none", tasks=steps // 10, epochs=10, batch_size=50))
    assert len(compiled) == 1


# Stopping and starting again: tasks of 60 steps, so that there is a report in the middle of each, after 50.


class StoppedError(Exception):
    pass


def long_run(method, model="tiny"):
    return run_of(method, model=model, tasks=3, epochs=10, batch_size=8)


def stop_at(moment):
    def report(tasks):
        if tasks >= moment:
            raise StoppedError

    return report


def results(run, root):
    folder = run.folder(root).path
    return pl.read_parquet(folder / "metrics.parquet"), torch.load(folder / "checkpoint.pt", weights_only=True)


def assert_equal_runs(run, root, other):
    (rows, checkpoint), (other_rows, other_checkpoint) = (results(run, place) for place in (root, other))
    assert_frame_equal(rows, other_rows, check_exact=True)
    assert checkpoint.pop("rows") == other_checkpoint.pop("rows")
    torch.testing.assert_close(checkpoint, other_checkpoint, rtol=0, atol=0)


@pytest.fixture
def whole(tmp_path):
    return tmp_path / "whole"


@pytest.fixture
def broken(tmp_path):
    return tmp_path / "broken"


@pytest.mark.parametrize("moment", [0.5, 1, 1.5, 3], ids=["in task 0", "after task 0", "in task 1", "at the end"])
@pytest.mark.parametrize(("method", "model"), [*((name, "tiny") for name in METHODS), ("l2", "dropout")])
def test_a_stopped_run_goes_on_to_the_same_bits(method, model, moment, whole, broken):
    run, reports = long_run(method, model), []
    train(run, root=whole)
    with pytest.raises(StoppedError):
        train(run, stop_at(moment), root=broken)
    train(run, reports.append, root=broken)
    assert_equal_runs(run, broken, whole)
    done = int(moment)
    assert reports == [task + part for task in range(done, 3) for part in (50 / 60, 1)]  # and no finished task again


@pytest.mark.parametrize("pieces", [1, 2, 3, 7])
def test_a_run_in_pieces_ends_with_the_same_bits(pieces, whole, broken):
    run = long_run("shrink-and-perturb")
    assert train(run, root=whole) is False
    left = [train(run, root=broken, pieces=pieces) for _ in range(min(pieces, 3))]
    assert left == [True] * (len(left) - 1) + [False]
    assert_equal_runs(run, broken, whole)


@pytest.mark.parametrize("task", [0, 2], ids=["first", "last"])
@pytest.mark.parametrize("name", ["save", "write_parquet"])
def test_a_run_that_dies_while_it_saves_goes_on(name, task, whole, broken, monkeypatch):
    run = long_run("spectral")
    train(run, root=whole)
    owner = torch if name == "save" else pl.DataFrame
    calls, write = [], getattr(owner, name)

    def dying(*args, **options):
        calls.append(args)
        if len(calls) > task:
            raise StoppedError
        return write(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, dying)
        with pytest.raises(StoppedError):
            train(run, root=broken)
    train(run, root=broken)
    assert run.folder(broken).finished(run.tasks)
    assert_equal_runs(run, broken, whole)


def test_a_finished_run_is_not_trained_again(whole, monkeypatch):
    run = long_run("none")
    train(run, root=whole)
    before = {path.name: path.read_bytes() for path in run.folder(whole).path.iterdir()}
    monkeypatch.setattr(Trainer, "learn", lambda *args: pytest.fail("trained again"))
    train(run, root=whole)
    assert {path.name: path.read_bytes() for path in run.folder(whole).path.iterdir()} == before


def test_a_run_leaves_what_it_measured(whole):
    run = run_of("spectral", seeds=(3, 5))
    train(run, root=whole)
    rows, _ = results(run, whole)
    expected = learned(Trainer(run))
    assert {(seed, task, metric): value for seed, task, metric, value in rows.rows()} == expected
    assert expected.keys() == {(seed, task, metric) for seed in (3, 5) for task in (0, 1) for metric in METRICS}


def test_progress_is_told_in_the_middle_of_tasks():
    reports = []
    Trainer(long_run("none"), compiled=False).learn(2, reports.append)
    assert reports == [2 + 50 / 60]
