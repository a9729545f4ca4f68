"""The table of methods: class, options, strength and appearance. Commands, charts and documents read it."""

import inspect
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from torch import nn

from supple import mitigators
from supple.errors import check_range, imported, known
from supple.mitigators import Mitigator
from supple.mitigators.kernels import Strength

NOT_OPTIONS = ("network", "strength", "roles", "units", "initializer", "seed")
"""Arguments of mitigators that are not options: they have their own command-line option, or need Python code."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way of keeping a network plastic: a mitigator, a change to the network, or both."""

    title: str
    """Its name in charts and tables, by :func:`title_of`."""
    summary: str
    mitigator: Callable[..., Mitigator] = Mitigator
    """Called with the network and the strength; the default does nothing."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the mitigator."""
    strength: float = 0.0
    """The default: the best tried on digits, on a seed that is not reported; the source's if none was tried."""
    control_strength: float | None = None
    """The default for control tasks, if it differs: little was tuned there; regularizers use the paper's 1e-4."""
    control_exempts_heads: bool = False
    """Whether an agent's last layers are left out by default."""
    network: Mapping[str, Any] = field(default_factory=dict)
    """Options of the network that the method changes."""
    colour: str = ""
    """The colour of its curves; a user's own method gets an unused colour."""

    def on(self, network: nn.Module, strength: Strength, **options: Any) -> Mitigator:
        """Build the mitigator for a network or a population.

        Raises:
            ValueError: if a user's own method does not return a Mitigator.
        """
        made: object = self.mitigator(network, strength, **{**self.options, **options})
        if not isinstance(made, Mitigator):
            raise ValueError(f"expected a Mitigator from {self.title}, got {type(made).__name__}: return one")
        return made

    @property
    def defaults(self) -> dict[str, Any]:
        """The mitigator's options that the command line accepts, with their defaults."""
        if not self.has_strength:
            return {}
        parameters = inspect.signature(self.mitigator).parameters
        return {
            name: self.options.get(name, parameter.default)
            for name, parameter in parameters.items()
            if name not in NOT_OPTIONS
        }

    @property
    def has_strength(self) -> bool:
        """Whether it has a strength: methods that only change the network have none."""
        return self.mitigator is not Mitigator

    @property
    def largest_strength(self) -> float:
        """The largest strength that the mitigator accepts."""
        return float(getattr(self.mitigator, "largest_strength", math.inf))


