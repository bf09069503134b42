"""When to measure: schedules are callables of the step and the epoch.

A schedule is asked at every *tick* of a run, ``schedule(step, epoch)``, and answers whether a
measurement is due.

- ``step``: number of completed optimizer updates of the weights that are measured; the initial
  weights are step 0.
- ``epoch``: number of completed epochs, given at the start of the run (0) and at epoch ends only;
  ``None`` at every tick in between.

Schedules hold no state, so that every rank, and a run resumed from a checkpoint, gets the same
answer. Whether to measure once more when the training ends is the attribute ``end``.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

__all__ = ["AnyOf", "At", "Every", "Log", "Schedule"]


def whole(name: str, value: object, least: int) -> int:
    """The argument as an int, or an error that names it."""
    # A bool is an int to Python; as a number of steps it is a slip.
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    number = operator.index(value)
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    return number


def _flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def _one_of(steps: object, epochs: object) -> None:
    if (steps is None) == (epochs is None):
        raise ValueError(f"give either steps or epochs, got steps={steps!r}, epochs={epochs!r}")


def _count(number: int, unit: str) -> str:
    return f"every {unit}" if number == 1 else f"every {number} {unit}s"


class Schedule:
    """Base of the schedules: ``schedule(step, epoch)``, ``end``, and unions by ``|``."""

    end: bool

    def __call__(self, step: int, epoch: int | None = None) -> bool:
        """Whether a measurement is due.

        Args:
            step: completed optimizer updates, 0 for the initial weights.
            epoch: completed epochs at the start (0) and at epoch ends, ``None`` in between.
        """
        raise NotImplementedError

    def next_due(self, step: int) -> int | None:
        """The first step after ``step`` known to be due, or ``None``.

        Epochs cannot be translated into steps here: a part that is due by epochs counts as
        ``None``.
        """
        raise NotImplementedError

    def describe(self) -> str:
        """When, in words, without the end of the run."""
        raise NotImplementedError

    def __str__(self) -> str:
        return f"{self.describe()}, and at the end" if self.end else self.describe()

    def __or__(self, other: Callable[..., bool]) -> AnyOf:
        return AnyOf((self, other)) if callable(other) else NotImplemented

    def __ror__(self, other: Callable[..., bool]) -> AnyOf:
        return AnyOf((other, self)) if callable(other) else NotImplemented


@dataclass(frozen=True, kw_only=True)
class Every(Schedule):
    """Every so many steps, or every so many epochs, the start included.

    ``Every(steps=3)`` is due at steps 0, 3, 6, ...; ``Every(epochs=2)`` at the start of the run and
    at the ends of epochs 2, 4, ...

    Args:
        steps: the distance in steps, at least 1.
        epochs: the distance in epochs, at least 1.
        end: measure once more when the training ends.

    Raises:
        ValueError: both or neither of ``steps`` and ``epochs`` given, or one below 1.
        TypeError: a distance that is not a whole number.

    Example:
        >>> schedule = Every(steps=3)
        >>> [step for step in range(10) if schedule(step)]
        [0, 3, 6, 9]
        >>> print(schedule)
        every 3 steps, and at the end
    """

    steps: int | None = None
    epochs: int | None = None
    end: bool = True

    def __post_init__(self) -> None:
        _one_of(self.steps, self.epochs)
        _flag("end", self.end)
        for name in ("steps", "epochs"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, whole(name, value, 1))

    def __call__(self, step: int, epoch: int | None = None) -> bool:
        """See :meth:`Schedule.__call__`."""
        if self.steps is not None:
            return step % self.steps == 0
        return epoch is not None and self.epochs is not None and epoch % self.epochs == 0

    def next_due(self, step: int) -> int | None:
        """See :meth:`Schedule.next_due`."""
        return None if self.steps is None else (step // self.steps + 1) * self.steps

    def describe(self) -> str:
        """See :meth:`Schedule.describe`."""
        if self.steps is not None:
            return _count(self.steps, "step")
        assert self.epochs is not None  # exactly one is given: checked in __post_init__
        return _count(self.epochs, "epoch")


@dataclass(frozen=True, kw_only=True)
class At(Schedule):
    """At the listed steps, or at the listed epochs.

    Args:
        steps: step numbers, each at least 0; kept sorted, each once.
        epochs: numbers of completed epochs, each at least 0 (0 is the start of the run).
        end: measure once more when the training ends.

    Raises:
        ValueError: both or neither of ``steps`` and ``epochs`` given, an empty list, a negative
            number.
        TypeError: something that is not a list of whole numbers.

    Example:
        >>> schedule = At(epochs=[10, 1, 2, 3], end=False)
        >>> [epoch for epoch in range(20) if schedule(100 * epoch, epoch)]
        [1, 2, 3, 10]
        >>> print(schedule)
        at epochs 1 to 3, 10
    """

    steps: Sequence[int] | None = None
    epochs: Sequence[int] | None = None
    end: bool = True

    def __post_init__(self) -> None:
        _one_of(self.steps, self.epochs)
        _flag("end", self.end)
        for name in ("steps", "epochs"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, _numbers(name, value))

    def __call__(self, step: int, epoch: int | None = None) -> bool:
        """See :meth:`Schedule.__call__`."""
        if self.steps is not None:
            return step in self.steps
        return epoch is not None and self.epochs is not None and epoch in self.epochs

    def next_due(self, step: int) -> int | None:
        """See :meth:`Schedule.next_due`."""
        return next((due for due in self.steps or () if due > step), None)

    def describe(self) -> str:
        """See :meth:`Schedule.describe`."""
        unit, numbers = ("step", self.steps) if self.steps is not None else ("epoch", self.epochs)
        assert numbers is not None  # exactly one is given: checked in __post_init__
        return f"at {unit}{'s' if len(numbers) > 1 else ''} {_runs(numbers)}"


@dataclass(frozen=True)
class Log(Schedule):
    """At steps 0, 1 and then geometrically: round(10^(k / per_decade)), k = 0, 1, 2, ...

    The grid needs no end: a run of any length is covered with about ``per_decade`` measurements a
    decade of steps. Where neighbouring grid points round to the same step it is due once.

    Args:
        per_decade: grid points for each factor of ten in steps, at least 1.
        end: measure once more when the training ends.

    Raises:
        ValueError: ``per_decade`` below 1.
        TypeError: ``per_decade`` is not a whole number.

    Example:
        >>> schedule = Log(per_decade=4)
        >>> [step for step in range(101) if schedule(step)]
        [0, 1, 2, 3, 6, 10, 18, 32, 56, 100]
        >>> print(schedule)
        4 times a decade of steps, and at the end
    """

    per_decade: int = 8
    end: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "per_decade", whole("per_decade", self.per_decade, 1))
        _flag("end", self.end)

    def _grid(self, k: int) -> int:
        # Whole decades are exact integers; a float power is only good to 16 digits.
        decade, rest = divmod(k, self.per_decade)
        return round(10.0 ** (k / self.per_decade)) if rest else int(10**decade)

    def _index(self, step: int) -> float:
        return self.per_decade * math.log10(step)

    def __call__(self, step: int, epoch: int | None = None) -> bool:
        """See :meth:`Schedule.__call__`."""
        if step < 2:
            return step >= 0
        # If any grid point rounds to `step`, one of the two around its own (real) index does.
        index = math.floor(self._index(step))
        return self._grid(index) == step or self._grid(index + 1) == step

    def next_due(self, step: int) -> int | None:
        """See :meth:`Schedule.next_due`."""
        if step < 1:
            return 0 if step < 0 else 1
        index = math.floor(self._index(step))
        while self._grid(index) <= step:
            index += 1
        return self._grid(index)

    def describe(self) -> str:
        """See :meth:`Schedule.describe`."""
        times = "once" if self.per_decade == 1 else f"{self.per_decade} times"
        return f"{times} a decade of steps"


@dataclass(frozen=True)
class AnyOf(Schedule):
    """The union of schedules, written ``a | b``: due when one of them is.

    Args:
        schedules: schedules, or plain callables of ``(step, epoch)``; a callable without an
            attribute ``end`` does not ask for the end of the run.

    Raises:
        ValueError: no schedule given.
        TypeError: something that cannot be called.

    Example:
        >>> schedule = Log(per_decade=1) | At(epochs=range(1, 51))
        >>> schedule(7), schedule(7, 50), schedule(7, 51)
        (False, True, False)
        >>> print(schedule)
        once a decade of steps, at epochs 1 to 50, and at the end
    """

    schedules: tuple[Callable[..., bool], ...]

    def __post_init__(self) -> None:
        flat: list[Callable[..., bool]] = []
        for schedule in self.schedules:
            if not callable(schedule):
                raise TypeError(f"schedules must be callable, got {schedule!r}")
            flat.extend(schedule.schedules if isinstance(schedule, AnyOf) else [schedule])
        if not flat:
            raise ValueError("schedules must not be empty, got ()")
        object.__setattr__(self, "schedules", tuple(flat))

    @property
    def end(self) -> bool:  # type: ignore[override]
        """Whether one of the schedules asks for the end of the run."""
        return any(bool(getattr(schedule, "end", False)) for schedule in self.schedules)

    def __call__(self, step: int, epoch: int | None = None) -> bool:
        """See :meth:`Schedule.__call__`."""
        return any(schedule(step, epoch) for schedule in self.schedules)

    def next_due(self, step: int) -> int | None:
        """See :meth:`Schedule.next_due`."""
        known = [s.next_due(step) for s in self.schedules if isinstance(s, Schedule)]
        return min((due for due in known if due is not None), default=None)

    def describe(self) -> str:
        """See :meth:`Schedule.describe`."""
        return ", ".join(
            schedule.describe()
            if isinstance(schedule, Schedule)
            else getattr(schedule, "__name__", str(schedule))
            for schedule in self.schedules
        )


def _numbers(name: str, values: object) -> tuple[int, ...]:
    """Sorted, each once."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a list of whole numbers, got {values!r}")
    numbers = tuple(sorted({whole(name, value, 0) for value in values}))
    if not numbers:
        raise ValueError(f"{name} must not be empty, got {values!r}")
    return numbers


def _runs(numbers: Sequence[int], most: int = 6) -> str:
    """Sorted numbers in words, neighbours drawn together: ``1 to 50, 60, 80``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    words: list[str] = []
    for first, last in runs:
        if last - first > 1:
            words.append(f"{first} to {last}")
        else:
            words.extend(str(number) for number in range(first, last + 1))
    if len(words) > most:
        words = [*words[: most - 1], "…", words[-1]]
    return ", ".join(words)
