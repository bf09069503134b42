"""What TensorBoard gets beside the scalars: cards, histograms, ridgelines, and not too many."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from tests.callbacks.support import (
    Classifier,
    cheap,
    event_scalars,
    loader,
    make_trainer,
    notices,
    steps_of,
    tensorboard,
)
from tests.dashboard.support import events
from torch_thermo import dashboard
from torch_thermo.callbacks import Thermometer, WeightSymmetry
from torch_thermo.callbacks.outlet import Outlet

NAMES = ["net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias"]


def texts(folder: Path) -> dict[str, list[str]]:
    """{tag: texts} of the text tab."""
    read = events(folder)
    return {
        tag.removesuffix("/text_summary"): [
            event.tensor_proto.string_val[0].decode() for event in read.Tensors(tag)
        ]
        for tag in read.Tags()["tensors"]
        if tag.endswith("/text_summary")
    }


def fit(folder: Path, *callbacks: Any, **options: Any) -> Any:
    trainer = make_trainer(folder, *callbacks, logger=tensorboard(folder), **options)
    trainer.fit(Classifier(), loader())
    return trainer


@pytest.mark.parametrize("observable", Thermometer().observables())
def test_every_observable_of_the_plan_has_a_card_and_a_chart(observable):
    assert observable in dashboard.CARDS
    charts = dashboard.custom_scalar_layout([observable])
    tags = [tag for group in charts.values() for _, tags in group.values() for tag in tags]
    assert tags
    assert all(f"thermo/{observable}/" in tag.replace("\\", "") for tag in tags)


def test_every_chart_finds_its_curves_in_what_a_run_wrote(tmp_path):
    thermometer = cheap()
    fit(tmp_path, thermometer)
    written = event_scalars(tmp_path / "tb", ours=True)
    layout = dashboard.custom_scalar_layout(thermometer.observables())
    for group in layout.values():
        for chart, (kind, tags) in group.items():
            for tag in tags:
                found = [name for name in written if re.match(tag, name)]
                assert found, (chart, tag)
                assert kind == "Multiline" or found[0] == tag


def test_cards_are_written_once_for_a_run(tmp_path):
    thermometer = cheap()
    trainer = fit(tmp_path, thermometer)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    resumed = make_trainer(tmp_path, cheap(), logger=tensorboard(tmp_path), max_epochs=2)
    resumed.fit(Classifier(), loader(), ckpt_path=tmp_path / "last.ckpt")
    assert resumed.global_step > trainer.global_step
    cards = texts(tmp_path / "tb")
    assert set(cards) == {"thermo/about"} | {
        f"thermo/{name}/about" for name in thermometer.observables()
    }
    assert [len(card) for card in cards.values()] == [1] * len(cards)


def test_a_callback_added_on_resuming_brings_its_card(tmp_path):
    fit(tmp_path, Thermometer(callbacks=[WeightSymmetry()])).save_checkpoint(tmp_path / "a.ckpt")
    resumed = make_trainer(tmp_path, cheap(), logger=tensorboard(tmp_path), max_epochs=2)
    with notices():
        resumed.fit(Classifier(), loader(), ckpt_path=tmp_path / "a.ckpt")
    cards = texts(tmp_path / "tb")
    assert len(cards["thermo/weight_symmetry/about"]) == 1
    assert len(cards["thermo/order_parameter/about"]) == 1


def test_histograms_are_written_at_each_measurement_of_all_and_of_each_layer(tmp_path):
    thermometer = cheap()
    fit(tmp_path, thermometer)
    steps = steps_of(thermometer.stored())["weight_symmetry"]
    read = events(tmp_path / "tb")
    sizes = {"": 53, "/net.0.weight": 30, "/net.0.bias": 5, "/net.2.weight": 15, "/net.2.bias": 3}
    for name in ("weight_symmetry", "gradient_symmetry"):
        for layer, size in sizes.items():
            found = read.Histograms(f"thermo/{name}/histogram{layer}")
            assert [event.step for event in found] == steps
            assert {sum(event.histogram_value.bucket) for event in found} == {size}


def test_a_ridgeline_is_drawn_at_the_end(tmp_path):
    thermometer = cheap()
    fit(tmp_path, thermometer)
    read = events(tmp_path / "tb")
    for name in (
        "weight_symmetry",
        "gradient_symmetry",
        "hessian_density",
        "functional_density",
        "propagator_spectrum",
    ):
        drawn = [image.step for image in read.Images(f"thermo/{name}/ridgeline")]
        assert drawn[-1] == steps_of(thermometer.stored())[name][-1] == 6


def test_few_layers_are_shown_and_the_same_everywhere(tmp_path, monkeypatch):
    monkeypatch.setattr("torch_thermo.dashboard.tags.MOST_LAYERS", 2)
    thermometer = cheap()
    fit(tmp_path, thermometer)
    written = event_scalars(tmp_path / "tb", ours=True)
    stored = thermometer.stored().names
    shown = {NAMES[0], NAMES[-1]}  # the first and the last
    for observable, quantities in (
        ("order_parameter", ("layer",)),
        ("weight_symmetry", ("layer", "w_sym", "w_sym_null")),
        ("gradient_symmetry", ("layer", "w_sym", "w_sym_null")),
    ):
        for quantity in quantities:
            start = f"thermo/{observable}/{quantity}/"
            layers = {tag.removeprefix(start) for tag in written if tag.startswith(start)}
            assert layers == shown, start
            assert {f"{observable}/{quantity}/{name}" for name in NAMES} <= set(stored)
    tags = events(tmp_path / "tb").Tags()["histograms"]
    start = "thermo/weight_symmetry/histogram/"
    assert {tag.removeprefix(start) for tag in tags if tag.startswith(start)} == shown
    notes = {tag: text for tag, text in texts(tmp_path / "tb").items() if tag.endswith("/layers")}
    assert set(notes) == {
        f"thermo/{name}/layers"
        for name in ("order_parameter", "weight_symmetry", "gradient_symmetry")
    }
    for said in notes.values():
        assert len(said) == 1
        assert "2 of 4 layers" in said[0]


def test_quantities_of_the_whole_net_are_never_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr("torch_thermo.dashboard.tags.MOST_LAYERS", 1)
    thermometer = cheap()
    fit(tmp_path, thermometer)
    written = event_scalars(tmp_path / "tb", ours=True)
    whole = {f"thermo/{name}" for name in thermometer.stored().names if name.count("/") == 1}
    assert whole <= set(written)


def outlet(folder: Path, observables: list[str], told: list[str]) -> tuple[Outlet, SummaryWriter]:
    """An outlet with a TensorBoard writer, without a run around it."""
    writer = SummaryWriter(folder)
    logger = SimpleNamespace(
        experiment=writer, log_dir=str(folder), log_metrics=lambda metrics, step: None
    )
    trainer: Any = SimpleNamespace(
        loggers=[logger], fast_dev_run=False, default_root_dir=str(folder)
    )
    made = Outlet(lambda text, key="": told.append(text))
    made.open(trainer, str(folder), 0, observables, None, [], observables)
    return made, writer


def histogram(step: int) -> dict[str, np.ndarray]:
    edges = np.linspace(-1.0, 1.0, 5)
    return {"counts": np.array([1, 4, 3, 2]), "edges": edges, "stats": np.arange(5.0) + step}


def record(made: Outlet, steps: list[int], arrays: Any = histogram) -> None:
    for step in steps:
        made.record("weight_symmetry", step, 0, {"w_sym": 0.1}, arrays(step), ["ridgeline"])


def test_a_long_run_draws_few_ridgelines_and_reads_few_steps(tmp_path, monkeypatch):
    drawn: list[list[int]] = []

    def seen(writer: Any, observable: str, history: Any) -> None:
        drawn.append([step for step, _ in history])

    monkeypatch.setattr("torch_thermo.dashboard.write_ridgeline", seen)
    made, _ = outlet(tmp_path, ["weight_symmetry"], told := [])
    record(made, list(range(300)))
    assert [steps[-1] for steps in drawn] == [8, 32, 128]
    made.summarise({}, {}, 0.0, {}, {})
    assert [steps[-1] for steps in drawn] == [8, 32, 128, 299]
    made.summarise({}, {}, 0.0, {}, {})  # nothing new since
    assert len(drawn) == 4
    assert all(len(steps) <= 10 and steps[0] == 0 for steps in drawn)
    assert told == []


def test_only_the_observable_itself_is_read_for_its_ridgeline(tmp_path, monkeypatch):
    """Another one has a row for each of a million steps."""
    made, writer = outlet(tmp_path, ["weight_symmetry", "order_parameter_minibatch"], told := [])
    made.record_rows("order_parameter_minibatch", [(step, 0, {"value": 1.0}) for step in range(9)])
    read: list[str] = []
    from torch_thermo.store import run as reading

    whole = reading.read_entries

    def spied(directory: Path, observable: str, start: int = 0) -> Any:
        read.append(observable)
        return whole(directory, observable, start)

    monkeypatch.setattr(reading, "read_entries", spied)
    record(made, [0, 1, 2])
    made.summarise({}, {}, 0.0, {}, {})
    writer.close()
    assert set(read) == {"weight_symmetry"}
    assert [i.step for i in events(tmp_path).Images("thermo/weight_symmetry/ridgeline")] == [2]
    assert told == []


def test_a_ridgeline_that_cannot_be_drawn_is_one_notice(tmp_path):
    def broken(step: int) -> dict[str, np.ndarray]:
        return {**histogram(step), "edges": np.zeros(3)}

    made, writer = outlet(tmp_path, ["weight_symmetry"], told := [])
    record(made, [0, 1, 2], broken)
    made.summarise({"weight_symmetry": 3}, {}, 0.0, {}, {})
    writer.close()
    assert len(told) == 1
    assert "a figure could not be drawn" in told[0]
    assert made.store is not None
    assert made.store.meta["measurements"] == {"weight_symmetry": 3}


def test_one_measurement_makes_no_ridgeline(tmp_path):
    made, writer = outlet(tmp_path, ["weight_symmetry"], told := [])
    record(made, [0])
    made.summarise({}, {}, 0.0, {}, {})
    writer.close()
    assert events(tmp_path).Tags()["images"] == []
    assert told == []
