"""Roles for the parameters of your own module type, registered once for all methods built later.

    python examples/own_roles.py

Methods that treat matrices, biases and gains differently leave out a parameter without a role; describe() shows it.
"""

import torch
from torch import Tensor, nn

import supple
from supple import Role


class Experts(nn.Module):
    """Four linear layers in one tensor (a gate chooses one), and a temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Parameter(torch.randn(4, 8, 16) / 4)  # (experts, out, in)
        self.shifts = nn.Parameter(torch.zeros(4, 8))
        self.temperature = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, expert: int) -> Tensor:
        return (self.maps[expert] @ x + self.shifts[expert]) / self.temperature


supple.roles.register(
    Experts,
    {
        "maps": lambda shape: Role("matrix", shape, layout=shape),  # the layout is (groups, out, in)
        "shifts": lambda shape: Role("vector", shape, layout=shape),  # (groups, n)
        "temperature": None,  # left out
    },
)


def main() -> dict[str, Role]:
    print(supple.SpectralRegularizer(Experts()).describe())

    # A role for one parameter of one network: here a tensor of three stacked matrices.
    stacked = nn.Module()
    stacked.table = nn.Parameter(torch.randn(12, 5))
    roles = {"table": Role("matrix", (12, 5), layout=(3, 4, 5))}
    print(supple.SpectralRegularizer(stacked, roles=roles).spectral_norms()["table"].shape)  # one for each matrix
    return supple.roles.find_roles(Experts())


if __name__ == "__main__":
    main()
