"""Each example runs, in a tiny setting, and its results differ; so does the notebook."""

import json
import math
import re
from pathlib import Path

import pytest

from support.modules import module_at

EXAMPLES = Path(__file__).parents[1] / "examples"
TINY = {"changing_labels": (2,), "stable_baselines3_agent": (110,)}


def numbers(result):
    """All that one result holds."""
    if isinstance(result, dict):
        result = result.values()
    if isinstance(result, float):
        return [result]
    return [number for part in result for number in numbers(part)]


def test_every_example_is_tested():
    programs = {path.stem for path in EXAMPLES.glob("*.py") if not path.stem.startswith("own_")}
    assert programs == TINY.keys(), "those that start with own_ are run in test_own_files.py"


@pytest.mark.parametrize("name", TINY)
def test_it_runs(name, capsys):
    if name == "stable_baselines3_agent":
        pytest.importorskip("stable_baselines3")
    program = module_at(EXAMPLES / f"{name}.py")
    without, regularized, *_ = (numbers(column) for column in program.main(*TINY[name]).values())
    assert len(without) == len(regularized) >= 2
    assert all(map(math.isfinite, [*without, *regularized]))
    assert without != regularized
    lines = capsys.readouterr().out.splitlines()
    assert sum(bool(re.search(r"\d\.\d", line)) for line in lines) >= 2


@pytest.mark.parametrize("name", TINY)
def test_its_docstring_says_how_to_run_it(name):
    text = (EXAMPLES / f"{name}.py").read_text()
    assert len(re.findall(rf"^python examples/{name}\.py", text, re.MULTILINE)) == 2


def test_the_notebook_runs():
    altair = pytest.importorskip("altair")
    cells = [cell for cell in json.loads((EXAMPLES / "tour.ipynb").read_text())["cells"] if cell["cell_type"] == "code"]
    program = "\n".join("".join(cell["source"]) for cell in cells)
    assert "TASKS, STEPS = 12, 60" in program
    names: dict[str, object] = {}
    with altair.renderers.enable("png"):  # the notebook does this for good
        exec(program.replace("TASKS, STEPS = 12, 60", "TASKS, STEPS = 1, 2"), names)
    assert {"result", "regularizer"} <= names.keys()
    shown = [cell for cell in cells if cell["outputs"]]
    assert len(shown) == len(cells) - 1, "all but the definitions have their outputs stored"
