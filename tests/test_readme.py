"""The code in the README and in the guides runs as it stands there."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
DOCS = README.parent / "docs"
GUIDES = [DOCS / f"{name}.md" for name in ("tutorial", "losing-plasticity", "frameworks", "fine-tuning")]


@pytest.mark.parametrize("page", [README, *GUIDES], ids=lambda page: page.stem)
def test_python_blocks_run_one_after_the_other(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(page), "exec"), names)


def test_commands_exist():
    from supple.cli import COMMANDS

    named = set(re.findall(r"^\$ supple (\w+)", README.read_text(), re.MULTILINE))
    assert named <= COMMANDS.keys()
    assert named


def test_pictures_exist():
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", README.read_text())
    assert pictures
    for picture in pictures:
        assert (README.parent / picture).exists()


def test_what_pages_take_in_is_there():
    directives = [line for page in DOCS.glob("*.md") for line in page.read_text().splitlines() if "--8" in line]
    assert directives
    for directive in directives:
        included = re.fullmatch(r'--8<-- "([^"]+)"', directive)
        assert included, directive
        assert (README.parent / included[1]).exists()
