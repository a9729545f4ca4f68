"""The table of metrics that are not diagnostics, and the facts of any metric by its name."""

from dataclasses import replace

from supple.diagnostics import DIAGNOSTICS, Metric

END = "at the task's end"

METRICS: dict[str, Metric] = {
    "train_accuracy": Metric(
        "training accuracy", "On all training examples of the task: trainability.", when=END, higher_is_better=True
    ),
    "validation_accuracy": Metric(
        "validation accuracy", "On validation images, if labels are not random.", when=END, higher_is_better=True
    ),
    "test_accuracy": Metric(
        "test accuracy", "On test images, if labels are not random: generalization.", when=END, higher_is_better=True
    ),
    "online_accuracy": Metric(
        "online accuracy", "Accuracy on each batch before learning from it, mean over the task.", higher_is_better=True
    ),
    "train_loss": Metric(
        "training loss",
        "The cross entropy on all training examples of the task.",
        unit="nats",
        when=END,
        higher_is_better=False,
    ),
    "return": Metric(
        "evaluation return",
        "The mean over an evaluation's episodes, with the policy's mean action; for a diverged agent, with random "
        "actions.",
        higher_is_better=True,
    ),
    "training_return": Metric(
        "return of the training episodes", "The mean since the last evaluation.", higher_is_better=True
    ),
    "overestimation": Metric(
        "relative overestimation of Q", "How far Q lies above the discounted return, relative to it."
    ),
    "entropy": Metric("policy entropy", "The mean of −log π(a|s) over a minibatch.", unit="nats"),
    "temperature": Metric("temperature", "The weight α of the entropy in the agent's objective."),
    "diverged": Metric(
        "share of diverged networks", "1 if a number of the network is no longer finite.", higher_is_better=False
    ),
    "stopped": Metric("step at which a diverged agent stopped", "The environment step at which it stopped acting."),
}
"""What the laboratory and reinforcement learning measure besides :data:`supple.diagnostics.DIAGNOSTICS`."""

METRICS |= {
    f"{network}_{name}": Metric(f"{title}, {network}", summary, higher_is_better=better)
    for network in ("actor", "critic")
    for name, title, summary, better in (
        ("weight_norm", "weight norm", "The norm of all parameters.", None),
        ("gradient_norm", "gradient norm", "The norm of the gradient of its loss.", None),
        ("spectral_norm", "largest singular value", "The largest over the layers.", None),
        ("effective_step_size", "effective step size", "The last update's norm divided by the weights' norm.", None),
        ("dormant", "share of dormant units", "Hidden units with a ReDo score of at most 0.1.", False),
        ("effective_rank", "effective rank", "Of the activations of the last hidden layer.", True),
    )
}

HEADLINES = ("train_accuracy", "test_accuracy", "return")
"""A problem's main metrics: trainability, and generalization where measured; in reinforcement learning, the return."""

JUDGES = ("validation_accuracy", "train_accuracy")
"""The metrics that choose the best setting: the first that was measured does."""


def headlines(online: bool) -> tuple[str, ...]:
    """The main metrics of a problem, and the online accuracy of one whose authors report that."""
    return (*HEADLINES, "online_accuracy") if online else HEADLINES


def judges(online: bool) -> tuple[str, ...]:
    """The metrics that choose the best setting; online accuracy first, where a problem's authors report that."""
    return ("online_accuracy", *JUDGES) if online else JUDGES


def find(name: str) -> Metric:
    """The facts of the metric with this name; a layer's value (``spectral_norm/0``) has the network's facts."""
    what, _, layer = name.partition("/")
    if what in DIAGNOSTICS:
        metric = DIAGNOSTICS[what].metric
    else:
        metric = METRICS.get(what) or Metric(title=what.replace("_", " "))
    return replace(metric, title=f"{metric.title}, {layer}") if layer else metric
