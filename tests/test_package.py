"""What is built and installed: it has its types, and it needs torch alone."""

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from pathlib import Path

import pytest

build = pytest.importorskip("hatchling.build", reason="needs hatchling, which builds the package")

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel and the source distribution."""
    folder, here = tmp_path_factory.mktemp("built"), Path.cwd()
    os.chdir(ROOT)
    try:
        return folder / build.build_wheel(str(folder)), folder / build.build_sdist(str(folder))
    finally:
        os.chdir(here)


def with_what_it_needs(name, found=None):
    """The distributions that one needs, itself included."""
    found = {} if found is None else found
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:  # for another platform
        return found
    found[name] = distribution
    for line in distribution.requires or ():
        needed = re.match(r"[\w.-]+", line).group()
        if "extra ==" not in line and needed not in found:
            with_what_it_needs(needed, found)
    return found


@pytest.fixture(scope="module")
def empty(built, tmp_path_factory):
    """The interpreter of an environment that holds torch with what torch needs, and the wheel."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    site = next(folder.glob("lib/python*/site-packages"))
    for distribution in with_what_it_needs("torch").values():
        for top in {file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")}:
            (site / top).symlink_to(distribution.locate_file(top))
    with zipfile.ZipFile(built[0]) as wheel:
        wheel.extractall(site)
    return folder / "bin" / "python"


def test_the_wheel_holds_the_library_and_its_types(built):
    with zipfile.ZipFile(built[0]) as wheel:
        names = set(wheel.namelist())
        [metadata] = (name for name in names if name.endswith("METADATA"))
        lines = wheel.read(metadata).decode().splitlines()
    files = [path for path in (ROOT / "src").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert {name for name in names if ".dist-info" not in name} == {
        str(file.relative_to(ROOT / "src")) for file in files
    }
    assert "supple/py.typed" in names
    needed = [line for line in lines if line.startswith("Requires-Dist") and "extra ==" not in line]
    assert needed == ["Requires-Dist: torch>=2.8"]
    assert "License-Expression: Apache-2.0" in lines
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_every_package_that_is_imported_is_declared():
    declared = set(re.findall(r'"([\w-]+)[>=]', (ROOT / "pyproject.toml").read_text()))
    imported = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {each.name.partition(".")[0] for each in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.partition(".")[0])
    named_otherwise = {"PIL": "pillow", "vl_convert": "vl-convert-python"}
    packages = imported - sys.stdlib_module_names - {"supple"}
    assert {named_otherwise.get(name, name) for name in packages} <= declared


def test_the_source_distribution_can_be_built_and_tested_from(built):
    with tarfile.open(built[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "Makefile",
        "constraints.txt",
        "tests/oracles/sac.py",
    } <= names
    assert "src/supple/py.typed" in names


def test_it_works_with_torch_alone(empty):
    code = """
    import sys, torch, supple
    for name in ("numpy", "polars", "altair", "tyro", "rich", "lightning", "transformers"):
        try:
            __import__(name)
        except ModuleNotFoundError:
            continue
        raise AssertionError(f"{name} is here, so nothing is shown")
    assert "site-packages" in supple.__file__
    network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    for method in (supple.SpectralRegularizer(network), supple.ReDo(network, every=1)):
        optimizer = torch.optim.Adam(network.parameters())
        method.attach(optimizer)
        network(torch.ones(3, 4)).sum().backward()
        optimizer.step()
        print(method.describe())
    population = supple.Population(lambda: torch.nn.Linear(2, 2), [0, 1])
    supple.L2InitRegularizer(population, torch.tensor([0.1, 0.2])).before_step()
    import supple.cli
    """
    done = subprocess.run(
        [empty, "-I", "-W", "ignore:Failed to initialize NumPy", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "0.weight" in done.stdout, done.stderr
    assert done.returncode == 1
    assert "pip install '.[lab]'" in done.stderr, "the command needs more"
