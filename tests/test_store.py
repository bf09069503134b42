"""The store: what is written comes back, whole or not at all."""

from __future__ import annotations

import copy
import json
import logging
import math
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

import torch_thermo.store.files as files
from torch_thermo.store import Row, Store, default_directory, load_run, new_run_id


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "logs" / "thermo", run_id="abc")


def fill(store, steps, offset=0.0):
    store.append_many("risk", [(step, None, {"value": step + offset}) for step in steps])


def steps_of(path, name="risk/value"):
    return load_run(path).series(name).steps.tolist()


def test_scalars_come_back_sorted_by_step(store):
    store.append("order_parameter", 4, 1, {"value": 0.1, "layer/a.weight": 2})
    store.append("order_parameter", 0, 0, {"value": 0.3})
    store.append("order_parameter", 2, None, {"value": np.float32(0.2)})
    run = load_run(store.path)
    series = run.series("order_parameter/value")
    assert series.steps.dtype == np.int64
    assert series.values.dtype == np.float64
    assert series.steps.tolist() == [0, 2, 4]
    assert series.values.tolist() == [0.3, float(np.float32(0.2)), 0.1]
    np.testing.assert_array_equal(series.epochs, [0, math.nan, 1])
    assert len(series) == 3
    assert run.series("order_parameter/layer/a.weight").steps.tolist() == [4]
    assert run.observables == ["order_parameter"]
    assert run.names == ["order_parameter/layer/a.weight", "order_parameter/value"]


def test_non_finite_values_are_strict_json(store):
    store.append("risk", 1, None, {"a": math.nan, "b": math.inf, "c": -math.inf})
    (line,) = (store.path / "risk.jsonl").read_text().splitlines()

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    assert json.loads(line, parse_constant=refuse)["values"] == {
        "a": "nan",
        "b": "inf",
        "c": "-inf",
    }
    run = load_run(store.path)
    assert math.isnan(run.series("risk/a").values[0])
    assert run.series("risk/b").values[0] == math.inf
    assert run.series("risk/c").values[0] == -math.inf


def test_the_last_row_of_a_step_wins_as_a_whole(store):
    store.append("risk", 3, None, {"value": 1.0, "stderr": 0.5})
    store.append("risk", 3, 2, {"value": 2.0})
    run = load_run(store.path)
    assert run.series("risk/value").values.tolist() == [2.0]
    assert run.names == ["risk/value"]


def test_arrays_come_back(store):
    arrays = {
        "nodes": np.arange(6.0).reshape(2, 3),
        "file": np.array([1, 2], dtype=np.int8),
        "allow_pickle": np.array(3.5),
        "layer/conv 1.weight": np.zeros((0, 4)),
    }
    store.save_arrays("hessian_density", 8, arrays)
    store.save_arrays("hessian_density", 32, {"nodes": [1.0, 2.0]})
    run = load_run(store.path)
    assert run.array_steps("hessian_density") == [8, 32]
    back = run.arrays("hessian_density", 8)
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)
        assert back[name].dtype == array.dtype
    assert run.arrays("hessian_density")["nodes"].tolist() == [1.0, 2.0]
    with np.load(store.path / "hessian_density" / "8.npz", allow_pickle=False) as archive:
        assert set(archive.files) == set(arrays)


def test_arrays_that_fail_half_way_leave_no_trace(store, monkeypatch):
    store.save_arrays("density", 1, {"nodes": np.ones(3)})

    def die(file, array, **kwargs):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np.lib.format, "write_array", die)
    for step in (1, 2):
        with pytest.raises(OSError, match="disk full"):
            store.save_arrays("density", step, {"nodes": np.zeros(3)})
    run = load_run(store.path)
    assert run.array_steps("density") == [1]
    assert run.arrays("density")["nodes"].tolist() == [1.0, 1.0, 1.0]
    assert [path.name for path in (store.path / "density").iterdir()] == ["1.npz"]


