"""A run that is resumed: no gap, no duplicate and no wrong step, in either directory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from torch.utils.data import DataLoader, IterableDataset

from tests.callbacks.support import (
    MAIN,
    Classifier,
    blobs,
    cheap,
    event_scalars,
    loader,
    make_trainer,
    notices,
    steps_of,
)
from torch_thermo import load_run
from torch_thermo.callbacks import (
    Every,
    GradientSymmetry,
    HessianSpectrum,
    PlasticityOrderParameter,
    Thermometer,
    WeightSymmetry,
)


class Validated(Classifier):
    def validation_step(self, batch, batch_idx):
        self.log("validation", self.criterion(self(batch[0]), batch[1]))


def fit(
    folder: Path,
    callbacks: list[Any],
    checkpoint: str | None = None,
    version: int = 0,
    epochs: int = 4,
    **saving: Any,
) -> Any:
    """Train on data of a fixed order, without randomness but that of the initial weights."""
    torch.manual_seed(0)
    kind = saving.pop("logger", CSVLogger)
    save = ModelCheckpoint(folder / "checkpoints", "{step}", save_top_k=-1, **saving)
    trainer = make_trainer(
        folder,
        *callbacks,
        save,
        logger=kind(folder, name="", version=version),
        enable_checkpointing=True,
        max_epochs=epochs,
    )
    plain = loader(shuffle=False)
    trainer.fit(Validated(), plain, plain, ckpt_path=checkpoint)
    return trainer


def saved(folder: Path, step: int) -> str:
    return str(folder / "checkpoints" / f"step={step}.ckpt")


SAVING = {
    "epoch end": {"every_n_epochs": 1, "save_on_train_epoch_end": True},
    "validation end": {"every_n_epochs": 1, "save_on_train_epoch_end": False},
    "middle": {"every_n_train_steps": 1},
}


@pytest.mark.parametrize("version", [0, 1], ids=["same directory", "new directory"])
@pytest.mark.parametrize(
    ("when", "step"), [("epoch end", 12), ("validation end", 12), ("middle", 15)]
)
def test_no_gap_no_duplicate_no_wrong_step(tmp_path, when, step, version):
    whole = cheap(probe=16)
    fit(tmp_path, [whole], **SAVING[when])
    before = whole.stored()
    expected = steps_of(before)
    values = {name: before.series(name).values for name in before.names}
    again = cheap(probe=16)
    with notices() as texts:
        fit(tmp_path, [again], saved(tmp_path, step), version, **SAVING[when])
    assert not texts
    stored = again.stored()
    assert steps_of(stored) == expected
    assert expected["order_parameter"] == [0, 1, 2, 3, 4, 6, 7, 10, 12, 13, 18, 24]
    assert expected["order_parameter_minibatch"] == list(range(24))
    assert (stored.path == before.path) == (version == 0)
    if when != "middle":  # Lightning begins the epoch's data anew
        for name, old in values.items():
            new = stored.series(name).values
            np.testing.assert_allclose(new, old, rtol=1e-6, atol=1e-12, err_msg=name)
    # each process has measured its own part
    mine = [row["step"] for row in again.history["order_parameter"]]
    # Lightning saves at a validation's end before the epoch has ended: that end comes again
    assert mine == {"validation end": [12, 13, 18, 24], "middle": [18, 24]}.get(when, [13, 18, 24])
    if version == 1:
        own = json.loads((stored.path / "run.json").read_text())
        assert own["continues"]["after"] == step
        assert own["continues"]["id"] == before.id != stored.id
        assert steps_of(load_run(before.path)) == expected  # the old store is as it was


@pytest.mark.parametrize("when", ["epoch end", "validation end"])
def test_tensorboard_forgets_what_is_superseded(tmp_path, when):
    saving = {**SAVING[when], "logger": TensorBoardLogger}
    first = cheap(probe=16)
    fit(tmp_path, [first], **saving)
    again = cheap(probe=16)
    fit(tmp_path, [again], saved(tmp_path, 12), 0, **saving)
    scalars = event_scalars(tmp_path / "version_0", ours=True)
    for name, quantity in MAIN.items():
        steps = [step for step, _ in scalars[f"thermo/{name}/{quantity}"]]
        assert steps == sorted(set(steps)), name
        assert steps == steps_of(again.stored())[name]


def test_a_run_that_was_cut_off(tmp_path):
    class Cut(Validated):
        def on_train_batch_start(self, batch, batch_idx):
            if self.global_step == 16:
                raise RuntimeError("the power is gone")

    first = cheap(probe=16)
    torch.manual_seed(0)
    save = ModelCheckpoint(tmp_path / "checkpoints", "{step}", every_n_epochs=1)
    trainer = make_trainer(tmp_path, first, save, enable_checkpointing=True, max_epochs=4)
    with pytest.raises(RuntimeError, match="power"):
        trainer.fit(Cut(), loader(shuffle=False))
    assert steps_of(first.stored())["order_parameter_minibatch"] == list(range(16))
    again = cheap(probe=16)
    fit(tmp_path, [again], saved(tmp_path, 12), 7)
    assert steps_of(again.stored())["order_parameter"] == [0, 1, 2, 3, 4, 6, 7, 10, 12, 13, 18, 24]
    assert steps_of(again.stored())["order_parameter_minibatch"] == list(range(24))


def test_a_checkpoint_leaves_no_steps_in_memory(tmp_path):
    seen: list[list[int]] = []

    class Looking(Validated):
        def on_train_epoch_start(self):
            if self.current_epoch:
                # a process that is killed now leaves its store as it is
                seen.append(steps_of(thermometer.stored())["order_parameter_minibatch"])

    thermometer = cheap(probe=16)
    save = ModelCheckpoint(tmp_path, every_n_epochs=1)
    trainer = make_trainer(
        tmp_path, thermometer, save, enable_checkpointing=True, max_epochs=3, log_every_n_steps=50
    )
    trainer.fit(Looking(), loader())
    assert seen == [list(range(6)), list(range(12))]


def test_resumed_twice(tmp_path):
    fit(tmp_path, [cheap(probe=16)], epochs=1, **SAVING["epoch end"])
    fit(tmp_path, [cheap(probe=16)], saved(tmp_path, 6), 1, epochs=2, **SAVING["epoch end"])
    last = cheap(probe=16)
    fit(tmp_path, [last], saved(tmp_path, 12), 2, epochs=3, **SAVING["epoch end"])
    assert steps_of(last.stored())["order_parameter_minibatch"] == list(range(18))
    assert steps_of(last.stored())["order_parameter"] == [0, 1, 2, 3, 4, 6, 7, 10, 12, 13, 18]


def test_a_checkpoint_that_travelled_without_its_store(tmp_path):
    fit(tmp_path, [cheap(probe=16)], epochs=2, **SAVING["epoch end"])
    shutil.rmtree(tmp_path / "version_0")
    again = cheap(probe=16)
    fit(tmp_path, [again], saved(tmp_path, 12), 1, epochs=3)
    assert steps_of(again.stored())["order_parameter_minibatch"] == list(range(12, 18))


def test_a_callback_that_is_new_in_a_resumed_run(tmp_path):
    fit(tmp_path, [PlasticityOrderParameter(probe=16)], epochs=2, **SAVING["epoch end"])
    # the new one comes first in the list, and knows no store
    callbacks = [WeightSymmetry(Every(steps=1)), PlasticityOrderParameter(probe=16)]
    fit(tmp_path, callbacks, saved(tmp_path, 12), 0, epochs=3)
    stored = callbacks[0].stored()
    assert callbacks[1].stored().path == stored.path
    assert steps_of(stored)["weight_symmetry"] == list(range(12, 19))
    assert steps_of(stored)["order_parameter_minibatch"] == list(range(18))
    folders = [p.name for p in stored.path.parent.iterdir() if p.name.startswith("thermo")]
    assert folders == ["thermo"]


def test_resumed_without_any_state_of_ours(tmp_path):
    fit(tmp_path, [], epochs=2, **SAVING["epoch end"])
    callback = cheap(probe=16)
    with notices() as texts:
        fit(tmp_path, [callback], saved(tmp_path, 12), 0, epochs=3)
    assert not texts
    assert steps_of(callback.stored())["order_parameter_minibatch"] == list(range(12, 18))
    assert steps_of(callback.stored())["order_parameter"] == [12, 13, 18]


def test_resumed_at_its_end(tmp_path):
    fit(tmp_path, [cheap(probe=16)], epochs=2, **SAVING["epoch end"])
    again = cheap(probe=16)
    with notices() as texts:
        fit(tmp_path, [again], saved(tmp_path, 12), 0, epochs=2)
    assert len(texts) == 1
    assert "no training step was made" in texts[0]
    stored = load_run(tmp_path / "version_0")
    assert steps_of(stored)["order_parameter"] == [0, 1, 2, 3, 4, 6, 7, 10, 12]


def test_state_is_plain_and_has_probe_and_plan(tmp_path):
    callback = cheap(probe=16, budget=1.0)
    fit(tmp_path, [callback], epochs=1, **SAVING["epoch end"])
    content = torch.load(saved(tmp_path, 6), weights_only=True)
    state = content["callbacks"][callback.state_key]
    assert state["run_id"] == callback.stored().id
    assert state["last"]["order_parameter"] == 6
    assert len(state["probe"]["indices"]) == 16
    assert "hessian_extremes: 4 times a decade of steps, and at the end" in state["plan"]
    assert state["members"]["hessian_extremes"]["vectors"].shape == (53, 2)

    def check(tree: Any) -> None:
        if isinstance(tree, dict):
            for key, value in tree.items():
                assert type(key) is str
                check(value)
        elif isinstance(tree, list | tuple):
            for value in tree:
                check(value)
        else:
            assert type(tree) in (int, float, str, bool, torch.Tensor), tree

    check(state)


def test_large_warm_starts_stay_out_of_the_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr("torch_thermo.callbacks.hessian_spectrum.SMALL", 10)
    callback = cheap(probe=16)
    fit(tmp_path, [callback], epochs=1, **SAVING["epoch end"])
    assert callback.state_dict()["members"]["hessian_extremes"] == {}


def test_keys_of_two_instances_differ():
    instances = [
        Thermometer(),
        Thermometer(seed=1),
        Thermometer(callbacks=[WeightSymmetry()]),
        PlasticityOrderParameter(),
        PlasticityOrderParameter(minibatch=False),
        PlasticityOrderParameter(examples=5),
        PlasticityOrderParameter(seed=2),
        HessianSpectrum(),
        GradientSymmetry(),
        WeightSymmetry(),
    ]
    keys = [instance.state_key for instance in instances]
    assert len(set(keys)) == len(keys)
    assert Thermometer().state_key == keys[0]


def test_two_thermometers_find_their_own_state(tmp_path):
    def pair() -> list[Thermometer]:
        return [Thermometer(probe=16, seed=seed, callbacks=[GradientSymmetry()]) for seed in (0, 1)]

    first = pair()
    with notices():
        fit(tmp_path, first, epochs=1, **SAVING["epoch end"])
        second = pair()
        fit(tmp_path, second, saved(tmp_path, 6), 0, epochs=2)
    for old, new in zip(first, second, strict=True):
        assert new.session.probe.indices == old.session.probe.indices
        assert new.stored().path == old.stored().path
        assert new.stored().id == old.stored().id
        assert steps_of(new.stored())["gradient_symmetry"] == [0, 1, 2, 3, 4, 6, 7, 10, 12]
    assert first[0].session.probe.indices != first[1].session.probe.indices


def test_resuming_without_a_logger(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save = ModelCheckpoint(tmp_path, "{step}", every_n_epochs=1, save_top_k=-1)
    stores = []
    for epochs, checkpoint in ((1, None), (2, str(tmp_path / "step=6.ckpt"))):
        callback = cheap(probe=16)
        with notices():
            trainer = make_trainer(
                tmp_path, callback, save, logger=False, max_epochs=epochs, enable_checkpointing=True
            )
            trainer.fit(Classifier(), loader(), ckpt_path=checkpoint)
        stores.append(callback.stored())
    assert stores[0].path != stores[1].path
    assert steps_of(stores[1])["order_parameter_minibatch"] == list(range(12))


class Passing(IterableDataset):
    def __iter__(self):
        return iter(blobs())


def test_a_probe_that_passed_by_is_kept(tmp_path):
    def measured() -> PlasticityOrderParameter:
        return PlasticityOrderParameter(Every(steps=1), probe=20)

    train = DataLoader(Passing(), batch_size=8)
    first, again = measured(), measured()
    save = ModelCheckpoint(tmp_path, "{step}", every_n_epochs=1)
    with notices():
        trainer = make_trainer(tmp_path, first, save, enable_checkpointing=True)
        trainer.fit(Classifier(), train)
        trainer = make_trainer(tmp_path, again, max_epochs=2)
        trainer.fit(Classifier(), train, ckpt_path=str(tmp_path / "step=6.ckpt"))
    # the first time it is complete before the third update; after that there is no gap
    assert steps_of(again.stored())["order_parameter"] == list(range(3, 13))
    assert again.session.probe.complete
    old, new = (torch.cat([b[0] for b in c.session.probe.batches]) for c in (first, again))
    assert torch.equal(old, new)


@pytest.mark.parametrize("version", [0, 1], ids=["same directory", "new directory"])
def test_a_resumed_run_counts_all_that_is_stored(tmp_path, version):
    def callbacks() -> list[Any]:
        # two side by side that share the store
        return [PlasticityOrderParameter(Every(steps=2), probe=16), WeightSymmetry(Every(steps=3))]

    first = callbacks()
    fit(tmp_path, first, **SAVING["epoch end"])
    before = first[0].stored().meta
    counts = {"order_parameter": 13, "order_parameter_minibatch": 24, "weight_symmetry": 9}
    assert before["measurements"] == counts
    spent = sum(sum(c.session.measuring_seconds.values()) for c in first)
    assert sum(before["seconds"]["measuring"].values()) == pytest.approx(spent)
    again = callbacks()
    fit(tmp_path, again, saved(tmp_path, 12), version, epochs=6, **SAVING["epoch end"])
    after = again[0].stored().meta
    # steps 13 to 24 were measured twice, and the later of both is stored
    counts = {"order_parameter": 19, "order_parameter_minibatch": 36, "weight_symmetry": 13}
    assert after["measurements"] == counts
    for name, number in after["measurements"].items():
        assert len(again[0].stored().series(f"{name}/{MAIN[name]}")) == number
    for name, seconds in before["seconds"]["measuring"].items():
        own = sum(c.session.measuring_seconds.get(name, 0.0) for c in again)
        assert own > 0
        assert after["seconds"]["measuring"][name] == pytest.approx(seconds + own)
    assert after["seconds"]["training"] > before["seconds"]["training"] > 0


def test_seconds_are_added_once(tmp_path):
    callback = WeightSymmetry(Every(steps=2))
    trainer = fit(tmp_path, [callback])

    def meta() -> Any:
        return callback.stored().meta

    first = meta()["seconds"]["measuring"]["weight_symmetry"]
    assert first == pytest.approx(callback.session.measuring_seconds["weight_symmetry"])
    # an exception on the way out of the run, after its end
    callback.session.end(trainer, {})
    assert meta()["seconds"]["measuring"]["weight_symmetry"] == pytest.approx(first)
    # fitted on in the same process
    trainer.fit_loop.max_epochs = 6
    plain = loader(shuffle=False)
    trainer.fit(Validated(), plain, plain)
    second = callback.session.measuring_seconds["weight_symmetry"]
    assert meta()["seconds"]["measuring"]["weight_symmetry"] == pytest.approx(first + second)
    assert meta()["measurements"] == {"weight_symmetry": 19}
