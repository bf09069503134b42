"""What the two symmetry callbacks share: sign balances, pooled and layer by layer."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from torch_thermo.callbacks.session import Measurement
from torch_thermo.symmetry import sign_balance


def balances(layers: Iterable[tuple[str, Tensor]]) -> Measurement:
    """Return the sign balance of all entries with its interval, and each layer's.

    Raises:
        FloatingPointError: a layer holds NaN or infinity.
    """
    scalars: dict[str, float] = {}
    entries: list[Tensor] = []
    for name, values in layers:
        flat = values.detach().reshape(-1)
        if not torch.isfinite(flat).all():
            raise FloatingPointError(f"{name} is not finite")
        entries.append(flat)
        scalars[f"layer/{name}"] = sign_balance(flat).value
    pooled = sign_balance(torch.cat([e.double() for e in entries]))
    return Measurement(
        {
            "sign_balance": pooled.value,
            "low": pooled.interval[0],
            "high": pooled.interval[1],
            **scalars,
        }
    )
