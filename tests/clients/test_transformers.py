"""Transformers: the Trainer, and hyperparameter search."""

from types import SimpleNamespace

import pytest
import torch

from oracles.plain_loop import adam, assert_differs, assert_same, copies, spectral, train_by_hand
from supple import L2InitRegularizer, PlasticityMonitor
from support.events import scalars

transformers = pytest.importorskip("transformers")

LR, STEPS, BATCH = 0.01, 6, 4


def gpt2():
    config = transformers.GPT2Config(
        n_layer=1, n_head=2, n_embd=12, vocab_size=17, n_positions=8, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**config.to_dict() | no_dropout("pdrop")))


def no_dropout(ending):
    return {f"{kind}_{ending}": 0.0 for kind in ("resid", "embd", "attn")}


def vit():
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(
            hidden_size=12,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            image_size=8,
            patch_size=4,
            num_labels=3,
        )
    )


def examples(kind):
    random = torch.Generator().manual_seed(5)
    if kind is gpt2:
        tokens = torch.randint(17, (STEPS * BATCH, 8), generator=random)
        return [{"input_ids": row, "labels": row} for row in tokens]
    images = torch.randn(STEPS * BATCH, 3, 8, 8, generator=random)
    return [{"pixel_values": image, "labels": index % 3} for index, image in enumerate(images)]


def inputs(kind):
    rows = examples(kind)
    return [transformers.default_data_collator(rows[at : at + BATCH]) for at in range(0, len(rows), BATCH)]


def make(kind):
    torch.manual_seed(1)
    return kind()


def loss_of(network, batch):
    return network(**batch).loss


class InOrder(transformers.Trainer):
    def _get_train_sampler(self, *args):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def trainer(kind, network, folder, callbacks=(), **options):
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=BATCH,
        num_train_epochs=1,
        learning_rate=LR,
        lr_scheduler_type="constant",
        optim="adamw_torch",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **{"report_to": [], "logging_strategy": "no", "save_strategy": "no", "max_grad_norm": 0.1, **options},
    )
    made = InOrder(network, arguments, train_dataset=examples(kind), callbacks=list(callbacks))
    made.model_accepts_loss_kwargs = False  # the loss is the mean over each batch, as written by hand
    return made


def callback(network, **options):
    from supple.integrations.transformers import MitigatorCallback

    return MitigatorCallback(spectral(network), **options)


def adamw(network):
    return torch.optim.AdamW(network.parameters(), lr=LR, weight_decay=0.0)


@pytest.mark.parametrize("kind", [gpt2, vit])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_each_step_is_the_one_written_by_hand(kind, accumulate, tmp_path):
    network = make(kind)
    by_hand, without = copies(network)
    trainer(kind, network, tmp_path, [callback(network)], gradient_accumulation_steps=accumulate).train()
    for other, method in ((by_hand, spectral(by_hand)), (without, None)):
        train_by_hand(other, method, adamw(other), inputs(kind), loss_of, accumulate=accumulate, clip=0.1)
    assert_same(network, by_hand)
    assert_differs(network, without)


def test_a_resumed_training_gives_the_same_bits(tmp_path):
    network, again, by_hand = make(gpt2), make(gpt2), make(gpt2)
    trainer(gpt2, network, tmp_path, [callback(network)], save_strategy="steps", save_steps=3).train()
    trainer(gpt2, again, tmp_path, [callback(again)]).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    train_by_hand(by_hand, spectral(by_hand), adamw(by_hand), inputs(gpt2), loss_of, clip=0.1)
    assert_same(network, by_hand)
    assert_same(again, by_hand)

    (tmp_path / "checkpoint-3").rename(tmp_path / "elsewhere")
    elsewhere = str(tmp_path / "elsewhere")
    again = make(gpt2)
    with pytest.raises(FileNotFoundError, match="resume_from"):
        trainer(gpt2, again, tmp_path, [callback(again)]).train(resume_from_checkpoint=elsewhere)
    more = callback(again, resume_from=elsewhere)
    more.mitigators += (L2InitRegularizer(again),)
    with pytest.raises(ValueError, match=r"states of 2 methods in .*, got 1: build the callback with"):
        trainer(gpt2, again, tmp_path, [more]).train(resume_from_checkpoint=elsewhere)
    again = make(gpt2)
    resumed = callback(again, resume_from=elsewhere)
    trainer(gpt2, again, tmp_path, [resumed]).train(resume_from_checkpoint=elsewhere)
    assert_same(again, by_hand)