def test_a_reader_that_holds_the_file_delays_the_writer_only(store, monkeypatch):
    # What Windows answers while somebody has the target open.
    replace, refusals = os.replace, iter([True, True])

    def sometimes(source, target):
        if next(refusals, False):
            raise PermissionError("in use")
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", sometimes)
    monkeypatch.setattr(files.time, "sleep", lambda seconds: None)
    store.save_arrays("density", 1, {"nodes": np.ones(3)})
    assert load_run(store.path).array_steps("density") == [1]


def test_superseded_rows_and_arrays_are_gone_until_written_again(store):
    fill(store, range(6))
    for step in (2, 4):
        store.save_arrays("density", step, {"nodes": np.full(2, float(step))})
    store.supersede(3)
    run = load_run(store.path)
    assert run.series("risk/value").steps.tolist() == [0, 1, 2, 3]
    assert run.array_steps("density") == [2]
    with pytest.raises(KeyError, match="no arrays at step 4; they are at steps \\[2\\]"):
        run.arrays("density", 4)
    fill(store, [4], offset=0.5)
    store.save_arrays("density", 4, {"nodes": np.zeros(2)})
    run = load_run(store.path)
    assert run.series("risk/value").values.tolist() == [0, 1, 2, 3, 4.5]
    assert run.arrays("density", 4)["nodes"].tolist() == [0.0, 0.0]


def test_an_observable_superseded_from_its_start_is_not_listed(store):
    fill(store, [5, 6])
    store.supersede(4)
    run = load_run(store.path)
    assert run.observables == []
    assert run.names == []


def test_opening_again_goes_on_with_the_run(store):
    fill(store, range(5))
    again = Store.open(store.path)
    assert again.id == "abc"
    fill(again, [5])
    resumed = Store.open(store.path, run_id="abc", resume_after=2)
    assert resumed.id == "abc"
    assert steps_of(store.path) == [0, 1, 2]
    fill(resumed, [3, 4])
    assert steps_of(store.path) == [0, 1, 2, 3, 4]


def test_another_run_never_mixes_with_the_one_that_is_there(store, caplog):
    fill(store, range(3))
    with caplog.at_level(logging.WARNING):
        other = Store.open(store.path, run_id="xyz")
    assert "moved to" in caplog.text
    fill(other, [7])
    assert load_run(store.path).id == "xyz"
    assert steps_of(store.path) == [7]
    aside = store.path.with_name("thermo-abc")
    assert load_run(aside).id == "abc"
    assert steps_of(aside) == [0, 1, 2]
    # A third and a fourth run: no name is taken twice.
    Store.open(store.path, run_id="abc")
    Store.open(store.path, run_id="xyz")
    assert len(list(store.path.parent.iterdir())) == 4


def test_rows_are_the_history_of_this_object(store):
    assert store.rows("risk") == []
    fill(store, [0, 1])
    again = Store.open(store.path)
    assert again.rows("risk") == []
    again.append("risk", 3, None, {"value": math.inf})
    again.append("risk", 2, 1, {"value": 2.0})
    assert again.rows("risk") == [Row(2, 1, {"value": 2.0}), Row(3, None, {"value": math.inf})]
    again.supersede(2)
    assert [row.step for row in again.rows("risk")] == [2]
    assert [row.step for row in store.rows("risk")] == [0, 1, 2]


def test_meta_is_added_to_and_kept(store):
    store.write_meta({"model": "tanh", "lr": math.inf, "sizes": (1, 2)})
    store.write_meta({"model": "relu"})
    expected = {"model": "relu", "lr": "inf", "sizes": [1, 2]}
    assert store.meta == load_run(store.path).meta == Store.open(store.path).meta == expected
    with pytest.raises(TypeError, match="not JSON serializable"):
        store.write_meta({"model": object()})
    assert load_run(store.path).meta == store.meta == expected


