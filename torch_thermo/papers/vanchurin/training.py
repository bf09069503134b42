"""Training: all seeds of a net at once, kept at some epochs, resumable bit for bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from torch_thermo.papers.progress import Progress
from torch_thermo.papers.vanchurin.online import OnlineTrainer
from torch_thermo.papers.vanchurin.recipe import Digits, Recipe, snapshot_epochs
from torch_thermo.papers.vanchurin.snapshots import Checkpoint, clean_up, save_snapshot

__all__ = ["BatchedTrainer", "train"]

Weights: TypeAlias = dict[str, Tensor]

# Epochs between two checkpoints, besides those at snapshots.
_CHECKPOINT_EPOCHS = 100


class _Trainer(Protocol):
    def epoch(self, orders: Tensor) -> None: ...

    def weights(self) -> list[Weights]: ...


class BatchedTrainer:
    """Several tanh networks of one shape and their SGD, in one run of batched matrices.

    Network s takes its own steps on its own order of the samples: each does what it would do alone
    under ``torch.optim.SGD`` on ``1/2 |t - o|^2``, averaged over a batch, up to rounding. The
    gradient is written out: with error ``e = (o - t)(1 - o^2) / batch`` of the last layer and
    ``(1 - x^2) W^T e`` of those before it is ``e x^T``, which one call adds to the weights.

    Args:
        networks: {name: parameter} of each, as `TanhMLP` names them.
        inputs: (B, inputs).
        targets: (B, outputs).
        batch: samples a step.
        rate: learning rate.
    """

    def __init__(
        self,
        networks: Sequence[Mapping[str, Tensor]],
        inputs: Tensor,
        targets: Tensor,
        batch: int,
        rate: float,
    ) -> None:
        self._names = list(networks[0])
        stacked = [torch.stack([n[name].detach() for n in networks]) for name in self._names]
        self._matrices = stacked[::2]
        self._biases = [bias[:, None] for bias in stacked[1::2]]
        self._inputs = inputs.to(stacked[0].dtype)
        self._targets = targets.to(stacked[0].dtype)
        self._batch, self._rate = batch, rate

    def epoch(self, orders: Tensor) -> None:
        """Take the steps of an epoch.

        Args:
            orders: (networks, B), int64: the samples in the order each network takes them.
        """
        for chosen in orders.split(self._batch, dim=1):
            # twice as fast as an index of two dimensions
            flat = chosen.flatten()
            self._step(
                self._inputs.index_select(0, flat).unflatten(0, chosen.shape),
                self._targets.index_select(0, flat).unflatten(0, chosen.shape),
            )

    def _step(self, inputs: Tensor, targets: Tensor) -> None:
        """One update on (networks, batch, inputs) and (networks, batch, outputs)."""
        states = [inputs]
        for matrix, bias in zip(self._matrices, self._biases, strict=True):
            states.append(torch.baddbmm(bias, states[-1], matrix.mT).tanh_())
        output = states.pop()
        error = (output - targets).mul_(1 - output * output).div_(inputs.shape[1])
        for layer in reversed(range(len(states))):
            below, matrix = states[layer], self._matrices[layer]
            passed = torch.bmm(error, matrix).mul_(1 - below * below) if layer else error
            matrix.baddbmm_(error.mT, below, alpha=-self._rate)
            self._biases[layer].sub_(error.sum(1, keepdim=True), alpha=self._rate)
            error = passed

    def weights(self) -> list[Weights]:
        """Copies of each network's parameters."""
        tensors = [
            tensor
            for matrix, bias in zip(self._matrices, self._biases, strict=True)
            for tensor in (matrix, bias[:, 0])
        ]
        return [
            {name: tensor[k].clone() for name, tensor in zip(self._names, tensors, strict=True)}
            for k in range(len(tensors[0]))
        ]


class _Online:
    """The compiled loop, for one network."""

    def __init__(
        self, network: Mapping[str, Tensor], inputs: Tensor, targets: Tensor, rate: float
    ) -> None:
        self._names = list(network)
        tensors = list(network.values())
        self._trainer = OnlineTrainer(tensors[::2], tensors[1::2], inputs, targets, rate)

    def epoch(self, orders: Tensor) -> None:
        self._trainer.epoch(orders[0])

    def weights(self) -> list[Weights]:
        pairs = zip(self._trainer.weights, self._trainer.biases, strict=True)
        tensors = [tensor for pair in pairs for tensor in pair]
        return [dict(zip(self._names, tensors, strict=True))]