def test_attached_to_an_optimizer_of_ones_own(tmp_path):
    network = make(gpt2)
    by_hand, _ = copies(network)
    optimizer = adam(network)
    spectral(network).attach(optimizer)
    own = trainer(gpt2, network, tmp_path)
    own.optimizer = optimizer
    own.train()
    train_by_hand(by_hand, spectral(by_hand), adam(by_hand), inputs(gpt2), loss_of, clip=0.1)
    assert_same(network, by_hand)


# The monitor.


class FakeWandb(transformers.integrations.WandbCallback):
    """The Trainer's own W&B integration, with a list of rows instead of the package."""

    def __init__(self):
        self.rows = []
        self._wandb = SimpleNamespace(log=self.rows.append, run=SimpleNamespace(summary={}))
        self._initialized, self._log_model = True, SimpleNamespace(is_enabled=False)


def monitor(network, every=1):
    names = ["distance_from_initialization", "representation_change", "spectral_norm"]
    return PlasticityMonitor(network, (inputs(gpt2)[0], None), every=every, diagnostics=names)


def watched(network, folder, watch, callbacks=(), resume_from=None, **options):
    from supple.integrations.transformers import PlasticityMonitorCallback

    made = trainer(gpt2, network, folder, [*callbacks, callback(network, resume_from=resume_from)], **options)
    made.add_callback(PlasticityMonitorCallback(watch, made, resume_from=resume_from))
    return made


def measured_by_hand(network, every=1):
    watch, method, optimizer = monitor(network, every), spectral(network), adamw(network)
    measurements = []
    for batch in inputs(gpt2):
        train_by_hand(network, method, optimizer, [batch], loss_of, clip=0.1)
        measurements.append(watch.step())
    return {step: values for step, values in enumerate(measurements, start=1) if values}


