"""The role of one parameter, from the type of the module that owns it and its name there."""

import re
from collections.abc import Mapping

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import ParametrizationList

from supple.network.role_rules import NORMS, gain, plain_matrix, role_by_rule
from supple.network.roles import Role
from supple.network.trace import runs_torchs_forward

_WEIGHT_NAMES = ("weight", "W", "kernel")
_WEIGHT_SUFFIXES = ("_weight", "_proj")
_FUSED = ("qkv", "qkv_proj", "c_attn", "Wqkv", "to_qkv")
"""Names of linear layers whose rows are those of q, then of k, then of v, if there are three times as many as columns;
in timm, nanoGPT, Phi-3, ModernBERT and others."""
_OF_ATTENTION = dict.fromkeys(("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"), 2)
_OF_ATTENTION |= {"in_proj_bias": 1, "bias_k": 3, "bias_v": 3}
"""The number of dimensions of the parameters of ``nn.MultiheadAttention``."""
_NORMALIZED = ("_SpectralNorm", "SpectralNormalization")
"""Parametrizations after which the largest singular value is one already."""
_WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module")
"""What a layer is called inside torch.compile and checkpoint_wrapper."""
_OF_RNNS = re.compile(r"(weight|bias)_(ih|hh|hr)(_l\d+(_reverse)?)?")


def role_of(path: str, module: nn.Module, modules: Mapping[str, nn.Module], shape: tuple[int, ...]) -> Role:
    """The role of the parameter ``path`` that ``module`` owns."""
    owner, _, name = path.rpartition(".")
    held = {*module._parameters.keys(), *module._buffers.keys()}  # lists in what torch.jit has scripted
    if role := _role_of_source(module, name, held, shape):
        return role
    if name.endswith("_orig") and f"{name[:-5]}_mask" in held:  # pruning keeps the weight under another name
        name = name[:-5]
    parts = owner.split(".")
    while parts and parts[-1] in _WRAPPERS:
        parts.pop()
    parent, _, own = ".".join(parts).rpartition(".")
    for holder, name_in_it in ((module, name), (modules[parent] if own else None, f"{own}.{name}")):
        if holder is not None and (role := role_by_rule(holder, name_in_it, shape)) is not None:
            return role
    dimensions = _dimensions(module, name)
    if dimensions is not None and len(shape) != dimensions:
        if len(shape) < dimensions:  # a subclass with a weight of another kind, such as a diagonal
            return Role("unknown", shape)
        _refuse_stacked(path, module, dimensions, shape)
    if dimensions is None and not _is_conv1d(module, name):
        is_weight = name in _WEIGHT_NAMES or name.endswith(_WEIGHT_SUFFIXES)
        known_kind = len(shape) == 2 and is_weight and not _is_in_a_stack(module, name, shape)
        return plain_matrix(shape) if known_kind else Role("unknown", shape)
    return _role_in_torchs(module, owner, own, name, shape)


def _role_of_source(module: nn.Module, name: str, held: set[str], shape: tuple[int, ...]) -> Role | None:
    """The role of a parameter that a weight is computed from; None of any other.

    It is not the weight: pulled towards one, it would change the weight in ways that depend on the parametrization.
    """
    if isinstance(module, ParametrizationList):
        return Role("other" if type(module[0]).__name__ in _NORMALIZED else "unknown", shape)
    # torch's older functions put weight_g, weight_v and weight_orig into the module itself
    stem, _, suffix = name.rpartition("_")
    if suffix == "orig" and f"{stem}_u" in held:
        return Role("other", shape)
    if suffix in ("g", "v") and {f"{stem}_g", f"{stem}_v"} <= held:
        return Role("unknown", shape)
    return None


def _is_conv1d(module: nn.Module, name: str) -> bool:
    """Whether it is a parameter of GPT-2's linear layer, whose weight is (in, out)."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf") and name in ("weight", "bias")


def _role_in_torchs(module: nn.Module, owner: str, own: str, name: str, shape: tuple[int, ...]) -> Role:
    """The role of the parameter ``name`` of one of torch's modules, or of a ``Conv1D``."""
    match module:  # matched by name: reading module.weight of a parametrized module computes it
        case _ if _is_conv1d(module, name):
            if len(shape) == 2:  # in attention one weight holds q, k and v, or k and v
                groups = shape[1] // shape[0] if "c_attn" in owner.split(".") else 1
                layout = groups, shape[0], shape[1] // groups
                return Role("matrix", shape, layout, transposed=True, side_by_side=True)
        case _ConvNd():
            if name == "weight":
                return plain_matrix(shape, module.groups, module.transposed)
        case nn.MultiheadAttention():
            if name == "in_proj_weight":
                return plain_matrix(shape, groups=3)
            if name in ("bias_k", "bias_v"):
                return Role("vector", shape)
        case nn.RNNBase() | nn.RNNCellBase():
            if len(shape) == 2:  # gates x hidden_size rows; an LSTM's output projection has fewer than hidden_size
                return plain_matrix(shape, groups=max(1, shape[0] // module.hidden_size))
        case nn.PReLU():
            return Role("vector", shape)
        case _ if isinstance(module, NORMS):
            usual = Role("scale" if name == "weight" else "vector", shape)
            return usual if runs_torchs_forward(module) or name != "weight" else gain(module, name, shape) or usual
        case nn.Linear() if own in _FUSED and len(shape) == 2 and shape[0] == 3 * shape[1]:
            return plain_matrix(shape, groups=3)
    return plain_matrix(shape) if len(shape) >= 2 else Role("vector", shape)


def _dimensions(module: nn.Module, name: str) -> int | None:
    """The number of dimensions of a parameter of one of torch's modules; None if they have none with this name."""
    weight, bias = 2, 1
    match module:
        case nn.MultiheadAttention():
            return _OF_ATTENTION.get(name)
        case nn.RNNBase() | nn.RNNCellBase():
            name = name.partition("_")[0] if _OF_RNNS.fullmatch(name) else ""
        case _ConvNd():
            weight = 2 + len(module.kernel_size)
        case nn.Bilinear():
            weight = 3
        case nn.Linear() | nn.Embedding() | nn.EmbeddingBag():
            pass
        case nn.LayerNorm() | nn.RMSNorm():
            weight = bias = len(module.normalized_shape)
        case _ if isinstance(module, (*NORMS, nn.PReLU)):
            weight = 1
        case _:
            return None
    return {"weight": weight, "bias": bias}.get(name)


def _is_in_a_stack(module: nn.Module, name: str, shape: tuple[int, ...]) -> bool:
    """Whether a two-dimensional parameter may be a stack of vectors, as in parameter lists or with stacked matrices."""
    if isinstance(module, nn.ParameterList | nn.ParameterDict):
        return True
    held = {key: p.shape for key, p in module._parameters.items() if p is not None}
    members = len(held.get(name, shape)) - len(shape)
    others = (other[members:] for other in held.values())
    return any(len(other) > 2 and other[0] == shape[0] for other in others)


def _refuse_stacked(path: str, module: nn.Module, usual: int, shape: tuple[int, ...]) -> None:
    """Refuse ensembles from ``torch.func.stack_module_state``, which adds a dimension for the members."""
    raise ValueError(
        f"expected {path!r} of a {type(module).__name__} with {usual} dimensions, got {shape}: for networks stacked by "
        "torch.func.stack_module_state, build a supple.Population instead; if the module type is your own and has such "
        "weights, register their roles with supple.roles.register()"
    )
