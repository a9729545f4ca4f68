"""The examples of methods, problems and networks of one's own, used from outside the package as their texts say."""

import re
import sys
from pathlib import Path

import torch

from supple import cli
from supple.network import role_rules
from support.modules import module_at

EXAMPLES = Path(__file__).parents[1] / "examples"
COMMAND = (
    "sweep own_problem:turning_moons --methods own_method:Shrink own_method:TowardsAverage redo "
    "--model own_model:residual --epochs 1"
)


def test_the_page_shows_the_examples():
    page = (EXAMPLES.parent / "docs" / "extending.md").read_text()
    shown = re.findall(r"```python\n# examples/(.*?)\n(.*?)```", page, re.DOTALL)
    assert dict(shown) == {path.name: path.read_text() for path in EXAMPLES.glob("own_*.py")}


def test_roles_of_ones_own_types(monkeypatch, capsys):
    monkeypatch.setattr(role_rules, "_TABLE", [*role_rules._TABLE])
    kinds = {name: role.kind for name, role in module_at(EXAMPLES / "own_roles.py").main().items()}
    assert kinds == {"maps": "matrix", "shifts": "vector", "temperature": "other"}
    table, shape = capsys.readouterr().out.rsplit("\n", 2)[:2]
    assert re.search(r"^maps +4x8x16 +matrix +4 ", table, re.MULTILINE)
    assert shape == "torch.Size([3])"


def test_the_example_with_a_state_pulls_towards_the_average():
    network = torch.nn.Linear(3, 2)
    method = module_at(EXAMPLES / "own_method.py").TowardsAverage(network, 0.5, decay=0.9)
    with torch.no_grad():
        network.weight += 1
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    method.before_step()  # the average has moved by 0.1, so 0.9 are left
    torch.testing.assert_close(network.weight.grad, torch.full((2, 3), 1 + 0.5 * 0.9))
    assert torch.equal(network.bias.grad, torch.ones(2))


def test_files_of_ones_own_are_used_by_their_names(tmp_path, monkeypatch):
    """Here, and in the process that trains."""
    short = [*COMMAND.split(), "--seeds", "1", "--tasks", "2", "--workers", "1", "--out", str(tmp_path)]
    monkeypatch.syspath_prepend(EXAMPLES)  # as PYTHONPATH does
    monkeypatch.setattr(sys, "argv", ["supple", *short])
    cli.main()
    assert len(list(tmp_path.glob("*/metrics.parquet"))) == 3
