"""A small demo, read back and measured again by other means."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from torch_thermo.network import Network
from torch_thermo.observables.propagator_spectrum import propagator_spectrum
from torch_thermo.papers import demo, recipes
from torch_thermo.papers.demo import DemoRun
from torch_thermo.store.quantities import measured

EPOCHS, TRAIN, TEST = 6, 32, 24
STEPS = EPOCHS  # batches of 32


def write_patterns(path: Path, per_class: int = 30) -> None:
    """Four classes of 6 x 6 pictures with one brighter quarter; noisy, not solved in six steps."""
    rng = np.random.default_rng(0)
    arrays = {}
    for part in ("train", "test"):
        labels = np.repeat(np.arange(4), per_class)
        images = rng.integers(0, 200, (len(labels), 6, 6), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            row, column = divmod(int(label), 2)
            image[3 * row : 3 * row + 3, 3 * column : 3 * column + 3] += 55
        arrays |= {f"{part}_images": images, f"{part}_labels": labels}
    np.savez(path, **arrays)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, DemoRun]:
    folder = tmp_path_factory.mktemp("demo")
    write_patterns(folder / "patterns.npz")
    done = demo.run_demo(
        folder / "out",
        folder / "patterns.npz",
        epochs=EPOCHS,
        progress=False,
        most_train=TRAIN,
        most_test=TEST,
    )
    return {one.recipe.name: one for one in done}


@pytest.fixture(params=["tanh", "vgg"])
def done(request, runs) -> DemoRun:
    return runs[request.param]


def final(done: DemoRun) -> tuple[torch.nn.Module, Any, list[Any]]:
    """Network, loss and probe in float64, from the checkpoint and the recipe alone."""
    checkpoint = torch.load(done.checkpoint, weights_only=True)
    module = recipes.Classifier(done.recipe.network(), done.recipe.criterion(), 0.1)
    module.load_state_dict(checkpoint["state_dict"])
    states = [s for key, s in checkpoint["callbacks"].items() if key.startswith("Thermometer")]
    assert len(states) == 1
    batches = [tuple(t.double() for t in batch) for batch in states[0]["probe"]["batches"]]
    return module.network.double(), module.criterion, batches


def joined(batches: list[Any], examples: int | None = None) -> tuple[Tensor, Tensor]:
    inputs, targets = (torch.cat(parts)[:examples] for parts in zip(*batches, strict=True))
    return inputs, targets


def last(done: DemoRun, name: str) -> float:
    series = done.run.series(name)
    assert series.steps[-1] == STEPS
    return float(series.values[-1])


def extreme_eigenvalues(network: torch.nn.Module, loss: Tensor, steps: int) -> tuple[float, float]:
    """Textbook Lanczos in float64, independent of the package's."""
    weights = list(network.parameters())
    gradient = torch.autograd.grad(loss, weights, create_graph=True)
    flat = torch.cat([g.flatten() for g in gradient])

    def product(v: Tensor) -> Tensor:
        parts = torch.autograd.grad(flat, weights, v, retain_graph=True, allow_unused=True)
        filled = [
            torch.zeros_like(w) if p is None else p for p, w in zip(parts, weights, strict=True)
        ]
        return torch.cat([p.flatten() for p in filled])

    basis = torch.randn(
        1, len(flat), dtype=torch.float64, generator=torch.Generator().manual_seed(5)
    )
    basis /= basis.norm()
    rows = []
    for _ in range(steps):
        image = product(basis[-1])
        rows.append(image)
        for _ in range(2):
            image = image - basis.T @ (basis @ image)
        if image.norm() < 1e-10 * rows[0].norm():
            break
        basis = torch.cat([basis, (image / image.norm())[None]])
    basis = basis[: len(rows)]
    projected = torch.stack(rows) @ basis.T
    values = torch.linalg.eigvalsh((projected + projected.T) / 2)
    return float(values[0]), float(values[-1])


def test_the_order_parameter_is_that_of_the_final_checkpoint(done):
    network, criterion, batches = final(done)
    inputs, targets = joined(batches)
    assert len(inputs) == TRAIN
    loss = criterion(network(inputs), targets)
    risk = float(loss.detach())
    gradient = torch.autograd.grad(loss, list(network.parameters()))
    names = [name for name, _ in network.named_parameters()]
    shares = {name: float(g.square().sum()) for name, g in zip(names, gradient, strict=True)}
    assert last(done, "order_parameter/risk") == pytest.approx(risk, rel=1e-5)
    assert last(done, "order_parameter/value") == pytest.approx(sum(shares.values()), rel=1e-4)
    assert sum(shares.values()) > 0
    for name, share in shares.items():
        stored = last(done, f"order_parameter/layer/network.{name}")
        assert stored == pytest.approx(share, rel=1e-3, abs=1e-9)


