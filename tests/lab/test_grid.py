"""Grids: what is there already, what is left, and who is trained together."""

import dataclasses
import itertools
import json
import math
from pathlib import Path

import pytest
import torch

from supple.lab import grid
from supple.lab.grid import MAX_STACKED, TUNING_SEEDS, by_member, finished, missing, product, results, tuned
from supple.lab.operations import operations
from supple.lab.run import Run
from supple.runs.folder import RunFolder
from supple.runs.store import KINDS
from supple.training.methods import METHODS
from support.stores import plausible, store

DIGITS = "random-label-digits"
METRICS = ("train_accuracy", "diverged")


def members(methods=("none", "l2"), seeds=range(3), **changes):
    return product(DIGITS, methods, seeds, tasks=2, **changes)


def planted(root, runs, measure=plausible, done=None, metrics=METRICS):
    store(root, runs, metrics, measure, done=done)


def test_a_product_is_of_everything():
    found = members(seeds=(0, 7), strengths=(0.1, 0.2), step_sizes=(1e-2, 1e-3), model="mlp-2x100")
    assert all(run.seeds in ((0,), (7,)) and (run.tasks, run.model) == (2, "mlp-2x100") for run in found)
    settings = [(run.method, run.strengths[0], run.step_size, run.seeds[0]) for run in found]
    assert len(settings) == len(set(settings)) == 2 * (1 + 2) * 2
    expected = {
        (method, strength, step_size, seed)
        for seed in (0, 7)
        for method, strengths in (("none", (0.0,)), ("l2", (0.1, 0.2)))  # which alone has a strength
        for strength in strengths
        for step_size in (1e-2, 1e-3)
    }
    assert set(settings) == expected


def test_defaults_are_the_methods_and_the_problems():
    (run,) = product(DIGITS, ["l2", "l2"], [3])
    assert run == Run.of(DIGITS, "l2", [3])
    assert run.strengths == (METHODS["l2"].strength,)


