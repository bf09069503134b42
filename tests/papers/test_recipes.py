from __future__ import annotations

import pytest
import torch

from torch_thermo import data
from torch_thermo.data import ImageData
from torch_thermo.papers import recipes


def images(classes: int = 4) -> ImageData:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (20, 3, 6, 6), generator=generator).byte()
    labels = torch.arange(20) % classes
    names = tuple(str(i) for i in range(classes))
    return ImageData(pixels, labels, pixels[:10], labels[:10], "noise", names)


def test_recipes_fit_the_data():
    tanh = recipes.tanh_recipe(images())
    assert tanh.network().sizes == (108, 40, 20, 4)
    assert tanh.train.tensors[1].unique().tolist() == [-1, 1]
    vgg = recipes.vgg_recipe(images())
    inputs, targets = vgg.train.tensors
    assert inputs.shape == (20, 3, 32, 32)
    torch.testing.assert_close(inputs.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    assert targets.tolist() == [-1 if label < 2 else 1 for label in images().train_labels]
    mean, std = data.channel_statistics(data.as_square(images().train_images))
    held_out = data.standardise(data.as_square(images().test_images), mean, std)
    torch.testing.assert_close(vgg.test.tensors[0], held_out)
    assert vgg.network()(inputs).shape == (20,)
    with pytest.raises(ValueError, match="a binary problem needs 2 classes, got 1"):
        recipes.vgg_recipe(images(classes=1))


def test_the_losses():
    output, target = torch.tensor([[0.5, -1.0], [1.0, 0.0]]), torch.tensor([[1.0, -1], [1, -1]])
    assert recipes.SquaredError()(output, target).item() == pytest.approx(0.5 * (0.25 + 1) / 2)
    scores, signs = torch.tensor([2.0, -0.5, 0.25]), torch.tensor([1.0, -1, -1])
    assert recipes.Hinge()(scores, signs).item() == pytest.approx((0 + 0.5 + 1.25) / 3)
    expected = (1 + torch.exp(-signs * scores)).log().mean()
    torch.testing.assert_close(recipes.CrossEntropy()(scores, signs), expected)
    large = recipes.CrossEntropy()(torch.tensor([300.0]), torch.tensor([-1.0]))
    assert large.item() == 300


@pytest.mark.parametrize("criterion", [recipes.Hinge, recipes.CrossEntropy])
@pytest.mark.parametrize("strange", [0.0, 2.0, 0.5])
def test_labels_outside_plus_and_minus_1_are_refused(criterion, strange):
    module = recipes.Classifier(torch.nn.Flatten(0), criterion(), 0.1)
    inputs, labels = torch.zeros(3, 1), torch.tensor([1.0, -1.0, strange])
    with pytest.raises(ValueError, match=rf"labels must be \+1 or -1, got {strange:g}"):
        module.training_step((inputs, labels), 0)
