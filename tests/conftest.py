"""What all tests share: one thread, fixed draws, and which files run where packages are missing.

The core's tests need torch, numpy and pytest alone. A file that needs more is left out where that
is not installed, and the header of the run says so. With ``TORCH_THERMO_TESTS=all`` (`make test`)
a missing package is an error, so that a broken installation never looks like a passed run.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

# Before torch and matplotlib are imported, and for the processes that tests start: threads of
# several workers on few cores wait for each other, and nothing may open a window.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch

TESTS = Path(__file__).parent
DATA_VARIABLE = "TORCH_THERMO_DATA"
STRICT = os.environ.get("TORCH_THERMO_TESTS") == "all"

LIGHTNING = ("pytorch_lightning", "tensorboard", "matplotlib")
NEEDS: dict[str, tuple[str, ...]] = {
    "*_properties.py": ("hypothesis",),
    "reference/*": ("scipy", "pyhessian", "curvlinops"),
    "figures/*": ("matplotlib",),
    "dashboard/*": ("matplotlib", "tensorboard"),
    "callbacks/*": LIGHTNING,
    "papers/*": LIGHTNING,
    "test_cli*.py": (*LIGHTNING, "jsonargparse", "rich"),
}
"""Files (by their path below tests/) and the packages they need beyond torch, numpy and pytest."""

MISSING = {
    pattern: absent
    for pattern, packages in NEEDS.items()
    if (absent := [name for name in packages if find_spec(name) is None])
}

torch.set_num_threads(1)

if find_spec("hypothesis") is not None:
    from hypothesis import settings

    # The same examples at each run: a failure on one machine is one everywhere. A deadline would
    # measure the machine.
    settings.register_profile(
        "torch_thermo", derandomize=True, database=None, deadline=None, print_blob=True
    )
    settings.load_profile("torch_thermo")


def pytest_configure(config: pytest.Config) -> None:
    if STRICT and MISSING:
        names = sorted({name for absent in MISSING.values() for name in absent})
        raise pytest.UsageError(f"TORCH_THERMO_TESTS=all, but not installed: {', '.join(names)}")


def pytest_report_header(config: pytest.Config) -> list[str]:
    return [
        f"tests/{pattern} is left out: no {', '.join(absent)}"
        for pattern, absent in MISSING.items()
    ]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if not collection_path.is_relative_to(TESTS):
        return None
    below = collection_path.relative_to(TESTS)
    return True if any(_matches(below, pattern) for pattern in MISSING) else None


def _matches(below: Path, pattern: str) -> bool:
    folder, _, rest = pattern.rpartition("/")
    if folder:
        return rest == "*" and len(below.parts) > 1 and below.parts[0] == folder
    return below.match(pattern)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder with downloaded data sets that ``TORCH_THERMO_DATA`` names; else skip."""
    value = os.environ.get(DATA_VARIABLE)
    if not value:
        pytest.skip(f"{DATA_VARIABLE} names no folder with data sets")
    folder = Path(value).expanduser()
    if not folder.is_dir():
        pytest.fail(f"{DATA_VARIABLE} must name a folder, got {value!r}")
    return folder
