"""Lightning: automatic optimization with its closure, manual optimization, checkpoints."""

import copy

import pytest
import torch

from oracles.plain_loop import (
    adam,
    assert_differs,
    assert_same,
    batches,
    copies,
    mean_square,
    measured_by_hand,
    mlp,
    monitor,
    spectral,
    train_by_hand,
)
from support.events import scalars

lightning = pytest.importorskip("lightning.pytorch")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
]
STEPS = 6


class Module(lightning.LightningModule):
    def __init__(self, manual=False, attach_itself=False):
        super().__init__()
        self.network = mlp()
        self.automatic_optimization = not manual
        self.attach_itself = attach_itself

    def training_step(self, x, index):
        loss = mean_square(self.network, x)
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def configure_optimizers(self):
        optimizer = adam(self)
        if self.attach_itself:
            self.regularizer = spectral(self).attach(optimizer)
        return optimizer


def fit(module, folder, inputs=None, epochs=1, resume=None, **options):
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
        **{"logger": False, **options},
    )
    inputs = list(batches(STEPS) if inputs is None else inputs)
    trainer.fit(module, torch.utils.data.DataLoader(inputs, batch_size=None), ckpt_path=resume)
    return trainer


def callback(module, **options):
    from supple.integrations.lightning import MitigatorCallback

    return MitigatorCallback(spectral(module, **options))


@pytest.mark.parametrize("manual", [False, True])
@pytest.mark.parametrize("attach_itself", [False, True])
@pytest.mark.parametrize("decoupled", [False, True])
def test_each_step_is_the_one_written_by_hand(manual, attach_itself, decoupled, tmp_path):
    if attach_itself and decoupled:
        pytest.skip("it is the same attach")
    module = Module(manual, attach_itself)
    by_hand, without = copies(module.network)
    fit(module, tmp_path, callbacks=[] if attach_itself else [callback(module, decoupled=decoupled)])
    train_by_hand(by_hand, spectral(by_hand, decoupled=decoupled), adam(by_hand), batches(STEPS))
    train_by_hand(without, None, adam(without), batches(STEPS))
    assert_same(module.network, by_hand)
    assert_differs(module.network, without)


def test_accumulation_and_clipping(tmp_path):
    module = Module()
    by_hand, _ = copies(module.network)
    options = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.05}
    fit(module, tmp_path, callbacks=[callback(module)], **options)
    train_by_hand(by_hand, spectral(by_hand), adam(by_hand), batches(STEPS), accumulate=2, clip=0.05)
    assert_same(module.network, by_hand)


