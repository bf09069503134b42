"""CircuitSymmetry in real trainings: what it stores is what the functions say."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from tests.callbacks.support import (
    Classifier,
    blobs,
    compare,
    finite,
    loader,
    make_trainer,
    notices,
    steps_of,
)
from torch_thermo.callbacks import At, CircuitSymmetry, Every, Thermometer, circuit_symmetry
from torch_thermo.dashboard import decade_floor, histogram_arrays, signed_log
from torch_thermo.network import Network
from torch_thermo.observables.circuits import circuit_asymmetry, sample_circuits
from torch_thermo.symmetry import symmetry_test

START = At(steps=[0], end=False)
SUMS, SAMPLE = "circuit_symmetry", "circuit_sample"
QUANTITIES = {
    SUMS: {
        "sign_balance", "sign_balance_stderr", "mass_asymmetry", "mass_asymmetry_stderr",
        "positive", "positive_low", "positive_high", "alive_log10", "dead",
    },
    SAMPLE: {
        "n", "sign_balance", "low", "high", "butler", "butler_p", "odd_moment", "w_sym",
        "w_sym_null",
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def the_same_draws():
    """Of other initial weights an example may be dead."""
    torch.manual_seed(0)


class Scalar(Classifier):
    """A bias-free ReLU net with one output."""

    def __init__(self, squeeze: bool = True, loss: Any = F.soft_margin_loss, **options: Any):
        super().__init__(**options)
        last = [nn.Flatten(0)] if squeeze else []
        self.net = nn.Sequential(
            nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 1, bias=False), *last
        )
        self.objective = loss

    def training_step(self, batch, batch_idx):
        return self.objective(self(batch[0]), batch[1])


def signs(low: float = -1.0, column: bool = False) -> TensorDataset:
    x, classes = blobs().tensors
    y = torch.where(classes > 0, 1.0, low)
    return TensorDataset(x, y[:, None] if column else y)


def fit(folder: Any, module: Any, callback: Any, data: Any = None, **options: Any) -> list[str]:
    with notices() as told:
        make_trainer(folder, callback, **options).fit(module, loader(data))
    return told


def row(callback: Any, observable: str) -> dict[str, float]:
    first = callback.history[observable][0]
    return {name: value for name, value in first.items() if name not in ("step", "epoch")}


def test_sums_are_what_the_function_says(tmp_path):
    module, callback = Scalar(), CircuitSymmetry(START, START, examples=30)
    network = Network.from_module(module, blobs().tensors[0])
    initial = {name: value.clone() for name, value in module.state_dict().items()}
    assert fit(tmp_path, module, callback, signs()) == []
    module.load_state_dict(initial)
    x, y = (t[callback.session.probe.indices[:30]] for t in signs().tensors)
    expected = circuit_asymmetry(network, x, y)
    mass = expected.mass_asymmetry.numpy()
    stored = row(callback, SUMS)
    assert set(stored) == QUANTITIES[SUMS]
    assert stored["mass_asymmetry"] == pytest.approx(mass.mean(), rel=1e-9)
    assert stored["mass_asymmetry_stderr"] == pytest.approx(mass.std(ddof=1) / math.sqrt(30))
    balance = expected.sign_balance.numpy()
    assert stored["sign_balance"] == pytest.approx(balance.mean(), rel=1e-9)
    assert stored["sign_balance_stderr"] == pytest.approx(balance.std(ddof=1) / math.sqrt(30))
    share, z = float((mass > 0).mean()), 1.959964
    assert stored["positive"] == pytest.approx(share)
    # Wilson's interval in its usual form
    centre = (share + z * z / 60) / (1 + z * z / 30)
    half = z * math.sqrt(share * (1 - share) / 30 + z * z / 3600) / (1 + z * z / 30)
    assert stored["positive_low"] == pytest.approx(centre - half, rel=1e-6)
    assert stored["positive_high"] == pytest.approx(centre + half, rel=1e-6)
    assert stored["alive_log10"] == pytest.approx(np.log10(expected.alive.numpy()).mean())
    assert stored["dead"] == 0.0
    arrays = callback.stored().arrays(SUMS, 0)
    for name in ("alive", "sign_balance", "mass_asymmetry", "output"):
        np.testing.assert_allclose(arrays[name], getattr(expected, name).numpy(), rtol=1e-9)
    # the labels matter: without them the sign of the output is not that of the mass
    assert (mass < 0).any()
    assert (np.sign(mass) == y.numpy() * np.sign(arrays["output"])).all()


def test_the_sample_is_what_the_function_says(tmp_path):
    module = Scalar()
    callback = CircuitSymmetry(START, START, paths=800, sample_examples=5, seed=3)
    network = Network.from_module(module, blobs().tensors[0])
    initial = {name: value.clone() for name, value in module.state_dict().items()}
    assert fit(tmp_path, module, callback, signs()) == []
    module.load_state_dict(initial)
    x = signs().tensors[0][callback.session.probe.indices[:5]]
    sign, log_abs = sample_circuits(network, x, 800, seed=3).weighted()
    assert len(sign) == 800
    expected = symmetry_test(sign * log_abs.exp())
    stored = row(callback, SAMPLE)
    assert set(stored) == QUANTITIES[SAMPLE]
    for name in QUANTITIES[SAMPLE] - {"low", "high"}:
        assert stored[name] == pytest.approx(getattr(expected, name), rel=1e-9), name
    assert (stored["low"], stored["high"]) == pytest.approx(expected.interval)
    floor = decade_floor(log_abs)
    histogram = histogram_arrays(signed_log(sign, log_abs, floor), floor=floor)
    arrays = callback.stored().arrays(SAMPLE, 0)
    assert set(arrays) == {"counts", "edges", "stats", "floor"}
    for name, values in histogram.items():
        np.testing.assert_allclose(arrays[name], values, rtol=1e-9)
    assert arrays["counts"].sum() == 800


ORDERS = {0: SAMPLE, 1: f"{SAMPLE}_order1", 2: f"{SAMPLE}_order2"}


class Around(nn.Module):
    """A layer with a way around it."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.layer = nn.Linear(size, size)

    def forward(self, x):
        return x + self.layer(x).relu()


