"""What is known of sampled circuits, and the circuits of order 1 and 2 that they hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torch_thermo.observables.circuits.arguments import check_seed, is_whole

# Draws of weights are no part of the stream that the paths were drawn from with the same seed.
_OTHER_STREAM = 0x9E3779B9


@dataclass(frozen=True)
class CircuitPaths:
    """Where sampled paths run; int64, on the CPU.

    Attributes:
        names: of the operations, in the order of `Network.graph`.
        units: (P, operations), the flat (row-major) index of the unit that a path passes behind
            each operation; -1 where it runs elsewhere.
        starts: (P,), the flat index of the input; -1 for a path from a bias, which is that of the
            first operation it passes.
        entries: (P, W), the flat index of the weight used at each weighted operation, see
            `CircuitSample.layers`; -1 where none is.
    """

    names: tuple[str, ...]
    units: Tensor
    starts: Tensor
    entries: Tensor


@dataclass(frozen=True)
class CircuitSample:
    """Circuits psi without their inputs, uniform over the alive paths of each example.

    Magnitudes of products over many layers leave float32's range, so that sign and logarithm are
    kept apart. All tensors are on the CPU, their first axis (P,) in the order of the examples.

    Attributes:
        sign: of psi, int8, +1 or -1.
        log_abs: natural logarithm of abs(psi), float64.
        inputs: x, the input that the path starts from, float64; 1 for a path from a bias.
        examples: the row of `inputs` a path belongs to, int64.
        weights: (P, W) float64, the weight that a path passes at each weighted operation, of a
            quotient x / p that is 1 / p. NaN where it passes none, on another branch or because it
            starts behind, and where the weight is divided out of psi.
        layers: names of the W weighted operations, once for each use of one used twice. Numbers in
            the forward pass (x / 255) are none: they are factors as gates are.
        most: weights, of different layers, that any path can have in `weights`.
        reason: which examples have no paths here, and why, or why there are no circuits of an
            order; None when all have.
        paths: where the paths run; None unless asked for.
    """

    sign: Tensor
    log_abs: Tensor
    inputs: Tensor
    examples: Tensor
    weights: Tensor
    layers: tuple[str, ...]
    most: int
    reason: str | None = None
    paths: CircuitPaths | None = None

    def values(self) -> Tensor:
        """Return psi (P,), float64; one below 1e-308 in magnitude is 0 or loses digits."""
        return self.sign * self.log_abs.exp()

    def weighted(self) -> tuple[Tensor, Tensor]:
        """Return sign (P,) int8 and log_abs (P,) float64 of x psi."""
        sign = self.sign * self.inputs.sign().to(torch.int8)
        return sign, self.log_abs + self.inputs.abs().log()

    def order(self, order: int, seed: int = 0) -> CircuitSample:
        r"""Return circuits of order 1 or 2 of these paths (Li, eqs. 16, 19, Fig. 3b).

        A circuit of order 1 is a term of a gradient entry, psi with one weight of the path divided
        out; one of order 2 a term of a Hessian entry, with two of different layers divided out. The
        gates stay, so that one draw of paths serves all orders.

        They are uniform over the pairs of an alive path and `order` of the weights on it, as if
        drawn anew: of each path any `order` of its w weights are divided out, and the path is kept
        with probability C(w, order) / C(most, order). Where all paths have the same number of
        weights, in a chain without biases, all are kept; in others those that start at a bias, or
        go around layers, may be left out. Circuits of weights that are exactly 0 are not among
        them: no alive path passes one.

        Args:
            order: 0 (these circuits), 1 or 2.
            seed: of the choice of weights; another for each part of a stream.

        Raises:
            ValueError: another order, or a seed that is none.
            TypeError: a seed that is no whole number.
        """
        check_order(order)
        seed = check_seed(seed)
        if order == 0:
            return self
        number = (seed + _OTHER_STREAM * order) % 2**63
        generator = torch.Generator().manual_seed(number)
        passed = ~self.weights.isnan()
        draws = torch.rand(self.weights.shape, dtype=torch.float64, generator=generator)
        chance = torch.rand(len(draws), dtype=torch.float64, generator=generator)
        count = passed.sum(1).double()
        # w (w - 1) / (m (m - 1)) and w / m
        share = torch.ones_like(chance)
        for k in range(order):
            share *= (count - k) / max(self.most - k, 1)
        rows = (chance < share).nonzero()[:, 0]
        if not len(rows):
            # none that was drawn has so many, or of so few that have none was kept
            why = f"no path was drawn from which {order} of its weights can be divided out"
            return self._part(rows, why)
        return self._divided(rows, draws.where(passed, -1.0)[rows].topk(order, 1).indices)

    def divided(self, layers: Sequence[int]) -> CircuitSample:
        """Return the paths that pass given layers, with the weights there divided out.

        Uniform over the alive paths that pass them all; these are terms of the gradient (one
        layer) or of a block of the Hessian (two).

        Args:
            layers: columns of `weights`, different ones; none leaves all weights.

        Raises:
            ValueError: columns that are not there, twice there, or no whole numbers.
        """
        columns = list(layers)
        numbers = all(map(is_whole, columns))
        if (
            not numbers
            or len(set(columns)) != len(columns)
            or not set(columns) <= set(range(len(self.layers)))
        ):
            raise ValueError(
                f"layers must be different numbers from 0 to {len(self.layers) - 1}, got {columns}"
            )
        rows = (~self.weights[:, columns].isnan()).all(1).nonzero()[:, 0]
        if not len(rows):
            return self._part(rows, "no path was drawn that passes all of these layers")
        return self._divided(rows, torch.tensor(columns).long().expand(len(rows), -1))

    def _divided(self, rows: Tensor, columns: Tensor) -> CircuitSample:
        """Return some paths, with the weights in columns (rows, k) divided out."""
        part = self._part(rows)
        weights = part.weights.gather(1, columns)
        return replace(
            part,
            sign=part.sign * weights.sign().prod(1).to(torch.int8),
            log_abs=part.log_abs - weights.abs().log().sum(1),
            weights=part.weights.scatter(1, columns, math.nan),
            most=self.most - columns.shape[1],
        )

    def _part(self, rows: Tensor, why: str | None = None) -> CircuitSample:
        """Return some paths; `why` if there are none, where that is not known before."""
        paths = self.paths
        return replace(
            self,
            sign=self.sign[rows],
            log_abs=self.log_abs[rows],
            inputs=self.inputs[rows],
            examples=self.examples[rows],
            weights=self.weights[rows],
            reason=why if why and len(self.sign) else self.reason,
            paths=None
            if paths is None
            else replace(
                paths,
                units=paths.units[rows],
                starts=paths.starts[rows],
                entries=paths.entries[rows],
            ),
        )


def check_order(order: int) -> None:
    """Refuse what is no order of a circuit.

    Raises:
        ValueError: it is not 0, 1 or 2; 1.0 and tensors are not.
    """
    if not is_whole(order) or order not in (0, 1, 2):
        raise ValueError(f"order must be 0, 1 or 2, the weights divided out, got {order!r}")
