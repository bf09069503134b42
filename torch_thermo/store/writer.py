"""The writing end of a store."""

from __future__ import annotations

import json
import logging
import os
import uuid
import warnings
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from torch_thermo.store.files import (
    FORMAT,
    VERSION,
    Row,
    array_name,
    encode_line,
    encode_row,
    locate,
    plain_name,
    read_entries,
    read_header,
    replace_file,
    stored_observables,
    strict,
    whole,
    write_npz,
)

_log = logging.getLogger(__name__)


def new_run_id() -> str:
    """A fresh run id: 8 hexadecimal digits, drawn from the system and not from a seeded stream."""
    return uuid.uuid4().hex[:8]


def default_directory(run_id: str, root: str | os.PathLike[str] = "thermo_runs") -> Path:
    """Where the store of a run without a logger's directory goes: ``thermo_runs/<time>-<id>``."""
    # Local time, as a listing of the directory shows it; no colons, which Windows refuses.
    now = datetime.now().astimezone()
    return Path(root) / f"{now:%Y%m%d-%H%M%S}-{plain_name('run_id', run_id)}"


class Store:
    """The writing end: opened by :meth:`open`, one writer a directory.

    Holds no open file, so that it can be pickled, copied and moved between processes.

    Attributes:
        path: the store's directory.
        id: the run's id.
        meta: what :meth:`write_meta` wrote.
    """

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        """Use :meth:`open`."""
        self.path = path
        self._header = header
        self._starts: dict[str, int] = {}

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        run_id: str | None = None,
        resume_after: int | None = None,
        continues: str | os.PathLike[str] | None = None,
    ) -> Store:
        """Open a store for writing, made if it is not there.

        A store that is there is gone on with if ``run_id`` is its run or ``None``. That of another
        run is never mixed with the new one: it is moved aside, to ``<path>-<its id>``.

        Args:
            path: the store's directory, e.g. ``<log_dir>/thermo``.
            run_id: the run's id; ``None``: the id of the store that is there, else a fresh one.
            resume_after: the step the run resumes from; what was stored for later steps is
                superseded.
            continues: the directory of the older store this run goes on from. If the run writes
                to another store, that one links to it, and readers see the old measurements up to
                ``resume_after`` and the new ones. Where it is gone, a warning says so.

        Raises:
            ValueError: the directory holds something else than a store, or one written by a newer
                version; ``continues`` without ``resume_after``.
            TypeError: ``resume_after`` is not a whole number.
        """
        path = Path(path).absolute()
        if run_id is not None:
            plain_name("run_id", run_id)
        if resume_after is not None:
            resume_after = whole("resume_after", resume_after)
        elif continues is not None:
            raise ValueError("continues needs resume_after, the step the run resumes from")
        older = None if continues is None else _older(continues)
        header, aside = cls._present(path, run_id)
        if older is not None and older.resolve() == path.resolve():
            older = aside
        link = None if older is None else _link(path, older, resume_after)
        if header is None:
            path.mkdir(parents=True, exist_ok=True)
            store = cls(path, _new_header(run_id, link))
            store._write_header()
            return store
        store = cls(path, header)
        if link is not None and header.get("continues") is None:
            header["continues"] = link
            store._write_header()
        if resume_after is not None:
            store.supersede(resume_after)
        return store

    @staticmethod
    def _present(path: Path, run_id: str | None) -> tuple[dict[str, Any] | None, Path | None]:
        """The header of the store to go on with, and where that of another run was moved."""
        if not (path / "run.json").exists():
            if path.is_dir() and stored_observables(path):
                raise ValueError(f"{path} holds .jsonl files and no run.json: not a store")
            return None, None
        header = read_header(path)
        if run_id is None or header["id"] == run_id:
            return header, None
        aside = path.with_name(f"{path.name}-{header['id']}")
        if aside.exists():
            aside = path.with_name(f"{aside.name}-{new_run_id()}")
        os.replace(path, aside)
        _log.warning("%s held the measurements of another run; moved to %s", path, aside)
        return None, aside

    @property
    def id(self) -> str:
        """The run's id."""
        return str(self._header["id"])

    @property
    def meta(self) -> dict[str, Any]:
        """What :meth:`write_meta` wrote."""
        return dict(self._header["meta"])

    @property
    def observables(self) -> list[str]:
        """The observables stored in this directory, sorted."""
        return sorted(stored_observables(self.path))

    def append(
        self, observable: str, step: int, epoch: int | None, scalars: Mapping[str, Any]
    ) -> None:
        """Append the scalars of one measurement; see :meth:`append_many`."""
        self.append_many(observable, [(step, epoch, scalars)])

    def append_many(
        self, observable: str, rows: Iterable[tuple[int, int | None, Mapping[str, Any]]]
    ) -> None:
        """Append the scalars of several measurements in one write.

        Args:
            observable: the observable's name, e.g. ``"order_parameter"``.
            rows: ``(step, epoch, {quantity: value})`` each; values are anything ``float`` takes,
                non-finite ones included.

        Raises:
            ValueError: a name that is no file name, a negative step or epoch, an empty row.
            TypeError: a step that is not a whole number, a value that is not a number.
        """
        lines = [encode_row(step, epoch, scalars) for step, epoch, scalars in rows]
        if lines:
            self._append(plain_name("observable", observable), b"".join(lines))

    def save_arrays(self, observable: str, step: int, arrays: Mapping[str, npt.ArrayLike]) -> None:
        """Write the arrays of one measurement, whole or not at all.

        Args:
            observable: the observable's name.
            step: the step they belong to; arrays of the same step are replaced.
            arrays: ``{name: array}``, of any plain dtype.

        Raises:
            ValueError: a name that could leave the folder, a negative step, no array, an array
                of Python objects.
        """
        folder = self.path / plain_name("observable", observable)
        step = whole("step", step)
        plain = {array_name(name): np.asarray(array) for name, array in arrays.items()}
        if not plain:
            raise ValueError(f"arrays must hold at least one array, got {dict(arrays)!r}")
        for name, array in plain.items():
            if array.dtype.hasobject:
                raise ValueError(f"array {name!r} must be of a plain dtype, got {array.dtype}")
        folder.mkdir(exist_ok=True)
        replace_file(folder / f"{step}.npz", lambda file: write_npz(file, plain))
        # The line comes last: whoever sees it finds the file whole.
        self._append(observable, encode_line({"step": step, "arrays": list(plain)}))

    def supersede(self, step: int) -> None:
        """Forget all measurements of later steps: the run goes on from ``step``."""
        step = whole("step", step)
        for observable in self.observables:
            self._append(observable, encode_line({"superseded_after": step}))
        link = self._header.get("continues")
        if link is not None and step < link["after"]:
            link["after"] = step
            self._write_header()

    def write_meta(self, meta: Mapping[str, Any]) -> None:
        """Add to the run's meta data: strings, numbers, lists and dicts of them.

        Entries of the same name are replaced. Non-finite numbers become strings.

        Raises:
            TypeError: something JSON cannot hold.
        """
        merged = {**self._header["meta"], **strict(meta)}
        json.dumps(merged, allow_nan=False)  # refuse before anything changes
        self._header["meta"] = merged
        self._write_header()

    def rows(self, observable: str) -> list[Row]:
        """The scalars appended through this object, sorted by step, without superseded ones.

        They are read back from the disk: a run of a million steps keeps none in memory.
        """
        start = self._starts.get(plain_name("observable", observable))
        if start is None:
            return []
        rows = read_entries(self.path, observable, start).rows
        return [rows[step] for step in sorted(rows)]

    def _write_header(self) -> None:
        text = json.dumps(self._header, indent=2, allow_nan=False) + "\n"
        replace_file(self.path / "run.json", lambda file: file.write(text.encode("ascii")))

    def _append(self, observable: str, data: bytes) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
        descriptor = os.open(self.path / f"{observable}.jsonl", flags, 0o666)
        try:
            end = os.lseek(descriptor, 0, os.SEEK_END)
            self._starts.setdefault(observable, end)
            if end:
                os.lseek(descriptor, end - 1, os.SEEK_SET)
                if os.read(descriptor, 1) != b"\n":  # a writer died in the middle of a line
                    data = b"\n" + data
            while data:
                data = data[os.write(descriptor, data) :]
        finally:
            os.close(descriptor)


def _new_header(run_id: str | None, link: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "id": run_id or new_run_id(),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "meta": {},
        "continues": link,
    }


def _older(path: str | os.PathLike[str]) -> Path | None:
    try:
        return locate(path).absolute()
    except FileNotFoundError:
        # A checkpoint travels without its logs: no reason to end the run that resumes from it.
        warnings.warn(
            f"{path} is not there any more: the run goes on without its older measurements",
            stacklevel=3,
        )
        return None


def _link(path: Path, older: Path, after: int | None) -> dict[str, Any]:
    try:
        relative = Path(os.path.relpath(older.resolve(), path.resolve())).as_posix()
    except ValueError:  # another drive
        relative = str(older.resolve())
    # The relative path survives moving the whole tree, the absolute one moving the new store.
    return {
        "path": relative,
        "absolute": str(older.resolve()),
        "id": read_header(older)["id"],
        "after": after,
    }
