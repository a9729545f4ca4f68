"""What is known of module types that are not torch's own: a table from type and parameter name to the role.

Nothing is imported for it: types are known by their names, as ``transformers`` and others use them.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import get_args

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from supple.kernels.power_iteration import without_autocast
from supple.network.roles import Kind, Role

Shape = tuple[int, ...]
NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
"""Torch's own; the first are batch and instance norms."""
Rule = Kind | Role | None | Callable[[Shape], Role | None]
"""What a parameter is: a kind, a role, None to leave it out, or a function of its shape that returns one of these."""
_Found = Callable[[nn.Module, str, Shape], Role | None]


def register(owner: type[nn.Module] | str, rules: Mapping[str, Rule]) -> None:
    """Say what the parameters of a module type of your own are, for every method that is built afterwards.

    Args:
        owner: the type, or its name; ``*`` in a name stands for any text. Subclasses are meant too.
        rules: by parameter name, which may contain ``*`` too: ``"matrix"``, ``"vector"``, ``"scale"``, None to leave it
            out, a :class:`Role`, or a function from the parameter's shape to a :class:`Role`.

    What is registered last is looked up first, before torch's own types and the table of known ones.

    Raises:
        ValueError: for a rule that is none of these, and for one of torch's own types.

    >>> class Experts(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.up, self.temperature = nn.Parameter(torch.ones(3, 5, 4)), nn.Parameter(torch.ones(()))
    >>> one_an_expert = lambda shape: Role("matrix", shape, layout=shape)  # (groups, out, in)
    >>> register(Experts, {"up": one_an_expert, "temperature": None})
    """
    if isinstance(owner, type) and is_torchs_own(owner):
        raise ValueError(
            f"expected a type of your own, got torch's {owner.__name__}: override single parameters by roles="
        )
    for name, rule in rules.items():
        if not (rule is None or rule in get_args(Kind) or isinstance(rule, Role) or callable(rule)):
            raise ValueError(
                f"expected 'matrix', 'vector', 'scale', a Role, a function of the shape or None for {name!r}, got "
                f"{rule!r}"
            )
    _TABLE[:0] = [(owner, {name: _found_by(rule) for name, rule in rules.items()})]


def role_by_rule(module: nn.Module, name: str, shape: Shape) -> Role | None:
    """The role of the parameter ``name`` of ``module`` by the table, or None where it says nothing."""
    for owner, rules in _TABLE:
        if any(_is_named(kind, owner) for kind in _own_types(module)):
            for pattern, found in rules.items():
                if fnmatchcase(name, pattern):
                    return found(module, name, shape) or Role("unknown", shape)
    return None


