"""The papers' figures and numbers made anew: what there is, making it, and the table of verdicts.

An experiment is one line of :data:`EXPERIMENTS`: its name, what it shows, and the function that
makes it from a :class:`Session`.
"""

from __future__ import annotations

import csv
import difflib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from importlib import import_module
from pathlib import Path
from typing import TypeVar

from rich.table import Table
from rich.text import Text

from torch_thermo.papers.folders import check_out
from torch_thermo.papers.verdicts import Row

__all__ = [
    "BUDGETS",
    "DATA",
    "EXPERIMENTS",
    "Experiment",
    "Outcome",
    "Session",
    "check_data",
    "chosen",
    "list_table",
    "reproduce",
    "rows_table",
    "write_csv",
    "write_markdown",
]

BUDGETS = ("quick", "paper")
DATA = {"vanchurin": ("mnist5k", "mnist"), "li": ("cifar10",)}
"""Of each paper the named data that its nets take, the first where none is asked for."""

QUANTITY = 36  # letters of its column, at least
NARROWEST = 110  # letters of a table: on a console of fewer its lines run on in the next
Made = TypeVar("Made")


@dataclass(frozen=True)
class Experiment:
    """One figure or table of a paper.

    Attributes:
        name: ``paper/figure``.
        title: what it shows, in a few words.
        maker: ``module:function``, taking a :class:`Session` and giving an :class:`Outcome`;
            imported when it is made, so that the list is there at once.
    """

    name: str
    title: str
    maker: str

    @property
    def paper(self) -> str:
        """The paper's name."""
        return self.name.partition("/")[0]

    def make(self, session: Session) -> Outcome:
        """Make it."""
        module, _, function = self.maker.partition(":")
        maker: Callable[[Session], Outcome] = getattr(import_module(module), function)
        return maker(session)


_VANCHURIN = "torch_thermo.papers.vanchurin.experiment"
_LI = "torch_thermo.papers.li.experiment"
EXPERIMENTS = (
    Experiment("vanchurin/fig1", "free energy of a two-level spectrum", f"{_VANCHURIN}:fig1"),
    Experiment("vanchurin/fig2", "bulk and boundary loss, deep net", f"{_VANCHURIN}:fig2"),
    Experiment("vanchurin/fig3", "bulk and boundary loss, shallow net", f"{_VANCHURIN}:fig3"),
    Experiment("vanchurin/fig4", "spectrum of the propagator, its moments", f"{_VANCHURIN}:fig4"),
    Experiment("vanchurin/fig5", "its sorted eigenvalues and their gaps", f"{_VANCHURIN}:fig5"),
    Experiment("vanchurin/fig6", "complexity against bulk loss", f"{_VANCHURIN}:fig6"),
    Experiment("vanchurin/fig7", "temperatures and the laws of learning", f"{_VANCHURIN}:fig7"),
    Experiment(
        "vanchurin/bulk-training", "training on the bulk loss", f"{_VANCHURIN}:training_on_bulk"
    ),
    Experiment("vanchurin/table", "all numbers of the paper beside ours", f"{_VANCHURIN}:table"),
    Experiment("li/fig3a", "distribution of the weights over training", f"{_LI}:fig3a"),
    Experiment("li/fig3b", "symmetry of the circuits", f"{_LI}:fig3b"),
    Experiment("li/fig4a", "distribution of the gradient over training", f"{_LI}:fig4a"),
    Experiment("li/fig4b", "plasticity order parameter and risk", f"{_LI}:fig4b"),
    Experiment("li/fig6a", "normalised means of Hessian entries", f"{_LI}:fig6a"),
    Experiment("li/fig6b", "share of them below .15", f"{_LI}:fig6b"),
    Experiment("li/fig6c", "the same given active examples, a control", f"{_LI}:fig6c"),
    Experiment("li/fig7a", "correlations of Hessian entries, at the start", f"{_LI}:fig7a"),
    Experiment("li/fig7b", "the same in the middle of training", f"{_LI}:fig7b"),
    Experiment("li/fig7c", "the same at the end", f"{_LI}:fig7c"),
    Experiment("li/fig8a", "spectrum of the Hessian over training", f"{_LI}:fig8a"),
    Experiment("li/fig8b", "risk and accuracy", f"{_LI}:fig8b"),
    Experiment(
        "li/functional", "cross entropy and ResNet: what stays symmetric", f"{_LI}:functional"
    ),
    Experiment("li/table", "all statements of the paper beside ours", f"{_LI}:table"),
)


