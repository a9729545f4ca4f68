"""The inner products of the gradients of single examples, without these gradients where a layer has a closed form."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from supple.diagnostics.probing import Loss, Member, derivatives
from supple.power_iteration import working_dtype

HELD = 2**24
"""How many numbers an intermediate result may have: 128 MB in float64."""

_Call = tuple[Tensor, Tensor]
"""What a layer was given in a forward pass, and the gradient of the loss by what it returned."""
_Norm = _NormBase | nn.LayerNorm | nn.GroupNorm | nn.RMSNorm


def gradient_grams(member: Member, loss: Loss) -> dict[str, Tensor]:
    r"""For each trainable parameter :math:`\langle g_i, g_j \rangle`, ``(examples, examples)`` in float64.

    :math:`g_i` is the gradient of ``loss`` on a batch of the one example i. The gradient of a linear layer's weight is
    :math:`\sum_p b_p a_p^\top`, with its input a and the gradient b by its output at each position p, so that

    .. math:: \langle g_i, g_j \rangle = \sum_{p, q} \langle a_{ip}, a_{jq} \rangle \langle b_{ip}, b_{jq} \rangle,

    which for one position is :math:`(A A^\top) \circ (B B^\top)`. A convolution is a linear layer on patches. For the
    biases and gains of norms the gradients themselves are small. All other parameters (of attention's fused
    projections, recurrent layers, embeddings, modules of your own, what two modules share, and layers to which the
    batch does not come first) take one backward pass an example, and hold the gradients of as many of them as fit into
    memory of 1 GB at a time.
    """
    grams: dict[str, Tensor] = {}
    for path, calls in _of_single_examples(member, loss).items():
        grams |= _layer_grams(member, path, calls)
    for group in _groups([name for name in member.trained if name not in grams], member):
        grams |= _one_by_one(member, loss, group)
    return {name: grams[name] for name in member.trained}


def _of_single_examples(member: Member, loss: Loss) -> dict[str, list[_Call]]:
    """The calls of the layers with a closed form whose rows are those of one example after the other.

    Sizes do not tell: with the time before the batch, or in ``cat([x, -x])``, as many rows are of several examples. So
    two examples that are no neighbours run alone, and must give the layer just the rows that are taken for theirs. Nor
    do calls tell everything, where a weight is used besides, in ``F.linear`` say: they must come to the gradient.

    Returns:
        By the layer's path, ``(examples, positions, ...)`` each.
    """
    if member.examples == 1:
        return {}  # one backward pass is all there is to do
    calls = {
        path: [(_by_example(a, member.examples), _by_example(b, member.examples)) for a, b in each]
        for path, each in _calls(member, loss, _closed_forms(member)).items()
        if all(a.ndim > 1 and len(a) % member.examples == len(b) % member.examples == 0 for a, b in each)
    }
    for index in (0, member.examples // 2):
        if calls:
            one = member.alone(index)
            alone = _calls(one, loss, list(calls))
            calls = {path: each for path, each in calls.items() if _agree(each, alone.get(path, []), index)}
            names = [name for path in calls for name in _trained(one, path)]
            gradients = dict(zip(names, _gradients(one, loss, names), strict=True))
            calls = {path: each for path, each in calls.items() if _complete(one, path, alone[path], gradients)}
    return calls


def _agree(calls: list[_Call], alone: list[_Call], index: int) -> bool:
    """Whether a layer's calls hold of this example what it was given, and given back, when that example ran alone."""
    return len(calls) == len(alone) and all(
        # Rounding may switch a unit near the kink of a ReLU, and then the gradients differ by more than rounding.
        _same(of_batch[0][index], of_one[0], 1 / 2) and _same(of_batch[1][index], of_one[1], 1 / 4)
        for of_batch, of_one in zip(calls, alone, strict=True)
    )


def _complete(one: Member, path: str, calls: list[_Call], gradients: dict[str, Tensor]) -> bool:
    """Whether a layer's calls come to gradients of the one example that are as long as they are."""
    grams = _layer_grams(one, path, [(_by_example(a, 1), _by_example(b, 1)) for a, b in calls])
    return all(
        _same(gradients[name].norm(), gram.sqrt().view(()).to(gradients[name]), 1 / 2) for name, gram in grams.items()
    )


def _same(tensor: Tensor, alone: Tensor, power: float) -> bool:
    """Whether they are equal but for rounding: an error of ``eps ** power`` of the whole. What is not finite passes."""
    if tensor.shape != alone.shape:
        return False
    error, size = (each.double().norm() for each in (tensor - alone, alone))
    return not error > torch.finfo(alone.dtype).eps ** power * size


