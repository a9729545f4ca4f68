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
    return {name: parameter.detach().to(torch.float64, copy=True) for name, _, _, parameter in owned(network)}


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


@torch.no_grad()
def spread(network: nn.Module, sigma: float = 1.7, gap: float = 0.4) -> nn.Module:
    """Prepare a network for comparison, in place: well defined singular vectors, and no entry where the slope is 0.

    Each matrix gets σ₁ = ``sigma`` and σ₂ ≤ ``gap · sigma``; vectors and gains get values around 0.3 and 1.3.
    """
    for _, module, name, parameter in owned(network):
        match kind(module, name, parameter):
            case "matrix":
                values = [torch.linalg.svdvals(m.double()) for m in matrices(module, name, parameter)]
                seconds = [v[1].item() for v in values if len(v) > 1]
                parameter *= gap * sigma / max(seconds) if seconds else 1.0
                parameter += rank_ones(module, name, parameter, lambda values: sigma - values[0]).to(parameter.dtype)
            case "vector":
                parameter.copy_(torch.randn_like(parameter.float()) * 0.3)
            case "scale":
                parameter.copy_(1.3 + 0.2 * torch.randn_like(parameter.float()))
    return network


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """‖actual − expected‖ / ‖expected‖ in float64; both zero is no error."""
    distance = torch.linalg.vector_norm(actual.detach().double() - expected.double()).item()
    size = torch.linalg.vector_norm(expected.double()).item()
    return distance / size if size > 0 else distance


class PatchEmbeddings(nn.Module):
    """A module type that torch does not define, of which the name says what its parameters are."""

    def __init__(self) -> None:
        super().__init__()
        self.position_embeddings = nn.Parameter(torch.randn(1, 5, 4))
        self.class_token = nn.Parameter(torch.randn(1, 1, 4))


class Custom(nn.Module):
    """A module type of one's own, of which only some matrices are known."""

    def __init__(self) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(5, 4))
        self.kernel = nn.Parameter(torch.randn(4, 4))
        self.mixing_weight = nn.Parameter(torch.randn(2, 6))
        self.out_proj = nn.Parameter(torch.randn(6, 2))
        self.positions = nn.Parameter(torch.randn(1, 5, 4))
        self.class_token = nn.Parameter(torch.randn(1, 1, 4))
        self.mixing = nn.Parameter(torch.randn(2, 6))
        self.experts = nn.Parameter(torch.randn(3, 2, 4))
        self.experts_weight = nn.Parameter(torch.randn(3, 4))
        self.listed = nn.ParameterDict({"weight": torch.randn(4, 4)})
        self.weight = nn.Parameter(torch.randn(4))
        self.gamma = nn.Parameter(torch.randn(4))
        self.gain = nn.Parameter(torch.randn(4))
        self.scale = nn.Parameter(torch.randn(4))
        self.shift = nn.Parameter(torch.randn(4))
        self.weight_vector = nn.Parameter(torch.randn(4))
        self.temperature = nn.Parameter(torch.randn(()))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embedding(tokens))


ZOO: dict[str, Callable[[], nn.Module]] = {
    "linear-1x1": lambda: nn.Linear(1, 1),
    "linear-1x9": lambda: nn.Linear(9, 1),
    "linear-9x1": lambda: nn.Linear(1, 9),
    "linear-33x7": lambda: nn.Linear(7, 33),
    "bilinear": lambda: nn.Bilinear(3, 4, 5),
    "conv1d": lambda: nn.Conv1d(3, 5, 2),
    "conv2d": lambda: nn.Conv2d(3, 5, 3),
    "conv2d-channels-last": lambda: nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last),
    "conv3d": lambda: nn.Conv3d(2, 4, (1, 2, 3)),
    "conv2d-grouped": lambda: nn.Conv2d(4, 6, 3, groups=2),
    "conv2d-grouped-channels-last": lambda: nn.Conv2d(4, 6, 3, groups=2).to(memory_format=torch.channels_last),
    "conv1d-depthwise": lambda: nn.Conv1d(4, 8, 3, groups=4),
    "conv-transpose1d": lambda: nn.ConvTranspose1d(3, 5, 4),
    "conv-transpose2d": lambda: nn.ConvTranspose2d(3, 5, (2, 3)),
    "conv-transpose2d-channels-last": lambda: nn.ConvTranspose2d(3, 5, 3).to(memory_format=torch.channels_last),
    "conv-transpose3d": lambda: nn.ConvTranspose3d(2, 3, 2),
    "conv-transpose2d-grouped": lambda: nn.ConvTranspose2d(4, 6, 3, groups=2),
    "conv-transpose2d-grouped-channels-last": lambda: nn.ConvTranspose2d(6, 4, 3, groups=2).to(
        memory_format=torch.channels_last
    ),
    "embedding": lambda: nn.Embedding(11, 4),
    "embedding-bag": lambda: nn.EmbeddingBag(11, 4),
    "attention": lambda: nn.MultiheadAttention(6, 2),
    "attention-kdim-vdim": lambda: nn.MultiheadAttention(6, 2, kdim=5, vdim=3),
    "attention-bias-kv": lambda: nn.MultiheadAttention(6, 2, add_bias_kv=True),
    "rnn": lambda: nn.RNN(4, 5, num_layers=2),
    "lstm": lambda: nn.LSTM(4, 5, bidirectional=True),
    "lstm-projected": lambda: nn.LSTM(4, 6, proj_size=2),
    "gru": lambda: nn.GRU(4, 5),
    "rnn-cell": lambda: nn.RNNCell(4, 5),
    "lstm-cell": lambda: nn.LSTMCell(4, 5),
    "gru-cell": lambda: nn.GRUCell(4, 5),
    "batch-norm": lambda: nn.BatchNorm2d(5),
    "instance-norm": lambda: nn.InstanceNorm1d(5, affine=True),
    "group-norm": lambda: nn.GroupNorm(2, 6),
    "layer-norm": lambda: nn.LayerNorm((3, 4)),
    "rms-norm": lambda: nn.RMSNorm(5),
    "sync-batch-norm": lambda: nn.SyncBatchNorm(5),
    "embeddings": PatchEmbeddings,
    "custom": Custom,
    "tied": Tied,
    "mlp": lambda: nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3)),
}
