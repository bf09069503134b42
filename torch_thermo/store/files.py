"""The files of a store: names, lines, headers, and writing them whole."""

from __future__ import annotations

import json
import logging
import math
import operator
import os
import re
import time
import uuid
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

FORMAT = "torch-thermo store"
VERSION = 1

_log = logging.getLogger(__name__)
# Names Windows gives to devices, whatever their ending.
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)


class Row(NamedTuple):
    """The scalars of one measurement: its step, its epoch (``None`` if not known), its values."""

    step: int
    epoch: int | None
    values: dict[str, float]


def plain_name(what: str, name: object) -> str:
    """A name that is a file name on every system and stays in its folder."""
    if not isinstance(name, str):
        raise TypeError(f"{what} must be a string, got {name!r}")
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*(?<!\.)", name) or _DEVICES.match(name):
        raise ValueError(
            f"{what} must be letters, digits, '_', '-' and '.' and start with one of the first "
            f"three, got {name!r}"
        )
    return name


def array_name(name: object) -> str:
    """A name that is a member of an archive and cannot leave it, e.g. ``ritz/conv.weight``."""
    if not isinstance(name, str):
        raise TypeError(f"array names must be strings, got {name!r}")
    parts = name.split("/")
    bad = any(not part.strip(".") or not part.isprintable() for part in parts)
    # NumPy reads the member a.npy under the name a: such a name would not come back.
    if bad or name.endswith(".npy") or any(mark in name for mark in "\\:"):
        raise ValueError(f"array names must be relative paths without '..', got {name!r}")
    return name


