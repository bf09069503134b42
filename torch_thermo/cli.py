"""The command line: ``torch-thermo demo``, ``torch-thermo reproduce``, ``torch-thermo show``.

Exit status 0 on success, 2 on bad arguments, 1 on failure. Errors are one line; ``--debug`` shows
the traceback.
"""

from __future__ import annotations

import shlex
import sys
from argparse import SUPPRESS, Action, ArgumentError, ArgumentTypeError
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

from torch_thermo import __version__

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

    from torch_thermo.papers.demo import DemoRun
    from torch_thermo.papers.recipes import Recipe

__all__ = ["main"]

NAMED_DATA = ("mnist5k", "mnist", "cifar10")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments; None takes those of the process.

    Returns:
        0 on success, 2 on bad arguments, 1 on failure.
    """
    from rich.console import Console

    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        arguments = _parser().parse_args(None if argv is None else list(argv))
    except ArgumentError as error:
        _fail(errors, f"{_one_line(error)} (torch-thermo --help)")
        return 2
    except SystemExit as end:  # --help and --version
        return int(end.code or 0)
    chosen = arguments[arguments.command]
    try:
        _COMMANDS[arguments.command](chosen, Console(highlight=False))
    except ArgumentError as error:
        if chosen.debug:
            raise
        _fail(errors, f"{_one_line(error)} (torch-thermo {arguments.command} --help)")
        return 2
    except KeyboardInterrupt:
        _fail(errors, "interrupted")
        return 1
    except Exception as error:
        if chosen.debug:
            raise
        _fail(errors, f"{_one_line(error)} (--debug shows where)")
        return 1
    return 0


class _Help(DefaultHelpFormatter):
    """Help without what jsonargparse adds: Python's names of types, and null for no default."""

    def _get_help_string(self, action: Action) -> str:
        text = action.help or ""
        said = not any(action.default is default for default in (None, False, SUPPRESS))
        return f"{text} (default: %(default)s)" if said and action.option_strings else text


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="torch-thermo",
        description="Measure the statistical mechanics of a neural network while it trains.",
        exit_on_error=False,
        formatter_class=_Help,
        version=__version__,
    )
    commands = parser.add_subcommands(required=True, dest="command")
    demo = ArgumentParser(
        description="Train a tanh network and a bias-free ReLU VGG on real images with the "
        "thermometer attached; write TensorBoard logs and figures.",
        exit_on_error=False,
        formatter_class=_Help,
    )
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of the results")
    demo.add_argument(
        "--data", type=_data, default="mnist5k", help="mnist5k, mnist, cifar10 or a FILE.npz"
    )
    demo.add_argument("--epochs", type=_epochs, default=None, help="of each training")
    demo.add_argument("--seed", type=_seed, default=0, help="of data, weights and probe")
    demo.add_argument(
        "--accelerator", type=str, default="cpu", help="Lightning's: cpu, cuda, mps or auto"
    )
    demo.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands.add_subcommand("demo", demo, help="two trainings with everything measured")
    commands.add_subcommand(
        "reproduce", _reproduce_parser(), help="a paper's figures and numbers, beside ours"
    )
    commands.add_subcommand("show", _show_parser(), help="stored runs as tables and figures")
    return parser


def _reproduce_parser() -> ArgumentParser:
    reproduce = ArgumentParser(
        description="Make figures and numbers of a paper anew: train what they need, or go on "
        "with it; write each figure (PNG and PDF) and its data (CSV), and say of each number the "
        "paper states whether ours agrees.",
        exit_on_error=False,
        formatter_class=_Help,
    )
    reproduce.add_argument(
        "names",
        metavar="NAME",
        nargs="*",
        type=str,
        help="such as vanchurin/fig4; vanchurin/all for all of a paper",
    )
    reproduce.add_argument("--list", action="store_true", help="name all there is")
    reproduce.add_argument(
        "--budget",
        type=_budget,
        default="quick",
        help="quick: minutes, several seeds; paper: the paper's length, resumable",
    )
    reproduce.add_argument(
        "--out", metavar="DIR", type=_folder, default=Path("runs/reproduce"),
        help="folder of runs, figures and tables",
    )  # fmt: skip
    reproduce.add_argument(
        "--data", type=_data, default=None,
        help="mnist5k, mnist, cifar10 or a FILE.npz; default: the paper's own, of vanchurin "
        "mnist5k, of li cifar10",
    )  # fmt: skip
    reproduce.add_argument(
        "--epochs", type=_epochs, default=None, help="of each training; default: the budget's"
    )
    reproduce.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return reproduce


def _show_parser() -> ArgumentParser:
    show = ArgumentParser(
        description="Show what runs have measured, also while they go on: a table of each, the "
        "last values of several side by side, and figures; several runs are drawn over each other.",
        exit_on_error=False,
        formatter_class=_Help,
    )
    show.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        type=Path,
        help="a store (thermo/), a logger's folder (lightning_logs/version_0), or a folder "
        "with several runs anywhere below it",
    )
    show.add_argument(
        "--out",
        metavar="DIR",
        type=_folder,
        default=None,
        help="folder of the figures; default: figures/ in the RUN, or here if there are several",
    )
    show.add_argument("--pdf", action="store_true", help="write the figures as PDF too")
    show.add_argument(
        "--quantities",
        metavar="NAME[,NAME...]",
        type=_patterns,
        default=None,
        help="these alone, one panel each: observable/quantity, an observable, or with * and ?; "
        "several with commas between them",
    )
    show.add_argument("--list", action="store_true", help="name all that is stored; no figures")
    show.add_argument(
        "--csv", metavar="FILE", type=_csv, default=None, help="write the values as a long table"
    )
    show.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return show


