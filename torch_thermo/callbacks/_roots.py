"""The base class of the callbacks, for both names Lightning is imported by."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytorch_lightning import Callback
else:

    def _installed() -> Iterator[type]:
        for root in ("pytorch_lightning", "lightning.pytorch"):
            try:
                yield importlib.import_module(root).Callback
            except ModuleNotFoundError:
                continue

    _bases = tuple(dict.fromkeys(_installed()))
    if not _bases:
        raise ImportError(
            "torch_thermo.callbacks needs Lightning: pip install pytorch-lightning (or lightning)"
        )
    # `lightning.pytorch.Callback` and `pytorch_lightning.Callback` are distinct classes, and
    # LightningCLI takes a callback of its own root only: a class of both roots serves everywhere
    Callback = type("Callback", _bases, {"__doc__": "A callback of every installed Lightning."})

#: a trainer or module of either root; no isinstance against Lightning's classes
Trainer = Any
LightningModule = Any

__all__ = ["Callback", "LightningModule", "Trainer"]