def test_a_log_directory_is_as_good_as_the_store(store):
    fill(store, [1])
    run = load_run(store.path.parent)
    assert run.path == store.path
    assert run.id == "abc"
    assert "abc" in repr(run)


@pytest.mark.parametrize(
    "tail", [b'{"st', b'{"step":9,"epoch":null,"values":{"value":', b"\x00\x00"]
)
def test_a_torn_last_line_is_dropped_and_repaired(store, tail, caplog):
    fill(store, [0, 1])
    with open(store.path / "risk.jsonl", "ab") as file:
        file.write(tail)
    assert steps_of(store.path) == [0, 1]
    assert not caplog.records
    fill(Store.open(store.path), [2, 3])
    assert steps_of(store.path) == [0, 1, 2, 3]
    assert "skipped 1 unreadable lines" in caplog.text


def test_lines_of_later_kinds_are_skipped(store):
    fill(store, [0])
    with open(store.path / "risk.jsonl", "ab") as file:
        file.write(b'{"note":"to be"}\n\n[1, 2]\n7\n{"step":1,"values":3}\n')
    fill(store, [2])
    assert steps_of(store.path) == [0, 2]


def test_a_new_directory_links_to_the_old_one(tmp_path):
    old = Store.open(tmp_path / "version_0" / "thermo", run_id="old")
    fill(old, range(6))
    for step in (2, 4):
        old.save_arrays("density", step, {"nodes": np.full(2, float(step))})
    new = Store.open(
        tmp_path / "version_1" / "thermo", run_id="new", resume_after=3, continues=old.path.parent
    )
    fill(new, [3, 4], offset=0.5)
    new.save_arrays("density", 5, {"nodes": np.zeros(2)})
    run = load_run(new.path)
    assert run.id == "new"
    assert run.series("risk/value").values.tolist() == [0, 1, 2, 3.5, 4.5]
    assert run.array_steps("density") == [2, 5]
    assert run.arrays("density", 2)["nodes"].tolist() == [2.0, 2.0]
    assert steps_of(old.path) == [0, 1, 2, 3, 4, 5]

    # A third part; the cut of the second also holds for the first.
    third = Store.open(tmp_path / "version_2", resume_after=2, continues=new.path)
    fill(third, [4], offset=0.25)
    assert load_run(third.path).series("risk/value").values.tolist() == [0, 1, 2, 4.25]

    # Moved as a whole, the parts still find each other.
    (tmp_path / "elsewhere").mkdir()
    for name in ("version_0", "version_1", "version_2"):
        os.rename(tmp_path / name, tmp_path / "elsewhere" / name)
    assert steps_of(tmp_path / "elsewhere" / "version_2") == [0, 1, 2, 4]


def test_going_back_before_the_link_cuts_the_old_store_too(tmp_path):
    old = Store.open(tmp_path / "old")
    fill(old, range(10))
    new = Store.open(tmp_path / "new", resume_after=6, continues=old.path)
    fill(new, [7, 8])
    again = Store.open(tmp_path / "new", resume_after=4, continues=old.path)
    fill(again, [5])
    assert steps_of(again.path) == [0, 1, 2, 3, 4, 5]


def test_going_on_in_the_same_directory_under_a_new_id(store):
    fill(store, range(5))
    new = Store.open(store.path, run_id="xyz", resume_after=2, continues=store.path)
    fill(new, [3], offset=0.5)
    assert load_run(store.path).id == "xyz"
    assert load_run(store.path).series("risk/value").values.tolist() == [0, 1, 2, 3.5]
    assert steps_of(store.path.with_name("thermo-abc")) == [0, 1, 2, 3, 4]


