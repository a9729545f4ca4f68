"""Roles for module types that are not torch's own: a table from type and parameter name to the role.

It imports no other library: types of ``transformers`` and others are recognized by their names.
"""

from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import get_args

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from supple.kernels.power_iteration import without_autocast
from supple.network.population import copy_of
from supple.network.roles import Kind, Role

Shape = tuple[int, ...]
NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
"""Torch's own norms; ``_NormBase`` is the base of batch and instance norms."""
Rule = Kind | Role | None | Callable[[Shape], Role | None]
"""A parameter's rule: a kind, a role, None to leave it out, or a function from its shape to a role or None."""
_Found = Callable[[nn.Module, str, Shape], Role | None]


def register(owner: type[nn.Module] | str, rules: Mapping[str, Rule]) -> None:
    """Set the roles of your own module type's parameters, for every method that is built afterwards.

    Args:
        owner: the type, or its name; ``*`` in a name matches any text. Subclasses are included.
        rules: by parameter name, which may contain ``*`` too: ``"matrix"``, ``"vector"``, ``"scale"``, None to leave it
            out, a :class:`Role`, or a function from the parameter's shape to a :class:`Role`. ``"inner.weight"`` is the
            weight of a module inside; ``"*"`` alone does not match it.

    The last registered rule has priority, also over torch's own types and the built-in table.

    Raises:
        ValueError: for a rule that is none of these, and if the type is one of torch's own.

    >>> class Experts(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.up, self.temperature = nn.Parameter(torch.ones(3, 5, 4)), nn.Parameter(torch.ones(()))
    >>> one_an_expert = lambda shape: Role("matrix", shape, layout=shape)  # (groups, out, in)
    >>> register(Experts, {"up": one_an_expert, "temperature": None})
    """
    if isinstance(owner, type) and is_torchs_type(owner):
        raise ValueError(
            f"expected a type of your own, got torch's {owner.__name__}: pass roles= for single parameters"
        )
    for name, rule in rules.items():
        if not (rule is None or rule in get_args(Kind) or isinstance(rule, Role) or callable(rule)):
            raise ValueError(
                f"expected 'matrix', 'vector', 'scale', a Role, a function of the shape or None for {name!r}, got "
                f"{rule!r}: pass one of these"
            )
    _TABLE[:0] = [(owner, {name: _found_by(rule) for name, rule in rules.items()})]


def role_by_rule(module: nn.Module, name: str, shape: Shape) -> Role | None:
    """The role of the parameter ``name`` of ``module`` from the table, or None if the table has no rule for it."""
    for owner, rules in _TABLE:
        if any(_is_named(kind, owner) for kind in _own_types(module)):
            for pattern, rule in rules.items():
                if fnmatchcase(name, pattern) and name.count(".") == pattern.count("."):
                    return rule(module, name, shape) or Role("unknown", shape)
    return None


