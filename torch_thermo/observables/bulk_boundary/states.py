"""The states that minimise the local objective, from several starts."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_thermo.network import Network
from torch_thermo.observables.bulk_boundary.example_loss import ExampleLoss, Potential
from torch_thermo.observables.bulk_boundary.lbfgs import Found, lbfgs
from torch_thermo.observables.bulk_boundary.local_objective import Interaction, LocalObjective
from torch_thermo.observables.bulk_boundary.relaxed import Ends, Relaxed
from torch_thermo.observables.bulk_boundary.response import Response
from torch_thermo.observables.bulk_boundary.starts import random_residuals, starts_of

# numbers of the quasi-Newton pairs of examples that are relaxed together
_TOGETHER = 2**20


def relax_states(
    network: Network,
    inputs: Tensor,
    targets: Tensor | None,
    loss: ExampleLoss,
    starts: int,
    seed: int,
    m: float,
    interaction: Interaction | None,
    iterations: int,
    damping: float,
) -> Relaxed:
    """Minimise `LocalObjective` over the states; arguments as those of `relax`."""
    size = max(1, _TOGETHER // (network.neurons * starts))
    return Relaxed.joined(
        [
            _chunk_relaxed(
                LocalObjective(network, x, t, m, interaction),
                loss,
                starts,
                seed,
                iterations,
                damping,
            )
            for x, t in zip(
                inputs.split(size),
                [None] * len(inputs) if targets is None else targets.split(size),
                strict=targets is not None,
            )
        ]
    )


def _chunk_relaxed(
    objective: LocalObjective,
    loss: ExampleLoss,
    starts: int,
    seed: int,
    iterations: int,
    damping: float,
) -> Relaxed:
    network, inputs, targets = objective.network, objective.inputs, objective.targets
    count = len(inputs)
    rows = torch.arange(count, device=inputs.device)
    with torch.no_grad():
        passed = network.fixed_point(inputs, damping=damping)
    boundary = inputs.new_full((count,), torch.nan)
    finite = inputs.reshape(count, -1).isfinite().all(1) & ~passed.diverged
    if targets is not None:
        boundary = torch.where(passed.converged, loss(passed.states[-1], targets), boundary)
        finite &= targets.reshape(count, -1).isfinite().all(1)
    known = [objective.free(passed.states)]
    if targets is not None and not network.is_recurrent and starts > 1:
        known.append(_flipped(objective, loss, known[0]))
    ends = Ends.none(starts, known[0])
    chosen = rows[finite]
    if len(chosen):
        begin = starting_states(known, objective.boxed, starts, seed)[:, chosen]
        ends.put(chosen, settle(objective, begin.flatten(0, 1), chosen.repeat(starts), iterations))
    found, values, converged, spread = ends.lowest()
    values = torch.where(finite, values, torch.nan)
    states = objective.states(found, rows)
    with torch.no_grad():
        expected = network.one_step(inputs, states)
    hidden = [x - f for x, f in zip(states[:-1], expected[:-1], strict=True)]
    return Relaxed(states, hidden, values, converged, spread, boundary)


def _flipped(objective: LocalObjective, loss: ExampleLoss, fed_forward: Tensor) -> Tensor:
    """Return the hidden states of the flipped start of `starts_of`."""
    assert objective.targets is not None
    response = Response(objective.network, objective.inputs)
    potential = Potential(loss, objective.targets, response.outputs, response.elementwise)
    rows = torch.arange(len(fed_forward), device=fed_forward.device)
    flipped = starts_of(response, potential, rows, 2, 0)[1]
    return objective.free(response.states(flipped, rows))


def settle(objective: LocalObjective, starts: Tensor, rows: Tensor, iterations: int) -> Found:
    """Minimise H over the free neurons.

    Args:
        objective: H.
        starts: (n, D), states.
        rows: (n,), which example each is of.
        iterations: at most so many steps.

    Returns:
        The states (n, D), H (n,) and whether that is a minimum (n,): the part of the gradient that
        leads into the box is 0.
    """
    box = 1.0 if objective.boxed else torch.inf
    return lbfgs(lambda x, k: objective.slopes(x, rows[k]), starts, iterations, box)


def starting_states(known: list[Tensor], boxed: bool, starts: int, seed: int) -> Tensor:
    """Return states (starts, n, D) to start from: known ones, a corner of the box, random ones.

    The corner nearest to the feed-forward state is where a large m leads. Random states are normal
    about the feed-forward ones with deviation .6, the same for all examples.

    Args:
        known: states (n, D), those of a forward pass first.
        boxed: whether states are kept in [-1, 1].
        starts: how many, at least 1.
        seed: of the random ones.
    """
    first = known[0]
    corner = [torch.where(first < 0, -1.0, 1.0).to(first)] if boxed else []
    shifts = random_residuals(first.shape[1], starts, seed).to(first.device)
    return torch.stack([*known, *corner, *(first + shift for shift in shifts)][:starts])