def test_bfloat16(tmp_path):
    module = Module()
    by_hand, _ = copies(module.network)

    def loss_of(network, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return mean_square(network, x)

    fit(module, tmp_path, callbacks=[callback(module)], precision="bf16-mixed")
    train_by_hand(by_hand, spectral(by_hand), adam(by_hand), batches(STEPS), loss_of)
    assert_same(module.network, by_hand)


def test_a_resumed_fit_gives_the_same_bits(tmp_path):
    module, again = Module(), Module()
    by_hand, _ = copies(module.network)
    trainer = fit(module, tmp_path, batches(STEPS)[:3], callbacks=[callback(module)])
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    second = callback(again)
    fit(again, tmp_path, batches(STEPS)[3:], epochs=2, resume=tmp_path / "half.ckpt", callbacks=[second])
    expected = spectral(by_hand)
    train_by_hand(by_hand, expected, adam(by_hand), batches(STEPS))
    assert_same(again.network, by_hand)
    vectors = second.mitigators[0].state_dict()["network.0.weight"]["v"]
    assert torch.equal(vectors, expected.state_dict()["0.weight"]["v"])


def test_a_second_fit_and_one_after_an_interruption(tmp_path):
    class Stumbling(Module):
        stumbles = True

        def training_step(self, x, index):
            if index == 1 and self.stumbles:
                raise RuntimeError("out of luck")
            return super().training_step(x, index)

    module = Stumbling()
    attached = callback(module)
    with pytest.raises(RuntimeError, match="luck"):
        fit(module, tmp_path, callbacks=[attached])
    module.stumbles = False
    by_hand, _ = copies(module.network)
    expected = spectral(by_hand)
    expected.load_state_dict({name[8:]: entry for name, entry in attached.mitigators[0].state_dict().items()})
    for _ in range(2):
        fit(module, tmp_path, callbacks=[attached])
        train_by_hand(by_hand, expected, adam(by_hand), batches(STEPS))
    assert_same(module.network, by_hand)


class Two(Module):
    def training_step(self, x, index):
        loss = mean_square(self.network, x)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
        return loss

    def configure_optimizers(self):
        return adam(self.network[:2]), adam(self.network[2:])


def test_two_optimizers(tmp_path):
    module = Two(manual=True)
    by_hand, _ = copies(module.network)
    fit(module, tmp_path, callbacks=[callback(module)])
    train_by_hand(by_hand, spectral(by_hand), adam(by_hand), batches(STEPS))
    assert_same(module.network, by_hand)


def test_a_method_on_another_module_is_refused(tmp_path):
    module = Module()
    with pytest.raises(ValueError, match="none of them"):
        fit(module, tmp_path, callbacks=[callback(copy.deepcopy(module))])


def test_the_states_of_more_methods_are_refused_and_change_nothing():
    network = mlp()
    attached = callback(network)
    before = str(attached.state_dict())
    state = attached.state_dict()["mitigators"][0]
    zeros = {name: {key: 0 * tensor for key, tensor in entry.items()} for name, entry in state.items()}
    with pytest.raises(ValueError, match="states of 1 methods in the checkpoint, got 2: build the callback with"):
        attached.load_state_dict({"mitigators": [zeros, zeros]})
    assert str(attached.state_dict()) == before


# The monitor.


class FakeWandb(lightning.loggers.Logger):
    """Keeps the rows, as Lightning hands them to W&B."""

    name, version = "fake", 0

    def __init__(self):
        super().__init__()
        self.rows = []

    def log_hyperparams(self, *arguments):
        pass

    def log_metrics(self, metrics, step):
        self.rows.append((step, metrics))


def monitor_callback(module, every=1):
    from supple.integrations.lightning import PlasticityMonitorCallback

    return PlasticityMonitorCallback(monitor(module.network, every))


@pytest.mark.parametrize(("kind", "accumulate", "every", "steps"), [(Module, 2, 1, [0, 1, 2]), (Two, 1, 2, [1, 3, 5])])
def test_measurements_go_to_every_logger_at_the_step_of_the_batchs_metrics(kind, accumulate, every, steps, tmp_path):
    class Logging(kind):
        def training_step(self, x, index):
            self.log("loss", loss := super().training_step(x, index))
            return loss

    module = Logging(manual=kind is Two)
    by_hand, _ = copies(module.network)
    wandb, tensorboard = FakeWandb(), lightning.loggers.TensorBoardLogger(tmp_path)
    fit(
        module,
        tmp_path,
        callbacks=[monitor_callback(module, every), callback(module, decoupled=True)],  # the order does not matter
        logger=[wandb, tensorboard],
        log_every_n_steps=every,
        accumulate_grad_batches=accumulate,
    )
    expected = measured_by_hand(by_hand, spectral(by_hand, decoupled=True), batches(STEPS), accumulate, every)
    assert [row for row in wandb.rows if "loss" not in row[1]] == list(zip(steps, expected, strict=True))
    assert {step for step, metrics in wandb.rows if "loss" in metrics} == set(steps)
    events = {(name, step): value for name, step, value in scalars(tensorboard.log_dir) if "/" not in name}
    for step, measurement in zip(steps, expected, strict=True):
        for name in measurement.keys() & {"spectral_norm", "representation_change"}:
            assert events[name, step] == pytest.approx(measurement[name])


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16-true", torch.bfloat16), ("16-true", torch.float16), ("64-true", torch.float64)]
)
def test_the_probe_is_cast_to_the_networks_type(precision, dtype, tmp_path):
    class Descending(Module):  # Adam divides by zero in float16
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module, wandb = Descending(), FakeWandb()
    by_hand, _ = copies(module.network)
    inputs = batches(STEPS).to(dtype)
    watch, method = monitor(by_hand, probe=inputs[0]), spectral(by_hand, decoupled=True)
    callbacks = [callback(module, decoupled=True), monitor_callback(module)]
    fit(module, tmp_path, callbacks=callbacks, logger=wandb, log_every_n_steps=1, precision=precision)
    optimizer, expected = torch.optim.SGD(by_hand.to(dtype).parameters(), lr=0.1), []
    for x in inputs:
        train_by_hand(by_hand, method, optimizer, [x])
        expected.append(watch.step())
    assert wandb.rows == list(enumerate(expected))


