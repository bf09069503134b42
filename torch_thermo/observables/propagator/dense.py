"""The propagator's spectrum by dense matrices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_thermo.network import Network, Stage, StepDerivative
from torch_thermo.network.operations import Dense, Elementwise, Reshape
from torch_thermo.operators.memory import available_bytes, gib

__all__ = [
    "formed",
    "layer_matrix",
    "layers",
    "log_eigenvalues",
    "reduced_size",
    "require_memory",
]

# A singular value s has an error of about eps * largest: beyond this ratio of largest to smallest
# the small ones are taken from the inverse.
_CONDITION = 1e3
# What log det G may differ from 0 by, as a share of the sum of |log lambda|: rounding leaves 1e-12
# of it up to eigenvalues e^-50, and it grows with the condition from there on.
_DETERMINANT = 1e-6
# what the matrices of a chunk of samples may take
_CHUNK_BYTES = 2**26


def layers(network: Network) -> list[Tensor] | None:
    """Return the weights of each stage, ``(units, units of its parent)``.

    None where not each stage is one dense layer behind one other, with elementwise activations.
    """
    sizes = network.sizes
    weights = []
    for number, stage in enumerate(network.stages, 1):
        layer = _only_layer(stage)
        # on the last axis of several a layer is applied many times
        if layer is None or layer.weight.shape != (sizes[number], sizes[stage.parents[0] + 1]):
            return None
        weights.append(layer.weight.detach())
    return weights


def layer_matrix(network: Network, weights: Sequence[Tensor]) -> Tensor:
    """Return w of all neurons but the input's, ``(N - inputs, N)`` in float64, from `layers`."""
    sizes = network.sizes
    offsets = [sum(sizes[:i]) for i in range(len(sizes))]
    w = weights[0].new_zeros(sum(sizes[1:]), sum(sizes), dtype=torch.float64)
    for number, (stage, weight) in enumerate(zip(network.stages, weights, strict=True), 1):
        row, column = offsets[number] - sizes[0], offsets[stage.parents[0] + 1]
        w[row : row + weight.shape[0], column : column + weight.shape[1]] = weight
    return w


def _only_layer(stage: Stage) -> Dense | None:
    *before, layer = (o for o in stage.linear if not isinstance(o, Reshape)) or (None,)
    simple = all(isinstance(o, Elementwise | Reshape) for o in stage.activation)
    chained = len(stage.parents) == 1 and (stage.wiring is None or len(stage.wiring) == 1)
    return layer if isinstance(layer, Dense) and not before and simple and chained else None


def formed(derivative: StepDerivative) -> Tensor:
    """Return M of all neurons but the input's, ``(N - inputs, N)``, by N products."""
    return derivative.matrix()[derivative.shapes[0].numel() :]


def reduced_size(network: Network, weights: Sequence[Tensor] | None) -> int:
    """Return how many eigenvalues of G may differ from 1, for weights as of `layers`."""
    if weights is None:
        return network.neurons
    inputs = network.sizes[0]
    readers = sum(
        int((weight != 0).any(1).sum())
        for stage, weight in zip(network.stages, weights, strict=True)
        if stage.parents == (-1,)
    )
    return network.neurons - inputs + min(readers, inputs)


def require_memory(network: Network, weights: Sequence[Tensor] | None) -> None:
    """Refuse an exact spectrum that does not fit.

    Raises:
        MemoryError: with what it would need and what is there.
    """
    n, size = network.neurons, reduced_size(network, weights)
    # M with a copy, and I - M, its inverse and what the decompositions take
    needed = 8 * (2 * n * (n if weights is None else n - network.sizes[0]) + 6 * size**2)
    free = available_bytes(network.device) // 2
    if needed > free:
        raise MemoryError(
            f"the exact spectrum of {n} neurons needs {gib(needed)} for its matrices and "
            f"{gib(free)} may be used: exact=False measures it matrix-free, as exact=None does "
            "where a net is large"
        )


