"""Schedules: which ticks of a run are due."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from torch_thermo.callbacks.schedule import AnyOf, At, Every, Log, Schedule


def due_steps(schedule, last):
    return [step for step in range(last + 1) if schedule(step)]


def due_epochs(schedule, last, steps_per_epoch=7):
    return [epoch for epoch in range(last + 1) if schedule(epoch * steps_per_epoch, epoch)]


def test_every_steps_counts_the_initial_weights():
    assert due_steps(Every(steps=3), 10) == [0, 3, 6, 9]
    assert due_steps(Every(steps=1), 3) == [0, 1, 2, 3]


def test_steps_are_due_at_any_tick():
    assert Every(steps=3)(6, 1)
    assert At(steps=[6])(6, 1)
    assert Log()(10, 4)
    assert not Every(steps=3)(7, 1)


def test_epochs_are_due_at_the_start_and_at_epoch_ends_only():
    schedule = Every(epochs=2)
    assert due_epochs(schedule, 5) == [0, 2, 4]
    assert not any(schedule(step) for step in range(50))
    assert due_epochs(At(epochs=[1, 4]), 6) == [1, 4]
    assert not any(At(epochs=[1, 4])(step) for step in range(50))


def test_at_sorts_and_draws_duplicates_together():
    schedule = At(steps=[9, 2, 2, np.int64(5)])
    assert schedule.steps == (2, 5, 9)
    assert due_steps(schedule, 20) == [2, 5, 9]
    assert schedule == At(steps=(2, 5, 9))


def test_log_is_zero_one_and_the_rounded_grid():
    assert due_steps(Log(per_decade=1), 1000) == [0, 1, 10, 100, 1000]
    assert due_steps(Log(per_decade=2), 1000) == [0, 1, 3, 10, 32, 100, 316, 1000]
    # Neighbours that round to the same step are due once: 10^(1/8) = 1.33 and 1 are one point.
    assert due_steps(Log(), 20) == [0, 1, 2, 3, 4, 6, 7, 10, 13, 18]


@pytest.mark.parametrize("per_decade", [1, 3, 4, 8, 13, 100, 1000])
def test_log_is_the_formula_at_every_step(per_decade):
    grid = {round(10 ** (k / per_decade)) for k in range(5 * per_decade + 1)}
    assert due_steps(Log(per_decade=per_decade), 10**4) == sorted(
        {0} | {step for step in grid if step <= 10**4}
    )


def test_log_finds_far_decades():
    schedule = Log(per_decade=4)
    for k in range(15):
        assert schedule(10**k)
        assert schedule.next_due(10**k - 1) == 10**k
    assert not schedule(10**12 + 1)


@pytest.mark.parametrize(
    "schedule",
    [
        Every(steps=1),
        Every(steps=7),
        At(steps=[0, 3, 50]),
        Log(),
        Log(per_decade=1000),
        Every(steps=11) | Log(per_decade=3),
    ],
    ids=str,
)
def test_next_due_is_the_next_step_that_is_due(schedule):
    due = due_steps(schedule, 200)
    for step in range(-1, 101):
        following = next((later for later in due if later > step), None)
        assert schedule.next_due(step) == following


def test_next_due_is_none_for_epochs():
    assert Every(epochs=2).next_due(3) is None
    assert At(epochs=[5]).next_due(3) is None
    assert (Every(epochs=2) | At(steps=[8])).next_due(3) == 8


def test_a_union_is_due_when_one_part_is():
    schedule = Log(per_decade=1) | At(epochs=[3]) | Every(steps=40)
    assert isinstance(schedule, AnyOf)
    assert len(schedule.schedules) == 3
    assert due_steps(schedule, 100) == [0, 1, 10, 40, 80, 100]
    assert schedule(21, 3)
    assert not schedule(21, 2)


def test_a_union_ends_when_one_part_does():
    assert (Every(steps=2, end=False) | Log(end=True)).end
    assert not (Every(steps=2, end=False) | Log(end=False)).end
    assert Every(steps=2).end
    assert not At(steps=[1], end=False).end


def test_plain_callables_join_a_union():
    def odd(step, epoch=None):
        return step % 2 == 1

    for schedule in (Every(steps=4, end=False) | odd, odd | Every(steps=4, end=False)):
        assert due_steps(schedule, 6) == [0, 1, 3, 4, 5]
        assert not schedule.end
        assert "odd" in str(schedule)
    with pytest.raises(TypeError, match="unsupported operand"):
        Every(steps=4) | 3


def test_schedules_are_values():
    schedule = Log(per_decade=2) | At(epochs=range(3))
    for other in (copy.deepcopy(schedule), pickle.loads(pickle.dumps(schedule))):
        assert other == schedule
        assert hash(other) == hash(schedule)
    with pytest.raises(AttributeError):
        Every(steps=2).steps = 3


@pytest.mark.parametrize(
    ("schedule", "text"),
    [
        (Every(steps=10), "every 10 steps, and at the end"),
        (Every(steps=1, end=False), "every step"),
        (Every(epochs=1), "every epoch, and at the end"),
        (At(steps=[4], end=False), "at step 4"),
        (At(epochs=range(1, 51)), "at epochs 1 to 50, and at the end"),
        (At(steps=[1, 2, 9], end=False), "at steps 1, 2, 9"),
        (At(steps=range(0, 200, 10), end=False), "at steps 0, 10, 20, 30, 40, …, 190"),
        (Log(), "8 times a decade of steps, and at the end"),
        (Log(1, end=False) | Every(epochs=2), "once a decade of steps, every 2 epochs, and at "),
    ],
)
def test_in_words(schedule, text):
    assert str(schedule) == text or (text.endswith(" ") and str(schedule).startswith(text))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Every(steps=0), ValueError, "steps must be at least 1, got 0"),
        (lambda: Every(epochs=-3), ValueError, "epochs must be at least 1, got -3"),
        (lambda: Every(steps=True), TypeError, "steps must be a whole number, got True"),
        (lambda: Every(steps=2.0), TypeError, "steps must be a whole number, got 2.0"),
        (lambda: Every(steps="2"), TypeError, "steps must be a whole number, got '2'"),
        (lambda: Every(), ValueError, "either steps or epochs"),
        (lambda: Every(steps=1, epochs=1), ValueError, "either steps or epochs"),
        (lambda: Every(steps=1, end=1), TypeError, "end must be True or False, got 1"),
        (lambda: At(), ValueError, "either steps or epochs"),
        (lambda: At(steps=[1], epochs=[1]), ValueError, "either steps or epochs"),
        (lambda: At(steps=[]), ValueError, "steps must not be empty, got \\[\\]"),
        (lambda: At(epochs=[3, -1]), ValueError, "epochs must be at least 0, got -1"),
        (lambda: At(steps=[1, False]), TypeError, "steps must be a whole number, got False"),
        (lambda: At(steps="12"), TypeError, "steps must be a list of whole numbers, got '12'"),
        (lambda: At(steps=12), TypeError, "steps must be a list of whole numbers, got 12"),
        (lambda: Log(per_decade=0), ValueError, "per_decade must be at least 1, got 0"),
        (lambda: Log(per_decade=1.5), TypeError, "per_decade must be a whole number, got 1.5"),
        (lambda: AnyOf(()), ValueError, "schedules must not be empty"),
        (lambda: AnyOf((Log(), 3)), TypeError, "schedules must be callable, got 3"),
    ],
)
def test_bad_arguments_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_numpy_integers_are_whole_numbers():
    schedule = Every(steps=np.int64(5))
    assert type(schedule.steps) is int
    assert schedule == Every(steps=5)


def test_every_schedule_is_a_schedule():
    for schedule in (Every(steps=1), At(steps=[1]), Log(), Log() | Log()):
        assert isinstance(schedule, Schedule)
