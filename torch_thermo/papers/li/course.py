"""Risk and accuracy over both whole parts of the data, after each epoch (Fig. 8b)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.utils.data import TensorDataset

from torch_thermo.callbacks.base import ThermoCallback
from torch_thermo.callbacks.moment import Measurement, Moment
from torch_thermo.callbacks.schedule import Every
from torch_thermo.papers.recipes import Classifier

__all__ = ["TrainingCourse"]

# Images in a forward pass.
_CHUNK = 500


class TrainingCourse(ThermoCallback):
    """The course of a training, on all images and in eval mode, at the start and after each epoch.

    Stored as `training`: train_risk, train_accuracy, test_risk, test_accuracy, and eta, the
    learning rate of the first parameter group; accuracy is the share of the examples with y T > 0.

    Args:
        parts: {"train": (inputs, labels +-1), ...}.
    """

    observable = "training"
    needs_loss = False
    needs_model = True

    def __init__(self, parts: Mapping[str, TensorDataset]) -> None:
        super().__init__(Every(epochs=1))
        self._parts = dict(parts)

    def measure(self, moment: Moment) -> Measurement:
        """Evaluate the network on all images."""
        with moment.exactly(), torch.no_grad():
            found = {
                f"{name}_{quantity}": value
                for name, part in self._parts.items()
                for quantity, value in _evaluated(moment.model, part).items()
            }
        eta = moment.trainer.optimizers[0].param_groups[0]["lr"]
        return Measurement({**found, "eta": float(eta)})


def _evaluated(model: Classifier, part: TensorDataset) -> dict[str, float]:
    """The criterion's mean over a part of the data, in float64, and the accuracy."""
    device = next(model.parameters()).device
    risk, right = 0.0, 0
    for inputs, labels in zip(*(tensor.split(_CHUNK) for tensor in part.tensors), strict=True):
        output, y = model(inputs.to(device)), labels.to(device)
        risk += float(model.criterion(output.double(), y.double())) * len(y)
        right += int((output * y > 0).sum())
    return {"risk": risk / len(part), "accuracy": right / len(part)}
