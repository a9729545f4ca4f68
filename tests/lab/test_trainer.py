"""The loop against the one that anybody would write: an ordinary network, torch's optimizer, the method attached."""

import json
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal
from torch import nn
from torch.nn.functional import cross_entropy

from supple import HareAndTortoise, NetworkReset, Population, ReDo, SpectralRegularizer, WeightClipping
from supple.lab import datasets, measure
from supple.lab import trainer as trainer_module
from supple.lab.datasets import DATASETS, Dataset, Examples
from supple.lab.measure import is_right
from supple.lab.models import MODELS, mlp
from supple.lab.operations import equally_long
from supple.lab.run import Run
from supple.lab.shifts import SHIFTS, batch_order
from supple.lab.trainer import Trainer, train
from supple.lab.trimmed import TrimmedConv2d
from supple.runs.folder import RunFolder
from supple.runs.store import SCHEMA, load
from supple.runs.streams import Stream, generator
from supple.training.methods import METHODS, Method
from supple.training.precision import flushed_denormals
from support.waits import Waits

METRICS = ("train_accuracy", "train_loss", "online_accuracy", "spectral_norm", "weight_norm", "diverged")
HELD_OUT = ("validation_accuracy", "test_accuracy")
PATHS = ("one by one", "vectorized")
MORE_METHODS = {
    "spectral-but-one": Method(
        title="",
        summary="a parameter left out",
        mitigator=partial(SpectralRegularizer, roles={"1.weight": None}),
        strength=0.3,
    ),
    # Those of the table act too seldom, or on weights too large, to be seen within two dozen steps.
    # These are due in the last step of a task too.
    "early-tortoise": Method(title="", summary="", mitigator=HareAndTortoise, options={"every": 4}, strength=1.0),
    "early-reset": Method(title="", summary="", mitigator=NetworkReset, options={"every": 12}, strength=1.0),
    "early-redo": Method(title="", summary="", mitigator=ReDo, options={"every": 6}, strength=0.5),
    "tight-clipping": Method(title="", summary="", mitigator=WeightClipping, strength=2.0),
}


def examples(count, shape, classes, seed):
    """As many of each class as of the others, to one."""
    random = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, *shape), generator=random, dtype=torch.uint8)
    return Examples(images, torch.arange(count)[torch.randperm(count, generator=random)] % classes)


def tiny_images():
    return Dataset(examples(50, (1, 4, 4), 3, 8), None, examples(20, (1, 4, 4), 3, 9), 3, (0.0,), (1.0,))


def colour_images():
    parts = (examples(count, (3, 4, 2), 12, count) for count in (96, 40, 1050))  # the last do not fit into one chunk
    return Dataset(*parts, 12, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))


def unequal_images():
    images = examples(60, (1, 4, 4), 4, 3).images
    return Dataset(Examples(images, torch.arange(60) % 10 % 4), None, None, 4, (0.0,), (1.0,))


def sorted_images():
    """As many of each class, until some are left out."""
    images = examples(60, (1, 4, 4), 4, 3).images
    return Dataset(Examples(images, torch.arange(60) // 15), None, None, 4, (0.0,), (1.0,))


class WithUnused(nn.Sequential):
    """A network with a layer that its forward pass does not use."""

    def __init__(self, data, **options):
        super().__init__(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, data.classes))
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        for layer in list(self)[:4]:
            x = layer(x)
        return x


def with_batch_norm(data, **options):
    # Without the bias, whose gradient is nothing but rounding, which Adam would blow up to whole steps.
    return nn.Sequential(
        nn.Flatten(), nn.Linear(16, 12, bias=False), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, data.classes)
    )


def conv_net(data, **options):
    channels = data.train.images.shape[1]
    return nn.Sequential(TrimmedConv2d(channels, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, data.classes))


def with_dropout(data, **options):
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Dropout(0.3), nn.Linear(12, data.classes))


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    monkeypatch.setitem(DATASETS, "tiny", tiny_images)
    monkeypatch.setitem(DATASETS, "colour", colour_images)
    monkeypatch.setitem(DATASETS, "unequal", unequal_images)
    monkeypatch.setitem(DATASETS, "sorted", sorted_images)
    monkeypatch.setitem(MODELS, "tiny", partial(mlp, width=12, depth=2))
    monkeypatch.setitem(MODELS, "batch-norm", with_batch_norm)
    monkeypatch.setitem(MODELS, "unused", WithUnused)
    monkeypatch.setitem(MODELS, "dropout", with_dropout)
    for name, method in MORE_METHODS.items():
        monkeypatch.setitem(METHODS, name, method)


