"""The section "On a GPU" of docs/performance.md, from the files that gpu.py writes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HEADING = "## On a GPU\n"
NOTES = """
`python benchmarks/gpu.py` measures everything below in one command (its first lines say how) and fills this section.
What is known without a GPU, because tests on the CPU check it:

- **Launches.** On a GPU every operator costs a launch, whatever its size. A step of spectral regularization, in either
  form, takes at most 45 operators more on the 4x256 MLP, 130 on ResNet-18 and 250 on a GPT-2 of 12 layers: three per
  matrix and about thirty for the network. Other methods take 8 to 124 on the MLP. A test counts them for every method.
- **Nothing waits.** No method's step reads a number from the device, except methods that act once in a period when a
  `GradScaler` is used: in the steps in which they are due, they read whether the scaler skipped the step.
- **Captured.** Both forms of spectral regularization can be inside `torch.compile`: a compiled step of a population or
  an agent is one full graph, and `torch.compile(optimizer.step)` has only the graph break that torch puts around every
  optimizer's step. A strength that is a tensor may change between steps; a number recompiles the step when it
  first changes. A step keeps its tensors in the same memory, as a CUDA graph needs; with CUDA graphs use an optimizer
  with `capturable=True`, take a few steps before the capture, and give the strength as a tensor on the GPU that you
  change in place. The test of captured steps for that runs only where there is a GPU.
"""
TITLES = {
    "waits": "Steps that wait for the device",
    "share": "The regularizer's share of a training step",
    "compiled": "Its share of a compiled training step",
    "populations": "Populations, for each member",
    "agent": "Updates of the agent, for each member",
    "resnet18": "Steps of ResNet-18 on 3x32x32 images, batch 250",
    "memory": "Memory at the peak of a step",
    "tests": "Tests on CUDA",
    "tasks-none": "Random labels on CIFAR-10: no mitigation",
    "tasks-spectral": "Random labels on CIFAR-10: spectral",
    "tasks-decoupled-spectral": "Random labels on CIFAR-10: decoupled spectral",
}


def section(results: Path) -> str:
    """What a user on a GPU should know, then a table for each part that is measured."""
    return HEADING + NOTES + "".join(lines(results))


def lines(results: Path) -> Iterator[str]:
    left = []
    for name, title in TITLES.items():
        path = results / f"{name}.json"
        if not path.exists():
            left.append(title)
            continue
        content = json.loads(path.read_text())
        yield f"\n### {title}\n\n"
        if content["rows"]:
            yield f"On {content['environment']['device']}, torch {content['environment']['torch']}.\n\n"
            yield table(content["rows"])
        if content.get("error"):
            yield f"\nIt did not end well: {content['error'].strip().splitlines()[-1]}\n"
    if left:
        yield f"\nNot measured yet: {'; '.join(left)}.\n"


def table(rows: list[dict[str, Any]]) -> str:
    """A row's values that are not lists, under their names."""
    names = list(dict.fromkeys(name for row in rows for name, value in row.items() if not isinstance(value, list)))
    cells = [names, ["---"] * len(names), *([shown(row.get(name, "")) for name in names] for row in rows)]
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)


def shown(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def write(page: Path, results: Path) -> None:
    """Replace the section, which is the page's last."""
    page.write_text(page.read_text().partition(HEADING)[0] + section(results))
