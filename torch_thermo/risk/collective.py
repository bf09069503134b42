"""How ranks enter a collective together, whatever happens on one of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def entered(
    local: Callable[[], tuple[T, float]], group: Any, device: torch.device
) -> tuple[T, float]:
    """Return what `local` gives on this rank, and the sum of the ranks' weights; all ranks enter.

    The status goes first, (weight, flag): a rank that raises enters with its flag, and all stop
    here together instead of waiting in what follows.

    Args:
        local: `() -> (result, weight)`.
        group: the process group.
        device: where its collectives take place.

    Raises:
        RuntimeError: another rank failed (this rank's own error is raised unchanged).
    """
    failure: Exception | None = None
    weight = 0.0
    try:
        result, weight = local()
    except Exception as error:  # the collective must be entered whatever happened
        failure = error
    status = torch.tensor([weight, float(failure is not None)], dtype=torch.float64, device=device)
    torch.distributed.all_reduce(status, group=group)
    if failure is not None:
        raise failure
    if status[1]:
        raise RuntimeError("the measurement stopped: another rank failed in it")
    return result, float(status[0])
