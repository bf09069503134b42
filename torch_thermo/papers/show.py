"""Stored runs as tables, figures and one long CSV file: ``torch-thermo show``."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from torch_thermo import figures
from torch_thermo.figures import style
from torch_thermo.figures.compare import compare, compare_groups
from torch_thermo.store import Run, find_stores, load_run
from torch_thermo.store.quantities import Quantity, measured, quantity, summarise

__all__ = [
    "Runs",
    "chosen",
    "find_runs",
    "last_values",
    "names_table",
    "run_table",
    "run_title",
    "save_figures",
    "write_csv",
]

Runs = Sequence[tuple[str, Run]]
"""A label of its own and the stored run of each."""

NARROWEST = 78  # letters of a table: on a console of fewer its lines run on in the next
LONGEST = 28  # letters of a label in a legend or the head of a column
PANELS = 12  # of a figure, so that it can be looked at
_STORE = "thermo"


def find_runs(paths: Sequence[str | Path]) -> tuple[list[tuple[str, Run]], list[str]]:
    """The runs at, or anywhere below, some folders.

    Each is named by its folder, with what all have in common left out. A store that several paths
    lead to is taken once.

    Args:
        paths: stores, loggers' directories, or folders with several of them.

    Returns:
        Label and run of each that has measurements, in natural order; and a line on each store
        that was left out: one without measurements, or that cannot be read.

    Raises:
        FileNotFoundError: a path is missing, or there is no store at or below it.
        ValueError: no store holds measurements that can be read.
    """
    found: dict[Path, Path] = {}
    notes: dict[str, None] = {}
    for path in paths:
        notes |= dict.fromkeys(_broken(Path(path)))
        try:
            stores = find_stores(path)
        except FileNotFoundError as error:
            if notes:
                raise ValueError("; ".join(notes)) from error
            raise
        for store in stores:
            found.setdefault(store.resolve(), store)
    runs = []
    for store in found.values():
        try:
            run = load_run(store)
        except ValueError as error:
            notes[str(error)] = None
            continue
        if run.observables:
            runs.append(run)
        else:
            notes[f"no measurements yet in {store}"] = None
    if not runs:
        raise ValueError("; ".join(notes))
    return list(zip(_labels([run.path for run in runs]), runs, strict=True)), list(notes)


def chosen(runs: Runs, patterns: Sequence[str]) -> list[Quantity]:
    """The quantities of the runs that some patterns name, in the patterns' order.

    Args:
        runs: the runs.
        patterns: ``observable/quantity``; an observable alone, for all that is not of single
            layers; ``observable/layer`` for all that is; or with ``*`` and ``?``.

    Raises:
        ValueError: a pattern names nothing that is stored.
    """
    names = list(dict.fromkeys(name for _, run in runs for name in run.names))
    picked: dict[str, Quantity] = {}
    for pattern in patterns:
        matches = (
            [name for name in names if name == pattern]
            or [name for name in names if name.rpartition("/")[0] == pattern]
            or [name for name in names if fnmatchcase(name, pattern)]
        )
        if not matches:
            stored = sorted({name.partition("/")[0] for name in names})
            raise ValueError(
                f"no stored quantity matches {pattern!r}; there are those of {', '.join(stored)} "
                "(--list names all)"
            )
        picked.update((name, quantity(name)) for name in matches)
    return list(picked.values())


def run_table(title: str, run: Run, quantities: Sequence[Quantity] | None = None) -> Table:
    """What a run measured: first, last and extreme value of each quantity; counts and seconds.

    Args:
        title: of the table.
        run: the stored run.
        quantities: the rows; None takes the summary's.
    """
    table = _table(title, "first", "last", "extreme", "at step", "points")
    for row in measured([run]) if quantities is None else quantities:
        if row.name in run.names:
            summary = summarise(run.series(row.name))
            values = (_number(v) for v in (summary.first, summary.last))
            extreme = (
                (_number(summary.extreme), f"{summary.step:,}") if summary.points else ("",) * 2
            )
            table.add_row(Text(row.label), *values, *extreme, f"{summary.points:,}")
    counts: Mapping[str, int] = run.meta.get("measurements", {})
    spent: Mapping[str, float] = run.meta.get("seconds", {}).get("measuring", {})
    lines = []
    if counts:
        lines.append(
            "measurements: "
            + ", ".join(
                f"{name} {count:,} in {spent.get(name, 0.0):.1f} s"
                for name, count in counts.items()
            )
        )
    skipped: Mapping[str, str] = run.meta.get("skipped", {})
    for reason in dict.fromkeys(skipped.values()):
        names = [name for name, why in skipped.items() if why == reason]
        lines.append(f"skipped: {', '.join(names)}, because {reason}")
    if lines:
        table.caption = Text("\n".join(lines))
        table.caption_justify = "left"
    return table


def run_title(label: str, run: Run) -> str:
    """A run's label, and what it says of itself: steps and seconds, once it has ended."""
    steps, seconds = run.meta.get("steps"), run.meta.get("seconds", {})
    if steps is None or "training" not in seconds:
        last = max(int(run.series(name).steps[-1]) for name in run.names) if run.names else 0
        return f"{label}: measured up to step {last:,}, no end is stored"
    spent = sum(seconds.get("measuring", {}).values())
    return (
        f"{label}: {steps:,} steps, {seconds['training']:.0f} s training, {spent:.0f} s measuring"
    )


