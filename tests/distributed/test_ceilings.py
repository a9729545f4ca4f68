"""Ceilings and experts on shards, against the same network in one process."""

from pathlib import Path

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from supple import SpectralRegularizer
from support.modules import module_at
from support.ranks import run_checks
from support.resting import resting
from support.zoo import spread


def test_ceilings():
    run_checks(__file__, 2)


class SomeExperts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(4, 6, 5))
        self.gate_up_proj_bias = nn.Parameter(torch.randn(4, 6))


def network() -> nn.Module:
    torch.manual_seed(0)
    parts = {"linear": spread(nn.Linear(8, 12), sigma=3.0), "norm": nn.LayerNorm(8), "experts": SomeExperts()}
    found = nn.ModuleDict({**parts, "conv": spread(nn.Conv2d(4, 8, 3, groups=2), sigma=0.5)}).double()
    nn.init.normal_(found["norm"].weight, 1.0)
    return found


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def check_ceilings_and_what_they_hold(folder: Path) -> None:
    pieces = module_at(Path(__file__).with_name("test_pieces.py"))
    for mesh, placements in pieces.meshes():
        lone = network()
        pair = lone, pieces.sharded(lone, mesh, placements)
        for target in ("initial", {"linear.weight": 2.0, "experts.gate_up_proj_bias": 0.5, "norm.weight": 0.3}):
            methods = [SpectralRegularizer(n, 0.1, target=target, power_iterations=30) for n in pair]
            for name, entry in methods[0].state.items():
                here = whole(methods[1].state[name]["target"])
                torch.testing.assert_close(here, entry["target"], rtol=1e-3, atol=1e-6, msg=f"{placements} {name}")
            with torch.no_grad():
                for n in pair:
                    for parameter in n.parameters():
                        parameter.mul_(1.3)
            penalties = [method.penalty().detach() for method in methods]
            torch.testing.assert_close(penalties[1], penalties[0], rtol=1e-3, atol=1e-6)
            for n, method in zip(pair, methods, strict=True):
                optimizer = torch.optim.SGD(resting(n).parameters(), lr=0.05)
                method.attach(optimizer)
                optimizer.step()
                n.zero_grad()
                method.detach()
            for (name, a), b in zip(pair[0].named_parameters(), pair[1].parameters(), strict=True):
                torch.testing.assert_close(whole(b), a, rtol=2e-3, atol=1e-4, msg=f"{placements} {name}")
            assert isinstance(next(pair[1].parameters()), DTensor)
            state = methods[1].state_dict()
            methods[1].load_state_dict(state)
