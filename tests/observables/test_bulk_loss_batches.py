"""The bulk loss as a training loss: batches and arguments that are not the usual ones."""

import copy
import math
import pickle
import warnings

import pytest
import torch
from torch import nn

from torch_thermo.network import Network
from torch_thermo.observables.bulk_boundary import bulk_boundary_loss
from torch_thermo.observables.bulk_loss import BulkLoss


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def model():
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator(parameter.numel()))
    return net


@pytest.fixture
def inputs():
    return torch.randn(4, 4, generator=generator(1))


LABELS = torch.tensor([0, 2, 1, 2])
WEIGHTS = torch.tensor([10.0, 1.0, 0.1])


@pytest.mark.parametrize("kind", [nn.CrossEntropyLoss, nn.NLLLoss])
def test_class_weights_that_a_mean_divides_out_are_refused(model, kind):
    with pytest.raises(ValueError, match=r"class weights .* reduction='sum' or 'none'"):
        BulkLoss(model, kind(weight=WEIGHTS))


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_the_remedy_keeps_the_class_weights(inputs, reduction):
    """Without hidden layers the values are the criterion's own."""
    single = nn.Linear(4, 3)
    criterion = nn.CrossEntropyLoss(weight=WEIGHTS, reduction=reduction)
    values = BulkLoss(single, criterion, reduction="none")(inputs, LABELS)
    expected = nn.functional.cross_entropy(single(inputs), LABELS, WEIGHTS, reduction="none")
    assert torch.allclose(values, expected, rtol=1e-5)


def test_weights_that_a_mean_leaves_are_taken(inputs):
    single = nn.Linear(4, 3)
    criterion = nn.MultiMarginLoss(weight=WEIGHTS)
    value = BulkLoss(single, criterion)(inputs, LABELS)
    assert float(value.detach()) == pytest.approx(float(criterion(single(inputs), LABELS).detach()))


@pytest.mark.parametrize("ignored", [-100, 2])
def test_ignored_labels_are_left_out_of_the_mean(model, inputs, ignored):
    """Value and gradient are those of the other examples alone."""
    criterion = nn.CrossEntropyLoss(ignore_index=ignored)
    labels = torch.tensor([0, ignored, 1, ignored])
    loss = BulkLoss(model, criterion)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        value = loss(inputs, labels)
    slopes = torch.autograd.grad(value, list(model.parameters()))
    rest = BulkLoss(model, criterion)(inputs[::2], labels[::2])
    assert float(value.detach()) == pytest.approx(float(rest.detach()), rel=1e-6)
    for mine, its in zip(slopes, torch.autograd.grad(rest, list(model.parameters())), strict=True):
        assert torch.allclose(mine, its, rtol=1e-5, atol=1e-7)
    assert loss.last.values.isnan().tolist() == [False, True, False, True]


def test_ignored_labels_without_a_mean_are_0(model, inputs):
    """As of torch's criteria with reduction "none"."""
    labels = torch.tensor([0, -100, 1, 2])
    values = BulkLoss(model, nn.CrossEntropyLoss(), reduction="none")(inputs, labels)
    assert (values == 0).tolist() == [False, True, False, False]
    values.sum().backward()
    assert bool(model[0].weight.grad.isfinite().all())


def test_nothing_but_ignored_labels_is_refused(model, inputs):
    with pytest.raises(ValueError, match="none of 4 examples has a loss: all targets are ignored"):
        BulkLoss(model, nn.CrossEntropyLoss())(inputs, torch.full((4,), -100))


def test_what_is_not_finite_is_told_with_its_number(model, inputs):
    inputs[1, 0] = math.nan
    inputs[3, 2] = math.inf
    loss = BulkLoss(model, nn.CrossEntropyLoss())
    with pytest.warns(UserWarning, match="the bulk loss of 2 of 4 examples is not finite"):
        assert bool(loss(inputs, LABELS).isnan())
    # told once
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(inputs, LABELS)