# A method has the same colour everywhere. Those most often compared have Okabe and Ito's, the others Tol's muted ones:
# both palettes are made to be told apart by colour-blind readers.
METHODS: dict[str, Method] = {
    "none": Method(
        title="no mitigation",
        summary="plain training, which loses plasticity",
        colour="#000000",
    ),
    "l2": Method(
        title="L2",
        summary="parameters towards zero",
        mitigator=mitigators.L2Regularizer,
        strength=1e-4,
        colour="#E69F00",
    ),
    "l2-init": Method(
        title="L2 init",
        summary="parameters towards their initial values (Kumar et al., 2023)",
        mitigator=mitigators.L2InitRegularizer,
        strength=1e-3,
        control_strength=1e-4,
        colour="#56B4E9",
    ),
    "layer-norm": Method(
        title="LayerNorm",
        summary="LayerNorm before each non-linearity (Ba et al., 2016)",
        network={"layer_norm": True},
        colour="#CC79A7",
    ),
    "crelu": Method(
        title="CReLU",
        summary="units pass on their positive and their negative part (Abbas et al., 2023)",
        network={"activation": "crelu"},
        colour="#F0E442",
    ),
    "fourier-features": Method(
        title="deep Fourier features",
        summary="half as many units, which pass on their sine and their cosine (Lewandowski et al., 2025)",
        network={"activation": "fourier"},
        colour="#BBCC33",
    ),
    "spectral-normalization": Method(
        title="spectral normalization",
        summary="weights divided by their largest singular value in the forward pass (Miyato et al., 2018)",
        network={"spectral_normalization": True},
        colour="#6699CC",
    ),
    "spectral": Method(
        title="spectral",
        summary="each layer's largest singular value towards one (Lewandowski et al., 2025)",
        mitigator=mitigators.SpectralRegularizer,
        strength=1e-3,
        control_strength=1e-4,
        colour="#0072B2",
    ),
    "decoupled-spectral": Method(
        title="decoupled spectral",
        summary="the same, applied after the optimizer's step as AdamW does with weight decay",
        mitigator=mitigators.SpectralRegularizer,
        options={"decoupled": True},
        strength=1.0,
        control_strength=0.01,
        control_exempts_heads=True,
        colour="#D55E00",
    ),
    "wasserstein": Method(
        title="Wasserstein",
        summary="each tensor's distribution of values towards its initial one (Lewandowski et al., 2023)",
        mitigator=mitigators.WassersteinRegularizer,
        strength=0.1,
        control_strength=1e-4,
        colour="#009E73",
    ),
    "spectral-norm": Method(
        title="spectral norm",
        summary="each weight's largest singular value towards zero (Yoshida & Miyato, 2017)",
        mitigator=mitigators.SpectralNormRegularizer,
        strength=1e-2,
        control_strength=1e-4,
        colour="#44AA99",
    ),
    "parseval": Method(
        title="Parseval",
        summary="every singular value of hidden weights towards √2 (Chung et al., 2024)",
        mitigator=mitigators.ParsevalRegularizer,
        strength=0.1,
        control_strength=1e-4,
        colour="#AA4499",
    ),
    "streaming-ewc": Method(
        title="streaming EWC",
        summary="important weights stay near their moving average (Elsayed & Mahmood, 2024)",
        mitigator=mitigators.StreamingEWC,
        strength=1e4,
        control_strength=1e-2,
        colour="#999933",
    ),
    "shrink-and-perturb": Method(
        title="shrink and perturb",
        summary="each step a little towards a fresh initialization (Ash & Adams, 2020; Kumar et al., 2023)",
        mitigator=mitigators.ShrinkAndPerturb,
        strength=1e-3,
        control_strength=1e-4,
        colour="#882255",
    ),
    "upgd": Method(
        title="UPGD",
        summary="useful weights move little, others wander (Elsayed & Mahmood, 2024)",
        mitigator=mitigators.UPGD,
        strength=1.0,
        colour="#DDCC77",
    ),
    "normalize-and-project": Method(
        title="normalize and project",
        summary="LayerNorm, and each weight matrix kept at its initial norm (Lyle et al., 2024)",
        mitigator=mitigators.NormalizeAndProject,
        strength=1.0,
        network={"layer_norm": True},
        colour="#CC6677",
    ),
    "weight-clipping": Method(
        title="weight clipping",
        summary="weights clamped to about the range of their initialization (Elsayed et al., 2024)",
        mitigator=mitigators.WeightClipping,
        strength=1.0,
        colour="#117733",
    ),
    "fire": Method(
        title="FIRE",
        summary="at each task's start, weight matrices made orthogonal (Han et al., 2026)",
        mitigator=mitigators.FIRE,
        strength=1.0,
        colour="#EE3377",
    ),
    "hare-and-tortoise": Method(
        title="hare and tortoise",
        summary="set back every 1,000 steps to a slow average (Lee et al., 2024)",
        mitigator=mitigators.HareAndTortoise,
        strength=1.0,
        colour="#888888",
    ),
    "redo": Method(
        title="ReDo",
        summary="every 1,000 steps, dormant units are reinitialized (Sokar et al., 2023)",
        mitigator=mitigators.ReDo,
        strength=0.1,
        colour="#661100",
    ),
    "continual-backprop": Method(
        title="continual backprop",
        summary="each step a few of the least useful units are reinitialized (Dohare et al., 2024)",
        mitigator=mitigators.ContinualBackprop,
        strength=1e-2,
        control_strength=1e-4,
        colour="#332288",
    ),
    "self-normalized-resets": Method(
        title="self-normalized resets",
        summary="reinitializes units that are silent for longer than they used to be (Farias & Jozefiak, 2024)",
        mitigator=mitigators.SelfNormalizedResets,
        strength=0.01,
        control_strength=0.02,
        colour="#88CCEE",
    ),
    "network-reset": Method(
        title="network reset",
        summary="every 1,000 steps, the whole network is reinitialized (Nikishin et al., 2022; D'Oro et al., 2023)",
        mitigator=mitigators.NetworkReset,
        options={"every": 1000},
        strength=1.0,
        colour="#A0A000",
    ),
}


