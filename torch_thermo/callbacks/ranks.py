"""What ranks tell each other around a measurement, so that none waits for another for ever."""

from __future__ import annotations

from typing import Any

import torch

from torch_thermo.callbacks._roots import Trainer

READY, WAITING, FAILED = 0, 1, 2
DONE, RAISED, LASTING = 0, 1, 2
# far above any number of ranks, and exact in the sum
_ARRIVED = 2.0**30


def process_group(trainer: Trainer) -> Any | None:
    """Return the group that a risk is reduced over; None on one process."""
    if trainer.world_size == 1 or not torch.distributed.is_initialized():
        return None
    return torch.distributed.group.WORLD


def worst(trainer: Trainer, mine: int) -> int:
    """Return the largest of the ranks' numbers; all ranks enter."""
    if process_group(trainer) is None:
        return mine
    shared = torch.tensor(float(mine), device=trainer.strategy.root_device)
    torch.distributed.all_reduce(shared, op=torch.distributed.ReduceOp.MAX)
    return int(shared)


def settle(trainer: Trainer, outcome: int) -> int:
    """Wait until every rank has ended its measurement; return the worst outcome.

    A rank whose measurement raised outside a reduction leaves the others waiting in one. It stands
    in for it here: what it sends has the layout of `risk`'s own status, (weight, flag), so that
    theirs ends with a flag, they raise, and come here too.
    """
    if process_group(trainer) is None:
        return outcome
    device = trainer.strategy.root_device
    arrived = 0.0
    while arrived < _ARRIVED * trainer.world_size:
        status = torch.tensor(
            [0.0, _ARRIVED + float(outcome != DONE)], dtype=torch.float64, device=device
        )
        torch.distributed.all_reduce(status)
        arrived = float(status[1])
    return worst(trainer, outcome)
