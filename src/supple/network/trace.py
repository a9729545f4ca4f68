"""Traces which modules and functions a network calls."""

import inspect
from typing import Any

from torch import fx, nn

from supple.network.population import copy_of, seeded_globally


class Trace:
    """The operations of a network's forward pass in training mode, with torch's own modules as single steps.

    Arguments that have a default keep it.

    Raises:
        ValueError: when ``torch.fx`` cannot trace the network's own forward pass.
    """

    def __init__(self, network: nn.Module) -> None:
        self.nodes: list[fx.Node] = []
        self.modules: dict[str, nn.Module] = {}
        """The modules, by the names that the nodes use."""
        self.opaque: list[nn.Module] = []
        """Modules that cannot be traced, and are therefore single steps."""
        if isinstance(network, nn.Sequential) or not runs_torchs_forward(network):
            try:
                self._trace(network)
            except Exception as error:
                raise ValueError(
                    f"expected a network that torch.fx can trace, got {type(network).__name__}, where it fails "
                    f"({type(error).__name__}: {error}): name each layer with units and the "
                    'layer that it feeds: units=[("entering layer", "leaving layer"), ...]'
                ) from error

    def _trace(self, network: nn.Module) -> None:
        # Trace a copy, because forward passes may set attributes and update buffers. It shares the parameters.
        shell = copy_of(network, shared=network.parameters())
        shell.train()
        for module in shell.modules():
            module._forward_hooks.clear()
            module._forward_pre_hooks.clear()
        defaults = {
            name: parameter.default
            for name, parameter in inspect.signature(shell.forward).parameters.items()
            if parameter.default is not inspect.Parameter.empty
        }
        tracer = _Tracer()
        # A forward pass that skips layers at random skips the same ones in each process.
        with seeded_globally(0):
            self.nodes = list(tracer.trace(shell, concrete_args=defaults or None).nodes)
        originals = dict(zip(shell.modules(), network.modules(), strict=True))
        self.modules = {name: originals[module] for name, module in shell.named_modules(remove_duplicate=False)}
        self.opaque = [originals[module] for module in tracer.opaque]


class _Tracer(fx.Tracer):
    def __init__(self) -> None:
        super().__init__()
        self.opaque: list[nn.Module] = []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether it runs one of torch's own forward passes; subclasses of torch's modules may too."""
        return runs_torchs_forward(m) and not isinstance(m, nn.Sequential)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Trace into a module; if its forward pass cannot be traced, make it one step and continue after it."""
        before, depth = len(self.graph.nodes), len(self.module_stack)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:  # a forward pass may raise any error on symbolic values
            for node in reversed([*self.graph.nodes][before:]):
                self.graph.erase_node(node)
            while len(self.module_stack) > depth:
                self.module_stack.popitem()
            self.opaque.append(m)
            return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)


def runs_torchs_forward(module: nn.Module) -> bool:
    """Whether the module, perhaps a subclass of a torch module, uses a forward pass that torch defines."""
    return (type(module).forward.__module__ or "").startswith("torch.nn.")  # torch.fx's have no __module__
