"""Which part of a module is read, and on what."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F

from tests.callbacks.support import (
    MAIN,
    Classifier,
    TwoOptimizers,
    assert_same,
    blobs,
    compare,
    finite,
    loader,
    make_trainer,
    notices,
    run,
)
from torch_thermo.callbacks import (
    At,
    BulkBoundaryLoss,
    CircuitSymmetry,
    Every,
    PlasticityOrderParameter,
    Thermometer,
    WeightSymmetry,
)
from torch_thermo.callbacks.reading import examples_of, read_part
from torch_thermo.network import Network
from torch_thermo.observables.bulk_boundary import bulk_boundary_loss
from torch_thermo.observables.circuits import circuit_asymmetry

START = At(steps=[0], end=False)
SUMS, BULK = "circuit_symmetry", "bulk_boundary"
# 48 examples in batches of 8, one epoch
DUE = [0, 1, 2, 3, 4, 6]


def circuits(**options: Any) -> CircuitSymmetry:
    return CircuitSymmetry(paths=50, **options)


def plan(**options: Any) -> Thermometer:
    callbacks = [BulkBoundaryLoss(START), CircuitSymmetry(START, START, paths=50)]
    return Thermometer(**{"probe": 48, "callbacks": callbacks, **options})


def fit(folder: Any, module: Any, callback: Any, **options: Any) -> list[str]:
    with notices() as told:
        make_trainer(folder, callback, **options).fit(module, loader())
    return told


def values(callback: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Outputs or losses of the examples at the start, and the probe's order of examples."""
    arrays = callback.stored().arrays(name, 0)
    indices = callback.session.probe.indices
    return arrays["output" if name == SUMS else "boundary"], np.array(indices)


class Scaled(Classifier):
    """Something before the network that is no part of it, and something behind."""

    def __init__(self, behind: float = 1.0) -> None:
        super().__init__()
        self.behind = behind

    def forward(self, x):
        scale = 0.5 if x.sum() > -1e9 else 1.0  # depends on the input: no graph can be followed
        return self.net(scale * x) * self.behind


@pytest.mark.parametrize("given", ["name", "object"])
def test_a_part_is_read_on_what_it_gets(tmp_path, given):
    module = Scaled()
    initial = {name: value.clone() for name, value in module.state_dict().items()}
    callback = plan(module="net" if given == "name" else module.net)
    assert fit(tmp_path, module, callback) == []
    x, y = blobs().tensors
    module.load_state_dict(initial)
    network = Network.from_module(module.net, x)
    outputs, indices = values(callback, SUMS)
    expected = circuit_asymmetry(network, 0.5 * x[indices], y[indices])
    np.testing.assert_allclose(outputs, expected.output.numpy(), rtol=1e-6)
    losses, _ = values(callback, BULK)
    expected = bulk_boundary_loss(network, 0.5 * x[indices], y[indices], module.criterion)
    np.testing.assert_allclose(losses, expected.boundary.numpy(), rtol=1e-6)
    stored = callback.stored()
    bulk = float(stored.series("bulk_boundary/bulk").values[0])
    assert bulk == pytest.approx(expected.bulk_mean, rel=1e-6)
    assert bulk < expected.boundary_mean


def test_what_comes_before_a_part_is_run_as_it_is_deployed(tmp_path):
    class Dropped(Classifier):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x):
            return self.net(self.drop(x))

    module, callback = Dropped(), plan(module="net")
    initial = {name: value.clone() for name, value in module.state_dict().items()}
    assert fit(tmp_path, module, callback) == []
    module.load_state_dict(initial)
    outputs, indices = values(callback, SUMS)
    x, y = blobs().tensors
    with torch.no_grad():
        expected = module.net(x)[indices].gather(1, y[indices, None])
    np.testing.assert_allclose(outputs, expected[:, 0].numpy(), rtol=1e-5, atol=1e-6)


