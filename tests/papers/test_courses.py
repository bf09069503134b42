from __future__ import annotations

import math

import numpy as np
import pytest

from torch_thermo.papers.courses import Course, course, epochs_of, judged, median, over_seeds
from torch_thermo.papers.verdicts import NOT_MEASURED, REPRODUCED, Claim
from torch_thermo.store import Store, load_run

CLAIM = Claim("q", "eq. 1", "2", 2.0, 0.5, "digits")


def run(path, values):
    store = Store.open(path)
    store.write_meta({"steps_per_epoch": 10})
    for epoch, value in values.items():
        store.append("risk", 10 * epoch, epoch, {"value": value})
    return load_run(path)


@pytest.fixture
def runs(tmp_path):
    return [
        run(tmp_path / "0", {0: 1.0, 1: 2.0, 4: 3.0}),
        run(tmp_path / "1", {0: 3.0, 2: 9.0, 4: 5.0}),
    ]


def test_a_course_has_the_epochs_that_all_seeds_have(runs):
    found = course(runs, "risk/value")
    assert found.epochs.tolist() == [0.0, 4.0]
    assert found.values.tolist() == [[1.0, 3.0], [3.0, 5.0]]
    assert found.mean.tolist() == [2.0, 4.0]
    trace = found.trace("R", null=Course(found.epochs, np.array([[0.0, 1.0], [2.0, 3.0]])))
    assert (trace.low.tolist(), trace.high.tolist()) == ([1.0, 3.0], [3.0, 5.0])
    assert trace.null.tolist() == [1.0, 2.0]
    assert trace.band == "range of 2 seeds"
    assert course(runs[:1], "risk/value").trace("R").band is None
    squares = over_seeds(runs, lambda one: (epochs_of(one, [0, 20, 40]), np.arange(3.0)))
    assert squares.epochs.tolist() == [0.0, 2.0, 4.0]


def test_seeds_without_a_common_step(tmp_path, runs):
    with pytest.raises(ValueError, match="no step at which all of 3 runs have risk/value"):
        course([*runs, run(tmp_path / "2", {3: 1.0})], "risk/value")


def test_a_number_of_several_seeds_is_judged_by_its_mean():
    row = judged(CLAIM, np.array([2.0, 2.3, 2.3]), "a note")
    assert (row.ours, row.verdict, row.note) == (pytest.approx(2.2), REPRODUCED, "a note")
    assert row.spread == pytest.approx(np.std([2.0, 2.3, 2.3], ddof=1))
    assert judged(CLAIM, np.array([1.0, math.nan])).verdict == NOT_MEASURED


def test_a_median_of_what_is_finite():
    assert median(np.array([1.0, math.nan, 5.0, math.inf, 2.0])) == 2.0
    assert math.isnan(median(np.array([math.nan])))
