"""What the numbers of a benchmark depend on, for its JSON."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

import torch_thermo as tt


def machine() -> dict[str, Any]:
    """The machine and the versions; Lightning's is None where it is not installed."""
    try:
        lightning: str | None = version("pytorch-lightning")
    except PackageNotFoundError:
        lightning = None
    return {
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": lightning,
        "torch_thermo": tt.__version__,
    }
