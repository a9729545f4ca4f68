"""The cost of spectral regularization in a step of FSDP2 on many ranks, calculated, not measured: for docs/scale.md.

python benchmarks/scale.py       # prints the tables at once
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import tyro


@dataclass(frozen=True)
class Model:
    """The published dimensions of a Llama 2 network; no biases, and one gain per channel in each norm."""

    name: str
    layers: int
    width: int
    inner: int
    keys: int
    """Rows of the key and value projections: fewer than the width if query heads share keys and values."""
    vocabulary: int = 32_000

    def matrices(self) -> Iterator[tuple[int, int]]:
        """(rows, columns) of every weight matrix, as ``nn.Linear`` and ``nn.Embedding`` hold them."""
        for _ in range(self.layers):
            yield from [(self.width, self.width)] * 2  # query, output
            yield from [(self.keys, self.width)] * 2  # key, value
            yield from [(self.inner, self.width)] * 2  # gate, up
            yield (self.width, self.inner)  # down
        yield from [(self.vocabulary, self.width)] * 2  # embedding, head

    @property
    def gains(self) -> int:
        return (2 * self.layers + 1) * self.width

    @property
    def parameters(self) -> int:
        return sum(rows * columns for rows, columns in self.matrices()) + self.gains


MODELS = (
    Model("7 B", layers=32, width=4096, inner=11_008, keys=4096),
    Model("70 B", layers=80, width=8192, inner=28_672, keys=1024),
)
RANKS = (8, 64, 512)
TOKENS = 4096
"""Tokens per rank and step, from which the network's own arithmetic is calculated."""


def message(model: Model) -> int:
    """Numbers in a step's single all-reduce: WᵀWv and ‖Wv‖² of every matrix, whose rows are sharded."""
    return sum(columns + 1 for _, columns in model.matrices())


def tables() -> str:
    lines = [
        "| model | parameters | matrices | numbers in the message | message | vectors kept on each rank |",
        "|---|---|---|---|---|---|",
    ]
    for model in MODELS:
        count, numbers = len(list(model.matrices())), message(model)
        kept = 4 * 2 * (numbers - count)
        lines.append(
            f"| {model.name} | {model.parameters:,} | {count} | {numbers:,} | {4 * numbers / 1e6:.1f} MB "
            f"| {kept / 1e6:.1f} MB |"
        )
    lines += [
        "",
        "| model | ranks | sent by each | share of FSDP2's own | operations of each | share of the network's own "
        "| memory moved by each | hops, ring | hops, tree |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for model in MODELS:
        weights = model.parameters - model.gains
        for ranks in RANKS:
            share = (ranks - 1) / ranks
            sent = 2 * share * 4 * message(model)
            own = share * (2 + 2 + 4) * model.parameters
            operations = 6 * weights / ranks
            memory = 4 * 4 * weights / ranks
            lines.append(
                f"| {model.name} | {ranks} | {sent / 1e6:.1f} MB | {sent / own:.1e} | {operations / 1e9:.2f} G "
                f"| {operations / (6 * model.parameters * TOKENS):.1e} | {memory / 1e9:.2f} GB "
                f"| {2 * (ranks - 1)} | {2 * math.ceil(math.log2(ranks))} |"
            )
    return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The cost of spectral regularization in a step of FSDP2 on many ranks, calculated, not measured."""

    def __call__(self) -> None:
        print(tables())


if __name__ == "__main__":
    tyro.cli(Scale)()