def log_eigenvalues(w: Tensor, slopes: Tensor, unimodular: bool) -> Tensor:
    r"""Return log of the eigenvalues of `G = (I - M)^T (I - M)`, `M = diag(slopes) w`.

    As 2 log of the singular values of I - M, which keeps small eigenvalues to relative accuracy.
    The input's neurons act through the rows of w that read them alone: with `w_in^T = Q R` for
    those r rows, I - M is the identity on the complement of Q, which has eigenvalues 1, and
    `w_in` is R^T on Q: 784 input neurons become 40.

    Args:
        w: of all neurons but the input's, ``(N - inputs, N)`` float64, the input's columns first.
        slopes: ``(B, N - inputs)``.
        unimodular: det G = 1: the network is feed-forward.

    Returns:
        ``(B, N)``, ascending, float64 on the CPU.

    Raises:
        FloatingPointError: NaN or infinity among weights or slopes, or singular values so far apart
            that rounding moves log det G from the 0 that it is in a feed-forward network.
        ValueError: I - M is singular.
    """
    if not (bool(torch.isfinite(w).all()) and bool(torch.isfinite(slopes).all())):
        raise FloatingPointError(
            "M is not finite: inputs or weights hold NaN or infinity, or an example has no stable "
            "fixed point in a recurrent network"
        )
    rows, n = w.shape
    inputs = n - rows
    readers = (w[:, :inputs] != 0).any(1)
    trivial = 0
    if int(readers.sum()) < inputs:
        r = torch.linalg.qr(w[readers, :inputs].T, mode="r").R
        narrow = w.new_zeros(rows, len(r))
        narrow[readers] = r.T
        trivial = inputs - len(r)
        w = torch.cat([narrow, w[:, inputs:]], 1)
    size = max(1, _CHUNK_BYTES // (8 * w.shape[1] ** 2))
    parts = [_log_squares(w, part, unimodular) for part in slopes.split(size)]
    values = F.pad(torch.cat(parts).cpu(), (0, trivial))
    sums, sizes = values.sum(1).abs(), values.abs().sum(1)
    if unimodular and not bool((sums <= _DETERMINANT * sizes.clamp(min=1.0)).all()):
        raise FloatingPointError(
            "the eigenvalues of G are too far apart for float64: in a feed-forward network the sum "
            f"of log lambda is 0, and {float(sums.max()):.1e} was found with log lambda from "
            f"{float(values.min()):.1f} to {float(values.max()):.1f}: weights are very large, or "
            "many layers in a row amplify"
        )
    return values.sort(dim=1).values


def _log_squares(w: Tensor, slopes: Tensor, unimodular: bool) -> Tensor:
    """Return 2 log of the singular values of ``I - diag(slopes) w``, descending."""
    rows, n = w.shape
    u = torch.eye(n, dtype=w.dtype, device=w.device).repeat(len(slopes), 1, 1)
    u[:, n - rows :] -= slopes[:, :, None] * w
    values: Tensor = torch.linalg.svdvals(u)
    if bool((values[:, 0] > _CONDITION * values[:, -1]).any()):
        inverted = _from_inverse(u, values)
        # relative errors are at most eps s_max / s from u and eps s / s_min from its inverse: the
        # same at the extremes' mean. Often they are far smaller, and a split at 1 does better.
        splits = (values[:, :1] * inverted[:, -1:]).sqrt(), torch.ones_like(values[:, :1])
        found = [torch.where(values > split, values, inverted) for split in splits]
        values = found[0]
        if unimodular:
            errors = [v.log().sum(1, keepdim=True).abs() for v in found]
            values = torch.where(errors[0] < errors[1], found[0], found[1])
    return 2 * values.log()


def _from_inverse(u: Tensor, values: Tensor) -> Tensor:
    """Return the singular values as 1 / those of u's inverse, descending."""
    unit = torch.eye(u.shape[-1], dtype=u.dtype, device=u.device).expand_as(u)
    if torch.equal(u.triu(), unit):
        inverse = torch.linalg.solve_triangular(u, unit, upper=False, unitriangular=True)
    else:
        rounding = u.shape[-1] * torch.finfo(u.dtype).eps
        if bool((values[:, -1] <= rounding * values[:, 0]).any()):
            raise ValueError(
                "log G needs an I - M that is not singular, but its singular values reach from "
                f"{float(values[:, -1].min()):.1e} to {float(values[:, 0].max()):.1e}"
            )
        inverse = torch.linalg.inv(u)
    if not bool(torch.isfinite(inverse).all()):
        raise FloatingPointError("the inverse of I - M is not finite: weights are too large")
    values = torch.linalg.svdvals(inverse)
    return 1 / values.flip(-1)
