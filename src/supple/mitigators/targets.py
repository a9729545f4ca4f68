"""The targets of a network's stretches: one number for all, numbers by parameter, or the initial values."""

from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Literal

import torch
from torch import Tensor

from supple.errors import known
from supple.kernels.power_iteration import working_dtype
from supple.mitigators.kernels import Strength
from supple.mitigators.states import State, Tensors
from supple.network.roles import Role

Target = float | Mapping[str, float] | Literal["initial"]


def check_target(target: Target) -> None:
    """Check that a target is valid.

    Raises:
        TypeError: if it is neither a number, a mapping nor a string.
        ValueError: for a number that is negative or not finite, and for a string other than ``"initial"``.
    """
    if isinstance(target, str):
        known(target, ("initial",), "target that is a number of at least 0, a mapping, or 'initial'")
        return
    for name, number in (target if isinstance(target, Mapping) else {"": target}).items():
        of = f" for {name!r}" if name else ""
        if not isinstance(number, Real):
            raise TypeError(f"expected a number, a mapping or 'initial' as target{of}, got {number!r}: pass one")
        if not 0 <= number < float("inf"):
            raise ValueError(f"expected a target{of} of at least 0, got {number}: the paper's is 1")


class Targets:
    """What each stretch of a network is pulled to.

    A target per stretch is in the state, under the key ``target`` of its parameter, and is loaded with it.

    Args:
        target: as :class:`supple.SpectralRegularizer` takes it.
        roles: the parameters' roles by name.
    """

    def __init__(self, target: Target, roles: Mapping[str, Role]) -> None:
        self._target, self._roles = target, roles

    def initial_state(
        self, parameters: Mapping[str, Tensor], members: tuple[int, ...], exact_stretches: Callable[[], Tensors]
    ) -> Tensors:
        """A target per stretch, in the shape that :meth:`of` concatenates; empty if one number is for all."""
        if not isinstance(self._target, Mapping | str):
            return {}
        named = self._target if isinstance(self._target, Mapping) else {}
        for name in named:
            known(name, parameters, "parameter that is regularized")
        present = exact_stretches() if self._target == "initial" else {}
        targets = {}
        for name, parameter in parameters.items():
            role, dtype = self._roles[name], working_dtype(parameter)
            usual = 0.0 if role.kind == "vector" else 1.0
            if name in present:
                targets[name] = present[name].clamp_min(usual).to(dtype)
            else:
                count = role.layout[0] if role.layout else 1
                like = parameter if role.kind == "scale" else parameter.new_empty(*members, count)
                targets[name] = torch.full_like(like, float(named.get(name, usual)), dtype=dtype)
        return targets

    def of(self, names: Sequence[str], state: State, is_matrix: Tensor | None = None) -> Strength:
        """The targets of all stretches of these parameters, concatenated ``(members…, n)``, or one for all.

        All parameters are of one kind, or ``is_matrix`` is 1 for the stretches of matrices and 0 for the others.
        """
        kind = self._roles[names[0]].kind
        if not isinstance(self._target, Mapping | str):
            if is_matrix is None:
                return 0.0 if kind == "vector" else self._target
            return is_matrix if self._target == 1 else is_matrix * self._target
        targets = [state[name]["target"] for name in names]
        if kind == "scale":
            targets = [self._roles[name].vector(target) for name, target in zip(names, targets, strict=True)]
        return targets[0] if len(targets) == 1 else torch.cat(targets, -1)