def run_of(method, seeds=(4,), **changes):
    """Two tasks of 12 steps; 2 of the 50 images are left over in each epoch."""
    defaults = {"dataset": "tiny", "model": "tiny", "tasks": 2, "epochs": 4, "batch_size": 16, "step_size": 0.01}
    defaults["diagnostics"] = ("spectral_norm", "weight_norm")
    return Run.of("random-label-digits", method, seeds, **(defaults | changes))


def trainer_of(run, path, monkeypatch, device="cpu"):
    with monkeypatch.context() as patch:
        patch.setattr(torch, "compile", lambda step: step)
        return Trainer(run, compiled=path == "vectorized", device=device)


def learned(trainer):
    """All that was measured, ``(member, task, metric)`` to value."""
    frame = pl.concat([trainer.learn(task) for task in range(trainer.run.tasks)])
    assert dict(frame.schema) == SCHEMA
    found = {tuple(key): value for *key, value in frame.rows()}
    assert len(found) == frame.height
    return found


def of_member(rows, member):
    """As if it were the only one."""
    return {(0, task, metric): value for (index, task, metric), value in rows.items() if index == member}


@cache
def by_hand(run, member=0):
    """The same for one network, one step after the other; once for both paths."""
    seed, strength = run.seeds[member], run.strengths[member]
    data, shift, method = DATASETS[run.dataset](), SHIFTS[run.shift], METHODS[run.method]
    torch.manual_seed(seed)
    network = MODELS[run.model](replace(data, classes=shift.outputs(data)), **method.network)
    optimizers = optimizers_by_hand(run, network)
    mitigator = method.on(network, strength, **json.loads(run.options))
    if any("random" in entry for entry in mitigator.state_dict().values()):
        mitigator = method.on(network, strength, seed=seed)  # each member draws from its own seed
    for optimizer in () if mitigator.scheduled else optimizers:
        mitigator.attach(optimizer)
    mitigator.observe()
    found, steps = {}, 0
    for number in range(run.tasks):
        task = shift.task(data, seed, number)
        parts = {"train": shown(data, task, data.train)}
        if task.labels is None:
            held_out = {"validation": data.validation, "test": data.test}
            parts |= {name: shown(data, task, part) for name, part in held_out.items() if part}
        inputs, labels = parts["train"]
        if run.optimizer == "adam-restarted":
            optimizers[0].state.clear()
        if number and mitigator.acts_at_task_start:
            mitigator.start_task()
        correct = []
        for batch in batch_order(len(inputs), run.batch_size, run.epochs, seed, number):
            if mitigator.scheduled and steps:
                mitigator.after_step(optimizers[0])  # so that no measurement sees what was just reset
            network.zero_grad()
            outputs = network(inputs[batch])
            correct += (outputs.argmax(1) == labels[batch]).tolist()
            cross_entropy(outputs, labels[batch]).backward()
            for optimizer in optimizers:
                optimizer.step()
            steps += 1
        found |= {(0, number, metric): value for metric, value in measured_by_hand(network, parts).items()}
        found[0, number, "online_accuracy"] = sum(correct) / len(correct)
    return network, found


def optimizers_by_hand(run, network):
    parameters, step_size = list(network.parameters()), run.step_size
    if run.optimizer == "sgd":
        return [torch.optim.SGD(parameters, step_size)]
    hidden = [parameter for parameter in parameters if parameter.ndim == 2][:-1] if run.optimizer == "muon" else []
    others = [parameter for parameter in parameters if not any(parameter is each for each in hidden)]
    adam = [torch.optim.Adam(others, step_size, (0.9, 0.9 if run.optimizer == "adam-equal-betas" else 0.999))]
    muon = torch.optim.Muon(hidden, step_size, weight_decay=0.0, adjust_lr_fn="match_rms_adamw") if hidden else None
    return [muon, *adam] if muon else adam


def shown(data, task, part):
    """Inputs and labels of the task's images, in their order."""
    images, labels = [], []
    for index, (image, label) in enumerate(zip(part.images, part.labels, strict=True)):
        label = task.classes[label] if task.labels is None else task.labels[index]
        if label < 0:
            continue
        seen = image if task.pixels is None else image.flatten(1)[:, task.pixels].view(image.shape)
        images.append((seen / 255 - torch.tensor(data.mean)[:, None, None]) / torch.tensor(data.std)[:, None, None])
        labels.append(label)
    return torch.stack(images), torch.stack(labels)


