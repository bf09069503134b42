"""Labelled images, and the float tensors a network wants of them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "ImageData",
    "as_flat",
    "as_square",
    "binary_targets",
    "channel_statistics",
    "sign_targets",
    "standardise",
]


@dataclass(frozen=True)
class ImageData:
    """A labelled set of images, split into a training and a held-out part.

    Attributes:
        train_images: ``(n, channels, height, width)``, uint8.
        train_labels: ``(n,)``, int64, from 0 to ``classes - 1``.
        test_images: ``(m, channels, height, width)``, uint8.
        test_labels: ``(m,)``, int64.
        name: what captions and tables call it.
        class_names: one name a class.

    Raises:
        ValueError: the tensors do not have these shapes and types, a part is empty, or a label lies
            outside ``0 .. classes - 1``.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    name: str
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check shapes, types and labels."""
        for part in ("train", "test"):
            images, labels = getattr(self, f"{part}_images"), getattr(self, f"{part}_labels")
            if images.dtype != torch.uint8 or images.ndim != 4:
                raise ValueError(
                    f"{self.name}: {part}_images must be uint8 (n, channels, height, width), "
                    f"got {images.dtype} {tuple(images.shape)}"
                )
            if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
                raise ValueError(
                    f"{self.name}: {part}_labels must be int64 ({len(images)},), one an image, "
                    f"got {labels.dtype} {tuple(labels.shape)}"
                )
            if images.numel() == 0:
                raise ValueError(f"{self.name}: {part}_images is empty: {tuple(images.shape)}")
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or high >= self.classes:
                raise ValueError(
                    f"{self.name}: {part}_labels must lie in 0 .. {self.classes - 1}, "
                    f"got {low} .. {high}"
                )
        if self.train_images.shape[1:] != self.test_images.shape[1:]:
            raise ValueError(
                f"{self.name}: train and test images must have one shape, got "
                f"{tuple(self.train_images.shape[1:])} and {tuple(self.test_images.shape[1:])}"
            )

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(channels, height, width)`` of one image."""
        channels, height, width = self.train_images.shape[1:]
        return channels, height, width

    def subset(self, train: int | None = None, test: int | None = None, seed: int = 0) -> ImageData:
        """At most ``train`` training and ``test`` held-out images, drawn without replacement.

        They come in random order, so that files sorted by label need no care.

        Args:
            train: how many training images to draw; None, or more than there are, takes all.
            test: the same of the held-out images.
            seed: of the draw.

        Raises:
            ValueError: a count is below 1.
        """
        generator = torch.Generator().manual_seed(seed)
        drawn: list[Tensor] = []
        for part, count in (("train", train), ("test", test)):
            if count is not None and count < 1:
                raise ValueError(f"{part} must be at least 1, got {count}")
            images, labels = getattr(self, f"{part}_images"), getattr(self, f"{part}_labels")
            order = torch.randperm(len(labels), generator=generator)[:count]
            drawn += [images[order], labels[order]]
        return ImageData(drawn[0], drawn[1], drawn[2], drawn[3], self.name, self.class_names)


def as_flat(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Pixels in [0, 1] as rows.

    Args:
        images: ``(n, channels, height, width)``, uint8.
        dtype: of the result.

    Returns:
        ``(n, channels * height * width)``.
    """
    return images.flatten(1).to(dtype) / 255


def as_square(images: Tensor, size: int = 32, dtype: torch.dtype = torch.float32) -> Tensor:
    """Pixels in [0, 1] on a ``size`` x ``size`` grid.

    Images that miss less than a quarter of the side (28 of 32) get a black border, so that no pixel
    is blurred; all others are resized bilinearly.

    Args:
        images: ``(n, channels, height, width)``, uint8.
        size: height and width of the result, at least 1.
        dtype: of the result.

    Returns:
        ``(n, channels, size, size)``.

    Raises:
        ValueError: ``size`` is below 1.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    height, width = images.shape[-2:]
    pixels = images.to(dtype) / 255
    down, across = size - height, size - width
    if 0 <= down < size / 4 and 0 <= across < size / 4:
        top, left = down // 2, across // 2
        return functional.pad(pixels, (left, across - left, top, down - top))
    return functional.interpolate(
        pixels, (size, size), mode="bilinear", antialias=True, align_corners=False
    )


def channel_statistics(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, over images and positions.

    Args:
        pixels: ``(n, channels, height, width)``, floating.

    Returns:
        Two tensors ``(channels,)``.
    """
    std, mean = torch.std_mean(pixels.double(), dim=(0, 2, 3), correction=0)
    return mean.to(pixels.dtype), std.to(pixels.dtype)


def standardise(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """``(pixels - mean) / std`` a channel; use the training part's statistics for both parts.

    A channel that does not vary (std 0) is only centred.

    Args:
        pixels: ``(n, channels, height, width)``, floating.
        mean: ``(channels,)``.
        std: ``(channels,)``.

    Returns:
        The shape and type of ``pixels``.
    """
    scale = torch.where(std > 0, std, torch.ones_like(std))
    return (pixels - mean[:, None, None]) / scale[:, None, None]


def binary_targets(
    labels: Tensor, positive: Collection[int], dtype: torch.dtype = torch.float32
) -> Tensor:
    """The labels of a two-class problem: +1 for the classes in ``positive``, -1 for all others.

    Args:
        labels: ``(n,)``, integers.
        positive: the classes that become +1.
        dtype: of the result.

    Returns:
        ``(n,)``.

    Raises:
        ValueError: ``positive`` is empty.
    """
    if not positive:
        raise ValueError("positive must name at least one class, got none")
    chosen = torch.isin(labels, torch.tensor(sorted(positive), dtype=labels.dtype))
    return torch.where(chosen, 1.0, -1.0).to(dtype)


def sign_targets(labels: Tensor, classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """One output a class: +1 at the label, -1 elsewhere.

    Args:
        labels: ``(n,)``, integers.
        classes: number of outputs.
        dtype: of the result.

    Returns:
        ``(n, classes)``.
    """
    return 2 * functional.one_hot(labels, classes).to(dtype) - 1
