"""Online SGD of the tanh network, compiled: the paper's 10,000 epochs in minutes.

A step of batch 1 is some thousand multiplications, and torch needs about twenty calls for it, each
dearer than that. Here an epoch is one compiled loop, and the first layer, where nearly all weights
are, touches only the rows of the pixels that are not 0: four of five MNIST pixels are.

numba does the compiling; it is imported when it is used: ``pip install "torch-thermo[papers]"``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["OnlineTrainer"]

Floats: TypeAlias = npt.NDArray[np.float64]
Integers: TypeAlias = npt.NDArray[np.int64]

EXTRA = 'pip install "torch-thermo[papers]"'


class OnlineTrainer:
    """A tanh network and its online SGD, float64.

    One step is ``w <- w - rate d/dw 1/2 |t - o(x)|^2`` of one sample: exactly a step of
    ``torch.optim.SGD`` without momentum on a batch of one, up to rounding.

    Args:
        weights: a matrix (outputs, inputs) each layer, the first first.
        biases: a vector (outputs,) each layer.
        inputs: (B, inputs); zeros cost nothing.
        targets: (B, outputs).
        rate: learning rate.

    Raises:
        ValueError: shapes that do not follow from each other.
        ModuleNotFoundError: numba is not installed.
    """

    def __init__(
        self,
        weights: list[Tensor],
        biases: list[Tensor],
        inputs: Tensor,
        targets: Tensor,
        rate: float,
    ) -> None:
        sizes = [inputs.shape[1], *(len(bias) for bias in biases)]
        shapes = list(zip(sizes[1:], sizes[:-1], strict=True))
        if [tuple(weight.shape) for weight in weights] != shapes:
            raise ValueError(
                f"weights must have shapes {shapes}, got {[tuple(w.shape) for w in weights]}"
            )
        if targets.shape != (len(inputs), sizes[-1]):
            raise ValueError(
                f"targets must have shape {(len(inputs), sizes[-1])}, got {tuple(targets.shape)}"
            )
        # Columns of W as rows: those of a pixel lie side by side.
        self._weights = tuple(_floats(weight.T) for weight in weights)
        self._biases = tuple(_floats(bias) for bias in biases)
        self._targets = _floats(targets)
        dense = _floats(inputs)
        samples, columns = dense.nonzero()
        self._columns: Integers = columns.astype(np.int64)
        self._values: Floats = dense[samples, columns]
        self._starts: Integers = np.searchsorted(samples, np.arange(len(dense) + 1)).astype(
            np.int64
        )
        self._rate = float(rate)
        self._run = _compiled()

    def epoch(self, order: Tensor) -> None:
        """Take one step for each sample of ``order``, int64, entries from 0 to B - 1.

        Raises:
            ValueError: an entry of ``order`` is no sample.
        """
        chosen: Integers = np.ascontiguousarray(order.numpy(), dtype=np.int64)
        # The compiled loop checks no bounds.
        if chosen.size and not 0 <= chosen.min() <= chosen.max() < len(self._targets):
            raise ValueError(f"order must lie in 0 .. {len(self._targets) - 1}")
        states = tuple(np.empty_like(bias) for bias in self._biases)
        errors = tuple(np.empty_like(bias) for bias in self._biases)
        self._run(
            chosen,
            self._starts,
            self._columns,
            self._values,
            self._targets,
            self._weights,
            self._biases,
            states,
            errors,
            self._rate,
        )

    @property
    def weights(self) -> list[Tensor]:
        """Copies of the matrices, (outputs, inputs) each, float64."""
        return [torch.from_numpy(weight.T.copy()) for weight in self._weights]

    @property
    def biases(self) -> list[Tensor]:
        """Copies of the biases, float64."""
        return [torch.from_numpy(bias.copy()) for bias in self._biases]


def _floats(tensor: Tensor) -> Floats:
    # A copy always: training must not reach into the caller's tensors.
    return np.array(tensor.detach().numpy(), dtype=np.float64, order="C")


@cache
def _compiled() -> Callable[..., None]:
    try:
        numba: Any = import_module("numba")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"online training needs numba: {EXTRA}") from error
    # Sums may be reordered, so that they are taken several terms at once; NaN stays NaN. Nothing is
    # cached on disk: compiling takes seconds, and an installed package may not be writable.
    compiled: Callable[..., None] = numba.njit(fastmath={"reassoc", "contract"})(_steps)
    return compiled


def _steps(
    order: Integers,
    starts: Integers,
    columns: Integers,
    values: Floats,
    targets: Floats,
    weights: tuple[Floats, ...],
    biases: tuple[Floats, ...],
    states: tuple[Floats, ...],
    errors: tuple[Floats, ...],
    rate: float,
) -> None:
    """One step for each sample of ``order``; weights are (inputs, outputs) and change in place.

    The error of the last layer is ``(o - t)(1 - o^2)``, that of a layer before
    ``(1 - x^2) W^T error``; the gradient is ``error x^T``. Sample n's nonzero pixels are
    ``columns[starts[n] : starts[n + 1]]``.
    """
    depth = len(weights)
    for n in order:
        for layer in range(depth):
            weight, bias, state = weights[layer], biases[layer], states[layer]
            width = state.shape[0]
            for j in range(width):
                state[j] = bias[j]
            if layer == 0:
                for k in range(starts[n], starts[n + 1]):
                    i, x = columns[k], values[k]
                    for j in range(width):
                        state[j] += x * weight[i, j]
            else:
                below = states[layer - 1]
                for i in range(below.shape[0]):
                    x = below[i]
                    for j in range(width):
                        state[j] += x * weight[i, j]
            for j in range(width):
                state[j] = np.tanh(state[j])
        output, error = states[depth - 1], errors[depth - 1]
        for j in range(output.shape[0]):
            error[j] = (output[j] - targets[n, j]) * (1.0 - output[j] * output[j])
        for layer in range(depth - 1, 0, -1):
            weight, bias, error = weights[layer], biases[layer], errors[layer]
            below, passed = states[layer - 1], errors[layer - 1]
            width = error.shape[0]
            for i in range(below.shape[0]):
                x = below[i]
                total = 0.0
                for j in range(width):
                    total += weight[i, j] * error[j]
                passed[i] = total * (1.0 - x * x)
                x *= rate
                for j in range(width):
                    weight[i, j] -= x * error[j]
            for j in range(width):
                bias[j] -= rate * error[j]
        weight, bias, error = weights[0], biases[0], errors[0]
        width = error.shape[0]
        for k in range(starts[n], starts[n + 1]):
            i, x = columns[k], rate * values[k]
            for j in range(width):
                weight[i, j] -= x * error[j]
        for j in range(width):
            bias[j] -= rate * error[j]
