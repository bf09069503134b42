"""Where the descents to the exact bulk loss start."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_thermo.observables.bulk_boundary.example_loss import Potential
from torch_thermo.observables.bulk_boundary.newton import wrong_side
from torch_thermo.observables.bulk_boundary.response import Response

DEVIATION = 0.6
"""Standard deviation of the residuals at random starts, in units of the states."""


def random_residuals(size: int, starts: int, seed: int) -> Tensor:
    """Return normal residuals (starts, size), float64 on the CPU; those of fewer come first."""
    generator = torch.Generator().manual_seed(seed)
    # one draw each: numbers of one large draw change with its size
    drawn = [torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(starts)]
    return DEVIATION * torch.stack(drawn)


def starts_of(
    response: Response, potential: Potential, examples: Tensor, starts: int, seed: int
) -> Tensor:
    r"""Return residuals (starts, n, H) to start from: feed-forward, flipped, random.

    1. r = 0, the feed-forward state;
    2. `r = J^T (J J^T)^+ s`, the shortest that moves y by `s = -y` on the outputs of the wrong side
       to where their activation is steepest (see `newton.wrong_side`); an example that has none
       takes a random start;
    3. the others: independent normal residuals of deviation .6.

    The random residuals are the same for all examples, and those of fewer starts the first of more:
    so the result of an example depends neither on the others nor on its place among them.

    Args:
        response: y and J.
        potential: of y.
        examples: (n,), which.
        starts: how many, at least 1.
        seed: of the random ones.
    """
    count = len(examples)
    drawn = random_residuals(response.hidden, starts, seed).to(examples.device)
    found = drawn[:, None].repeat(1, count, 1)
    found[0] = 0
    if starts > 1 and response.hidden:
        y, jacobian = response.jacobian(found[0], examples)
        wrong = wrong_side(potential, y, examples)
        chosen = wrong.any(1).nonzero()[:, 0]
        shift = torch.where(wrong, -y, 0.0)[chosen]
        jacobian = jacobian[chosen]
        inverse = torch.linalg.pinv(jacobian @ jacobian.mT, hermitian=True)
        found[1, chosen] = ((inverse @ shift[..., None]).mT @ jacobian)[:, 0]
    return found
