"""The propagator's spectrum by dense matrices."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_thermo.network import Network, Stage, StepDerivative
from torch_thermo.network.operations import Dense, Elementwise, Reshape

__all__ = ["formed", "layer_matrix", "log_eigenvalues", "reduced_size"]

# A singular value s has an error of about eps * largest: beyond this ratio of largest to smallest
# the small ones are taken from the inverse.
_CONDITION = 1e3
# what the matrices of a chunk of samples may take
_CHUNK_BYTES = 2**26


def layer_matrix(network: Network) -> Tensor | None:
    """Return the weights of all neurons but the input's, w ``(N - inputs, N)`` in float64.

    None where they are not read off dense layers alone, one a stage, with elementwise activations.
    """
    sizes = network.sizes
    offsets = [sum(sizes[:i]) for i in range(len(sizes))]
    w: Tensor | None = None
    for number, stage in enumerate(network.stages, 1):
        layer = _only_layer(stage)
        if layer is None:
            return None
        parent = stage.parents[0] + 1
        weight = layer.weight.detach()
        # on the last axis of several a layer is applied many times
        if weight.shape != (sizes[number], sizes[parent]):
            return None
        if w is None:
            w = weight.new_zeros(sum(sizes[1:]), sum(sizes), dtype=torch.float64)
        rows = offsets[number] - sizes[0]
        columns = offsets[parent]
        w[rows : rows + sizes[number], columns : columns + sizes[parent]] = weight
    return w


def _only_layer(stage: Stage) -> Dense | None:
    *before, layer = (o for o in stage.linear if not isinstance(o, Reshape)) or (None,)
    simple = all(isinstance(o, Elementwise | Reshape) for o in stage.activation)
    chained = len(stage.parents) == 1 and (stage.wiring is None or len(stage.wiring) == 1)
    return layer if isinstance(layer, Dense) and not before and simple and chained else None


def formed(derivative: StepDerivative) -> Tensor:
    """Return M of all neurons but the input's, ``(N - inputs, N)``, by N products."""
    return derivative.matrix()[derivative.shapes[0].numel() :]


def reduced_size(w: Tensor) -> int:
    """Return how many eigenvalues of G may differ from 1, for w as in `log_eigenvalues`."""
    inputs = w.shape[1] - w.shape[0]
    readers = int((w[:, :inputs] != 0).any(1).sum())
    return w.shape[0] + min(readers, inputs)


def log_eigenvalues(w: Tensor, slopes: Tensor) -> Tensor:
    r"""Return log of the eigenvalues of `G = (I - M)^T (I - M)`, `M = diag(slopes) w`.

    As 2 log of the singular values of I - M, which keeps small eigenvalues to relative accuracy.
    The input's neurons act through the rows of w that read them alone: with `w_in^T = Q R` for
    those r rows, I - M is the identity on the complement of Q, which has eigenvalues 1, and
    `w_in` is R^T on Q: 784 input neurons become 40.

    Args:
        w: of all neurons but the input's, ``(N - inputs, N)`` float64, the input's columns first.
        slopes: ``(B, N - inputs)``.

    Returns:
        ``(B, N)``, ascending, float64 on the CPU.

    Raises:
        FloatingPointError: NaN or infinity among weights or slopes.
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
    parts = [_log_squares(w, part) for part in slopes.split(size)]
    values = F.pad(torch.cat(parts).cpu(), (0, trivial))
    return values.sort(dim=1).values


def _log_squares(w: Tensor, slopes: Tensor) -> Tensor:
    """Return 2 log of the singular values of ``I - diag(slopes) w``, descending."""
    rows, n = w.shape
    u = torch.eye(n, dtype=w.dtype, device=w.device).repeat(len(slopes), 1, 1)
    u[:, n - rows :] -= slopes[:, :, None] * w
    values: Tensor = torch.linalg.svdvals(u)
    if bool((values[:, 0] > _CONDITION * values[:, -1]).any()):
        values = torch.where(values > 1, values, _from_inverse(u, values))
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
    values = torch.linalg.svdvals(inverse)
    return 1 / values.flip(-1)
