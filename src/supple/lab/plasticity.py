"""Has a network of a run lost plasticity? The experiment of :func:`supple.plasticity_test` on a run's checkpoint."""

import json
import re
import warnings
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from supple.diagnostics.experiment import plasticity_test
from supple.diagnostics.verdict import AS_IT_IS, PlasticityTest
from supple.lab.run import Run
from supple.lab.trainer import Trainer
from supple.mitigators.base import Mitigator
from supple.mitigators.forecast import RewriteWarning
from supple.runs.charts import save
from supple.runs.files import files_at, read, write
from supple.runs.folder import hardware_and_versions
from supple.runs.store import DAMAGED, configurations, first_line
from supple.training import methods
from supple.training.optimizers import NetworkOptimizer
from supple.training.precision import flushed_denormals, matmul_precision

STEPS = 500
"""Training steps of a copy; fewer if the task has fewer."""

NAME = re.compile(r"plasticity-test-after-\d+-member-\d+\.json")
"""The file of a result, in the run's folder."""

FIELDS = {"member": int, "after": int, "sentence": str}
"""The fields of a result that the report page reads, with their types."""


def find_run(address: str, seed: int | None = None, strength: float | None = None) -> tuple[str, str, Run]:
    """Find a run by its folder, or by a unique prefix of it: the folder of all runs, the run's name, and the run.

    The prefix need only be unique among the runs with this seed and strength, if they are given.

    Raises:
        ValueError: if it is not one run of the laboratory.
    """
    root, _, start = address.rstrip("/").rpartition("/")
    root = root or ("/" if address.startswith("/") else ".")
    configs = configurations(root)
    names = [start] if start in configs else [name for name in configs if start and name.startswith(start)]
    if len(names) > 1:
        asked = {"seeds": seed, "strengths": strength}
        names = [n for n in names if all(value in (None, *configs[n].get(key, ())) for key, value in asked.items())]
    if len(names) != 1:
        shown = [f"{name} (seed {', '.join(map(str, configs[name].get('seeds', '?')))})" for name in names[:5]]
        raise ValueError(
            f"expected the folder of one run (or a unique prefix of its name) at {address}, got "
            f"{', '.join(shown) or 'none'}{', ...' if len(names) > 5 else ''}: `supple report` lists the folders; "
            "--seed and --strength choose among several"
        )
    run = Run.of_config(configs[names[0]])
    if run is None:
        raise ValueError(
            f"expected a run of `supple run` or `supple sweep`, got {names[0]}, which is from `supple rl` or another "
            "version: for an agent, call supple.plasticity_test as in docs/frameworks.md, Stable-Baselines3"
        )
    return root, names[0], run


def member_of(run: Run, seed: int | None = None, strength: float | None = None) -> int:
    """The index of the run's first network with this seed and this strength; either may be left out.

    Raises:
        ValueError: if there is none.
    """
    members = list(zip(run.seeds, run.strengths, strict=True))
    for index, (own_seed, own_strength) in enumerate(members):
        if seed in (None, own_seed) and strength in (None, own_strength):
            return index
    asked = [f"{name} {value}" for name, value in (("seed", seed), ("strength", strength)) if value is not None]
    known = ", ".join(f"seed {own_seed} with strength {own_strength:g}" for own_seed, own_strength in members)
    raise ValueError(f"expected a network with {' and '.join(asked)} in the run, got {known}: choose one of them")


class Member(NamedTuple):
    """One network of a run as an ordinary module, with its optimizer and method."""

    network: nn.Module
    optimizer: NetworkOptimizer
    method: Mitigator
    """Attached to the optimizer."""


def load_member(trainer: Trainer, state: dict[str, Any], index: int) -> Member:
    """A member at the beginning of the next task, from a checkpoint's state.

    Args:
        trainer: as it was built; afterwards it has this state.
        state: from :meth:`Trainer.state_dict` of the same run.
        index: of the member.
    """
    run = trainer.run
    network = trainer.population.member(index)  # initial weights: a method may keep facts about them
    method = methods.find(run.method).on(network, run.strengths[index], **json.loads(run.options))
    kind = trainer.learner.optimizer
    optimizer = NetworkOptimizer(network.parameters(), kind, run.step_size)
    trainer.load_state_dict(state)
    network.load_state_dict(trainer.population.member(index).state_dict())
    mine = method.state_dict()
    method.observe()  # the state may hold activations of the last step
    method.load_state_dict(
        {
            name: {key: _of_member(tensor, mine.get(name, {}).get(key), index) for key, tensor in entries.items()}
            for name, entries in state["mitigator"].items()
        }
    )
    if not kind.restarts:
        for name, parameter in network.named_parameters():
            for key, moment in optimizer.state[parameter].items():
                moment.copy_(_of_member(state["moments"][name][key], moment, index))
    if method.scheduled and state.get("has_stepped", False):  # the learner acts for the last step before the next one
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        method.after_step(optimizer)
        network.zero_grad()
    if method.acts_at_task_start:
        method.start_task()
    return Member(network, optimizer, method.attach(optimizer))


