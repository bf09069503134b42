"""A LightningModule's shadow that can run a training step without a trace in the run."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from torch_thermo.callbacks._roots import LightningModule, Trainer
from torch_thermo.isolation import (
    preserved_attributes,
    preserved_generators,
    preserved_weights,
    shadow,
)

_LOCK = type(threading.Lock())
_KINDS: WeakKeyDictionary[type, type] = WeakKeyDictionary()


class _Null:
    """Takes every attribute, call, item and context, and does nothing."""

    def __getattr__(self, name: str) -> _Null:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> _Null:
        return self

    def __getitem__(self, key: Any) -> _Null:
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        return None

    def __iter__(self) -> Iterator[_Null]:
        # without it a loop would ask __getitem__ for ever
        return iter(())

    def __len__(self) -> int:
        return 0

    def __enter__(self) -> _Null:
        return self

    def __exit__(self, *exception: object) -> None:
        return None

    def __bool__(self) -> bool:
        return False


class _QuietTrainer:
    """The run's trainer to read from; what is set on it stays here, its loggers are null."""

    def __init__(self, trainer: Trainer) -> None:
        object.__setattr__(self, "_trainer", trainer)

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_trainer"), name)

    @property
    def logger(self) -> _Null:
        return _Null()

    @property
    def loggers(self) -> list[_Null]:
        return [_Null() for _ in object.__getattribute__(self, "_trainer").loggers]


def quiet_shadow(trainer: Trainer, pl_module: LightningModule) -> tuple[Any, list[str]]:
    """Return a shadow of the module whose logging is silent, and what it shares with the run.

    Weights and trainer are the run's, all else is a copy (see `isolation.shadow`). `log`,
    `log_dict`, `print`, the logger and `trainer.logger` do nothing, and what a step sets on the
    trainer (`should_stop`) never reaches it. Where the module has no `forward`, to call the shadow
    is to call its only child with parameters, if there is but one.

    Raises:
        TypeError, RuntimeError: the module cannot be copied.
    """
    shared = [trainer, *trainer.callbacks, *trainer.loggers, *trainer.optimizers]
    shared.append(getattr(trainer, "datamodule", None))
    # a module that holds its data would have them copied at each measurement
    held = (item for part in pl_module.modules() for item in vars(part).values())
    shared += [item for item in held if isinstance(item, Dataset | DataLoader)]
    copied, uncopied = shadow(pl_module, share=shared)
    quiet = _QuietTrainer(trainer)
    for part in copied.modules():
        if hasattr(part, "training_step") and hasattr(part, "log_dict"):
            part.__class__ = _silenced(type(part))
            part.__dict__["_trainer"] = quiet
    children = children_with_parameters(copied)
    if not has_forward(copied) and len(children) == 1:
        copied.__dict__["forward"] = getattr(copied, children[0])
    return copied, uncopied


def has_forward(module: nn.Module) -> bool:
    """Return whether a module's class defines a `forward` of its own."""
    for kind in type(module).__mro__:
        if "forward" in vars(kind):
            return not kind.__module__.startswith(
                ("lightning.", "pytorch_lightning.", "torch.nn.modules.module")
            )
    return False


def children_with_parameters(module: nn.Module) -> list[str]:
    """Return the names of the children that hold parameters."""
    return [
        name for name, child in module.named_children() if any(True for _ in child.parameters())
    ]


@contextmanager
def undisturbed(trainer: Trainer, pl_module: LightningModule) -> Iterator[list[str]]:
    """Put back what a measured forward pass or training step can reach, beside its own module.

    Weights (see `isolation.preserved_weights`); settings of optimizers and schedulers; attributes
    of the data module and of the user's callbacks, with the items of their own collections; the
    global generators.

    Yields:
        A list that at the end names the parameters that had been written to.
    """
    reached: list[Any] = [
        callback
        for callback in trainer.callbacks
        if not (_is_known(type(callback).__module__) or _is_threaded(callback))
    ]
    reached += [config.scheduler for config in trainer.lr_scheduler_configs]
    datamodule = getattr(trainer, "datamodule", None)
    if datamodule is not None:
        reached.append(datamodule)
    groups = [
        (group, {key: value for key, value in group.items() if key != "params"})
        for optimizer in trainer.optimizers
        for group in optimizer.param_groups
    ]
    with (
        preserved_generators(),
        preserved_weights(pl_module) as written,
        preserved_attributes(obj for obj in reached if hasattr(obj, "__dict__")),
    ):
        try:
            yield written
        finally:
            for group, settings in groups:
                for added in group.keys() - settings.keys() - {"params"}:
                    del group[added]
                group.update(settings)


def _is_known(module: str) -> bool:
    """Whether a class is Lightning's or ours, which a training step does not write to."""
    return module.startswith(("torch_thermo.", "lightning.", "pytorch_lightning."))


def _is_threaded(callback: Any) -> bool:
    """Whether a thread of a callback's own may write to it meanwhile: that must not be undone."""
    kinds = (threading.Thread, threading.Event, threading.Condition, _LOCK)
    return any(isinstance(value, kinds) for value in vars(callback).values())


def training_loss(model: nn.Module, batch: Any) -> Tensor:
    """Return the loss of the module's own `training_step`: a closure for a shadow.

    Raises:
        TypeError: the step returned neither a tensor nor a dictionary with a "loss".
    """
    step: Callable[..., Any] = model.training_step  # type: ignore[assignment]
    names = inspect.signature(step).parameters
    if "dataloader_iter" in names:
        raise TypeError(
            "training_step(dataloader_iter) draws its own batches and can't be measured: "
            "give loss_fn=(output, target) or closure=(pl_module, batch)"
        )
    parameters = names.values()
    takes_index = len(parameters) > 1 or any(p.kind is p.VAR_POSITIONAL for p in parameters)
    returned = step(batch, 0) if takes_index else step(batch)
    loss = returned.get("loss") if isinstance(returned, dict) else returned
    if not isinstance(loss, Tensor):
        raise TypeError(
            'training_step must return the loss as a tensor or under "loss" to be measured, '
            f"got {type(loss).__name__}"
        )
    return loss


def _silenced(kind: type) -> type:
    # one class a kind: a new one at each measurement would stay in its base's list of subclasses
    if kind not in _KINDS:
        _KINDS[kind] = _make_silenced(kind)
    return _KINDS[kind]


def _make_silenced(kind: type) -> type:
    def silent(self: Any, *args: Any, **kwargs: Any) -> None:
        return None

    return type(
        kind.__name__,
        (kind,),
        {
            "__module__": kind.__module__,
            "__doc__": kind.__doc__,
            "log": silent,
            "log_dict": silent,
            "print": silent,
            "logger": property(lambda self: _Null()),
            "loggers": property(lambda self: self._trainer.loggers),
        },
    )
