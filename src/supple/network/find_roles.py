"""Finds the role of each parameter of a network, from the type of the module that owns it, when a method is built.

A training step only looks the roles up.
"""

from collections.abc import Iterator, Mapping
from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from supple.errors import known
from supple.kernels.sharding import is_sharded, reshard
from supple.network.module_roles import role_of
from supple.network.population import Population, members_of, module_of
from supple.network.role_rules import role_of_kind
from supple.network.roles import Kind, Overrides, Role

_ORDINARY = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def find_roles(network: nn.Module | Population, overrides: Overrides | None = None) -> dict[str, Role]:
    """The role of every parameter of ``network``, by name as in ``named_parameters()``; tied parameters count once.

    The packed weights of a quantized network (integers, frozen tensors of other types) have no role.

    ==============================  ===============================================================================
    owner                           role
    ==============================  ===============================================================================
    Linear, Bilinear, embeddings    matrix (out, in); Bilinear's two inputs side by side; T5's embedding of relative
                                    positions: other
    convolutions                    matrix (out, in · kernel), one for each group; for transposed ones too
    MultiheadAttention              matrix, one each for q, k, v; so is a Linear named ``qkv``, ``qkv_proj``,
                                    ``to_qkv``, ``Wqkv`` or ``c_attn`` with three times as many rows as columns
    RNN, LSTM, GRU and their cells  matrix, one for each gate
    batch, layer, group, ... norms  weight: scale; also other libraries' types named RMSNorm or LayerNorm, if the gain
                                    is the weight or 1 + weight
    PReLU                           vector: pulled to 0 it becomes a ReLU; as a scale, pulled to 1, it would be linear
    their biases                    vector
    Conv1D of transformers          matrix, stored as (in, out); in ``c_attn`` one each for q, k, v
    experts (types ``...Experts``)  three dimensions: one matrix per expert; biases: one vector per expert
    ``...Embeddings`` and others    position tables and class tokens: matrix, without leading dimensions of 1
    of vision transformers
    parametrizations                what a weight is computed from is unknown, for ``weight_norm`` too; for spectral
                                    normalization: other
    types from :func:`register`     as registered
    any other type, and what a      two dimensions and the name of a weight (``weight``, ``W``, ``kernel``,
    subclass of these has added     ``..._weight``, ``..._proj``): matrix; all else: unknown
    ==============================  ===============================================================================

    Args:
        network: any module, or a population; a role's shape is that of one member.
        overrides: parameter name to ``"matrix"``, ``"vector"``, ``"scale"``, a :class:`Role`, or None to leave it out.

    Raises:
        ValueError: for a lazy parameter without a shape, a complex parameter, an override that fits no parameter, a
            population inside another module, or an ensemble stacked into the parameters of one network.
    """
    overrides = dict(overrides or {})
    parameters = {name: (parameter, module) for name, parameter, module in owned_parameters(network)}
    for name in overrides:
        known(name, parameters, "parameter of this network")
    modules = dict(_modules(network))
    roles = {}
    for name, (parameter, module) in parameters.items():
        if name in overrides and overrides[name] is None:
            continue
        if is_lazy(parameter):
            raise ValueError(f"expected parameters with shapes, got the uninitialized {name!r}: run one batch first")
        if parameter.is_complex():
            raise ValueError(
                f"expected real parameters, got {name!r} of {parameter.dtype}: pass roles={{{name!r}: None}}"
            )
        if _is_packed(parameter):
            continue
        shape = tuple(parameter.shape[len(members_of(network)) :])
        override = overrides.get(name)
        if isinstance(override, Role):
            if override.shape != shape:
                raise ValueError(
                    f"expected a role of shape {shape} for {name!r}, got {override.shape}: give it that shape"
                )
            roles[name] = override
        else:
            role = role_of(name, module, modules, shape)
            roles[name] = role if override in (None, role.kind) else _of_kind(override, shape, name)
    return roles


def describe(network: nn.Module | Population, roles: Overrides | None = None) -> str:
    """A table of all parameters: name, shape, role, number of matrices, and current largest singular value.

    The value of a sharded parameter is not shown: computing it needs all ranks, and perhaps only one calls this.

    >>> print(describe(nn.Sequential(nn.Linear(2, 2, bias=False), nn.LayerNorm(2))))  # doctest: +ELLIPSIS
    parameter  shape  role    matrices  sigma_1
    0.weight   2x2    matrix         1    ...
    1.weight   2      scale          -    1.000
    1.bias     2      vector         -    0.000
    """
    return table(network, roles)


