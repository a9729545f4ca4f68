"""The stretches of a network's parameters (σ₁ of matrices, norms of vectors, gains): measure them, change along them.

It works on one parameter at a time, for populations, sharded parameters and compiled steps alike; for a single ordinary
network, :class:`FlatStep` does the same with fewer operators.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from supple.kernels.power_iteration import TINY, half_iteration, norm_of, normalized, prepare_, working_dtype
from supple.kernels.sharding import local, run_in_lockstep
from supple.mitigators.flat_step import Amount, FlatStep
from supple.mitigators.states import State, Tensors
from supple.network.roles import Role
from supple.network.shards import Piece

_WARM_UP = 15
"""Power iterations at construction, as in torch's spectral_norm, so that u and v are nearly right in the first step."""


class Stretches:
    """Measures the stretches of a network's parameters and changes tensors along them.

    The state of each matrix holds its right singular vector ``v``, from which the power iteration continues, and the
    fixed random direction ``restart``.

    Args:
        roles: the parameters' roles by name.
        pieces: this rank's shards of the sharded parameters.
        members: the shape of the leading dimensions: ``()``, or ``(members,)`` for a population.
        power_iterations: the number per step.
    """

    def __init__(
        self, roles: Mapping[str, Role], pieces: Mapping[str, Piece], members: tuple[int, ...], power_iterations: int
    ) -> None:
        self._roles, self._pieces, self._members, self._iterations = roles, pieces, members, power_iterations
        self._flat_step = FlatStep(roles, power_iterations)

    def initial_state(self, parameters: Tensors, seed: int) -> State:
        """The same first vectors for all members, after some power iterations."""
        generator = torch.Generator().manual_seed(seed)
        state: State = {}
        for name in self._of_kind("matrix", parameters):
            parameter, (groups, _, columns) = parameters[name], self._roles[name].sizes
            shape = (columns,) if groups == 1 else (groups, columns)
            v, restart = (
                nn.functional.normalize(torch.randn(shape, generator=generator, device="cpu"), dim=-1)
                .to(parameter.device, working_dtype(parameter))
                .expand(*self._members, *shape)
                for _ in range(2)
            )
            state[name] = {"v": v, "restart": restart.contiguous()}
        for name, (_, w) in self.singular_vectors(parameters, state, _WARM_UP).items():
            state[name]["v"] = prepare_(normalized(w), state[name]["restart"])
        return state

    def singular_vectors(
        self, parameters: Tensors, state: State, iterations: int | None = None
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """u and w = σv of each matrix after ``iterations`` power iterations (default: a step's number)."""
        names = self._of_kind("matrix", parameters)
        results = run_in_lockstep(self._power_iteration(name, parameters[name], state, iterations) for name in names)
        return dict(zip(names, results, strict=True))

    def sigmas(self, parameters: Tensors, state: State, iterations: int | None = None) -> Tensors:
        """The estimate of σ₁ of each matrix, ``(members…, groups)``, by parameter."""
        vectors = self.singular_vectors(parameters, state, iterations)
        return {name: self.by_member(norm_of(w)) for name, (_, w) in vectors.items()}

    def exact(self, parameters: Tensors, state: State) -> Tensors:
        """All stretches by parameter: exact, or for sharded matrices from a converged power iteration.

        ``(members…, n)``, but shaped like the parameter for scales.
        """
        shards = {name: local(parameter) for name, parameter in parameters.items()}
        vectors = self._of_kind("vector", parameters)
        norms = run_in_lockstep(self._norms(name, self.vectors(name, shards[name])) for name in vectors)
        exact = {name: self.by_member(norm) for name, norm in zip(vectors, norms, strict=True)}
        for name, parameter in parameters.items():
            role = self._roles[name]
            if role.kind == "scale":
                exact[name] = (parameter + role.offset).abs()
            elif role.kind == "matrix" and name not in self._pieces:
                exact[name] = self.by_member(role.spectral_norms(parameter))
        sharded = {name: shards[name] for name in self._of_kind("matrix", self._pieces)}
        sigmas: Tensors = {}
        for iterations in (50, 200, 800, 3200):
            before, sigmas = sigmas, self.sigmas(sharded, state, iterations)
            if all(name in before and (sigmas[name] - before[name]).abs().max() <= 1e-5 for name in sigmas):
                break
        return exact | sigmas

    def pull(self, parameters: Tensors, into: Tensors, state: State, amount: Amount) -> None:
        """Add ``amount`` times each stretch's derivative by its parameter to ``into``, and update the vectors v.

        The amounts of all stretches of a kind are computed in one tensor, so the number of small operations does not
        grow with the number of layers. The parameters are on one device and computed in one data type.
        """
        if not (self._members or self._pieces or torch.compiler.is_compiling()):
            self._flat_step.pull(parameters, into, state, amount)
            return
        names = self._of_kind("matrix", parameters)
        vectors = {name: self.vectors(name, parameters[name]) for name in self._of_kind("vector", parameters)}
        singular: list[Any] = [self._power_iteration(name, parameters[name], state) for name in names]
        norms: list[Any] = [self._norms(name, vector) for name, vector in vectors.items()]
        if self._pieces:  # both in one message
            results = run_in_lockstep([*singular, *norms])
            singular, norms = results[: len(names)], results[len(names) :]
        if names:
            self._pull_matrices(dict(zip(names, singular, strict=True)), into, state, amount)
        for name in self._of_kind("scale", parameters):
            gains = self._roles[name].gains(parameters[name].to(working_dtype(parameters[name])))
            into[name].add_(amount([name], gains, None).view_as(into[name]))
        if vectors:
            norm = self._joined(norms)
            factors = self._split(amount([*vectors], norm, None) / norm.clamp_min(TINY), norms)
            for (name, vector), factor in zip(vectors.items(), factors, strict=True):
                factor = self._pieces[name].of_vectors(factor) if name in self._pieces else factor
                into[name].add_((vector * factor).view_as(into[name]))

    def vectors(self, name: str, parameter: Tensor) -> Tensor:
        """The vectors that a parameter, or its local shard, holds, in at least single precision."""
        return self.view_of(name).vectors(parameter.to(working_dtype(parameter)))

    def view_of(self, name: str) -> Role | Piece:
        """What views a parameter as matrices or vectors: its role, or its shard if sharded."""
        return self._pieces.get(name, self._roles[name])

    def by_member(self, stretches: Tensor) -> Tensor:
        """Reshape one value per matrix or vector to ``(members…, n)``, also for a single one."""
        return stretches.reshape(*self._members, -1)

    def _pull_matrices(
        self, singular: Mapping[str, tuple[Tensor, Tensor]], into: Tensors, state: State, amount: Amount
    ) -> None:
        sigmas = [norm_of(w) for _, w in singular.values()]
        sigma = self._joined(sigmas)
        inverse = 1 / sigma.clamp_min(TINY)
        factors = self._split(amount([*singular], sigma, None) * inverse, sigmas)
        inverses = self._split(inverse, sigmas)
        for (name, (u, w)), factor, inverse in zip(singular.items(), factors, inverses, strict=True):
            self.view_of(name).add_outer_(into[name], u.mul_(factor), w)
            prepare_(torch.mul(w, inverse, out=state[name]["v"]), state[name]["restart"])

    def _of_kind(self, kind: str, names: Iterable[str]) -> list[str]:
        return [name for name in names if self._roles[name].kind == kind]

    def _power_iteration(self, name: str, parameter: Tensor, state: State, iterations: int | None = None) -> Any:
        """u and w of one parameter; for a shard, a generator of them that :func:`run_in_lockstep` advances."""
        v, restart, iterations = state[name]["v"], state[name]["restart"], iterations or self._iterations
        if name in self._pieces:
            return self._pieces[name].half_iteration(parameter, v, restart, iterations)
        return half_iteration(self._roles[name].matrices(parameter), v, restart, iterations)

    def _norms(self, name: str, vectors: Tensor) -> Any:
        """The norms of one parameter's vectors; for a shard, a generator of them, as in :meth:`_power_iteration`."""
        return self._pieces[name].norms(vectors) if name in self._pieces else norm_of(vectors)

    def _joined(self, stretches: list[Tensor]) -> Tensor:
        return torch.cat([self.by_member(tensor) for tensor in stretches], -1)

    def _split(self, joined: Tensor, like: list[Tensor]) -> list[Tensor]:
        """Split what :meth:`_joined` concatenated into tensors with their former shapes."""
        sizes = [tensor.shape[len(self._members)] for tensor in like]
        return [part.view_as(tensor) for part, tensor in zip(torch.split(joined, sizes, -1), like, strict=True)]
