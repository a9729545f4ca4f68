"""Follows the output of each layer to the layers that receive it."""

import builtins
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.parallel import DistributedDataParallel

from supple.network.trace import Trace, runs_torchs_forward

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
"""Layers whose units are separate: each has its own row of the weight."""
_SHARED = nn.RNNBase | nn.RNNCellBase | nn.MultiheadAttention | nn.Bilinear | _ConvTransposeNd

_ELEMENTWISE_MODULES = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus),
    *(nn.Softsign, nn.Softshrink, nn.Hardshrink, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Tanh, nn.Tanhshrink),
    *(nn.Sigmoid, nn.LogSigmoid, nn.Threshold, nn.Identity),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout),
)
_ELEMENTWISE_FUNCTIONS = """
    relu relu_ relu6 leaky_relu leaky_relu_ rrelu elu elu_ selu celu gelu silu mish softplus softsign softshrink
    hardshrink hardtanh hardswish hardsigmoid tanh tanhshrink sigmoid logsigmoid threshold dropout dropout1d
    dropout2d dropout3d alpha_dropout feature_alpha_dropout abs neg pow square sqrt exp sin cos clamp clamp_min
    clamp_max clip mul add sub truediv div imul iadd isub itruediv contiguous clone to float half bfloat16
""".split()  # noqa: SIM905 - a list of words reads better so
_SHAPE = ("shape", "device", "dtype", "ndim", "size", "dim", "numel")
_POOLS = {
    f"{kind}Pool{dims}d": dims for kind in ("Max", "Avg", "AdaptiveMax", "AdaptiveAvg", "LP") for dims in (1, 2, 3)
}
_POOL_FUNCTIONS = {
    f"{kind}_pool{dims}d": dims for kind in ("max", "avg", "adaptive_max", "adaptive_avg", "lp") for dims in (1, 2, 3)
}


class Stop(Exception):  # noqa: N818 - a reason, seldom an error
    """The reason why a layer's units cannot be replaced one by one."""


@dataclass(frozen=True)
class Path:
    """The layer that computes units, the norms after it that have entries per unit, and the layers that it feeds."""

    layer: Layer
    norms: tuple[nn.Module, ...]
    consumers: tuple[Layer, ...]


def outer_size(layer: Layer) -> int:
    """The number of units of a layer, from its attributes, because a population's tensors have one more dimension."""
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def inner_size(layer: Layer) -> int:
    """The number of inputs of each of a layer's units."""
    return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels // layer.groups


def unwrapped(network: nn.Module) -> nn.Module:
    """The user's own module inside wrappers that compile or distribute it."""
    while True:
        if isinstance(network, DistributedDataParallel | nn.DataParallel):
            network = network.module
        elif isinstance(inner := getattr(network, "_orig_mod", None), nn.Module):
            network = inner
        else:
            return network


def paths(network: nn.Module) -> Iterator[tuple[nn.Module, Path | Stop]]:
    """For every layer with a matrix: the path of its units, or the reason why they cannot be replaced."""
    graph = _Graph(network)
    for module in network.modules():
        if isinstance(module, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer) and runs_torchs_forward(module):
            # torch.fx does not trace inside torch's own modules; the inside of these is known.
            graph.known[module.linear1] = Path(module.linear1, (), (module.linear2,))
            graph.known[module.linear2] = Stop("is added to the residual stream")
    for module in network.modules():
        if isinstance(module, Layer):
            try:
                yield module, graph.follow(module)
            except Stop as stop:
                yield module, stop
        elif isinstance(module, _SHARED):
            yield module, Stop(f"the units of a {type(module).__name__} are shared inside it")


def entries_a_unit(norm: nn.Module, size: int, trailing: int = 0) -> int | None:
    """How many entries a norm layer holds for each of ``size`` units, or None if it does not keep units separate.

    ``trailing`` is the number of dimensions after the units' dimension in its input.
    """
    match norm:
        case _NormBase():
            entries = norm.num_features
        case nn.GroupNorm():
            entries = norm.num_channels
        case nn.LayerNorm() | nn.RMSNorm():
            if len(norm.normalized_shape) <= trailing:
                return 0  # it normalizes each unit by itself; its gains belong to places
            if len(norm.normalized_shape) > trailing + 1:
                return None
            entries = norm.normalized_shape[0]
        case _:
            return None
    return entries // size if entries % size == 0 else None


class _Layout(NamedTuple):
    trailing: int
    """The number of dimensions after the units' dimension."""
    flat: bool = False
    """Whether these are flattened into the units' dimension, so that each unit has several adjacent entries."""


