"""The plasticity test of a run: its network, optimizer and method are those that the run would go on with."""

import copy
import json
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from supple import cli
from supple.lab import plasticity
from supple.lab.run import Run
from supple.lab.trainer import Trainer, train
from supple.rl.run import Run as AgentRun

DIGITS = "random-label-digits"


def run_of(method="none", seeds=(3, 5), **changes):
    """Tasks of eight steps."""
    tiny = {"examples": 64, "batch_size": 16, "epochs": 2, "tasks": 2, "model": "mlp-2x100", "step_size": 0.01}
    return Run.of(DIGITS, method, seeds, diagnostics=(), **(tiny | changes))


@pytest.fixture
def supple(monkeypatch):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["supple", *map(str, arguments)])
        cli.main()

    return call


@pytest.mark.parametrize(
    ("method", "optimizer"),
    [
        ("none", "adam"),
        ("none", "adam-restarted"),
        ("spectral-normalization", "adam-equal-betas"),
        ("l2-init", "sgd"),
        ("spectral", "adam"),
        ("spectral", "muon"),
        ("shrink-and-perturb", "adam"),
        ("self-normalized-resets", "adam"),
        ("hare-and-tortoise", "adam"),
        ("redo", "adam"),
        ("redo", "muon"),
        ("fire", "adam"),
    ],
)
def test_a_member_steps_as_the_run_would_go_on(method, optimizer):
    due = {"every": 2} if method in ("redo", "hare-and-tortoise") else {}  # after a task's last step too
    strength = {"redo": 0.9, "l2-init": 1.0}.get(method)
    run = run_of(method, optimizer=optimizer, options=due, strength=strength)
    trainer = Trainer(run, compiled=False)
    for _ in trainer.steps(0):
        pass
    member = plasticity.load_member(Trainer(run, compiled=False), copy.deepcopy(trainer.state_dict()), 1)
    if optimizer == "adam-restarted":
        trainer.learner.clear_moments(list(trainer.learner.parameters))
    if method == "fire":
        trainer.learner.mitigator.start_task()
    batches, read_batch = trainer.batches_of(1, 1)
    assert len(batches) == 8
    for batch, _ in zip(batches[:3], trainer.steps(1), strict=False):
        inputs, labels = read_batch(batch)
        member.optimizer.zero_grad()
        cross_entropy(member.network(inputs), labels).backward()
        member.optimizer.step()
    expected = dict(trainer.population.member(1).named_parameters())
    for name, parameter in member.network.named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=1e-5, atol=1e-6)


def test_a_run_is_tested_from_the_command_line(supple, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plasticity, "save", lambda chart, folder, name: [f"{folder}/{chart.mark.type} {name}"])
    run = run_of("spectral")
    train(run, root=str(tmp_path), keep=1)
    folder = Path(run.folder(str(tmp_path)).path)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {"checkpoint.pt", "checkpoint-after-1.pt", "checkpoint-after-2.pt"} <= before.keys()
    supple("test", str(folder)[:-6], "--seed", 5, "--after", 1, "--repeats", 2)
    output = capsys.readouterr().out
    result = json.loads((folder / "plasticity-test-after-1-member-1.json").read_text())
    assert (result["seed"], result["after"], result["steps"]) == (5, 1, 8)
    assert "8 steps, 2 repeats" in output
    assert result["sentence"][1:] in output
    assert result.keys() >= {"verdict", "differences", "results", "device", "torch"}
    assert "curves" not in result
    assert f"chart:  {folder}/line plasticity-test-after-1-member-1\n" in output
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert [entry["sentence"] for entry in plasticity.saved_results(str(tmp_path), [folder.name])] == [
        result["sentence"]
    ]


def test_the_networks_begin_as_the_runs(tmp_path, monkeypatch):
    """The first loss of both is that of the checkpoint's network on a batch of the next task."""
    run = run_of("none", (5,), examples=16)
    train(run, root=str(tmp_path))
    tested = plasticity.run_test(run, str(tmp_path), steps=1, repeats=2, progress=False)
    trainer = Trainer(run)
    trainer.load_state_dict(run.folder(str(tmp_path)).checkpoint().state)
    batches, read_batch = trainer.batches_of(0, 2)
    inputs, labels = read_batch(batches[0])  # with one batch an epoch, every batch holds all images
    expected = cross_entropy(trainer.population.member(0)(inputs), labels).item()
    own, renewed, fresh = tested.result.curves.values()
    assert own.flatten().tolist() == pytest.approx([expected] * 2)
    assert renewed.equal(own)
    assert not fresh.isclose(own).any()


