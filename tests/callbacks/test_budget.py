"""A budget thins the plan; with a clock of our own it does so the same way each time."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint

from tests.callbacks.support import Classifier, loader, make_trainer, notices, steps_of
from torch_thermo.callbacks import Every, Thermometer, WeightSymmetry, session
from torch_thermo.callbacks.gradient_symmetry import GradientSymmetry


class Clock(Callback):
    """A clock that stands still but for training steps and measurements."""

    def __init__(self, step: float) -> None:
        self.now = 0.0
        self.step = step

    def perf_counter(self) -> float:
        return self.now

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.now += self.step


class Costly(WeightSymmetry):
    """A measurement of a known price."""

    def __init__(self, clock: Clock, price: float, observable: str, **options: Any) -> None:
        super().__init__(Every(steps=1, **options))
        self.clock = clock
        self.price = price
        self.observable = observable

    def measure(self, moment):
        self.clock.now += self.price
        return super().measure(moment)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(step=1.0)
    monkeypatch.setattr(session, "time", SimpleNamespace(perf_counter=clock.perf_counter))
    return clock


def train(tmp_path: Any, clock: Clock, budget: float | None, *prices: float, **options: Any) -> Any:
    members = [Costly(clock, price, f"costs_{price:g}", end=False) for price in prices]
    thermometer = Thermometer(budget=budget, callbacks=members)
    make_trainer(tmp_path, clock, thermometer, **options).fit(Classifier(), loader())
    return thermometer


def steps(thermometer: Thermometer, name: str) -> list[int]:
    return [int(row["step"]) for row in thermometer.history.get(name, [])]


def test_without_a_budget_all_is_measured(tmp_path, clock):
    thermometer = train(tmp_path, clock, None, 100.0, max_epochs=2)
    assert steps(thermometer, "costs_100") == list(range(13))


def test_a_budget_is_kept(tmp_path, clock):
    # a step takes 1 s and a measurement 0.5 s: with a tenth, one in five steps
    thermometer = train(tmp_path, clock, 0.1, 0.5, max_epochs=4)
    # the first try has no price yet; it needs some time to be left, which is after one step
    assert steps(thermometer, "costs_0.5") == [1, 11, 16, 21]
    spent = thermometer.session.measuring_seconds["costs_0.5"]
    assert spent == pytest.approx(2.0)
    assert spent <= 0.1 * 24
    assert thermometer._thinned == {"costs_0.5": 25 - 4}


def test_what_is_cheap_goes_on_when_what_is_dear_cannot(tmp_path, clock):
    thermometer = train(tmp_path, clock, 0.1, 5.0, 0.01, max_epochs=2)
    assert steps(thermometer, "costs_5") == [1]
    # the dear one's only try has used up all that this run allows
    assert steps(thermometer, "costs_0.01") == [1]
    thermometer = train(tmp_path / "more", Clock(0.0), 1.0, 0.01, max_epochs=1)
    assert steps(thermometer, "costs_0.01") == []


def test_the_same_clock_thins_the_same(tmp_path, clock):
    runs = []
    for name in ("one", "two"):
        clock.now = 0.0
        thermometer = train(tmp_path / name, clock, 0.3, 0.4, 0.9, max_epochs=3)
        runs.append({name: steps(thermometer, name) for name in ("costs_0.4", "costs_0.9")})
    assert runs[0] == runs[1]
    assert 0 < len(runs[0]["costs_0.9"]) < 10


def test_with_accumulation_a_step_is_considered_once(tmp_path, clock):
    thermometer = train(tmp_path, clock, 0.1, 0.5, max_epochs=4, accumulate_grad_batches=3)
    assert sum(thermometer._thinned.values()) + len(steps(thermometer, "costs_0.5")) == 9


def test_the_plan_is_printed(tmp_path, clock, caplog):
    with caplog.at_level(logging.INFO):
        train(tmp_path, clock, 0.1, 0.5)
    printed = [r.getMessage() for r in caplog.records if "torch-thermo's plan" in r.getMessage()]
    assert len(printed) == 2
    assert "costs_0.5: every step" in printed[0]
    assert "at most 10% of the training time; left out so far: nothing" in printed[0]
    assert "left out so far: {'costs_0.5': 6}" in printed[1]


def test_the_plan_is_kept_in_the_checkpoint(tmp_path, clock):
    save = ModelCheckpoint(tmp_path, "{step}", every_n_epochs=1, save_top_k=-1)
    members = [Costly(clock, 0.5, "costly", end=False)]
    first = Thermometer(budget=0.1, callbacks=members)
    trainer = make_trainer(tmp_path, clock, first, save, enable_checkpointing=True, max_epochs=1)
    trainer.fit(Classifier(), loader())
    state = torch.load(tmp_path / "step=6.ckpt", weights_only=True)["callbacks"][first.state_key]
    assert state["thinned"] == {"costly": 6}
    assert "every step" in state["plan"]
    again = Thermometer(budget=0.1, callbacks=[Costly(clock, 0.5, "costly", end=False)])
    trainer = make_trainer(tmp_path / "on", clock, again, max_epochs=2)
    trainer.fit(Classifier(), loader(), ckpt_path=tmp_path / "step=6.ckpt")
    # 6 left out before; of the steps after the checkpoint all but one
    assert len(steps(again, "costly")) == 1
    assert again._thinned == {"costly": 6 + 5}


def test_a_new_run_begins_with_its_whole_budget(tmp_path, clock):
    thermometer = Thermometer(budget=0.1, callbacks=[GradientSymmetry(Every(steps=1))], probe=12)
    with notices() as texts:
        for name in ("one", "two"):
            make_trainer(tmp_path / name, clock, thermometer).fit(Classifier(), loader())
            # nothing costs anything on this clock, but there must be some time to take from
            assert steps_of(thermometer.stored())["gradient_symmetry"] == [1, 2, 3, 4, 5, 6]
            assert thermometer._thinned == {"gradient_symmetry": 1}
    assert not texts
