"""Modules of every kind, and what comparisons of them with an oracle need."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from oracles.regularizers import kind, matrices, owned, rank_ones


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
    distance = torch.linalg.vector_norm(actual.detach().cpu().double() - expected.cpu().double()).item()
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
