"""The methods by name, as a sweep compares them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from supple.mitigators import L2InitRegularizer, L2Regularizer, Mitigator, SpectralRegularizer


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way of keeping a network plastic: a mitigator, a change to the network, or both."""

    summary: str
    mitigator: Callable[..., Mitigator] | None = None
    """Called with the network and the strength."""
    strength: float = 0.0
    """The default on the built-in problems, chosen on seeds that are not reported."""
    model: Mapping[str, Any] = field(default_factory=dict)
    """Options of the network."""


METHODS: dict[str, Method] = {
    "none": Method(summary="no mitigation: what loses plasticity"),
    "l2": Method(summary="parameters towards zero", mitigator=L2Regularizer, strength=1e-4),
    "l2-init": Method(
        summary="parameters towards their initial values (Kumar et al., 2023)",
        mitigator=L2InitRegularizer,
        strength=1e-4,
    ),
    "layer-norm": Method(summary="LayerNorm before each non-linearity (Ba et al., 2016)", model={"layer_norm": True}),
    "spectral": Method(
        summary="each layer's largest singular value towards one (Lewandowski et al., 2025)",
        mitigator=SpectralRegularizer,
        strength=1e-3,
    ),
    "decoupled-spectral": Method(
        summary="the same, applied after the optimizer's step as AdamW does with weight decay",
        mitigator=partial(SpectralRegularizer, decoupled=True),
        strength=2e-3,
    ),
}