def _closed_forms(member: Member) -> list[str]:
    """The paths of the layers whose parameters have a closed form."""
    layers = dict(member.module.named_modules())
    owners = Counter(id(p) for layer in layers.values() for p in layer._parameters.values() if p is not None)
    return [
        path
        for path, layer in layers.items()
        if _has_closed_form(layer)
        and all(owners[id(p)] == 1 for p in layer._parameters.values() if p is not None)
        and _trained(member, path)
    ]


def _has_closed_form(layer: nn.Module) -> bool:
    if not type(layer).forward.__module__.startswith("torch.nn."):
        return False
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return isinstance(layer, nn.Linear | _Norm)


def _named(layer: nn.Module, path: str) -> dict[str, str]:
    """The network's names of a layer's own tensors, to the layer's names of them."""
    return {f"{path}.{name}" if path else name: name for name in (*layer._parameters, *layer._buffers)}


def _trained(member: Member, path: str) -> dict[str, str]:
    """The same of a layer's trainable parameters alone."""
    named = _named(member.module.get_submodule(path), path)
    return {full: name for full, name in named.items() if full in member.trained}


def _calls(member: Member, loss: Loss, paths: list[str]) -> dict[str, list[_Call]]:
    """What these layers were given and the gradients that came back, call by call; none for a layer not called.

    None at all where some output of the network does not have the examples first: there is no telling them apart.
    """
    inputs: defaultdict[str, list[Tensor]] = defaultdict(list)
    outputs: dict[str, list[Tensor]] = defaultdict(list)

    def recorder(path: str) -> Any:
        def record(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> Tensor:
            inputs[path].append((arguments[0] if arguments else named["input"]).detach())
            outputs[path].append(output)
            return output.clone()  # what follows may write into it

        return record

    parameters = member.differentiable(member.trained)
    with ExitStack() as hooks, torch.enable_grad():
        for path in paths:
            module = member.module.get_submodule(path)
            hooks.enter_context(module.register_forward_hook(recorder(path), with_kwargs=True))
        found = member(parameters, member.x)
        tensors = [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]
        if any(tensor.ndim == 0 or len(tensor) != member.examples for tensor in tensors):
            return {}
        total = _sum_of_losses(found, member.y, loss)
    gradients = iter(derivatives(total, [output for each in outputs.values() for output in each]))
    return {path: [(a, next(gradients)) for a in inputs[path]] for path in outputs}


def _sum_of_losses(outputs: Any, y: Tensor, loss: Loss) -> Tensor:
    """The sum of the losses on each example alone, whatever mean ``loss`` takes over a batch."""

    leaves, structure = tree_flatten(outputs)

    def alone(tensors: list[Tensor], label: Tensor) -> Tensor:
        rest = iter(tensors)
        output = [next(rest).unsqueeze(0) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        return loss(tree_unflatten(output, structure), label.unsqueeze(0))

    total: Tensor = vmap(alone)([leaf for leaf in leaves if isinstance(leaf, Tensor)], y).sum()
    return total


def _by_example(tensor: Tensor, examples: int) -> Tensor:
    """``(batch, ...)`` or ``(batch · positions, ...)`` as ``(batch, positions, ...)``."""
    rows: Tensor = tensor.unflatten(0, (examples, -1))
    return rows


def _layer_grams(member: Member, path: str, calls: list[_Call]) -> dict[str, Tensor]:
    """Of each of a layer's parameters, from its calls, ``(examples, positions, ...)`` each."""
    layer = member.module.get_submodule(path)
    calls = [(a.to(working_dtype(a)), b.to(working_dtype(b))) for a, b in calls]
    if isinstance(layer, _Norm):
        tensors = {name: (member.parameters | member.buffers).get(full) for full, name in _named(layer, path).items()}
        gains, biases = zip(*(_norm_gradients(layer, tensors, a, b) for a, b in calls), strict=True)
        grams = {"weight": _gram(torch.stack(gains).sum(0)), "bias": _gram(torch.stack(biases).sum(0))}
    else:
        assert isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d)
        a, b = (torch.cat(parts, 1) for parts in zip(*(_rows(layer, a, b) for a, b in calls), strict=True))
        groups = 1 if isinstance(layer, nn.Linear) else layer.groups
        by_group = zip(a.chunk(groups, -1), b.chunk(groups, -1), strict=True)
        grams = {"weight": torch.stack([_product_gram(*each) for each in by_group]).sum(0), "bias": _gram(b.sum(1))}
    return {full: grams[name] for full, name in _trained(member, path).items()}


def _rows(layer: nn.Linear | nn.Conv1d | nn.Conv2d, a: Tensor, b: Tensor) -> _Call:
    """The inputs and gradients of a linear layer, ``(examples, positions, inputs or outputs)``, or of what acts as one.

    The inputs of a convolution are the patches that it sees, one at each place of its output.
    """
    if isinstance(layer, nn.Linear):
        return a.flatten(1, -2), b.flatten(1, -2)
    assert not isinstance(layer.padding, str)
    line = isinstance(layer, nn.Conv1d)
    patches = nn.functional.unfold(
        a.flatten(0, 1).unsqueeze(-2) if line else a.flatten(0, 1),
        (1, *layer.kernel_size) if line else layer.kernel_size,
        dilation=(1, *layer.dilation) if line else layer.dilation,
        padding=(0, *layer.padding) if line else layer.padding,
        stride=(1, *layer.stride) if line else layer.stride,
    )
    return patches.mT.unflatten(0, a.shape[:2]).flatten(1, 2), b.flatten(3).mT.flatten(1, 2)


def _norm_gradients(layer: _Norm, tensors: Mapping[str, Tensor | None], a: Tensor, b: Tensor) -> _Call:
    """By the gains, the sum over places of b times the normalised input, and by the biases that of b, by example."""
    plain = {name: tensor.to(a.dtype) for name, tensor in tensors.items() if tensor is not None}
    plain |= {name: torch.full_like(plain[name], name == "weight") for name in layer._parameters if name in plain}
    normalised = functional_call(layer, plain, (a.flatten(0, 1),)).reshape(a.shape)
    entries = len(layer.normalized_shape) if isinstance(layer, nn.LayerNorm | nn.RMSNorm) else 0
    places = tuple(range(1, a.ndim - entries)) if entries else (1, *range(3, a.ndim))
    return (b * normalised).sum(places).flatten(1), b.sum(places).flatten(1)


def _product_gram(a: Tensor, b: Tensor) -> Tensor:
    """⟨gᵢ, gⱼ⟩ for g = Σₚ bₚ aₚᵀ, from ``(examples, positions, n)`` and ``(examples, positions, o)``."""
    (examples, positions, n), o = a.shape, b.shape[-1]
    gram = a.new_zeros(examples, examples, dtype=torch.float64)
    if positions**2 * (n + o) < n * o:  # through the inner products of a and of b
        a, b = a.double(), b.double()
        block = max(1, HELD // (positions**2 * examples))
        for rows, first, second in zip(gram.split(block), a.split(block), b.split(block), strict=True):
            products = first.flatten(0, 1) @ a.flatten(0, 1).mT
            products *= second.flatten(0, 1) @ b.flatten(0, 1).mT
            rows += products.unflatten(1, (examples, positions)).unflatten(0, (-1, positions)).sum((1, 3))
    else:  # through the gradients, of some outputs at a time
        for some in b.split(max(1, HELD // (examples * n)), -1):
            gram += _gram((some.mT @ a).flatten(1))
    return gram


def _gram(vectors: Tensor) -> Tensor:
    vectors = vectors.double()
    return vectors @ vectors.mT


def _groups(names: list[str], member: Member) -> Iterator[list[str]]:
    """As many of these parameters at a time as their gradients fit into 1 GB, at least one."""
    group: list[str] = []
    held = 0
    for name in names:
        size = member.parameters[name].numel() * member.examples
        if group and held + size > 16 * HELD:
            yield group
            group, held = [], 0
        group.append(name)
        held += size
    if group:
        yield group


def _one_by_one(member: Member, loss: Loss, names: list[str]) -> dict[str, Tensor]:
    rows = [_gradients(member.alone(index), loss, names) for index in range(member.examples)]
    return {
        name: _gram(torch.stack(each).flatten(1)) for name, each in zip(names, zip(*rows, strict=True), strict=True)
    }


def _gradients(one: Member, loss: Loss, names: list[str]) -> list[Tensor]:
    """The gradients of one example."""
    parameters = one.differentiable(names)
    with torch.enable_grad():
        value = loss(one(parameters, one.x), one.y)
    return derivatives(value, [parameters[name] for name in names])