def test_measurements_go_to_every_integration_and_leave_the_log_of_the_loss(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    network, by_hand = make(gpt2), make(gpt2)
    wandb = FakeWandb()
    options = {"report_to": ["tensorboard"], "logging_strategy": "steps", "logging_steps": 2}
    training = watched(network, tmp_path, monitor(network, 2), [wandb], **options)
    training.train()
    expected = measured_by_hand(by_hand, 2)
    assert list(expected) == [2, 4, 6]
    logged = [row for row in training.state.log_history if "spectral_norm" in row]
    assert {row["step"]: {k: v for k, v in row.items() if k not in ("step", "epoch")} for row in logged} == expected
    assert [row["step"] for row in training.state.log_history if "loss" in row] == [2, 4, 6]
    rows = {row["train/global_step"]: row for row in wandb.rows if "train/spectral_norm" in row}
    events = {(name, step): value for name, step, value in scalars(tmp_path / "events")}
    for step, measurement in expected.items():
        assert rows[step].items() >= {f"train/{name}": value for name, value in measurement.items()}.items()
        for name, value in measurement.items():
            assert events[f"train/{name}", step] == pytest.approx(value)


def test_a_resumed_training_measures_the_same(tmp_path):
    network, again, by_hand = make(gpt2), make(gpt2), make(gpt2)
    watched(network, tmp_path, monitor(network), save_strategy="steps", save_steps=3).train()
    with torch.no_grad():
        again.lm_head.weight.zero_()  # the initial weights are those of the checkpoint
    watch = monitor(again)
    (tmp_path / "checkpoint-3").rename(tmp_path / "elsewhere")
    elsewhere = str(tmp_path / "elsewhere")
    resumed = watched(again, tmp_path, watch, resume_from=elsewhere)
    resumed.train(resume_from_checkpoint=elsewhere)
    expected = measured_by_hand(by_hand)
    logged = {
        row["step"]: row["distance_from_initialization"]
        for row in resumed.state.log_history
        if row["step"] > 0 and "spectral_norm" in row
    }
    assert logged == {step: values["distance_from_initialization"] for step, values in expected.items()}
    assert watch.latest == expected[6]
    assert watch.steps == 6
    assert torch.load(tmp_path / "elsewhere" / "plasticity_monitor.pt").keys() == watch.state_dict().keys()
    (tmp_path / "elsewhere" / "plasticity_monitor.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"monitor's state in .*resume_from=folder.*torch\.save"):
        resumed.train(resume_from_checkpoint=elsewhere)


def test_several_monitors_have_names_in_logs_and_checkpoints(tmp_path):
    network, again, by_hand = make(gpt2), make(gpt2), make(gpt2)

    def named(model, folder, **options):
        return watched(model, folder, {"often": monitor(model), "late": monitor(model, 6)}, **options)

    named(network, tmp_path, save_strategy="steps", save_steps=3).train()
    with torch.no_grad():
        again.lm_head.weight.zero_()  # the initial weights are those of the checkpoint
    resumed = named(again, tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    logged = [row for row in resumed.state.log_history if row["step"] > 3 and "often/spectral_norm" in row]
    expected = measured_by_hand(by_hand)
    assert [row["step"] for row in logged] == [4, 5, 6]
    for row in logged:
        assert row.items() >= {f"often/{key}": value for key, value in expected[row["step"]].items()}.items()
    distances = [row.get("late/distance_from_initialization") for row in logged]
    assert distances == [None, None, expected[6]["distance_from_initialization"]]
    with pytest.raises(
        ValueError, match=r"monitors \['one', 'two'\] in the checkpoint, got \['late', 'often'\]: build"
    ):
        watched(again, tmp_path, {"one": monitor(again), "two": monitor(again)}).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-3")
        )


@pytest.mark.parametrize("kind", ["MitigatorCallback", "PlasticityMonitorCallback"])
def test_a_second_callback_is_refused_before_anything_is_written(kind, tmp_path):
    from supple.integrations.transformers import PlasticityMonitorCallback

    network = make(gpt2)
    training = watched(network, tmp_path, monitor(network), save_strategy="steps", save_steps=1)
    for _ in range(2):
        training.train()  # the same callbacks again are no second ones
    (folder := tmp_path / "fresh").mkdir()
    training.args.output_dir = str(folder)
    another = {
        "MitigatorCallback": callback(network),
        "PlasticityMonitorCallback": PlasticityMonitorCallback(monitor(network), training),
    }
    training.add_callback(another[kind])
    with pytest.raises(ValueError, match=rf"expected one {kind}, .* got another: .* as in {kind}\(.*another"):
        training.train()
    assert not list(folder.iterdir())


# Hyperparameter search.


class Search:
    """Runs trials one after the other, as the search with Optuna does, without the package."""

    def ensure_available(self):
        pass

    def run(self, trainer, n_trials, direction):
        for number in range(n_trials):
            trainer.train(trial=SimpleNamespace(number=number, params={"learning_rate": LR * (1 + number)}))


@pytest.mark.parametrize(
    ("name", "folders"),
    [(None, ["run-0", "run-1"]), (lambda trial: f"named/{trial.number}", ["named/0", "named/1"])],
    ids=["unnamed", "named"],
)
def test_trials_of_a_search_save_in_their_own_folders(name, folders, tmp_path, monkeypatch):
    optuna = transformers.trainer_utils.HPSearchBackend.OPTUNA
    monkeypatch.setitem(transformers.trainer.ALL_HYPERPARAMETER_SEARCH_BACKENDS, optuna, Search)
    monkeypatch.setattr(transformers.integrations, "hp_params", lambda trial: trial.params)
    network, trials = make(gpt2), []
    training = watched(network, tmp_path, monitor(network), save_strategy="steps", save_steps=3)
    callbacks = {type(each).__name__: each for each in training.callback_handler.callbacks}
    methods, watching = callbacks["MitigatorCallback"], callbacks["PlasticityMonitorCallback"]

    def begin():
        network = make(gpt2)
        methods.mitigators, watching.monitor = (spectral(network),), monitor(network)
        trials.append((methods.mitigators[0], watching.monitor))
        return network

    training.train()  # its folders are not those of the trials
    training.model_init = begin
    training.hyperparameter_search(lambda trial: trial.params, n_trials=2, backend="optuna", hp_name=name)
    for folder, (method, watch) in zip(folders, trials, strict=True):
        checkpoint = tmp_path / folder / "checkpoint-6"
        (saved,) = torch.load(checkpoint / "mitigators.pt")
        torch.testing.assert_close(saved, method.state_dict(), rtol=0.0, atol=0.0)
        torch.testing.assert_close(
            torch.load(checkpoint / "plasticity_monitor.pt"), watch.state_dict(), rtol=0.0, atol=0.0
        )
    assert len(list(tmp_path.rglob("mitigators.pt"))) == len(list(tmp_path.rglob("trainer_state.json"))) == 6
