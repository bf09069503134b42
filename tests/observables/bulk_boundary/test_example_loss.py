"""Losses of the examples, from loss functions of batches."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from torch_thermo.observables.bulk_boundary import example_loss
from torch_thermo.observables.bulk_boundary.example_loss import ExampleLoss, Potential


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


OUTPUTS = normal(5, 4)
SIGNS = normal(5, 4, seed=1).sign()
LABELS = torch.arange(5) % 4

CRITERIA = {
    "mean": (nn.CrossEntropyLoss(), LABELS),
    "one each": (nn.CrossEntropyLoss(reduction="none"), LABELS),
    "smoothed and weighted": (
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0, 4.0]), label_smoothing=0.1),
        LABELS,
    ),
    "a mean over outputs": (nn.MSELoss(), SIGNS),
    "float32 buffers": (nn.BCEWithLogitsLoss(pos_weight=torch.full((4,), 2.0)), SIGNS.clamp(min=0)),
    "labels in float32": (F.mse_loss, SIGNS.float()),
    "asks for a value": (
        lambda o, t: F.cross_entropy(o, t) * (2 if int(t.max()) > 1 else 1),
        LABELS,
    ),
    "no rule for vmap": (nn.MultiMarginLoss(), LABELS),
}


@pytest.mark.parametrize("name", CRITERIA)
def test_each_example_as_a_batch_of_one(name):
    loss_fn, targets = CRITERIA[name]
    wide = loss_fn
    if isinstance(loss_fn, nn.Module) and list(loss_fn.buffers()):
        wide = type(loss_fn)(**dict(loss_fn.named_buffers()))
        wide.label_smoothing = getattr(loss_fn, "label_smoothing", 0.0)
        wide = wide.double()
    expected = torch.stack(
        [wide(OUTPUTS[n : n + 1], targets[n : n + 1].clone()).sum() for n in range(5)]
    )
    found = ExampleLoss(loss_fn)(OUTPUTS, targets)
    assert found.dtype == torch.float64
    assert torch.allclose(found, expected, rtol=1e-7)
    assert len(set(found.tolist())) == 5


def test_the_squared_error_of_the_paper():
    found = ExampleLoss(None)(OUTPUTS, SIGNS)
    assert torch.allclose(found, 0.5 * (OUTPUTS - SIGNS).square().sum(1), rtol=1e-14)


def test_a_module_is_left_as_it_is():
    loss_fn = nn.CrossEntropyLoss(weight=torch.rand(4, generator=torch.Generator().manual_seed(0)))
    weight = loss_fn.weight
    ExampleLoss(loss_fn)(OUTPUTS, LABELS)
    assert loss_fn.weight is weight
    assert weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("loss_fn", "message"),
    [
        (nn.MSELoss(reduction="none"), r"one loss per example, got shape \(1, 4\) for one example"),
        (lambda o, t: 1.0, "got float for one example"),
        (lambda o, t: o @ t, r"failed on a batch of one, outputs \(1, 4\) of float64 and targets"),
    ],
)
def test_what_is_no_loss(loss_fn, message):
    with pytest.raises(ValueError, match=message):
        ExampleLoss(loss_fn)(OUTPUTS, SIGNS)


@pytest.mark.parametrize("activation", [torch.tanh, lambda y: torch.softmax(y, 1)])
@pytest.mark.parametrize("name", ["mean", "a mean over outputs", "asks for a value", None])
def test_derivatives(name, activation):
    loss_fn, targets = CRITERIA.get(name, (None, SIGNS))
    loss = ExampleLoss(loss_fn)
    diagonal = name is None and activation is torch.tanh
    potential = Potential(loss, targets, activation, elementwise=activation is torch.tanh)
    rows = torch.tensor([3, 0, 4])
    assert potential.diagonal == diagonal
    factor = normal(3, 4, 2, seed=7)
    values, gradient, bent = potential.curvatures(OUTPUTS[:3], rows, factor)
    for n, row in enumerate(rows):

        def value(y, row=row):
            return loss(activation(y[None]), targets[row : row + 1])[0]

        assert torch.allclose(values[n], value(OUTPUTS[n]), rtol=1e-12)
        y = OUTPUTS[n].clone()
        assert torch.allclose(gradient[n], torch.autograd.functional.jacobian(value, y), atol=1e-12)
        expected = torch.autograd.functional.hessian(value, y) @ factor[n]
        assert torch.allclose(bent[n], expected, atol=1e-12)
    slopes = potential.slopes(OUTPUTS[:3], rows)
    assert torch.equal(slopes[0], values)
    assert torch.allclose(slopes[1], gradient, rtol=1e-13)


def test_a_loss_without_a_second_derivative_says_so():
    potential = Potential(ExampleLoss(nn.MultiMarginLoss()), LABELS, lambda y: y, True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        potential.curvatures(OUTPUTS, torch.arange(5), torch.eye(4).double().expand(5, 4, 4))


def test_columns_in_batches(monkeypatch):
    """Three columns in batches of two are as one batch."""
    potential = Potential(ExampleLoss(F.cross_entropy), LABELS, torch.tanh, True)
    arguments = OUTPUTS, torch.arange(5), normal(5, 4, 3, seed=7)
    whole = potential.curvatures(*arguments)[2]
    monkeypatch.setattr(example_loss, "_BATCH_BYTES", 8 * 20 * 2)
    calls = []
    grad = torch.autograd.grad

    def counted(*args, **options):
        calls.append(options.get("is_grads_batched", False))
        return grad(*args, **options)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    assert torch.allclose(potential.curvatures(*arguments)[2], whole, rtol=1e-13)
    assert sum(calls) == 2


def test_a_constant_loss_has_derivatives_0():
    potential = Potential(ExampleLoss(lambda o, t: t.sum() * 0 + 1), SIGNS, lambda y: y, True)
    factor = torch.eye(4).double().expand(5, 4, 4)
    values, gradient, hessian = potential.curvatures(OUTPUTS, torch.arange(5), factor)
    assert values.tolist() == [1.0] * 5
    assert not gradient.any()
    assert not hessian.any()
