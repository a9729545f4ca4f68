"""Spectral regularization (Lewandowski et al., ICLR 2025): keeps every layer's largest singular value near one."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from supple.errors import known
from supple.kernels.power_iteration import TINY, half_iteration, norm_of, normalized, prepare_, working_dtype
from supple.kernels.sharding import is_sharded, together
from supple.mitigators.base import Mitigator
from supple.mitigators.flat_step import FlatStep
from supple.mitigators.forecast import NEAR, STEPS, Change, looks_fresh, warn
from supple.mitigators.kernels import Strength, Update, per_member
from supple.mitigators.optimizers import largest_step_sizes
from supple.mitigators.states import State, Tensors
from supple.mitigators.stretch import Pull, Target, check_target
from supple.network.find_roles import Kind, Role, table
from supple.network.population import Population
from supple.network.shards import Piece

_WARM_UP = 15
"""Power iterations at construction, as in torch's spectral_norm, so that u and v are nearly right in the first step."""


class SpectralRegularizer(Mitigator):
    r"""Keep each layer's largest singular value near one and its biases near zero.

    .. math:: R(\theta) = \sum_W (\sigma_1(W)^k - 1)^2 + \sum_b \lVert b \rVert_2^{2k}
              + \sum_\gamma \sum_i (\gamma_i^k - 1)^2

    over the multiplicative matrices W (a convolution as out × in·kernel), additive vectors b and normalisation gains γ.
    The gradient has a closed form, of rank one for a matrix, :math:`2k\sigma^{k-1}(\sigma^k - 1)\,u v^\top`, and is
    added in place: each step costs two matrix-vector products and one rank-one update per matrix, and memory for two
    vectors. σ₁, u and v come from a power iteration that continues from step to step; u and v are taken as constants.

    In this library a *stretch* is σ₁ of a matrix, the norm of a vector, or a gain. With another target τ the term of a
    stretch σ is :math:`\tau^2((\sigma/\tau)^k - 1)^2`, equally strong near any τ; for τ = 0, :math:`\sigma^{2k}`.

    Args:
        network: a module or a :class:`Population`.
        strength: λ. The default is 1e-4, the paper's choice for CIFAR and tiny-ImageNet (SVHN: 1e-3). If decoupled it
            is 1, since Adam then does not divide by the gradient's size: 1 was the best of 0.3, 1 and 3 on digits, and
            of 0.1, 1 and 10 on MNIST. For small networks use 1e-3 to 1e-2 in the coupled form.
        exponent: k, a whole number of at least 1; 2 balanced stability and effect in the paper (App. C.1).
        target: the value that stretches are pulled to. A number τ of at least 0 is the target of matrices and gains;
            vectors have the target 0. The paper uses 1; 0 with k = 1 penalises σ₁². The penalty is very steep for τ
            just above 0. A mapping from parameter name to number may also name vectors; parameters that it does not
            name are treated as with 1. ``"initial"``, for trained networks, sets a ceiling for each stretch: its exact
            value when the method is built (some seconds for large networks), but at least 1 for matrices and gains.
            Stretches below their ceiling are not changed.
        one_sided: pull down stretches above their target, but do not pull up; always true with ``"initial"``.
        power_iterations: the number per step; one is enough (Yoshida & Miyato, 2017).
        decoupled: subtract step size times gradient from the parameters after the optimizer's step, as AdamW does with
            weight decay, so Adam does not rescale it. The change is limited so that no stretch passes its target. Do
            not add :meth:`penalty` to the loss then: that would be the coupled form at this strength.
        roles: parameter name to role, to override roles that :meth:`describe` shows.
        seed: of the first singular vectors. All members of a population start from the same ones.

    When attached, the coupled form's gradient is at most (distance to the target) / (step size), with momentum m at
    most 1 − m of that, so that plain gradient descent does not pass the target; under Adam it rarely matters.

    Raises:
        TypeError: if the target has another type.
        ValueError: if the strength is negative or not finite, the exponent is below 1, the target is negative or names
            a parameter that is not regularized, or a parameter cannot be regularized (named in the message). When
            attached in the decoupled form: if the optimizer does not give its step size.

    Departures from the paper: a vector is one tensor (also the stacked biases of q, k and v); 15 power iterations at
    construction; each iteration adds a little of a fixed random direction (see :mod:`supple.kernels.power_iteration`);
    the bound.

    Source: *Learning Continually by Spectral Regularization*, §4 and App. A.7. ``decoupled``, ``one_sided`` and other
    targets than 1 are not in the paper.

    >>> network = nn.Linear(8, 8)
    >>> optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    >>> regularizer = SpectralRegularizer(network, strength=0.1).attach(optimizer)
    >>> for _ in range(200):
    ...     optimizer.zero_grad()
    ...     (0 * network(torch.ones(1, 8))).sum().backward()  # a loss whose gradient is zero
    ...     optimizer.step()
    >>> bool(torch.linalg.matrix_norm(network.weight, ord=2).sub(1).abs() < 1e-3)
    True
    >>> regularizer
    SpectralRegularizer(strength=0.1, 2 parameters, 1 of them matrices, attached to SGD (200 steps))
    """

    works_on_pieces = True
    goes_by_role = True

    def __init__(
        self,
        network: nn.Module | Population,
        strength: Strength | None = None,
        *,
        exponent: int = 2,
        target: Target = 1.0,
        one_sided: bool = False,
        power_iterations: int = 1,
        decoupled: bool = False,
        roles: Mapping[str, Kind | Role | None] | None = None,
        seed: int = 0,
    ) -> None:
        if not (exponent >= 1 and float(exponent).is_integer()):
            raise ValueError(
                f"expected an exponent k that is a whole number of at least 1, got {exponent}: the paper's is 2"
            )
        check_target(target)
        if power_iterations < 1:
            raise ValueError(f"expected at least 1 power iteration a step, got {power_iterations}: 1 is enough")
        usual = 1.0 if decoupled else 1e-4
        super().__init__(network, usual if strength is None else strength, roles=roles)
        self.exponent, self.power_iterations = int(exponent), power_iterations
        self.target = target if isinstance(target, Mapping | str) else float(target)
        self.one_sided = one_sided or target == "initial"
        self._towards = Pull(self.exponent, self.one_sided, self.target in (0, 1))
        self.acts_on_gradients, self.acts_on_parameters = not decoupled, decoupled
        self.needs_step_sizes = decoupled
        self._flat_step = FlatStep(self.roles, power_iterations)
        self._matrices = [name for name in self.parameters if self.roles[name].kind == "matrix"]
        self.state = self._first_vectors(seed)
        for name, ceiling in self._first_targets().items():
            self.state.setdefault(name, {})["target"] = ceiling

    def add_gradients(
        self,
        parameters: Tensors,
        gradients: Tensors,
        state: State,
        strength: Strength,
        step_sizes: Mapping[str, Strength | None] | None = None,
    ) -> None:
        if not self.acts_on_gradients:
            return

        for step_size, names in _alike(parameters, step_sizes or {}):
            held = {name: parameters[name] for name in names}
            amount = partial(self._slope, strength, step_size)
            self._pull(held, {name: gradients[name] for name in names}, state, amount)

    def change_parameters(self, parameters: Tensors, state: State, strength: Strength, update: Update) -> None:
        if not self.acts_on_parameters:
            return
        for step_size, names in _alike(parameters, update.step_sizes):
            held = {name: parameters[name] for name in names}
            self._pull(held, held, state, partial(self._way_back, strength, step_size))

    def _slope(self, strength: Strength, step_size: Strength | None, stretches: Tensor, target: Strength) -> Tensor:
        """What to add to gradients, limited so that a step of this size does not pass the target."""
        slope = self._towards.slope(stretches, target, per_member(strength, stretches.ndim))
        if step_size is None or (isinstance(step_size, float | int) and step_size == 0):
            return slope
        distance = self._towards.distance(stretches, target)
        if isinstance(step_size, Tensor):  # may be 0
            distance = distance.clamp_min(TINY)
        bound = distance / step_size
        return slope.clamp(-bound, bound)

    def _way_back(self, strength: Strength, step_size: Strength, stretches: Tensor, target: Strength) -> Tensor:
        """What to add to parameters."""
        slope = self._towards.slope(stretches, target, per_member(strength, stretches.ndim))
        distance = self._towards.distance(stretches, target)
        return (slope * -step_size).clamp(-distance, distance)

    def describe(self) -> str:
        """A table of all parameters: name, shape, role, number of matrices, current σ₁, and target."""
        self._follow_devices()
        targets = {}
        for name in self.parameters:
            target = torch.as_tensor(self._target_of([name], self.state))
            if is_sharded(target):
                targets[name] = "sharded"
            else:
                least, most = f"{target.min():.3f}", f"{target.max():.3f}"
                targets[name] = least if least == most else f"{least} to {most}"
        return table(self._network, self._role_overrides, targets)

    @torch.no_grad()
    def spectral_norms(self) -> dict[str, Tensor]:
        """The current estimate of σ₁ by parameter: ``(members…)``, or ``(members…, groups)`` for several matrices.

        Changes no state. The estimate is never above the true value. It is some percent too low while a network changes
        fast, and exact when the network does not change; :func:`supple.describe` shows the exact values. If parameters
        are sharded, all ranks must call this together.
        """
        self._follow_devices()
        matrices = self._unpruned(self._here({name: self.parameters[name] for name in self._matrices}))
        return {name: norm_of(w).squeeze(-1) for name, (_, w) in self._halves(matrices, self.state).items()}

    def _penalty(self, parameters: Tensors) -> Tensor:
        total, state = super()._penalty(parameters), self._state_here()
        for name, terms in self._over_ranks(self._sums(parameters, state)).items():
            kind = self.roles[name].kind
            if kind != "scale":
                stretches = terms if kind == "matrix" else terms.clamp_min(TINY**2).sqrt()
                terms = self._towards.penalty(self._as_row(stretches), self._target_of([name], state))
            total = total + terms.view(*self._members, -1).sum(-1)
        return total

    def _sums(self, parameters: Tensors, state: State) -> Tensors:
        """What the penalty needs of each parameter: σ₁ of matrices, ‖b‖² of vectors, the summed terms of scales."""
        sums = {}
        with torch.no_grad():
            halves = self._halves(parameters, state)
        for name, parameter in parameters.items():
            role = self.roles[name]
            if role.kind == "matrix":
                u, w = halves[name]
                v = normalized(w)
                if torch.is_grad_enabled():
                    prepare_(self.state[name]["v"].copy_(v), self.state[name]["restart"])
                sums[name] = self._sight(name).stretch(parameter, u, v)
            elif role.kind == "vector":
                vectors = self._vectors(name, parameter)
                sums[name] = self._pieces[name].squares(vectors) if name in self._pieces else vectors.square().sum(-1)
            else:
                gains = role.gains(parameter.to(working_dtype(parameter)))
                stretches = gains if self._towards.tells_signs else gains.abs()
                sums[name] = self._towards.penalty(stretches, self._target_of([name], state)).sum(-1)
        return sums

    def _pull(
        self, parameters: Tensors, into: Tensors, state: State, amount: Callable[[Tensor, Strength], Tensor]
    ) -> None:
        """Add ``amount(stretch, target)`` times the stretch's derivative to ``into``, for each stretch.

        The amounts of all stretches are computed in one tensor, so the number of small operations does not grow with
        the number of layers.
        """
        if not (self._members or self._pieces or torch.compiler.is_compiling()):

            def of_all(names: Sequence[str], stretches: Tensor, is_matrix: Tensor | None) -> Tensor:
                target = self._target_of(names, state, is_matrix)
                return amount(stretches, target) if is_matrix is not None else self._of_gains(amount, stretches, target)

            self._flat_step.pull(parameters, into, state, of_all)
            return
        by_kind: dict[str, list[str]] = {"matrix": [], "scale": [], "vector": []}
        for name in parameters:
            by_kind[self.roles[name].kind].append(name)
        matrices, scales, vectors = by_kind.values()

        seen = [self._vectors(name, parameters[name]) for name in vectors]
        halves = [self._half(name, parameters[name], state) for name in matrices]
        norms = [self._norm(name, vector) for name, vector in zip(vectors, seen, strict=True)]
        if self._pieces:  # both in one message
            measured = together([*halves, *norms])
            halves, norms = measured[: len(halves)], measured[len(halves) :]
        if matrices:
            sigmas = [norm_of(w) for _, w in halves]
            sigma = torch.cat([self._row(each) for each in sigmas], -1)
            inverse = 1 / sigma.clamp_min(TINY)
            factors = self._apart(amount(sigma, self._target_of(matrices, state)) * inverse, sigmas)
            for name, (u, w), factor, each in zip(matrices, halves, factors, self._apart(inverse, sigmas), strict=True):
                self._sight(name).add_outer_(into[name], u.mul_(factor), w)
                prepare_(torch.mul(w, each, out=state[name]["v"]), state[name]["restart"])
        for name in scales:
            gains = self.roles[name].gains(parameters[name].to(working_dtype(parameters[name])))
            into[name].add_(self._of_gains(amount, gains, self._target_of([name], state)).view_as(into[name]))
        if vectors:
            norm = torch.cat([self._row(each) for each in norms], -1)
            factors = self._apart(amount(norm, self._target_of(vectors, state)) / norm.clamp_min(TINY), norms)
            for name, vector, factor in zip(vectors, seen, factors, strict=True):
                factor = self._pieces[name].of_vectors(factor) if name in self._pieces else factor
                into[name].add_((vector * factor).view_as(into[name]))

    def _of_gains(self, amount: Callable[[Tensor, Strength], Tensor], gains: Tensor, target: Strength) -> Tensor:
        return amount(gains, target) if self._towards.tells_signs else amount(gains.abs(), target) * gains.sign()

    def _target_of(self, names: Sequence[str], state: State, is_matrix: Tensor | None = None) -> Strength:
        """The targets of all stretches of these parameters, concatenated ``(members…, n)``, or one for all.

        All parameters are of one kind, or ``is_matrix`` is 1 for the stretches of matrices and 0 for the others.
        """
        kind = self.roles[names[0]].kind
        if not isinstance(self.target, Mapping | str):
            if is_matrix is None:
                return 0.0 if kind == "vector" else self.target
            return is_matrix if self.target == 1 else is_matrix * self.target
        targets = [state[name]["target"] for name in names]
        if kind == "scale":
            targets = [self.roles[name].vector(target) for name, target in zip(names, targets, strict=True)]
        return targets[0] if len(targets) == 1 else torch.cat(targets, -1)

    @torch.no_grad()
    def _first_targets(self) -> Tensors:
        """A target per stretch, in the shape that :meth:`_target_of` concatenates; empty if one number is for all."""
        if not isinstance(self.target, Mapping | str):
            return {}
        now = self._present() if self.target == "initial" else {}
        targets = dict(self.target) if isinstance(self.target, Mapping) else {}
        for name in targets:
            known(name, self.parameters, "parameter that is regularized")
        found = {}
        for name, parameter in self.parameters.items():
            kind = self.roles[name].kind
            usual = 0.0 if kind == "vector" else 1.0
            if self.target == "initial":
                found[name] = now[name].clamp_min(usual).to(working_dtype(parameter))
            else:
                shape = parameter if kind == "scale" else parameter.new_empty(*self._members, self._count(name))
                found[name] = torch.full_like(shape, float(targets.get(name, usual)), dtype=working_dtype(parameter))
        return found

    def _present(self) -> Tensors:
        """Each parameter's current stretches: exact, or for sharded matrices from a converged power iteration."""
        pieces, parameters = self._pieces, self._unpruned({**self.parameters})
        here = self._here(parameters)
        vectors = [name for name in parameters if self.roles[name].kind == "vector"]
        norms = together(self._norm(name, self._vectors(name, here[name])) for name in vectors)
        present = {name: self._row(norm) for name, norm in zip(vectors, norms, strict=True)}
        for name, parameter in parameters.items():
            role = self.roles[name]
            if role.kind == "scale":
                present[name] = (parameter + role.offset).abs()
            elif role.kind == "matrix" and name not in pieces:
                present[name] = self._as_row(role.spectral_norms(parameter))
        sharded = {name: here[name] for name in self._matrices if name in pieces}
        sigma: Tensors = {}
        for iterations in (50, 200, 800, 3200):
            before, halves = sigma, self._halves(sharded, self.state, iterations)
            sigma = {name: self._row(norm_of(w)) for name, (_, w) in halves.items()}
            if all(name in before and (sigma[name] - before[name]).abs().max() <= 1e-5 for name in sigma):
                break
        return present | sigma

    def _count(self, name: str) -> int:
        """How many matrices or vectors a parameter holds."""
        layout = self.roles[name].layout
        return layout[0] if layout else 1

    def _options(self) -> dict[str, float]:
        options: dict[str, float] = {"exponent": self.exponent, "decoupled": self.acts_on_parameters}
        if isinstance(self.target, Mapping):
            options |= {f"target of {name}": target for name, target in self.target.items()}
        else:
            options["target"] = -1.0 if isinstance(self.target, str) else self.target
        options["one_sided"] = self.one_sided
        return {name: float(value) for name, value in options.items()}

    def _facts(self) -> list[str]:
        target = self.target if isinstance(self.target, float | str) else "by name"
        facts = {"target": (target, 1.0), "one_sided": (self.one_sided, self.target == "initial")}
        facts |= {"decoupled": (self.acts_on_parameters, False), "exponent": (self.exponent, 2)}
        return [f"{name}={value!r}" for name, (value, usual) in facts.items() if value != usual]

    @torch.no_grad()
    def _warn_of_changes(self, optimizers: Sequence[Optimizer]) -> bool:
        return warn(
            type(self).__name__,
            self.first_changes(optimizers),
            'For a trained network say target="initial", which pulls only what grows beyond what it is now. Where it '
            "is to change, go on; a smaller strength or step size changes it more slowly.",
        )

    @torch.no_grad()
    def first_changes(self, optimizers: Sequence[Optimizer]) -> list[Change]:
        """How far the method's first steps with these optimizers would move each matrix, the loss left out."""
        sizes = {key: size for optimizer in optimizers for key, size in largest_step_sizes(optimizer).items()}
        parameters = self._trainable()
        names = [name for name in self._matrices if name in parameters and id(self.parameters[name]) in sizes]
        here, state = self._unpruned(self._here({name: parameters[name] for name in names})), self._state_here()
        sigmas = {name: self._row(norm_of(w)) for name, (_, w) in self._halves(here, state).items()}
        squares = self._over_ranks({name: here[name].float().square().sum() for name in self._pieces if name in names})
        changes = []
        for name, sigma in sigmas.items():
            role, target, after = self.roles[name], self._target_of([name], state), sigma
            if name in squares:  # one sum for all groups
                norms = (squares[name] / role.sizes[0]).sqrt().expand_as(sigma)
            else:
                norms = self._as_row(torch.linalg.matrix_norm(role.matrices(here[name]).to(sigma.dtype)))
            for _ in range(STEPS):
                distance = self._towards.distance(after, target)
                pull = self._towards.slope(after, target, per_member(self.strength, after.ndim))
                after = after - (pull * sizes[id(self.parameters[name])]).clamp(-distance, distance)
            shares = ((sigma - after) / norms.clamp_min(TINY)).where(sigma > NEAR * target, 0.0).flatten()
            worst = int(shares.argmax())
            stretch, norm = sigma.flatten()[worst].item(), norms.flatten()[worst].item()
            fresh = looks_fresh(stretch, norm, *role.sizes[1:])
            changes.append(Change(name, stretch, shares[worst].item(), fresh))
        return changes

    def _row(self, sigma: Tensor) -> Tensor:
        """Reshape (members…, groups, 1), or (members…, 1) for one matrix, to (members…, n)."""
        return sigma if sigma.ndim == len(self._members) + 1 else sigma.squeeze(-1)

    def _as_row(self, stretches: Tensor) -> Tensor:
        """Reshape (members…, groups), or (members…) for one matrix, to (members…, n)."""
        return stretches.view(*self._members, -1)

    def _apart(self, together: Tensor, tensors: list[Tensor]) -> list[Tensor]:
        """Split a concatenation back into the shapes of ``tensors``."""
        sizes = [tensor.shape[len(self._members)] for tensor in tensors]
        pieces: tuple[Tensor, ...] = torch.split(together, sizes, -1)
        return [
            piece if piece.ndim == tensor.ndim else piece.unsqueeze(-1)
            for piece, tensor in zip(pieces, tensors, strict=True)
        ]

    def _halves(
        self, parameters: Tensors, state: State, iterations: int | None = None
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """u and w = σv of each matrix after ``iterations`` power iterations (default: a step's number)."""
        names = [name for name in parameters if self.roles[name].kind == "matrix"]
        halves = together(self._half(name, parameters[name], state, iterations) for name in names)
        return dict(zip(names, halves, strict=True))

    def _half(self, name: str, parameter: Tensor, state: State, iterations: int | None = None) -> Any:
        """u and w of one parameter; for a shard, a computation that :func:`together` completes with sums over ranks."""
        v, restart, iterations = state[name]["v"], state[name]["restart"], iterations or self.power_iterations
        if name in self._pieces:
            return self._pieces[name].half_iteration(parameter, v, restart, iterations)
        return half_iteration(self.roles[name].matrices(parameter), v, restart, iterations)

    def _norm(self, name: str, vectors: Tensor) -> Any:
        return self._pieces[name].norms(vectors) if name in self._pieces else norm_of(vectors)

    def _vectors(self, name: str, parameter: Tensor) -> Tensor:
        """The vectors that a parameter, or its local shard, holds, in at least single precision."""
        parameter = parameter.to(working_dtype(parameter))
        return self._pieces[name].vectors(parameter) if name in self._pieces else self.roles[name].vectors(parameter)

    def _sight(self, name: str) -> Role | Piece:
        """What gives a parameter's matrices: its Role, or its local shard if sharded."""
        return self._pieces.get(name, self.roles[name])

    @torch.no_grad()
    def _first_vectors(self, seed: int) -> State:
        generator = torch.Generator().manual_seed(seed)
        state: State = {}
        for name, parameter in self.parameters.items():
            if self.roles[name].kind == "matrix":
                groups, _, columns = self.roles[name].sizes
                shape = (columns,) if groups == 1 else (groups, columns)
                v, restart = (
                    nn.functional.normalize(torch.randn(shape, generator=generator), dim=-1)
                    .to(parameter.device, working_dtype(parameter))
                    .expand(*self._members, *shape)
                    for _ in range(2)
                )
                state[name] = {"v": v, "restart": restart.contiguous()}
        matrices = self._unpruned(self._here({name: self.parameters[name] for name in state}))
        for name, (_, w) in self._halves(matrices, state, _WARM_UP).items():
            state[name]["v"] = prepare_(normalized(w), state[name]["restart"])
        return state


def _alike(parameters: Tensors, step_sizes: Mapping[str, Strength | None]) -> list[tuple[Any, list[str]]]:
    """Group parameters that can be computed together: the same device, data type and step size.

    Two step sizes are the same if they are equal numbers or the same tensor object.
    """
    groups: dict[Any, tuple[Any, list[str]]] = {}
    for name, parameter in parameters.items():
        size = step_sizes.get(name)
        key = id(size) if isinstance(size, Tensor) else size
        groups.setdefault((key, parameter.device, working_dtype(parameter)), (size, []))[1].append(name)
    return list(groups.values())
