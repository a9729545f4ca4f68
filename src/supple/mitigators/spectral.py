"""Spectral regularization (Lewandowski et al., ICLR 2025): pulls every layer's largest singular value towards one."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from supple.kernels.power_iteration import TINY, norm_of, normalized, prepare_, working_dtype
from supple.kernels.sharding import is_sharded
from supple.mitigators.base import Mitigator
from supple.mitigators.forecast import STEPS, TOLERATED_RATIO, Change, looks_fresh, looks_initialized, warn
from supple.mitigators.kernels import Strength, Update
from supple.mitigators.optimizers import largest_step_sizes
from supple.mitigators.pull import Pull
from supple.mitigators.states import State, Tensors
from supple.mitigators.stretches import Stretches
from supple.mitigators.targets import Target, Targets, check_target
from supple.network.find_roles import owner_of, table
from supple.network.population import Population
from supple.network.roles import Overrides


class SpectralRegularizer(Mitigator):
    r"""Pull each layer's largest singular value towards one, its gains too, and its biases towards zero.

    .. math:: R(\theta) = \sum_W (\sigma_1(W)^k - 1)^2 + \sum_b \lVert b \rVert_2^{2k}
              + \sum_\gamma \sum_i (\gamma_i^k - 1)^2

    over the multiplicative matrices W (a convolution as out × in·kernel), additive vectors b and normalization gains γ.
    The gradient has a closed form, of rank one for a matrix, :math:`2k\sigma^{k-1}(\sigma^k - 1)\,u v^\top`, and is
    added in place: each step costs two matrix-vector products and one rank-one update per matrix, and memory for two
    vectors (in half precision, also for a float32 copy of one matrix, or of all if decoupled). σ₁, u and v come from a
    power iteration that continues from step to step; u and v are treated as constants.

    In this library a *stretch* σ is σ₁ of a matrix, the norm of a vector, or a gain. With a target τ other than 1
    its term is :math:`\tau^2((\sigma/\tau)^k - 1)^2`, equally strong near any τ; for τ = 0 it is :math:`\sigma^{2k}`.

    Args:
        network: a module or a :class:`Population`.
        strength: λ. The default is 1e-4, the paper's choice for CIFAR and tiny-ImageNet (SVHN: 1e-3). If decoupled it
            is 1, since Adam then does not divide by the gradient's size: 1 was the best of 0.3, 1 and 3 on digits, and
            of 0.1, 1 and 10 on MNIST. For small networks use 1e-3 to 1e-2 in the coupled form.
        exponent: k, a whole number of at least 1; 2 balanced stability and effect in the paper (App. C.1).
        target: the value that stretches are pulled to. A number τ of at least 0 is the target of matrices and gains;
            vectors have the target 0. The paper uses 1; 0 with k = 1 penalizes σ₁². The penalty is very steep for τ
            just above 0. A mapping from parameter name to number may also name vectors; all other matrices and gains
            have the target 1, other vectors 0. ``"initial"``, for trained networks, sets a ceiling for each stretch:
            its exact value at construction (some seconds for large networks), but at least 1 for matrices and gains.
            Stretches below their ceiling are not changed.
        one_sided: pull down stretches above their target, but do not pull up; always true with ``"initial"``.
        power_iterations: the number per step; one is enough (Yoshida & Miyato, 2017).
        decoupled: subtract step size times gradient from the parameters after the optimizer's step, as AdamW does with
            weight decay, so Adam does not rescale it. The change is limited so that no stretch passes its target. Do
            not add :meth:`penalty` to the loss then: that would be the coupled form at this strength.
        roles: parameter name to role, to override roles that :meth:`describe` shows.
        seed: the seed of the initial singular vectors, which are the same for all members of a population.

    When attached, the coupled form's gradient is at most (distance to the target) / (step size), times 1 − m under
    momentum m. Of a schedule the largest step size counts, where torch notes it in the parameter group (CyclicLR does
    not). So plain gradient descent does not pass the target, and momentum does not grow during a warm-up. Under Adam
    this bound rarely matters.

    Raises:
        TypeError: if the target has another type.
        ValueError: if the strength is negative or not finite, the exponent is below 1, the target is negative or names
            a parameter that is not regularized, or a parameter cannot be regularized (named in the message). When
            attached in the decoupled form: if the optimizer does not give its step size.

    Departures from the paper: a tensor that holds the biases of q, k and v counts as one vector; construction runs
    15 power iterations; each iteration adds a little of a fixed random direction (see
    :mod:`supple.kernels.power_iteration`); the gradient is bounded; and a gain γ is regularized as (γᵏ − 1)², as a
    matrix is, where the paper has no formula: with an even k a negative gain is pulled to −1.

    Source: *Learning Continually by Spectral Regularization*, §4 and App. A.7. ``decoupled``, ``one_sided`` and targets
    other than 1 are not in the paper.

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

    works_on_shards = True
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
        roles: Overrides | None = None,
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
        self._pull = Pull(self.exponent, self.one_sided, self.target in (0, 1))
        self.acts_on_gradients, self.acts_on_parameters = not decoupled, decoupled
        self.needs_step_sizes = decoupled
        self._stretches = Stretches(self.roles, self._pieces, self._members, power_iterations)
        self._targets = Targets(self.target, self.roles)
        self._set_initial_state(seed)

    @torch.no_grad()
    def _set_initial_state(self, seed: int) -> None:
        parameters = self._unpruned({**self.parameters})
        self.state = self._stretches.initial_state(self._local_shards(parameters), seed)
        exact_stretches = partial(self._stretches.exact, parameters, self.state)
        for name, target in self._targets.initial_state(self.parameters, self._members, exact_stretches).items():
            self.state.setdefault(name, {})["target"] = target

    def add_gradients(
        self,
        parameters: Tensors,
        gradients: Tensors,
        state: State,
        strength: Strength,
        step_sizes: Mapping[str, Strength | None] | None = None,
    ) -> None:
        if self.acts_on_gradients:
            change = partial(self._pull.bounded_slope, strength=strength)
            self._add(change, parameters, gradients, state, step_sizes or {})

    def change_parameters(self, parameters: Tensors, state: State, strength: Strength, update: Update) -> None:
        if self.acts_on_parameters:
            change = partial(self._pull.step, strength=strength)
            self._add(change, parameters, parameters, state, update.step_sizes)

    def _add(
        self,
        change: Callable[..., Tensor],
        parameters: Tensors,
        into: Tensors,
        state: State,
        step_sizes: Mapping[str, Strength | None],
    ) -> None:
        """Add ``change(stretch, target)`` times the stretch's derivative to ``into``, for each stretch."""
        for step_size, names in _groups(parameters, step_sizes):
            amount = partial(self._amount, partial(change, step_size=step_size), state)
            group, into_group = ({name: tensors[name] for name in names} for tensors in (parameters, into))
            self._stretches.pull(group, into_group, state, amount)

    def _amount(
        self,
        change: Callable[..., Tensor],
        state: State,
        names: Sequence[str],
        stretches: Tensor,
        is_matrix: Tensor | None,
    ) -> Tensor:
        target = self._targets.of(names, state, is_matrix)
        if self.roles[names[0]].kind == "scale" and not self._pull.depends_on_sign:
            return change(stretches.abs(), target) * stretches.sign()
        return change(stretches, target)

    def describe(self) -> str:
        """A table of all parameters: name, shape, role, number of matrices, current σ₁, and target."""
        self._follow_devices()
        targets = {}
        for name in self.parameters:
            target = torch.as_tensor(self._targets.of([name], self.state))
            if is_sharded(target):
                targets[name] = "sharded"
            else:
                least, most = f"{target.min():.3f}", f"{target.max():.3f}"
                targets[name] = least if least == most else f"{least} to {most}"
        return table(self._network, self._role_overrides, targets)

    @torch.no_grad()
    def spectral_norms(self) -> dict[str, Tensor]:
        """The current estimate of σ₁ by parameter: ``(members…)``, or ``(members…, groups)`` for several matrices.

        Changes no state. The estimate is never above the true value. It is a few percent too low while a network
        changes fast, and exact when the network does not change; :func:`supple.describe` shows the exact values. If
        parameters are sharded, all ranks must call this together.
        """
        self._follow_devices()
        matrices = self._unpruned(self._local_shards({name: self.parameters[name] for name in self._matrices}))
        vectors = self._stretches.singular_vectors(matrices, self.state)
        return {name: norm_of(w).squeeze(-1) for name, (_, w) in vectors.items()}

    def _penalty(self, parameters: Tensors) -> Tensor:
        total, state = super()._penalty(parameters), self._local_state()
        for name, terms in self._sum_over_ranks(self._sums(parameters, state)).items():
            kind = self.roles[name].kind
            if kind != "scale":
                stretches = terms if kind == "matrix" else terms.clamp_min(TINY**2).sqrt()
                terms = self._pull.penalty(self._stretches.by_member(stretches), self._targets.of([name], state))
            total = total + self._stretches.by_member(terms).sum(-1)
        return total

    def _sums(self, parameters: Tensors, state: State) -> Tensors:
        """The inputs of the penalty by parameter: σ₁ of matrices, ‖b‖² of vectors, the sum of the terms of gains."""
        sums = {}
        with torch.no_grad():
            singular = self._stretches.singular_vectors(parameters, state)
        for name, parameter in parameters.items():
            role = self.roles[name]
            if role.kind == "matrix":
                u, w = singular[name]
                v = normalized(w)
                if torch.is_grad_enabled():
                    prepare_(self.state[name]["v"].copy_(v), self.state[name]["restart"])
                sums[name] = self._stretches.view_of(name).stretch(parameter, u, v)
            elif role.kind == "vector":
                vectors = self._stretches.vectors(name, parameter)
                sums[name] = self._pieces[name].squares(vectors) if name in self._pieces else vectors.square().sum(-1)
            else:
                gains = role.gains(parameter.to(working_dtype(parameter)))
                stretches = gains if self._pull.depends_on_sign else gains.abs()
                sums[name] = self._pull.penalty(stretches, self._targets.of([name], state)).sum(-1)
        return sums

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
    def _warn_of_changes(self, optimizers: Sequence[Optimizer], parameters: Tensors) -> bool:
        return warn(
            type(self).__name__,
            self._first_changes(optimizers, parameters),
            'To keep a trained network as it is, use target="initial": it pulls only what grows above its present '
            "size. To change the network more slowly, use a smaller strength or step size.",
        )

    def _first_changes(self, optimizers: Sequence[Optimizer], parameters: Tensors) -> list[Change]:
        """How far the method's first steps with these optimizers would move these parameters, without the loss."""
        by_id = {key: size for optimizer in optimizers for key, size in largest_step_sizes(optimizer).items()}
        sizes = {name: by_id[id(parameter)] for name, parameter in parameters.items()}
        state, shards = self._local_state(), self._unpruned(self._local_shards(parameters))
        whole = {name: tensor for name, tensor in shards.items() if name not in self._pieces}
        return [
            *self._changes_of_matrices({name: shards[name] for name in self._matrices if name in shards}, state, sizes),
            *(
                self._change_of(name, tensor, state, sizes[name])
                for name, tensor in whole.items()
                if self.roles[name].kind != "matrix" and tensor.numel()
            ),
        ]

    def _change_of(self, name: str, tensor: Tensor, state: State, step_size: float) -> Change:
        """The change of a vector, or of the gains of a normalization."""
        role, target = self.roles[name], self._targets.of([name], state)
        is_vector = role.kind == "vector"
        entries = self._stretches.vectors(name, tensor) if is_vector else role.gains(tensor.float())
        entries = entries.reshape(*self._members, *(role.layout or (1, -1)))  # (members…, vectors, n)
        stretches = norm_of(entries).squeeze(-1) if is_vector else entries.abs().squeeze(-2)
        moved = (self._after_steps(stretches, target, step_size) - stretches).abs()
        moved = moved.where((stretches - target).abs() > TOLERATED_RATIO - 1, 0.0)
        norms = norm_of(entries).squeeze(-1)
        shares = (moved if is_vector else norm_of(moved)).div(norms.clamp_min(TINY)).flatten()
        worst = int(shares.argmax())
        values = entries.flatten(0, -2)[worst]
        size = norms.flatten()[worst].item() if is_vector else values.abs().max().item()
        fans = [min(self.roles[w].sizes[1:]) for w in self._matrices if owner_of(w) == owner_of(name)]
        fresh = looks_initialized(values, min(fans, default=None))
        return Change(name, size, shares[worst].item(), fresh, "norm" if is_vector else "gain")

    def _after_steps(self, stretches: Tensor, target: Strength, step_size: float) -> Tensor:
        """The stretches after the first steps, without the loss."""
        for _ in range(STEPS):
            stretches = stretches + self._pull.step(stretches, target, strength=self.strength, step_size=step_size)
        return stretches

    def _changes_of_matrices(self, shards: Tensors, state: State, sizes: Mapping[str, float]) -> Iterator[Change]:
        sigmas = self._stretches.sigmas(shards, state)
        squares = {name: shards[name].float().square().sum() for name in self._pieces if name in shards}
        squares = self._sum_over_ranks(squares)
        for name, sigma in sigmas.items():
            role, target = self.roles[name], self._targets.of([name], state)
            if name in squares:  # sharded: one sum for all groups
                norms = (squares[name] / role.sizes[0]).sqrt().expand_as(sigma)
            else:
                norms = self._stretches.by_member(torch.linalg.matrix_norm(role.matrices(shards[name]).to(sigma.dtype)))
            after = self._after_steps(sigma, target, sizes[name])
            shares = ((sigma - after) / norms.clamp_min(TINY)).where(sigma > TOLERATED_RATIO * target, 0.0).flatten()
            worst = int(shares.argmax())
            stretch, norm = sigma.flatten()[worst].item(), norms.flatten()[worst].item()
            yield Change(name, stretch, shares[worst].item(), looks_fresh(stretch, norm, *role.sizes[1:]))


def _groups(parameters: Tensors, step_sizes: Mapping[str, Strength | None]) -> list[tuple[Any, list[str]]]:
    """Group parameters that can be computed together: the same device, data type and step size.

    Two step sizes are the same if they are equal numbers or the same tensor object.
    """
    groups: dict[Any, tuple[Any, list[str]]] = {}
    for name, parameter in parameters.items():
        size = step_sizes.get(name)
        key = id(size) if isinstance(size, Tensor) else size
        groups.setdefault((key, parameter.device, working_dtype(parameter)), (size, []))[1].append(name)
    return list(groups.values())