def test_the_extremes_are_those_of_the_final_checkpoint(done):
    network, criterion, batches = final(done)
    inputs, targets = joined(batches, 128)
    low, high = extreme_eigenvalues(network, criterion(network(inputs), targets), steps=40)
    assert low < 0 < high
    for end, value in (("min", low), ("max", high)):
        bound = last(done, f"hessian_extremes/residual_{end}")
        stored = last(done, f"hessian_extremes/lambda_{end}")
        assert abs(stored - value) <= bound + 1e-4 * max(-low, high)
        assert bound < 0.1 * max(-low, high)


def test_the_tanh_networks_spectrum_is_that_of_the_dense_hessian(runs):
    done = runs["tanh"]
    network, criterion, batches = final(done)
    inputs, targets = joined(batches, 128)
    names = dict(network.named_parameters())
    sizes = {name: value.numel() for name, value in names.items()}

    def risk(flat: Tensor) -> Tensor:
        parts = flat.split(list(sizes.values()))
        weights = {n: p.reshape(names[n].shape) for n, p in zip(names, parts, strict=True)}
        return criterion(torch.func.functional_call(network, weights, inputs), targets)

    flat = torch.cat([value.detach().flatten() for value in names.values()])
    with torch.no_grad():
        assert float(risk(flat)) == pytest.approx(last(done, "order_parameter/risk"), rel=1e-5)
    dense = torch.func.hessian(risk)(flat)
    eigenvalues = torch.linalg.eigvalsh(dense)
    scale = float(eigenvalues.abs().max())
    for end, value in (("min", eigenvalues[0]), ("max", eigenvalues[-1])):
        bound = last(done, f"hessian_extremes/residual_{end}")
        assert abs(last(done, f"hessian_extremes/lambda_{end}") - value) <= bound + 1e-4 * scale
    trace, error = (last(done, f"hessian_density/{q}") for q in ("trace", "trace_stderr"))
    assert abs(trace - float(eigenvalues.sum())) < 5 * error
    assert int(done.run.arrays("hessian_density")["dimension"]) == len(flat)


def test_every_observable_was_measured_when_it_was_due(done):
    often = list(range(STEPS + 1))
    due = {
        "order_parameter/value": often,
        "order_parameter_minibatch/value": None,
        "gradient_symmetry/sign_balance": often,
        "weight_symmetry/sign_balance": often,
        "hessian_extremes/lambda_max": [0, 1, 2, 3, 6],
        "hessian_density/odd3": [0, 1, 6],
        "functional_density/odd3": [0, 1, 6],
    }
    for name, steps in due.items():
        series = done.run.series(name)
        assert np.isfinite(series.values).all(), name
        if steps is None:
            assert len(series) == STEPS
        else:
            assert series.steps.tolist() == steps, name
    assert done.run.array_steps("hessian_density") == [0, 1, 6]


