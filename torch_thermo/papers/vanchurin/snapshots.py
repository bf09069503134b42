"""The files of a training: weights at some epochs, and what it takes to go on.

A folder holds ``snapshots/epoch_<e>.npz``, the weights after e epochs under the names of the
module's parameters, and ``checkpoint.npz``, the last weights with the state of the generator that
shuffles. Each is written under a temporary name and renamed: whole or not at all.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from torch_thermo.papers.folders import check_setting
from torch_thermo.store.files import replace_file, write_npz

__all__ = ["Checkpoint", "clean_up", "load_snapshot", "save_snapshot", "snapshots"]

_NAME = re.compile(r"epoch_(\d+)\.npz")
_TEMPORARY = re.compile(r"\..*\.[0-9a-f]{8}\.tmp")


@dataclass(frozen=True)
class Checkpoint:
    """Where a training stands.

    Attributes:
        epoch: completed epochs.
        weights: {name: parameter}.
        generator: state of the generator that orders the samples.
        setting: of what training, in numbers and strings; another one is not gone on with.
    """

    epoch: int
    weights: dict[str, Tensor]
    generator: Tensor
    setting: Mapping[str, Any]

    def save(self, folder: Path) -> None:
        """Write it, in the place of the last one."""
        arrays = {f"weights/{name}": weight.numpy() for name, weight in self.weights.items()}
        arrays["epoch"] = np.array(self.epoch)
        arrays["generator"] = self.generator.numpy()
        arrays["setting"] = np.array(json.dumps(self.setting))
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / "checkpoint.npz", lambda file: write_npz(file, arrays))

    @staticmethod
    def load(folder: Path, setting: Mapping[str, Any]) -> Checkpoint | None:
        """Read it; None where there is none.

        Raises:
            ValueError: it is of another training than ``setting`` says, or damaged.
        """
        path = folder / "checkpoint.npz"
        if not path.is_file():
            return None
        arrays = _arrays(path, "the training then begins anew")
        missing = {"epoch", "generator", "setting"} - set(arrays)
        if missing:
            raise _damaged(path, f"no {min(missing)} in it", "the training then begins anew")
        check_setting(folder, json.loads(str(arrays["setting"])), setting)
        weights = {
            name.removeprefix("weights/"): torch.from_numpy(array)
            for name, array in arrays.items()
            if name.startswith("weights/")
        }
        return Checkpoint(
            int(arrays["epoch"]), weights, torch.from_numpy(arrays["generator"]), setting
        )


def save_snapshot(folder: Path, epoch: int, weights: Mapping[str, Tensor]) -> None:
    """Keep the weights after an epoch."""
    place = folder / "snapshots"
    place.mkdir(parents=True, exist_ok=True)
    arrays = {name: weight.numpy() for name, weight in weights.items()}
    replace_file(place / f"epoch_{epoch}.npz", lambda file: write_npz(file, arrays))


def load_snapshot(path: Path) -> dict[str, Tensor]:
    """The weights of a snapshot, {name: parameter}, in the dtype of the training.

    Raises:
        ValueError: the file is damaged.
    """
    arrays = _arrays(path, "its epoch is then left out")
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def snapshots(folder: Path) -> dict[int, Path]:
    """{epoch: file} of the snapshots that are there, sorted by epoch."""
    found = {
        int(match[1]): path
        for path in (folder / "snapshots").glob("epoch_*.npz")
        if (match := _NAME.fullmatch(path.name))
    }
    return dict(sorted(found.items()))


def clean_up(folder: Path) -> None:
    """Delete the temporary files that a killed run has left in and below a folder."""
    for path in folder.rglob(".*.tmp"):
        if _TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _arrays(path: Path, without: str) -> dict[str, npt.NDArray[Any]]:
    """All arrays of a file; ``without`` says what removing it means."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    # AttributeError: a file that is one array, and no archive
    except (zipfile.BadZipFile, ValueError, EOFError, AttributeError) as error:
        raise _damaged(path, str(error), without) from error


def _damaged(path: Path, why: str, without: str) -> ValueError:
    return ValueError(f"{path} is damaged ({why}): remove it; {without}")
