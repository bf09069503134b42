"""The states of a network as the fixed point of its one-step map, by iteration."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torch_thermo.network.stages import flat

if TYPE_CHECKING:
    from torch_thermo.network.network import Network

__all__ = ["FixedPoint", "fixed_point", "settled"]


@dataclass(frozen=True)
class FixedPoint:
    """States with ``x = f(w x + b) + r``, and whether the iteration got there.

    Attributes:
        states: one ``(B, *stage.shape)`` a stage, the output last: for a sample that did not
            converge the last iterate of finite numbers.
        logits: pre-activation of the last stage, from these states.
        converged: bool, ``(B,)``.
        diverged: bool, ``(B,)``: the iteration left the finite numbers.
        iterations: int64, ``(B,)``: how often the one-step map was applied to the sample.
    """

    states: list[Tensor]
    logits: Tensor
    converged: Tensor
    diverged: Tensor
    iterations: Tensor


def fixed_point(
    network: Network,
    inputs: Tensor,
    residuals: Sequence[Tensor] | None = None,
    damping: float = 0.0,
    steps: int = 1000,
    tol: float | None = None,
) -> FixedPoint:
    """See `Network.fixed_point`."""
    if not inputs.is_floating_point():
        raise ValueError(f"inputs must be floating-point numbers, got {inputs.dtype}")
    if inputs.shape[1:] != network.input_shape:
        shape = ", ".join(map(str, ("B", *network.input_shape)))
        raise ValueError(f"inputs must be of shape ({shape}), got {tuple(inputs.shape)}")
    if not 0 <= damping < 1:
        raise ValueError(f"damping must be at least 0 and less than 1, got {damping}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if tol is None:
        tol = torch.finfo(inputs.dtype).eps ** 0.75
    if not tol > 0:
        raise ValueError(f"tol must be greater than 0, got {tol}")
    if not network.is_recurrent:
        return _passed(network, inputs, residuals)
    samples = _Samples(network, inputs, residuals, damping)
    for _ in range(steps):
        samples.step(tol)
        if not len(samples.places):
            break
    return samples.result()


def settled(
    network: Network, inputs: Tensor, residuals: Sequence[Tensor] | None
) -> tuple[list[Tensor], Tensor]:
    """Return the states and logits of `fixed_point`, NaN for samples that did not converge."""
    found = fixed_point(network, inputs, residuals)
    missing = ~found.converged
    if not bool(missing.any()):
        return found.states, found.logits
    warnings.warn(
        f"{int(missing.sum())} of {len(inputs)} samples have no fixed point that the iteration "
        "x <- f(w x + b) reaches: their states are NaN; network.fixed_point(inputs, damping=0.5) "
        "may find them",
        stacklevel=3,
    )
    # added, so that shapes without axes are served too
    nan = torch.where(missing, torch.nan, 0).to(inputs)

    def marked(x: Tensor) -> Tensor:
        return x + nan.reshape(-1, *(1,) * (x.dim() - 1))

    return [marked(x) for x in found.states], marked(found.logits)


def _passed(network: Network, inputs: Tensor, residuals: Sequence[Tensor] | None) -> FixedPoint:
    states, logits = network.states(inputs, residuals)
    finite = torch.stack([flat(x.detach()).isfinite().all(1) for x in states]).all(0)
    return FixedPoint(states, logits, finite, ~finite, torch.ones_like(finite, dtype=torch.int64))


class _Samples:
    """The samples that are still iterated, and those that are done.

    Nothing is written in place, so that autograd follows the iteration.
    """

    def __init__(
        self,
        network: Network,
        inputs: Tensor,
        residuals: Sequence[Tensor] | None,
        damping: float,
    ) -> None:
        self._network = network
        self._all = inputs
        self._damping = damping
        count = len(inputs)
        self.places = torch.arange(count, device=inputs.device)
        self._inputs = inputs
        self._residuals = list(residuals or [])
        self._states = [inputs.new_zeros(count, *stage.shape) for stage in network.stages]
        self._done: list[tuple[Tensor, list[Tensor]]] = []
        self._converged = torch.zeros(count, dtype=torch.bool, device=inputs.device)
        self._diverged = torch.zeros_like(self._converged)
        self._iterations = torch.zeros_like(self.places)

    def step(self, tol: float) -> None:
        """Apply the map once; samples that arrive, or leave the finite numbers, are done."""
        new = self._network.one_step(self._inputs, self._states)
        for number, residual in enumerate(self._residuals):
            new[number] = new[number] + residual
        self._iterations[self.places] += 1
        change = _largest([a - x for a, x in zip(new, self._states, strict=True)])
        size = _largest(new)
        lost = ~(change.isfinite() & size.isfinite())
        arrived = (change <= tol * size.clamp(min=1)) & ~lost
        self._converged[self.places[arrived]] = True
        self._diverged[self.places[lost]] = True
        if bool(lost.any()):
            self._finish(lost, self._states)
        d = self._damping
        if d > 0:
            new = [(1 - d) * a + d * x for a, x in zip(new, self._states, strict=True)]
        if bool(arrived.any()):
            self._finish(arrived, new)
        self._states = new
        going = ~(arrived | lost)
        if not bool(going.all()):
            self.places, self._inputs = self.places[going], self._inputs[going]
            self._residuals = [r[going] for r in self._residuals]
            self._states = [x[going] for x in new]

    def result(self) -> FixedPoint:
        """Return all samples in their order."""
        self._done.append((self.places, self._states))
        back = torch.cat([places for places, _ in self._done]).argsort()
        parts = zip(*(states for _, states in self._done), strict=True)
        states = [torch.cat(part)[back] for part in parts]
        logits = self._network.pre_activations(self._all, states)[-1]
        return FixedPoint(states, logits, self._converged, self._diverged, self._iterations)

    def _finish(self, which: Tensor, states: list[Tensor]) -> None:
        self._done.append((self.places[which], [x[which] for x in states]))


def _largest(parts: Sequence[Tensor]) -> Tensor:
    """Return each sample's largest absolute number, ``(B,)``; NaN where one is."""
    return torch.cat([flat(x.detach()) for x in parts], 1).abs().amax(1)
