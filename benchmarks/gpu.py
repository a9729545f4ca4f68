"""Everything that only a GPU can tell, in one command: at most eight minutes on one data-centre GPU, without network.

    python benchmarks/gpu.py                         # Python 3.12, PyTorch, NumPy and transformers are enough
    make wheels                                      # on another machine: what the laboratory's parts need besides
    python benchmarks/gpu.py --until 14              # after its parts, random labels on CIFAR-10, until minute 14
    python benchmarks/gpu.py --device cpu --tiny     # a dry run in seconds; its numbers mean nothing

Each part runs in a process of its own and writes ``results/gpu/<part>.json`` after every row, so what a part measured
before it failed or ran out of time is kept, and the next part runs. At the end the section "On a GPU" of
docs/performance.md is written again from these files.
"""

import argparse
import json
import multiprocessing
import os
import platform
import signal
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
PARTS = {
    "waits": 60,
    "share": 90,
    "populations": 100,
    "agent": 100,
    "tests": 90,
    "resnet18": 60,
    "memory": 20,
    "compiled": 150,
}
"""The most telling first, each with the most seconds that it may take."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=[*PARTS], help="parts to run")
    parser.add_argument("--minutes", type=float, default=8, help="when the parts end, at the latest")
    parser.add_argument("--until", type=float, default=0, help="minute up to which tasks on CIFAR-10 are trained")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, for a dry run")
    parser.add_argument(
        "--results", type=Path, help="their folder; if left out, the page's, or a temporary one for dry runs"
    )
    typed = parser.parse_args()
    kept = typed.device.startswith("cuda") and not typed.tiny and typed.results is None
    results = ROOT / "results" / "gpu" if kept else typed.results or Path(tempfile.mkdtemp())
    use_what_is_here()
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # counting GPUs then starts no CUDA in this process: see run()
    import gpu_page
    import gpu_parts
    import gpu_steps

    if typed.tiny:
        import torch._dynamo  # noqa: F401 - once here, and not once in each part

    began = time.monotonic()
    setting = gpu_steps.Setting(device=typed.device, tiny=typed.tiny)
    for name in typed.only:
        left = 60 * typed.minutes - (time.monotonic() - began)
        run(results / f"{name}.json", getattr(gpu_parts, name), setting, min(PARTS[name], left))
    for index, method in enumerate(gpu_parts.TASK_METHODS):
        left = (60 * typed.until - (time.monotonic() - began)) / (len(gpu_parts.TASK_METHODS) - index)
        if left > 0:
            part = partial(gpu_parts.tasks, method=method, root=str((ROOT if kept else results) / "runs"))
            run(results / f"tasks-{method}.json", part, setting, left)
    if kept:
        gpu_page.write(ROOT / "docs" / "performance.md", results)
    print(f"results in {results}")


def use_what_is_here() -> None:
    """Make this checkout importable and, behind all that is installed, the wheels that ``make wheels`` collected."""
    sys.path[:0] = [str(ROOT / "src")]
    unpacked = ROOT / "wheels" / "unpacked"
    for wheel in (ROOT / "wheels").glob("*.whl"):
        with zipfile.ZipFile(wheel) as file:
            file.extractall(unpacked)
    sys.path.append(str(unpacked))


def run(path: Path, part: Callable[..., None], setting: Any, limit: float) -> None:
    """Run one part for at most ``limit`` seconds; leave its rows, and its error if there was one, in ``path``."""
    if limit < 1:
        print(f"{path.stem}: no time left")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    # This process never touches CUDA, so that its forks can; they are spared the imports.
    process = multiprocessing.get_context("fork").Process(target=work, args=(path, part, setting))
    began = time.monotonic()
    process.start()
    process.join(limit)
    error = None
    if process.is_alive():
        os.killpg(process.pid or 0, signal.SIGKILL)
        process.join()
        error = f"stopped after {limit:.0f} s"
    elif process.exitcode:
        error = f"ended with code {process.exitcode}"
    content = json.loads(path.read_text()) if path.exists() else {"rows": []}
    content["error"] = content.get("error") or error
    content["seconds"] = round(time.monotonic() - began, 1)
    write(path, content)
    print(f"{path.stem}: {len(content['rows'])} rows in {content['seconds']} s", content["error"] or "", flush=True)


def work(path: Path, part: Callable[..., None], setting: Any) -> None:
    os.setsid()  # so that what it starts ends with it
    content: dict[str, Any] = {"environment": environment(setting.device), "tiny": setting.tiny, "rows": []}

    def record(**row: Any) -> None:
        content["rows"].append(row)
        write(path, content)

    try:
        part(setting, record)
    except Exception:
        content["error"] = traceback.format_exc()
    write(path, content)


def write(path: Path, content: dict[str, Any]) -> None:
    partial_path = path.with_suffix(".partial")
    partial_path.write_text(json.dumps(content, indent=1) + "\n")
    partial_path.replace(path)


def environment(device: str) -> dict[str, Any]:
    """As the laboratory's, without the facts that need its packages; and the GPU."""
    import torch

    import supple

    return {
        "supple": supple.__version__,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else torch.device(device).type,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "began": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }


if __name__ == "__main__":
    main()