def test_a_lost_older_store_is_said_not_raised(tmp_path):
    with pytest.warns(UserWarning, match="is not there any more"):
        Store.open(tmp_path / "a", resume_after=3, continues=tmp_path / "gone")
    old = Store.open(tmp_path / "old", run_id="one")
    fill(old, [1])
    new = Store.open(tmp_path / "new", resume_after=3, continues=old.path)
    fill(new, [4])
    os.rename(old.path, tmp_path / "hidden")
    Store.open(tmp_path / "old", run_id="two")
    with pytest.warns(UserWarning, match="of run one up to step 3, are not found"):
        assert steps_of(new.path) == [4]


def test_unknown_names_list_close_ones(store):
    store.append("order_parameter", 0, None, {"value": 1.0, "stderr": 0.1})
    store.save_arrays("hessian_density", 0, {"nodes": np.ones(1)})
    run = load_run(store.path)
    with pytest.raises(
        KeyError, match=r"no series 'order_parameter/valu'; .*order_parameter/value"
    ):
        run.series("order_parameter/valu")
    with pytest.raises(KeyError, match="no series 'zzz'; there are order_parameter/stderr"):
        run.series("zzz")
    with pytest.raises(KeyError, match="no observable 'hessian_densty'; there are hessian_density"):
        run.arrays("hessian_densty")
    with pytest.raises(KeyError, match="order_parameter has no arrays; they are at steps \\[\\]"):
        run.arrays("order_parameter")


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "/x", "a/b", "a\\b", "C:x", "x\n", ".x", "x.", "-x", "nul", "CON.x"],
)
def test_names_stay_in_the_folder(store, name):
    for act in (
        lambda: store.append(name, 0, None, {"value": 1.0}),
        lambda: store.save_arrays(name, 0, {"nodes": np.ones(1)}),
        lambda: store.rows(name),
        lambda: Store.open(store.path.parent / "other", run_id=name),
        lambda: default_directory(name),
    ):
        with pytest.raises(ValueError, match="must be letters, digits"):
            act()
    assert {path.name for path in store.path.parent.parent.rglob("*")} == {
        "logs",
        "thermo",
        "run.json",
    }


@pytest.mark.parametrize("name", ["", "..", "../x", "/x", "a/../b", "a//b", "a\\b", "C:x", "a.npy"])
def test_array_names_stay_in_the_archive(store, name):
    with pytest.raises(ValueError, match="array names must be relative paths"):
        store.save_arrays("density", 0, {name: np.ones(1)})


def test_bad_rows_are_refused_before_anything_is_written(store):
    good = (0, None, {"value": 1.0})
    for bad, error, message in (
        ((-1, None, {"value": 1.0}), ValueError, "step must be at least 0, got -1"),
        ((1.0, None, {"value": 1.0}), TypeError, "step must be a whole number, got 1.0"),
        ((True, None, {"value": 1.0}), TypeError, "step must be a whole number, got True"),
        ((1, -2, {"value": 1.0}), ValueError, "epoch must be at least 0, got -2"),
        ((1, None, {}), ValueError, "at least one value"),
        ((1, None, {"": 1.0}), ValueError, "must have a name"),
        ((1, None, {"value": "nan"}), TypeError, "value must be a number, got 'nan'"),
        ((1, None, {"value": None}), TypeError, "float"),
    ):
        with pytest.raises(error, match=message):
            store.append_many("risk", [good, bad])
    store.append_many("risk", [])
    assert not (store.path / "risk.jsonl").exists()
    with pytest.raises(ValueError, match="plain dtype, got object"):
        store.save_arrays("density", 0, {"nodes": np.array([{}])})
    with pytest.raises(ValueError, match="at least one array"):
        store.save_arrays("density", 0, {})
    with pytest.raises(ValueError, match="step must be at least 0, got -1"):
        store.supersede(-1)
    with pytest.raises(ValueError, match="continues needs resume_after"):
        Store.open(store.path.parent / "new", continues=store.path)
    assert list(store.path.iterdir()) == [store.path / "run.json"]


