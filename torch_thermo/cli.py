"""The command line: ``torch-thermo demo``.

Exit status 0 on success, 2 on bad arguments, 1 on failure. Errors are one line; ``--debug`` shows
the traceback.
"""

from __future__ import annotations

import shlex
import sys
from argparse import ArgumentError, ArgumentTypeError
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from torch_thermo import __version__

if TYPE_CHECKING:
    from rich.console import Console

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
    except KeyboardInterrupt:
        _fail(errors, "interrupted")
        return 1
    except Exception as error:
        if chosen.debug:
            raise
        _fail(errors, f"{_one_line(error)} (--debug shows where)")
        return 1
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="torch-thermo",
        description="Measure the statistical mechanics of a neural network while it trains.",
        exit_on_error=False,
        version=__version__,
    )
    commands = parser.add_subcommands(required=True, dest="command")
    demo = ArgumentParser(
        description="Train a tanh network and a bias-free ReLU VGG on real images with the "
        "thermometer attached; write TensorBoard logs and figures.",
        exit_on_error=False,
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
    return parser


def _data(value: str) -> str:
    if value in NAMED_DATA or Path(value).suffix == ".npz":
        return value
    raise ArgumentTypeError(f"data must be {', '.join(NAMED_DATA)} or a FILE.npz, got {value!r}")


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


_COMMANDS: dict[str, Callable[[Any, Console], None]] = {"demo": _demo}


if __name__ == "__main__":
    sys.exit(main())