@torch.no_grad()
def measured_by_hand(network, parts):
    network.eval()
    outputs = {name: (network(inputs), labels) for name, (inputs, labels) in parts.items()}
    network.train()
    accuracies = {
        f"{name}_accuracy": (found.argmax(1) == labels).float().mean().item()
        for name, (found, labels) in outputs.items()
    }
    parameters = list(network.parameters())
    network.eval()
    weights = [getattr(layer, "weight", None) for layer in network.modules()]  # parametrized ones are computed
    network.train()
    matrices = [weight for weight in weights if isinstance(weight, torch.Tensor) and weight.ndim == 2]
    stretches = [torch.linalg.svdvals(weight)[0] for weight in matrices]
    return accuracies | {
        "train_loss": cross_entropy(*outputs["train"]).item(),
        "spectral_norm": (sum(stretches) / len(stretches)).item(),
        "weight_norm": torch.cat([parameter.flatten() for parameter in parameters]).norm().item(),
        "diverged": 0.0,
    }


def tensors(network):
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def assert_same(found, expected, tolerance=1e-5):
    """Two dictionaries of tensors or numbers are the same to the rounding of two dozen steps."""
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(
            found[key],
            value,
            rtol=tolerance,
            atol=tolerance,
            check_device=False,
            msg=lambda text, key=key: f"{key}: {text}",
        )


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", [*METHODS, *MORE_METHODS])
def test_every_method_trains_as_by_hand(method, path, monkeypatch, device):
    run = run_of(method)
    expected, rows = by_hand(run)
    trainer = trainer_of(run, path, monkeypatch, device)
    assert_same(learned(trainer), rows)
    assert_same(tensors(trainer.population.member(0)), tensors(expected))


@pytest.mark.parametrize("path", PATHS)
def test_a_reset_at_a_tasks_end_comes_after_the_measurement(path, monkeypatch):
    reset, none = (learned(trainer_of(run_of(name), path, monkeypatch)) for name in ("early-reset", "none"))
    assert [(key, reset[key]) for key in reset if key[1] == 0] == [(key, none[key]) for key in none if key[1] == 0]


