"""Spectral regularization (Lewandowski et al., ICLR 2025): every layer's largest stretch is kept near one."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from supple.mitigators.base import Mitigator, State, Strength, Tensors, Update, per_member
from supple.pieces import Piece
from supple.population import Population
from supple.power_iteration import TINY, half_iteration, norm_of, normalized, prepare_, working_dtype
from supple.roles import Kind, Role
from supple.sharding import together

_WARM_UP = 15
"""Power iterations at construction, as in torch's spectral_norm: the first step then pulls nearly the right way."""


class SpectralRegularizer(Mitigator):
    r"""Keep each layer's largest singular value near one and its biases near zero.

    .. math:: R(\theta) = \sum_W (\sigma_1(W)^k - \tau^k)^2 + \sum_b \lVert b \rVert_2^{2k}
              + \sum_\gamma \sum_i (\gamma_i^k - \tau^k)^2

    over the multiplicative matrices W (a convolution as out × in·kernel), additive vectors b and normalisation gains γ.
    The gradient is known in closed form, of rank one for a matrix, :math:`2k\sigma^{k-1}(\sigma^k - \tau^k)\,u v^\top`,
    and is added in place: a step costs two matrix-vector products and one rank-one update a matrix, and two vectors of
    memory. σ₁, u and v come from a power iteration that is carried from step to step; u and v count as constants.

    Args:
        network: a module or a :class:`Population`.
        strength: λ; when left out 1e-4, the paper's choice for CIFAR and tiny-ImageNet (SVHN: 1e-3), and 1 where
            decoupled: there Adam no longer divides by the gradient's size. 1 did best of 0.3, 1 and 3 on digits, and of
            0.1, 1 and 10 on MNIST. Small networks want 1e-3 to 1e-2 of the coupled form.
        exponent: k, a whole number of at least 1; 2 balanced stability and effect in the paper (App. C.1).
        target: τ, where σ₁ and the gains are pulled to, at least 0. 1 is the paper's; 0 with k = 1 penalises σ₁².
        power_iterations: how many a step; one is enough (Yoshida & Miyato, 2017).
        decoupled: take the gradient from the parameters after the optimizer's step instead, times the step size, as
            AdamW does with weight decay, so that Adam does not bend its strength; capped so that no norm passes its
            target. :meth:`penalty` is then for looking: in a loss it would be the other form, at this strength.
        roles: parameter name to role, where the one found by :meth:`describe` is not meant.
        seed: of the first singular vectors. Members of a population start from the same ones.

    Raises:
        ValueError: for a strength that is negative or not finite, an exponent below 1, a negative target, and for
            parameters that cannot be regularized, by name.

    Departures from the paper: a vector is one tensor (also the stacked biases of q, k and v); 15 power iterations at
    construction; a trace of a fixed random direction in each iteration (see :mod:`supple.power_iteration`).

    Source: *Learning Continually by Spectral Regularization*, §4 and App. A.7. ``decoupled`` is not in the paper.

    >>> network = nn.Linear(8, 8)
    >>> optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    >>> regularizer = SpectralRegularizer(network, strength=0.1).attach(optimizer)
    >>> for _ in range(200):
    ...     optimizer.zero_grad()
    ...     optimizer.step()
    >>> bool(torch.linalg.matrix_norm(network.weight, ord=2).sub(1).abs() < 1e-3)
    True
    """

    works_on_pieces = True

    def __init__(
        self,
        network: nn.Module | Population,
        strength: Strength | None = None,
        *,
        exponent: int = 2,
        target: float = 1.0,
        power_iterations: int = 1,
        decoupled: bool = False,
        roles: Mapping[str, Kind | Role | None] | None = None,
        seed: int = 0,
    ) -> None:
        if not (exponent >= 1 and float(exponent).is_integer()):
            raise ValueError(
                f"expected an exponent k that is a whole number of at least 1, got {exponent}: the paper's is 2"
            )
        if not 0 <= target < float("inf"):
            raise ValueError(f"expected a target of at least 0, got {target}: the paper's is 1")
        if power_iterations < 1:
            raise ValueError(f"expected at least 1 power iteration a step, got {power_iterations}: 1 is enough")
        usual = 1.0 if decoupled else 1e-4
        super().__init__(network, usual if strength is None else strength, roles=roles)
        self.exponent, self.target, self.power_iterations = int(exponent), float(target), power_iterations
        self.acts_on_gradients, self.acts_on_parameters = not decoupled, decoupled
        self.state = self._first_vectors(seed)

    def add_gradients(self, parameters: Tensors, gradients: Tensors, state: State, strength: Strength) -> None:
        if self.acts_on_gradients:
            self._pull(parameters, gradients, state, partial(self._slope, strength=strength))

    def change_parameters(self, parameters: Tensors, state: State, strength: Strength, update: Update) -> None:
        if not self.acts_on_parameters:
            return

        def back(stretches: Tensor, target: float, step_size: Strength) -> Tensor:
            distance = ((stretches.abs() if self.exponent % 2 == 0 else stretches) - target).abs()
            return -(self._slope(stretches, target, strength) * step_size).clamp(-distance, distance)

        step_sizes = {id(step_size): step_size for step_size in update.step_sizes.values()}
        for key, step_size in step_sizes.items():
            held = {name: parameters[name] for name in parameters if id(update.step_sizes[name]) == key}
            self._pull(held, held, state, partial(back, step_size=step_size))

    @torch.no_grad()
    def spectral_norms(self) -> dict[str, Tensor]:
        """The present estimate of σ₁ by parameter: ``(members…)``, or ``(members…, groups)`` where it holds several.

        Only looks. The estimate is never above the true value. It lags behind by some percent while a network changes
        fast, and by nothing where it rests; :func:`supple.describe` shows the exact values. Where parameters are
        sharded, all ranks must call this together.
        """
        self._follow_devices()
        matrices = self._here({name: self.parameters[name] for name in self.state})
        return {name: norm_of(w).squeeze(-1) for name, (_, w) in self._halves(matrices, self.state).items()}

    def _penalty(self, parameters: Tensors) -> Tensor:
        k, total = self.exponent, super()._penalty(parameters)
        for name, terms in self._over_ranks(self._sums(parameters)).items():
            if self.roles[name].kind == "matrix":
                terms = (terms**k - self.target**k).square().view(*self._members, -1).sum(-1)
            elif self.roles[name].kind == "vector":
                terms = terms**k
            total = total + terms
        return total

    def _sums(self, parameters: Tensors) -> Tensors:
        """What the penalty makes of each parameter's entries: σ₁ of matrices, ‖b‖² of vectors, the terms of scales."""
        sums, k = {}, self.exponent
        with torch.no_grad():
            halves = self._halves(parameters, self.state)
        for name, parameter in parameters.items():
            role = self.roles[name]
            if role.kind == "matrix":
                u, w = halves[name]
                v = normalized(w)
                if torch.is_grad_enabled():
                    prepare_(self.state[name]["v"].copy_(v), self.state[name]["restart"])
                sums[name] = self._sight(name).stretch(parameter, u, v)
            elif role.kind == "vector":
                sums[name] = _vector(role, parameter).square().sum(-1)
            else:
                sums[name] = (_vector(role, parameter) ** k - self.target**k).square().sum(-1)
        return sums

    def _slope(self, stretches: Tensor, target: float, strength: Strength) -> Tensor:
        """The derivative of strength · (stretchᵏ − targetᵏ)² by each of the stretches ``(members…, n)``."""
        k = self.exponent
        return per_member(2 * k * strength, stretches.ndim) * stretches ** (k - 1) * (stretches**k - target**k)

    def _pull(
        self, parameters: Tensors, into: Tensors, state: State, amount: Callable[[Tensor, float], Tensor]
    ) -> None:
        """Add ``amount(stretch, target)`` times each stretch's derivative by its parameter to ``into``.

        All stretches of the network lie in one tensor while their amounts are worked out: it takes as many small
        operations for a hundred layers as for one.
        """
        by_kind: dict[Kind, list[str]] = {"matrix": [], "scale": [], "vector": []}
        for name in parameters:
            by_kind[self.roles[name].kind].append(name)
        matrices, scales, vectors = by_kind.values()

        seen = [_vector(self.roles[name], parameters[name]) for name in vectors]
        halves = [self._half(name, parameters[name], state) for name in matrices]
        norms = [self._norm(name, vector) for name, vector in zip(vectors, seen, strict=True)]
        if self._pieces:  # both at once: one message
            measured = together([*halves, *norms])
            halves, norms = measured[: len(halves)], measured[len(halves) :]
        if matrices:
            sigmas = [norm_of(w) for _, w in halves]
            sigma = torch.cat([self._row(each) for each in sigmas], -1)
            inverse = 1 / sigma.clamp_min(TINY)
            factors = self._apart(amount(sigma, self.target) * inverse, sigmas)
            for name, (u, w), factor, each in zip(matrices, halves, factors, self._apart(inverse, sigmas), strict=True):
                self._sight(name).add_outer_(into[name], u.mul_(factor), w)
                prepare_(torch.mul(w, each, out=state[name]["v"]), state[name]["restart"])
        for name in scales:
            into[name].add_(amount(_vector(self.roles[name], parameters[name]), self.target).view_as(into[name]))
        if vectors:
            norm = torch.cat(norms, -1)
            factors = self._apart(amount(norm, 0.0) / norm.clamp_min(TINY), norms)
            for name, vector, factor in zip(vectors, seen, factors, strict=True):
                into[name].add_((vector * factor).view_as(into[name]))

    def _row(self, sigma: Tensor) -> Tensor:
        """(members…, groups, 1), or (members…, 1) for one matrix, as (members…, n)."""
        return sigma if sigma.ndim == len(self._members) + 1 else sigma.squeeze(-1)

    def _apart(self, together: Tensor, tensors: list[Tensor]) -> list[Tensor]:
        """What was put side by side, in pieces of the tensors' shapes again."""
        sizes = [tensor.shape[len(self._members)] for tensor in tensors]
        pieces: tuple[Tensor, ...] = torch.split(together, sizes, -1)
        return [
            piece if piece.ndim == tensor.ndim else piece.unsqueeze(-1)
            for piece, tensor in zip(pieces, tensors, strict=True)
        ]

    def _halves(
        self, parameters: Tensors, state: State, iterations: int | None = None
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """u and w = σv of each matrix after the present step's power iterations, or so many."""
        names = [name for name in parameters if self.roles[name].kind == "matrix"]
        halves = together(self._half(name, parameters[name], state, iterations) for name in names)
        return dict(zip(names, halves, strict=True))

    def _half(self, name: str, parameter: Tensor, state: State, iterations: int | None = None) -> Any:
        """One matrix's; for a piece of a sharded one, its computation that waits for sums over ranks."""
        v, restart, iterations = state[name]["v"], state[name]["restart"], iterations or self.power_iterations
        if name in self._pieces:
            return self._pieces[name].half_iteration(parameter, v, restart, iterations)
        return half_iteration(self.roles[name].matrices(parameter), v, restart, iterations)

    def _norm(self, name: str, vector: Tensor) -> Any:
        return self._pieces[name].norm(vector) if name in self._pieces else norm_of(vector)

    def _sight(self, name: str) -> Role | Piece:
        """How to see a parameter, or the piece of it that lies here, as matrices."""
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
        matrices = self._here({name: self.parameters[name] for name in state})
        for name, (_, w) in self._halves(matrices, state, _WARM_UP).items():
            state[name]["v"] = prepare_(normalized(w), state[name]["restart"])
        return state


def _vector(role: Role, parameter: Tensor) -> Tensor:
    return role.vector(parameter).to(working_dtype(parameter))
