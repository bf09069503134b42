"""The derivative of a network's one-step map, applied to vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torch_thermo.network.base import Operation
from torch_thermo.network.gmres import gmres
from torch_thermo.network.joins import Join
from torch_thermo.network.operations import AveragePool, Elementwise, MaxPool, Reshape, Weighted
from torch_thermo.network.stages import Stage, composed, flat

if TYPE_CHECKING:
    from torch_thermo.network.network import Network

__all__ = ["StepDerivative", "activation_slopes"]

Map = Callable[..., Tensor]

# neurons up to which I - M of a recurrent network is factored: 32 MB and about a second
_FACTORED = 2000
# unit vectors a product
_COLUMNS = 256


class StepDerivative:
    r"""``M = f'(y) w``, the derivative of the one-step map ``x -> f(w x + b)`` at given states.

    V. Vanchurin, *Towards a theory of machine learning* (sec. 5): ``I - M`` carries a change of
    the states to the change of the residuals ``x - f(w x + b)``, and ``G = (I - M)^T (I - M)``
    is what the propagator's spectrum is taken of (eqs. 5.4, 5.6, 7.7). M has a block for each
    pair of a stage and one it reads, the rows of the input are 0. Products do not form it: one
    costs about one pass through the layers for all K vectors together.

    A vector has one number for each of the N neurons. K of them are a list of tensors, the
    input's ``(K, *input_shape)`` first and one ``(K, *stage.shape)`` for each stage after it.

    Each operation is taken linear at the point: layers without their bias, max-pools with their
    choice frozen, activations as factors f'(y) by autograd, at a kink with the side that
    autograd takes. The weights are those of the moment it is made, copied: make another one after a
    training step, which does not move this one. Everything is in the dtype and on the device of
    `inputs`. In float32 the slope ``1 - tanh^2`` of a saturated neuron is lost: give the point in
    float64.

    Args:
        network: feed-forward or recurrent.
        inputs: of one example, ``(1, *input_shape)``.
        states: of all stages, ``(1, *stage.shape)`` each: of a forward pass, or others, such as
            their means over examples (eq. 5.4).
        slopes: f' to take instead, one for each stage, ``(1, *shape)`` with the shape of the
            stage's pre-activation; None for a stage leaves it as it is. See `activation_slopes`.

    Raises:
        ValueError: not one example, states or slopes of another number or shape, a stage whose
            slopes are given and whose activation has none or several with maps between, or an
            activation without a derivative.
        TypeError: an operation that is not known.

    Example:
        >>> from torch import nn
        >>> from torch_thermo.network import Network
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        >>> x = torch.rand(1, 3)
        >>> network = Network.from_module(model, x)
        >>> derivative = StepDerivative(network, x, network.states(x)[0])
        >>> v = derivative.unflatten(torch.rand(9, 5))
        >>> [tuple(u.shape) for u in derivative.forward(v)]
        [(5, 3), (5, 4), (5, 2)]
    """

    @torch.inference_mode(False)
    @torch.no_grad()
    def __init__(
        self,
        network: Network,
        inputs: Tensor,
        states: Sequence[Tensor],
        slopes: Sequence[Tensor | None] | None = None,
    ) -> None:
        stages = network.stages
        self.shapes = (network.input_shape, *(stage.shape for stage in stages))
        self.neurons = network.neurons
        self.dtype = inputs.dtype
        self.device = inputs.device
        self._recurrent = network.is_recurrent
        self._factors: tuple[Tensor, Tensor] | None = None
        point = [inputs, *states]
        self._check(point, "the point", 1)
        if slopes is not None and len(slopes) != len(stages):
            raise ValueError(
                f"slopes must be one for each of the {len(stages)} stages, got {len(slopes)}"
            )
        given = [None] * len(stages) if slopes is None else slopes
        self._stages = [
            _StageDerivative(stage, [point[parent + 1] for parent in stage.parents], slope)
            for stage, slope in zip(stages, given, strict=True)
        ]

    @torch.inference_mode(False)
    @torch.no_grad()
    def forward(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """Return ``M v``."""
        self._check(vectors, "vectors")
        products = [stage.forward(vectors) for stage in self._stages]
        return [torch.zeros_like(vectors[0]), *products]

    @torch.inference_mode(False)
    @torch.no_grad()
    def reverse(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """Return ``M^T v``."""
        self._check(vectors, "vectors")
        products = [torch.zeros_like(v) for v in vectors]
        for stage, v in zip(self._stages, vectors[1:], strict=True):
            stage.add_reverse(v, products)
        return products

    @torch.inference_mode(False)
    @torch.no_grad()
    def solve(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """Return ``(I - M)^-1 v``: how the states answer to residuals v.

        In a feed-forward network by one pass through the stages, ``x_l = v_l + sum_k M_lk x_k``.
        In a recurrent one of up to 2000 neurons by the LU factors of I - M, which the first call
        forms, to a residual of eps^(1/2) |v| at most (1.5e-8 in float64, where the condition
        number is about 1e8; mostly rounding); in a larger one by GMRES, to eps^(3/4) |v|.

        Raises:
            torch.linalg.LinAlgError: I - M is singular or nearly so, or GMRES did not get there.
        """
        self._check(vectors, "vectors")
        if self._recurrent:
            return self._solved(vectors, transposed=False)
        solution = [v.clone() for v in vectors]
        for number, stage in enumerate(self._stages, 1):
            solution[number] = vectors[number] + stage.forward(solution)
        return solution

    @torch.inference_mode(False)
    @torch.no_grad()
    def solve_transposed(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """Return ``(I - M)^-T v``: as `solve`, the pass goes from the last stage to the input.

        Raises:
            torch.linalg.LinAlgError: see `solve`.
        """
        self._check(vectors, "vectors")
        if self._recurrent:
            return self._solved(vectors, transposed=True)
        solution = [v.clone() for v in vectors]
        for number in range(len(self._stages), 0, -1):
            self._stages[number - 1].add_reverse(solution[number], solution)
        return solution

    @torch.inference_mode(False)
    @torch.no_grad()
    def matrix(self) -> Tensor:
        """Return M, ``(N, N)``, by N products, 256 at once."""
        units = torch.eye(self.neurons, dtype=self.dtype, device=self.device).split(_COLUMNS, 1)
        return torch.cat([self.flatten(self.forward(self.unflatten(part))) for part in units], 1)

    def _solved(self, vectors: Sequence[Tensor], transposed: bool) -> list[Tensor]:
        """Solve the system of a recurrent network."""
        product = self.reverse if transposed else self.forward

        def left(rows: Tensor) -> Tensor:
            return rows - self.flatten(product(self.unflatten(rows.T))).T

        right = self.flatten(vectors).T
        small = self.neurons <= _FACTORED
        tol = torch.finfo(right.dtype).eps ** (0.5 if small else 0.75)
        if small:
            scale = right.norm(dim=1)
            solution = self._divided(right.T, transposed).T.where(scale[:, None] > 0, 0)
            errors = (right - left(solution)).norm(dim=1) / torch.where(scale > 0, scale, 1)
            why = "I - M is singular or nearly so"
        else:
            solution, errors = gmres(left, right, tol)
            why = "GMRES needs more products than it is given, or I - M is singular or nearly so"
        worst = float(errors.max()) if len(errors) else 0.0
        if not worst <= tol:
            raise torch.linalg.LinAlgError(  # type: ignore[attr-defined]
                f"(I - M) x = v was solved to a residual of {worst:.2g} |v| only, not {tol:.2g}: "
                f"{why}, as where the states are about to lose their stability (an eigenvalue 1 "
                "of f'w), or the states are no numbers"
            )
        return self.unflatten(solution.T)

    def _divided(self, right: Tensor, transposed: bool) -> Tensor:
        """Return (I - M)^-1 or (I - M)^-T times columns; not finite where it is singular."""
        if self._factors is None:
            unit = torch.eye(self.neurons, dtype=self.dtype, device=self.device)
            lu, pivots, zero_pivot = torch.linalg.lu_factor_ex(unit - self.matrix())
            # a factor of 0 would be divided by
            self._factors = lu + torch.where(zero_pivot > 0, torch.nan, 0).to(lu), pivots
        solution: Tensor = torch.linalg.lu_solve(*self._factors, right, adjoint=transposed)
        return solution

    def flatten(self, vectors: Sequence[Tensor]) -> Tensor:
        """Return K vectors as the columns of ``(N, K)``, the input's neurons first."""
        return torch.cat([flat(v) for v in vectors], 1).T

    def unflatten(self, columns: Tensor) -> list[Tensor]:
        """Return the columns of ``(N, K)`` as `flatten` takes them."""
        if columns.dim() != 2 or len(columns) != self.neurons:
            raise ValueError(
                f"columns must be of shape ({self.neurons}, K), got {tuple(columns.shape)}"
            )
        parts = columns.T.split([shape.numel() for shape in self.shapes], 1)
        return [p.reshape(len(p), *s) for p, s in zip(parts, self.shapes, strict=True)]

    def _check(self, vectors: Sequence[Tensor], what: str, count: int | None = None) -> None:
        count = count or (len(vectors[0]) if len(vectors) and vectors[0].dim() else 1)
        expected = [(count, *shape) for shape in self.shapes]
        found = [tuple(v.shape) for v in vectors]
        if found != expected:
            raise ValueError(f"{what} must have tensors of shapes {expected}, got {found}")


