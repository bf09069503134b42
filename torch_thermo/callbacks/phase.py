"""The phase while a network trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from torch_thermo.callbacks.base import ThermoCallback
from torch_thermo.callbacks.moment import Measurement, Moment
from torch_thermo.callbacks.probe import EXAMPLES, Source
from torch_thermo.callbacks.schedule import Log, Schedule, whole
from torch_thermo.observables.phase import check_tolerance, phase
from torch_thermo.risk import Closure, LossFn


class Phase(ThermoCallback):
    """Whether the net is solved, plastic or frustrated, from the risk's curvature and gradient.

    Stored as `phase`: code (0 solved, 1 plastic, 2 frustrated, NaN undecided), and what it was
    decided by: risk, tolerance, order_parameter with order_parameter_stderr,
    order_parameter_unbiased and order_parameter_incoherent, lambda_min with lambda_min_residual and
    lambda_min_bound, lambda_max, odd_3 with odd_3_stderr, zero_output_share, dead_share; NaN where
    a number is not defined. The name with its reason is stored as the array `text`, and shown on
    TensorBoard's text tab; a change from one phase to another is told once. What is decided is of
    the probe's examples: with a probe of all training examples, of the training.

    Not in the plan of `Thermometer()`: add it by
    `Thermometer(callbacks=[*default_plan(), Phase()])`.

    Li, sec. on the plasticity phase, Figs. 4b and 8.

    Args:
        schedule: default 1 a decade of steps and the end.
        tolerance: a risk up to it counts as 0; for cross entropy the floor that counts as solved.
        steps: Lanczos steps a probe vector.
        probes: probe vectors of the spectrum; the standard error of odd_3 is over them.
        examples: measure on so many of the probe's examples; few leave the order parameter's error
            as large as its value.
        probe, loss_fn, closure, seed: see `ThermoCallback`.

    Raises:
        ValueError: a tolerance below 0, steps or probes below 1, and see `ThermoCallback`.
        TypeError: arguments of another kind.
    """

    observable = "phase"

    def __init__(
        self,
        schedule: Schedule | None = None,
        tolerance: float = 0.0,
        steps: int = 20,
        probes: int = 4,
        examples: int | None = None,
        probe: Source = EXAMPLES,
        loss_fn: LossFn | None = None,
        closure: Closure | None = None,
        seed: int = 0,
    ) -> None:
        whole("steps", steps, 1)
        whole("probes", probes, 1)
        check_tolerance(tolerance)
        schedule = Log(per_decade=1) if schedule is None else schedule
        super().__init__(schedule, probe, examples, loss_fn, closure, seed)
        self.tolerance = float(tolerance)
        self.steps = steps
        self.probes = probes
        self._name = ""

    def measure(self, moment: Moment) -> Measurement:
        """Decide on the phase, and tell where it is another than before.

        Raises:
            FloatingPointError: risk or gradient are not finite.
        """
        found = phase(
            moment.risk(self.examples), self.tolerance, self.steps, self.probes, seed=self.seed
        )
        if found.evidence["risk"] != found.evidence["risk"]:
            raise FloatingPointError(found.reason)
        before = self._name
        if found.name != "undecided":
            self._name = found.name
            if before and before != found.name:
                moment.session.remark(
                    f"the net is {found.name} at step {moment.step}, {before} before: "
                    f"{found.reason}",
                    key=f"{before} to {found.name}",
                )
        text = f"**{found.name}**: {found.reason}"
        return Measurement(
            {"code": found.code, **found.evidence}, {"text": np.str_(text)}, ("text",)
        )

    def reset(self, sharded: bool) -> None:
        """Forget the last run's phase."""
        self._name = ""

    def memory(self) -> dict[str, Any]:
        """Return the phase that the next one is compared with."""
        return {"name": self._name}

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's phase."""
        self._name = memory.get("name", "")
