"""Gaps in the spectrum of a propagator."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Gap", "spectral_gaps"]

# logarithms that are closer than this are one eigenvalue: the trivial ones are 0 up to rounding
_SAME = 1e-6


@dataclass(frozen=True)
class Gap:
    """An interval of log lambda without eigenvalues.

    Attributes:
        below: log lambda at its lower end.
        above: log lambda at its upper end.
        size: their difference.
        count_below: number of eigenvalues up to `below`.
    """

    below: float
    above: float
    size: float
    count_below: int

    @property
    def middle(self) -> float:
        """The log lambda half way."""
        return 0.5 * (self.below + self.above)


def spectral_gaps(log_eigenvalues: Tensor, share: float = 0.5) -> list[Gap]:
    """The gaps of a spectrum that are about as wide as its widest, widest first.

    Vanchurin's Fig. 5 marks one gap by an arrow. Spectra of trained nets have several of similar
    size, at the ends of the spectrum above all, where eigenvalues are sparse: all candidates are
    listed, and `count_below` says where each stands.

    Args:
        log_eigenvalues: (N,) log lambda in any order.
        share: list the gaps of at least this share of the widest, in (0, 1].

    Returns:
        The gaps; none where all eigenvalues agree within 1e-6.

    Raises:
        ValueError: no eigenvalues, one that is not finite, a share outside (0, 1].
    """
    if log_eigenvalues.ndim != 1 or log_eigenvalues.numel() == 0:
        raise ValueError(
            f"log_eigenvalues must be (N,) with N >= 1, got {tuple(log_eigenvalues.shape)}"
        )
    if not bool(torch.isfinite(log_eigenvalues).all()):
        raise ValueError("log_eigenvalues must be finite, got NaN or infinity")
    if not 0.0 < share <= 1.0:
        raise ValueError(f"share must be in (0, 1], got {share}")
    values = log_eigenvalues.detach().cpu().double().sort().values
    sizes = values.diff()
    least = max(_SAME, share * float(sizes.max())) if len(sizes) else _SAME
    gaps = [
        Gap(float(values[i]), float(values[i + 1]), float(sizes[i]), i + 1)
        for i in (sizes >= least).nonzero()[:, 0].tolist()
    ]
    return sorted(gaps, key=lambda gap: -gap.size)