def plain_matrix(shape: Shape, groups: int = 1, transposed: bool = False) -> Role:
    """A tensor of which the first dimension holds the rows (transposed: the columns) of ``groups`` matrices."""
    rows, *rest = shape
    return Role("matrix", shape, (groups, rows // groups, *rest), transposed)


def role_of_kind(kind: Kind, shape: Shape) -> Role:
    """The usual role of a kind: a matrix has its rows along the first dimension that is not 1."""
    if kind != "matrix":
        return Role(kind, shape)
    if len(shape) < 2:
        return Role("matrix", shape, (1, *(1,) * (2 - len(shape)), *shape))
    return Role("matrix", shape, plain_matrix(_without_leading_ones(shape)).layout)


def gain(module: nn.Module, name: str, shape: Shape) -> Role | None:
    """A normalisation's gains, which are ``weight`` or ``1 + weight``: as the module itself treats 0 and 1.

    None where it treats them in another way, or cannot be called with one batch; a subclass of torch's norms then has
    gains as these have them.
    """
    offset = _offset(module, name, shape)
    if offset is None and not isinstance(module, NORMS):
        return None
    return Role("scale", shape, offset=offset or 0.0)


def _offset(module: nn.Module, name: str, shape: Shape) -> float | None:
    """0 where a norm multiplies by the parameter, 1 where it does by 1 + that, None where this cannot be told."""
    tensor = module._parameters.get(name)
    if tensor is None or len(shape) != 1:
        return None
    members, outputs = tensor.ndim - 1, []
    x = torch.linspace(-1, 2, 3 * shape[0]).view(3, -1)
    try:  # a copy, in evaluation mode: nothing of the network's own is touched
        twin = copy.deepcopy(module, {id(p): p for p in module.parameters()}).eval()
        for value in (0.0, 1.0):
            twin._parameters = {
                key: None if p is None else nn.Parameter(torch.full(p.shape[members:], value if key == name else 0.0))
                for key, p in module._parameters.items()
            }
            with torch.no_grad(), without_autocast(x), torch.random.fork_rng(range(torch.cuda.device_count())):
                outputs.append(_called(twin, x))
    except Exception:  # a forward pass of somebody's own fails in its own ways
        return None
    of_zero, of_one = outputs
    if not of_zero.any() and of_one.any():
        return 0.0
    return 1.0 if torch.allclose(of_one, 2 * of_zero, rtol=1e-3) else None


def _called(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What a norm makes of x, without its hooks; a gated one may want a gate besides."""
    forward = type(norm).forward
    try:
        output: torch.Tensor = forward(norm, x)
    except Exception:  # see above
        output = forward(norm, x, x)
    return output


def _found_by(rule: Rule) -> _Found:
    if isinstance(rule, Role):
        return lambda module, name, shape: rule
    if callable(rule):
        return lambda module, name, shape: rule(shape)
    return lambda module, name, shape: Role("other", shape) if rule is None else role_of_kind(rule, shape)


def _own_types(module: nn.Module) -> Iterator[type]:
    """The module's types from the most special one up to the first that is torch's own."""
    for kind in type(module).__mro__:
        if is_torchs_own(kind):
            return
        yield kind


def is_torchs_own(kind: type) -> bool:
    """Whether torch defines this module type."""
    return kind.__module__.startswith("torch.nn.")


def _is_named(kind: type, owner: type | str) -> bool:
    return fnmatchcase(kind.__name__, owner) if isinstance(owner, str) else kind is owner


def _without_leading_ones(shape: Shape) -> Shape:
    """Position tables and class tokens carry them, (1, n, d), to broadcast over a batch; they are n one-hot rows."""
    while len(shape) > 2 and shape[0] == 1:
        shape = shape[1:]
    return shape


def _table(module: nn.Module, name: str, shape: Shape) -> Role | None:
    """One row for each position, acting on one-hot vectors."""
    return role_of_kind("matrix", shape) if len(_without_leading_ones(shape)) == 2 else None


def _experts(transposed: bool) -> _Found:
    """One matrix an expert, (experts, out, in) or transposed (experts, in, out); one bias vector an expert."""

    def found(module: nn.Module, name: str, shape: Shape) -> Role | None:
        if len(shape) == 3:
            return Role("matrix", shape, shape, transposed)
        return Role("vector", shape, shape) if len(shape) == 2 and name.endswith("bias") else None

    return found


_NORM: dict[str, _Found] = {**dict.fromkeys(("weight", "gamma"), gain), "bias": _found_by("vector")}
_TOKENS = dict.fromkeys(("*_token", "*_tokens", "*position_embedding*", "*pos_embed*", "time_embeddings"), _table)

_TABLE: list[tuple[type | str, Mapping[str, _Found]]] = [
    # Root mean square norms of Llama, Mistral, Qwen, T5, Gemma (1 + weight) and their kin; also gated and LayerNorms.
    ("*RMSNorm", _NORM),
    ("*RMSNormGated", _NORM),
    ("*LayerNorm", _NORM),
    ("*LayerNorm1P", _NORM),
    # Mixtures of experts: these keep (experts, in, out), Mixtral, Qwen, DeepSeek and the others (experts, out, in).
    ("GptOssExperts", {"*": _experts(transposed=True)}),
    ("OpenAIPrivacyFilterExperts", {"*": _experts(transposed=True)}),
    ("Llama4TextExperts", {"*": _experts(transposed=True)}),
    ("AriaExperts", {"*": _experts(transposed=True)}),
    ("*Experts", {"*": _experts(transposed=False)}),
    # Mamba and its kin: softplus makes the size of a step in time of this projection, whose biases begin at -7 to -2.
    ("*Mixer", {"dt_proj.*": _found_by(None)}),
    ("Mamba*", {"dt_proj.*": _found_by(None)}),
    # T5 and its kin: numbers that are added to attention scores, by distance and head.
    ("*Attention", {"relative_attention_bias.weight": _found_by(None)}),
    # Vision transformers of transformers, timm and torchvision.
    ("*Embeddings", _TOKENS),
    ("VisionTransformer", _TOKENS),
    ("Encoder", _TOKENS),
]