def test_whole_numbers_first(model):
    """An image of whole numbers is taken as it is, also in the first batch."""
    images = torch.randint(0, 4, (4, 4), generator=generator(2))
    expected = BulkLoss(model, nn.CrossEntropyLoss())(images.float(), LABELS)
    for batch in (images, images.to(torch.uint8), images.double(), images.half()):
        value = BulkLoss(model, nn.CrossEntropyLoss())(batch, LABELS)
        assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    network = Network.from_module(model, images.float())
    found = bulk_boundary_loss(network, images, LABELS, nn.CrossEntropyLoss(), "exact", starts=1)
    assert float(expected.detach()) == pytest.approx(found.bulk_mean, rel=1e-6)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64, torch.bfloat16])
def test_a_copy_takes_batches_of_the_dtypes_that_the_original_takes(model, copied, dtype):
    images = torch.randint(0, 4, (4, 4), generator=generator(2))
    loss = BulkLoss(model, nn.CrossEntropyLoss())
    loss(images.float(), LABELS)
    expected = float(loss(images.to(dtype), LABELS).detach())
    other = copied(loss)
    assert float(other(images.to(dtype), LABELS).detach()) == expected


def oscillating():
    """Recurrent: the plain iteration does not settle, the damped one does."""
    w = 2.4 * torch.randn(16, 16, generator=generator(), dtype=torch.float64)
    b = 0.1 * torch.randn(16, generator=generator(1), dtype=torch.float64)
    return Network.from_matrix(-(w @ w.T) / 16, b, torch.tanh, inputs=6, outputs=4)


def test_damping_is_handed_on():
    network = oscillating()
    inputs = torch.rand(3, 6, generator=generator(3), dtype=torch.float64)
    targets = torch.ones(3, 4)
    plain = bulk_boundary_loss(network, inputs, targets, method="exact", starts=1)
    assert bool(plain.boundary.isnan().all())
    assert "3 of 3 examples have no fixed point that was found" in plain.reason
    assert "a larger damping" in plain.reason
    assert bool(network.fixed_point(inputs, damping=0.9).converged.all())
    damped = bulk_boundary_loss(network, inputs, targets, method="exact", starts=1, damping=0.9)
    assert damped.reason == ""
    outputs = network.fixed_point(inputs, damping=0.9).states[-1]
    assert torch.allclose(damped.boundary, 0.5 * (targets - outputs).square().sum(1))
    loss = BulkLoss(network, damping=0.9)
    assert float(loss(inputs, targets).detach()) == pytest.approx(damped.bulk_mean, rel=1e-12)
    assert bool(loss.last.boundary.isfinite().all())


WRONG = [
    ({"starts": 2.5}, TypeError, "starts must be a whole number, got 2.5"),
    ({"starts": True}, TypeError, "starts must be a whole number, got True"),
    ({"starts": "a"}, TypeError, "starts must be a whole number, got 'a'"),
    ({"starts": 0}, ValueError, "starts must be at least 1, got 0"),
    ({"seed": 1.5}, TypeError, "seed must be a whole number, got 1.5"),
    ({"seed": False}, TypeError, "seed must be a whole number, got False"),
    ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
    ({"m": True}, TypeError, "m must be a number, got True"),
    ({"m": "a"}, TypeError, "m must be a number, got 'a'"),
    ({"m": -1}, ValueError, "m must be finite and at least 0, got -1"),
    ({"m": math.nan}, ValueError, "m must be finite and at least 0, got nan"),
    ({"damping": 1.0}, ValueError, "damping must be at least 0 and less than 1, got 1.0"),
    ({"damping": "a"}, TypeError, "damping must be a number, got 'a'"),
]


@pytest.mark.parametrize(("given", "error", "told"), WRONG)
def test_arguments_are_checked(model, inputs, given, error, told):
    with pytest.raises(error, match=f"^{told}$"):
        BulkLoss(model, **given)
    network = Network.from_module(model, inputs)
    with pytest.raises(error, match=f"^{told}$"):
        bulk_boundary_loss(network, inputs, torch.ones(4, 3), method="exact", **given)
