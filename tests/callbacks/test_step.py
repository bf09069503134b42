"""The step of the initial weights is 0 and that of the weights after the first update 1."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from tests.callbacks.support import (
    Classifier,
    TwoOptimizers,
    blobs,
    loader,
    make_trainer,
    notices,
)
from torch_thermo.callbacks import (
    At,
    Every,
    PlasticityOrderParameter,
    Thermometer,
    WeightSymmetry,
)
from torch_thermo.callbacks.moment import completed_updates

# hooks of a run's step, with the weights in their final state for it
HOOKS = [
    name
    for name in dir(pl.Callback)
    if name.startswith("on_") and ("train" in name or "backward" in name or "optimizer" in name)
]


def updates_of(optimizers: list[Any]) -> None:
    """Make optimizers count their updates themselves."""
    for optimizer in optimizers:
        optimizer.updates = 0
        step = optimizer.step

        def counted(*args: Any, _optimizer: Any = optimizer, _step: Any = step, **kwargs: Any):
            result = _step(*args, **kwargs)
            _optimizer.updates += 1
            return result

        optimizer.step = counted


class Axis(pl.Callback):
    """In every hook: the step we say, and the updates that the optimizers have made."""

    def __init__(self) -> None:
        self.seen: dict[str, list[tuple[int, int]]] = {name: [] for name in HOOKS}

    def setup(self, trainer, pl_module, stage):
        configure = pl_module.configure_optimizers

        def configured():
            optimizers = configure()
            several = isinstance(optimizers, tuple)
            updates_of(list(optimizers) if several else [optimizers])
            return optimizers

        pl_module.configure_optimizers = configured


def _watch(name: str) -> Any:
    def hook(self: Axis, trainer: Any, *_: Any, **__: Any) -> None:
        made = sum(getattr(optimizer, "updates", 0) for optimizer in trainer.optimizers)
        self.seen[name].append((completed_updates(trainer), made))

    return hook


for _name in HOOKS:
    setattr(Axis, _name, _watch(_name))


def closure(module, batch):
    return module.loss(batch)


@pytest.mark.parametrize(
    ("make", "options", "updates"),
    [
        (Classifier, {}, 12),
        (Classifier, {"accumulate_grad_batches": 4}, 4),  # 6 batches: an incomplete group
        (TwoOptimizers, {}, 24),
    ],
    ids=["plain", "accumulation", "two optimizers"],
)
def test_step_in_every_hook(tmp_path, make, options, updates):
    axis = Axis()
    trainer = make_trainer(tmp_path, axis, max_epochs=2, **options)
    trainer.fit(make(), loader())
    for name, pairs in axis.seen.items():
        assert all(ours == made for ours, made in pairs), (name, pairs)
    assert axis.seen["on_train_start"] == [(0, 0)]
    assert axis.seen["on_train_batch_start"][0] == (0, 0)
    assert axis.seen["on_before_optimizer_step"][0] == (0, 0)
    assert axis.seen["on_train_batch_end"][-1] == (updates, updates)
    assert axis.seen["on_train_end"] == [(updates, updates)]
    first = {"accumulate_grad_batches": 0}.get(next(iter(options), ""), updates // 12)
    assert axis.seen["on_train_batch_end"][0] == (first, first)


class Weights(pl.Callback):
    """Keeps the weights after each update."""

    def __init__(self) -> None:
        self.kept: dict[int, dict[str, torch.Tensor]] = {}

    def keep(self, trainer: Any, module: Any, updates: int) -> None:
        state = {name: value.detach().clone() for name, value in module.state_dict().items()}
        self.kept.setdefault(updates, state)


class Stepwise(Weights):
    def on_train_start(self, trainer, pl_module):
        self.count = 0
        self.keep(trainer, pl_module, 0)
        optimizer = trainer.optimizers[0]
        optimizer.register_step_post_hook(lambda *_: self.after(trainer, pl_module))

    def after(self, trainer, module):
        self.count += 1
        self.keep(trainer, module, self.count)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_weights_of_a_step_are_those_after_so_many_updates(tmp_path, accumulate):
    thermometer = PlasticityOrderParameter(Every(steps=1), probe=48)
    weights = Stepwise()
    module = Classifier()
    trainer = make_trainer(
        tmp_path, weights, thermometer, max_epochs=2, accumulate_grad_batches=accumulate
    )
    trainer.fit(module, loader())
    risk = thermometer.stored().series("order_parameter/risk")
    assert risk.steps.tolist() == sorted(weights.kept) == list(range(len(weights.kept)))
    assert len(risk) == (13 if accumulate == 1 else 5)
    x, y = blobs().tensors
    for step, value in zip(risk.steps.tolist(), risk.values.tolist(), strict=True):
        module.load_state_dict(weights.kept[step])
        with torch.no_grad():
            expected = module.criterion(module(x), y)
        assert value == pytest.approx(float(expected), rel=1e-5), step


def test_minibatch_gradient_is_that_of_the_weights_of_its_step(tmp_path):
    thermometer, weights = PlasticityOrderParameter(probe=48), Stepwise()
    module = Classifier()
    trainer = make_trainer(tmp_path, weights, thermometer, max_epochs=1)
    trainer.fit(module, loader(batch_size=48, shuffle=False))
    series = thermometer.stored().series("order_parameter_minibatch/value")
    assert series.steps.tolist() == [0]
    module.load_state_dict(weights.kept[0])
    loss = module.criterion(module(blobs().tensors[0]), blobs().tensors[1])
    gradients = torch.autograd.grad(loss, list(module.parameters()))
    expected = sum(float(g.double().square().sum()) for g in gradients)
    assert series.values[0] == pytest.approx(expected, rel=1e-5)
    # momentum 0.9 makes a long-run step of 0.1 / (1 - 0.9)
    scaled = thermometer.stored().series("order_parameter_minibatch/scaled")
    assert scaled.values[0] == pytest.approx(expected * 1.0, rel=1e-5)
    probe = thermometer.stored().series("order_parameter/value")
    assert probe.values[0] == pytest.approx(expected, rel=1e-5)


def test_minibatch_gradient_is_unclipped_and_accumulated(tmp_path):
    thermometer = PlasticityOrderParameter(probe=48)
    trainer = make_trainer(tmp_path, thermometer, accumulate_grad_batches=6, gradient_clip_val=1e-6)
    trainer.fit(Classifier(), loader())
    stored = thermometer.stored()
    minibatch = stored.series("order_parameter_minibatch/value")
    assert minibatch.steps.tolist() == [0]
    # six batches of eight are the whole set, which is the probe
    whole = stored.series("order_parameter/value")
    assert minibatch.values[0] == pytest.approx(whole.values[0], rel=1e-5)


def test_step_goes_on_after_a_resume(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, filename="at", every_n_train_steps=4, save_top_k=-1)
    trainer = make_trainer(tmp_path, checkpoint, enable_checkpointing=True, max_steps=4)
    trainer.fit(Classifier(), loader())
    axis, thermometer = Axis(), WeightSymmetry(Every(steps=1))
    trainer = make_trainer(tmp_path / "on", axis, thermometer, max_epochs=2)
    trainer.fit(Classifier(), loader(), ckpt_path=checkpoint.best_model_path)
    steps = [ours for ours, _ in axis.seen["on_train_batch_end"]]
    assert steps == list(range(5, 13))
    assert axis.seen["on_train_batch_start"][0][0] == 4
    stored = thermometer.stored().series("weight_symmetry/sign_balance")
    assert stored.steps.tolist() == list(range(4, 13))


def test_epochs_are_completed_epochs(tmp_path):
    thermometer = WeightSymmetry(Every(epochs=1))
    trainer = make_trainer(tmp_path, thermometer, max_epochs=3)
    trainer.fit(Classifier(), loader())
    series = thermometer.stored().series("weight_symmetry/sign_balance")
    assert series.steps.tolist() == [0, 6, 12, 18]
    assert series.epochs.tolist() == [0, 1, 2, 3]


def test_step_of_a_bundle_is_that_of_its_members(tmp_path):
    inner = WeightSymmetry(Every(steps=5, end=False))
    thermometer = Thermometer(callbacks=[inner], probe=24)
    make_trainer(tmp_path, thermometer, max_epochs=2).fit(Classifier(), loader())
    rows = thermometer.history["weight_symmetry"]
    assert [row["step"] for row in rows] == [0, 5, 10]
    assert [row["epoch"] for row in rows] == [0, 0, 1]


def test_hooks_that_are_used_are_among_those_tested():
    used = {
        name
        for kind in (Thermometer, *Thermometer.__mro__)
        if kind.__module__.startswith("torch_thermo")
        for name, value in vars(kind).items()
        if name.startswith("on_") and inspect.isfunction(value)
    }
    assert used - set(HOOKS) == {"on_exception", "on_fit_end", "on_fit_start"}


def test_a_callable_in_a_union_is_asked_at_every_step(tmp_path):
    schedule = At(steps=[1], end=False) | (lambda step, epoch=None: step % 4 == 0)
    callback = PlasticityOrderParameter(schedule, probe=8)
    make_trainer(tmp_path, callback, max_epochs=2).fit(Classifier(), loader())
    assert [row["step"] for row in callback.history["order_parameter"]] == [0, 1, 4, 8, 12]


def test_a_schedule_that_raises_ends_nothing(tmp_path):
    def schedule(step, epoch=None):
        return 1 / (3 - step) > 0

    callback = PlasticityOrderParameter(schedule, probe=8)
    with notices() as told:
        trainer = make_trainer(tmp_path, callback)
        trainer.fit(Classifier(), loader())
    assert trainer.global_step == 6
    assert [row["step"] for row in callback.history["order_parameter"]] == [0, 1, 2]
    assert sum("its schedule raised ZeroDivisionError" in text for text in told) == 1


@pytest.mark.parametrize("schedule", [lambda step: True, Every, 0])
def test_what_is_no_schedule_is_refused(schedule):
    with pytest.raises(TypeError, match="schedule must be"):
        PlasticityOrderParameter(schedule)