def table(
    network: nn.Module | Population,
    roles: Overrides | None = None,
    targets: Mapping[str, str] | None = None,
) -> str:
    """What :func:`describe` returns, with a column of targets if they are given."""
    by_name, pruned = find_roles(network, roles), masks(network)
    rows = [("parameter", "shape", "role", "matrices", "sigma_1", "target")]
    for name, parameter, _ in owned_parameters(network):
        shape = "x".join(map(str, parameter.shape)) or "scalar"
        role = by_name.get(name)
        if role is None or role.kind in ("other", "unknown"):
            rows.append((name, shape, "left out", "-", "-", "-"))
            continue
        count = str(role.layout[0]) if role.kind == "matrix" else "-"
        if is_sharded(parameter):
            sigma = "sharded"
        else:
            present = parameter.detach() * pruned[name] if name in pruned else parameter.detach()
            sigma = f"{role.spectral_norms(present).amax().item() if parameter.numel() else 0.0:.3f}"
        rows.append((name, shape, role.kind, count, sigma, (targets or {}).get(name, "-")))
    width = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = ("", "", "", ">", ">", ">")
    return "\n".join(
        "  ".join(f"{cell:{right[i]}{width[i]}}" for i, cell in enumerate(row[: 5 if targets is None else 6]))
        for row in rows
    )


def masks(network: nn.Module | Population) -> dict[str, Tensor]:
    """The masks of :mod:`torch.nn.utils.prune`, by the parameter's name."""
    by_name = {}
    for name, _, module in owned_parameters(network):
        stem, _, suffix = name.rpartition(".")[2].rpartition("_")
        mask = module._buffers.get(f"{stem}_mask") if suffix == "orig" else None
        if mask is not None:
            by_name[name] = mask
    return by_name


def owned_parameters(network: nn.Module | Population) -> Iterator[tuple[str, nn.Parameter, nn.Module]]:
    """(name, parameter, the module that owns it), each parameter once."""
    seen = set()
    for path, module in _modules(network):
        for name, parameter in module.named_parameters(recurse=False):
            if parameter not in seen:
                seen.add(parameter)
                yield f"{path}.{name}" if path else name, parameter, module


def output_matrix(network: nn.Module | Population, roles: Mapping[str, Role]) -> str | None:
    """The name of the matrix in the network's last layer; one that is tied to an earlier layer has its name there."""
    names = {parameter: name for name, parameter, _ in owned_parameters(network)}
    places = (names[parameter] for _, parameter in module_of(network).named_parameters(remove_duplicate=False))
    matrices = [name for name in places if name in roles and roles[name].kind == "matrix"]
    return matrices[-1] if matrices else None


def owner_of(name: str) -> str:
    """The name of the module that owns a parameter; for a parametrization's parameter, the parametrized module."""
    return f".{name}".rpartition(".")[0].partition(".parametrizations.")[0].removeprefix(".")


def weight_of(name: str) -> str:
    """The name of the tensor that a parametrization computes from this parameter; of any other parameter, its own."""
    owner, inside, rest = f".{name}".partition(".parametrizations.")
    return f"{owner}.{rest.partition('.')[0]}".removeprefix(".") if inside else name


def _modules(network: nn.Module | Population) -> Iterator[tuple[str, nn.Module]]:
    if not isinstance(network, nn.Module):
        raise TypeError(
            f"expected a module or a Population, got {type(network).__name__}: pass the network itself, not its "
            "parameters"
        )
    reshard(network)
    for name, module in module_of(network).named_modules():
        if isinstance(module, Population):
            raise ValueError(
                f"expected the population itself, got one inside {type(network).__name__}, where its members would be "
                "taken for one network: build on the population, one for each, and compile or wrap it afterwards"
            )
        yield name, module


def _is_packed(parameter: nn.Parameter) -> bool:
    """Whether it holds packed data of a quantized network instead of plain numbers; it is then left out."""
    plain = parameter.dtype in _ORDINARY
    wrapped = is_traceable_wrapper_subclass(parameter) and not is_sharded(parameter)
    return not parameter.is_floating_point() or (not parameter.requires_grad and (wrapped or not plain))


def _of_kind(kind: Kind | None, shape: tuple[int, ...], name: str) -> Role:
    if kind is None or kind not in get_args(Kind):
        raise ValueError(f"expected {', '.join(get_args(Kind))}, a Role or None for {name!r}, got {kind!r}: pass one")
    return role_of_kind(kind, shape)