def test_several_monitors_have_names_in_logs_and_checkpoints(tmp_path):
    def named(module):
        from supple.integrations.lightning import PlasticityMonitorCallback

        return PlasticityMonitorCallback({"often": monitor(module.network), "late": monitor(module.network, STEPS)})

    module, again, wandb = Module(), Module(), FakeWandb()
    by_hand, also_by_hand = copies(module.network)
    options = {"logger": wandb, "log_every_n_steps": 1}
    trainer = fit(module, tmp_path, batches(STEPS)[:3], callbacks=[callback(module), named(module)], **options)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    torch.nn.init.zeros_(again.network[0].weight)  # the initial weights are those of the checkpoint
    callbacks = [callback(again), named(again)]
    fit(again, tmp_path, batches(STEPS)[3:], epochs=2, resume=tmp_path / "half.ckpt", callbacks=callbacks, **options)
    expected = [
        {f"often/{name}": value for name, value in row.items()}
        for row in measured_by_hand(by_hand, spectral(by_hand), batches(STEPS))
    ]
    (late,) = measured_by_hand(also_by_hand, spectral(also_by_hand), batches(STEPS), every=STEPS)
    expected[-1] |= {f"late/{name}": value for name, value in late.items()}
    assert wandb.rows == list(enumerate(expected))
    with pytest.raises(ValueError, match=r"\['late', 'often'\] in the checkpoint, got \['', 'initial', 'previous'\]"):
        callbacks[1].load_state_dict(monitor_callback(module).state_dict())


@pytest.mark.parametrize("monitors", [{}, [], {"actor": mlp()}, mlp()], ids=["none", "list", "network", "one network"])
def test_what_is_no_monitor_is_refused(monitors):
    from supple.integrations.lightning import PlasticityMonitorCallback

    with pytest.raises(TypeError, match=r"expected a PlasticityMonitor.*, got"):
        PlasticityMonitorCallback(monitors)


@pytest.mark.parametrize("make", [callback, monitor_callback])
def test_a_second_callback_is_refused(make, tmp_path):
    class Own(Module):
        def configure_callbacks(self):
            return [make(self), make(self)]

    with pytest.raises(ValueError, match=r"expected one \w+Callback, .* got 2: .* as in \w+Callback\(.*another"):
        fit(Own(), tmp_path)
    module = Module()
    with pytest.raises(RuntimeError, match=r"more than one stateful callback.*consult the documentation"):
        fit(module, tmp_path, callbacks=[make(module), make(module)])
    assert "A trainer takes one callback of this class" in type(make(module)).__doc__


def test_a_resumed_fit_measures_the_same(tmp_path):
    module, again = Module(), Module()
    by_hand, _ = copies(module.network)
    wandb = FakeWandb()
    options = {"logger": wandb, "log_every_n_steps": 1}
    trainer = fit(
        module, tmp_path, batches(STEPS)[:3], callbacks=[callback(module), monitor_callback(module)], **options
    )
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    torch.nn.init.zeros_(again.network[0].weight)  # the initial weights are those of the checkpoint
    callbacks = [callback(again), monitor_callback(again)]
    fit(again, tmp_path, batches(STEPS)[3:], epochs=2, resume=tmp_path / "half.ckpt", callbacks=callbacks, **options)
    assert wandb.rows == list(enumerate(measured_by_hand(by_hand, spectral(by_hand), batches(STEPS))))
    assert callbacks[1].monitor.steps == STEPS
