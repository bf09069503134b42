"""Bulk and boundary loss: what is refused, and how it says so."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from torch_thermo.network import Network
from torch_thermo.observables.bulk_boundary import arguments, bulk_boundary_loss


class TestRefusals:
    def setup_method(self):
        self.model, self.inputs = (
            nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)),
            torch.ones(6, 5),
        )
        self.network = Network.from_module(self.model, self.inputs)
        self.targets = torch.ones(6, 3)

    def test_network(self):
        with pytest.raises(
            TypeError, match=r"network must be a Network, got Sequential: Network\."
        ):
            bulk_boundary_loss(self.model, self.inputs, self.targets)

    def test_method(self):
        with pytest.raises(
            ValueError, match='method must be "linear", "logit" or "exact", got \'x\''
        ):
            bulk_boundary_loss(self.network, self.inputs, self.targets, method="x")

    @pytest.mark.parametrize("shape", [(6, 4), (0, 5), (5,), ()])
    def test_inputs(self, shape):
        with pytest.raises(ValueError, match=r"inputs must have shape \(B, 5\) with B at least 1"):
            bulk_boundary_loss(self.network, torch.zeros(shape), self.targets)

    def test_labels_without_a_loss_function(self):
        with pytest.raises(ValueError, match=r"outputs' shape \(6, 3\) for the squared error, got"):
            bulk_boundary_loss(self.network, self.inputs, torch.zeros(6, dtype=torch.long))

    @pytest.mark.parametrize("shape", [(5, 3), ()])
    def test_number_of_targets(self, shape):
        with pytest.raises(ValueError, match="one entry for each of the 6 inputs"):
            bulk_boundary_loss(self.network, self.inputs, torch.zeros(shape), F.mse_loss)

    def test_kinds(self):
        with pytest.raises(TypeError, match="targets must be a tensor, got list"):
            bulk_boundary_loss(self.network, self.inputs, [1, 2])
        with pytest.raises(TypeError, match="inputs must be real"):
            bulk_boundary_loss(self.network, self.inputs * 1j, self.targets)
        with pytest.raises(TypeError, match="loss_fn must be callable, got str"):
            bulk_boundary_loss(self.network, self.inputs, self.targets, "hinge")

    def test_too_many_outputs(self, monkeypatch):
        monkeypatch.setattr(arguments, "_MOST_OUTPUTS", 2)
        with pytest.raises(MemoryError, match=r"Jacobian of 3 outputs in 7 hidden neurons"):
            bulk_boundary_loss(self.network, self.inputs, self.targets)

    def test_too_little_memory(self, monkeypatch):
        monkeypatch.setattr(arguments, "available_bytes", lambda device: 1000)
        with pytest.raises(MemoryError, match=r"the bulk loss of one example needs"):
            bulk_boundary_loss(self.network, self.inputs, self.targets)

    def test_what_would_take_minutes(self, monkeypatch):
        monkeypatch.setattr(arguments, "_MOST_WORK", 60)
        labels = torch.zeros(6, dtype=torch.long)
        with pytest.raises(MemoryError, match=r"6 examples with 3 outputs, moved in 3 dimensions"):
            bulk_boundary_loss(self.network, self.inputs, labels, F.cross_entropy)
        with pytest.raises(MemoryError, match="take at most 2 examples, or a loss_fn of fewer"):
            bulk_boundary_loss(self.network, self.inputs, labels, F.cross_entropy)
        two = bulk_boundary_loss(self.network, self.inputs[:2], labels[:2], F.cross_entropy)
        assert bool(two.converged.all())
        # a closed form is one step, not ten
        assert bulk_boundary_loss(self.network, self.inputs, self.targets).bulk_mean > 0
        bent = nn.Sequential(*self.model, nn.Tanh())
        network = Network.from_module(bent, self.inputs)
        with pytest.raises(MemoryError, match=r'or method="linear", which has a closed form'):
            bulk_boundary_loss(network, self.inputs, self.targets)

    def test_work_counts_the_narrowest(self, monkeypatch):
        """One neuron before three outputs leaves one dimension."""
        monkeypatch.setattr(arguments, "_MOST_WORK", 18)
        narrow = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 1), nn.Linear(1, 3))
        network = Network.from_module(narrow, self.inputs)
        labels = torch.zeros(6, dtype=torch.long)
        found = bulk_boundary_loss(network, self.inputs, labels, F.cross_entropy)
        assert bool(found.converged.all())


def detached(output, target):
    return F.cross_entropy(output.detach(), target)


def without_gradients(output, target):
    with torch.no_grad():
        return F.cross_entropy(output, target)


def zero_one(output, target):
    return (output.argmax(1) != target).double().mean()


def of_something_else(output, target):
    return F.cross_entropy(output.detach(), target) * torch.ones((), requires_grad=True)


@pytest.mark.parametrize("method", ["linear", "logit"])
@pytest.mark.parametrize("loss_fn", [detached, without_gradients, zero_one, of_something_else])
@pytest.mark.parametrize("outputs", [1, 3])
def test_a_loss_that_autograd_does_not_see(loss_fn, method, outputs):
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, outputs))
    inputs = torch.ones(6, 5)
    network = Network.from_module(model, inputs)
    with pytest.raises(ValueError, match="does not depend on the outputs through autograd"):
        bulk_boundary_loss(network, inputs, torch.zeros(6, dtype=torch.long), loss_fn, method)


def test_linearised_outputs_that_leave_the_domain_of_the_loss():
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1), nn.Sigmoid())
    for parameter in model.parameters():
        parameter.data = 2 * torch.randn(parameter.shape, generator=generator)
    inputs = torch.randn(30, 5, generator=generator)
    targets = torch.rand(30, 1, generator=generator).round()
    network = Network.from_module(model, inputs)
    with pytest.raises(ValueError, match=r'where method="linear" led the outputs: .* its domain'):
        bulk_boundary_loss(network, inputs, targets, nn.BCELoss(), "linear")
    assert bulk_boundary_loss(network, inputs, targets, nn.BCELoss()).converged_share == 1


@pytest.mark.parametrize("method", ["linear", "logit"])
def test_an_ignored_target_has_no_loss(method):
    """A mean over no target is NaN: no minimum, and the others are as without it."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    inputs = torch.randn(6, 5, generator=generator)
    labels = torch.tensor([0, 1, -100, 2, 0, 1])
    network = Network.from_module(model, inputs)
    found = bulk_boundary_loss(network, inputs, labels, F.cross_entropy, method)
    assert found.boundary.isnan().tolist() == found.bulk.isnan().tolist()
    assert found.bulk.isnan().tolist() == [n == 2 for n in range(6)]
    assert found.converged.tolist() == [n != 2 for n in range(6)]
    assert "1 of 6 examples" in found.reason
    kept = [0, 1, 3, 4, 5]
    rest = bulk_boundary_loss(network, inputs[kept], labels[kept], F.cross_entropy, method)
    assert torch.allclose(found.bulk[kept], rest.bulk, rtol=1e-12)


