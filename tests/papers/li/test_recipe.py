"""What is trained on what."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from tests.papers.li.support import NAMES, pictures, write_pictures
from torch_thermo import data
from torch_thermo.papers.li.recipe import (
    BUDGETS,
    EPOCHS,
    NETS,
    Pictures,
    load_pictures,
    measured_epochs,
    recipe,
)
from torch_thermo.systems import VGG, ResNet


def test_two_classes_are_taken_and_standardised(tmp_path):
    path = write_pictures(tmp_path)
    found = load_pictures(path)
    images = data.load(path)
    kept = images.train_labels < 2
    inputs, y = found.train.tensors
    assert torch.equal(y, images.train_labels[kept] * 2.0 - 1)
    torch.testing.assert_close(inputs.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    pixels = data.as_square(images.train_images[kept])
    held_out = data.as_square(images.test_images[images.test_labels < 2])
    expected = data.standardise(held_out, *data.channel_statistics(pixels))
    torch.testing.assert_close(found.test.tensors[0], expected)
    assert found.test.tensors[1].tolist() == [-1, 1] * 5


def test_so_many_are_drawn_the_same_each_time(tmp_path):
    path = write_pictures(tmp_path)
    few, again, all_of_them = load_pictures(path, 10), load_pictures(path, 10), load_pictures(path)
    assert (len(few), len(all_of_them)) == (10, 24)
    assert torch.equal(few.train.tensors[0], again.train.tensors[0])
    assert few.fingerprint == again.fingerprint != all_of_them.fingerprint
    assert len(load_pictures(path, 100)) == 24


def test_the_fingerprint_sees_labels_and_held_out_images(tmp_path):
    found = pictures(tmp_path)
    (x, y), (test_x, test_y) = found.train.tensors, found.test.tensors
    others = (
        replace(found, train=TensorDataset(x, -y)),
        replace(found, test=TensorDataset(test_x + 1, test_y)),
    )
    assert len({found.fingerprint, *(other.fingerprint for other in others)}) == 3


def test_recompressed_images_are_called_so(tmp_path):
    assert load_pictures(write_pictures(tmp_path)).note == ""
    found = load_pictures(write_pictures(tmp_path, "cifar10_jpeg"))
    assert found.note == "images recompressed as JPEG"


@pytest.mark.parametrize("strange", [0.0, 2.0, -0.5])
def test_labels_outside_plus_and_minus_1_are_refused(tmp_path, strange):
    found = pictures(tmp_path)
    x, y = found.train.tensors
    y[3] = strange
    with pytest.raises(ValueError, match=rf"labels must be \+1 or -1, got {strange:g}"):
        Pictures(TensorDataset(x, y), found.test, "strange")


def test_data_without_the_classes_are_refused(tmp_path):
    other = write_pictures(tmp_path, names=np.array(["airplane", "boat", "bird"]))
    with pytest.raises(ValueError, match="no automobile among the classes airplane, boat, bird"):
        load_pictures(other)
    empty = write_pictures(tmp_path, names=np.array([*NAMES[1:], "deer", "airplane"]))
    with pytest.raises(ValueError, match="a part of the data lacks one of"):
        load_pictures(empty)


def test_the_nets(tmp_path):
    found = pictures(tmp_path)
    for net in ("vgg", "vgg-ce"):
        assert isinstance(recipe("quick", net, found).network(0), VGG)
    paper = recipe("paper", "vgg", found)
    assert sum(p.numel() for p in paper.network(0).parameters()) == 9_664_704
    assert paper.budget.epochs == EPOCHS[-1] == 300
    residual = recipe("quick", "resnet", found)
    assert isinstance(residual.network(0), ResNet)
    first, again = residual.network(3), residual.network(3)
    assert torch.equal(first.classifier.weight, again.classifier.weight)
    assert residual.steps_per_epoch == 1
    assert {kind.loss for kind in NETS.values()} == {"hinge", "cross entropy"}


def test_a_setting_tells_trainings_apart(tmp_path):
    found = pictures(tmp_path)
    settings = [str(recipe("quick", net, found).setting(found, 0)) for net in NETS]
    settings.append(str(recipe("quick", "vgg", found).setting(found, 1)))
    settings.append(str(recipe("paper", "vgg", found).setting(found, 0)))
    assert len(set(settings)) == len(settings)


def test_unknown_budgets_and_nets_are_refused(tmp_path):
    found = pictures(tmp_path)
    with pytest.raises(ValueError, match="budget must be quick or paper, got 'huge'"):
        recipe("huge", "vgg", found)
    with pytest.raises(ValueError, match="net must be of vgg, vgg-ce, resnet, got 'mlp'"):
        recipe("quick", "mlp", found)


def test_the_measured_epochs_of_a_longer_training_are_those_of_a_shorter_one():
    assert set(EPOCHS) < set(measured_epochs(300))
    assert measured_epochs(300, early=False) == EPOCHS
    assert measured_epochs(33, early=False) == (0, 10, 20, 30, 33)
    for short in (1, 12, BUDGETS["quick"].epochs):
        assert measured_epochs(short)[-1] == short
        assert set(measured_epochs(short)[:-1]) <= set(measured_epochs(300))
