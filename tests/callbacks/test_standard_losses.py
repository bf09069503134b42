"""A loss of torch's that is called in training_step alone is found, and nothing else for it."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchmetrics import MeanMetric

from tests.callbacks.support import Classifier, blobs, loader, make_trainer, notices
from tests.callbacks.test_loss import (
    Dictionary,
    NoForward,
    OnlyBatch,
    Ramped,
    Variadic,
    batch,
)
from torch_thermo.callbacks import Every, PlasticityOrderParameter
from torch_thermo.callbacks.loss import acquire_loss
from torch_thermo.callbacks.quiet import quiet_shadow


class Functional(Classifier):
    """A loss of torch's, called in training_step alone."""

    def __init__(self, loss: Any, outputs: int = 3, last: nn.Module | None = None) -> None:
        super().__init__()
        del self.criterion
        self.net = nn.Sequential(nn.Linear(6, outputs), last or nn.Identity())
        self.objective = loss

    def training_step(self, batch, batch_idx):
        return self.objective(self(batch[0]), batch[1])


def classes_as(kind: str, examples: int = 12) -> Any:
    x, y = batch(examples)
    return x, {"classes": y, "numbers": y.float(), "column": y[:, None].float()}[kind]


@pytest.mark.parametrize(
    ("make", "targets", "taken"),
    [
        (lambda: Functional(F.cross_entropy), "classes", "F.cross_entropy"),
        (lambda: Functional(F.nll_loss, 3, nn.LogSoftmax(1)), "classes", "F.nll_loss"),
        (lambda: Functional(F.mse_loss, 1), "column", "F.mse_loss"),
        (lambda: Functional(F.l1_loss, 1), "column", "F.l1_loss"),
        (lambda: Functional(F.smooth_l1_loss, 1), "column", "F.smooth_l1_loss"),
        (lambda: Functional(F.huber_loss, 1), "column", "F.smooth_l1_loss"),
        # as steps squeeze and cast
        (lambda: Functional(lambda o, t: F.mse_loss(o[:, 0], t), 1), "numbers", "F.mse_loss"),
        (
            lambda: Functional(
                lambda o, t: F.binary_cross_entropy_with_logits(o[:, 0], (t > 0).float()), 1
            ),
            "numbers",
            "training_step",
        ),
        (
            lambda: Functional(
                lambda o, t: F.binary_cross_entropy_with_logits(o[:, 0], t.float()), 1
            ),
            "classes",
            "F.binary_cross_entropy_with_logits",
        ),
        # what is not quite one of them is not taken for it
        (lambda: Functional(lambda o, t: 1.001 * F.mse_loss(o, t), 1), "column", "training_step"),
        (
            lambda: Functional(lambda o, t: F.cross_entropy(o, t, label_smoothing=0.1)),
            "classes",
            "training_step",
        ),
        # the value of cross entropy and half of its gradient
        (
            lambda: Functional(
                lambda o, t: 0.5 * (F.cross_entropy(o, t) + F.cross_entropy(o.detach(), t))
            ),
            "classes",
            "training_step",
        ),
    ],
)
def test_standard_losses(make, targets, taken):
    module, given = make(), classes_as(targets)
    source = acquire_loss(module, given, None, None)
    words = taken if taken == "training_step" else f"{taken}(self(x), y), which equals"
    assert source.description.startswith(words)
    risk = source.risk(module, [given], None)
    assert risk.structured == (taken != "training_step")
    own = module.training_step(given, 0)
    assert risk.value() == pytest.approx(float(own.detach()), rel=1e-6)
    gradient = torch.autograd.grad(own, list(module.parameters()))
    flat = torch.cat([g.flatten() for g in gradient])
    torch.testing.assert_close(risk.gradient(), flat, rtol=1e-5, atol=1e-7)


def signed(examples: int = 12, size: float = 1.0) -> Any:
    x, y = batch(examples)
    return x, torch.where(y > 0, size, -size)