class _StageDerivative:
    """The derivative of one stage's state in those of its parents.

    Args:
        stage: read.
        parents: their states, ``(1, ...)`` each.
        slope: instead of f'; None: the activation's own.
    """

    def __init__(self, stage: Stage, parents: Sequence[Tensor], slope: Tensor | None) -> None:
        self._places = [parent + 1 for parent in stage.parents]
        self._shapes = [x.shape[1:] for x in parents]
        self._wiring = list(stage.takes)
        self._maps: list[Map] = []
        values: list[Tensor] = []
        for operation, taken in zip(stage.linear, self._wiring, strict=True):
            xs = [parents[k] if k >= 0 else values[~k] for k in taken]
            self._maps.append(_linearised(operation, *xs))
            values.append(operation(*xs))
        y = values[-1] if values else parents[0]
        if slope is not None:
            # of several elementwise functions in a row it is the product
            run = _elementwise_run(stage)
            if slope.shape != y.shape:
                shapes = f"{tuple(y.shape)}, got {tuple(slope.shape)}"
                raise ValueError(f"slopes of stage {stage.name!r} must be of shape {shapes}")
        for number, operation in enumerate(stage.activation):
            if slope is None or number not in run:
                map_ = _linearised(operation, y)
            else:
                map_ = _scaled(slope.to(y, copy=True)) if number == run[0] else _unchanged
            self._wiring.append((~(len(self._maps) - 1) if self._maps else 0,))
            self._maps.append(map_)
            y = operation(y)
        self._graph: tuple[Tensor, list[Tensor]] | None = None

    def forward(self, vectors: Sequence[Tensor]) -> Tensor:
        """Return the stage's part of M v; takes the vectors of all stages, the input's first."""
        return self._apply([vectors[place] for place in self._places])

    def add_reverse(self, vector: Tensor, products: list[Tensor]) -> None:
        """Add the stage's part of M^T v to the parents' entries of `products`."""
        # The map is linear, so that the graph of one pass serves every vector: kept, a reverse
        # product costs the backward pass alone.
        if self._graph is None or len(self._graph[0]) != len(vector):
            zeros = [
                vector.new_zeros(len(vector), *shape).requires_grad_() for shape in self._shapes
            ]
            with torch.enable_grad():
                self._graph = self._apply(zeros), zeros
        output, parents = self._graph
        parts = torch.autograd.grad(output, parents, vector, retain_graph=True)
        for place, part in zip(self._places, parts, strict=True):
            products[place] = products[place] + part

    def _apply(self, parents: Sequence[Tensor]) -> Tensor:
        values: list[Tensor] = []
        for map_, taken in zip(self._maps, self._wiring, strict=True):
            values.append(map_(*(parents[k] if k >= 0 else values[~k] for k in taken)))
        return values[-1] if values else parents[0]


