"""Every method that the library exports, with options by which each acts within few steps: what common tests share."""

import inspect

import pytest
from torch import Tensor, nn

from supple import mitigators
from supple.mitigators import Mitigator

EXPORTED = {name: getattr(mitigators, name) for name in mitigators.__all__}
CLASSES = {
    name: value
    for name, value in EXPORTED.items()
    if inspect.isclass(value) and issubclass(value, Mitigator) and value is not Mitigator
}
OPTIONS = {  # so that each acts within few steps
    "ContinualBackprop": {"strength": 0.1, "maturity": 2},
    "HareAndTortoise": {"every": 4, "decay": 0.9, "strength": 0.9},
    "NetworkReset": {"every": 4, "strength": 0.5},
    "ReDo": {"every": 4, "strength": 0.9},
    "SelfNormalizedResets": {"every": 1, "patience": 1, "quiet": 0.9, "strength": 0.2, "refresh": 3},
    "StreamingEWC": {"strength": 1.0, "decay": 0.9},
    "UPGD": {"strength": 0.9, "weight_decay": 0.01},
    "WeightClipping": {"strength": 2.0},
}
CASES = {name: (method, OPTIONS.get(name, {})) for name, method in CLASSES.items()} | {
    "SpectralRegularizer-decoupled": (CLASSES["SpectralRegularizer"], {"decoupled": True}),
    "SpectralRegularizer-initial": (CLASSES["SpectralRegularizer"], {"target": "initial"}),
    "SpectralRegularizer-initial-decoupled": (
        CLASSES["SpectralRegularizer"],
        {"target": "initial", "decoupled": True},
    ),
    "ShrinkAndPerturb-step-noise": (CLASSES["ShrinkAndPerturb"], {"variant": "step-noise"}),
    "WassersteinRegularizer-mean": (CLASSES["WassersteinRegularizer"], {"reduction": "mean"}),
}
SEED = 10


def build(case: str, network: nn.Module, **options: object) -> Mitigator:
    method, usual = CASES[case]
    return method(network, **{"strength": 0.1, **usual, **options})


def strength_of(case: str) -> float:
    return CASES[case][1].get("strength", 0.1)


def where_taken(case: str, **options: object) -> dict[str, object]:
    """Those of the options that this method has."""
    return {name: options[name] for name in options.keys() & inspect.signature(CASES[case][0]).parameters.keys()}


every_case = pytest.mark.parametrize("case", CASES)


def tensors(method: Mitigator) -> list[Tensor]:
    """All that it remembers."""
    return [tensor for entry in method.state_dict().values() for tensor in entry.values()]