SETTINGS = {
    "pixels": {"shift": "pixel-permutation"},
    "colour pixels": {"shift": "compounding-pixel-permutation", "dataset": "colour"},
    "label flip": {"shift": "label-flip", "dataset": "colour"},
    "classes": {"shift": "class-incremental", "dataset": "colour"},
    "pairs": {"shift": "class-pairs", "dataset": "colour", "tasks": 7, "batch_size": 5},
    "drift": {"shift": "drifting-labels", "tasks": 12, "epochs": 1},
    "sgd": {"optimizer": "sgd", "step_size": 0.1},
    "equal betas": {"optimizer": "adam-equal-betas"},
    "restarts": {"optimizer": "adam-restarted"},
    "options": {"options": {"exponent": 4}},
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_every_setting_trains_as_by_hand(setting, path, monkeypatch, device):
    run = run_of("spectral", (4, 7), strength=0.03, **SETTINGS[setting])
    trainer = trainer_of(run, path, monkeypatch, device)
    rows = learned(trainer)
    for member in range(2):
        expected, found = by_hand(run, member)
        assert_same(of_member(rows, member), found)
        assert_same(tensors(trainer.population.member(member)), tensors(expected))
    tested = run.shift not in ("random-labels", "drifting-labels")
    assert ((0, 0, "test_accuracy") in rows, (0, 0, "validation_accuracy") in rows) == (tested, run.dataset == "colour")


@pytest.mark.parametrize(("method", "epochs"), [("none", 12), ("spectral", 2)])
def test_muon_trains_as_by_hand(method, epochs, monkeypatch):
    # It rounds to bfloat16, now and then to another side where a gradient differs in its last bit, and its next steps
    # make much of that: few of them where a method has a hand in the gradients.
    run = run_of(method, (4, 7), optimizer="muon", tasks=1, batch_size=50, epochs=epochs)
    trainer = trainer_of(run, "one by one", monkeypatch)
    rows = learned(trainer)
    for member in range(2):
        expected, found = by_hand(run, member)
        assert_same(tensors(trainer.population.member(member)), tensors(expected))
        assert_same(of_member(rows, member), found)


@pytest.mark.parametrize(  # methods with a strength: in the next test
    ("method", "path"),
    [("none", "one by one"), *((name, "vectorized") for name in METHODS if not METHODS[name].strength)],
)
def test_a_population_is_its_members_trained_alone(method, path, monkeypatch):
    together = trainer_of(run_of(method, seeds=(4, 0)), path, monkeypatch)
    rows = learned(together)
    for index, seed in enumerate((4, 0)):
        alone = trainer_of(run_of(method, seeds=(seed,)), path, monkeypatch)
        assert_same(of_member(rows, index), learned(alone))
        assert_same(tensors(together.population.member(index)), tensors(alone.population.member(0)))


@pytest.mark.parametrize(
    ("method", "path"),
    [("spectral", "one by one"), *((name, "vectorized") for name in METHODS if METHODS[name].strength)],
)
def test_members_may_have_strengths_of_their_own(method, path, monkeypatch):
    strongest = METHODS[method].strength
    strengths = (strongest, 0.0, strongest / 7)
    together = trainer_of(replace(run_of(method, seeds=(4, 4, 9)), strengths=strengths), path, monkeypatch)
    rows = learned(together)
    for index, (seed, strength) in enumerate(zip((4, 4, 9), strengths, strict=True)):
        alone = trainer_of(run_of(method, seeds=(seed,), strength=strength), path, monkeypatch)
        assert_same(of_member(rows, index), learned(alone))
        assert_same(tensors(together.population.member(index)), tensors(alone.population.member(0)))


@pytest.mark.parametrize("path", PATHS)
def test_batch_norm_keeps_the_statistics_of_each_member(path, monkeypatch):
    run = run_of("spectral", seeds=(4, 7), model="batch-norm")
    trainer = trainer_of(run, path, monkeypatch)
    rows = learned(trainer)
    for index in range(2):
        network, expected = by_hand(run, index)
        assert network[2].num_batches_tracked == 24
        assert_same(of_member(rows, index), expected)
        assert_same(tensors(trainer.population.member(index)), tensors(network))


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # what torch itself imports to compile
@pytest.mark.parametrize(
    ("method", "model", "backend"),
    [("spectral", "batch-norm", "inductor"), ("decoupled-spectral", "tiny", "aot_eager")],
)
def test_compiled_steps_are_the_same(method, model, backend, monkeypatch):
    # The second is traced as the first is, and spared the making of machine code.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    run = run_of(method, seeds=(4, 7), model=model)
    eager, compiled = (Trainer(run, compiled=choice) for choice in (False, True))
    assert_same(learned(compiled), learned(eager))
    assert_same(tensors(compiled.population), tensors(eager.population))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_no_step_waits_for_the_device(optimizer, path, monkeypatch):
    trainer = trainer_of(run_of("spectral", (4, 7), optimizer=optimizer, model="batch-norm"), path, monkeypatch)
    tasks = [trainer.shift.task(trainer.data, seed, 0) for seed in trainer.run.seeds]
    labels, batches = trainer._batches(tasks, 0)
    pixels = torch.stack([torch.arange(16)] * 2)
    network = [*trainer.learner.parameters.values(), *trainer.learner.buffers.values()]
    remembered = [tensor for entry in trainer.learner.moments.values() for tensor in entry.values()]
    with Waits([*network, *remembered, trainer.data.train.images, labels, batches, pixels]) as waits:
        for batch in batches[:3]:
            trainer._step(trainer._inputs(batch, pixels), labels.gather(1, batch))
    assert waits.found == []


@pytest.mark.parametrize(
    ("method", "path"), [("spectral", "one by one"), *((method, "vectorized") for method in METHODS)]
)
def test_a_diverged_member_is_measured_and_does_not_touch_the_others(method, path, monkeypatch):
    run = run_of(method, seeds=(1, 2, 3), diagnostics=None if method in ALL_LOOKED_AT else METRICS[3:5])
    sound, sick = (trainer_of(run, path, monkeypatch) for _ in range(2))
    next(iter(sick.learner.parameters.values()))[1] = float("nan")
    expected, found = learned(sound), learned(sick)
    others = [key for key in expected if key[0] != 1]
    assert {key: found[key] for key in others} == {key: expected[key] for key in others}
    assert all(torch.equal(a[[0, 2]], b[[0, 2]]) for a, b in zip(*map(parameters, (sound, sick)), strict=True))
    assert all(found[1, 1, metric] != found[1, 1, metric] for metric in ("train_loss", *METRICS[3:5]))
    assert [found[member, task, "diverged"] for task in (0, 1) for member in (0, 1, 2)] == [0, 1, 0] * 2


ALL_LOOKED_AT = ("none", "spectral", "spectral-normalization")
"""Methods under which every usual diagnostic is taken of networks that are not finite."""


def parameters(trainer):
    return list(trainer.population.parameters())


def test_members_without_a_batch_in_common(monkeypatch):
    monkeypatch.setitem(SHIFTS, "pairs", SHIFTS["class-pairs"])
    run = run_of("none", (0, 1, 2), dataset="unequal", shift="class-pairs", batch_size=10)
    with pytest.raises(ValueError, match=r"expected tasks with equally many batches of 10 for every seed, got \["):
        Trainer(run).learn(0)
    with pytest.raises(ValueError, match=r"expected a batch of at most 50 images, which are all that a task has"):
        Trainer(run_of("none", batch_size=51)).learn(0)


def test_seeds_are_stacked_only_if_their_tasks_are_equally_long():
    """Leaving out examples makes classes unequal."""
    settings = {"dataset": "sorted", "shift": "class-pairs", "batch_size": 10}
    assert equally_long(run_of("none", (0, 1), **settings))
    assert not equally_long(run_of("none", (0, 1), examples=50, **settings))


def test_no_number_is_not_right():
    """The largest of several NaN is the first: without a check it would be the class 0."""
    nan = float("nan")
    outputs = torch.tensor([[nan] * 3, [3.0, 1.0, 2.0], [1.0, nan, 0.0], [0.0, 0.0, 5.0]])
    assert is_right(outputs, torch.tensor([0, 0, 1, 2])).tolist() == [False, True, False, True]


@pytest.mark.parametrize("method", ["none", "redo"])
def test_a_layer_that_is_not_used_stays(method):
    """Whether members take a step together or, as with ReDo, one after the other."""
    trainer = Trainer(run_of(method, model="unused"))
    before = trainer.learner.parameters["unused.weight"].clone()
    trainer.learn(0)
    assert torch.equal(trainer.learner.parameters["unused.weight"], before)


def test_a_run_leaves_subnormal_numbers_as_they_were(tmp_path):
    train(run_of("none"), root=str(tmp_path))
    assert torch.tensor([1e-40]) * 1 > 0


def test_more_tasks_than_the_data_have():
    run = run_of("none", dataset="colour", shift="class-incremental", tasks=3)
    with pytest.raises(ValueError, match="expected at most 2 tasks of class-incremental on colour, got 3"):
        Trainer(run)


def test_a_run_may_take_fewer_examples():
    trainer = Trainer(run_of("none", examples=20))
    assert torch.equal(trainer.data.train.images, tiny_images().train.images[torch.arange(20) * 50 // 20])


def test_steps_have_their_precision_and_measurements_the_usual(monkeypatch):
    seen = {"step": set(), "evaluate": set()}

    def noting(what, function):
        def noted(*inputs):
            seen[what].add(torch.get_float32_matmul_precision())
            return function(*inputs)

        return noted

    trainer = Trainer(run_of("none", tasks=1, matmul_precision="medium"))
    trainer._step = noting("step", trainer._step)
    monkeypatch.setattr(trainer_module, "evaluate", noting("evaluate", trainer_module.evaluate))
    trainer.learn(0)
    assert seen == {"step": {"medium"}, "evaluate": {"highest"}}
    trainer._step = lambda *inputs: 1 / 0
    with pytest.raises(ZeroDivisionError):
        trainer.learn(0)
    assert torch.get_float32_matmul_precision() == "highest"


def test_steps_under_autocast_stay_close_to_float32(monkeypatch):
    seen = []

    def model(data):
        network = conv_net(data)
        network.register_forward_hook(lambda network, inputs, output: seen.append((network.training, output.dtype)))
        return network

    monkeypatch.setitem(MODELS, "conv", model)
    plain = run_of(
        "spectral", strength=0.1, dataset="colour", model="conv", shift="label-flip", tasks=1, step_size=1e-3
    )
    trainers = [Trainer(run) for run in (plain, replace(plain, autocast="bfloat16"))]
    exact, rounded = map(learned, trainers)
    assert rounded != exact
    for key in ((0, 0, "train_loss"), (0, 0, "spectral_norm"), (0, 0, "weight_norm")):
        assert rounded[key] == pytest.approx(exact[key], rel=0.01)
    learner = trainers[1].learner
    moments = [tensor for moments in learner.moments.values() for tensor in moments.values()]
    assert {tensor.dtype for tensor in (*learner.parameters.values(), *moments)} == {torch.float32}
    assert set(seen) == {(True, torch.float32), (True, torch.bfloat16), (False, torch.float32)}
    with pytest.raises(ValueError, match="expected steps that are not compiled with autocast, got compiled=True"):
        Trainer(trainers[1].run, compiled=True)


def test_convolutions_get_channels_last_images_on_a_cpu_and_are_not_compiled(monkeypatch):
    seen = []

    def model(data):
        network = conv_net(data)
        network[0].register_forward_pre_hook(lambda layer, inputs: seen.extend(inputs) if layer.training else None)
        return network

    monkeypatch.setitem(MODELS, "conv", model)
    monkeypatch.setattr(trainer_module, "COMPILE_FROM", 1)
    monkeypatch.setattr(torch, "compile", lambda step: pytest.fail("compiled"))
    run = run_of("spectral", seeds=(4, 7), dataset="colour", model="conv", tasks=1)
    fast, plain = Trainer(run, device="cpu"), Trainer(run, device="cpu")
    plain._channels_last = False
    assert_same(learned(fast), learned(plain))
    assert_same(tensors(fast.population), tensors(plain.population))
    last = [images.is_contiguous(memory_format=torch.channels_last) for images in seen]
    assert last == [True] * (len(seen) // 2) + [False] * (len(seen) // 2)
    assert seen


def test_long_runs_are_compiled_and_short_ones_are_not(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda step: compiled.append(step) or step)
    for steps, possible in ((29_990, True), (30_000, True), (30_000, False)):  # 10 a task
        monkeypatch.setattr(trainer_module, "can_compile", lambda device, possible=possible: possible)
        Trainer(run_of("none", tasks=steps // 10, epochs=10, batch_size=50))
    assert len(compiled) == 1


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # what torch itself imports to compile
def test_every_run_of_a_process_is_compiled(monkeypatch):
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=keep))
    with torch._dynamo.config.patch(recompile_limit=1):  # 8 otherwise: then torch goes on without compiling
        for count in (1, 2):
            learned(Trainer(run_of("none", tasks=1, epochs=1), compiled=True))
            assert len(graphs) == count


def test_large_steps_are_not_compiled_on_a_cpu(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda step: pytest.fail("compiled"))
    monkeypatch.setattr(trainer_module, "COMPILE_TO", 2 * 3 * 50 * (16 * 12 + 12 * 12 + 12 * 3) - 1)
    Trainer(run_of("none", tasks=3000, epochs=10, batch_size=50), device="cpu")


# Stopping and starting again: tasks of 60 steps, so that there is a report in the middle of each, after 50.


class StoppedError(Exception):
    pass


def long_run(method, model="tiny"):
    # Of which one looks at what was there before training, and one at what was there a task ago.
    looks = ("distance_from_initialization", "representation_change")
    return run_of(method, model=model, tasks=3, epochs=10, batch_size=8, diagnostics=looks)


def stop_at(moment):
    def report(tasks):
        if tasks >= moment:
            raise StoppedError

    return report


def results(run, root):
    folder = Path(run.folder(root).path)
    return pl.read_parquet(folder / "metrics.parquet"), torch.load(folder / "checkpoint.pt", weights_only=True)


def assert_equal_runs(run, root, other):
    (rows, checkpoint), (other_rows, other_checkpoint) = (results(run, place) for place in (root, other))
    assert_frame_equal(rows, other_rows, check_exact=True)
    assert checkpoint.pop("seconds") > 0
    assert other_checkpoint.pop("seconds") > 0
    torch.testing.assert_close(checkpoint, other_checkpoint, rtol=0, atol=0)


@pytest.fixture
def whole(tmp_path):
    return str(tmp_path / "whole")


@pytest.fixture
def broken(tmp_path):
    return str(tmp_path / "broken")


@pytest.mark.parametrize(
    ("method", "model", "moment"),
    [
        *((name, "tiny", 1.5) for name in METHODS),
        *(("shrink-and-perturb", "tiny", moment) for moment in (0.5, 1, 3)),
        *((f"early-{name}", "tiny", 1) for name in ("tortoise", "reset", "redo")),
        ("l2", "dropout", 1),
        ("spectral", "batch-norm", 1.5),
    ],
)
def test_a_stopped_run_goes_on_to_the_same_bits(method, model, moment, whole, broken):
    run, reports = long_run(method, model), []
    train(run, root=whole)
    with pytest.raises(StoppedError):
        train(run, stop_at(moment), root=broken)
    train(run, reports.append, root=broken)
    assert_equal_runs(run, broken, whole)
    done = int(moment)  # and no finished task again
    expected = [done, *(task + part for task in range(done, 3) for part in (50 / 60, 1))]  # first, what was there
    assert reports == expected


def test_the_generator_of_a_gpu_goes_on_where_it_was(monkeypatch):
    """Pretended; on a machine with a GPU the run with dropout above shows it."""
    there = {"cuda": torch.ByteTensor([1, 2, 3])}
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: there[device])
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: there.update({device: state}))
    trainer = Trainer(run_of("none"), device="cpu")
    without = trainer.state_dict()
    trainer.device = "cuda"
    state = trainer.state_dict()
    for given, expected in ((state, [1, 2, 3]), (without, [0]), ({**without, "random_cuda": None}, [0])):
        there["cuda"] = torch.ByteTensor([0])
        trainer.load_state_dict(given)
        assert there["cuda"].tolist() == expected


@pytest.mark.parametrize("part", ["images", "labels"])
def test_a_run_that_is_resumed_with_other_data_starts_again(part, whole, broken, monkeypatch):
    run, load = long_run("l2"), datasets.load
    with pytest.raises(StoppedError):
        train(run, stop_at(1.5), root=broken)

    def changed(name):
        train = load(name).train
        other = {"images": train.images // 2, "labels": train.labels.flip(0)}[part]
        return replace(load(name), train=replace(train, **{part: other}))

    monkeypatch.setattr(datasets, "load", changed)
    with pytest.warns(
        UserWarning, match="expected the images .* of the checkpoint, got others, in .*: the run restarts"
    ):
        train(run, root=broken)
    train(run, root=whole)
    assert_equal_runs(run, broken, whole)


def test_a_run_that_is_resumed_with_another_network_starts_again(broken, monkeypatch):
    run = long_run("l2")
    with pytest.raises(StoppedError):
        train(run, stop_at(1.5), root=broken)
    monkeypatch.setitem(MODELS, "tiny", partial(mlp, width=13, depth=2))
    with pytest.warns(UserWarning, match=r"expected the network .* of other shapes, in .*: the run restarts"):
        train(run, root=broken)


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
@pytest.mark.parametrize("shift", ["class-pairs", "pixel-permutation"])
def test_a_stopped_population_goes_on_to_the_same_bits(optimizer, shift, whole, broken):
    run = run_of("redo", (2, 3), optimizer=optimizer, shift=shift, dataset="colour", epochs=4, batch_size=3, tasks=3)
    run = replace(run, strengths=(0.1, 0.2))
    train(run, root=whole)
    with pytest.raises(StoppedError):
        train(run, stop_at(1.2), root=broken)
    train(run, root=broken)
    assert_equal_runs(run, broken, whole)


@pytest.mark.parametrize("pieces", [1, 2, 3, 7])
def test_a_run_in_pieces_ends_with_the_same_bits(pieces, whole, broken):
    run = long_run("shrink-and-perturb")
    assert train(run, root=whole) is False
    left = [train(run, root=broken, pieces=pieces) for _ in range(min(pieces, 3))]
    assert left == [True] * (len(left) - 1) + [False]
    assert_equal_runs(run, broken, whole)


@pytest.mark.parametrize("name", ["environment.json", "metrics.parquet", "checkpoint.pt"])
@pytest.mark.parametrize("task", [0, 2], ids=["first", "last"])
def test_a_run_that_dies_while_it_saves_goes_on(name, task, whole, broken, monkeypatch):
    run = long_run("spectral")
    train(run, root=whole)
    write, calls = RunFolder._write, []

    def dying(folder, written, content):
        calls.extend([written] if written == name else [])
        if len(calls) > task + (name == "environment.json"):  # which is also written at the start
            raise StoppedError
        write(folder, written, content)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "_write", dying)
        with pytest.raises(StoppedError):
            train(run, root=broken)
    train(run, root=broken)
    assert run.folder(broken).finished(run.tasks)
    if (name, task) != ("checkpoint.pt", 2):  # all was measured when it died: a finished run needs none
        assert_equal_runs(run, broken, whole)
    assert_frame_equal(load(broken), load(whole), check_exact=True)


@pytest.mark.parametrize("name", ["run.json", "environment.json", "metrics.parquet", "checkpoint.pt"])
@pytest.mark.parametrize("tasks", [1, 3], ids=["within", "at the end"])
def test_a_run_with_a_damaged_file_ends_with_the_same_bits(name, tasks, whole, broken):
    run = long_run("spectral")
    train(run, root=whole)
    with pytest.raises(StoppedError):
        train(run, stop_at(tasks), root=broken)
    path = Path(run.folder(broken).path, name)
    path.write_bytes(path.read_bytes()[:-20])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if name == "checkpoint.pt" else "error")
        train(run, root=broken)
    if (name, tasks) != ("checkpoint.pt", 3):  # which a finished run does not need
        assert_equal_runs(run, broken, whole)
    assert_frame_equal(load(broken), load(whole), check_exact=True)


def test_a_finished_run_is_not_trained_again(whole, monkeypatch):
    run, reports = long_run("none"), []
    train(run, root=whole)
    before = {path.name: path.read_bytes() for path in Path(run.folder(whole).path).iterdir()}
    monkeypatch.setattr(Trainer, "__init__", lambda *args: pytest.fail("begun again"))
    assert train(run, reports.append, root=whole) is False
    assert {path.name: path.read_bytes() for path in Path(run.folder(whole).path).iterdir()} == before
    assert reports == [3]


def test_two_who_train_the_same_run_share_the_work(whole, broken, monkeypatch):
    run, learned_tasks, learn = long_run("spectral"), [], Trainer.learn
    train(run, root=whole)

    def counted(trainer, task, report):
        learned_tasks.append(task)
        return learn(trainer, task, report)

    monkeypatch.setattr(Trainer, "learn", counted)
    with ThreadPoolExecutor(2) as pool:
        left = list(pool.map(lambda pieces: train(run, root=broken, pieces=pieces), (1, 1)))
    assert (left, learned_tasks) == ([False, False], [0, 1, 2])
    assert_equal_runs(run, broken, whole)


def test_a_run_leaves_what_it_measured(whole):
    run = replace(run_of("spectral", seeds=(3, 5)), strengths=(0.1, 0.2))
    train(run, root=whole)
    rows = load(whole)
    expected = learned(Trainer(run))
    assert {tuple(key): value for *key, value in rows.select(*SCHEMA).rows()} == expected
    assert expected.keys() == {(member, task, metric) for member in (0, 1) for task in (0, 1) for metric in METRICS}
    assert set(rows.select("member", "seed", "strength").rows()) == {(0, 3, 0.1), (1, 5, 0.2)}
    facts = json.loads(Path(run.folder(whole).path, "environment.json").read_text())
    with flushed_denormals() as can_flush:
        assert (facts["flush_denormal"], facts["device"], facts["subset"]) == (can_flush, "cpu", False)


def test_progress_is_told_in_the_middle_of_tasks():
    reports = []
    Trainer(long_run("none"), compiled=False).learn(2, reports.append)
    assert reports == [2 + 50 / 60]


def test_a_task_counts_as_done_once_it_is_saved(whole):
    run, seen = replace(long_run("none"), epochs=25, tasks=2), []  # 150 steps a task: a report is due at its last step
    rows = Path(run.folder(whole).path, "metrics.parquet")

    def report(tasks):
        seen.append((tasks, pl.read_parquet(rows)["task"].n_unique() if rows.exists() else 0))

    train(run, report, root=whole)
    expected = [(0, 0), (1 / 3, 0), (2 / 3, 0), (1, 1), (4 / 3, 1), (5 / 3, 1), (2, 2)]
    assert seen == [(pytest.approx(tasks), saved) for tasks, saved in expected]


def test_the_probe_is_spread_over_the_images_and_has_labels_of_each_members_seed(monkeypatch):
    seen = []

    class Noted:
        def __init__(self, population, x, y, diagnostics):
            seen.extend((x, y))

        def keep(self):
            """Nothing."""

    monkeypatch.setattr(measure, "Measurements", Noted)
    images = torch.arange(256, dtype=torch.uint8).view(256, 1, 1, 1)
    data = Dataset(Examples(images, torch.zeros(256, dtype=torch.int64)), None, None, 3, (0.0,), (1.0,))
    measure.Probe(Population(lambda: nn.Linear(1, 3), [4, 5]), data, 3, ())
    x, y = seen
    assert (255 * x).round().view(2, -1).tolist() == [list(range(0, 256, 2))] * 2
    assert y.tolist() == [generator(Stream.PROBE, seed).integers(3, size=128).tolist() for seed in (4, 5)]


def test_dropout_has_the_random_numbers_of_the_runs_first_seed(tmp_path):
    run = run_of("none", model="dropout")
    torch.manual_seed(4)
    expected = learned(Trainer(run))
    train(run, root=str(tmp_path))
    assert {tuple(key): value for *key, value in run.folder(str(tmp_path)).checkpoint().rows.rows()} == expected


def test_a_part_of_a_data_set_is_stamped():
    trainer = Trainer(Run.of("random-label-digits", "none", [0], tasks=1, epochs=1, diagnostics=()))
    assert trainer.facts["subset"] is False
    trainer.data = replace(trainer.data, subset=True)
    assert trainer.facts["subset"] is True


def test_one_number_that_is_not_finite_is_a_divergence():
    trainer = Trainer(run_of("none"))
    parameter = trainer.learner.parameters["1.weight"]
    parameter[0, 0, 0] = torch.nan
    measured = measure.evaluate(trainer.learner.members, trainer.data, trainer._begin(0)[0])
    assert measured["diverged"].tolist() == [1.0] + [0.0] * (len(parameter) - 1)