@dataclass(frozen=True)
class Outcome:
    """What an experiment left.

    Attributes:
        files: written, figures first.
        rows: a line for each number that the paper states there.
    """

    files: tuple[Path, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Session:
    """One call of ``torch-thermo reproduce``: what all its experiments share.

    Attributes:
        out: folder of all results; each paper has its own below it.
        budget: ``"quick"`` or ``"paper"``.
        data: a name or a file, see :func:`torch_thermo.data.load`; None takes each paper's own.
        epochs: of each training; None takes the budget's own number.
        progress: told what is done, how much of it, and of how much.
    """

    out: Path
    budget: str = "quick"
    data: str | None = None
    epochs: int | None = None
    progress: Callable[[str, int, int], None] | None = None
    _made: dict[str, object] = field(default_factory=dict, repr=False, compare=False)

    def images(self, paper: str) -> str:
        """The data for a paper's nets."""
        return DATA[paper][0] if self.data is None else self.data

    def once(self, key: str, make: Callable[[], Made]) -> Made:
        """What ``make`` gives, made at the first call and remembered under ``key``."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]  # type: ignore[return-value]


def chosen(names: Sequence[str]) -> list[Experiment]:
    """The experiments of some names, in the order given and each once.

    Args:
        names: of experiments; ``PAPER/all`` stands for all of a paper, ``all`` for all there are.

    Raises:
        ValueError: no name, or one that names nothing; the message says what comes close.
    """
    if not names:
        raise ValueError(
            "name what to reproduce, such as vanchurin/fig4; --list shows what there is"
        )
    picked: dict[str, Experiment] = {}
    for name in names:
        paper, _, what = name.partition("/")
        found = [
            one
            for one in EXPERIMENTS
            if name in (one.name, "all") or (what == "all" and one.name.startswith(f"{paper}/"))
        ]
        if not found:
            close = difflib.get_close_matches(name, [one.name for one in EXPERIMENTS], n=3)
            near = f"; there is {', '.join(close)}" if close else ""
            raise ValueError(f"no experiment {name!r}{near} (--list shows all)")
        picked.update((one.name, one) for one in found)
    return list(picked.values())


def check_data(experiments: Sequence[Experiment], data: str | None) -> None:
    """Refuse named data that an experiment's nets do not take; files are known when they are read.

    Raises:
        ValueError: it is another paper's.
    """
    others = {name for names in DATA.values() for name in names}
    for one in experiments:
        taken = DATA.get(one.paper, ())
        if data in others and data not in taken:
            raise ValueError(
                f"data must be {', '.join(taken)} or a FILE.npz, got {data!r} for {one.name}"
            )


def reproduce(
    experiments: Sequence[Experiment], session: Session
) -> Iterator[tuple[Experiment, Outcome]]:
    """Make experiments one after the other; they share the trainings.

    Args:
        experiments: see :func:`chosen`.
        session: where, from which data, and how long.

    Yields:
        Each with what it left.

    Raises:
        ValueError: the budget is unknown, ``epochs`` is below 1, or the data are not usable or
            another paper's.
        NotADirectoryError: ``out`` is a file, or lies below one.
    """
    if session.budget not in BUDGETS:
        raise ValueError(f"budget must be {' or '.join(BUDGETS)}, got {session.budget!r}")
    if session.epochs is not None and session.epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {session.epochs}")
    check_data(experiments, session.data)
    check_out(session.out)
    for experiment in experiments:
        yield experiment, experiment.make(session)


def list_table() -> Table:
    """All experiments by name, with what each shows."""
    table = Table("name", "shows", title="torch-thermo reproduce NAME ...", title_justify="left")
    for one in EXPERIMENTS:
        table.add_row(one.name, one.title)
    return table


def rows_table(rows: Sequence[Row]) -> Table:
    """Lines of the table for the console; where, reasons and notes are in the written ones."""
    table = Table()
    table.add_column("quantity", min_width=QUANTITY)
    for head in ("paper", "ours", "spread", "tolerance"):
        table.add_column(head, justify="right")
    table.add_column("verdict")
    for row in rows:
        table.add_row(*map(Text, (row.quantity, row.paper, *_numbers(row), row.verdict)))
    return table


def write_csv(rows: Sequence[Row], path: Path) -> Path:
    """Write the lines with all their digits; a column an attribute of `Row`, but for the claim."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [one.name for one in fields(Row) if one.name != "claim"]
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(names)
        writer.writerows([getattr(row, name) for name in names] for row in rows)
    return path


def write_markdown(rows: Sequence[Row], path: Path, title: str, text: str) -> Path:
    """Write the lines as a page: a numbered table, below it what each tolerance and note says.

    Args:
        rows: the lines.
        path: of the file; folders are made.
        title: of the page.
        text: below the title: data, nets, budget.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    heads = ("", "quantity", "where", "paper", "ours", "spread", "tolerance", "verdict")
    lines = [f"# {title}", "", text, "", _line(heads), _line(["---"] * len(heads))]
    for place, row in enumerate(rows, start=1):
        cells = (row.quantity, row.where, row.paper, *_numbers(row), row.verdict)
        lines.append(_line((str(place), *cells)))
    lines += ["", "Tolerances and notes:", ""]
    for place, row in enumerate(rows, start=1):
        note = f" {row.note[0].upper()}{row.note[1:]}." if row.note else ""
        lines.append(f"{place}. {row.quantity}: {row.reason}.{note}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _numbers(row: Row) -> tuple[str, str, str]:
    return _short(row.ours), _short(row.spread), f"{row.tolerance:.3g}"


def _short(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "-"
