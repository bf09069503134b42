"""The bulk and the boundary loss while a network trains."""

from __future__ import annotations

import warnings
from typing import get_args

import torch
from torch import Tensor

from torch_thermo.callbacks.base import ThermoCallback
from torch_thermo.callbacks.moment import Measurement, Moment
from torch_thermo.callbacks.order_parameter import often
from torch_thermo.callbacks.probe import EXAMPLES, Source
from torch_thermo.callbacks.reading import Part
from torch_thermo.callbacks.schedule import Schedule, whole
from torch_thermo.observables.bulk_boundary import (
    STARTS,
    BulkBoundary,
    Method,
    bulk_boundary_loss,
)
from torch_thermo.observables.bulk_boundary.example_loss import (
    DIVIDED_OUT,
    divides_weights,
    ignored,
)
from torch_thermo.risk import Closure, LossFn


class BulkBoundaryLoss(ThermoCallback):
    """Boundary loss of the outputs, and bulk loss with the hidden neurons free to give way.

    Stored as `bulk_boundary`: bulk and boundary (means over the examples, in the units of the
    loss), bulk_stderr and boundary_stderr (of those means), bulk_median and boundary_median (late
    in training a few misclassified examples carry the means), ratio (mean bulk over mean boundary:
    1 where the hidden layers can take up nothing of the error), converged (share of the examples
    whose bulk loss is a minimum; those that are none count all the same, and a notice tells how
    many), with "exact" spread (mean of highest less lowest minimum of the starts); bulk, boundary
    and converged of each example as arrays. The loss
    is the one the model is trained with, of the form criterion(output, target); where it is not
    known in that form, the bulk loss is skipped with one notice. Examples without a loss (their
    targets are the loss's ignore_index) are left out with a remark. Class weights of cross entropy
    or NLL do not count where the loss is a mean, with a remark: a mean over one example divides
    them out.

    Vanchurin, *Towards a theory of machine learning*, eqs. 2.11, 3.1, 3.2 and Figs. 2, 3.

    Args:
        schedule: default 8 a decade of steps, the first 50 epoch ends and the end.
        method: "logit", "linear" or "exact", see `observables.bulk_boundary_loss`. For 128 examples
            of a net 784-40-20-10 "exact" takes .2 s of one core, "logit" .02 s.
        starts: of "exact", at least 1.
        module: the part to read, whose output is the model's: its name below the module, or
            itself; given together with `loss_fn`, that loss is one of this part's output.
            Default: the whole forward, else the only child with parameters.
        probe: see `ThermoCallback`.
        examples: measure on so many of the probe's examples.
        loss_fn, closure, seed: see `ThermoCallback`.

    Raises:
        ValueError: an unknown method, starts below 1, and see `ThermoCallback`.
        TypeError: arguments of another kind.
    """

    observable = "bulk_boundary"
    needs_model = True

    def __init__(
        self,
        schedule: Schedule | None = None,
        method: Method = "logit",
        module: Part = None,
        probe: Source = EXAMPLES,
        examples: int | None = 128,
        loss_fn: LossFn | None = None,
        closure: Closure | None = None,
        seed: int = 0,
        starts: int = STARTS,
    ) -> None:
        if method not in get_args(Method):
            raise ValueError(f"method must be of {sorted(get_args(Method))}, got {method!r}")
        schedule = often() if schedule is None else schedule
        super().__init__(schedule, probe, examples, loss_fn, closure, seed, module)
        self.method: Method = method
        self.starts = whole("starts", starts, 1)

    def measure(self, moment: Moment) -> Measurement:
        """Measure both losses of each example.

        Raises:
            UnreadableNetworkError: the part is no network that is read.
            TypeError: its output is not the model's, the loss is not known as a function of it, the
                targets are no tensor, or all are ignored.
            FloatingPointError: the boundary loss is not finite.
        """
        table = moment.table(lambda: self._rows(moment), self.examples)
        without = table[:, 3] == 1
        if bool(without.all()):
            raise TypeError(f"none of {len(table)} examples has a loss: all targets are ignored")
        if bool(without.any()):
            moment.session.remark(
                f"{int(without.sum())} of {len(table)} examples have no loss, for their targets "
                "are ignored, and are left out of the bulk and the boundary loss",
                key="ignored in the bulk loss",
            )
        table = table[~without]
        spread = table[:, 4] if self.method == "exact" else None
        found = BulkBoundary(table[:, 0], table[:, 1], table[:, 2] > 0, self.method, spread=spread)
        if not bool(torch.isfinite(found.boundary).all()):
            raise FloatingPointError("the loss of an example is not finite")
        open_ = int((~found.converged).sum())
        if open_:
            moment.session.remark(
                f"the bulk loss of {open_} of {len(table)} examples is no minimum, the search for "
                "it did not converge: they count with the lowest value found",
                key="bulk loss did not converge",
            )
        return Measurement(
            found.summary(),
            arrays={
                "bulk": found.bulk.numpy(),
                "boundary": found.boundary.numpy(),
                "converged": found.converged.numpy(),
            },
        )

    def _rows(self, moment: Moment) -> Tensor:
        """Return bulk, boundary, convergence, lack of a loss and spread of this rank's examples."""
        reading = moment.reading(self.part, self.examples)
        if not reading.last:
            raise TypeError(
                f"the bulk loss needs the part whose output is the model's, and {self.part} is "
                "followed by others: name by module= one that contains all up to the output"
            )
        assert moment.source is not None  # needs_loss
        loss_fn = moment.source.function(moment.model, "the bulk loss")
        if reading.targets is None:
            raise TypeError("the bulk loss needs a tensor of targets, one entry an example")
        if not reading.targets.is_floating_point() and divides_weights(loss_fn):
            moment.session.remark(f"bulk and boundary loss: {DIVIDED_OUT}", key="class weights")
        with warnings.catch_warnings():
            # told by the remark
            warnings.filterwarnings("ignore", message=f".*{DIVIDED_OUT[:30]}")
            found = bulk_boundary_loss(
                *(reading.network, reading.inputs, reading.targets, loss_fn, self.method),
                *(self.starts, self.seed),
            )
        # a mean over no target is NaN
        without = ignored(loss_fn, reading.targets).cpu() & found.boundary.isnan()
        columns = [found.bulk, found.boundary, found.converged.double(), without.double()]
        return torch.stack([*columns, *([] if found.spread is None else [found.spread])], 1)