def find(name: str, methods: Mapping[str, Method] = METHODS) -> Method:
    """The method with this name: an entry of ``methods``, or ``package.module:Class`` for a user's own mitigator.

    A user's class gives its default strength (NaN if it has none) and, as summary, its docstring's first line.

    Raises:
        ValueError: for an unknown name, and for a class that takes no strength.
    """
    if ":" not in name:
        return methods[known(name, methods, "method or package.module:Class")]
    mitigator = imported(name)
    taken: Mapping[str, inspect.Parameter] = {}
    with suppress(ValueError):  # a built-in type has no signature
        taken = inspect.signature(mitigator).parameters
    if "strength" not in taken:
        raise ValueError(
            f"expected a class that takes a network and a strength, got {name}({', '.join(taken)}): name a Mitigator"
        )
    default = taken["strength"].default
    summary = (inspect.getdoc(mitigator) or name).splitlines()[0]
    strength = float(default) if isinstance(default, int | float) else math.nan
    return Method(title=name, summary=summary, mitigator=mitigator, strength=strength)


def options_text(options: str) -> str:
    """Options, as a configuration holds them, in words: "target: initial"; "" for the defaults."""
    return options.strip("{}").replace('"', "")


def title_of(name: str) -> str:
    """The name of a method in charts and tables; a user's own method keeps its name."""
    return METHODS[name].title if name in METHODS else name


def strength_of(name: str, method: Method, given: float | None, default: float) -> float:
    """The strength of a run: the one that is given, or the default.

    Raises:
        ValueError: for a strength outside the method's range, a strength for a method that has none, or a missing
            strength for a method without a default.
    """
    if given and not method.has_strength:
        raise ValueError(f"expected no strength for {name}, which has none, got {given:g}: leave it out")
    if given is None and math.isnan(default):
        raise ValueError(f"expected a strength for {name}, which has no default, got none: give --strength")
    strength = float(default if given is None else given)  # because 1 and 1.0 must give the same folder
    check_range(f"a strength of {name}", strength, 0, method.largest_strength)
    return strength


def strength_text(name: str, strength: float, none: str = "-") -> str:
    """A strength as text, or ``none`` for a method without strength; a strength of 0 is shown as 0."""
    has_strength = METHODS[name].has_strength if name in METHODS else ":" in name
    return f"{strength:g}" if strength or has_strength else none


def check_options(method: str, entry: Method, options: Mapping[str, Any] | None) -> None:
    """Check that the method takes these options, apart from its strength, and values of their types.

    Raises:
        ValueError: for an unknown option (the message suggests the nearest one), or a value of another type.
    """
    parameters = inspect.signature(entry.mitigator).parameters
    names = [name for name in parameters if name not in ("network", "strength")]
    for name, value in (options or {}).items():
        parameter = parameters[known(name, names, f"keyword of {method}")]
        if not _fits(value, parameter.annotation):
            like = "left out" if parameter.default is None else f"like {parameter.default!r}"
            if get_origin(parameter.annotation) is Literal:
                like = " or ".join(map(repr, get_args(parameter.annotation)))
            where = getattr(entry.mitigator, "__name__", method)
            raise ValueError(f"expected {name} of {method} to be {like}, got {value!r}: see the docstring of {where}")


def _fits(value: Any, kind: Any) -> bool:
    """Whether a number, text or bool fits an annotation; without annotation, every value fits."""
    if get_origin(kind) in (Union, UnionType):
        return any(_fits(value, option) for option in get_args(kind))
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    kind = get_origin(kind) or kind
    if kind in (int, float):
        return type(value) in (int, kind)  # but not bool
    return kind in (Any, inspect.Parameter.empty) or not isinstance(kind, type) or isinstance(value, kind)