class _Graph:
    """The traced network: which module feeds which."""

    def __init__(self, network: nn.Module) -> None:
        self.known: dict[nn.Module, Path | Stop] = {}
        self._names = {id(module): name for name, module in network.named_modules()}
        self._owners = Counter(
            id(parameter) for module in network.modules() for parameter in module._parameters.values()
        )
        trace = Trace(network)
        self._nodes, self._modules = trace.nodes, trace.modules
        self._hidden = {id(part) for module in trace.opaque for part in module.modules()}
        self._calls: dict[int, list[fx.Node]] = {}
        for node in self._nodes:
            if node.op == "call_module":
                self._calls.setdefault(id(self._modules[str(node.target)]), []).append(node)
        self._read = {str(node.target) for node in self._nodes if node.op == "get_attr"}

    def follow(self, layer: Layer) -> Path:
        """The path of a layer's units; raises :class:`Stop` with the reason if there is none."""
        known_path = self.known.get(layer)
        if isinstance(known_path, Stop):
            raise known_path
        self._check_replaceable(layer)
        if known_path is not None:
            return known_path
        calls = self._calls.get(id(layer), [])
        if not calls:
            raise Stop("is not called by itself in the forward pass")
        size = outer_size(layer)
        flow = {calls[0]: _Layout(0 if isinstance(layer, nn.Linear) else len(layer.kernel_size))}
        norms: list[nn.Module] = []
        consumers: dict[Layer, fx.Node] = {}
        for node in self._nodes:
            inputs = [argument for argument in node.all_input_nodes if argument in flow]
            if not inputs or _reads_shape(node):
                continue
            if node.op == "output":
                raise Stop("reaches the network's output")
            others = (other for other in node.all_input_nodes if not _is_number(other))
            if any(flow.get(other) != flow[inputs[0]] for other in others):
                raise Stop(f"its units are combined with others in {_name(node)}")
            layout, module = flow[inputs[0]], self._modules.get(str(node.target)) if node.op == "call_module" else None
            if isinstance(module, Layer):
                self._check_consumer(module, size, layout)
                consumers[module] = inputs[0]
            elif module is not None:
                flow[node] = self._through_module(module, size, layout, norms)
            else:
                flow[node] = _through_function(node, layout)
        if not consumers:
            raise Stop("feeds no layer")
        if len(set(consumers.values())) > 1:
            raise Stop("the layers that it feeds receive different activations")
        return Path(layer, tuple(norms), tuple(consumers))

    def _check_replaceable(self, module: nn.Module) -> None:
        name = self._names[id(module)]
        if isinstance(module, Layer) and (
            module._parameters.get("weight") is None or "parametrizations" in module._modules
        ):
            raise Stop(f"{name!r} computes its weight from other parameters")
        if id(module) in self._hidden:
            raise Stop(f"{name!r} is inside what torch.fx cannot trace")
        parameters = [(key, parameter) for key, parameter in module._parameters.items() if parameter is not None]
        if len(self._calls.get(id(module), [])) > 1 or any(
            self._owners[id(parameter)] > 1 or f"{name}.{key}" in self._read for key, parameter in parameters
        ):
            raise Stop(f"the parameters of {name!r} are used twice")
        if any(not parameter.requires_grad for _, parameter in parameters):
            raise Stop(f"the parameters of {name!r} are frozen")

    def _check_consumer(self, layer: Layer, size: int, layout: _Layout) -> None:
        self._check_replaceable(layer)
        name, width = self._names[id(layer)], inner_size(layer)
        if isinstance(layer, nn.Linear):
            fits = layout.trailing == 0 and (width == size or (layout.flat and width % size == 0))
        elif layer.groups > 1:
            raise Stop(f"the grouped convolution {name!r} sees only some of its units")
        else:
            fits = layout == _Layout(len(layer.kernel_size)) and width == size
        if not fits:
            raise Stop(f"its units may be mixed in the input of {name!r}")

    def _through_module(self, module: nn.Module, size: int, layout: _Layout, norms: list[nn.Module]) -> _Layout:
        kind = type(module).__name__
        if isinstance(module, _ELEMENTWISE_MODULES) or (isinstance(module, nn.PReLU) and module.num_parameters == 1):
            return layout
        if isinstance(module, nn.Flatten):
            return _flattened(layout, module.start_dim, module.end_dim)
        if kind in _POOLS and layout.trailing == _POOLS[kind] and not layout.flat:
            return layout
        entries = entries_a_unit(module, size, layout.trailing)
        if entries is None or (entries > 1 and not layout.flat):
            raise Stop(f"its units may be mixed by {kind}")
        self._check_replaceable(module)
        if entries:
            norms.append(module)
        return layout


def _through_function(node: fx.Node, layout: _Layout) -> _Layout:
    name, arguments = _name(node), [*node.args[1:], *node.kwargs.values()]
    if name in _ELEMENTWISE_FUNCTIONS:
        return layout
    if name in _POOL_FUNCTIONS and layout.trailing == _POOL_FUNCTIONS[name] and not layout.flat:
        return layout
    if name == "flatten":
        given = dict(zip(("start_dim", "end_dim"), node.args[1:], strict=False)) | node.kwargs
        return _flattened(layout, given.get("start_dim", 0), given.get("end_dim", -1))
    if name in ("view", "reshape"):
        shape = arguments[0] if len(arguments) == 1 and isinstance(arguments[0], tuple | list) else arguments
        if isinstance(shape, tuple | list) and len(shape) == 2 and -1 in shape:
            return _flattened(layout, 1, -1)
    if name == "mean" and layout.trailing and not layout.flat and arguments:
        dims = arguments[0] if isinstance(arguments[0], tuple | list) else [arguments[0]]
        places = set(range(-layout.trailing, 0)), set(range(2, layout.trailing + 2))
        if set(dims) in places:
            kept = bool(node.kwargs.get("keepdim", arguments[1] if len(arguments) > 1 else False))
            return layout if kept else _Layout(0)
    raise Stop(f"its units may be mixed by {name}")


def _flattened(layout: _Layout, start: Any, end: Any) -> _Layout:
    """Accept only flattening the channels with all later dimensions: then a unit's entries are adjacent."""
    if start in (1, -1 - layout.trailing) and end == -1:
        return _Layout(0, flat=layout.flat or layout.trailing > 0)
    raise Stop("its units may be mixed by a flattening of other dimensions")


def _name(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def _reads_shape(node: fx.Node) -> bool:
    if node.op == "call_function" and node.target is builtins.getattr:
        return node.args[1] in _SHAPE
    return node.op == "call_method" and node.target in _SHAPE


def _is_number(node: fx.Node) -> bool:
    """Whether a node was computed only from shapes."""
    return _reads_shape(node) or (
        node.op == "call_function" and bool(node.all_input_nodes) and all(map(_is_number, node.all_input_nodes))
    )
