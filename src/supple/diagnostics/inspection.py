"""The quantities that diagnostics use."""

import operator
from collections.abc import Callable, Mapping
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._pytree import tree_leaves, tree_map_only

from supple.diagnostics import spectra
from supple.diagnostics.per_example import gradient_grams
from supple.diagnostics.probing import Inputs, Labels, Loss, Member, hidden_activations, loss_gradients, undisturbed
from supple.kernels.sharding import is_sharded
from supple.network.find_roles import find_roles, masks, owned_parameters, owner_of, weight_of
from supple.network.graph import unwrapped
from supple.network.module_roles import role_of
from supple.network.population import Population, members_of, module_of
from supple.network.roles import Overrides, Role

_CAST_TO = {torch.bfloat16, torch.float16, torch.float64}
"""The types of networks that cannot take a probe in float32."""


class Inspection:
    """A network at one moment. Each quantity is computed once, when the first diagnostic needs it.

    The network runs in evaluation mode; afterwards it and the random state are bit-for-bit unchanged, except what it
    keeps inside objects that are no tensors, lists, dictionaries, sets or deques. A layer's name is its weight's name
    without ``.weight``. For a population every tensor has the members as first dimension; for one
    network it has no extra dimension. If the model is wrapped (DistributedDataParallel, torch.compile), the inner
    module is used.

    Args:
        network: a module or a :class:`Population`.
        x: the probe's inputs, as the network takes them: a tensor, a tuple of tensors, or a dictionary of them by name.
            The batch dimension is first, ``(members, batch, ...)`` for a population, and examples must not influence
            each other in evaluation mode. The network gets a copy; floating-point tensors in it are cast to the type of
            the network's parameters if these are all bfloat16, all float16 or all float64. None: only the weights can
            be measured.
        y: the probe's labels, as the loss takes them, ``(members, batch, ...)`` for a population: a tensor, or several
            in a tuple or a dictionary. None: gradients cannot be measured.
        loss: ``loss(outputs, y)`` of a batch.
        initial: a copy of :attr:`parameters` before training; a copy, because these share the network's memory.
        previous: :attr:`activations` at the last measurement.
        roles: overrides for :func:`supple.roles.find_roles`, which finds the matrices; None leaves a parameter out.

    Raises:
        TypeError: for a module that ``torch.jit`` has scripted or traced.
        ValueError: for a probe without examples, one that does not fit the members, labels without inputs, and
            parameters without values (on the meta device) or in shards.

    >>> inspection = Inspection(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)), torch.ones(4, 2))
    >>> list(inspection.activations)
    ['2']
    """

    def __init__(
        self,
        network: nn.Module | Population,
        x: Inputs | None = None,
        y: Labels | None = None,
        *,
        loss: Loss = cross_entropy,
        initial: Mapping[str, Tensor] | None = None,
        previous: Mapping[str, Tensor] | None = None,
        roles: Overrides | None = None,
    ) -> None:
        self.network = unwrapped(network)
        self.x, self.y, self.loss = dict(x) if isinstance(x, Mapping) else x, y, loss
        if isinstance(self.network, torch.jit.ScriptModule):
            raise TypeError(
                f"expected a module that takes hooks, got {type(network).__name__} from torch.jit: pass the original "
                "module"
            )
        self._check_probe()
        self.initial, self.previous = initial, previous
        self._roles = find_roles(self.network, roles)
        owned = [entry for entry in owned_parameters(self.network) if entry[0] in self._roles and entry[1].numel()]
        pruned = masks(self.network)
        for name, parameter, _ in owned:
            if is_sharded(parameter):
                raise ValueError(
                    f"expected whole parameters, got a shard of {name!r} (FSDP2 or tensor parallelism): pass a whole "
                    "copy of the network"
                )
            if parameter.is_meta:
                raise ValueError(
                    f"expected parameters with values, got none (the meta device) in {name!r}: initialize or load it "
                    "first"
                )
        self._tensors = {
            name: parameter.detach() * pruned[name] if name in pruned else parameter.detach()
            for name, parameter, _ in owned
        }
        self._trained = [name for name, parameter, _ in owned if parameter.requires_grad]
        self._parameters = {name: parameter for name, parameter, _ in owned}

    def offers(self, need: str) -> bool:
        """Whether the attribute with this name can be computed from what was given."""
        match need:
            case "singular_values":
                return bool(self._matrices)
            case "parameters":
                return bool(self._tensors)
            case "initial" | "previous":
                return getattr(self, need) is not None
            case "activations":
                return self.x is not None
            case "gradients" | "gradient_singular_values":
                return self.x is not None and self.y is not None and bool(self._trained)
        if not hasattr(type(self), need) and need not in vars(self):
            raise ValueError(
                f"expected a diagnostic whose parameters are attributes of Inspection, got {need!r}: rename it"
            )
        return True

    @cached_property
    def _matrices(self) -> dict[str, tuple[Tensor, Role]]:
        """The matrices that the layers multiply by, and their roles, by the weight's name.

        For a parametrized weight (torch's older functions included), this is the computed weight.
        """
        modules = dict(module_of(self.network).named_modules())
        found = {name: (tensor, self._roles[name]) for name, tensor in self._tensors.items()}
        for path, weight in self._by_member(self._computed_weights).items():
            name, shape = weight_of(path), tuple(weight.shape[len(members_of(self.network)) :])
            found[name] = weight, role_of(name, modules[owner_of(name)], modules, shape)
        order = {path: place for place, path in enumerate(modules)}
        matrices = {name: (tensor, role) for name, (tensor, role) in found.items() if role.kind == "matrix"}
        return dict(sorted(matrices.items(), key=lambda item: order[owner_of(item[0])]))

    def _computed_weights(self, member: Member) -> dict[str, Tensor]:
        """The weights that parametrizations compute, by the name of the parametrization, or of the weight."""
        tensors, weights = member.parameters | member.buffers, {}
        for path, module in member.module.named_modules():
            before = f"{path}." if path else ""
            own = {name.removeprefix(before): tensor for name, tensor in tensors.items() if name.startswith(before)}
            if isinstance(module, ParametrizationList):
                if any(before + name in self._roles for name in own):
                    weights[path] = functional_call(module, own, ()).detach()
                continue
            for hook in module._forward_pre_hooks.values():
                if not isinstance(hook, WeightNorm | SpectralNorm):
                    continue
                if any(f"{before}{hook.name}_{part}" in self._roles for part in ("g", "v", "orig")):
                    holder: Any = SimpleNamespace(**own)
                    options = () if isinstance(hook, WeightNorm) else (False,)  # no power iteration
                    weights[before + hook.name] = hook.compute_weight(holder, *options).detach()
        return weights

    @cached_property
    def _layers(self) -> dict[str, nn.Module]:
        """The modules that multiply by a matrix, their own or one that is tied to another module's."""
        module = module_of(self.network)
        matrices = {self._parameters[name] for name in self._matrices if name in self._parameters}
        tied = (path for path, part in module.named_modules() if matrices & {*part.parameters(recurse=False)})
        return {path: module.get_submodule(path) for path in (*map(owner_of, self._matrices), *tied)}

    @cached_property
    def parameters(self) -> dict[str, Tensor]:
        """Every parameter as a vector ``(members…, n)``; unless it is pruned, it shares the network's memory."""
        return {_label(name): self._roles[name].vector(tensor) for name, tensor in self._tensors.items()}

    @cached_property
    def singular_values(self) -> dict[str, Tensor]:
        """The singular values of the matrices in each layer's weight, ``(members…, matrices, n)``, descending.

        If a parametrization computes the weight, they are those of what it computes.
        """
        by_layer = {}
        for name, (tensor, role) in self._matrices.items():
            matrices = role.matrices(tensor)
            leading = tensor.shape[: tensor.ndim - len(role.shape)]
            by_layer[_label(name)] = spectra.singular_values(matrices.reshape(*leading, -1, *matrices.shape[-2:]))
        return by_layer

    @cached_property
    def activations(self) -> dict[str, Tensor]:
        """Each layer's input on the probe, ``(members…, rows, units)``, in the order in which the layers run.

        A layer is a module with a matrix, its own or one that is tied to another's: linear, convolutional, recurrent,
        attention (its query), or of your own type. Units are the channels of a convolution's input, otherwise the last
        dimension; rows are the examples times all other dimensions (places, tokens). After flattening each place is a
        unit. Excluded are the network's inputs (the probe's tensors, the inputs of layers that start before any other
        has finished, and tensors equal to one of these) and tensors with fewer than two dimensions. If several layers
        get the same tensor, it is listed once, under the first.
        """
        return self._by_member(lambda member: hidden_activations(member, self._layers))

    @cached_property
    def gradients(self) -> dict[str, Tensor]:
        """The gradient of the loss on the probe by each trainable parameter, as a vector ``(members…, n)``."""
        by_parameter = self._by_member(lambda member: loss_gradients(member, self.loss))
        return {_label(name): self._roles[name].vector(gradient) for name, gradient in by_parameter.items()}

    @cached_property
    def gradient_singular_values(self) -> dict[str, Tensor]:
        """The singular values of the matrix of single examples' gradients, ``(members…, n)``, descending.

        A layer's are for its weight, the network's (``""``) for all trainable parameters.
        """
        self.check_examples()
        grams = self._by_member(lambda member: gradient_grams(member, self.loss))
        sizes = {name: torch.Size(self._roles[name].shape).numel() for name in grams}
        parts = {"": [*grams]} | {
            _label(weight): [name for name in grams if weight_of(name) == weight] for weight in self._matrices
        }
        return {
            layer: spectra.gram_singular_values(torch.stack([grams[name] for name in names]).sum(0))[
                ..., : sum(sizes[name] for name in names)
            ]
            for layer, names in parts.items()
            if names
        }

    def check_examples(self) -> None:
        """Check that inputs and labels can be split into single examples."""
        batch = 1 if isinstance(self.network, Population) else 0
        shapes = [tuple(tensor.shape) for tensor in _tensors_in((self.x, self.y))]
        if any(len(shape) <= batch or shape[batch] != shapes[0][batch] for shape in shapes):
            raise ValueError(
                f"expected as many examples in each tensor of the probe, got shapes {', '.join(map(str, shapes))}: the "
                f"batch comes {'after the members' if batch else 'first'}, in labels too; otherwise gradients of "
                "single examples cannot be computed, so leave out the diagnostics of them, or the labels"
            )

    def _check_probe(self) -> None:
        if self.x is None:
            if self.y is not None:
                raise ValueError("expected inputs with the labels, got None: give probe=(inputs, labels)")
            return
        inputs = _tensors_in(self.x)
        if not inputs:
            raise ValueError(
                f"expected inputs with a tensor in them, got {type(self.x).__name__} without: give what the network is "
                "called with, as torch tensors"
            )
        members = members_of(self.network)
        for tensor in [*inputs, *_tensors_in(self.y)]:
            shape: tuple[int, ...] = (tensor.size(0),) if tensor.is_nested else tuple(tensor.shape)
            if shape[: len(members)] != members:
                raise ValueError(
                    f"expected a probe of shape ({members[0]}, batch, ...) for a population of {members[0]} members, "
                    f"got a tensor of shape {shape}: use tensor.expand({members[0]}, *tensor.shape) for the same "
                    "batch in each"
                )
            if 0 in shape[: len(members) + 1]:
                raise ValueError(f"expected a probe with examples, got a tensor of shape {shape}: give at least one")

    def _by_member(self, look: Callable[[Member], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The results of ``look`` for each member, stacked; for a single network, its result unchanged."""
        if not isinstance(self.network, Population):
            with undisturbed(self.network):
                return look(self._member(self.network, lambda tensor: tensor))
        module = self.network.stacked
        with undisturbed(module):
            results = [look(self._member(module, operator.itemgetter(index))) for index in range(len(self.network))]
        return {name: torch.stack([result[name] for result in results]) for name in results[0]}

    def _member(self, module: nn.Module, part: Callable[[Tensor], Tensor]) -> Member:
        parameters = {name: part(parameter.detach()) for name, parameter in module.named_parameters()}
        for path, one in module.named_modules():
            if isinstance(one, nn.Embedding | nn.EmbeddingBag) and one.max_norm is not None:  # which writes into it
                name = f"{path}.weight" if path else "weight"
                parameters |= {name: parameters[name].clone()} if name in parameters else {}
        buffers = {name: part(buffer) for name, buffer in module.named_buffers()}
        device = next((tensor.device for tensor in (*parameters.values(), *buffers.values())), None)
        # Copy tensors that were made in inference mode: autograd accepts only copies of them.
        x, y = tree_map_only(Tensor, lambda t: part(t).to(device, copy=t.is_inference()), (self.x, self.y))
        types = {parameter.dtype for parameter in parameters.values() if parameter.is_floating_point()}
        if len(types) == 1 and types <= _CAST_TO:
            x = tree_map_only(Tensor, lambda t: t.to(*types) if t.is_floating_point() else t, x)
        return Member(module, parameters, buffers, tuple(self._trained), x, y)


def _tensors_in(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _label(name: str) -> str:
    return name.removesuffix(".weight")
