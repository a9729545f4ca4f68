"""The learner's step: what it passes on to a method."""

import torch
from torch import nn

from supple import Population, SpectralRegularizer
from supple.training.learner import Learner
from supple.training.optimizers import OPTIMIZERS


def test_in_the_learner_no_stretch_passes_its_target_either():
    population = Population(lambda: nn.Linear(4, 3), [0, 1])
    with torch.no_grad():
        population.stacked.weight.mul_(4)
    learner = Learner(population, SpectralRegularizer(population, 1e3), 0.1, optimizer=OPTIMIZERS["sgd"])
    for _ in range(30):
        learner.learn(lambda network, x: (0 * network(x).sum(), ()), torch.zeros(2, 5, 4))
    norms = torch.linalg.matrix_norm(population.stacked.weight.detach(), 2)
    torch.testing.assert_close(norms, torch.ones(2), rtol=1e-2, atol=0)
