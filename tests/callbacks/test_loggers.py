"""What loggers get: our tags, at our steps, and nothing of the run's own."""

from __future__ import annotations

import csv
from typing import Any

import numpy as np
import pytest
from pytorch_lightning.loggers import CSVLogger, Logger
from tensorboard.plugins.custom_scalar import layout_pb2

from tests.callbacks.support import (
    Classifier,
    TwoOptimizers,
    cheap,
    event_scalars,
    events,
    loader,
    make_trainer,
    notices,
    steps_of,
    tensorboard,
)
from torch_thermo.callbacks import (
    At,
    Every,
    GradientSymmetry,
    HessianSpectrum,
    PlasticityOrderParameter,
    Thermometer,
    WeightSymmetry,
)
from torch_thermo.dashboard import custom_scalar_layout


class Simple(Logger):
    """A logger with a save_dir and no directory of the run's own."""

    def __init__(self, folder: Any, name: Any = "simple", version: Any = 3) -> None:
        super().__init__()
        self._folder, self._name, self._version = folder, name, version
        self.rows: list[tuple[int, dict[str, float]]] = []

    @property
    def name(self):
        return self._name

    @property
    def version(self):
        return self._version

    @property
    def save_dir(self):
        return self._folder

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, dict(metrics)))


def layout_of(folder: Any) -> dict[str, dict[str, list[str]]]:
    accumulator = events(folder)
    tensor = accumulator.Tensors("custom_scalars__config__")[0].tensor_proto
    layout = layout_pb2.Layout()
    layout.ParseFromString(tensor.string_val[0])
    return {
        category.title: {
            chart.title: list(chart.multiline.tag)
            or [tag for s in chart.margin.series for tag in (s.value, s.lower, s.upper)]
            for chart in category.chart
        }
        for category in layout.category
    }


def test_tensorboard(tmp_path):
    thermometer = cheap()
    make_trainer(tmp_path, thermometer, logger=tensorboard(tmp_path)).fit(Classifier(), loader())
    stored = thermometer.stored()
    assert stored.path == tmp_path / "tb" / "thermo"
    scalars = event_scalars(tmp_path / "tb", ours=True)
    # every value of the store, under its tag, at its step, in single precision
    assert set(scalars) == {f"thermo/{name}" for name in stored.names}
    for name in stored.names:
        series = stored.series(name)
        known = ~np.isnan(series.values)
        logged = scalars[f"thermo/{name}"]
        assert [step for step, _ in logged] == series.steps.tolist(), name
        values = np.array([value for _, value in logged])
        np.testing.assert_allclose(values[known], series.values[known], rtol=1e-6)
    images = events(tmp_path / "tb")
    for name in ("hessian_density", "functional_density"):
        drawn = [image.step for image in images.Images(f"thermo/{name}/density")]
        assert drawn == steps_of(stored)[name] == [0, 1, 6]
    expected = custom_scalar_layout(thermometer.observables())
    assert layout_of(tmp_path / "tb") == {
        category: {chart: tags for chart, (_, tags) in charts.items()}
        for category, charts in expected.items()
    }


def test_one_layout_for_callbacks_side_by_side(tmp_path):
    callbacks = [PlasticityOrderParameter(probe=12), WeightSymmetry()]
    make_trainer(tmp_path, *callbacks, logger=tensorboard(tmp_path)).fit(Classifier(), loader())
    names = [name for callback in callbacks for name in callback.observables()]
    assert set(layout_of(tmp_path / "tb")) == set(custom_scalar_layout(names))
    assert len(events(tmp_path / "tb").Tensors("custom_scalars__config__")) == 1


def test_two_of_one_observable_do_not_share_tags(tmp_path):
    callbacks = [Thermometer(probe=12, callbacks=[GradientSymmetry()], seed=s) for s in (0, 1)]
    with notices() as texts:
        trainer = make_trainer(tmp_path, *callbacks, logger=tensorboard(tmp_path))
        trainer.fit(Classifier(), loader())
    assert len(texts) == 1
    assert "gradient_symmetry is measured by two callbacks" in texts[0]
    first, second = (callback.stored() for callback in callbacks)
    assert first.path.name == "thermo"
    assert second.path.name == "thermo-2"
    assert str(second.path) in texts[0]
    assert steps_of(first) == steps_of(second)
    assert steps_of(first)["gradient_symmetry"] == [0, 1, 2, 3, 4, 6]
    logged = event_scalars(tmp_path / "tb", ours=True)["thermo/gradient_symmetry/sign_balance"]
    values = first.series("gradient_symmetry/sign_balance").values
    assert [value for _, value in logged] == pytest.approx(values.tolist(), rel=1e-6)


