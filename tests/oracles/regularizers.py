"""Slow, obvious, float64: the regularizer as the paper writes it (§4 and App. A.7), by autograd through a full SVD.

Nothing here shares a line with the library. Where the library has a closed form and a power iteration, this has a
sum over matrices, cut out of each parameter by hand, and ``torch.linalg.svdvals``.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

NORMS = (
    nn.modules.batchnorm._NormBase,  # batch and instance norms, in any dimension
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
RECURRENT = (nn.RNNBase, nn.RNNCellBase)
GATES = {"RNN": 1, "RNNCell": 1, "GRU": 3, "GRUCell": 3, "LSTM": 4, "LSTMCell": 4}
LISTS = (nn.ParameterList, nn.ParameterDict)

Parameters = dict[str, Tensor]


def owned(network: nn.Module) -> Iterator[tuple[str, nn.Module, str, Tensor]]:
    """(full name, owner, name in the owner, parameter), each parameter once."""
    seen = set()
    for prefix, module in network.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield f"{prefix}.{name}".lstrip("."), module, name, parameter


def kind(module: nn.Module, name: str, parameter: Tensor) -> str:
    """What a parameter is in the paper's formula; "unknown" is in none of its sums."""
    if isinstance(module, NORMS):
        return "scale" if name == "weight" else "vector"
    if isinstance(module, LISTS):
        return "unknown"
    if type(module).__module__.startswith("torch.nn"):
        return "matrix" if parameter.ndim > 1 and "bias" not in name else "vector"
    if type(module).__name__.endswith("Embeddings") and ("position_embedding" in name or name.endswith("_token")):
        return "matrix"
    named_so = name in ("weight", "W", "kernel") or name.endswith(("_weight", "_proj"))
    stacks = {len(other) for other in module.parameters(recurse=False) if other.ndim > 2}
    return "matrix" if parameter.ndim == 2 and named_so and len(parameter) not in stacks else "unknown"


def matrices(module: nn.Module, name: str, weight: Tensor) -> list[Tensor]:
    """The matrices inside one multiplicative parameter, each (out, in)."""
    groups = getattr(module, "groups", 1)
    if isinstance(module, TRANSPOSED):  # stored as (in, out / groups, kernel...)
        return [part.transpose(0, 1).flatten(1) for part in weight.chunk(groups)]
    if isinstance(module, CONVOLUTIONS):  # stored as (out, in / groups, kernel...)
        return [part.flatten(1) for part in weight.chunk(groups)]
    if isinstance(module, nn.MultiheadAttention) and name == "in_proj_weight":
        return list(weight.chunk(3))
    if isinstance(module, RECURRENT) and not name.startswith("weight_hr"):
        mode = getattr(module, "mode", type(module).__name__).split("_")[0]
        return list(weight.chunk(GATES[mode]))
    while weight.ndim > 2 and weight.shape[0] == 1:
        weight = weight.squeeze(0)
    return [weight.flatten(1)]


def parameters64(network: nn.Module) -> Parameters:
    """Copies on the CPU."""
    return {name: parameter.detach().to("cpu", torch.float64, copy=True) for name, _, _, parameter in owned(network)}


def spectral_penalty(network: nn.Module, parameters: Parameters, k: int = 2, target: float = 1.0) -> Tensor:
    """R(θ) = Σ_W (σ₁(W)ᵏ − 1)² + Σ_b ‖b‖²ᵏ + Σ_γ Σᵢ (γᵢᵏ − 1)².

    With another target τ, (σᵏ − 1)² becomes τ²((σ/τ)ᵏ − 1)², and with τ = 0 it becomes σ²ᵏ; likewise for gains.
    """

    def term(stretch: Tensor) -> Tensor:
        return stretch ** (2 * k) if target == 0 else target**2 * ((stretch / target) ** k - 1) ** 2

    total = torch.zeros((), dtype=torch.float64)
    for full_name, module, name, original in owned(network):
        parameter = parameters[full_name]
        match kind(module, name, original):
            case "matrix":
                for matrix in matrices(module, name, parameter):
                    total = total + term(torch.linalg.svdvals(matrix)[0])
            case "vector":
                total = total + parameter.square().sum() ** k
            case "scale":
                total = total + term(parameter).sum()
    return total


def spectral_gradients(network: nn.Module, k: int = 2, target: float = 1.0) -> Parameters:
    """The gradient of ``spectral_penalty``; zero where it does not depend on a parameter."""
    parameters = {name: value.requires_grad_() for name, value in parameters64(network).items()}
    spectral_penalty(network, parameters, k, target).backward()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in parameters.items()}


def decoupled_step(
    network: nn.Module, strength: float, step_size: float, k: int = 2, target: float = 1.0
) -> Parameters:
    """W ← W − min(αλ 2k σᵏ⁻¹(σᵏ−1), σ−1) u vᵀ for σ > 1, likewise from below, and for vectors and gains.

    With another target τ, σᵏ⁻¹(σᵏ−1) becomes τ(σ/τ)ᵏ⁻¹((σ/τ)ᵏ−1), and with τ = 0, as for vectors, σ²ᵏ⁻¹.
    """

    def taken(stretch: float, goal: float) -> float:
        ratio = stretch / goal if goal else math.nan
        slope = 2 * k * (goal * ratio ** (k - 1) * (ratio**k - 1) if goal else stretch ** (2 * k - 1))
        pull, way = step_size * strength * slope, stretch - goal
        return min(pull, way) if way > 0 else max(pull, way)

    def stepped_gain(gain: float) -> float:
        if gain < 0 and k % 2 == 0:  # the square's nearest goal is the negative one
            return gain + taken(-gain, target)
        return gain - taken(gain, target)

    result = parameters64(network)
    for full_name, module, name, original in owned(network):
        parameter = result[full_name]
        match kind(module, name, original):
            case "matrix":
                parameter += rank_ones(module, name, parameter, lambda values: -taken(values[0], target))
            case "vector" if parameter.norm() > 0:
                parameter *= 1 - taken(parameter.norm().item(), 0.0) / parameter.norm()
            case "scale":
                parameter.copy_(parameter.clone().apply_(stepped_gain))
    return result


@torch.enable_grad()
def rank_ones(module: nn.Module, name: str, weight: Tensor, amount: Callable[[list[float]], float]) -> Tensor:
    """``amount(singular values) · u₁ v₁ᵀ`` of each matrix in ``weight``, in its place there: what autograd does."""
    weight = weight.detach().to(torch.float64, copy=True).requires_grad_()
    top = torch.zeros((), dtype=torch.float64)
    for matrix in matrices(module, name, weight):
        values = torch.linalg.svdvals(matrix)
        top = top + amount(values.tolist()) * values[0]
    top.backward()
    return weight.grad


def spectral_norms(module: nn.Module, name: str, weight: Tensor) -> list[float]:
    return [torch.linalg.svdvals(matrix.double())[0].item() for matrix in matrices(module, name, weight.detach())]
