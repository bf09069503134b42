"""Which parameters of a model are measured, and the flat vectors they make."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def select(model: nn.Module, params: Iterable[str | Tensor] | None) -> dict[str, Tensor]:
    """Return {name: parameter} of those to differentiate; the errors are those of `Risk`."""
    named: dict[str, Tensor] = dict(model.named_parameters())
    if params is None:
        chosen = {name: p for name, p in named.items() if p.requires_grad}
        if not chosen:
            raise ValueError("the model has no parameter that requires a gradient")
    else:
        by_id = {id(p): name for name, p in named.items()}
        # a tied parameter has several names, and `named` only the first
        all_names = dict(model.named_parameters(remove_duplicate=False))
        wanted: set[str] = set()
        for item in [params] if isinstance(params, str | Tensor) else params:
            name = by_id.get(id(all_names.get(item) if isinstance(item, str) else item), "")
            if name not in named:
                raise ValueError(
                    "params must name parameters of the model, got "
                    + (repr(item) if isinstance(item, str) else "a tensor that is none of them")
                )
            wanted.add(name)
        chosen = {name: p for name, p in named.items() if name in wanted}
        if not chosen:
            raise ValueError("params is empty: name at least one parameter")
        for name, p in chosen.items():
            if not p.requires_grad:
                raise ValueError(f"parameter {name!r} is frozen (requires_grad is False)")
    for name, p in chosen.items():
        if isinstance(p, nn.parameter.UninitializedParameter):
            raise ValueError(f"parameter {name!r} has no shape yet: run the lazy module once")
        if p.is_complex():
            raise TypeError(f"parameter {name!r} is complex, which is not supported")
        if hasattr(p, "to_local"):
            raise TypeError(
                f"parameter {name!r} is sharded (DTensor): autograd gives no gradient for it"
            )
    return chosen


def only_device(parameters: dict[str, Tensor]) -> torch.device:
    """Return the device all parameters are on."""
    devices = {p.device for p in parameters.values()}
    if len(devices) > 1:
        raise ValueError(f"all parameters must be on one device, got {sorted(map(str, devices))}")
    return devices.pop()


def vector_dtype(parameters: dict[str, Tensor]) -> torch.dtype:
    """Return the dtype of flat vectors: the parameters' common one, float32 at least."""
    # bf16 has 8 bits: vectors of it lose orthogonality in a few steps
    dtype = torch.float32
    for p in parameters.values():
        dtype = torch.promote_types(dtype, p.dtype)
    return dtype