@pytest.mark.parametrize("most", [1, 2, 4, 100])
def test_together_keeps_every_member_and_its_kind(most):
    wanted = members(seeds=range(5), strengths=(0.1, 0.2), step_sizes=(1e-2, 1e-3))
    found = grid.merged(wanted, most)
    assert sorted(map(str, (member for run in found for member in by_member(run)))) == sorted(map(str, wanted))
    assert all(len(run.seeds) == len(run.strengths) <= most for run in found)
    sizes = {"none": 5, "l2": 10}
    for method, size in sizes.items():
        assert sum(run.method == method for run in found) == 2 * -(-size // most)  # of two step sizes each


def test_small_networks_are_stacked_on_a_cpu_and_large_ones_are_not(monkeypatch):
    small, large = Run.of(DIGITS, "none", [0]), Run.of(DIGITS, "none", [0], model="mlp-3x2000")
    # Three times the forward pass, an addition and a multiplication for each weight and example.
    widths = {small: [64, 256, 256, 256, 256, 10], large: [64, 2000, 2000, 2000, 10]}
    for run, sizes in widths.items():
        assert operations(run) == 3 * 2 * 256 * sum(a * b for a, b in itertools.pairwise(sizes))
    random = torch.get_rng_state()
    operations(small)
    assert torch.equal(random, torch.get_rng_state())
    quick = dataclasses.replace(small, batch_size=8)
    assert [grid.most_stacked(run) for run in (quick, large)] == [MAX_STACKED["cpu"], 1]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [grid.most_stacked(run) for run in (quick, large)] == [MAX_STACKED["cuda"]] * 2


@pytest.mark.parametrize(("shift", "stacked"), [("class-pairs", False), ("random-labels", True)])
def test_tasks_of_classes_of_different_sizes_are_not_stacked(shift, stacked):
    run = Run.of(DIGITS, "none", [0, 1], shift=shift, batch_size=8)  # the digits have 174 to 183 images of a class
    assert grid.most_stacked(run) == (MAX_STACKED["cpu"] if stacked else 1)


def test_a_wide_head_of_two_classes_counts_as_such():
    pairs = Run.of(DIGITS, "layer-norm", [0], shift="class-pairs", batch_size=2)
    assert operations(pairs) == 3 * 2 * 2 * (64 * 256 + 3 * 256 * 256 + 256 * 2)


def test_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(grid, "most_stacked", lambda run: 2)
    root, wanted = str(tmp_path), members()
    planned = missing(wanted, root)
    assert [(run.method, run.seeds) for run in planned] == [
        ("none", (0, 1)),
        ("none", (2,)),
        ("l2", (0, 1)),
        ("l2", (2,)),
    ]
    planted(tmp_path, planned[:1])
    assert finished(root) == {
        wanted[0]: (planned[0].folder(root).name, 0),
        wanted[2]: (planned[0].folder(root).name, 1),
    }
    assert set(missing(wanted, root)) == set(planned[1:])
    planted(tmp_path, planned[1:])
    assert missing(wanted, root) == []
    assert missing([*wanted, *wanted, *members(seeds=[3]), *members(seeds=[3])], root) == members(seeds=[3])


def test_what_is_missing_is_cut_by_what_is_faster(tmp_path):
    wanted = [*members(["none"], range(12), batch_size=8), *members(["none"], range(2), model="mlp-3x2000")]
    assert [run.seeds for run in missing(wanted, str(tmp_path))] == [tuple(range(10)), (10, 11), (0,), (1,)]


def test_an_interrupted_population_goes_on_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(grid, "most_stacked", lambda run: 10)
    root = str(tmp_path)
    (begun,) = missing(members(["l2"], range(3)), root)
    planted(tmp_path, [begun], done=1)
    other = Run.of(DIGITS, "l2", (2, 9), tasks=2)  # of which not all are wanted
    planted(tmp_path, [other], done=1)
    assert finished(root) == {}
    assert missing(members(["l2"], range(3)), root) == [begun]
    assert missing(members(["l2"], range(5)), root) == [begun, Run.of(DIGITS, "l2", (3, 4), tasks=2)]
    assert missing(members(["l2"], range(2)), root) == [Run.of(DIGITS, "l2", (0, 1), tasks=2)]


@pytest.mark.parametrize("name", ["run.json", "environment.json", "metrics.parquet"])
def test_a_damaged_run_is_missing(name, tmp_path):
    (run,) = members(["none"], [0])
    planted(tmp_path, [run])
    assert missing([run], str(tmp_path)) == []
    Path(run.folder(str(tmp_path)).path, name).write_bytes(b"half")
    if name == "run.json":
        with pytest.warns(UserWarning, match="run its sweep again to repair it"):
            assert missing([run], str(tmp_path)) == [run]
    else:
        assert missing([run], str(tmp_path)) == [run]


def test_runs_of_another_kind_are_not_ours(tmp_path):
    (run,) = members(["none"], [0])
    planted(tmp_path, [run])
    ours = dataclasses.asdict(run)
    control = {name: ours[name] for name in KINDS}
    for other in (control, ours | {"newer": 1}):
        with RunFolder(str(tmp_path), other).locked():
            RunFolder(str(tmp_path), other).begin()
    assert finished(str(tmp_path)).keys() == {run}


def test_results_are_in_the_order_that_is_asked_for(tmp_path):
    population = Run.of(DIGITS, "l2", (0, 1, 2), tasks=2)
    other = Run.of(DIGITS, "none", (1,), tasks=2)
    planted(tmp_path, [population, other], lambda run, member, task, metric: 10.0 * run.seeds[member] + task)
    wanted = [*members(["l2"], [2]), *members(["none"], [1]), *members(["l2"], [0, 2]), *members(["l2"], [8])]
    rows = results(wanted, str(tmp_path))
    found = rows.filter(metric="train_accuracy").select("method", "seed", "task", "value").rows()
    assert found == [
        (method, seed, task, 10.0 * seed + task)
        for method, seed in (("l2", 2), ("none", 1), ("l2", 0))
        for task in (0, 1)
    ]


@pytest.mark.parametrize("judge", ["validation_accuracy", "train_accuracy"])
def test_tuning_takes_the_best_of_each_method(judge, tmp_path):
    best = {"none": (0.0, 1e-3), "l2": (0.1, 1e-2)}
    seeds = range(TUNING_SEEDS, TUNING_SEEDS + 2)
    tried = members(seeds=seeds, strengths=(0.1, 0.2), step_sizes=(1e-2, 1e-3))

    def measure(run, member, task, metric):
        right = best[run.method] == (run.strengths[member], run.step_size)
        return 0.5 + 0.1 * (right if metric == judge else not right)

    metrics = ("train_accuracy", judge) if judge == "validation_accuracy" else (judge, "test_accuracy")
    planted(tmp_path, tried, measure, metrics=(*metrics, "diverged"))
    assert tuned(results(tried, str(tmp_path))) == {(method, *setting) for method, setting in best.items()}


def test_tuning_goes_by_online_accuracy_where_the_problems_authors_do(tmp_path):
    tried = product("permuted-mnist-kumar", ["l2"], [TUNING_SEEDS], tasks=2, strengths=(0.1, 0.2))
    metrics = ("train_accuracy", "validation_accuracy", "online_accuracy", "diverged")
    planted(
        tmp_path,
        tried,
        lambda run, member, task, metric: (
            0.5 + (run.strengths[0] if metric == "online_accuracy" else -run.strengths[0])
        ),
        metrics=metrics,
    )
    assert tuned(results(tried, str(tmp_path))) == {("l2", 0.2, 0.01)}


def test_a_method_of_ones_own_takes_strengths():
    found = members(["none", "support.extensions:Bare", "layer-norm"], [0], strengths=(0.1, 0.5))
    assert [(run.method, run.strengths[0]) for run in found] == [
        ("none", 0.0),
        ("support.extensions:Bare", 0.1),
        ("support.extensions:Bare", 0.5),
        ("layer-norm", 0.0),
    ]


def test_tuning_passes_over_what_is_no_number(tmp_path):
    tried = members(["l2"], strengths=(0.1, 0.2, 0.3))
    accuracy = {0.1: math.nan, 0.2: 0.1, 0.3: 0.2}
    planted(tmp_path, tried, lambda run, member, task, name: 0.0 if name == "diverged" else accuracy[run.strengths[0]])
    assert tuned(results(tried, str(tmp_path))) == {("l2", 0.3, 0.001)}


def test_tuning_prefers_networks_that_have_not_diverged(tmp_path):
    """The accuracy of a network without finite weights may be above chance."""
    tried = members(["l2"], strengths=(0.1, 0.2, 0.3))

    def measure(run, member, task, metric):
        best = run.strengths[0] == 0.1
        return float(best) if metric == "diverged" else 0.5 + 0.4 * best - run.strengths[0]

    planted(tmp_path, tried, measure, metrics=("train_accuracy", "diverged"))
    assert tuned(results(tried, str(tmp_path))) == {("l2", 0.2, 0.001)}


def test_folders_hold_the_run_that_they_are_named_after(tmp_path):
    (run,) = members(["spectral"], [4], options={"exponent": 4})
    planted(tmp_path, [run])
    config = json.loads(Path(run.folder(str(tmp_path)).path, "run.json").read_text())
    assert Run(**{name: tuple(value) if isinstance(value, list) else value for name, value in config.items()}) == run


def test_more_than_a_thousand_seeds_are_refused_because_later_ones_are_for_tuning():
    assert len(product("random-label-digits", ["none"], range(TUNING_SEEDS))) == TUNING_SEEDS
    with pytest.raises(ValueError, match="expected at most 1000 seeds, got more"):
        product("random-label-digits", ["none"], range(TUNING_SEEDS + 1))