def test_what_is_no_store_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone does not exist"):
        load_run(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match=r"no run\.json there or in thermo/$"):
        load_run(tmp_path)
    Store.open(tmp_path / "version_3" / "thermo")
    with pytest.raises(FileNotFoundError, match=r"below it are\n.*version_3"):
        load_run(tmp_path)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    for text in ("{", "[]", "{}", '{"format": "else", "version": 1}'):
        (foreign / "run.json").write_text(text)
        for act in (load_run, Store.open):
            with pytest.raises(ValueError, match="not the header of a torch-thermo store"):
                act(foreign)
    headless = tmp_path / "headless"
    headless.mkdir()
    (headless / "risk.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"holds \.jsonl files and no run\.json"):
        Store.open(headless)


def test_a_newer_format_asks_for_an_upgrade(store):
    header = json.loads((store.path / "run.json").read_text())
    header["version"] += 1
    (store.path / "run.json").write_text(json.dumps(header))
    for act in (load_run, Store.open):
        with pytest.raises(ValueError, match=r"format version 2, .* up to 1: upgrade"):
            act(store.path)


def test_to_dataframe_is_wide_by_step(store):
    pd = pytest.importorskip("pandas")
    store.append("risk", 0, 0, {"value": 1.0})
    store.append("risk", 4, None, {"value": 0.5})
    store.append("extremes", 2, None, {"lambda_max": 3.0})
    store.append("extremes", 4, 1, {"lambda_max": 2.0})
    frame = load_run(store.path).to_dataframe()
    nan = math.nan
    expected = pd.DataFrame(
        {
            "epoch": [0.0, nan, 1.0],
            "extremes/lambda_max": [nan, 3.0, 2.0],
            "risk/value": [1.0, nan, 0.5],
        },
        index=pd.Index([0, 2, 4], name="step"),
    )
    pd.testing.assert_frame_equal(frame, expected)


def test_to_dataframe_of_an_empty_run(store):
    pytest.importorskip("pandas")
    assert load_run(store.path).to_dataframe().empty


def test_to_dataframe_without_pandas_names_the_line(store, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        load_run(store.path).to_dataframe()


def test_ids_and_directories(tmp_path):
    assert new_run_id() != new_run_id()
    assert Store.open(tmp_path / "a").id != Store.open(tmp_path / "b").id
    path = default_directory("abc")
    assert path.parent.name == "thermo_runs"
    assert path.name.endswith("-abc")
    assert ":" not in path.name
    assert not path.exists()


def test_a_store_can_be_copied_and_pickled(store):
    fill(store, [0])
    for other in (copy.deepcopy(store), pickle.loads(pickle.dumps(store))):
        fill(other, [1])
        assert other.path == store.path
    assert steps_of(store.path) == [0, 1]


WRITER = """
import sys
import numpy as np
from torch_thermo.store import Store

store = Store.open(sys.argv[1])

def write(steps):
    for step in steps:
        store.save_arrays("density", step, {"nodes": np.full(500, float(step))})
        store.append("risk", step, None, {"value": float(step), "layer/" + 200 * "x": 1.0})

write(range(20))
print("ready", flush=True)
sys.stdin.readline()
write(range(20, 300))
"""


def test_a_reader_in_another_process_sees_a_prefix(tmp_path):
    path = tmp_path / "thermo"
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout.readline().strip() == b"ready"
        assert steps_of(path) == list(range(20))
        writer.stdin.write(b"go\n")
        writer.stdin.flush()
        seen, done = 20, False
        while not done:
            done = writer.poll() is not None  # asked first: one more look after the end
            run = load_run(path)
            series = run.series("risk/value")
            assert series.steps.tolist() == list(range(len(series)))
            assert series.values.tolist() == series.steps.tolist()
            assert len(series) >= seen
            seen = len(series)
            steps = run.array_steps("density")
            assert steps == list(range(len(steps)))
            nodes = run.arrays("density")["nodes"]
            assert nodes.tolist() == [float(steps[-1])] * 500
    assert writer.returncode == 0
    assert seen == 300