def test_what_cannot_be_followed_is_told_once_and_names_the_cure(tmp_path):
    callback = plan()
    told = fit(tmp_path, Scaled(), callback)
    assert len(told) == 2, told
    assert "bulk_boundary, circuit_symmetry, circuit_sample are skipped from step 0" in told[0]
    assert "Scaled" in told[0]
    assert "measured NOTHING" in told[1]


def test_the_part_of_an_own_callback_comes_first(tmp_path):
    module = Scaled()
    initial = {name: value.clone() for name, value in module.state_dict().items()}
    members = [circuits(schedule=START, module=module.net[0])]
    callback = Thermometer(probe=48, callbacks=members, module="net")
    assert fit(tmp_path, module, callback) == []
    # five outputs of the first layer, and three classes among them
    outputs, indices = values(callback, SUMS)
    assert members[0].members()[0].part == "net.0"
    module.load_state_dict(initial)
    x, y = blobs().tensors
    with torch.no_grad():
        expected = module.net[0](0.5 * x)[indices].gather(1, y[indices, None])
    np.testing.assert_allclose(outputs, expected[:, 0].numpy(), rtol=1e-5, atol=1e-6)


def test_the_bulk_loss_needs_the_last_part(tmp_path):
    for number, module in enumerate((Scaled(behind=2.0), Classifier())):
        part = "net" if number == 0 else "net.0"
        callback = plan(module=part)
        told = fit(tmp_path / str(number), module, callback)
        assert len(told) == 1, told
        assert "bulk_boundary is skipped from step 0 on: the bulk loss needs the part" in told[0]
        assert f"{part} is followed by others" in told[0]
        assert finite(callback.stored(), SUMS, MAIN[SUMS]) == [0]


@pytest.mark.parametrize("bundle", [True, False])
def test_a_part_that_is_not_there(tmp_path, bundle):
    for given, words in (
        ("nett", "got 'nett'"),
        ("", "got ''"),
        (nn.Linear(2, 2), "got a Linear that is not in it"),
    ):
        callback = plan(module=given) if bundle else circuits(module=given)
        with pytest.raises(ValueError, match=rf"part of Classifier.*{words}: it has net, criter"):
            make_trainer(tmp_path, callback).fit(Classifier(), loader())


@pytest.mark.parametrize("kind", [Thermometer, BulkBoundaryLoss, CircuitSymmetry])
def test_a_part_of_another_kind(kind):
    with pytest.raises(TypeError, match=r"module must be a name or an nn\.Module, got int"):
        kind(module=3)


def test_an_empty_container_is_a_part(tmp_path):
    class Hollow(Classifier):
        def __init__(self):
            super().__init__()
            self.hollow = nn.Sequential()

    module = Hollow()
    member = CircuitSymmetry(START, START, module=module.hollow)
    # an empty module is false as a list is, and is yet the one that was asked for
    told = fit(tmp_path, module, Thermometer(module="net", callbacks=[member]))
    assert "hollow is called 0 times in a pass of Hollow" in told[0]


class Late(Classifier):
    """Built when the run begins."""

    def __init__(self, hook: str) -> None:
        super().__init__()
        self.hook = hook
        del self.net

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))

    def setup(self, stage):
        if self.hook == "setup":
            self.build()

    def configure_model(self):
        if self.hook == "configure_model":
            self.build()


@pytest.mark.parametrize("hook", ["setup", "configure_model"])
def test_a_part_that_is_built_when_the_run_begins(tmp_path, hook):
    callback = plan(module="net")
    assert fit(tmp_path, Late(hook), callback) == []
    assert finite(callback.stored(), SUMS, MAIN[SUMS]) == [0]


