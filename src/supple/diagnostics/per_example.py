"""Inner products of single examples' gradients; by a closed form, without computing the gradients, if there is one."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.func import functional_call, vmap
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

from supple.diagnostics.probing import Labels, Loss, Member, derivatives, loss_gradients
from supple.kernels.power_iteration import working_dtype
from supple.network.trace import runs_torchs_forward

HELD = 2**24
"""The maximum number of entries of an intermediate result: 128 MB in float64."""

_Call = tuple[Tensor, Tensor]
"""A layer's input in a forward pass, and the loss's gradient with respect to its output."""
_Piece = tuple[str, int, int]
"""A part of a parameter's entries: its name, the first entry, and the one after the last."""
_Norm = _NormBase | nn.LayerNorm | nn.GroupNorm | nn.RMSNorm


def gradient_grams(member: Member, loss: Loss) -> dict[str, Tensor]:
    r"""For each trainable parameter :math:`\langle g_i, g_j \rangle`, ``(examples, examples)`` in float64.

    :math:`g_i` is the gradient of ``loss`` on a batch of the one example i. The gradient of a linear layer's weight is
    :math:`\sum_p b_p a_p^\top`, with its input a and the gradient b by its output at each position p, so that

    .. math:: \langle g_i, g_j \rangle = \sum_{p, q} \langle a_{ip}, a_{jq} \rangle \langle b_{ip}, b_{jq} \rangle,

    which for one position is :math:`(A A^\top) \circ (B B^\top)`. A convolution is a linear layer on patches. For the
    biases and gains of norms the gradients themselves are small. All other parameters (fused projections of attention,
    recurrent layers, embeddings, your own modules, parameters that two modules share, and layers whose input does not
    have the batch first) need one backward pass per example. At most 1 GB of such gradients is in memory at a time,
    besides one example's. Larger gradients, such as those of embeddings, take these passes once for each GB.
    """
    grams = _by_closed_form(member, loss)
    for group in _groups([name for name in member.trained if name not in grams], member):
        for name, gram in _one_by_one(member, loss, group):
            grams[name] = grams[name] + gram if name in grams else gram
    return {name: grams[name] for name in member.trained}


def _by_closed_form(member: Member, loss: Loss) -> dict[str, Tensor]:
    """The inner products for the layers with a closed form, if the closed form is correct there.

    It may be wrong. A layer's rows may belong to other examples than their order suggests (time before batch, or
    ``cat([x, -x])``). A weight may also be used outside the layer's call, such as in ``F.linear``, and a hook may
    change a layer's output for some or all examples. So the closed form is compared with one backward pass on a sum of
    the losses with a random weight for each example.
    """
    if member.examples == 1:
        return {}  # a single backward pass is enough
    random = torch.Generator().manual_seed(0)
    weights = 1 + torch.rand(member.examples, generator=random, device="cpu")
    weights *= torch.randn(member.examples, generator=random, device="cpu").sign()
    confirmed: dict[str, Tensor] = {}
    by_layer, sums = _calls(member, loss, _closed_forms(member), weights)
    by_example = member.examples, -1  # (batch · positions, ...) becomes (batch, positions, ...)
    for path, calls in by_layer.items():
        if not all(a.ndim > 1 and len(a) % member.examples == len(b) % member.examples == 0 for a, b in calls):
            continue
        calls = [(a.unflatten(0, by_example), b.unflatten(0, by_example)) for a, b in calls]
        factors = _factors(member, path, calls)
        grams = {name: torch.stack([_product_gram(a, b) for a, b in pairs]).sum(0) for name, pairs in factors.items()}
        if all(_holds(pairs, grams[name], weights, sums[name]) for name, pairs in factors.items()):
            confirmed |= grams
    return confirmed


def _holds(pairs: list[_Call], gram: Tensor, weights: Tensor, expected: Tensor) -> bool:
    """Whether these factors give the weighted sum of the gradients up to rounding. Values that are not finite pass."""
    weights = weights.to(gram)
    weighted = [(b * weights.to(b).view(-1, 1, 1)).flatten(0, 1).mT @ a.flatten(0, 1) for a, b in pairs]
    error = torch.linalg.vector_norm(torch.cat(weighted).flatten() - expected.flatten(), dtype=torch.float64)
    size = (weights.square() @ gram.diagonal()).sqrt()  # a sum without cancellation
    # The third root of ε: for float32 far above TF32's rounding, and below the share of one example in 10,000.
    return not error > torch.finfo(expected.dtype).eps ** (1 / 3) * size


def _closed_forms(member: Member) -> list[str]:
    """The paths of the layers whose parameters have a closed form."""
    layers = dict(member.module.named_modules())
    owners = Counter(id(p) for layer in layers.values() for p in layer._parameters.values() if p is not None)
    return [
        path
        for path, layer in layers.items()
        if _has_closed_form(layer)
        and layer._parameters.keys() <= {"weight", "bias"}  # not pruned, no old weight or spectral norm
        and all(owners[id(p)] == 1 for p in layer._parameters.values() if p is not None)
        and _trained(member, path)
    ]


