"""What an experiment writes of a figure: the pictures, what is drawn in them, and its numbers."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

from torch_thermo.figures import style
from torch_thermo.figures.paper import Drawable, paper_figure
from torch_thermo.papers.reproduction import Outcome, write_csv
from torch_thermo.papers.verdicts import Row

__all__ = ["write_figure", "write_points"]


def write_figure(
    folder: Path,
    name: str,
    panels: Sequence[Drawable],
    caption: str,
    rows: Sequence[Row],
    columns: int = 2,
) -> Outcome:
    """Write a figure as PNG and PDF, what is drawn in it, and its lines of the table.

    Args:
        folder: of the four files; it is made.
        name: of the files, ``<name>.png``, ``<name>.pdf``, ``<name>.csv``, ``<name>_numbers.csv``.
        panels: row by row.
        caption: below the figure.
        rows: what the paper states there, judged.
        columns: panels side by side.
    """
    figure = paper_figure(panels, caption, columns)
    files = (
        style.save(figure, folder / f"{name}.png", colors=128),
        style.save(figure, folder / f"{name}.pdf"),
        write_points(panels, folder / f"{name}.csv"),
        write_csv(rows, folder / f"{name}_numbers.csv"),
    )
    return Outcome(files, tuple(rows))


def write_points(panels: Sequence[Drawable], path: Path) -> Path:
    """All that a figure shows as one long table: panel, kind, series, x, y, low, high."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("panel", "kind", "series", "x", "y", "low", "high"))
        for panel in panels:
            for kind, series, *numbers in panel.points():
                cells = ("" if math.isnan(value) else f"{value:.9g}" for value in numbers)
                writer.writerow((panel.name, kind, series, *cells))
    return path
