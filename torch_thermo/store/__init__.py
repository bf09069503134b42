"""Measurements on disk: written whole or not at all, readable while the run goes on.

A store is a directory::

    run.json                    the run: its id, format version, creation time, meta data, and the
                                older store it goes on from, if any
    <observable>.jsonl          scalars, append-only, one JSON object a line
    <observable>/<step>.npz     arrays of one measurement, ``allow_pickle=False``

The lines of an observable's file are of three kinds::

    {"step": 8, "epoch": null, "values": {"value": 0.31, "stderr": "nan"}}
    {"step": 8, "arrays": ["nodes", "weights"]}       <observable>/8.npz is there, whole
    {"superseded_after": 5}                           forget all steps above 5 written so far

The last row of a step wins. JSON knows no infinities: non-finite numbers are the strings ``"nan"``,
``"inf"``, ``"-inf"``. Each line is appended by one write; a line cut short by a crash is skipped by
readers, and the next writer starts a fresh one. Other files are written under a temporary name and
renamed. A store has one writer and any number of readers.
"""

from torch_thermo.store.files import Row, find_stores
from torch_thermo.store.run import Run, Series, load_run
from torch_thermo.store.writer import Store, default_directory, new_run_id

__all__ = [
    "Row",
    "Run",
    "Series",
    "Store",
    "default_directory",
    "find_stores",
    "load_run",
    "new_run_id",
]
