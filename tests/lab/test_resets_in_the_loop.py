"""The methods that replace units or networks, by name in the laboratory's loop."""

from dataclasses import replace

import pytest
import torch

from supple.lab.dry_run import dry_run
from supple.lab.run import Run
from supple.lab.trainer import Trainer
from supple.training.methods import METHODS

RESETS = ["redo", "continual-backprop", "self-normalized-resets", "network-reset"]


@pytest.fixture
def _short(monkeypatch):
    """Acting within few steps."""
    options = {
        "redo": {"every": 3},
        "continual-backprop": {"maturity": 2},
        "self-normalized-resets": {"every": 1, "patience": 1, "quiet": 0.9},
        "network-reset": {"every": 3},
    }
    for name, few in options.items():
        method = METHODS[name]
        monkeypatch.setitem(METHODS, name, replace(method, options=few, strength=1.0))


@pytest.mark.usefixtures("_short")
@pytest.mark.parametrize("name", RESETS)
def test_it_acts_and_a_member_is_a_run_of_its_own(name):
    own = 0.05 if name == "continual-backprop" else 0.5
    trained = []
    for method, seeds, strength in ((name, (0, 1), own), (name, (1,), own), ("none", (0, 1), None)):
        run = Run.of("random-label-digits", method, seeds, strength=strength, epochs=1)
        trainer = Trainer(run)
        trainer.learn(0)
        trained.append({key: value.clone() for key, value in trainer.learner.parameters.items()})
    both, alone, plain = trained
    for key, value in both.items():
        torch.testing.assert_close(value[1], alone[key][0], rtol=1e-4, atol=1e-5)
    assert any(not torch.equal(both[key], plain[key]) for key in both)


def test_tasks_of_growing_length():
    run = Run.of("ten-chunks-digits", "none", [0], epochs=1, tasks=3, diagnostics=())
    trainer, reports, online = Trainer(run), [], []
    for task in range(3):
        rows = trainer.learn(task, reports.append)
        online.append(rows.filter(metric="online_accuracy")["value"].to_list())
        assert not rows.filter(metric="test_accuracy").is_empty()
    images = 128 * torch.tensor([[1], [2], [3]])  # in whole batches of 130, 260 and 390 images
    told = images * torch.tensor(online)
    torch.testing.assert_close(told, told.round(), atol=1e-3, rtol=0)
    assert [len(list(trainer.steps(task))) for task in range(3)] == [1, 2, 3]


def test_training_from_scratch_is_a_whole_perturbation_and_a_restarted_adam():
    starts = []
    for step_size in (1e-3, 1e-2):
        options = {"variant": "task"}
        run = Run.of("warm-start-digits", "shrink-and-perturb", [0, 1], strength=1.0, options=options, epochs=1)
        trainer = Trainer(replace(run, step_size=step_size, diagnostics=()))
        first = {key: value.clone() for key, value in trainer.learner.parameters.items()}
        trainer.learn(0)
        step, taken = trainer._step, []

        def noting(*inputs, trainer=trainer, step=step, taken=taken):
            moments = [t for moments in trainer.learner.moments.values() for t in moments.values()]
            taken.append(
                ({key: p.clone() for key, p in trainer.learner.parameters.items()}, any(map(torch.any, moments)))
            )
            return step(*inputs)

        trainer._step = noting
        trainer.learn(1)
        starts.append(taken[0])
    (slow, *moments), (fast, *more_moments) = starts
    assert not any((*moments, *more_moments))
    for key, value in slow.items():
        assert torch.equal(value, fast[key])  # nothing is left of the first task
        assert not torch.equal(value, first[key])


@pytest.mark.parametrize(("name", "options"), [("fire", {}), ("shrink-and-perturb", {"variant": "task"}), ("l2", {})])
def test_a_method_of_task_starts_acts_before_every_task_but_the_first(name, options, monkeypatch):
    run = Run.of("random-label-digits", name, [0], options=options, epochs=1, tasks=3)
    trainer, starts = Trainer(run), []
    monkeypatch.setattr(trainer.learner.mitigator, "start_task", lambda: starts.append(task))
    for task in range(3):
        trainer.learn(task)
    assert starts == ([] if name == "l2" else [1, 2])


@pytest.mark.parametrize(("tasks", "told"), [(1, True), (2, False)])
def test_a_method_whose_period_is_longer_than_the_run_is_named(tasks, told, caplog):
    options = {"every": 100}  # an epoch has about 7 steps: 1,797 images in batches of 256
    run = Run.of("random-label-digits", "redo", [0], tasks=tasks, epochs=9, options=options, diagnostics=())
    dry_run([run])
    message = "redo acts every 100 steps, but a run has at most 63"
    assert (message in caplog.text) == told, caplog.text


@pytest.mark.parametrize(("every", "told"), [(7, True), (6, False)])
def test_a_method_that_is_due_after_the_last_step_is_named(every, told, caplog):
    run = Run.of("random-label-digits", "redo", [0], tasks=1, epochs=1, options={"every": every}, diagnostics=())
    dry_run([run])  # 7 steps; it acts before the next step, which there is not
    assert ("would never act" in caplog.text) == told