def test_copies_train_in_the_precision_of_the_run(tmp_path, monkeypatch):
    seen = []
    outputs = Trainer.outputs

    def noting(trainer, network, x):
        layer = next(module for module in network.modules() if isinstance(module, torch.nn.Linear))
        handle = layer.register_forward_hook(lambda layer, inputs, output: seen.append(output.dtype))
        found = outputs(trainer, network, x)
        handle.remove()
        return found

    run = run_of("none", (5,), autocast="bfloat16")
    train(run, root=str(tmp_path))
    monkeypatch.setattr(Trainer, "outputs", noting)
    plasticity.run_test(run, str(tmp_path), steps=1, repeats=2, progress=False)
    assert set(seen) == {torch.bfloat16}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--seed", 4], "a network with seed 4 in the run, got seed 3 with strength 0, seed 5 with strength 0"),
        (["--strength", 0.5], "a network with strength 0.5 in the run"),
        (["--after", 1], "a checkpoint after 1 tasks in .*, got those after 2: choose one of them"),
        (["--steps", 0], "at least 1 step"),
    ],
)
def test_what_the_run_does_not_have(options, expected, supple, tmp_path):
    run = run_of()
    train(run, root=str(tmp_path))
    with pytest.raises(SystemExit, match=f"^supple: expected {expected}"):
        supple("test", run.folder(str(tmp_path)).path, *options)
    assert not [*tmp_path.rglob("plasticity-test-*")]


def test_a_folder_that_is_no_run_of_the_laboratory(supple, tmp_path):
    for seed in (0, 1):
        folder = run_of(seeds=(seed,)).folder(str(tmp_path))
        with folder.locked():
            folder.begin()
    for address, expected in {
        tmp_path / "none": "the folder of one run .*, got none",
        tmp_path / DIGITS: rf"the folder of one run .*, got {DIGITS}-none-\w+ \(seed \d\), {DIGITS}-none-\w+ \(seed",
        folder.path: f"a checkpoint in {folder.path}, got none: train the run for a task first",
    }.items():
        with pytest.raises(SystemExit, match=f"^supple: expected {expected}"):
            supple("test", address)
    with pytest.raises(SystemExit, match=f"a checkpoint in {folder.path}, got none"):
        supple("test", tmp_path / DIGITS, "--seed", "1")
    agents = AgentRun.of("cheetah-run", "none", [0], steps=20_000).folder(str(tmp_path))
    with agents.locked():
        agents.begin()
    with pytest.raises(SystemExit, match=f"got {agents.name}, which is from `supple rl`"):
        supple("test", agents.path)


def test_a_damaged_checkpoint(supple, tmp_path):
    run = run_of()
    train(run, root=str(tmp_path))
    path = Path(run.folder(str(tmp_path)).path)
    (path / "checkpoint.pt").write_bytes(b"half")
    with pytest.raises(
        SystemExit, match=r"checkpoints that can be read in .*, got a damaged one \(its content has changed"
    ):
        supple("test", path)


def test_a_run_without_a_next_task_and_one_that_has_diverged(tmp_path):
    last = run_of(seeds=(0,), shift="class-incremental", examples=200)
    train(last, root=str(tmp_path))
    with pytest.raises(ValueError, match="expected a task after task 2, got none"):
        plasticity.run_test(last, str(tmp_path))
    diverged = run_of(optimizer="sgd", step_size=1e30)
    train(diverged, root=str(tmp_path))
    with pytest.raises(ValueError, match=r"expected finite weights, got a network \(seed 5\) that has diverged"):
        plasticity.run_test(diverged, str(tmp_path), member=1)


@pytest.mark.parametrize("keep", [None, 1, 2, 3])
def test_kept_checkpoints(keep, tmp_path):
    run = run_of(seeds=(0,), tasks=3, epochs=1)
    train(run, root=str(tmp_path), keep=keep)
    folder = run.folder(str(tmp_path))
    names = {path.name for path in Path(folder.path).glob("checkpoint-*")}
    tasks = [task for task in (1, 2, 3) if keep and task % keep == 0]
    assert names == {f"checkpoint-after-{task}.pt" for task in tasks}
    assert [folder.checkpoint_after(task).finished for task in tasks] == tasks
    assert folder.checkpoint_after().finished == folder.checkpoint_after(3).finished == 3