@pytest.mark.parametrize(
    ("loss", "size", "like"),
    [
        # labels +-1 and no output beyond them
        (lambda o, t: (1 - t * o[:, 0]).clamp(min=0).mean(), 1.0, F.l1_loss),
        (lambda o, t: F.mse_loss(o[:, 0].clamp(-2, 2), t), 1.0, F.mse_loss),
        # small residuals
        (lambda o, t: 0.5 * F.mse_loss(o[:, 0], t), 0.1, F.smooth_l1_loss),
        (lambda o, t: F.huber_loss(o[:, 0], t, delta=2.0), 0.1, F.smooth_l1_loss),
    ],
    ids=["hinge", "clamped", "half a squared error", "wide Huber"],
)
def test_a_loss_that_is_a_standard_one_here_alone_is_not_taken_for_it(loss, size, like):
    module, given = Functional(loss, 1), signed(size=size)
    with torch.no_grad():
        module.net[0].weight.mul_(0.01)
        output = module(given[0])
        # at the operating point they are the same
        torch.testing.assert_close(loss(output, given[1]), like(output[:, 0], given[1]))
    assert acquire_loss(module, given, None, None).description == "training_step"
    # nor for a criterion of the module's that it only looks like
    module.criterion = lambda o, t: like(o[:, 0], t)
    assert acquire_loss(module, given, None, None).description == "training_step"
    assert "forward" not in vars(module)


class PastForward(Functional):
    """The step calls the net, and not forward."""

    def training_step(self, batch, batch_idx):
        return self.objective(self.net(batch[0]), batch[1])


@pytest.mark.parametrize(
    ("loss", "outputs", "kind"),
    [
        (lambda o, t: F.cross_entropy(o, t, weight=torch.tensor([1.0, 1.0, 30.0])), 3, "classes"),
        (lambda o, t: F.cross_entropy(o, t, ignore_index=2), 3, "classes"),
        (
            lambda o, t: F.binary_cross_entropy_with_logits(
                o[:, 0], t, pos_weight=torch.tensor(30.0)
            ),
            1,
            "numbers",
        ),
    ],
    ids=["weight", "ignored", "positive weight"],
)
def test_a_class_that_is_rare_is_not_overlooked(loss, outputs, kind):
    # classes 0 (and 1) alone in the batch: the weight of the other does not show there
    x, y = batch(12)
    y = y.clamp(max=1) if kind == "classes" else torch.zeros(12)
    assert (
        acquire_loss(Functional(loss, outputs), (x, y), None, None).description == "training_step"
    )
    plain = (F.cross_entropy, "F.cross_entropy")
    if kind == "numbers":
        plain = (
            lambda o, t: F.binary_cross_entropy_with_logits(o[:, 0], t),
            "F.binary_cross_entropy_with_logits",
        )
    source = acquire_loss(Functional(plain[0], outputs), (x, y), None, None)
    assert source.description.startswith(plain[1])


class Pair(NamedTuple):
    inputs: torch.Tensor
    targets: torch.Tensor


def test_a_batch_of_a_kind_of_its_own_is_one_still():
    class ByName(Functional):
        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self(batch.inputs), batch.targets)

    source = acquire_loss(ByName(None), Pair(*batch(12)), None, None)
    assert source.description.startswith("F.cross_entropy")


def test_a_step_that_passes_forward_by_gives_no_evidence_for_a_guess():
    module = PastForward(F.cross_entropy)
    assert acquire_loss(module, batch(), None, None).description == "training_step"
    module.criterion = nn.CrossEntropyLoss()
    source = acquire_loss(module, batch(), None, None)
    assert source.description.startswith("self.criterion(self(x), y), which equals")


