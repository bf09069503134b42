"""Symmetry of the weights, layer by layer."""

from __future__ import annotations

from torch import nn

from torch_thermo.symmetry import SymmetryTest, symmetry_test


def weight_symmetry(
    model: nn.Module, seed: int = 0, most: int | None = None
) -> dict[str, SymmetryTest]:
    """Test the entries of every parameter for symmetry about 0 (Li, Fig. 3a).

    Entries of a trained layer depend on each other, so that the p-values are descriptive.
    Frozen parameters are tested too; the callback `WeightSymmetry` leaves them out.

    Args:
        model: its parameters that are floating point and not empty, trainable or not.
        seed: of the choice that `most` makes.
        most: order at most so many entries of each by size, see `symmetry_test`.

    Returns:
        {parameter name: SymmetryTest}.

    Raises:
        ValueError: a parameter holds NaN or infinity, or `most` is below 1.
        TypeError: `model` is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    return {
        name: symmetry_test(parameter.detach(), seed, most)
        for name, parameter in model.named_parameters()
        if parameter.is_floating_point() and parameter.numel()
    }