class Skipping(Classifier):
    """Skip connections, biases and batch normalisation."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.net = nn.Sequential(
            nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), Around(5), Around(5), nn.Linear(5, 3)
        )


@pytest.mark.parametrize("kind", [Scalar, Skipping])
def test_samples_of_all_orders_are_of_one_draw(tmp_path, monkeypatch, kind):
    draws = []

    def counting(*given: Any, **options: Any) -> Any:
        draws.append(sample_circuits(*given, **options))
        return draws[-1]

    monkeypatch.setattr(circuit_symmetry, "sample_circuits", counting)
    module = kind()
    callback = CircuitSymmetry(
        START, START, paths=3000, sample_examples=5, seed=3, orders=(0, 1, 2)
    )
    network = Network.from_module(module.eval(), blobs().tensors[0])
    module.train()
    initial = {name: value.clone() for name, value in module.state_dict().items()}
    data = signs() if kind is Scalar else blobs()
    assert fit(tmp_path, module, callback, data) == []
    assert len(draws) == 1
    module.load_state_dict(initial)
    x, y = (t[callback.session.probe.indices[:5]] for t in data.tensors)
    own = sample_circuits(network, x, 3000, seed=3, targets=y)
    for order, observable in ORDERS.items():
        sign, log_abs = own.order(order, 3).weighted()
        stored, arrays = row(callback, observable), callback.stored().arrays(observable, 0)
        assert set(stored) == QUANTITIES[SAMPLE]
        # in a chain without biases every path has as many weights
        assert (stored["n"] == 3000) == (kind is Scalar or order == 0)
        assert stored["n"] == len(sign) == arrays["counts"].sum() > 500
        expected = symmetry_test(sign * log_abs.exp())
        assert stored["butler"] == pytest.approx(expected.butler, rel=1e-6)
        assert stored["odd_moment"] == pytest.approx(expected.odd_moment, rel=1e-6)
        floor = decade_floor(log_abs)
        histogram = histogram_arrays(signed_log(sign, log_abs, floor), floor=floor)
        np.testing.assert_allclose(arrays["counts"], histogram["counts"])
        assert float(arrays["floor"]) == floor


def test_sums_of_a_net_with_skip_connections(tmp_path):
    module, callback = Skipping(), CircuitSymmetry(START, START, examples=30, paths=50)
    network = Network.from_module(module.eval(), blobs().tensors[0])
    module.train()
    initial = {name: value.clone() for name, value in module.state_dict().items()}
    assert fit(tmp_path, module, callback, blobs()) == []
    module.load_state_dict(initial)
    x, y = (t[callback.session.probe.indices[:30]] for t in blobs().tensors)
    expected = circuit_asymmetry(network, x, y)
    arrays = callback.stored().arrays(SUMS, 0)
    for name in ("alive", "sign_balance", "mass_asymmetry", "output"):
        np.testing.assert_allclose(arrays[name], getattr(expected, name).numpy(), rtol=1e-6)


def test_orders_one_after_the_other_have_names_of_their_own(tmp_path):
    callback = CircuitSymmetry(START, START, paths=50, orders=[2, 1])
    assert list(callback.observables()) == [SUMS, ORDERS[2], ORDERS[1]]
    assert fit(tmp_path, Scalar(), callback, signs()) == []
    assert SAMPLE not in callback.history
    assert row(callback, ORDERS[1])["n"] == 50


def test_samples_of_all_orders_leave_the_training_as_it_is(tmp_path):
    def make():
        return Skipping(), loader(batch_size=10)

    callback = CircuitSymmetry(sample=Every(steps=4), paths=300, probe=24, orders=(0, 1, 2))
    stored = compare(tmp_path, make, [callback])
    for observable in ORDERS.values():
        assert finite(stored, observable, "sign_balance") == [0, 4, 8, 12, 15]


@pytest.mark.parametrize(
    ("data", "squeeze", "labelled"),
    [
        (signs(), True, True),
        (signs(low=0.0), True, True),
        (signs(column=True), False, True),
        (signs(low=-0.5), True, False),  # numbers to be fitted
    ],
    ids=["+-1", "0 and 1", "a column", "numbers"],
)
def test_labels_of_a_scalar_output(tmp_path, data, squeeze, labelled):
    callback = CircuitSymmetry(START, START, paths=50)
    told = fit(tmp_path, Scalar(squeeze, F.mse_loss), callback, data)
    assert told == []
    arrays = callback.stored().arrays(SUMS, 0)
    y = data.tensors[1].flatten()[callback.session.probe.indices].numpy()
    expected = np.where(y > 0, 1.0, -1.0) if labelled else np.ones(48)
    signs_found = np.sign(arrays["mass_asymmetry"]) * np.sign(arrays["output"])
    assert (signs_found == expected).all()


@pytest.mark.parametrize("rows", [False, True])
def test_labels_of_several_outputs(tmp_path, rows):
    x, y = blobs().tensors
    given = 2.0 * F.one_hot(y, 3).float() - 1.0 if rows else y
    module, callback = Classifier(), CircuitSymmetry(START, START, paths=50)
    initial = {name: value.clone() for name, value in module.state_dict().items()}
    if rows:
        module.criterion = nn.MSELoss()
    assert fit(tmp_path, module, callback, TensorDataset(x, given)) == []
    module.load_state_dict(initial)
    chosen = callback.session.probe.indices
    with torch.no_grad():
        expected = module(x)[chosen].gather(1, y[chosen, None])[:, 0]
    found = callback.stored().arrays(SUMS, 0)["output"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("output", [None, "target", 1])
def test_ignored_examples_are_left_out(tmp_path, output):
    x, y = blobs().tensors
    ignored = torch.arange(48) % 4 == 1
    module, callback = Classifier(), CircuitSymmetry(START, START, paths=600, output=output)
    network = Network.from_module(module, x)
    initial = {name: value.clone() for name, value in module.state_dict().items()}
    told = fit(tmp_path, module, callback, TensorDataset(x, y.masked_fill(ignored, -100)))
    module.load_state_dict(initial)
    assert told == [
        "torch-thermo: 12 of 48 examples have the class -100, torch's ignore_index, and are left "
        "out of the circuits"
    ]
    indices = torch.tensor(callback.session.probe.indices)
    kept = indices[~ignored[indices]]
    expected = circuit_asymmetry(network, x[kept], y[kept], output)
    arrays, stored = callback.stored().arrays(SUMS, 0), row(callback, SUMS)
    np.testing.assert_allclose(arrays["mass_asymmetry"], expected.mass_asymmetry, rtol=1e-6)
    assert stored["mass_asymmetry"] == pytest.approx(float(expected.mass_asymmetry.mean()))
    first = indices[:8][~ignored[indices[:8]]]
    assert 0 < len(first) < 8
    drawn = sample_circuits(network, x[first], 600, output=output, targets=y[first])
    sign, log_abs = drawn.weighted()
    assert row(callback, SAMPLE)["n"] == 600
    assert row(callback, SAMPLE)["butler"] == pytest.approx(
        symmetry_test(sign * log_abs.exp()).butler
    )


def test_nothing_but_ignored_examples_is_told(tmp_path):
    x, y = blobs().tensors
    callback = CircuitSymmetry(START, START, paths=50, probe=(x[:8], torch.full((8,), -100)))
    told = fit(tmp_path, Classifier(), callback, TensorDataset(x, y))
    assert "circuit_symmetry, circuit_sample are skipped from step 0 on: all 8 examples" in told[0]


def test_the_only_output_is_that_of_the_class(tmp_path):
    stored = []
    for output in (None, "target"):
        callback = CircuitSymmetry(START, START, paths=50, output=output)
        torch.manual_seed(0)
        assert fit(tmp_path / str(output), Scalar(), callback, signs()) == []
        stored.append({name: row(callback, name) for name in (SUMS, SAMPLE)})
    assert stored[0] == stored[1]


@pytest.mark.parametrize("targets", ["soft", "out of range", "two classes a row"])
def test_targets_that_are_no_labels(tmp_path, targets):
    x, y = blobs().tensors
    given = {
        "soft": torch.rand(48, 3, generator=torch.Generator().manual_seed(0)),
        "out of range": torch.where(y == 2, -1, y),
        "two classes a row": torch.ones(48, 3) - F.one_hot(y, 3),
    }[targets]
    module = Classifier()
    if targets != "out of range":
        module.criterion = nn.MSELoss()
    else:
        module.criterion = nn.CrossEntropyLoss(ignore_index=-1)
    callback = CircuitSymmetry(START, START, paths=50)
    told = fit(tmp_path, module, callback, TensorDataset(x, given))
    assert len(told) == 2, told
    assert "circuit_symmetry, circuit_sample are skipped from step 0 on: the network has" in told[0]
    assert "give CircuitSymmetry(output=), the number of an output" in told[0]
    why = "targets must be classes from 0 to 2, got -1 to 1"
    assert (why if targets == "out of range" else "rows of targets must have a 1") in told[0]


def test_a_chosen_output(tmp_path):
    module, callback = Classifier(), CircuitSymmetry(START, START, paths=50, output=2)
    initial = {name: value.clone() for name, value in module.state_dict().items()}
    assert fit(tmp_path, module, callback) == []
    module.load_state_dict(initial)
    x, y = blobs().tensors
    chosen = callback.session.probe.indices
    arrays = callback.stored().arrays(SUMS, 0)
    with torch.no_grad():
        expected = module(x)[chosen, 2]
    np.testing.assert_allclose(arrays["output"], expected, rtol=1e-4, atol=1e-6)
    # y is +1 for the examples of that class alone
    found = np.sign(arrays["mass_asymmetry"]) * np.sign(arrays["output"])
    assert (found == np.where(y[chosen].numpy() == 2, 1, -1)).all()


def test_an_output_that_is_not_there(tmp_path):
    callback = CircuitSymmetry(START, START, paths=50, output=3)
    told = fit(tmp_path, Classifier(), callback)
    assert len(told) == 2, told
    assert "output must be None" in told[0]


def test_circuits_of_an_order_that_no_path_has_are_noticed(tmp_path):
    module = Scalar()
    module.net = nn.Sequential(nn.Linear(6, 1, bias=False), nn.Flatten(0))
    callback = CircuitSymmetry(START, START, paths=50, orders=(0, 1, 2))
    told = fit(tmp_path, module, callback, signs())
    noticed = [text for text in told if "can be drawn" in text]
    assert len(noticed) == 1, told
    assert "no circuit of order 2 can be drawn at step 0: no path was drawn" in noticed[0]


def test_dead_networks_have_no_asymmetry(tmp_path):
    module = Scalar(loss=F.mse_loss)
    with torch.no_grad():
        module.net[2].weight.zero_()
    callback = Thermometer(probe=48, callbacks=[CircuitSymmetry(START, START, paths=50)])
    told = fit(tmp_path, module, callback, signs())
    sums, sample = row(callback, SUMS), row(callback, SAMPLE)
    assert sums["dead"] == 1.0
    assert sample["n"] == 0.0
    undefined = {*QUANTITIES[SUMS]} - {"dead"}
    assert all(math.isnan(sums[name]) for name in undefined), sums
    assert all(math.isnan(sample[name]) for name in QUANTITIES[SAMPLE] - {"n"})
    assert len([text for text in told if "no example has a circuit" in text]) == 1
    assert len([text for text in told if "no circuit can be drawn at step 0" in text]) == 1
    assert callback.stored().array_steps(SAMPLE) == []


def test_dead_examples_are_left_out_of_the_means(tmp_path):
    x, y = blobs().tensors
    x = x.clone()
    x[:12] = 0.0
    module, callback = Scalar(), CircuitSymmetry(START, START, paths=50, probe=48)
    assert fit(tmp_path, module, callback, TensorDataset(x, torch.where(y > 0, 1.0, -1.0))) == []
    stored, arrays = row(callback, SUMS), callback.stored().arrays(SUMS, 0)
    assert stored["dead"] == 0.25
    alive = arrays["alive"] > 0
    assert stored["mass_asymmetry"] == pytest.approx(arrays["mass_asymmetry"][alive].mean())
    assert np.isnan(arrays["mass_asymmetry"][~alive]).all()


def saved_and_resumed(tmp_path: Any, between: Any) -> tuple[Any, Any]:
    """Two callbacks: of a run of two epochs, and of one resumed after its first."""
    callbacks = []
    save = ModelCheckpoint(tmp_path, "{step}", every_n_epochs=1, save_top_k=-1)
    for checkpoint in (None, str(tmp_path / "step=6.ckpt")):
        callback = CircuitSymmetry(Every(steps=3), Every(steps=3), paths=100, probe=16)
        torch.manual_seed(0)
        trainer = make_trainer(
            tmp_path / str(len(callbacks)), callback, save, enable_checkpointing=True, max_epochs=2
        )
        module = Scalar(loss=F.l1_loss, lr=1e-12)
        if checkpoint:
            between(checkpoint)
        trainer.fit(module, loader(signs(), shuffle=False), ckpt_path=checkpoint)
        callbacks.append(callback)
    return callbacks[0], callbacks[1]


def test_a_resumed_run_keeps_floor_and_steps(tmp_path):
    seen = {}

    def grow(checkpoint: str) -> None:
        """Make the circuits of the resumed run larger by ten decades."""
        content = torch.load(checkpoint, weights_only=True)
        (state,) = [s for key, s in content["callbacks"].items() if key.startswith("Circuit")]
        seen.update(state["members"][SAMPLE])
        content["state_dict"]["net.2.weight"] *= 1e10
        torch.save(content, checkpoint)

    first, again = saved_and_resumed(tmp_path, grow)
    floor = float(first.stored().arrays(SAMPLE, 0)["floor"])
    assert seen == {"floor": floor}
    stored = again.stored()
    assert steps_of(stored)[SUMS] == steps_of(stored)[SAMPLE] == [0, 3, 6, 9, 12]
    assert [row["step"] for row in again.history[SAMPLE]] == [9, 12]
    arrays = stored.arrays(SAMPLE, 9)
    assert float(arrays["floor"]) == floor
    assert np.abs(arrays["edges"]).max() > 10.0


def test_one_floor_for_a_run_and_a_new_one_for_the_next(tmp_path):
    class Growing(Scalar):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            with torch.no_grad():
                self.net[2].weight.mul_(0.1)

    callback = CircuitSymmetry(Every(steps=1), Every(steps=1), paths=100, probe=16)
    floors = []
    for number, scale in enumerate((1.0, 1e-6)):
        module = Growing()
        with torch.no_grad():
            module.net[2].weight.mul_(scale)
        fit(tmp_path / str(number), module, callback, signs())
        stored = callback.stored()
        found = {float(stored.arrays(SAMPLE, step)["floor"]) for step in range(7)}
        assert len(found) == 1
        floors.append(found.pop())
    assert floors[1] < floors[0] - 3


@pytest.mark.parametrize("logger", [None, False])
def test_without_a_logger_it_is_stored(tmp_path, monkeypatch, logger):
    monkeypatch.chdir(tmp_path)
    callback = CircuitSymmetry(paths=50)
    told = fit(tmp_path, Scalar(), callback, signs(), logger=logger)
    assert len(told) == (logger is False)
    assert finite(callback.stored(), SUMS, "mass_asymmetry") == [0, 1, 2, 3, 4, 6]
    assert callback.stored().array_steps(SAMPLE) == [0, 1, 6]


def test_products_beyond_the_range_of_float64(tmp_path):
    class Wide(Scalar):
        def __init__(self):
            super().__init__()
            first, last = self.net[0], self.net[2]
            middle = nn.Linear(8, 8, bias=False)
            with torch.no_grad():
                # circuits through small and small are 1e-560 of those through large and large
                for layer in (first, middle):
                    layer.double().weight[:4] *= 1e-280
                last.double().weight.mul_(1e-30)
            self.net = nn.Sequential(first, nn.ReLU(), middle, nn.ReLU(), last, nn.Flatten(0))

    module = Wide()
    initial = {name: value.clone() for name, value in module.state_dict().items()}
    data = TensorDataset(*(tensor.double() for tensor in signs().tensors))
    callback = CircuitSymmetry(START, START, paths=400, probe=8)
    assert fit(tmp_path, module, callback, data, precision="64-true") == []
    module.load_state_dict(initial)
    x = data.tensors[0][callback.session.probe.indices]
    sign, log_abs = sample_circuits(Network.from_module(module, x), x, 400).weighted()
    assert float(log_abs.max() - log_abs.min()) > 1200
    sample = row(callback, SAMPLE)
    assert sample["n"] == 400
    assert sample["sign_balance"] == pytest.approx(float(sign.double().mean()))
    # the small ones carry nothing of the mass
    expected = symmetry_test(sign * (log_abs - log_abs.max()).exp())
    assert sample["odd_moment"] == pytest.approx(expected.odd_moment, rel=1e-6)
    assert sample["w_sym"] == pytest.approx(expected.w_sym, abs=1e-9)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"paths": 0}, ValueError, "paths must be at least 1, got 0"),
        ({"paths": 2.5}, TypeError, r"paths must be a whole number, got 2\.5"),
        ({"sample_examples": 0}, ValueError, "sample_examples must be at least 1, got 0"),
        ({"examples": 0}, ValueError, "examples must be at least 1, got 0"),
        ({"output": "class"}, ValueError, "output must be \"target\" or a .*, got 'class'"),
        ({"output": -1}, ValueError, "got -1"),
        ({"output": True}, TypeError, 'output must be a number or "target", got True'),
        ({"output": 1.0}, TypeError, r"got 1\.0"),
        ({"orders": ()}, ValueError, r"orders must be .*, got \(\)"),
        ({"orders": (0, 3)}, ValueError, r"orders must be different ones of 0, 1 and 2.*\(0, 3\)"),
        ({"orders": (1, 1)}, ValueError, r"got \(1, 1\)"),
        ({"orders": 1}, TypeError, "orders must be .*, got 1"),
        ({"orders": (True,)}, TypeError, r"got \(True,\)"),
        ({"sample": 3}, TypeError, "sample must be callable, got int"),
    ],
)
def test_arguments_are_checked(options, error, message):
    with pytest.raises(error, match=message):
        CircuitSymmetry(**options)