def train(
    out: Path,
    recipe: Recipe,
    digits: Digits,
    epochs: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Train the seeds of a net, or go on where they were left.

    Each leaves its weights at `snapshot_epochs` and a checkpoint in `Recipe.folder`. A training
    that was broken off and resumed ends with the same bits as one that was not. What is trained far
    enough is left as it is; a longer one goes on from there.

    Batches of one are trained by the compiled loop in float64, others in float32.

    Args:
        out: the folder of all budgets.
        recipe: what to train.
        digits: the data.
        epochs: None takes the budget's.
        progress: told of each epoch.

    Raises:
        ValueError: ``epochs`` is below 1, or the folder holds another training or a damaged
            checkpoint.
        ModuleNotFoundError: batches of one need numba; nothing is written then.
    """
    last = recipe.budget.epochs if epochs is None else epochs
    due = snapshot_epochs(last, recipe.budget.per_decade)
    standing: dict[int, list[tuple[int, Checkpoint]]] = {}
    for seed in recipe.budget.seeds:
        clean_up(recipe.folder(out, seed))
        point = _standing(recipe, digits, seed, recipe.folder(out, seed))
        standing.setdefault(point.epoch, []).append((seed, point))
    # together, but for those whose last checkpoint a break-off has prevented
    for start, group in sorted(standing.items()):
        if start < last:
            _go_on(out, recipe, digits, group, due, progress)


def _go_on(
    out: Path,
    recipe: Recipe,
    digits: Digits,
    group: list[tuple[int, Checkpoint]],
    due: list[int],
    progress: Progress | None,
) -> None:
    """Train some seeds from where they all stand to the last epoch that is due."""
    start, last = group[0][1].epoch, due[-1]
    folders = [recipe.folder(out, seed) for seed, _ in group]
    generators = [torch.Generator() for _ in group]
    for generator, (_, point) in zip(generators, group, strict=True):
        generator.set_state(point.generator)
    trainer = _trainer(recipe, digits, [point.weights for _, point in group])
    if start == 0:  # not before there is a trainer: without numba no folder is left behind
        for folder, (_, point) in zip(folders, group, strict=True):
            save_snapshot(folder, 0, point.weights)
            point.save(folder)
    for epoch in range(start + 1, last + 1):
        orders = [torch.randperm(len(digits), generator=generator) for generator in generators]
        trainer.epoch(torch.stack(orders))
        kept = epoch in due
        if kept or epoch % _CHECKPOINT_EPOCHS == 0:
            found = zip(folders, trainer.weights(), generators, group, strict=True)
            for folder, weights, generator, (_, point) in found:
                if kept:
                    save_snapshot(folder, epoch, weights)
                Checkpoint(epoch, weights, generator.get_state(), point.setting).save(folder)
        if progress is not None:
            progress(f"training the {recipe.net} net", epoch, last)


def _standing(recipe: Recipe, digits: Digits, seed: int, folder: Path) -> Checkpoint:
    """The last checkpoint of a seed; that of its beginning where there is none."""
    setting = recipe.setting(digits, seed)
    found = Checkpoint.load(folder, setting)
    if found is None:
        dtype = torch.float64 if recipe.budget.batch == 1 else torch.float32
        weights = {
            name: weight.detach().to(dtype)
            for name, weight in recipe.network(seed).named_parameters()
        }
        found = Checkpoint(0, weights, torch.Generator().manual_seed(seed).get_state(), setting)
    return found


def _trainer(recipe: Recipe, digits: Digits, networks: list[Weights]) -> _Trainer:
    budget = recipe.budget
    if budget.batch == 1 and len(networks) == 1:
        return _Online(networks[0], digits.inputs, digits.targets, budget.rate)
    return BatchedTrainer(networks, digits.inputs, digits.targets, budget.batch, budget.rate)
