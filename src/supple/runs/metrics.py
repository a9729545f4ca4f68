"""The table of metrics that are not diagnostics, and the facts of any metric by its name."""

from dataclasses import replace

from supple.diagnostics import DIAGNOSTICS, Metric

ENDS = "at the task's end"

METRICS: dict[str, Metric] = {
    "train_accuracy": Metric(
        title="training accuracy",
        summary="On all training examples of the task: trainability.",
        when=ENDS,
        higher_is_better=True,
    ),
    "validation_accuracy": Metric(
        title="validation accuracy",
        summary="On validation images, if there are any and labels are not random.",
        when=ENDS,
        higher_is_better=True,
    ),
    "test_accuracy": Metric(
        title="test accuracy",
        summary="On test images, if labels are not random: generalisation.",
        when=ENDS,
        higher_is_better=True,
    ),
    "online_accuracy": Metric(
        title="online accuracy",
        summary="Of each batch before it is learned from, mean over the task.",
        when="over the task",
        higher_is_better=True,
    ),
    "train_loss": Metric(
        title="training loss",
        summary="The cross entropy on all training examples of the task.",
        unit="nats",
        when=ENDS,
        higher_is_better=False,
    ),
    "return": Metric(
        title="return of the policy's mean",
        summary="The mean return of the evaluation's episodes, played with the policy's mean action.",
        higher_is_better=True,
    ),
    "training_return": Metric(
        title="return of the training episodes",
        summary="The mean return of the training episodes since the last evaluation.",
        higher_is_better=True,
    ),
    "overestimation": Metric(
        title="overestimation of Q, over the return",
        summary="How far Q lies above the discounted return of an episode, relative to the return.",
    ),
    "temperature": Metric(title="temperature", summary="The weight α of the entropy in the agent's objective."),
    "diverged": Metric(
        title="share of diverged networks",
        summary="1 if the network's numbers are no longer finite.",
        higher_is_better=False,
    ),
    "stopped": Metric(
        title="step at which a diverged agent stopped",
        summary="The environment step at which the agent's actions were no longer finite.",
        unit="steps",
    ),
}
"""What the laboratory and reinforcement learning measure besides :data:`supple.diagnostics.DIAGNOSTICS`, by name."""

OF_AGENTS = {
    "weight_norm": Metric(title="weight norm", summary="The norm of all parameters."),
    "gradient_norm": Metric(title="gradient norm", summary="The norm of the gradient of the network's own loss."),
    "spectral_norm": Metric(title="largest singular value", summary="The largest singular value of any layer."),
    "dormant": DIAGNOSTICS["dormant_units"].metric,
    "effective_rank": Metric(
        title="effective rank of the last hidden activations",
        summary="The exponential of the entropy of their singular values.",
        higher_is_better=True,
    ),
}
METRICS |= {
    f"{network}_{name}": replace(metric, title=f"{metric.title}, {network}")
    for network in ("actor", "critic")
    for name, metric in OF_AGENTS.items()
}

HEADLINES = ("train_accuracy", "test_accuracy", "return")
"""A problem's main metrics: trainability, and generalisation where measured; in reinforcement learning, the return."""

JUDGES = ("validation_accuracy", "train_accuracy")
"""The metrics that choose the best setting: the first that was measured does."""


def find(name: str) -> Metric:
    """The facts of the metric with this name; a layer's value (``spectral_norm/0``) has the network's facts."""
    what, _, layer = name.partition("/")
    if what in DIAGNOSTICS:
        metric = DIAGNOSTICS[what].metric
    else:
        metric = METRICS.get(what) or Metric(title=what.replace("_", " "))
    return replace(metric, title=f"{metric.title}, {layer}") if layer else metric
