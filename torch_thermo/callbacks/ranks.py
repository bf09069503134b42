"""What ranks tell each other around a measurement, so that none waits for another for ever."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torch_thermo.callbacks._roots import Trainer
from torch_thermo.risk import entered

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


def gathered(trainer: Trainer, local: Callable[[], Tensor]) -> Tensor:
    """Return the rows of all ranks, (n, k) in float64 on the CPU; all ranks enter.

    Row i of rank r is example i * ranks + r of the probe: the order is that of one process,
    however unequal the shards.

    Args:
        trainer: the run's.
        local: returns this rank's rows, one for each of its examples, at least one.

    Raises:
        RuntimeError: another rank failed (this rank's own error is raised unchanged).
    """
    group = process_group(trainer)
    if group is None:
        return local().double().cpu()
    device = trainer.strategy.root_device

    def counted() -> tuple[Tensor, float]:
        rows = local()
        return rows, float(len(rows))

    mine, _ = entered(counted, group, device)
    shape = torch.tensor(mine.shape, device=device)
    torch.distributed.all_reduce(shape, op=torch.distributed.ReduceOp.MAX)
    rows, columns = shape.tolist()
    # shards differ in length: the first column tells a row from the padding
    padded = torch.zeros(rows, 1 + columns, dtype=torch.float64, device=device)
    padded[: len(mine), 0] = 1.0
    padded[: len(mine), 1:] = mine.to(padded)
    everyone = [torch.empty_like(padded) for _ in range(trainer.world_size)]
    torch.distributed.all_gather(everyone, padded)
    table = torch.stack(everyone, 1).reshape(-1, 1 + columns)
    return table[table[:, 0] == 1.0, 1:].cpu()


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