def test_csv(tmp_path):
    thermometer = cheap()
    make_trainer(tmp_path, thermometer, max_epochs=2).fit(Classifier(), loader())
    with open(tmp_path / "run" / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    column = "thermo/order_parameter/value"
    logged = [(int(row["step"]), float(row[column])) for row in rows if row.get(column)]
    series = thermometer.stored().series("order_parameter/value")
    assert logged == list(zip(series.steps.tolist(), series.values.tolist(), strict=True))


def test_every_logger_gets_all(tmp_path):
    simple = Simple(tmp_path / "simple")
    loggers = [CSVLogger(tmp_path, name="", version="csv"), tensorboard(tmp_path), simple]
    thermometer = cheap()
    make_trainer(tmp_path, thermometer, logger=loggers).fit(Classifier(), loader())
    stored = thermometer.stored()
    assert stored.path == tmp_path / "csv" / "thermo"
    for name in stored.names:
        tag, steps = f"thermo/{name}", stored.series(name).steps.tolist()
        assert [step for step, row in simple.rows if tag in row] == steps
        assert [step for step, _ in event_scalars(tmp_path / "tb", ours=True)[tag]] == steps


@pytest.mark.parametrize(
    ("name", "version", "expected"),
    [("net", 3, "net/3"), (None, "v1", "v1"), (None, None, ""), ("", 0, "0")],
)
def test_a_logger_with_only_a_save_dir(tmp_path, name, version, expected):
    callback = WeightSymmetry()
    make_trainer(tmp_path, callback, logger=Simple(tmp_path, name, version)).fit(
        Classifier(), loader()
    )
    assert callback.stored().path == tmp_path / expected / "thermo"


def test_a_logger_without_any_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    callback, logger = WeightSymmetry(), Simple(None)
    with notices() as texts:
        make_trainer(tmp_path, callback, logger=logger).fit(Classifier(), loader())
    assert not texts
    assert callback.stored().path.parent.name == "thermo_runs"
    assert [s for s, row in logger.rows if "thermo/weight_symmetry/low" in row] == [
        0,
        1,
        2,
        3,
        4,
        6,
    ]


def test_a_logger_that_raises_is_one_notice(tmp_path):
    class Down(Simple):
        def log_metrics(self, metrics, step=None):
            if any(name.startswith("thermo/") for name in metrics):
                raise ConnectionError("the server is away")

    thermometer = cheap()
    with notices() as texts:
        trainer = make_trainer(tmp_path, thermometer, logger=Down(tmp_path))
        trainer.fit(Classifier(), loader())
    assert len(texts) == 1, texts
    assert "Down refused the measurements: the server is away" in texts[0]
    assert steps_of(thermometer.stored())["order_parameter"] == [0, 1, 2, 3, 4, 6]
    assert trainer.global_step == 6


def test_step_axis_with_log_every_n_steps(tmp_path):
    simple = Simple(tmp_path)
    thermometer = Thermometer(
        probe=12, callbacks=[PlasticityOrderParameter(), WeightSymmetry(Every(steps=3))]
    )
    trainer = make_trainer(tmp_path, thermometer, logger=simple, log_every_n_steps=2, max_epochs=2)
    trainer.fit(Classifier(), loader())

    def steps(tag: str) -> list[int]:
        return [step for step, row in simple.rows if f"thermo/{tag}" in row]

    assert steps("weight_symmetry/sign_balance") == [0, 3, 6, 9, 12]
    # of what is recorded at every step the loggers get each second
    assert steps("order_parameter_minibatch/value") == [1, 3, 5, 7, 9, 11]
    stored = thermometer.stored()
    assert steps_of(stored)["order_parameter_minibatch"] == list(range(12))
    values = dict(
        zip(range(12), stored.series("order_parameter_minibatch/value").values, strict=True)
    )
    for step, row in simple.rows:
        if "thermo/order_parameter_minibatch/value" in row:
            assert row["thermo/order_parameter_minibatch/value"] == values[step]


def test_nothing_of_ours_goes_through_the_runs_own_log(tmp_path):
    thermometer = cheap()
    trainer = make_trainer(tmp_path, thermometer)
    trainer.fit(Classifier(), loader())
    seen = [*trainer.logged_metrics, *trainer.callback_metrics, *trainer.progress_bar_metrics]
    assert seen
    assert not [name for name in seen if "thermo" in name]


def test_a_figure_that_cannot_be_drawn_is_one_notice(tmp_path, monkeypatch):
    def broken(*arguments: Any) -> None:
        raise ValueError("no canvas")

    monkeypatch.setattr("torch_thermo.dashboard.write_figure", broken)
    thermometer = cheap()
    with notices() as texts:
        trainer = make_trainer(tmp_path, thermometer, logger=tensorboard(tmp_path))
        trainer.fit(Classifier(), loader())
    assert len(texts) == 1, texts
    assert "no canvas" in texts[0]
    assert steps_of(thermometer.stored())["hessian_density"] == [0, 1, 6]


def test_each_of_two_optimizers_is_logged(tmp_path):
    simple, callback = Simple(tmp_path), Thermometer()
    with notices():
        trainer = make_trainer(tmp_path, callback, logger=simple, log_every_n_steps=4)
        trainer.fit(TwoOptimizers(), loader())

    def steps(index: int) -> list[int]:
        tag = f"thermo/order_parameter_minibatch/value_optimizer{index}"
        return [step for step, row in simple.rows if tag in row]

    assert steps(0) == [2, 6, 10]
    assert steps(1) == [3, 7, 11]


def test_a_density_is_stored_with_its_standard_errors(tmp_path):
    start = At(steps=[0], end=False)
    callback = HessianSpectrum(start, start, density_steps=6, density_probes=4, probe=12)
    make_trainer(tmp_path, callback).fit(Classifier(), loader())
    stored = callback.stored()
    for observable in ("hessian_density", "functional_density"):
        weights, nodes = (stored.arrays(observable, 0)[name] for name in ("weights", "nodes"))
        below = (weights * (nodes < 0)).sum(1)
        mass = stored.series(f"{observable}/negative_mass").values
        stderr = stored.series(f"{observable}/negative_mass_stderr").values
        assert mass == pytest.approx([below.mean()])
        assert stderr == pytest.approx([below.std(ddof=1) / 2])
        assert 0.0 < stderr[0] < mass[0] < 1.0


def test_several_that_are_measured_twice_are_named_together(tmp_path):
    callbacks = [Thermometer(callbacks=[WeightSymmetry(), GradientSymmetry()]) for _ in range(2)]
    callbacks[1].seed = 1
    with notices() as texts:
        make_trainer(tmp_path, *callbacks).fit(Classifier(), loader())
    assert len(texts) == 1
    assert "gradient_symmetry, weight_symmetry are measured by two callbacks" in texts[0]
