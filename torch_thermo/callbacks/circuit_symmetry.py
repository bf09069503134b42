"""The symmetry of the basis circuits while a network trains."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from torch_thermo.callbacks.base import ThermoCallback
from torch_thermo.callbacks.moment import Measurement, Moment
from torch_thermo.callbacks.order_parameter import often
from torch_thermo.callbacks.probe import EXAMPLES, Source
from torch_thermo.callbacks.reading import Part, Reading
from torch_thermo.callbacks.schedule import Log, Schedule, whole
from torch_thermo.callbacks.symmetry import stored_scalars
from torch_thermo.dashboard import decade_floor, histogram_arrays, signed_log
from torch_thermo.observables.circuits import (
    CircuitSample,
    Ends,
    circuit_asymmetry,
    sample_circuits,
)
from torch_thermo.symmetry import sign_balance, symmetry_test

Output = int | str | None

# of torch's losses: the class of an example that has none
_IGNORE_INDEX = -100
# the natural logarithm of what still has a sign in float64
_SMALLEST = -700.0


class _Circuits(ThermoCallback):
    """What both measurements share: they need examples and their labels, not the loss."""

    needs_loss = False
    needs_model = True

    def __init__(
        self, schedule: Schedule, output: Output, module: Part, examples: int | None, seed: int
    ) -> None:
        super().__init__(schedule, examples=examples, seed=seed, module=module)
        self.output = output


class _Sums(_Circuits):
    """Sums over all circuits of each example."""

    observable = "circuit_symmetry"

    def measure(self, moment: Moment) -> Measurement:
        """Measure both asymmetries of each example, and their means.

        Raises:
            UnreadableNetworkError: the part is no network whose circuits can be summed.
            TypeError: it has several outputs and none is chosen.
            FloatingPointError: its output is not finite.
        """
        table = _labelled(moment, moment.table(lambda: self._rows(moment), self.examples))
        alive, balance, mass, output = table.unbind(1)
        if not bool(torch.isfinite(output).all()):
            raise FloatingPointError("the network's output is not finite")
        # a dead example has neither; the mean is over the others
        positive = sign_balance(mass[mass.isfinite()])
        low, high = positive.interval
        if not positive.n:
            moment.session.remark(
                f"no example has a circuit with a sign at step {moment.step}: their asymmetry is "
                "undefined",
                key="no circuit is alive",
            )
        balance_mean, balance_stderr = _mean(balance)
        mass_mean, mass_stderr = _mean(mass)
        return Measurement(
            {
                "sign_balance": balance_mean,
                "sign_balance_stderr": balance_stderr,
                "mass_asymmetry": mass_mean,
                "mass_asymmetry_stderr": mass_stderr,
                "positive": 0.5 + 0.5 * positive.value,
                "positive_low": 0.5 + 0.5 * low,
                "positive_high": 0.5 + 0.5 * high,
                "alive_log10": _mean(alive[alive > 0].log10())[0],
                "dead": float((alive == 0).double().mean()),
            },
            arrays={
                "alive": alive.numpy(),
                "sign_balance": balance.numpy(),
                "mass_asymmetry": mass.numpy(),
                "output": output.numpy(),
            },
        )

    def _rows(self, moment: Moment) -> Tensor:
        """Return N, S, y T/A, T and whether it has a label of each of this rank's examples."""
        reading = moment.reading(self.part, self.examples)
        labels, labelled = _labels(reading, self.output)
        found = circuit_asymmetry(reading.network, reading.inputs, labels, self.output)
        values = [found.alive, found.sign_balance, found.mass_asymmetry, found.output]
        return torch.stack([*values, labelled.double()], 1)