def _data(value: str) -> str:
    if value in NAMED_DATA or Path(value).suffix == ".npz":
        return value
    raise ArgumentTypeError(f"data must be {', '.join(NAMED_DATA)} or a FILE.npz, got {value!r}")


def _budget(value: str) -> str:
    if value in ("quick", "paper"):
        return value
    raise ArgumentTypeError(f"budget must be quick or paper, got {value!r}")


def _patterns(value: str | list[str]) -> list[str]:
    # one argument, for as many as follow it would take the RUN too
    names = value.split(",") if isinstance(value, str) else value
    if not all(names):
        raise ArgumentTypeError(f"quantities must be NAME or NAME,NAME, got {value!r}")
    return names


def _csv(value: str | Path) -> Path:
    path = Path(value)
    if path == Path("-") or path.is_dir():
        what = "standard output, which shows the tables" if path == Path("-") else "the folder"
        raise ArgumentTypeError(f"csv must be a file, got {what} {value}")
    _folder(path.parent)
    return path


def _folder(value: str | Path) -> Path:
    folder = Path(value)
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise ArgumentTypeError(f"{folder} must be a folder, got the file {path}")
    return folder


def _epochs(value: str | int) -> int:
    return _whole_number("epochs", value, least=1)


def _seed(value: str | int) -> int:
    return _whole_number("seed", value, least=0)


def _whole_number(name: str, value: str | int, least: int) -> int:
    message = f"{name} must be a whole number of at least {least}, got {value!r}"
    try:
        number = int(value)
    except ValueError as error:
        raise ArgumentTypeError(message) from error
    if number < least:
        raise ArgumentTypeError(message)
    return number


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _fail(console: Console, message: str) -> None:
    console.print("error:", message, style="bold red", markup=False)


def _demo(arguments: Namespace, console: Console) -> None:
    from torch_thermo.papers.demo import run_demo, summary_table

    def started(recipe: Recipe) -> None:
        console.rule(recipe.title)
        console.print(f"{recipe.problem}, {recipe.epochs} epochs", markup=False)

    runs: list[DemoRun] = run_demo(
        arguments.out,
        arguments.data,
        epochs=arguments.epochs,
        seed=arguments.seed,
        accelerator=arguments.accelerator,
        started=started,
    )
    console.rule("measured")
    for done in runs:
        console.print(summary_table(done))
    console.print("figures:", str(arguments.out / "figures"), markup=False, soft_wrap=True)
    console.print(
        "look at it: tensorboard --logdir",
        shlex.quote(str(arguments.out)),
        markup=False,
        soft_wrap=True,
    )


def _reproduce(arguments: Namespace, console: Console) -> None:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from torch_thermo.papers import reproduction

    if arguments.list:
        console.print(reproduction.list_table())
        return
    try:
        experiments = reproduction.chosen(arguments.names or [])
        reproduction.check_data(experiments, arguments.data)
    except ValueError as error:
        raise ArgumentError(None, str(error)) from error
    console.width = max(console.width, reproduction.NARROWEST)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def tell(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        session = reproduction.Session(
            arguments.out, arguments.budget, arguments.data, arguments.epochs, tell
        )
        for experiment, outcome in reproduction.reproduce(experiments, session):
            console.rule(f"{experiment.name}: {experiment.title}")
            if outcome.rows:
                console.print(reproduction.rows_table(outcome.rows))
            for file in outcome.files:
                console.print(str(file), markup=False, soft_wrap=True)


def _show(arguments: Namespace, console: Console) -> None:
    from torch_thermo.papers import show

    def say(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    try:
        runs, notes = show.find_runs(arguments.runs)
        wanted = show.chosen(runs, arguments.quantities) if arguments.quantities else None
    except (FileNotFoundError, ValueError) as error:
        raise ArgumentError(None, str(error)) from error
    console.width = max(console.width, show.NARROWEST)
    for note in notes:
        say(note)
    for label, run in runs:
        if arguments.list:
            console.print(show.names_table(label, run, wanted))
        else:
            console.print(show.run_table(show.run_title(label, run), run, wanted))
    if len(runs) > 1 and not arguments.list:
        for table in show.last_values(runs, wanted, console.width):
            console.print(table)
    if arguments.csv is not None:
        count = show.write_csv(runs, arguments.csv, wanted)
        say(f"table: {arguments.csv}, {count:,} rows")
    if not arguments.list:
        out = arguments.out or _figures_of(arguments.runs)
        files = show.save_figures(runs, out, wanted, ("png", "pdf") if arguments.pdf else ("png",))
        say(f"figures: {out}, {len(files)} files")


def _figures_of(paths: Sequence[Path]) -> Path:
    """In the run that is shown, beside its store, or here."""
    if len(paths) > 1:
        return Path("figures")
    (path,) = paths
    is_store = path.resolve().name == "thermo" and (path / "run.json").is_file()
    return (path.resolve().parent if is_store else path) / "figures"


_COMMANDS: dict[str, Callable[[Any, Console], None]] = {
    "demo": _demo,
    "reproduce": _reproduce,
    "show": _show,
}


if __name__ == "__main__":
    sys.exit(main())
