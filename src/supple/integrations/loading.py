"""States of several methods or monitors, loaded all or none."""

import copy
from collections.abc import Iterable, Mapping
from typing import Any, Protocol


class Stateful(Protocol):
    """A method or a monitor."""

    def state_dict(self) -> Mapping[str, Any]: ...
    def load_state_dict(self, state: Any, /) -> object: ...


def load_all(states: Iterable[tuple[Stateful, Any]]) -> None:
    """Load the state of each; if one refuses its own, those before it get back what they had."""
    loaded: list[tuple[Stateful, Any]] = []
    for part, state in states:
        before = copy.deepcopy(part.state_dict())
        try:
            part.load_state_dict(state)
        except Exception:
            for earlier, own in loaded:
                earlier.load_state_dict(own)
            raise
        loaded.append((part, before))
