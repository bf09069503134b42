"""One look for TensorBoard, PNG and PDF.

Figures are made with matplotlib's object interface on the Agg canvas: no pyplot, so no global
state, no window, and safe in any thread. Nothing here changes matplotlib's own settings.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "DASHES",
    "MARKERS",
    "OKABE_ITO",
    "caption",
    "figure_legend",
    "legend",
    "legend_columns",
    "new_figure",
    "panel_title",
    "plain",
    "render",
    "save",
    "series_style",
    "wrapped",
]

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
"""The palette of Okabe and Ito, told apart by colour-blind readers; the darker ones first."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))

DOTS_PER_INCH = 100  # 6 inches are then 600 pixels, the width everything must be readable at
TEXT = 10.0
SMALL = 8.5
INK = "#222222"

# for names that the usual font cannot write; those that are installed are asked in turn
_FALLBACK = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Source Han Sans SC",
    "WenQuanYi Zen Hei",
    "Droid Sans Fallback",
    "PingFang SC",
    "Hiragino Sans",
    "Microsoft YaHei",
    "Malgun Gothic",
    "Arial Unicode MS",
)


def series_style(index: int) -> dict[str, Any]:
    """Colour, marker and line style of the series number ``index``; never colour alone."""
    return {
        "color": OKABE_ITO[index % len(OKABE_ITO)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": DASHES[(index + index // len(DASHES)) % len(DASHES)],  # the eighth is new
    }


def new_figure(
    width: float = 6.0,
    height: float = 4.0,
    rows: int = 1,
    columns: int = 1,
    heights: Sequence[float] | None = None,
) -> tuple[Figure, list[Axes]]:
    """An empty figure in our look.

    Args:
        width: in inches, 100 pixels each.
        height: in inches.
        rows: of panels.
        columns: of panels.
        heights: of the rows, relative to each other; by default all the same.

    Returns:
        The figure and its panels, row by row.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(
        figsize=(width, height), dpi=DOTS_PER_INCH, layout="constrained", facecolor="white"
    )
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False, height_ratios=heights)
    panels: list[Axes] = list(np.ravel(grid))
    for axes in panels:
        axes.grid(True, color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(which="both", labelsize=SMALL, colors=INK)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    return figure, panels


def panel_title(axes: Axes, title: str | None) -> None:
    """Write a panel's title at the left, above where its legend goes."""
    if title:
        look = {"family": _fonts(), "size": TEXT, "weight": "bold"}
        axes.set_title(title, loc="left", fontproperties=look, color=INK)


def legend(axes: Axes, title: str | None = None, width: float = 5.2) -> None:
    """Put the legend above the panel, where no data are, with the panel's title over it.

    Curves come before bands. Without labelled series only the title is written.

    Args:
        axes: the panel.
        title: of the panel.
        width: of the panel in inches; decides how many entries go in a row.
    """
    from matplotlib.collections import PolyCollection

    entries = list(zip(*axes.get_legend_handles_labels(), strict=True))
    entries.sort(key=lambda entry: isinstance(entry[0], PolyCollection))
    if not entries:
        panel_title(axes, title)
        return
    columns = legend_columns([str(label) for _, label in entries], width)
    # matplotlib fills a legend column by column; readers read row by row.
    by_column = [entry for column in range(columns) for entry in entries[column::columns]]
    axes.legend(
        [handle for handle, _ in by_column],
        [label for _, label in by_column],
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        borderaxespad=0.2,
        borderpad=0.1,
        ncols=columns,
        frameon=False,
        fontsize=SMALL,
        labelcolor=INK,
        handlelength=2.6,
        columnspacing=1.4,
        title=title,
        alignment="left",
        title_fontproperties={"family": _fonts(), "size": TEXT, "weight": "bold"},
    )


def figure_legend(
    figure: Figure, handles: Sequence[Artist], labels: Sequence[str], columns: int
) -> None:
    """One legend for all panels of a figure, above them, read row by row."""
    order = [place for column in range(columns) for place in range(column, len(labels), columns)]
    drawn = figure.legend(
        [handles[place] for place in order],
        [str(place) for place in order],
        loc="outside upper left",
        ncols=columns,
        frameon=False,
        prop={"family": _fonts(), "size": SMALL},
        labelcolor=INK,
        handlelength=2.6,
        columnspacing=1.4,
    )
    for text, place in zip(drawn.get_texts(), order, strict=True):
        text.set_text(labels[place])  # a label that begins with _ would get no entry


def legend_columns(labels: Sequence[str], width: float) -> int:
    """The most columns whose widest labels fit: 0.067 inch a letter, 0.55 a handle."""
    for columns in range(len(labels), 1, -1):
        widest = [max(_letters(label) for label in labels[c::columns]) for c in range(columns)]
        if sum(0.067 * letters + 0.55 for letters in widest) <= width:
            return columns
    return 1


def _letters(label: str) -> int:
    """How many letters a label shows: a command of mathtext is one, its braces none."""
    return len(re.sub(r"[${}^_]", "", re.sub(r"\\([a-zA-Z]+ ?|.)", "x", label)))


def plain(text: str) -> str:
    """A name from outside, such as a folder's, for a text that is otherwise read as mathtext.

    A dollar is a dollar, and what no font can write is shown as U+FFFD: matplotlib would draw a box
    and warn at each drawing.
    """
    known = _characters()
    return "".join(c if ord(c) in known else "\ufffd" for c in text).replace("$", r"\$")


def wrapped(text: str, width: float) -> str:
    """A bold title cut into lines of a panel's width in inches, after ``/``, ``.`` and blanks."""
    most = max(1, int(width / 0.092))
    lines = [""]
    for part in re.findall(r"[^/. ]*[/. ]|[^/. ]+", text):
        if lines[-1] and len(lines[-1]) + len(part.rstrip()) > most:
            lines.append("")
        pieces = [part[start : start + most] for start in range(0, len(part), most)]
        lines[-1] += pieces[0]
        lines += pieces[1:]
    return "\n".join(line.rstrip() for line in lines)


@cache
def _fonts() -> list[str]:
    """The family in use, and of the fallback those that are installed."""
    from matplotlib import font_manager, rcParams

    installed = {font.name for font in font_manager.fontManager.ttflist}
    return [*rcParams["font.family"], *(name for name in _FALLBACK if name in installed)]


@cache
def _characters() -> frozenset[int]:
    """What these fonts can write."""
    from matplotlib import font_manager

    properties = [font_manager.FontProperties(family=[name]) for name in _fonts()]
    fonts = [font_manager.get_font(font_manager.findfont(one)) for one in properties]
    return frozenset(code for font in fonts for code in font.get_charmap())


def caption(figure: Figure, text: str | None) -> None:
    """Write below the figure what was measured: data, net, step, m, k, probe.

    Args:
        figure: the figure.
        text: wrapped to the figure's width; None writes nothing.
    """
    if text:
        letters = int(figure.get_figwidth() * 15.5)
        text = text.replace(" = ", "\u00a0=\u00a0")  # kept on one line
        look = {"family": _fonts(), "size": SMALL}
        lines = "\n".join(textwrap.wrap(text, letters))
        figure.supxlabel(lines, x=0.01, ha="left", fontproperties=look, color="#555")


def render(figure: Figure) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The figure's pixels, ``(height, width, 3)``, uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels: np.ndarray[Any, np.dtype[np.uint8]] = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    return pixels


def save(figure: Figure, path: str | Path, colors: int | None = None) -> Path:
    """Write the figure to a file, PNG (at twice the screen's resolution) or PDF by its ending.

    Args:
        figure: the figure.
        path: of the file; folders are made.
        colors: write a PNG with a palette of so many, up to 256: a third of the size, and the same
            to the eye where lines and letters have few colours.

    Returns:
        The path written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=2 * DOTS_PER_INCH)
    if colors is not None and path.suffix == ".png":
        from PIL import Image  # matplotlib requires it

        with Image.open(path) as image:
            reduced = image.convert("RGB").quantize(colors, dither=Image.Dither.NONE)
        reduced.save(path, optimize=True)
    return path