def test_tensorboard_reads_what_the_store_holds(done):
    events = EventAccumulator(str(done.log_dir), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    scalars = events.Tags()["scalars"]
    for name in ("order_parameter/value", "order_parameter/risk", "hessian_extremes/lambda_min"):
        series = done.run.series(name)
        read = events.Scalars(f"thermo/{name}")
        assert [event.step for event in read] == series.steps.tolist()
        np.testing.assert_allclose([event.value for event in read], series.values, rtol=1e-6)
    minibatch = done.run.series("order_parameter_minibatch/value")
    stored = dict(zip(minibatch.steps.tolist(), minibatch.values.tolist(), strict=True))
    read = events.Scalars("thermo/order_parameter_minibatch/value")
    assert read
    for event in read:
        assert event.value == pytest.approx(stored[event.step], rel=1e-6)
    assert {"train/accuracy", "test/accuracy", "train/loss"} <= set(scalars)
    assert len(events.Scalars("test/accuracy")) == EPOCHS
    images = events.Images("thermo/hessian_density/density")
    assert [image.step for image in images] == [0, 1, 6]
    assert "custom_scalars__config__" in events.Tags()["tensors"]


def test_bulk_and_boundary_loss_are_those_of_the_final_checkpoint(done):
    network, criterion, batches = final(done)
    inputs, targets = joined(batches, 128)
    with torch.no_grad():
        losses = [
            float(criterion(network(x[None]), y[None]))
            for x, y in zip(inputs, targets, strict=True)
        ]
    arrays = done.run.arrays("bulk_boundary", STEPS)
    np.testing.assert_allclose(arrays["boundary"], losses, rtol=1e-4, atol=1e-6)
    assert last(done, "bulk_boundary/boundary") == pytest.approx(np.mean(losses), rel=1e-5)
    assert last(done, "bulk_boundary/bulk") == pytest.approx(np.mean(arrays["bulk"]), rel=1e-12)
    assert (arrays["bulk"] <= arrays["boundary"]).all()
    assert 0.01 < last(done, "bulk_boundary/ratio") < 0.99
    assert last(done, "bulk_boundary/converged") == 1.0


def test_the_propagator_is_that_of_the_final_checkpoint(done):
    network, _, batches = final(done)
    inputs, _ = joined(batches, 128)
    read = Network.from_module(network, inputs[:8])
    exact = done.recipe.name == "tanh"
    arrays = done.run.arrays("propagator_spectrum", STEPS)
    assert bool(arrays["exact"]) == exact
    assert arrays["dimension"] == read.neurons
    if exact:
        nodes = propagator_spectrum(read, inputs).nodes
        np.testing.assert_allclose(arrays["nodes"], nodes.numpy(), rtol=1e-6, atol=1e-8)
    else:
        # of other probes, within the errors
        other = propagator_spectrum(read, inputs, probes=4, seed=9)
        for n in (2, 3):
            measured = last(done, f"propagator_spectrum/mu{n}")
            stderr = last(done, f"propagator_spectrum/mu{n}_stderr")
            assert 0 < stderr < 0.05 * abs(measured)
            found = other.mu(n)
            assert abs(measured - found.value) < 4 * math.hypot(stderr, found.stderr)
    assert last(done, "propagator_spectrum/mu2") > 10
    assert last(done, "propagator_spectrum/mu3") < 0


def test_circuits_are_those_of_the_final_checkpoint(runs):
    done = runs["vgg"]
    network, _, batches = final(done)
    inputs, targets = joined(batches, 128)
    with torch.no_grad():
        outputs = network(inputs)
    arrays = done.run.arrays("circuit_symmetry", STEPS)
    np.testing.assert_allclose(arrays["output"], outputs.numpy(), rtol=1e-9)
    share = float((outputs * targets > 0).double().mean())
    assert last(done, "circuit_symmetry/positive") == pytest.approx(share, abs=1e-12)
    assert last(done, "circuit_sample/n") == 20_000


def test_what_the_tanh_network_has_no_circuits_for_is_said(runs):
    skipped = runs["tanh"].run.meta["skipped"]
    assert set(skipped) == {"circuit_symmetry", "circuit_sample"}
    assert all("(Tanh)" in reason for reason in skipped.values())
    assert runs["vgg"].run.meta["skipped"] == {}
    caption = str(demo.summary_table(runs["tanh"]).caption)
    assert "skipped: circuit_symmetry, circuit_sample, because network.layers.1 (Tanh)" in caption


def test_accuracies_are_those_of_the_final_weights_on_held_out_images(done):
    network, _, _ = final(done)
    inputs, targets = (t.double() for t in done.recipe.test.tensors)
    with torch.no_grad():
        outputs = network(inputs)
    if outputs.ndim == 1:
        right = (outputs > 0) == (targets > 0)
    else:
        right = outputs.argmax(1) == targets.argmax(1)
    assert len(right) == TEST
    assert done.accuracy["test"] == pytest.approx(float(right.double().mean()), abs=1e-6)


def test_figures_and_table(runs):
    folder = runs["tanh"].log_dir.parents[1] / "figures"
    kinds = {
        "bulk_boundary",
        "gradient_ridgeline",
        "hessian_density",
        "hessian_edges",
        "hessian_ridgeline",
        "order_against_risk",
        "order_parameter",
        "propagator",
        "propagator_density",
        "propagator_ridgeline",
        "sign_balance",
        "w_sym",
        "weight_ridgeline",
    }
    circuits = {"circuit_sample", "circuits", "positive_share"}
    expected = {f"tanh_{kind}.png" for kind in kinds} | {"overview.png"}
    expected |= {f"vgg_{kind}.png" for kind in kinds | circuits}
    assert {path.name for path in folder.iterdir()} == expected
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in folder.iterdir())
    table = demo.summary_table(runs["tanh"])
    rows = {str(label): i for i, label in enumerate(table.columns[0].cells)}
    row = rows["||grad R||^2, probe"]
    first, final_value = (list(table.columns[i].cells)[row] for i in (1, 2))
    values = runs["tanh"].run.series("order_parameter/value").values
    assert first == f"{values[0]:.3g}"
    assert final_value == f"{values[-1]:.3g}"
    assert f"order_parameter_minibatch {STEPS}" in str(table.caption)
    assert list(rows) == [quantity.label for quantity in measured([runs["tanh"].run])]


def test_a_bad_number_of_epochs_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="epochs must be at least 1, got 0"):
        demo.run_demo(tmp_path / "out", "mnist5k", epochs=0)
    assert not (tmp_path / "out").exists()
