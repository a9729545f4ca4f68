"""The methods by name, as a sweep compares them."""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from supple.errors import imported, known
from supple.mitigators import (
    UPGD,
    ContinualBackprop,
    HareAndTortoise,
    L2InitRegularizer,
    L2Regularizer,
    Mitigator,
    NetworkReset,
    NormalizeAndProject,
    ParsevalRegularizer,
    ReDo,
    SelfNormalizedResets,
    ShrinkAndPerturb,
    SpectralNormRegularizer,
    SpectralRegularizer,
    StreamingEWC,
    WassersteinRegularizer,
    WeightClipping,
)


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way of keeping a network plastic: a mitigator, a change to the network, or both."""

    summary: str
    mitigator: Callable[..., Mitigator] = Mitigator
    """Called with the network and the strength; the default does nothing."""
    strength: float = 0.0
    """The default: the best of those tried on digits, on a seed that is not reported; untried, the source's."""
    model: Mapping[str, Any] = field(default_factory=dict)
    """Options of the network."""

    @property
    def has_strength(self) -> bool:
        """Whether there is anything to set: networks alone have no dial."""
        return self.mitigator is not Mitigator

    @property
    def largest_strength(self) -> float:
        """What the mitigator takes at most."""
        mitigator: Any = self.mitigator
        return float(getattr(getattr(mitigator, "func", mitigator), "largest_strength", math.inf))


METHODS: dict[str, Method] = {
    "none": Method(summary="no mitigation: what loses plasticity"),
    "l2": Method(summary="parameters towards zero", mitigator=L2Regularizer, strength=1e-4),
    "l2-init": Method(
        summary="parameters towards their initial values (Kumar et al., 2023)",
        mitigator=L2InitRegularizer,
        strength=1e-3,
    ),
    "layer-norm": Method(summary="LayerNorm before each non-linearity (Ba et al., 2016)", model={"layer_norm": True}),
    "crelu": Method(
        summary="units pass on their positive and their negative part (Abbas et al., 2023)",
        model={"activation": "crelu"},
    ),
    "spectral-normalization": Method(
        summary="weights divided by their largest singular value in the forward pass (Miyato et al., 2018)",
        model={"spectral_normalization": True},
    ),
    "spectral": Method(
        summary="each layer's largest singular value towards one (Lewandowski et al., 2025)",
        mitigator=SpectralRegularizer,
        strength=1e-3,
    ),
    "decoupled-spectral": Method(
        summary="the same, applied after the optimizer's step as AdamW does with weight decay",
        mitigator=partial(SpectralRegularizer, decoupled=True),
        strength=1.0,
    ),
    "wasserstein": Method(
        summary="each tensor's distribution of values towards its initial one (Lewandowski et al., 2023)",
        mitigator=WassersteinRegularizer,
        strength=1e-2,
    ),
    "spectral-norm": Method(
        summary="each weight's largest singular value towards zero (Yoshida & Miyato, 2017)",
        mitigator=SpectralNormRegularizer,
        strength=1e-2,
    ),
    "parseval": Method(
        summary="every singular value of hidden weights towards one (Chung et al., 2024)",
        mitigator=ParsevalRegularizer,
        strength=1e-3,
    ),
    "streaming-ewc": Method(
        summary="important weights stay near their moving average (Elsayed & Mahmood, 2024)",
        mitigator=StreamingEWC,
        strength=1e4,
    ),
    "shrink-and-perturb": Method(
        summary="each step a little towards a fresh initialisation (Ash & Adams, 2020; Kumar et al., 2023)",
        mitigator=ShrinkAndPerturb,
        strength=1e-3,
    ),
    "upgd": Method(
        summary="useful weights move little, others wander (Elsayed & Mahmood, 2024)", mitigator=UPGD, strength=1.0
    ),
    "normalize-and-project": Method(
        summary="LayerNorm, and each weight matrix kept at its initial norm (Lyle et al., 2024)",
        mitigator=NormalizeAndProject,
        strength=1.0,
        model={"layer_norm": True},
    ),
    "weight-clipping": Method(
        summary="weights clamped to about the range of their initialisation (Elsayed et al., 2024)",
        mitigator=WeightClipping,
        strength=1.0,
    ),
    "hare-and-tortoise": Method(
        summary="set back every 1,000 steps to a slow average (Lee et al., 2024)",
        mitigator=HareAndTortoise,
        strength=1.0,
    ),
    "redo": Method(
        summary="every 1,000 steps, dormant units drawn anew (Sokar et al., 2023)", mitigator=ReDo, strength=0.1
    ),
    "continual-backprop": Method(
        summary="each step a few of the least useful units drawn anew (Dohare et al., 2024)",
        mitigator=ContinualBackprop,
        strength=1e-3,
    ),
    "self-normalized-resets": Method(
        summary="units drawn anew that are silent for longer than they used to be (Farias & Jozefiak, 2024)",
        mitigator=SelfNormalizedResets,
        strength=0.01,
    ),
    "network-reset": Method(
        summary="every 1,000 steps, the whole network drawn anew (Nikishin et al., 2022; D'Oro et al., 2022)",
        mitigator=partial(NetworkReset, every=1000),
        strength=1.0,
    ),
}


def load(name: str) -> Method:
    """What a name stands for: an entry of ``METHODS``, or ``package.module:Class``, a mitigator of one's own.

    Its strength is then the class's default (NaN where it has none), its summary the first line of the docstring.

    Raises:
        ValueError: for an unknown name, and for a class that takes no strength.
    """
    if ":" not in name:
        return METHODS[known(name, METHODS, "method or package.module:Class")]
    mitigator = imported(name)
    taken = inspect.signature(mitigator).parameters
    if "strength" not in taken:
        raise ValueError(f"expected a class that takes a network and a strength, got {name}({', '.join(taken)})")
    default = taken["strength"].default
    summary = (inspect.getdoc(mitigator) or name).splitlines()[0]
    strength = float(default) if isinstance(default, int | float) else math.nan
    return Method(summary=summary, mitigator=mitigator, strength=strength)


def checked(mitigator: object, name: str) -> Mitigator:
    """What a method's class or function returned, if it is a mitigator.

    Raises:
        ValueError: otherwise, naming the method.
    """
    if not isinstance(mitigator, Mitigator):
        raise ValueError(f"expected a Mitigator from {name}, got {type(mitigator).__name__}: return one")
    return mitigator