def plain_matrix(shape: Shape, groups: int = 1, transposed: bool = False) -> Role:
    """The role of a tensor whose first dimension holds the rows (transposed: the columns) of ``groups`` matrices."""
    rows, *rest = shape
    return Role("matrix", shape, (groups, rows // groups, *rest), transposed)


def role_of_kind(kind: Kind, shape: Shape) -> Role:
    """The default role of a kind: a matrix has its rows along the first dimension that is not 1."""
    if kind != "matrix":
        return Role(kind, shape)
    if len(shape) < 2:
        return Role("matrix", shape, (1, *(1,) * (2 - len(shape)), *shape))
    return Role("matrix", shape, plain_matrix(_without_leading_ones(shape)).layout)


def gain(module: nn.Module, name: str, shape: Shape) -> Role | None:
    """The role of a norm's gains: ``weight`` or ``1 + weight``, found by calling the module with weights 0 and 1.

    None if it uses the weight in another way, or cannot be called with one batch. A subclass of torch's norms is then
    treated like torch's norms.
    """
    offset = _offset(module, name, shape)
    if offset is None and not isinstance(module, NORMS):
        return None
    return Role("scale", shape, offset=offset or 0.0)


def _offset(module: nn.Module, name: str, shape: Shape) -> float | None:
    """0 if a norm multiplies by the parameter, 1 if it multiplies by 1 + parameter, None if neither is found."""
    tensor = module._parameters.get(name)
    if tensor is None or len(shape) != 1:
        return None
    members, outputs = tensor.ndim - 1, []
    x = torch.linspace(-1, 2, 3 * shape[0]).view(3, -1)
    try:  # a copy, in evaluation mode, so that the network does not change
        twin = copy_of(module, shared=module.parameters()).eval()
        for value in (0.0, 1.0):
            twin._parameters = {
                key: None if p is None else nn.Parameter(torch.full(p.shape[members:], value if key == name else 0.0))
                for key, p in module._parameters.items()
            }
            with torch.no_grad(), without_autocast(x), torch.random.fork_rng(range(torch.cuda.device_count())):
                outputs.append(_called(twin, x))
    except Exception:  # a user's forward pass may raise any error
        return None
    of_zero, of_one = outputs
    if not of_zero.any() and of_one.any():
        return 0.0
    return 1.0 if torch.allclose(of_one, 2 * of_zero, rtol=1e-3) else None


def _called(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """A norm's output for x, without its hooks; a gated norm also needs a gate."""
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
    """The module's classes, from the most derived one up to the first that torch defines."""
    for kind in type(module).__mro__:
        if is_torchs_type(kind):
            return
        yield kind


def is_torchs_type(kind: type) -> bool:
    """Whether torch defines this module type."""
    return kind.__module__.startswith("torch.nn.")


def _is_named(kind: type, owner: type | str) -> bool:
    return fnmatchcase(kind.__name__, owner) if isinstance(owner, str) else kind is owner


def _without_leading_ones(shape: Shape) -> Shape:
    """Remove the leading ones of position tables and class tokens: (1, n, d), for the batch, is a matrix of n rows."""
    while len(shape) > 2 and shape[0] == 1:
        shape = shape[1:]
    return shape


def _positions(module: nn.Module, name: str, shape: Shape) -> Role | None:
    """A table with one row per position: a matrix that acts on one-hot vectors."""
    return role_of_kind("matrix", shape) if len(_without_leading_ones(shape)) == 2 else None


def _experts(transposed: bool) -> _Found:
    """One matrix per expert, (experts, out, in) or transposed (experts, in, out); one bias vector per expert."""

    def rule(module: nn.Module, name: str, shape: Shape) -> Role | None:
        if len(shape) == 3:
            return Role("matrix", shape, shape, transposed)
        return Role("vector", shape, shape) if len(shape) == 2 and name.endswith("bias") else None

    return rule


_NORM: dict[str, _Found] = {**dict.fromkeys(("weight", "gamma"), gain), "bias": _found_by("vector")}
_TOKENS = dict.fromkeys(("*_token", "*_tokens", "*position_embedding*", "*pos_embed*", "time_embeddings"), _positions)

_TABLE: list[tuple[type | str, Mapping[str, _Found]]] = [
    # Root mean square norms of Llama, Mistral, Qwen, T5, Gemma (1 + weight) and similar; also gated, and LayerNorms.
    ("*RMSNorm", _NORM),
    ("*RMSNormGated", _NORM),
    ("*LayerNorm", _NORM),
    ("*LayerNorm1P", _NORM),
    # Mixtures of experts: GPT-OSS stores (experts, in, out), Mixtral, Qwen, DeepSeek and others (experts, out, in).
    ("GptOssExperts", {"*": _experts(transposed=True)}),
    ("OpenAIPrivacyFilterExperts", {"*": _experts(transposed=True)}),
    ("Llama4TextExperts", {"*": _experts(transposed=True)}),
    ("AriaExperts", {"*": _experts(transposed=True)}),
    ("*Experts", {"*": _experts(transposed=False)}),
    # Mamba and similar: the time step is softplus of this projection, whose biases start at -7 to -2.
    ("*Mixer", {"dt_proj.*": _found_by(None)}),
    ("Mamba*", {"dt_proj.*": _found_by(None)}),
    # q, k and v in one matrix, whose rows take turns by head: they can't be cut out as blocks.
    ("CodeGenAttention", {"qkv_proj.weight": _found_by("matrix")}),
    ("GPTBigCodeAttention", {"c_attn.weight": _found_by("matrix")}),
    ("MiniMaxLightningAttention", {"qkv_proj.weight": _found_by("matrix")}),
    # peft's rotations, stored as the entries above the diagonal of skew-symmetric matrices.
    ("OFTRotationModule", {"*": _found_by(None)}),
    # T5, LayoutLM, WavLM and similar: numbers that are added to attention scores, by distance and head.
    ("*", {"*relative_attention_bias.weight": _found_by(None)}),
    ("*", {"rel_pos*_bias.weight": _found_by(None), "rel_attn_embed.weight": _found_by(None)}),
    # Vision transformers in transformers, timm and torchvision.
    ("*Embeddings", _TOKENS),
    ("VisionTransformer", _TOKENS),
    ("Encoder", _TOKENS),
]
