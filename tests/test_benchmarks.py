"""Every benchmark can be started, and says how; only its numbers are not tested."""

import re
from pathlib import Path

import pytest

from support.modules import module_at

ROOT = Path(__file__).parents[1]
BENCHMARKS = sorted((ROOT / "benchmarks").glob("*.py"))
PRIVATE = re.compile(r"import _|(?<!os)(?<!torch)(?<!torch\.utils)\._[a-z]")
"""Names with an underscore of another module or object: they may change at any time."""


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_it_can_be_imported_and_uses_no_private_names(path, monkeypatch):
    monkeypatch.syspath_prepend(path.parent)
    program, source = module_at(path), path.read_text()
    assert not PRIVATE.search(source)
    if "__main__" in source:
        assert re.search(rf"^ *(SUPPLE_DATA=\S+ )?python benchmarks/{path.name}", program.__doc__, re.MULTILINE)
    if "__main__" in source and path.stem != "gpu":  # which runs where tyro is not installed
        assert re.search(r"\n    tyro\.\S.*\)\(\)\n$", source), "it is a command of tyro"


def test_commands_in_the_documents_are_of_benchmarks_that_exist():
    pages = [*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md"), ROOT / "Makefile"]
    named = {name for page in pages for name in re.findall(r"benchmarks/(\w+\.py)", page.read_text())}
    assert named <= {path.name for path in BENCHMARKS}
    assert len(named) > 5
