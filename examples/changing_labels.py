"""Classification of a stream: no example comes twice, and the classes exchange their labels again and again.

A fixed random network decides to which of forty classes an example belongs. Every hundred steps the classes exchange
their labels: what distinguishes them stays useful, and the last layer has to be learned again. Printed is the accuracy
on each batch before it is learned from: of Adam, of Adam with spectral regularization, and of a new network with a new
Adam after every change. Adam alone slowly loses the ability to learn; starting again forgets what stays useful.

python examples/changing_labels.py          # 120 changes: two minutes on one core
python examples/changing_labels.py 20
"""

import sys

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import supple

INPUTS, CLASSES, STEPS, BATCH = 16, 40, 100, 16
COLUMNS = 8


def new_learner(regularized: bool) -> tuple[nn.Module, torch.optim.Optimizer]:
    network = nn.Sequential(nn.Linear(INPUTS, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, CLASSES))
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    if regularized:
        supple.SpectralRegularizer(network, decoupled=True).attach(optimizer)  # the line that matters
    return network, optimizer


def accuracies(changes: int, *, regularized: bool = False, starts_again: bool = False) -> list[float]:
    """The accuracy from each change to the next."""
    torch.manual_seed(0)
    random = torch.Generator().manual_seed(1)
    hidden, out = (torch.randn(size, generator=random) for size in ((INPUTS, 32), (32, CLASSES)))
    network, optimizer = new_learner(regularized)
    measured = []
    for _ in range(changes):
        labels, right = torch.randperm(CLASSES, generator=random), 0
        if starts_again:
            network, optimizer = new_learner(regularized)
        for _ in range(STEPS):
            x = torch.randn(BATCH, INPUTS, generator=random)
            y = labels[((x @ hidden).relu() @ out).argmax(1)]
            outputs = network(x)
            right += (outputs.argmax(1) == y).sum().item()
            optimizer.zero_grad()
            cross_entropy(outputs, y).backward()
            optimizer.step()
        measured.append(right / STEPS / BATCH)
    return measured


def main(changes: int = 120) -> dict[str, list[float]]:
    results = {
        "Adam": accuracies(changes),
        "Adam and spectral": accuracies(changes, regularized=True),
        "starting again": accuracies(changes, starts_again=True),
    }
    print(f"accuracy before learning, over {changes} changes of the labels, in {min(COLUMNS, changes)} parts")
    for name, measured in results.items():
        parts = torch.tensor(measured).tensor_split(min(COLUMNS, changes))
        print(f"{name:18}", *(f"{part.mean():6.3f}" for part in parts))
    return results


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*map(int, sys.argv[1:]))
