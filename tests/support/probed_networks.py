"""Small networks of every kind, each with a batch that it takes."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


class Residual(nn.Module):
    """Convolutions and norms, in-place activations, a shortcut."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm1 = nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv1, self.norm2 = nn.Conv2d(4, 6, 3, stride=2, dilation=1, padding=1), nn.GroupNorm(2, 6)
        self.conv2, self.down = nn.Conv2d(6, 6, (3, 1), padding=(1, 0), groups=3), nn.Conv2d(4, 6, 1, stride=2)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = torch.relu_(self.norm1(self.stem(x)))
        h = self.conv2(torch.relu_(self.norm2(self.conv1(x))))
        h += self.down(x)
        return self.head(h.relu_().mean((2, 3)))


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.positions = nn.Embedding(7, 8), nn.Parameter(torch.randn(1, 5, 8))
        self.block = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.1, batch_first=True)
        self.norm, self.head = nn.RMSNorm(8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.norm(self.block(self.embedding(x) + self.positions)).mean(1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.line, self.lstm, self.head = nn.Conv1d(2, 4, 3), nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.lstm(self.line(x).mT)[0][:, -1])


class Twice(nn.Module):
    """A layer that runs twice, one that is tied to another, one that is never used, one that is frozen."""

    def __init__(self):
        super().__init__()
        self.enter, self.shared = nn.Linear(4, 5), nn.Linear(5, 5)
        self.first, self.second, self.unused = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 5)
        self.second.weight = self.first.weight
        self.frozen, self.head = nn.Linear(5, 5).requires_grad_(False), nn.Linear(5, 3)

    def forward(self, x):
        x = torch.tanh(self.shared(torch.tanh(self.shared(torch.tanh(self.enter(x))))))
        return self.head(self.frozen(self.second(torch.tanh(self.first(x)))))


def perceptron():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.LayerNorm(6), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def tokens():
    """Linear layers over positions, and a LayerNorm over several dimensions."""
    return nn.Sequential(
        nn.Linear(4, 6), nn.Tanh(), nn.LayerNorm((3, 6)), nn.Linear(6, 6), nn.Tanh(), nn.Flatten(), nn.Linear(18, 3)
    )


def parametrized():
    network = perceptron()
    nn.utils.parametrizations.spectral_norm(network[3])
    return network


def images(count: int) -> Tensor:
    return torch.randn(count, 2, 6, 6)


NETWORKS = {
    "perceptron": (perceptron, lambda count: torch.randn(count, 4)),
    "tokens": (tokens, lambda count: torch.randn(count, 3, 4)),
    "residual": (Residual, images),
    "transformer": (Transformer, lambda count: torch.randint(7, (count, 5))),
    "recurrent": (Recurrent, lambda count: torch.randn(count, 2, 6)),
    "twice": (Twice, lambda count: torch.randn(count, 4)),
    "parametrized": (parametrized, lambda count: torch.randn(count, 4)),
    "circular": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"),
            nn.BatchNorm2d(4),
            nn.PReLU(),
            nn.Conv2d(4, 4, 3, padding="same"),
            nn.ConvTranspose2d(4, 3, 2),
            nn.InstanceNorm2d(3, affine=True),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(147, 3),
        ),
        images,
    ),
}


def network_and_probe(name: str, count: int = 9, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(seed)
    make, inputs = NETWORKS[name]
    network, x, y = make(), inputs(count), torch.randint(3, (count,))
    for module in network.modules():  # statistics, gains and biases that are not those of a fresh network
        for parameter in module.parameters(recurse=False):
            if parameter.ndim == 1 and not isinstance(module, nn.Linear):
                nn.init.normal_(parameter.data, mean=0.5)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return network, x, y


def batch(count=9):
    return torch.randn(count, 4), torch.randint(3, (count,))


def step(network, optimizer, x, y):
    device = next(network.parameters()).device
    optimizer.zero_grad()
    cross_entropy(network(x.to(device)), y.to(device)).backward()
    optimizer.step()


def train(network, optimizer, steps):
    for _ in range(steps):
        step(network, optimizer, *batch())