def _of_member(tensor: Tensor, mine: Tensor | None, index: int) -> Tensor:
    """A member's part of a population's tensor, in the shape of a single network's tensor ``mine``."""
    if mine is None or tensor.shape == mine.shape:  # the same for all members
        return tensor
    # The states of the members' random generators are stacked also for a network alone.
    return tensor[index] if tensor.ndim > mine.ndim else tensor[index : index + 1]


class Tested(NamedTuple):
    """A result, and what was tested."""

    result: PlasticityTest
    facts: dict[str, Any]
    """The member, its seed and strength, the number of finished tasks, and hardware and versions."""


def run_test(
    run: Run,
    root: str,
    *,
    member: int = 0,
    after: int | None = None,
    steps: int | None = None,
    repeats: int = 5,
    progress: bool = True,
) -> Tested:
    """Test one network of a run on the task that comes next, with its own optimizer, method and batches.

    Args:
        run: the run.
        root: the folder of all runs.
        member: the network's index in the run.
        after: the number of finished tasks, for which a checkpoint was kept; the last checkpoint when left out.
        steps: training steps of a copy; 500, or the task's if it has fewer, when left out.
        repeats: as :func:`supple.plasticity_test` takes them.
        progress: whether to show it on stderr.

    Raises:
        ValueError: if there is no such checkpoint, no further task, or the network has diverged.
    """
    checkpoint = run.folder(root).checkpoint_after(after)
    task = checkpoint.finished
    # Methods warn before they change a trained network much; this one was trained with its method.
    with warnings.catch_warnings(), run.naming_own_parts():
        warnings.simplefilter("ignore", RewriteWarning)
        trainer = Trainer(run, compiled=False)
        if task >= trainer.shift.tasks(trainer.data):
            raise ValueError(
                f"expected a task after task {task}, got none in the data of {run.problem}: test an earlier checkpoint "
                "with --after, if the run was trained with --keep-checkpoints"
            )
        network, optimizer, _ = load_member(trainer, checkpoint.state, member)
        if not all(parameter.isfinite().all() for parameter in network.parameters()):
            raise ValueError(
                f"expected finite weights, got a network (seed {run.seeds[member]}) that has diverged after {task} "
                "tasks: test an earlier checkpoint with --after, or another seed"
            )
        batches, read_batch = trainer.batches_of(member, task)

        def loss(network: nn.Module, batch: Tensor) -> Tensor:
            inputs, labels = read_batch(batch)
            return cross_entropy(trainer.outputs(network, inputs), labels)

        with matmul_precision(run.matmul_precision), flushed_denormals():  # as in training
            result = plasticity_test(
                network,
                loss,
                batches,
                optimizer=optimizer,
                fresh=trainer.make_network,
                steps=min(STEPS, len(batches)) if steps is None else steps,
                repeats=repeats,
                progress=progress,
            )
    facts = {"member": member, "seed": run.seeds[member], "strength": run.strengths[member], "after": task}
    return Tested(result, facts | hardware_and_versions(**trainer.facts))


def save_result(tested: Tested, folder: str) -> list[str]:
    """Write a result and its chart into a run's folder; return the paths."""
    content = tested.result.to_dict()
    del content["curves"]
    content["steps"] = tested.result.curves[AS_IT_IS].shape[1]
    content["results"] = {name: values.tolist() for name, values in tested.result.results.items()}
    name = f"plasticity-test-after-{tested.facts['after']}-member-{tested.facts['member']}"
    files, path = files_at(folder)
    charts = save(tested.result.chart(), folder, name)
    write(files, f"{path}/{name}.json", json.dumps(tested.facts | content, indent=2).encode())
    return [f"{folder}/{name}.json", *charts]


def saved_results(root: str, runs: Iterable[str]) -> list[dict[str, Any]]:
    """The results in these runs' folders, each with its ``run`` and its ``file``.

    A result that can't be read is left out, with a warning.
    """
    files, folder = files_at(root)
    results = []
    for run in runs:
        for path in sorted(files.ls(f"{folder}/{run}", detail=False)):
            file = path.rpartition("/")[2]
            if not NAME.fullmatch(file):
                continue
            try:
                result = json.loads(read(files, path))
                if wrong := [name for name, kind in FIELDS.items() if type(result[name]) is not kind]:
                    raise ValueError(f"expected {wrong[0]} as {FIELDS[wrong[0]].__name__}")
                results.append(result | {"run": run, "file": file})
            except DAMAGED as error:
                warnings.warn(f"{path} is left out: {first_line(error)}", stacklevel=2)
    return results