class _Sample(_Circuits):
    """Circuits of one order from those that are alive, and the tests of their symmetry."""

    def __init__(
        self,
        schedule: Schedule,
        paths: int,
        output: Output,
        module: Part,
        examples: int | None,
        seed: int,
        order: int,
    ) -> None:
        super().__init__(schedule, output, module, examples, seed)
        self.paths = paths
        self.order = order
        self.observable = sample_name(order)
        self._floor = math.nan

    def reset(self, sharded: bool) -> None:
        """Forget the scale of the last run's histograms."""
        self._floor = math.nan

    def memory(self) -> dict[str, Any]:
        """Return the floor of the logarithmic axis: the histograms of a run have one."""
        return {"floor": self._floor} if math.isfinite(self._floor) else {}

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Take up a checkpoint's floor; keep ours where it has none."""
        self._floor = memory.get("floor", self._floor)

    def measure(self, moment: Moment) -> Measurement:
        """Draw circuits of the first examples of all ranks, the same on each, and test them.

        Those of all orders are of the same paths.

        Raises:
            UnreadableNetworkError, TypeError, FloatingPointError: as for the sums.
        """
        paths = self._paths(moment)
        drawn = paths.order(self.order, self.seed)
        sign, log_abs = drawn.weighted()
        if drawn.reason and not len(drawn.sign):
            # of no order where there is no path
            what = f"no circuit of order {self.order}" if len(paths.sign) else "no circuit"
            moment.session.remark(
                f"{what} can be drawn at step {moment.step}: {drawn.reason}",
                key=f"{what} can be drawn",
            )
        test = symmetry_test(sign * _relative(log_abs))
        if not math.isfinite(self._floor):
            self._floor = decade_floor(log_abs)
        arrays = (
            histogram_arrays(signed_log(sign, log_abs, self._floor), floor=self._floor)
            if math.isfinite(self._floor)
            else {}
        )
        return Measurement(
            stored_scalars(test),
            arrays=arrays,
            figures=("histogram",) if arrays else (),
        )

    def _paths(self, moment: Moment) -> CircuitSample:
        """Return the paths, drawn once for all orders."""
        key = ("circuits", self.part, str(self.output), self.examples, self.paths, self.seed)
        # kept apart: ranks gather the table together, and a draw may fail on one of them alone
        table = moment.once(
            (*key, "table"), lambda: moment.table(lambda: self._rows(moment), self.examples)
        )
        return moment.once(key, lambda: self._draw(moment, _labelled(moment, table)))

    def _draw(self, moment: Moment, table: Tensor) -> CircuitSample:
        network = moment.reading(self.part, self.examples).network
        with moment.exactly():
            several = math.prod(network.output_shape) > 1
            return sample_circuits(
                network,
                table[:, :-1].reshape(-1, *network.input_shape),
                self.paths,
                output="target" if several else None,
                seed=self.seed,
                targets=table[:, -1].long() if several else None,
            )

    def _rows(self, moment: Moment) -> Tensor:
        """Return inputs, chosen output and whether it has a label of this rank's examples."""
        reading = moment.reading(self.part, self.examples)
        inputs, (labels, labelled) = reading.inputs, _labels(reading, self.output)
        ends = Ends.choose(reading.network, len(inputs), self.output, labels)
        last = torch.stack([ends.index, labelled.long()], 1)
        return torch.cat([inputs.flatten(1).double().cpu(), last.double()], 1)


class CircuitSymmetry(ThermoCallback):
    """Symmetry of the basis circuits x psi: exact sums over all, and tests of a sample.

    A circuit is a path from an input x to the output, psi the product of its weights and gates.
    Stored as `circuit_symmetry`, of the sums over all alive circuits of each example:
    sign_balance S = (N+ - N-)/N and mass_asymmetry y T/A = y sum(x psi) / sum|x psi|, means over
    the examples with sign_balance_stderr and mass_asymmetry_stderr; positive, the share of the
    examples with y T/A > 0, with its 95 % Wilson interval positive_low, positive_high;
    alive_log10, the mean of log10 N; dead, the share of examples without an alive circuit, which
    have no S and no T/A and are left out of the means. alive, sign_balance, mass_asymmetry and
    output T of each example as arrays. y T/A goes from mixed signs to all positive with training.

    And as `circuit_sample`, of circuits drawn uniformly from the alive ones of each of the first
    examples: n, sign_balance with its 95 % Wilson interval low, high, Butler's test butler,
    butler_p, odd_moment, w_sym beside its floor w_sym_null, and the histogram over
    sign * log10|x psi|. A product of many signed factors looks symmetric whatever has been
    learned: read it beside the sums.

    With `orders=(0, 1, 2)` also as `circuit_sample_order1` and `circuit_sample_order2`, the same
    of circuits of order 1 and 2 of these paths: one weight divided out, or two of different
    layers, terms of gradient and Hessian entries (see `CircuitSample.order`).

    Skip connections are read like chains: paths come through all branches. Of a network with
    activations that are no gates (tanh, GELU) there are no circuits: both are skipped with one
    notice. Labels y are +1, -1 (or 1, 0) for a scalar output, integer classes or one-hot rows for
    several; without such labels y = 1. Examples of class -100, torch's ignore_index, are left out
    with a remark.

    Li, *Complexity from Adaptive-Symmetries Breaking*, eqs. 10, 11, 16, 19 and Fig. 3b.

    Args:
        schedule: of the sums; default 8 a decade of steps, the first 50 epoch ends and the end.
        sample: schedule of the sample; default 1 a decade and the end.
        paths: circuits in a sample, spread evenly over its examples.
        output: where the circuits end: the number of an output, or "target", the output of each
            example's class. Default: the only output; of several, "target".
        module: the part to read: its name below the module, or itself. Default: the whole forward,
            else the only child with parameters.
        probe: see `ThermoCallback`.
        examples: sum on so many of the probe's examples.
        sample_examples: sample on so many of them.
        orders: of the sampled circuits, of 0, 1 and 2; all of one draw of paths.
        seed: of the probe and of the sample.

    Raises:
        ValueError: paths or examples below 1, orders that are none or not 0, 1 and 2, an output
            that is no number and not "target", and see `ThermoCallback`.
        TypeError: arguments of another kind.
    """

    observable = "circuits"
    needs_loss = False
    needs_model = True

    def __init__(
        self,
        schedule: Schedule | None = None,
        sample: Schedule | None = None,
        paths: int = 20_000,
        output: Output = None,
        module: Part = None,
        probe: Source = EXAMPLES,
        examples: int | None = 128,
        sample_examples: int = 8,
        seed: int = 0,
        orders: Sequence[int] = (0,),
    ) -> None:
        whole("paths", paths, 1)
        whole("sample_examples", sample_examples, 1)
        _check_output(output)
        _check_orders(orders)
        schedule = often() if schedule is None else schedule
        sample = Log(per_decade=1) if sample is None else sample
        if not callable(sample):
            raise TypeError(f"sample must be callable, got {type(sample).__name__}")
        super().__init__(schedule, probe, examples, seed=seed, module=module)
        self._members: tuple[ThermoCallback, ...] = (
            _Sums(schedule, output, module, examples, seed),
            *(
                _Sample(sample, paths, output, module, sample_examples, seed, order)
                for order in orders
            ),
        )

    def members(self) -> Sequence[ThermoCallback]:
        """Return the sums and the samples."""
        return self._members

    def observables(self) -> Sequence[str]:
        """Return all names."""
        return [name for member in self._members for name in member.observables()]


