"""Bulk and boundary loss: what is refused, and how it says so."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from torch_thermo.network import Network
from torch_thermo.observables.bulk_boundary import bulk_boundary_loss, losses


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
        with pytest.raises(ValueError, match='method must be "linear" or "logit", got \'exact\''):
            bulk_boundary_loss(self.network, self.inputs, self.targets, method="exact")

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
        monkeypatch.setattr(losses, "_MOST_OUTPUTS", 2)
        with pytest.raises(MemoryError, match=r"Jacobian of 3 outputs in 7 hidden neurons"):
            bulk_boundary_loss(self.network, self.inputs, self.targets)

    def test_too_little_memory(self, monkeypatch):
        monkeypatch.setattr(losses, "available_bytes", lambda device: 1000)
        with pytest.raises(MemoryError, match=r"the bulk loss of one example needs"):
            bulk_boundary_loss(self.network, self.inputs, self.targets)