@pytest.mark.parametrize("method", ["linear", "logit", "exact"])
def test_class_weights_that_a_mean_divides_out_are_told(method):
    """They are not in the losses; with reduction="sum" they are, and nothing is told."""
    generator = torch.Generator().manual_seed(0)
    inputs, labels = torch.randn(6, 5, generator=generator), torch.tensor([0, 1, 2, 2, 0, 1])
    network = Network.from_module(nn.Linear(5, 3), inputs)
    weight = torch.tensor([10.0, 1.0, 0.1])
    with pytest.warns(UserWarning, match=r"class weights .* reduction='sum'"):
        found = bulk_boundary_loss(
            network, inputs, labels, nn.CrossEntropyLoss(weight=weight), method
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = bulk_boundary_loss(network, inputs, labels, nn.CrossEntropyLoss(), method)
        summed = nn.CrossEntropyLoss(weight=weight, reduction="sum")
        kept = bulk_boundary_loss(network, inputs, labels, summed, method)
        # of probabilities a mean divides by the examples
        probabilities = F.one_hot(labels, 3).double()
        soft = nn.CrossEntropyLoss(weight=weight)
        weighted = bulk_boundary_loss(network, inputs, probabilities, soft, method)
    assert torch.allclose(found.bulk, plain.bulk)
    assert torch.allclose(kept.boundary, plain.boundary * weight[labels])
    assert torch.allclose(weighted.boundary, kept.boundary)
