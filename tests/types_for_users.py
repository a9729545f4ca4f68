"""What strict type checkers of users find in supple, and what they refuse. `make lint` checks it; nothing runs."""

import torch

import supple


def right(network: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    regularizer: supple.SpectralRegularizer = supple.SpectralRegularizer(network, strength=1e-4).attach(optimizer)
    regularizer.strength = 0.5
    state: dict[str, dict[str, torch.Tensor]] = regularizer.state_dict()
    regularizer.load_state_dict(state)
    loss: torch.Tensor = regularizer.penalty().sum()
    table: str = supple.describe(network, {"bias": None, "weight": "matrix"})
    population = supple.Population(lambda: torch.nn.Linear(3, 2), seeds=range(3))
    methods: list[supple.Mitigator] = [supple.L2Regularizer(population, torch.ones(3)), supple.UPGD(network)]
    print(loss, table, methods)


def wrong(network: torch.nn.Module, regularizer: supple.SpectralRegularizer) -> None:
    supple.SpectralRegularizer(network, "strong")  # type: ignore[arg-type]
    supple.SpectralRegularizer(network, strenght=1e-4)  # type: ignore[call-arg]
    supple.describe(network, {"weight": "matricks"})  # type: ignore[dict-item]
    regularizer.attach(network)  # type: ignore[arg-type]
    regularizer.penalty().atach()  # type: ignore[attr-defined]
