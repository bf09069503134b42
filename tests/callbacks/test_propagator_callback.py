"""PropagatorSpectrum in real trainings: what it stores is what the function says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from tests.callbacks.support import (
    Classifier,
    TwoOptimizers,
    blobs,
    finite,
    loader,
    make_trainer,
    notices,
)
from torch_thermo.callbacks import At, PropagatorSpectrum, Thermometer
from torch_thermo.network import Network
from torch_thermo.observables.propagator_spectrum import propagator_spectrum

START = At(steps=[0], end=False)
NAME = "propagator_spectrum"


def at_start(folder, callback, module, data=None, part=None):
    """Train; return the network as it was, the examples, what was stored, and the notices."""
    data = blobs() if data is None else data
    initial = {name: value.clone() for name, value in module.state_dict().items()}
    with notices() as told:
        make_trainer(folder, callback).fit(module, loader(data))
    module.load_state_dict(initial)
    x = data.tensors[0][callback.session.probe.indices[: callback.members()[0].examples]]
    network = Network.from_module(module if part is None else module.get_submodule(part), x)
    return network, x, callback.stored(), told


def assert_stored(stored, spectrum):
    row = {name.partition("/")[2]: float(stored.series(name).values[0]) for name in stored.names}
    expected = spectrum.summary()
    assert set(row) == set(expected)
    for name, value in expected.items():
        assert row[name] == pytest.approx(value, rel=1e-9, abs=1e-12, nan_ok=True), name
    arrays = stored.arrays(NAME, 0)
    np.testing.assert_allclose(arrays["nodes"], spectrum.nodes.numpy(), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(arrays["weights"], spectrum.weights.numpy())
    assert arrays["dimension"] == spectrum.dimension
    assert bool(arrays["exact"]) == spectrum.exact


class Deep(Classifier):
    def __init__(self, **options):
        super().__init__(**options)
        self.net = nn.Sequential(
            nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)
        )


@pytest.mark.parametrize("derivative", ["mean_state", "averaged", "per_sample"])
def test_stored_is_what_the_function_says(tmp_path, derivative):
    callback = PropagatorSpectrum(START, derivative, examples=20)
    network, x, stored, told = at_start(tmp_path, callback, Deep())
    assert told == []
    assert len(x) == 20
    spectrum = propagator_spectrum(network, x, derivative)
    assert_stored(stored, spectrum)
    assert spectrum.nodes.shape == (20 if derivative == "per_sample" else 1, 18)
    assert stored.series(f"{NAME}/mu2").values[0] > 0.1
    assert stored.series(f"{NAME}/mu3").values[0] < -0.01


def test_the_derivatives_differ(tmp_path):
    found = []
    for derivative in ("mean_state", "averaged"):
        torch.manual_seed(0)
        callback = PropagatorSpectrum(START, derivative)
        make_trainer(tmp_path / derivative, callback).fit(Deep(), loader())
        found.append(callback.history[NAME][0]["mu2"])
    assert found[0] != pytest.approx(found[1], rel=1e-3)


class Images(Classifier):
    """Large enough for a quadrature."""

    def __init__(self):
        super().__init__()
        head = (nn.Flatten(), nn.Linear(2 * 16 * 16, 3))
        self.net = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 2, 3, 2, padding=1), *head
        )


def test_a_large_net_is_measured_by_a_quadrature(tmp_path):
    x = torch.randn(12, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    data = TensorDataset(x, torch.arange(12) % 3)
    callback = PropagatorSpectrum(START, steps=8, probes=3, examples=6, seed=5)
    network, chosen, stored, told = at_start(tmp_path, callback, Images(), data)
    assert told == []
    spectrum = propagator_spectrum(network, chosen, steps=8, probes=3, seed=5)
    assert not spectrum.exact
    assert spectrum.nodes.shape[0] == 3
    assert_stored(stored, spectrum)
    other = propagator_spectrum(network, chosen, steps=8, probes=3, seed=6)
    assert other.mu(2).value != spectrum.mu(2).value


def test_no_loss_is_needed(tmp_path):
    class Manual(TwoOptimizers):
        """Its step makes updates: it can't be run to see a loss."""

        def forward(self, x):
            return self.second(self.first(x).tanh())

    callback = PropagatorSpectrum(START)
    network, x, stored, told = at_start(tmp_path, callback, Manual())
    assert told == []
    assert_stored(stored, propagator_spectrum(network, x))


@pytest.mark.parametrize("how", ["own", "bundle's"])
def test_a_part_is_read(tmp_path, how):
    class Encoded(Deep):
        def __init__(self):
            super().__init__()
            self.encoder, self.net = self.net[:4], nn.Linear(4, 3)

        def forward(self, x):
            return self.net(self.encoder(x))

    if how == "own":
        callback = PropagatorSpectrum(START, module="encoder", examples=16)
    else:
        member = PropagatorSpectrum(START, examples=16)
        callback = Thermometer(callbacks=[member], module="encoder")
    network, x, stored, told = at_start(tmp_path, callback, Encoded(), part="encoder")
    assert told == []
    assert_stored(stored, propagator_spectrum(network, x))
    assert network.neurons == 15


@pytest.mark.parametrize("where", ["weights", "one example"])
def test_what_is_not_finite_is_told_and_does_not_last(tmp_path, where):
    class Broken(Deep):
        def on_train_batch_start(self, batch, batch_idx):
            if where == "weights" and self.global_step == 2:
                self.net[0].weight.data.fill_(float("nan"))
            if where == "weights" and self.global_step == 4:
                for parameter in self.parameters():
                    parameter.data.fill_(0.1)

    data = blobs()
    if where == "one example":
        data.tensors[0][40] = float("inf")
    # behind those that the reading is checked on
    callback = PropagatorSpectrum(lambda step, epoch: True, examples=None, probe=data.tensors)
    with notices() as told:
        make_trainer(tmp_path, callback).fit(Broken(momentum=0.0), loader(data, shuffle=False))
    assert sum(text.startswith("torch-thermo: propagator_spectrum failed") for text in told) == 1
    assert "is not finite" in told[0]
    assert f"failed at step {3 if where == 'weights' else 0}" in told[0]
    steps = finite(callback.stored(), NAME, "mu2") if callback.history else []
    assert steps == ([0, 1, 2, 5, 6] if where == "weights" else [])


def test_arguments_are_checked():
    known = r"\['averaged', 'mean_state', 'per_sample'\]"
    with pytest.raises(ValueError, match=rf"derivative must be of {known}, got 'mean'"):
        PropagatorSpectrum(derivative="mean")
    for name in ("steps", "probes", "examples"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            PropagatorSpectrum(**{name: 0})
    with pytest.raises(TypeError, match="steps must be"):
        PropagatorSpectrum(steps=2.5)
