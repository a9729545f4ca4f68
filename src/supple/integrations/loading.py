"""States of several methods or monitors: gathered from all ranks, and loaded all or none."""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from torch import Tensor
from torch.utils._pytree import tree_map_only

from supple.kernels.sharding import is_sharded
from supple.mitigators import Mitigator


class Stateful(Protocol):
    """A method or a monitor."""

    def state_dict(self) -> Mapping[str, Any]:
        """A copy of the state."""

    def load_state_dict(self, state: Any, /) -> object: ...


def states_of(mitigators: Iterable[Mitigator]) -> list[Any]:
    """The methods' states with whole tensors, for a file that one rank writes; all ranks call it together."""
    states = [mitigator.state_dict() for mitigator in mitigators]
    gathered: list[Any] = tree_map_only(Tensor, lambda part: part.full_tensor() if is_sharded(part) else part, states)
    return gathered


def load_all(states: Iterable[tuple[Stateful, Any]]) -> None:
    """Load the state of each; if one refuses its own, those before it get back what they had."""
    loaded: list[tuple[Stateful, Any]] = []
    for part, state in states:
        before = part.state_dict()
        try:
            part.load_state_dict(state)
        except Exception:
            for earlier, own in loaded:
                earlier.load_state_dict(own)
            raise
        loaded.append((part, before))
