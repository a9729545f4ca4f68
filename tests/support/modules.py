"""Files outside the package as modules: examples, benchmarks, other test files."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def module_at(path: str | Path) -> ModuleType:
    """The file as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look up what they are annotated with
    spec.loader.exec_module(module)
    return module