def _has_closed_form(layer: nn.Module) -> bool:
    if not runs_torchs_forward(layer):
        return False
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return isinstance(layer, nn.Linear | _Norm)


def _named(layer: nn.Module, path: str) -> dict[str, str]:
    """From the network's name of each of a layer's own tensors to the layer's name of it."""
    return {f"{path}.{name}" if path else name: name for name in (*layer._parameters, *layer._buffers)}


def _trained(member: Member, path: str) -> dict[str, str]:
    """The same only for a layer's trainable parameters."""
    named = _named(member.module.get_submodule(path), path)
    return {full: name for full, name in named.items() if full in member.trained}


def _calls(
    member: Member, loss: Loss, paths: list[str], weights: Tensor
) -> tuple[dict[str, list[_Call]], dict[str, Tensor]]:
    """The inputs and output gradients of these layers, call by call; no calls for a layer that is not called.

    Both results are empty if examples cannot be separated: if an output of the network does not have the examples
    first, if examples influence each other, or if the loss cannot be vectorized over examples.

    Returns:
        The calls by the layer's path; then the gradients of the sum of ``weights`` times losses with respect to the
        layers' own parameters, by name.
    """
    calls: dict[str, list[_Call]] = defaultdict(list)

    def recorder(path: str) -> Any:
        def record(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> Tensor:
            calls[path].append(((arguments[0] if arguments else named["input"]).detach(), output))
            return output.clone()  # later code may write into it

        return record

    parameters = member.differentiable()
    with ExitStack() as hooks, torch.enable_grad():
        for path in paths:
            module = member.module.get_submodule(path)
            hooks.enter_context(module.register_forward_hook(recorder(path), with_kwargs=True))
        outputs = member(parameters)
        tensors = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
        if not tensors or any(tensor.ndim == 0 or len(tensor) != member.examples for tensor in tensors):
            return {}, {}
        try:
            losses = _losses(outputs, member.y, loss).reshape(member.examples, -1).sum(-1)
        except RuntimeError:  # torch.func.vmap refuses a loss that reads values, by an ``if`` or ``item()``
            return {}, {}
        total, weighted = losses.sum(), (losses * weights.to(losses)).sum()
    if not _examples_are_independent(member, tensors):
        return {}, {}
    # If the network itself uses torch.func.vmap or grad, tensors inside are invalid after the call.
    seen = {path: pairs for path, pairs in calls.items() if not any(map(is_functorch_wrapped_tensor, chain(*pairs)))}
    gradients = iter(derivatives(total, [output for pairs in seen.values() for _, output in pairs], keep=True))
    names = [name for path in seen for name in _trained(member, path)]
    sums = dict(zip(names, derivatives(weighted, [parameters[name] for name in names]), strict=True))
    return {path: [(a, next(gradients)) for a, _ in pairs] for path, pairs in seen.items()}, sums


def _examples_are_independent(member: Member, outputs: list[Tensor]) -> bool:
    """Whether the network's outputs for a single example equal those for it in the batch, up to rounding."""
    index = member.examples // 2
    one = member.with_one_example(index)
    with torch.no_grad():
        single = [leaf for leaf in tree_leaves(one(one.parameters)) if isinstance(leaf, Tensor)]
    return len(single) == len(outputs) and all(
        part[index : index + 1].shape == alone.shape and _same(part[index : index + 1], alone)
        for part, alone in zip(outputs, single, strict=True)
        if alone.is_floating_point()
    )


def _same(tensor: Tensor, expected: Tensor) -> bool:
    """Whether they are equal up to rounding. Values that are not finite pass."""
    error, size = (tensor - expected).double().norm(), expected.double().norm()
    return not error > torch.finfo(expected.dtype).eps ** 0.5 * size


def _losses(outputs: Any, y: Labels, loss: Loss) -> Tensor:
    """The loss of each single example, even if ``loss`` averages over a batch."""

    leaves, structure = tree_flatten(outputs)

    def single_loss(tensors: list[Tensor], labels: Labels) -> Tensor:
        rest = iter(tensors)
        output = [next(rest).unsqueeze(0) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        return loss(tree_unflatten(output, structure), tree_map_only(Tensor, lambda label: label.unsqueeze(0), labels))

    losses: Tensor = vmap(single_loss)([leaf for leaf in leaves if isinstance(leaf, Tensor)], y)
    return losses


def _factors(member: Member, path: str, calls: list[_Call]) -> dict[str, list[_Call]]:
    """Factors of the gradients of a layer's parameters, from its calls, ``(examples, positions, ...)`` each.

    Returns:
        For each parameter's name, pairs of a, ``(examples, positions, n)``, and b, ``(examples, positions, o)``: an
        example's gradient is the concatenation of Σₚ bₚ aₚᵀ over the pairs.
    """
    layer = member.module.get_submodule(path)
    calls = [(a.to(working_dtype(a)), b.to(working_dtype(b))) for a, b in calls]
    if isinstance(layer, _Norm):
        tensors = {name: (member.parameters | member.buffers).get(full) for full, name in _named(layer, path).items()}
        gains, biases = zip(*(_norm_gradients(layer, tensors, a, b) for a, b in calls), strict=True)
        factors = {
            "weight": [_as_factors(torch.stack(gains).sum(0))],
            "bias": [_as_factors(torch.stack(biases).sum(0))],
        }
    else:
        assert isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d)
        a, b = (torch.cat(parts, 1) for parts in zip(*(_rows(layer, a, b) for a, b in calls), strict=True))
        groups = 1 if isinstance(layer, nn.Linear) else layer.groups
        by_group = zip(a.chunk(groups, -1), b.chunk(groups, -1), strict=True)
        factors = {"weight": list(by_group), "bias": [_as_factors(b.sum(1))]}
    return {full: factors[name] for full, name in _trained(member, path).items()}


def _as_factors(gradients: Tensor) -> _Call:
    """Factors from the gradients themselves, ``(examples, n)``."""
    return gradients.new_ones(len(gradients), 1, 1), gradients.unsqueeze(1)


def _rows(layer: nn.Linear | nn.Conv1d | nn.Conv2d, a: Tensor, b: Tensor) -> _Call:
    """The inputs and output gradients of a linear layer or convolution, ``(examples, positions, inputs or outputs)``.

    The inputs of a convolution are its patches, one for each place of its output.
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
    """Each example's gradients: for gains the sum over places of b · normalized input, for biases the sum of b."""
    plain = {name: tensor.to(a.dtype) for name, tensor in tensors.items() if tensor is not None}
    plain |= {name: torch.full_like(plain[name], name == "weight") for name in layer._parameters if name in plain}
    normalized = functional_call(layer, plain, (a.flatten(0, 1),)).reshape(a.shape)
    entries = len(layer.normalized_shape) if isinstance(layer, nn.LayerNorm | nn.RMSNorm) else 0
    places = tuple(range(1, a.ndim - entries)) if entries else (1, *range(3, a.ndim))
    return (b * normalized).sum(places).flatten(1), b.sum(places).flatten(1)


def _product_gram(a: Tensor, b: Tensor) -> Tensor:
    """⟨gᵢ, gⱼ⟩ for g = Σₚ bₚ aₚᵀ, from ``(examples, positions, n)`` and ``(examples, positions, o)``."""
    (examples, positions, n), o = a.shape, b.shape[-1]
    gram = a.new_zeros(examples, examples, dtype=torch.float64)
    if positions**2 * (n + o) < n * o:  # from the inner products of a and of b
        a, b = a.double(), b.double()
        block = max(1, HELD // (positions**2 * examples))
        for rows, first, second in zip(gram.split(block), a.split(block), b.split(block), strict=True):
            products = first.flatten(0, 1) @ a.flatten(0, 1).mT
            products *= second.flatten(0, 1) @ b.flatten(0, 1).mT
            rows += products.unflatten(1, (examples, positions)).unflatten(0, (-1, positions)).sum((1, 3))
    else:  # from the gradients, some outputs at a time
        for some in b.split(max(1, HELD // (examples * n)), -1):
            gram += _gram((some.mT @ a).flatten(1))
    return gram


def _gram(vectors: Tensor) -> Tensor:
    gram = vectors.new_zeros(len(vectors), len(vectors), dtype=torch.float64)
    for part in vectors.split(max(1, HELD // len(vectors)), 1):
        part = part.double()
        gram += part @ part.mT
    return gram


def _groups(names: list[str], member: Member) -> Iterator[list[_Piece]]:
    """Groups of parameters, or of parts of large ones, whose gradients fit into 1 GB together."""
    most = max(1, 16 * HELD // member.examples)
    group: list[_Piece] = []
    room = most
    for name in names:
        start, size = 0, member.parameters[name].numel()
        while start < size:
            end = min(size, start + room)
            group.append((name, start, end))
            room -= end - start
            start = end
            if not room:
                yield group
                group, room = [], most
    if group:
        yield group


def _one_by_one(member: Member, loss: Loss, group: list[_Piece]) -> Iterator[tuple[str, Tensor]]:
    """Each piece's inner products, with the name of its parameter; one backward pass per example."""
    trained = replace(member, trained=tuple(name for name, *_ in group))
    held = [member.parameters[name].new_empty(member.examples, end - start) for name, start, end in group]
    for index in range(member.examples):
        gradients = loss_gradients(trained.with_one_example(index), loss)
        for rows, (name, start, end) in zip(held, group, strict=True):
            rows[index] = gradients[name].flatten()[start:end]
    for rows, (name, *_) in zip(held, group, strict=True):
        yield name, _gram(rows)