def whole(what: str, value: object, least: int = 0) -> int:
    """The argument as an int, or an error that names it."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{what} must be a whole number, got {value!r}")
    number = operator.index(value)
    if number < least:
        raise ValueError(f"{what} must be at least {least}, got {number}")
    return number


def strict(value: Any) -> Any:
    """The same JSON value with non-finite numbers as strings."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    if isinstance(value, Mapping):
        return {key: strict(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(entry) for entry in value]
    return value


def encode_line(entry: Mapping[str, Any]) -> bytes:
    """One line of an observable's file."""
    # ASCII only, so that no cut can fall inside a character.
    return json.dumps(entry, allow_nan=False, separators=(",", ":")).encode("ascii") + b"\n"


def encode_row(step: int, epoch: int | None, scalars: Mapping[str, Any]) -> bytes:
    """One row as a line, checked."""
    if not scalars:
        raise ValueError(f"a row must hold at least one value, got {scalars!r}")
    # By hand, at a third of the price of json.dumps: rows come at every step of a training.
    values = ",".join([f"{_quoted(name)}:{_number(name, v)}" for name, v in scalars.items()])
    when = "null" if epoch is None else whole("epoch", epoch)
    return f'{{"step":{whole("step", step)},"epoch":{when},"values":{{{values}}}}}\n'.encode(
        "ascii"
    )


def _quoted(name: object) -> str:
    if not isinstance(name, str) or not name:
        raise ValueError(f"quantities must have a name, got {name!r}")
    return json.encoder.encode_basestring_ascii(name)


def _number(name: str, value: Any) -> str:
    if isinstance(value, str):
        raise TypeError(f"{name} must be a number, got {value!r}")
    number = float(value)
    text = float.__repr__(number)  # the shortest digits that read back as the same number
    return text if math.isfinite(number) else f'"{text}"'


def replace_file(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file under a temporary name beside it, then rename it: whole or not at all."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        for attempt in range(10):
            try:
                os.replace(temporary, path)
                break
            except PermissionError:
                # Windows cannot rename onto a file that a reader has open; readers are quick.
                if attempt == 9:
                    raise
                time.sleep(0.02)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def write_npz(file: IO[bytes], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write arrays as ``np.load`` reads them, under any name."""
    # As np.savez does, whose own parameters make "file" and "allow_pickle" unusable as names.
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


@dataclass
class Entries:
    """The live content of (a part of) one observable's file."""

    rows: dict[int, Row] = field(default_factory=dict)
    arrays: dict[int, Path] = field(default_factory=dict)

    def supersede(self, step: int) -> None:
        """Forget all later steps."""
        self.rows = {known: row for known, row in self.rows.items() if known <= step}
        self.arrays = {known: path for known, path in self.arrays.items() if known <= step}

    def add(self, line: bytes, folder: Path) -> None:
        """Take in one line; ValueError, TypeError or KeyError if it is not one of ours."""
        entry = json.loads(line)
        if "superseded_after" in entry:
            self.supersede(int(entry["superseded_after"]))
        elif "values" in entry:
            # float() reads the strings of the non-finite numbers as well.
            values = {str(name): float(value) for name, value in entry["values"].items()}
            self.rows[entry["step"]] = Row(int(entry["step"]), entry["epoch"], values)
        elif "arrays" in entry:
            self.arrays[entry["step"]] = folder / f"{int(entry['step'])}.npz"


def read_entries(directory: Path, observable: str, start: int = 0) -> Entries:
    """Read one observable's file from a byte offset on; an absent file is empty."""
    entries = Entries()
    try:
        with open(directory / f"{observable}.jsonl", "rb") as file:
            file.seek(start)
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return entries
    skipped = 0
    for number, line in enumerate(lines):
        if not line:
            continue
        try:
            entries.add(line, directory / observable)
        except (ValueError, TypeError, KeyError, AttributeError):
            # The last line may be a row that is being written, or was when its writer died.
            skipped += number < len(lines) - 1
    if skipped:
        _log.warning("%s/%s.jsonl: skipped %d unreadable lines", directory, observable, skipped)
    return entries


def stored_observables(directory: Path) -> set[str]:
    """The observables that have a file."""
    return {path.stem for path in directory.glob("*.jsonl") if not path.name.startswith(".")}


def read_header(directory: Path) -> dict[str, Any]:
    """The content of run.json, checked."""
    path = directory / "run.json"
    try:
        header = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not the header of a torch-thermo store: {error}") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT or "id" not in header:
        raise ValueError(f"{path} is not the header of a torch-thermo store")
    if not isinstance(header.get("version"), int) or header["version"] > VERSION:
        raise ValueError(
            f"{path} has format version {header.get('version')}, this torch-thermo reads up to "
            f"{VERSION}: upgrade torch-thermo"
        )
    return header


def locate(path: str | os.PathLike[str]) -> Path:
    """The store at, or in ``thermo/`` below, a path."""
    path = Path(path)
    for candidate in (path, path / "thermo"):
        if (candidate / "run.json").is_file():
            return candidate
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    below = sorted({*path.glob("*/run.json"), *path.glob("*/thermo/run.json")})
    hint = "".join(f"\n  {header.parent}" for header in below[:5])
    raise FileNotFoundError(
        f"{path} holds no stored measurements: no run.json there or in thermo/"
        + (f"; below it are\n{hint[1:]}" if hint else "")
    )


def find_stores(path: str | os.PathLike[str]) -> list[Path]:
    """The store at a path, or else all below it, in natural order.

    Raises:
        FileNotFoundError: there is no such path, or no store.
    """
    path = Path(path)
    if (path / "run.json").is_file():
        return [path]
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    stores = [header.parent for header in path.rglob("run.json") if _is_header(header)]
    if not stores:
        raise FileNotFoundError(f"{path} holds no stored measurements: no run.json of ours below")
    return sorted(stores, key=_natural)


def _is_header(path: Path) -> bool:
    """Whether a run.json is a store's; other tools write files of that name too."""
    try:
        header = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(header, dict) and header.get("format") == FORMAT


def _natural(path: Path) -> list[tuple[float, str]]:
    """A key that puts version_10 after version_2 and lr0.1 after lr0.01."""
    parts = re.split(r"([0-9]+(?:\.[0-9]+)?)", str(path))  # every other one is a number
    return [(float(part), "") if odd % 2 else (-1.0, part) for odd, part in enumerate(parts)]
