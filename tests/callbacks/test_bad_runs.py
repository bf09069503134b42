"""Runs that break, are fitted on, or find no room for what is measured."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from tests.callbacks.support import (
    Classifier,
    cheap,
    finite,
    loader,
    make_trainer,
    notices,
)
from torch_thermo.callbacks import Every, WeightSymmetry


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_run_that_breaks_keeps_what_was_measured(tmp_path, error):
    class Breaking(Classifier):
        def training_step(self, batch, batch_idx):
            if self.training and self.global_step == 4:
                raise error("enough")
            return super().training_step(batch, batch_idx)

    thermometer = cheap()
    trainer = make_trainer(tmp_path, thermometer, log_every_n_steps=50)
    with pytest.raises((error, SystemExit)), notices() as texts:
        trainer.fit(Breaking(), loader())
    assert not texts
    stored = thermometer.stored()
    assert finite(stored, "order_parameter_minibatch") == [0, 1, 2, 3]
    assert finite(stored, "order_parameter") == [0, 1, 2, 3, 4]
    assert stored.meta["steps"] == 4
    # a later failure elsewhere does not end the run a second time
    thermometer.on_exception(trainer, None, RuntimeError())
    assert thermometer.stored().meta == stored.meta


def test_one_instance_for_two_runs(tmp_path):
    thermometer = cheap()
    runs = []
    for name in ("first", "second"):
        torch.manual_seed(0)
        trainer = make_trainer(tmp_path / name, thermometer)
        trainer.fit(Classifier(), loader(shuffle=False))
        runs.append(thermometer.stored())
    assert runs[0].path != runs[1].path
    assert runs[0].id != runs[1].id
    values = [{n: run.series(n).values.tolist() for n in run.names} for run in runs]
    # the second is not started from the first one's eigenvectors
    assert str(values[0]) == str(values[1])
    assert [row["step"] for row in thermometer.history["order_parameter"]] == [0, 1, 2, 3, 4, 6]


def test_fitting_on_goes_on_in_the_store(tmp_path):
    thermometer = cheap()
    trainer = make_trainer(tmp_path, thermometer, max_epochs=1)
    module = Classifier()
    trainer.fit(module, loader())
    first = thermometer.stored()
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, loader())
    second = thermometer.stored()
    assert second.path == first.path
    assert second.id == first.id
    assert finite(second, "order_parameter_minibatch") == list(range(12))
    assert finite(second, "order_parameter") == [0, 1, 2, 3, 4, 6, 7, 10, 12]


def test_a_directory_of_another_run_is_kept(tmp_path):
    for _ in range(2):
        thermometer = cheap()
        make_trainer(tmp_path, thermometer).fit(Classifier(), loader())
    stores = [p for p in thermometer.stored().path.parent.iterdir() if (p / "run.json").exists()]
    assert len(stores) == 2
    assert {json.loads((p / "run.json").read_text())["meta"]["steps"] for p in stores} == {6}


def test_a_store_that_cannot_be_written(tmp_path, monkeypatch):
    thermometer = cheap()
    blocked = tmp_path / "run" / "thermo"
    blocked.parent.mkdir()
    blocked.write_text("a file stands in the way")
    with notices() as texts:
        trainer = make_trainer(tmp_path, thermometer)
        trainer.fit(Classifier(), loader())
    assert trainer.global_step == 6
    assert len(texts) == 1, texts
    assert "can't be stored" in texts[0]
    assert [row["step"] for row in thermometer.history["order_parameter"]] == [0, 1, 2, 3, 4, 6]
    assert [row["step"] for row in thermometer.history["order_parameter_minibatch"]] == [*range(6)]
    with pytest.raises(RuntimeError, match="stored nothing"):
        thermometer.stored()


def test_a_disk_that_fills(tmp_path, monkeypatch):
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    thermometer = cheap()
    monkeypatch.setattr("torch_thermo.store.writer.Store.append_many", full)
    with notices() as texts:
        trainer = make_trainer(tmp_path, thermometer)
        trainer.fit(Classifier(), loader())
    assert trainer.global_step == 6
    assert len(texts) == 1, texts
    assert "No space left" in texts[0]
    assert len(thermometer.history["order_parameter_minibatch"]) == 6


def test_a_callback_that_raises_whatever(tmp_path):
    class Failing(WeightSymmetry):
        def measure(self, moment):
            raise ZeroDivisionError("nothing to divide")

        def watch_gradient(self, session, trainer, optimizer):
            raise OverflowError("too large")

    with notices() as texts:
        trainer = make_trainer(tmp_path, Failing(Every(steps=1)))
        trainer.fit(Classifier(), loader())
    assert trainer.global_step == 6
    assert len(texts) == 3, texts
    assert "weight_symmetry failed at step 0: nothing to divide" in texts[0]
    assert "too large" in texts[1]
    assert "measured NOTHING" in texts[2]
