from __future__ import annotations

import math
import os

import numpy as np
import pytest

from torch_thermo.store import Series, Store, find_stores, load_run
from torch_thermo.store.quantities import QUANTITIES, Summary, measured, quantity, summarise


def series(values, steps=None):
    steps = np.arange(len(values)) if steps is None else np.array(steps)
    return Series(steps, np.array(values), np.full(len(values), math.nan))


def test_a_series_in_few_numbers():
    assert summarise(series([1.0, -3.0, 2.0], [0, 10, 1000])) == Summary(1.0, 2.0, -3.0, 10, 3)


def test_what_is_undefined_is_not_replaced_by_an_older_value():
    found = summarise(series([1.0, -3.0, math.nan], [0, 10, 1000]))
    assert math.isnan(found.last)
    assert (found.first, found.extreme, found.step, found.points) == (1.0, -3.0, 10, 2)
    nothing = summarise(series([math.nan, math.inf]))
    assert math.isnan(nothing.extreme)
    assert (nothing.step, nothing.points) == (-1, 0)


def test_names_and_labels_are_distinct():
    assert len({known.name for known in QUANTITIES}) == len(QUANTITIES)
    assert len({known.label for known in QUANTITIES}) == len(QUANTITIES)
    assert all(known.group and known.symbol for known in QUANTITIES)
    assert max(len(known.label) for known in QUANTITIES) <= 26  # a column of 80 letters' table


def test_the_observables_of_the_plan_are_in_the_summary():
    assert {known.name.partition("/")[0] for known in QUANTITIES} == {
        "order_parameter",
        "order_parameter_minibatch",
        "bulk_boundary",
        "hessian_extremes",
        "hessian_density",
        "functional_density",
        "circuit_symmetry",
        "circuit_sample",
        "propagator_spectrum",
        "weight_symmetry",
        "gradient_symmetry",
    }


def test_measured_quantities_in_order_each_null_after_its_own(tmp_path):
    store = Store.open(tmp_path / "thermo")
    store.append("weight_symmetry", 0, None, {"w_sym_null": 0.1, "w_sym": 0.2, "butler": 0.3})
    store.append("order_parameter", 0, None, {"risk": 1.0})
    rows = measured([load_run(tmp_path)])
    assert [row.name for row in rows] == [
        "order_parameter/risk",
        "weight_symmetry/w_sym",
        "weight_symmetry/w_sym_null",
    ]
    assert rows[2].label == "weights: W_sym, null"


def test_a_quantity_that_is_in_no_summary_has_its_name():
    unknown = quantity("mine/own")
    assert (unknown.label, unknown.scale) == ("mine/own", "auto")
    assert quantity("order_parameter/risk").label == "risk R, probe"


class TestFindStores:
    def test_the_store_itself_or_all_below_in_natural_order(self, tmp_path):
        names = ["version_10", "version_2", "lr0.1", "lr0.01", "a/b/c"]
        for name in names:
            Store.open(tmp_path / "runs" / name / "thermo").append("a", 0, None, {"b": 1.0})
        found = [os.fspath(s.relative_to(tmp_path / "runs")) for s in find_stores(tmp_path)]
        ordered = ["a/b/c", "lr0.01", "lr0.1", "version_2", "version_10"]
        assert found == [os.path.join(*name.split("/"), "thermo") for name in ordered]
        one = tmp_path / "runs" / "lr0.1"
        assert find_stores(one) == [one / "thermo"]
        assert find_stores(one / "thermo") == [one / "thermo"]

    def test_headers_of_other_tools_are_no_runs(self, tmp_path):
        (tmp_path / "run.json.d").mkdir()
        for name, content in (("a", "[]"), ("b", "{"), ("c", '{"format": "other"}')):
            (tmp_path / name).mkdir()
            (tmp_path / name / "run.json").write_text(content)
        with pytest.raises(FileNotFoundError, match="holds no stored measurements"):
            find_stores(tmp_path)
        with pytest.raises(FileNotFoundError, match="no such folder does not exist"):
            find_stores(tmp_path / "no such folder")
        (tmp_path / "file").write_text("mine")
        with pytest.raises(FileNotFoundError, match="holds no stored measurements"):
            find_stores(tmp_path / "file")