def last_values(
    runs: Runs, quantities: Sequence[Quantity] | None = None, width: int = 80
) -> Iterator[Table]:
    """The last values of several runs side by side, a column each.

    Args:
        runs: the runs.
        quantities: the rows; None takes the summary's.
        width: of the console in letters.

    Yields:
        Tables of as many runs as fit.
    """
    rows = measured([run for _, run in runs]) if quantities is None else quantities
    short = list(zip(_short([label for label, _ in runs]), (run for _, run in runs), strict=True))
    room = width - max([len(row.label) for row in rows], default=0) - 4
    fit = max(1, room // (max(10, *(len(label) for label, _ in short)) + 3))
    for start in range(0, len(short), fit):
        part = short[start : start + fit]
        table = _table("last values", *(label for label, _ in part))
        for row in rows:
            values = (
                _number(float(run.series(row.name).values[-1])) if row.name in run.names else "-"
                for _, run in part
            )
            table.add_row(Text(row.label), *values)
        yield table


def names_table(title: str, run: Run, quantities: Sequence[Quantity] | None = None) -> Table:
    """Every stored quantity of a run, or those of some, and where its values lie."""
    table = _table(title, "points", "first step", "last step", "last")
    wanted = run.names if quantities is None else [q.name for q in quantities]
    for name in (name for name in wanted if name in run.names):
        series = run.series(name)
        steps = (f"{int(series.steps[place]):,}" for place in (0, -1))
        table.add_row(Text(name), f"{len(series):,}", *steps, _number(float(series.values[-1])))
    return table


def save_figures(
    runs: Runs,
    folder: Path,
    quantities: Sequence[Quantity] | None = None,
    endings: Sequence[str] = ("png",),
) -> list[Path]:
    """Draw each run, and several over each other.

    Args:
        runs: the runs.
        folder: where the files go; each of several runs' into a folder of its own.
        quantities: draw these alone, a panel each; None: the figures of each run and the
            summary's quantities of several.
        endings: ``png``, ``pdf``.

    Returns:
        The files.
    """
    files: list[Path] = []

    def save(figure: Any, name: str) -> None:
        files.extend(figures.save(figure, folder / f"{name}.{ending}") for ending in endings)

    short = list(zip(_short([label for label, _ in runs]), (run for _, run in runs), strict=True))
    titles = [style.plain(run_title(label, run)) for label, run in short]
    caption = "; ".join(titles) + "." if len(titles) <= 3 else f"{len(titles)} runs."
    if quantities is not None:
        pages = range(0, len(quantities), PANELS)
        for page, start in enumerate(pages, start=1):
            number = f"_{page}" if len(pages) > 1 else ""
            save(compare(short, quantities[start : start + PANELS], caption), f"quantities{number}")
        return files
    for label, run in runs:
        inside = "" if len(runs) == 1 else f"{label}/"
        title = style.plain(run_title(label, run)) + "."
        for name, figure in figures.run_figures(run, title).items():
            save(figure, inside + name)
    if len(runs) > 1:
        for group, figure in compare_groups(short, caption):
            save(figure, f"compare_{group}")
    return files


def write_csv(runs: Runs, file: Path, quantities: Sequence[Quantity] | None = None) -> int:
    """Write all values as one long table: run, quantity, step, epoch, value.

    Args:
        runs: the runs.
        file: where to; folders are made.
        quantities: these alone; None: all that is stored.

    Returns:
        Number of rows.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    wanted = None if quantities is None else {one.name for one in quantities}
    count = 0
    with file.open("w", newline="", encoding="utf-8") as stream:
        rows = csv.writer(stream)
        rows.writerow(("run", "quantity", "step", "epoch", "value"))
        for label, run in runs:
            for name in run.names:
                if wanted is not None and name not in wanted:
                    continue
                series = run.series(name)
                for step, epoch, value in zip(
                    series.steps.tolist(), series.epochs, series.values.tolist(), strict=True
                ):
                    whole = "" if np.isnan(epoch) else int(epoch)
                    rows.writerow((label, name, step, whole, repr(value)))
                count += len(series)
    return count


def _table(title: str, *columns: str) -> Table:
    table = Table(title=Text(title), title_justify="left", title_style="bold")
    table.add_column("quantity", overflow="fold", min_width=12)
    for column in columns:
        table.add_column(Text(column), justify="right", no_wrap=True)
    return table


def _broken(path: Path) -> Iterator[str]:
    """A line on each run.json below that is none: a disk was full, or a copy was cut short."""
    for header in path.rglob("run.json") if path.is_dir() else ():
        try:
            json.loads(header.read_bytes())
        except (OSError, ValueError) as error:
            yield f"{header} cannot be read: {error}"


def _number(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "undefined"


def _labels(stores: Sequence[Path]) -> list[str]:
    """The folders' names without what all begin and end with; distinct, for the folders are."""
    parts = [list(store.resolve().parts) for store in stores]
    parts = [names[:-1] if names[-1] == _STORE else names for names in parts]
    if len(parts) == 1:
        return ["/".join(parts[0][-2:])]
    start = _shared(parts)
    if any(len(names) == start for names in parts):  # one lies in another
        start -= 1
    rest = [names[start:] for names in parts]
    end = min(_shared([names[::-1] for names in rest]), min(map(len, rest)) - 1)
    return ["/".join(names[: len(names) - end]) for names in rest]


def _shared(lists: Sequence[list[str]]) -> int:
    """How many entries the lists have in common from their beginning on."""
    return len(list(takewhile(lambda entries: len(set(entries)) == 1, zip(*lists, strict=False))))


def _short(labels: Sequence[str]) -> list[str]:
    """Labels cut in their middle, for their ends are what tells runs apart; distinct still."""
    half = (LONGEST - 1) // 2
    cut = [
        label if len(label) <= LONGEST else f"{label[:half]}…{label[-half:]}" for label in labels
    ]
    if len(set(cut)) == len(cut):
        return cut
    return [f"{number} {label}" for number, label in enumerate(cut, start=1)]
