"""Where the loss comes from, and that asking for it leaves no trace."""

from __future__ import annotations

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torchmetrics import MeanMetric

from tests.callbacks.support import (
    Classifier,
    TwoOptimizers,
    blobs,
    event_scalars,
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
)
from torch_thermo.callbacks.loss import acquire_loss
from torch_thermo.callbacks.quiet import _Null

START = At(steps=[0], end=False)


def batch(examples: int = 12) -> Any:
    x, y = blobs(examples).tensors
    return x, y


class LabelSmoothing(Classifier):
    """The criterion is not all of the loss."""

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1], label_smoothing=0.1)


class Penalty(Classifier):
    def training_step(self, batch, batch_idx):
        penalty = sum(p.square().sum() for p in self.parameters())
        return self.criterion(self(batch[0]), batch[1]) + 1e-3 * penalty


class NoForward(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.criterion = nn.CrossEntropyLoss()

    def training_step(self, batch, batch_idx):
        return self.criterion(self.layer(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Dictionary(NoForward):
    def training_step(self, batch, batch_idx):
        return {"loss": super().training_step(batch, batch_idx), "more": 1}


class OnlyBatch(NoForward):
    def training_step(self, batch):
        return super().training_step(batch, 0)


class Variadic(NoForward):
    def training_step(self, *args):
        return super().training_step(*args)


class OtherNames(Classifier):
    """The criterion under each of the accepted names."""

    def __init__(self, name: str) -> None:
        super().__init__()
        setattr(self, name, self.criterion)
        if name != "criterion":
            del self.criterion
        self.name = name

    def training_step(self, batch, batch_idx):
        return getattr(self, self.name)(self(batch[0]), batch[1])


class OddCriterion(Classifier):
    """A callable of another signature."""

    def criterion(self, output, target, weights):  # type: ignore[override]
        raise AssertionError("never called with two arguments")

    def __init__(self) -> None:
        pl.LightningModule.__init__(self)
        self.options = {}
        self.net = nn.Linear(6, 3)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])


@pytest.mark.parametrize(
    ("make", "taken", "structured"),
    [
        (Classifier, "self.criterion", True),
        (lambda: OtherNames("loss_fn"), "self.loss_fn", True),
        (lambda: OtherNames("loss"), "self.loss", True),
        (LabelSmoothing, "training_step", False),
        (Penalty, "training_step", False),
        # no quiet shadow, whose only child stands for a forward
        (NoForward, "training_step", False),
        (Dictionary, "training_step", False),
        (OnlyBatch, "training_step", False),
        (Variadic, "training_step", False),
        (OddCriterion, "F.cross_entropy(self(x), y)", True),
    ],
)
def test_what_is_taken(make, taken, structured):
    module = make()
    source = acquire_loss(module, batch(), None, None)
    assert source.description.startswith(taken)
    assert (source.closure is None) == structured
    value = source.risk(module, [batch()], None).value()
    returned = module.training_step(batch()) if make is OnlyBatch else None
    if returned is None:
        returned = module.training_step(batch(), 0)
    expected = returned["loss"] if isinstance(returned, dict) else returned
    assert value == pytest.approx(float(expected), rel=1e-6)


def test_what_the_user_gives_comes_first():
    module = Classifier()
    source = acquire_loss(module, batch(), nn.functional.multi_margin_loss, None)
    expected = nn.functional.multi_margin_loss(module(batch()[0]), batch()[1])
    assert source.risk(module, [batch()], None).value() == pytest.approx(float(expected))
    source = acquire_loss(module, batch(), None, lambda m, b: (m(b[0]).square().mean(), 2.0))
    expected = module(batch()[0]).square().mean()
    assert source.risk(module, [batch()], None).value() == pytest.approx(float(expected))


def test_both_or_uncallable_losses_are_refused():
    both = {"loss_fn": nn.functional.cross_entropy, "closure": lambda m, b: 0}
    for kind in (Thermometer, PlasticityOrderParameter, GradientSymmetry, HessianSpectrum):
        with pytest.raises(ValueError, match="not both"):
            kind(**both)
        with pytest.raises(TypeError, match="loss_fn must be callable, got str"):
            kind(loss_fn="cross_entropy")


def test_the_run_says_what_was_taken(tmp_path):
    for make, taken in ((Classifier, "self.criterion"), (Penalty, "training_step")):
        thermometer = PlasticityOrderParameter(START, probe=12)
        make_trainer(tmp_path / taken, thermometer).fit(make(), loader())
        assert thermometer.stored().meta["loss"].startswith(taken)


@pytest.mark.parametrize("returned", [None, 1.5, "loss", {"value": torch.zeros(())}])
def test_a_step_without_a_loss_is_a_notice(tmp_path, returned):
    class Odd(NoForward):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            # the run itself gets a loss; only what is measured does not
            return loss if self.training else returned

    thermometer = Thermometer(probe=12)
    with notices() as texts:
        make_trainer(tmp_path, thermometer).fit(Odd(), loader())
    assert len(texts) == 3, texts
    assert "the loss can't be measured: training_step must return the loss" in texts[0]
    names = "circuit_symmetry, circuit_sample, propagator_spectrum"
    assert f"{names} are skipped from step 0 on: training_step" in texts[1]
    assert "never measured order_parameter, " in texts[2]
    counted = {name for name, steps in steps_of(thermometer.stored()).items() if steps}
    assert counted == {"order_parameter_minibatch", "weight_symmetry"}


def test_manual_optimisation_without_closure(tmp_path):
    for kind in (PlasticityOrderParameter, GradientSymmetry, HessianSpectrum):
        trainer = make_trainer(tmp_path / kind.__name__, kind(probe=12))
        with pytest.raises(ValueError, match=f"{kind.__name__}: TwoOptimizers uses manual"):
            trainer.fit(TwoOptimizers(), loader())
    thermometer = Thermometer(probe=12)
    with notices() as texts:
        make_trainer(tmp_path / "bundle", thermometer).fit(TwoOptimizers(), loader())
    assert len(texts) == 2, texts
    assert "TwoOptimizers uses manual optimisation" in texts[0]
    assert "closure=(pl_module, batch)" in texts[0]
    names = "circuit_symmetry, circuit_sample, propagator_spectrum"
    assert f"{names} are skipped from step 0 on: " in texts[1]
    assert (
        "TwoOptimizers cannot be read: it defines no forward, and of its children not one but 2 "
        "(first, second) have parameters; name the part to read by module="
    ) in texts[1]
    stored = thermometer.stored()
    assert steps_of(stored)["weight_symmetry"] == [0, 2, 4, 6, 10, 12]
    assert stored.observables == ["order_parameter_minibatch", "weight_symmetry"]


def test_manual_optimisation_with_loss_fn(tmp_path):
    class Manual(TwoOptimizers):
        def forward(self, x):
            return self.second(self.first(x).tanh())

    thermometer = HessianSpectrum(
        START, START, probe=12, loss_fn=nn.functional.cross_entropy, density_steps=3
    )
    make_trainer(tmp_path, thermometer).fit(Manual(), loader())
    assert steps_of(thermometer.stored())["functional_density"] == [0]


class Chatty(NoForward):
    """All that a step may do to logger, trainer and itself."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = MeanMetric()
        self.calls: list[int] = []
        self.counts: list[int] = []

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.calls.append(batch_idx)
        self.mean.update(loss.detach())
        self.counts.append(self.mean._update_count)
        self.log("a", loss, on_step=True, on_epoch=True, prog_bar=True, sync_dist=True)
        self.log_dict({"b": loss})
        self.log("c", self.mean, on_epoch=True, on_step=False)
        self.print("")
        self.logger.experiment.add_scalar("direct", loss, len(self.calls))
        self.loggers[0].log_metrics({"metrics": 1.0}, step=len(self.calls))
        self.logger.experiment.names = ["x"]
        assert not self.training or list(self.logger.experiment.names) == ["x"]
        self.trainer.logger.log_metrics({"through_trainer": 1.0}, step=len(self.calls))
        if not self.training:  # measured
            self.trainer.should_stop = True
            self.trainer.logger.experiment.add_scalar("measured", 1.0)
        return loss


def test_nothing_of_a_measured_step_reaches_the_run(tmp_path):
    thermometer = Thermometer(
        probe=12, callbacks=[PlasticityOrderParameter(Every(steps=1)), GradientSymmetry()]
    )
    module = Chatty()
    logger = tensorboard(tmp_path)
    trainer = make_trainer(tmp_path, thermometer, logger=logger, max_epochs=2)
    trainer.fit(module, loader())
    assert steps_of(thermometer.stored())["order_parameter"] == list(range(13))
    assert module.calls == list(range(6)) * 2
    assert module.counts == [1, 2, 3, 4, 5, 6] * 2
    assert not trainer.should_stop
    assert set(trainer.logged_metrics) == {"a_step", "a_epoch", "b", "c"}
    scalars = event_scalars(tmp_path / "tb", ours=False)
    assert "measured" not in scalars
    assert [step for step, _ in scalars["direct"]] == list(range(1, 13))
    assert len(scalars["through_trainer"]) == 12


def test_a_failing_measurement_does_not_say_it_is_training_step(tmp_path):
    class Eval(NoForward):
        def training_step(self, batch, batch_idx):
            if not self.training:
                raise RuntimeError("this step trains only")
            return super().training_step(batch, batch_idx)

    thermometer = Thermometer(probe=12)
    with notices() as texts:
        make_trainer(tmp_path, thermometer).fit(Eval(), loader())
    assert any("this step trains only" in text for text in texts)
    assert len([text for text in texts if "never measured" not in text]) <= 5, texts
    assert steps_of(thermometer.stored())["weight_symmetry"]


def test_the_null_logger_takes_what_loggers_take():
    null = _Null()
    null.experiment.summary["best"] = 1.0
    null.experiment.watch(None).anything[3]
    with null.experiment.context("train") as inside:
        inside.log({})
    assert list(null.experiment) == []
    assert len(null) == 0
    assert not null
    with pytest.raises(AttributeError):
        _ = null.__fspath__


class Ramped(Classifier):
    """A penalty that is zero at the first steps."""

    def training_step(self, batch, batch_idx):
        ramp = max(0, self.trainer.global_step - 2)
        penalty = sum(p.square().sum() for p in self.parameters())
        return self.criterion(self(batch[0]), batch[1]) + 0.1 * ramp * penalty


def test_a_penalty_that_comes_later_is_told_once(tmp_path):
    callback = PlasticityOrderParameter(Every(steps=1))
    with notices() as told:
        make_trainer(tmp_path, callback, max_epochs=1).fit(Ramped(), loader())
    assert callback.session.source.criterion == "criterion"
    assert sum("no longer is" in text for text in told) == 1


def test_a_criterion_that_stays_is_not_told(tmp_path):
    callback = PlasticityOrderParameter(Every(steps=1))
    with notices() as told:
        make_trainer(tmp_path, callback, max_epochs=1).fit(Classifier(), loader())
    assert callback.session.source.criterion == "criterion"
    assert callback.session.measurements["order_parameter"] > 3
    assert not any("no longer is" in text for text in told)


class Summed(Classifier):
    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1], reduction="sum")


class Weighted(Classifier):
    """Class weights in the criterion: the risk weighs as its mean does."""

    def __init__(self):
        super().__init__()
        self.criterion = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 20.0]))


def test_a_sum_is_told(tmp_path):
    callback = PlasticityOrderParameter(START)
    with notices() as told:
        make_trainer(tmp_path, callback).fit(Summed(), loader())
    assert sum("is not the mean over its halves" in text for text in told) == 1


def test_class_weights_are_those_of_the_whole_probe(tmp_path):
    callback = PlasticityOrderParameter(START)
    module = Weighted()
    x, y = blobs().tensors
    expected = float(module.criterion(module(x), y).detach())
    with notices() as told:
        make_trainer(tmp_path, callback).fit(module, loader())
    assert not any("halves" in text for text in told)
    assert callback.history["order_parameter"][0]["risk"] == pytest.approx(expected, rel=1e-6)
