"""What each parameter of a network does: it multiplies as a matrix, it is added as a vector, or it scales units.

Roles are found once, by the type of the module that owns the parameter, when a method is built. A step only looks them
up.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.parametrize import ParametrizationList

from supple.errors import known
from supple.population import Population
from supple.power_iteration import spectral_norm
from supple.sharding import is_sharded, reshard

Kind = Literal["matrix", "vector", "scale"]

_SCALE_NAMES = ("weight", "gamma", "gain", "scale")


@dataclass(frozen=True)
class Role:
    """The part that one parameter plays, and how to see it as matrices or as a vector.

    All methods take tensors with any number of leading dimensions before the parameter's own, such as the members of a
    population.
    """

    kind: Kind
    """``matrix`` (multiplicative), ``vector`` (additive) or ``scale`` (element-wise multiplicative)."""
    shape: tuple[int, ...]
    """The parameter's shape in one network."""
    layout: tuple[int, ...] = ()
    """For a matrix: the same numbers read as (groups, out, in, *kernel), where groups separate matrices lie in the
    tensor one after the other."""
    transposed: bool = False
    """Whether the layout is (groups, in, out, *kernel) instead, as in transposed convolutions."""
    side_by_side: bool = False
    """Whether transposed matrices without a kernel lie beside each other, the tensor being (in, groups, out)."""

    @property
    def sizes(self) -> tuple[int, int, int]:
        """How many matrices, and their rows and columns."""
        groups, first, second, *kernel = self.layout
        rows, inputs = (second, first) if self.transposed else (first, second)
        return groups, rows, inputs * math.prod(kernel)

    def matrices(self, tensor: Tensor) -> Tensor:
        """``(..., *shape)`` as its matrices ``(..., groups, out, in · kernel)``; a view where the layout allows.

        One matrix alone has no dimension for groups.
        """
        if self._is_plain:
            return tensor
        split, rows = self._split(tensor)
        return (
            (split.transpose(rows, rows + 1) if self.transposed else split)
            .flatten(rows + 1)
            .squeeze(rows - 1 if self.layout[0] == 1 else ())
        )

    def stretch(self, tensor: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """uᵀWv of each matrix, ``(..., groups)``, or ``(...)`` for one alone."""
        return ((self.matrices(tensor).to(u.dtype) @ v.unsqueeze(-1)).squeeze(-1) * u).sum(-1)

    def add_outer_(self, tensor: Tensor, u: Tensor, v: Tensor) -> None:
        """Add ``u vᵀ`` to each of the matrices in place, whatever the tensor's strides, with no temporary of its size.

        But for a layout that joins dimensions whose strides do not allow it: those matrices are a copy, written back.

        ``tensor`` is ``(..., *shape)``; ``u`` and ``v`` are ``(..., groups, out)`` and ``(..., groups, in · kernel)``,
        without the groups for one matrix alone.
        """
        if u.dtype != tensor.dtype:
            u, v = u.to(tensor.dtype), v.to(tensor.dtype)
        if self._is_plain:
            tensor.addcmul_(u.unsqueeze(-1), v.unsqueeze(-2))
            return
        split, rows = self._split(tensor)
        groups, first, second, *kernel = self.layout
        outer = (*split.shape[: rows - 1], groups)
        if self.transposed:
            u, v = u.view(*outer, 1, second, *(1,) * len(kernel)), v.view(*outer, first, 1, *kernel)
        else:
            u, v = u.view(*outer, first, 1, *(1,) * len(kernel)), v.view(*outer, 1, second, *kernel)
        self._write_back(tensor, split.addcmul_(u, v))

    def fold(self, matrices: Tensor, like: Tensor) -> Tensor:
        """What :meth:`matrices` makes of a tensor, brought back to the shape of that tensor, ``like``."""
        if self._is_plain:
            return matrices
        groups, first, second, *kernel = self.layout
        leading = self._leading(like)
        if not self.transposed:
            return matrices.reshape(like.shape)
        if self.side_by_side:
            return matrices.reshape(*leading, groups, second, first).movedim(-1, -3).reshape(like.shape)
        return (
            matrices.reshape(*leading, groups, second, first, *kernel)
            .transpose(-2 - len(kernel), -1 - len(kernel))
            .reshape(like.shape)
        )

    def multiply_(self, tensor: Tensor, factors: Tensor) -> None:
        """Multiply each of the matrices in place by its factor, ``(..., groups)``, or ``(...)`` for one alone."""
        split, rows = self._split(tensor)
        factors = factors.reshape(*split.shape[:rows], *(1,) * (split.ndim - rows))
        self._write_back(tensor, split.mul_(factors.to(split.dtype)))

    def vector(self, tensor: Tensor) -> Tensor:
        """``(..., *shape)`` as one vector ``(..., n)``; a piece of a sharded one as a shorter vector."""
        return tensor if len(self.shape) == 1 else tensor.reshape(*self._leading(tensor), -1)

    def spectral_norms(self, tensor: Tensor) -> Tensor:
        """The exact largest singular value of each matrix; a vector's norm; a scale's largest ``|gain|``."""
        if self.kind == "matrix":
            return spectral_norm(self.matrices(tensor))
        order = 2 if self.kind == "vector" else math.inf
        norms: Tensor = torch.linalg.vector_norm(self.vector(tensor), ord=order, dim=-1)
        return norms

    @property
    def _is_plain(self) -> bool:
        """Whether the tensor as it stands is one matrix."""
        return len(self.shape) == 2 and self.layout[0] == 1 and not self.transposed

    def _write_back(self, tensor: Tensor, split: Tensor) -> None:
        """Where the layout joins dimensions, whose strides may not allow it, what was split may be a copy."""
        groups, first, *rest = self.layout
        joins = [n for n in (groups * first, *rest) if n > 1] != [n for n in self.shape if n > 1]
        if joins and not self.side_by_side:
            tensor.copy_(split.reshape(tensor.shape))

    def _leading(self, tensor: Tensor) -> torch.Size:
        return tensor.shape[: tensor.ndim - len(self.shape)]

    def _split(self, tensor: Tensor) -> tuple[Tensor, int]:
        """It as (..., *layout), a view where its strides allow, and which of its dimensions follows the groups."""
        leading = self._leading(tensor)
        if self.side_by_side:
            return tensor.unflatten(-1, (self.layout[0], -1)).movedim(-2, -3), len(leading) + 1
        return tensor.reshape(*leading, *self.layout), len(leading) + 1


def find_roles(
    network: nn.Module | Population, overrides: Mapping[str, Kind | Role | None] | None = None
) -> dict[str, Role]:
    """The role of every parameter of ``network``, by name as in ``named_parameters()``; tied parameters count once.

    Integers, which a quantized network packs its weights into, have none.

    ==============================  ===============================================================================
    owner                           role
    ==============================  ===============================================================================
    Linear, Bilinear, embeddings    matrix (out, in); Bilinear's two inputs side by side
    convolutions                    matrix (out, in · kernel), one for each group; transposed ones turned round
    MultiheadAttention              matrix, one each for q, k, v
    RNN, LSTM, GRU and their cells  matrix, one for each gate
    batch, layer, group, ... norms  weight: scale
    PReLU                           vector: towards a gain of 1 it would become linear, towards 0 a ReLU
    whatever these have besides     vector
    Conv1D of transformers          matrix, stored as (in, out); in ``c_attn`` one each for q, k, v
    parametrizations                what the tensor is that they stand for; the gains of ``weight_norm``: scale
    any other type                  two or more dimensions: matrix (position tables and class tokens lose their leading
                                    ones); fewer, called weight, gamma, gain or scale: scale; else vector
    ==============================  ===============================================================================

    Args:
        network: any module, or a population; a role's shape is that of one member.
        overrides: parameter name to ``"matrix"``, ``"vector"``, ``"scale"``, a :class:`Role`, or None to leave it out.

    Raises:
        ValueError: for a lazy parameter without a shape, a complex one, an override that fits no parameter, or a
            population inside another module.
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
            raise ValueError(
                f"expected parameters with shapes, got the uninitialised {name!r}: pass a batch through first"
            )
        if parameter.is_complex():
            raise ValueError(
                f"expected real parameters, got {name!r} of {parameter.dtype}: say roles={{{name!r}: None}}"
            )
        if not parameter.is_floating_point():
            continue
        shape = tuple(parameter.shape[1:] if isinstance(network, Population) else parameter.shape)
        found = _role_of(name, module, modules, shape)
        roles[name] = _overridden(found, overrides[name], name) if name in overrides else found
    return roles


def describe(network: nn.Module | Population, roles: Mapping[str, Kind | Role | None] | None = None) -> str:
    """A table of every parameter: name, shape, role, number of matrices, and its present largest singular value.

    That of a sharded parameter is not shown: nothing here asks other ranks, which may not be looking.

    >>> print(describe(nn.Sequential(nn.Linear(2, 2, bias=False), nn.LayerNorm(2))))  # doctest: +ELLIPSIS
    parameter  shape  role    matrices  sigma_1
    0.weight   2x2    matrix         1    ...
    1.weight   2      scale          -    1.000
    1.bias     2      vector         -    0.000
    """
    found = find_roles(network, roles)
    rows = [("parameter", "shape", "role", "matrices", "sigma_1")]
    for name, parameter, _ in owned_parameters(network):
        shape = "x".join(map(str, parameter.shape)) or "scalar"
        if name not in found:
            rows.append((name, shape, "left out", "-", "-"))
            continue
        role = found[name]
        count = str(role.layout[0]) if role.kind == "matrix" else "-"
        if is_sharded(parameter):
            sigma = "sharded"
        else:
            sigma = f"{role.spectral_norms(parameter.detach()).amax().item() if parameter.numel() else 0.0:.3f}"
        rows.append((name, shape, role.kind, count, sigma))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        f"{name:{widths[0]}}  {shape:{widths[1]}}  {kind:{widths[2]}}  {count:>{widths[3]}}  {sigma:>{widths[4]}}"
        for name, shape, kind, count, sigma in rows
    )


def owned_parameters(network: nn.Module | Population) -> Iterator[tuple[str, nn.Parameter, nn.Module]]:
    """(name, parameter, the module that owns it), each parameter once."""
    seen = set()
    for path, module in _modules(network):
        for name, parameter in module.named_parameters(recurse=False):
            if parameter not in seen:
                seen.add(parameter)
                yield f"{path}.{name}" if path else name, parameter, module


def _modules(network: nn.Module | Population) -> Iterator[tuple[str, nn.Module]]:
    if not isinstance(network, nn.Module):
        raise TypeError(
            f"expected a module or a Population, got {type(network).__name__}: pass the network itself, not its "
            "parameters"
        )
    reshard(network)
    for name, module in (network.stacked if isinstance(network, Population) else network).named_modules():
        if isinstance(module, Population):
            raise ValueError(
                f"expected the population itself, got one inside {type(network).__name__}, where its members would be "
                "taken for one network: build on the population, one for each, and compile or wrap it afterwards"
            )
        yield name, module


def _role_of(path: str, module: nn.Module, modules: Mapping[str, nn.Module], shape: tuple[int, ...]) -> Role:
    """The role of the parameter ``path`` that ``module`` owns."""
    owner, _, name = path.rpartition(".")
    if isinstance(module, ParametrizationList):
        # What a parametrization computes a weight from plays the weight's role; weight norm has a gain a unit besides.
        weight_norm = isinstance(module[0], _WeightNorm)
        if weight_norm and name == "original0":
            return Role("scale", shape)
        if weight_norm or name == "original":
            owner, _, name = owner.rpartition(".")
            module = modules[owner.rpartition("parametrizations")[0].rstrip(".")]
    stem, _, suffix = name.rpartition("_")
    if stem.startswith("weight"):  # the same by the older functions, which put weight_g, weight_v, weight_orig beside
        held = module._parameters
        if suffix == "g" and f"{stem}_v" in held and sum(size > 1 for size in shape) <= 1:
            return Role("scale", shape)
        if suffix == "orig" or (suffix == "v" and f"{stem}_g" in held):
            name = stem
    match module:  # and the name: to read module.weight would compute it where it is parametrized
        case _ConvNd():
            if name == "weight":
                return _matrix(shape, module.groups, module.transposed)
        case nn.MultiheadAttention():
            if name == "in_proj_weight":
                return _matrix(shape, groups=3)
            if name in ("bias_k", "bias_v"):
                return Role("vector", shape)
        case nn.RNNBase() | nn.RNNCellBase():
            if len(shape) == 2:  # gates x hidden_size rows; an LSTM's output projection has fewer than hidden_size
                return _matrix(shape, groups=max(1, shape[0] // module.hidden_size))
        case nn.PReLU():
            return Role("vector", shape)
        case _NormBase() | nn.LayerNorm() | nn.GroupNorm() | nn.RMSNorm():  # _NormBase: batch and instance norms
            return Role("scale" if name == "weight" else "vector", shape)
        case nn.Linear() | nn.Bilinear() | nn.Embedding() | nn.EmbeddingBag():
            pass
        case _ if (getattr(module, "nx", None), getattr(module, "nf", None)) == shape:
            # Conv1D of Hugging Face's GPT-2: a linear layer whose weight is (in, out). Its attention has q, k and v, or
            # k and v, in one.
            groups = shape[1] // shape[0] if "c_attn" in owner.split(".") else 1
            return Role("matrix", shape, (groups, shape[0], shape[1] // groups), transposed=True, side_by_side=True)
        case _:
            if len(shape) <= 1 and name in _SCALE_NAMES:
                return Role("scale", shape)
            if len(shape) > 2:
                return Role("matrix", shape, _matrix(_without_leading_ones(shape)).layout)
    return _matrix(shape) if len(shape) >= 2 else Role("vector", shape)


def _matrix(shape: tuple[int, ...], groups: int = 1, transposed: bool = False) -> Role:
    rows, *rest = shape
    return Role("matrix", shape, (groups, rows // groups, *rest), transposed)


def _without_leading_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Position tables and class tokens carry them, (1, n, d), to broadcast over a batch; they are n one-hot rows."""
    while len(shape) > 2 and shape[0] == 1:
        shape = shape[1:]
    return shape


def _overridden(found: Role, override: Kind | Role | None, name: str) -> Role:
    if isinstance(override, Role):
        if override.shape != found.shape:
            raise ValueError(
                f"expected a role of shape {found.shape} for {name!r}, got {override.shape}: give it that shape"
            )
        return override
    if override == found.kind:
        return found
    if override == "matrix":
        return Role("matrix", found.shape, (1, *(1,) * (2 - len(found.shape)), *found.shape))
    if override in ("vector", "scale"):
        return Role(override, found.shape)
    raise ValueError(f"expected one of {', '.join(get_args(Kind))}, a Role or None for {name!r}, got {override!r}")