class StepOnly(pl.LightningModule):
    """No forward: the step prepares the images and calls the only child with parameters."""

    def __init__(self, loss: Any = F.cross_entropy) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
        self.objective = loss

    def training_step(self, batch, batch_idx):
        x, y = batch
        return self.objective(self.body(2.0 * x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


def test_without_a_forward_the_only_child_is_read_on_what_the_step_gives_it(tmp_path):
    module, callback = StepOnly(), plan()
    initial = {name: value.clone() for name, value in module.state_dict().items()}
    told = fit(tmp_path, module, callback)
    # criterion(body(x), y) is not the loss: x is doubled before
    assert len(told) == 1, told
    assert "bulk_boundary is skipped" in told[0]
    assert "the bulk loss needs the loss as a function of the output" in told[0]
    module.load_state_dict(initial)
    outputs, indices = values(callback, SUMS)
    x, y = blobs().tensors
    network = Network.from_module(module.body, x)
    expected = circuit_asymmetry(network, 2.0 * x[indices], y[indices])
    np.testing.assert_allclose(outputs, expected.output.numpy(), rtol=1e-6)


def test_the_promise_holds_where_the_step_is_run_to_see_what_a_part_gets(tmp_path):
    class Drawing(StepOnly):
        def training_step(self, batch, batch_idx):
            self.seen = getattr(self, "seen", 0) + 1
            x, y = batch
            self.log("seen", float(self.seen))
            return super().training_step((x + 0.1 * torch.randn_like(x), y), batch_idx)

        def own_state(self):
            return getattr(self, "seen", 0)

    callback = plan()
    stored = compare(tmp_path, lambda: (Drawing(), loader()), [callback], told=[])
    assert finite(stored, SUMS, MAIN[SUMS]) == [0]
    assert callback.session.measurements == {SUMS: 1, "circuit_sample": 1}


def test_manual_optimisation_takes_no_step_to_see_what_a_part_gets(tmp_path):
    def make():
        return TwoOptimizers(), loader()

    plain, _ = run(tmp_path / "plain", make, [])
    with notices() as told:
        measured, _ = run(tmp_path / "measured", make, [plan(module="first")])
    assert_same(plain, measured)
    assert "uses manual optimisation" in told[0]
    assert "circuit_symmetry, circuit_sample are skipped from step 0 on" in told[1]
    assert "forward" in told[1]
    # a closure of the user's is run instead
    callback = plan(module="first", closure=lambda module, batch: module.loss(batch))
    fit(tmp_path / "given", TwoOptimizers(), callback)
    assert finite(callback.stored(), SUMS, MAIN[SUMS]) == [0]


class Often(Classifier):
    """Calls a part twice, or with two tensors."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.pair = nn.Bilinear(3, 3, 3)

    def forward(self, x):
        out = self.net(x)
        if self.how == "twice":
            return out + self.net(-x)
        return self.pair(out, out)


@pytest.mark.parametrize(
    ("how", "part", "reason"),
    [
        ("twice", "net", "net is called 2 times in a pass of Often: a part to be read is called"),
        ("pair", "pair", r"pair gets \(Tensor, Tensor\): a part to be read gets one tensor"),
    ],
)
def test_a_part_is_called_once_with_one_tensor(tmp_path, how, part, reason):
    callback = plan(module=part)
    told = fit(tmp_path, Often(how), callback)
    assert len(told) == 2, told
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(told[0])
    assert "bulk_boundary, circuit_symmetry, circuit_sample are skipped" in told[0]


def test_a_part_that_writes_to_its_input_and_is_written_to(tmp_path):
    class InPlace(Classifier):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 3))

        def forward(self, x):
            return self.net(x + 0.0).mul_(2.0)

    x, y = blobs().tensors
    before = x.clone()
    module = InPlace()
    batches = [(x[:20], y[:20]), (x[20:], y[20:])]
    _, inputs, targets, last = examples_of(module, "net", batches, None)
    assert torch.equal(inputs, before)
    assert torch.equal(targets, y)
    assert not last  # the memory is the model's output, its content was the part's
    read_part(module, "net", inputs)
    assert torch.equal(inputs, before)
    callback = plan(module="net")
    told = fit(tmp_path, module, callback)
    assert len(told) == 1, told
    assert finite(callback.stored(), SUMS, MAIN[SUMS]) == [0]


def test_batches_that_are_dictionaries(tmp_path):
    class Dictionaries(Classifier):
        def training_step(self, batch, batch_idx):
            return super().training_step((batch["x"], batch["y"]), batch_idx)

    x, y = blobs().tensors
    data = [{"x": x[i], "y": y[i]} for i in range(48)]
    for number, part in enumerate((None, "net")):
        callback = circuits(module=part, schedule=START)
        with notices() as told:
            trainer = make_trainer(tmp_path / str(number), callback)
            trainer.fit(Dictionaries(), loader(data))
        # no targets to choose one of three outputs
        assert "the network has 3 outputs" in told[0]
    callback = circuits(module="net", schedule=START, output=1)
    with notices() as told:
        make_trainer(tmp_path / "one", callback).fit(Dictionaries(), loader(data))
    assert told == []
    assert finite(callback.stored(), SUMS, MAIN[SUMS]) == [0]


def padded(items: Any) -> Any:
    sequences, targets = zip(*items, strict=True)
    return nn.utils.rnn.pad_sequence(list(sequences), batch_first=True), torch.tensor(targets)


def test_batches_of_several_shapes(tmp_path):
    class Pooled(Classifier):
        def forward(self, x):
            return self.net(x.sum(1))

    generator = torch.Generator().manual_seed(0)
    data = [(torch.randn(1 + i, 6, generator=generator), i % 3) for i in range(48)]
    whole, part = (circuits(schedule=START, module=name) for name in (None, "net"))
    with notices() as told:
        trainer = make_trainer(tmp_path, Thermometer(probe=48, callbacks=[whole]))
        trainer.fit(Pooled(), loader(data, collate_fn=padded))
    assert "the examples must have one shape to be read, got [(" in told[0]
    # the part gets six numbers of each
    with notices() as told:
        make_trainer(tmp_path / "part", part).fit(Pooled(), loader(data, collate_fn=padded))
    assert told == []
    assert finite(part.stored(), SUMS, MAIN[SUMS]) == [0]


def test_a_network_is_read_once_a_moment(tmp_path, monkeypatch):
    read = []
    original = Network.from_module.__func__

    def counted(cls, module, inputs):
        read.append(type(module).__name__)
        return original(cls, module, inputs)

    monkeypatch.setattr(Network, "from_module", classmethod(counted))
    callback = Thermometer(
        probe=16,
        callbacks=[BulkBoundaryLoss(Every(steps=1)), CircuitSymmetry(Every(steps=1), START, 50)],
    )
    assert fit(tmp_path, Classifier(), callback) == []
    assert callback.session.measurements == {BULK: 7, SUMS: 7, "circuit_sample": 1}
    assert len(read) == 7


def test_who_measured_nothing_is_named(tmp_path):
    weights = WeightSymmetry(START)
    with notices() as told:
        trainer = make_trainer(tmp_path, weights, CircuitSymmetry(START, START))
        trainer.fit(Scaled(), loader())
    assert weights.history["weight_symmetry"]
    assert told[-1].startswith("torch-thermo: CircuitSymmetry measured NOTHING in this run: ")


class Preparing(Classifier):
    """Prepares its inputs in training_step; `how` is one of the common ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        del self.criterion

    def forward(self, x):
        out = self.net(x)
        return out.softmax(1) if self.how == "past" else out

    def training_step(self, batch, batch_idx):
        x, y = batch[::-1] if self.how == "swapped" else batch
        if self.how == "past":
            return F.cross_entropy(self.net((x - 1.0) / 0.3), y)
        if self.how in ("swapped", "flat"):
            return F.cross_entropy(self(x.view(len(x), -1)), y)
        call = self.forward if self.how == "direct" else self
        return F.cross_entropy(call((x - 1.0) / 0.3), y)


@pytest.mark.parametrize("part", [None, "net"])
@pytest.mark.parametrize("how", ["scaled", "direct", "past", "swapped", "flat"])
def test_the_examples_are_what_training_step_gives_to_the_network(tmp_path, how, part):
    x, y = blobs().tensors
    shaped = x.reshape(48, 2, 3) if how in ("swapped", "flat") else x
    data = [(y[i], shaped[i]) if how == "swapped" else (shaped[i], y[i]) for i in range(48)]
    module = Preparing(how)
    initial = {name: value.clone() for name, value in module.state_dict().items()}
    for loss in ([], [PlasticityOrderParameter(START)]):
        module.load_state_dict(initial)
        callback = Thermometer(
            probe=48, callbacks=[*loss, CircuitSymmetry(START, START)], module=part
        )
        with notices() as told:
            make_trainer(tmp_path / str(len(loss)), callback).fit(module, loader(data))
        assert told == []
        outputs, indices = values(callback, SUMS)
        module.load_state_dict(initial)
        seen = x if how in ("swapped", "flat") else (x - 1.0) / 0.3
        with torch.no_grad():
            expected = module.net(seen)[indices].gather(1, y[indices, None])
        np.testing.assert_allclose(outputs, expected[:, 0].numpy(), rtol=1e-5, atol=1e-6)


def test_a_step_that_goes_past_the_forward_by_several_children_names_the_cure(tmp_path):
    class Several(Preparing):
        def __init__(self):
            super().__init__("past")
            self.head = nn.Linear(3, 3)

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.head(self.net(batch[0])), batch[1])

    told = fit(tmp_path, Several(), circuits(schedule=START))
    assert "the loss of Several does not call its forward" in told[0]
    assert "not one but net, head: name the part to read by module=" in told[0]


def test_a_loss_fn_beside_a_part_is_of_its_output(tmp_path):
    module = Preparing("past")
    initial = {name: value.clone() for name, value in module.state_dict().items()}
    callback = plan(module="net", loss_fn=F.cross_entropy)
    assert fit(tmp_path, module, callback) == []
    losses, indices = values(callback, BULK)
    module.load_state_dict(initial)
    x, y = blobs().tensors
    with torch.no_grad():
        expected = F.cross_entropy(module.net(x), y, reduction="none")[indices]
    np.testing.assert_allclose(losses, expected.numpy(), rtol=1e-5)


def step_of(module: Any, batch: Any) -> torch.Tensor:
    if isinstance(batch, dict):
        batch = batch["x"], batch["y"]
    return F.cross_entropy(module.net(batch[0]), batch[1])


@pytest.mark.parametrize("kind", ["pair", "dict"])
@pytest.mark.parametrize("calls", ["forward", "net"])
def test_the_last_part_is_that_of_the_forward_and_never_of_the_loss(kind, calls):
    x, y = blobs().tensors
    x[3] = torch.nan
    batch = {"x": x, "y": y} if kind == "dict" else (x, y)
    flat = (
        (lambda model, b: step_of(model, b))
        if calls == "net"
        else (lambda model, b: model(b["x"] if kind == "dict" else b[0]).sum())
    )
    assert examples_of(Classifier(), "net", [batch], flat)[3]
    assert not examples_of(Classifier(), "net.0", [batch], flat)[3]
    assert not examples_of(Scaled(behind=2.0), "net", [batch], flat)[3]


def test_inputs_that_are_no_numbers_to_be_scaled_are_told_once(tmp_path):
    class Words(Classifier):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(24, 3))

    data = [(torch.arange(6) % 9, i % 3) for i in range(48)]
    callback = circuits(schedule=Every(steps=1))
    with notices() as told:
        make_trainer(tmp_path, callback).fit(Words(), loader(data))
    assert len(told) == 2, told
    assert "are skipped from step 0 on: Words gets torch.int64" in told[0]
    assert "name by module= the part behind the embedding" in told[0]


def test_a_loss_fn_and_a_step_that_prepares_the_inputs_name_the_cure_once(tmp_path):
    x, y = blobs().tensors
    data = [(x[i].reshape(2, 3), y[i]) for i in range(48)]
    for part in (None, "net"):
        callback = circuits(schedule=Every(steps=1), module=part)
        bundle = Thermometer(probe=48, callbacks=[callback], loss_fn=F.cross_entropy)
        with notices() as told:
            make_trainer(tmp_path / str(part), bundle).fit(Preparing("flat"), loader(data))
        assert len(told) == 2, told
        assert "are skipped from step 0 on: Preparing cannot be " in told[0]
        assert "name by module= the part" in told[0]