def activation_slopes(
    network: Network, inputs: Tensor, states: Sequence[Tensor]
) -> list[Tensor | None]:
    """Return ``f'(y)`` of every stage for examples and their states.

    What `StepDerivative` takes as `slopes`, there of one point: averaged over examples it gives
    ``<f'(y)>``.

    Args:
        network: read.
        inputs: ``(B, *input_shape)``.
        states: of all stages, ``(B, *stage.shape)`` each.

    Returns:
        For each stage f' in the shape of its pre-activation, ``(B, ...)``; None for one without
        an activation.

    Raises:
        ValueError: an activation with other maps between elementwise functions, or without a
            derivative.
    """
    with torch.inference_mode(False), torch.no_grad():
        slopes: list[Tensor | None] = []
        for stage, y in zip(network.stages, network.pre_activations(inputs, states), strict=True):
            if any(isinstance(operation, Elementwise) for operation in stage.activation):
                run = _elementwise_run(stage)
                slopes.append(_slope(stage.activation[: len(run)], y))
            else:
                slopes.append(None)
        return slopes


def _elementwise_run(stage: Stage) -> range:
    """Return where the activation's elementwise functions are: in a row, at its start."""
    places = [i for i, o in enumerate(stage.activation) if isinstance(o, Elementwise)]
    if not places or places != list(range(len(places))):
        raise ValueError(
            f"slopes of stage {stage.name!r} need an activation of elementwise functions without "
            f"other maps before or between them, got {[o.kind for o in stage.activation]}"
        )
    return range(len(places))


def _linearised(operation: Operation, *xs: Tensor) -> Map:
    """Return the derivative of an operation at the values that it takes, each ``(1, ...)``."""
    if isinstance(operation, Elementwise):
        return _scaled(_slope((operation,), *xs))
    if isinstance(operation, Weighted):
        # a copy, which an optimizer's step does not move; cast once, not in each product
        weight, apply = operation.weight.detach().to(xs[0], copy=True), operation.apply
        return lambda v: apply(v, weight, None)
    if isinstance(operation, MaxPool):
        pool, places = operation, operation.indices(*xs)
        return lambda v: pool.select(v, places.expand(len(v), *places.shape[1:]))
    if isinstance(operation, AveragePool | Reshape | Join):
        return operation
    raise TypeError(f"the derivative of {operation!r} is not known")


def _slope(functions: Sequence[Operation], y: Tensor) -> Tensor:
    with torch.enable_grad():
        # a clone: a tensor made in inference mode cannot require a gradient
        y = y.clone().requires_grad_()
        x = composed(functions, y)
        if not x.requires_grad:
            raise ValueError(f"{functions[-1]!r} has no derivative: autograd cannot follow it")
        return torch.autograd.grad(x.sum(), y)[0]


def _scaled(slope: Tensor) -> Map:
    return lambda v: slope * v


def _unchanged(v: Tensor) -> Tensor:
    return v
