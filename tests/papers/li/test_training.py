"""A training against torch alone, and against one that was broken off."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.papers.li.support import Little, LittleRecipe, little_measured, pictures, seconds
from torch_thermo.papers.li import training
from torch_thermo.papers.li.measuring import thermometer
from torch_thermo.papers.li.recipe import NETS
from torch_thermo.papers.li.training import EpochOrder, train
from torch_thermo.papers.recipes import Hinge
from torch_thermo.store import load_run


def small(found, net="vgg", **changes):
    return LittleRecipe(net, replace(seconds(), **changes), len(found), 3)


@pytest.fixture
def light(monkeypatch):
    """Measure little: products with the Hessian take longer than these trainings."""
    monkeypatch.setattr(training, "thermometer", little_measured)


def weights(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def series(run):
    return {
        name: (run.series(name).steps.tolist(), run.series(name).values.tolist())
        for name in run.names
    }


def same(first, second):
    """Whether two runs hold the same numbers, NaN for NaN, and the same arrays."""
    ours, others = series(first), series(second)
    assert ours.keys() == others.keys()
    for name, (steps, values) in ours.items():
        assert steps == others[name][0], name
        np.testing.assert_array_equal(values, others[name][1], err_msg=name)
    assert first.array_steps("weight_symmetry") == second.array_steps("weight_symmetry")


def test_the_order_is_that_of_seed_and_epoch():
    order = EpochOrder(50, seed=3)
    orders = []
    for epoch in (0, 1, 0):
        order.set_epoch(epoch)
        orders.append(list(order))
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[1]) == list(range(50))
    assert len(order) == 50
    assert list(EpochOrder(50, seed=4)) != orders[0]


def test_what_is_stored_is_the_training_by_torch(tmp_path, light):
    found = pictures(tmp_path)
    recipe = small(found)
    run = train(tmp_path, recipe, found, seed=1)
    network = recipe.network(1)
    optimizer = torch.optim.SGD(network.parameters(), lr=NETS["vgg"].rate)
    (x, y), (test_x, test_y) = found.train.tensors, found.test.tensors
    risks, accuracies = [], []
    for epoch in range(3):
        with torch.no_grad():
            risks.append(float(Hinge()(network(x), y)))
            accuracies.append(float((network(test_x) * test_y > 0).float().mean()))
        order = EpochOrder(len(found), 1)
        order.set_epoch(epoch)
        for chosen in torch.tensor(list(order)).split(recipe.budget.batch):
            optimizer.zero_grad()
            Hinge()(network(x[chosen]), y[chosen]).backward()
            optimizer.step()
        if epoch == 1:
            trained = {name: weight.clone() for name, weight in network.state_dict().items()}
    course = run.series("training/train_risk")
    assert course.epochs.tolist() == [0, 1, 2]
    np.testing.assert_allclose(course.values, risks, rtol=1e-4)
    assert run.series("training/test_accuracy").values == pytest.approx(accuracies)
    assert set(run.series("training/eta").values) == {NETS["vgg"].rate}
    stored = weights(recipe.folder(tmp_path, 1))
    for name, weight in trained.items():
        torch.testing.assert_close(stored[f"network.{name}"], weight, rtol=1e-4, atol=1e-6)
    assert abs(risks[0] - risks[2]) > 1e-3


def test_a_broken_off_training_ends_with_the_same_bits(tmp_path, light):
    found = pictures(tmp_path)
    recipe = small(found)
    whole = train(tmp_path / "whole", recipe, found, seed=0, epochs=3)

    class Killed(Exception):
        pass

    def die(what, done, total):
        if done == 2:  # before this epoch's checkpoint, after its measurements
            raise Killed

    with pytest.raises(Killed):
        train(tmp_path / "broken", recipe, found, seed=0, epochs=3, progress=die)
    folder = recipe.folder(tmp_path / "broken", 0)
    assert load_run(folder).series("training/train_risk").epochs.tolist() == [0, 1, 2]
    seen = []
    resumed = train(
        tmp_path / "broken", recipe, found, 0, 3, lambda what, done, total: seen.append(done)
    )
    assert seen == [2, 3]
    for name, weight in weights(recipe.folder(tmp_path / "whole", 0)).items():
        assert torch.equal(weight, weights(folder)[name]), name
    same(resumed, whole)


def test_a_finished_training_is_left_and_a_longer_one_goes_on(tmp_path, light):
    found = pictures(tmp_path)
    recipe = small(found, epochs=1)
    train(tmp_path, recipe, found, seed=0)
    folder = recipe.folder(tmp_path, 0)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    again = train(tmp_path, recipe, found, seed=0)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    seen = []
    longer = train(tmp_path, recipe, found, 0, 2, lambda what, done, total: seen.append(done))
    assert seen == [2]
    assert longer.id == again.id
    assert longer.series("training/train_risk").epochs.tolist() == [0, 1, 2]
    whole = train(tmp_path / "whole", recipe, found, seed=0, epochs=2)
    for name, weight in weights(recipe.folder(tmp_path / "whole", 0)).items():
        assert torch.equal(weight, weights(folder)[name]), name
    same(longer, whole)
    assert longer.meta["epochs"] == 2


def test_another_training_is_not_gone_on_with(tmp_path, light):
    found = pictures(tmp_path)
    recipe = small(found, epochs=1)
    train(tmp_path, recipe, found, seed=0)
    with pytest.raises(ValueError, match="another training, of batch 5 instead of 4: name another"):
        train(tmp_path, small(found, batch=4), found, seed=0, epochs=2)
    checkpoint = recipe.folder(tmp_path, 0) / "checkpoints" / "last.ckpt"
    checkpoint.write_bytes(b"rubbish")
    with pytest.raises(ValueError, match=r"last\.ckpt is damaged") as caught:
        train(tmp_path, recipe, found, seed=0)
    # torch's own words advise to run whatever the file holds
    assert "weights_only" not in str(caught.value)


def test_the_store_says_what_was_trained(tmp_path, light):
    found = pictures(tmp_path)
    meta = train(tmp_path, small(found, "resnet", epochs=1), found, seed=0).meta
    assert (meta["net"], meta["loss"], meta["budget"]) == ("resnet", "cross entropy", "quick")
    assert meta["classes"] == ["airplane", "automobile"]
    assert (meta["samples"], meta["steps_per_epoch"], meta["epochs"]) == (12, 3, 1)
    assert meta["parameters"] == sum(p.numel() for p in Little(0).parameters())
    assert meta["fingerprint"] == found.fingerprint
    assert meta["held_out"] == len(found.test)


def test_all_is_measured_without_a_remark(measured, tmp_path):
    assert measured.run.meta["skipped"] == {}
    planned = set(thermometer(measured.recipe, pictures(tmp_path), 1, 0).observables())
    assert {name.partition("/")[0] for name in measured.run.names} == planned
    assert {
        "training",
        "phase",
        "assumptions",
        "hessian_entries",
        "circuit_sample_order2",
    } < planned
    assert [text for text in measured.warned if "torch-thermo" in text] == []


@pytest.mark.parametrize(("net", "solved"), [("vgg", False), ("vgg-ce", True)])
def test_what_counts_as_solved_is_the_losses_own(tmp_path, net, solved):
    """A cross entropy never is 0."""
    found = pictures(tmp_path)
    (tolerance,) = {
        member.tolerance
        for member in thermometer(small(found, net), found, 1, 0).members()
        if member.observable == "phase"
    }
    assert tolerance == NETS[net].floor
    assert (tolerance > 0) == solved