def test_a_criterion_of_bounded_outputs_is_taken():
    module, (x, y) = (
        Functional(nn.BCELoss(), 1, nn.Sequential(nn.Sigmoid(), nn.Flatten(0))),
        batch(),
    )
    module.criterion = module.objective
    source = acquire_loss(module, (x, (y > 0).float()), None, None)
    assert source.description.startswith("self.criterion(self(x), y), which equals")


def test_the_altered_child_is_put_back(tmp_path):
    class Bare(NoForward):
        def __init__(self):
            super().__init__()
            del self.criterion

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.layer(batch[0]), batch[1])

    trainer, module = make_trainer(tmp_path), Bare()
    trainer.fit(module, loader())
    shadow, _ = quiet_shadow(trainer, module)
    source = acquire_loss(shadow, batch(), None, None)
    assert source.description.startswith("F.cross_entropy(self.layer(x), y), which equals")
    assert "forward" not in vars(shadow.layer)
    assert vars(shadow)["forward"] is shadow.layer


class HalfDetached(Classifier):
    """The criterion's value, and not its gradient."""

    def training_step(self, batch, batch_idx):
        output = self(batch[0])
        return self.criterion(0.5 * output + 0.5 * output.detach(), batch[1])


def test_a_criterion_with_another_gradient_is_not_taken():
    assert acquire_loss(HalfDetached(), batch(), None, None).description == "training_step"


@pytest.mark.parametrize("kind", [NoForward, Dictionary, OnlyBatch, Variadic])
def test_the_only_child_stands_for_a_forward(tmp_path, kind):
    class Bare(kind):
        def __init__(self):
            super().__init__()
            self.mean = MeanMetric()  # a child without parameters

    trainer = make_trainer(tmp_path)
    module = Bare()
    trainer.fit(module, loader())
    shadow, _ = quiet_shadow(trainer, module)
    source = acquire_loss(shadow, batch(), None, None)
    assert source.description.startswith("self.criterion(self.layer(x), y), which equals")
    with torch.no_grad():
        expected = module.criterion(module.layer(batch()[0]), batch()[1])
    assert source.risk(shadow, [batch()], None).value() == pytest.approx(float(expected), rel=1e-6)
    assert "forward" not in vars(module)


class RampedStandard(Ramped):
    def __init__(self):
        super().__init__()
        self.objective = self.criterion
        del self.criterion

    def training_step(self, batch, batch_idx):
        self.criterion = F.cross_entropy
        try:
            return super().training_step(batch, batch_idx)
        finally:
            del self.criterion


def test_a_standard_loss_that_ceases_to_be_the_trainings_is_given_up(tmp_path):
    callback = PlasticityOrderParameter(Every(steps=1))
    module = RampedStandard()
    with notices() as told:
        make_trainer(tmp_path, callback, max_epochs=1).fit(module, loader())
    assert sum("F.cross_entropy(self(x), y) was training_step's loss" in text for text in told) == 1
    assert any("from step 3 on training_step is measured" in text for text in told)
    meta = callback.stored().meta["loss"]
    assert meta == "training_step from step 3 on, before F.cross_entropy(self(x), y)"
    # what is measured at the end has the penalty
    x, y = (t[callback.session.probe.indices] for t in blobs().tensors)
    penalty = 0.1 * 4 * sum(p.square().sum() for p in module.parameters())
    expected = float((F.cross_entropy(module(x), y) + penalty).detach())
    assert callback.history["order_parameter"][-1]["risk"] == pytest.approx(expected, rel=1e-5)


def test_acquisition_asks_once_a_run(tmp_path, monkeypatch):
    asked = []
    module = "torch_thermo.callbacks.session.acquire_loss"
    monkeypatch.setattr(module, lambda *a: asked.append(1) or acquire_loss(*a))
    callback = PlasticityOrderParameter(Every(steps=1))
    make_trainer(tmp_path, callback, max_epochs=2).fit(Functional(F.cross_entropy), loader())
    assert callback.session.measurements["order_parameter"] == 13
    assert asked == [1]
