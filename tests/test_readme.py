"""The code in the README and in the guides runs as it stands there."""

import re
from pathlib import Path

import pytest

from supple.lab.run import Run
from supple.lab.trainer import train
from support.events import scalars

README = Path(__file__).parents[1] / "README.md"
DOCS = README.parent / "docs"
GUIDES = [DOCS / f"{name}.md" for name in ("tutorial", "losing-plasticity", "fine-tuning")]


SHORTER = {"steps=200": "steps=3", "30 * new_task()": "new_task()", "for _ in range(20)]": "for _ in range(1)]"}
"""Trainings of the pages, which show something only if they are long."""


@pytest.mark.parametrize("page", [README, *GUIDES], ids=lambda page: page.stem)
def test_python_blocks_run_one_after_the_other(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = page.read_text()
    for long, short in SHORTER.items():
        text = text.replace(long, short)
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(page), "exec"), names)


FRAMEWORKS = {"Lightning": 40, "Transformers": 20, "Accelerate": 40, "Stable-Baselines3": 125}
PROGRAMS = {"Plain PyTorch": 10, **FRAMEWORKS, "Your own loop": 1}
"""How many steps each program's monitor counts, over both of its trainings."""


@pytest.mark.parametrize("title", PROGRAMS)
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:'pin_memory' argument")
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
def test_each_program_of_the_page_of_frameworks_runs_by_itself(title, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")  # other tests take Accelerate's state for that of a CPU
    section = (DOCS / "frameworks.md").read_text().split(f"## {title}\n")[1]
    names: dict[str, object] = {}
    exec(re.search(r"```python\n(.*?)```", section, re.DOTALL)[1], names)
    monitor = names.get("monitor") or names["parts"]["monitor"]
    assert monitor.steps == PROGRAMS[title]
    if title in FRAMEWORKS:
        logged = {
            name for folder in {file.parent for file in tmp_path.rglob("events.out*")} for name, *_ in scalars(folder)
        }
        assert {"train/spectral_norm", "critic/spectral_norm", "spectral_norm"} & logged


def test_a_table_is_exported_as_the_laboratory_page_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seeds in ((0, 1), (1000,)):
        train(Run.of("random-label-digits", "none", seeds, tasks=2, epochs=1, diagnostics=[]), root="runs")
    (block,) = re.findall(r"```python\n(.*?)```", (DOCS / "laboratory.md").read_text(), re.DOTALL)
    exec(block, {})
    head, row = (tmp_path / "table.csv").read_text().split()
    assert (head, row[:9], row[-2:]) == ("method,strength,mean,error,seeds", "none,0.0,", ",2")


def test_the_program_with_ppo_runs_shortened(tmp_path, monkeypatch, capsys):
    """One rollout of 256 steps, with 20 epochs of one batch each."""
    monkeypatch.chdir(tmp_path)
    section = (DOCS / "frameworks.md").read_text().split("## Stable-Baselines3\n")[1]
    program = re.findall(r"```python\n(.*?)```", section, re.DOTALL)[2]
    exec(program.replace("STEPS = 50_000", "STEPS = 256"), {})
    assert "attached to Adam (20 steps)" in capsys.readouterr().out


def test_the_program_without_the_heads_leaves_them_out(capsys):
    section = (DOCS / "frameworks.md").read_text().split("## Stable-Baselines3\n")[1]
    exec(re.findall(r"```python\n(.*?)```", section, re.DOTALL)[1], {})
    left_out = re.findall(r"^ *(\S+\.weight) .*left out", capsys.readouterr().out, re.MULTILINE)
    assert left_out == ["mu.weight", "log_std.weight", "qf0.4.weight", "qf1.4.weight"]


def test_the_program_that_tests_a_critic_runs_shortened(capsys):
    section = (DOCS / "frameworks.md").read_text().split("## Stable-Baselines3\n")[1]
    program = re.findall(r"```python\n(.*?)```", section, re.DOTALL)[3]
    exec(program.replace("STEPS = 1_000", "STEPS = 300"), {})
    assert "the network and its optimizer" in capsys.readouterr().out


def test_the_readme_is_short():
    assert len(README.read_text().split()) <= 900


def test_commands_exist():
    from supple.cli import COMMANDS

    named = set(re.findall(r"^\$ supple (\w+)", README.read_text(), re.MULTILINE))
    assert named <= COMMANDS.keys()
    assert named


def test_pictures_exist():
    pictures = re.findall(r'(?:src|srcset)="([^"]+)"', README.read_text())
    assert len(pictures) == 4, "two, each for light and dark pages"
    for picture in pictures:
        assert (README.parent / picture).exists()