def sample_name(order: int) -> str:
    """Return the observable of sampled circuits of an order."""
    return f"circuit_sample_order{order}" if order else "circuit_sample"


def _check_orders(orders: object) -> None:
    wanted = "orders must be different ones of 0, 1 and 2, at least one"
    if not isinstance(orders, Sequence) or any(type(order) is not int for order in orders):
        raise TypeError(f"{wanted}, got {orders!r}")
    if not orders or len(set(orders)) < len(orders) or not set(orders) <= {0, 1, 2}:
        raise ValueError(f"{wanted}, got {orders!r}")


def _check_output(output: object) -> None:
    if output is None or (isinstance(output, str) and output == "target"):
        return
    if isinstance(output, bool) or not isinstance(output, Integral | str):
        raise TypeError(f'output must be a number or "target", got {output!r}')
    if isinstance(output, str) or int(output) < 0:
        raise ValueError(f'output must be "target" or a number from 0 on, got {output!r}')


def _labels(reading: Reading, output: Output) -> tuple[Tensor | None, Tensor]:
    """Return the targets if they are labels to judge the outputs by, and who has one, (n,) bool.

    Raises:
        TypeError: there are several outputs and neither labels nor `output` choose one.
        ValueError: `output` is not one of them.
    """
    network, targets = reading.network, reading.targets
    examples, outputs = len(reading.inputs), math.prod(network.output_shape)
    everyone = torch.ones(examples, dtype=torch.bool)
    why = "there are none"
    if targets is not None:
        labelled, labels = everyone, targets
        if outputs > 1 and targets.dim() == 1 and not targets.is_floating_point():
            # any class will do: what is found for these examples is left out
            labelled = (targets != _IGNORE_INDEX).cpu()
            labels = targets.masked_fill(targets == _IGNORE_INDEX, 0)
        try:
            Ends.choose(network, examples, None, labels)
            return labels, labelled
        except ValueError as error:  # numbers to be fitted
            why = str(error)
    if outputs > 1 and output in (None, "target"):
        raise TypeError(
            f"the network has {outputs} outputs and the targets are no labels that choose one "
            f"({why}): give CircuitSymmetry(output=), the number of an output"
        )
    Ends.choose(network, examples, output, None)
    return None, everyone


def _labelled(moment: Moment, table: Tensor) -> Tensor:
    """Return the rows of the examples with a label, without the last column, which says so.

    Raises:
        TypeError: there is none; lasting, for the probe does not change.
    """
    kept = table[table[:, -1] == 1, :-1]
    ignored = f"the class {_IGNORE_INDEX}, torch's ignore_index"
    if not len(kept):
        raise TypeError(f"all {len(table)} examples have {ignored}: none is left")
    if len(kept) < len(table):
        moment.session.remark(
            f"{len(table) - len(kept)} of {len(table)} examples have {ignored}, and are left out "
            "of the circuits",
            key="ignored in circuits",
        )
    return kept


def _relative(log_abs: Tensor) -> Tensor:
    """Return sizes in units of the largest: products over many layers leave float64's range."""
    top = log_abs.max() if len(log_abs) else 0.0
    return (log_abs - top).clamp_min(_SMALLEST).exp()


def _mean(values: Tensor) -> tuple[float, float]:
    """Return mean and standard error of the values that are defined; NaN without enough of them."""
    values = values[values.isfinite()]
    n = len(values)
    mean = float(values.mean()) if n else math.nan
    return mean, float(values.std()) / math.sqrt(n) if n > 1 else math.nan
