"""The store under any values, any order of steps and a crash at any byte."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from torch_thermo.store import Store, load_run

values = st.floats(allow_nan=True, allow_infinity=True, width=64)
quantities = st.text(min_size=1, max_size=8)
scalars = st.dictionaries(quantities, values, min_size=1, max_size=3)
rows = st.lists(
    st.tuples(st.integers(0, 20), st.none() | st.integers(0, 5), scalars), min_size=1, max_size=12
)


def same(a, b):
    """Equal bit for bit, but for the payload of a NaN."""
    return (math.isnan(a) and math.isnan(b)) or (
        a == b and math.copysign(1, a) == math.copysign(1, b)
    )


def stored(path):
    """Everything a reader sees of the observable ``x``: {step: {quantity: value}}."""
    run = load_run(path)
    found = {}
    for name in run.names:
        series = run.series(name)
        assert series.steps.tolist() == sorted(set(series.steps.tolist()))
        for step, value in zip(series.steps.tolist(), series.values.tolist(), strict=True):
            found.setdefault(step, {})[name.removeprefix("x/")] = value
    return found


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for step, row in expected.items():
        assert found[step].keys() == row.keys()
        assert all(same(found[step][name], value) for name, value in row.items())


@given(rows=rows)
@settings(max_examples=60)
def test_any_row_comes_back_bit_for_bit(rows):
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(Path(folder) / "thermo")
        store.append_many("x", rows)
        assert_same(stored(store.path), {step: row for step, _, row in rows})
        history = {row.step: row.values for row in store.rows("x")}
        assert_same(history, {step: row for step, _, row in rows})


@given(rows=rows, data=st.data())
@settings(max_examples=60)
def test_a_crash_at_any_byte_loses_no_complete_row(rows, data):
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(Path(folder) / "thermo")
        file, ends = store.path / "x.jsonl", []
        for row in rows:
            store.append("x", *row)
            ends.append(file.stat().st_size)
        cut = data.draw(st.integers(0, ends[-1]), label="cut")
        file.write_bytes(file.read_bytes()[:cut])
        # A row whose closing line break alone is missing is complete.
        kept = {step: row for (step, _, row), end in zip(rows, ends, strict=True) if end - 1 <= cut}
        assert_same(stored(store.path), kept)
        Store.open(store.path).append("x", 100, None, {"after": 1.0})
        assert_same(stored(store.path), {**kept, 100: {"after": 1.0}})


@given(
    actions=st.lists(
        st.tuples(st.sampled_from(["row", "arrays", "supersede", "reopen"]), st.integers(0, 3)),
        max_size=15,
    )
)
@settings(max_examples=100)
def test_any_history_reads_as_a_dictionary_would(actions):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "thermo"
        store = Store.open(path)
        expected_rows, expected_arrays = {}, {}
        for number, (action, step) in enumerate(actions):
            if action == "row":
                store.append("x", step, None, {"value": number})
                expected_rows[step] = {"value": number}
            elif action == "arrays":
                store.save_arrays("x", step, {"a": np.array(number)})
                expected_arrays[step] = number
            else:
                if action == "supersede":
                    store.supersede(step)
                else:
                    store = Store.open(path, run_id=store.id, resume_after=step)
                expected_rows = {s: row for s, row in expected_rows.items() if s <= step}
                expected_arrays = {s: n for s, n in expected_arrays.items() if s <= step}
        assert_same(stored(path), expected_rows)
        run = load_run(path)
        steps = run.array_steps("x") if "x" in run.observables else []
        assert {s: int(run.arrays("x", s)["a"]) for s in steps} == expected_arrays


@given(
    array=hnp.arrays(
        st.one_of(hnp.floating_dtypes(), hnp.integer_dtypes(), hnp.boolean_dtypes()),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    )
)
@settings(max_examples=40)
def test_any_array_comes_back_bit_for_bit(array):
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(Path(folder) / "thermo")
        store.save_arrays("x", 0, {"a": array})
        back = load_run(store.path).arrays("x")["a"]
        assert back.dtype == array.dtype
        assert back.shape == array.shape
        np.testing.assert_array_equal(back, array)
