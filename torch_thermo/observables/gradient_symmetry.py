"""Symmetry of the gradient, layer by layer."""

from __future__ import annotations

from torch_thermo.risk import Risk
from torch_thermo.symmetry import SymmetryTest, symmetry_test


def gradient_symmetry(
    risk: Risk, seed: int = 0, most: int | None = None
) -> dict[str, SymmetryTest]:
    """Test the entries of `grad R` of every parameter for symmetry about 0 (Li, Fig. 4a).

    Exact zeros (dead units) carry no sign and count in no balance. The last layer of a ReLU net is
    one-sided by construction: its inputs are not negative. Entries depend on each other, so that
    the p-values are descriptive.

    Args:
        risk: R.
        seed: of the choice that `most` makes.
        most: order at most so many entries of each by size, see `symmetry_test`.

    Returns:
        {parameter name: SymmetryTest}.

    Raises:
        ValueError: the gradient holds NaN or infinity, or `most` is below 1.
        TypeError: `risk` is not a Risk.
    """
    if not isinstance(risk, Risk):
        raise TypeError(f"risk must be a Risk, got {type(risk).__name__}")
    gradient = risk.gradient()
    return {name: symmetry_test(gradient[block], seed, most) for name, block in risk.blocks.items()}
