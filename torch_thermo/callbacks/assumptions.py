"""The theory's identities and assumptions while a network trains."""

from __future__ import annotations

import numpy as np

from torch_thermo.callbacks.base import ThermoCallback
from torch_thermo.callbacks.moment import Measurement, Moment
from torch_thermo.callbacks.probe import EXAMPLES, Source
from torch_thermo.callbacks.schedule import Log, Schedule, whole
from torch_thermo.observables.assumptions import check_assumptions
from torch_thermo.risk import Closure, LossFn


class Assumptions(ThermoCallback):
    """Which identities of Li's theory hold on the net, and how well its two assumptions do.

    Stored as `assumptions`: for each identity error_<name> (relative) and holds_<name> (1 or 0),
    layers L and active_share; of assembly symmetry weights_, gradient_ and circuits_ each with
    sign_balance, odd_moment, w_sym and w_sym_null, and spectrum_odd_3 with
    spectrum_odd_3_stderr; of diversity entries_ with share_below, share_below_active, bound,
    correlation, correlation_null, correlation_sign_null, correlated_share and coupling_set_size:
    the names of `check_assumptions`, whose documentation says what they are. NaN where a number is
    not defined.
    The table of the identities is stored as the array `text` and shown on TensorBoard's text tab.

    Not in the plan of `Thermometer()`: add it by
    `Thermometer(callbacks=[*default_plan(), Assumptions()])`.

    Li, *Complexity from Adaptive-Symmetries Breaking*, Figs. 3, 4, 6, 7 and 8a.

    Args:
        schedule: default 1 a decade of steps and the end.
        layers: L, how many weights a path passes; default: measured.
        steps: Lanczos steps of the spectrum of the functional part.
        probes: its start vectors.
        paths: circuits drawn; 0: none.
        columns: of Hessian entries, one product an active example each; 0: none.
        rows: entries kept of each column.
        examples: measure on so many of the probe's examples.
        probe, loss_fn, closure, seed: see `ThermoCallback`.

    Raises:
        ValueError: a number that is too small, and see `ThermoCallback`.
        TypeError: arguments of another kind.
    """

    observable = "assumptions"

    def __init__(
        self,
        schedule: Schedule | None = None,
        layers: int | None = None,
        steps: int = 20,
        probes: int = 2,
        paths: int = 2000,
        columns: int = 8,
        rows: int = 64,
        examples: int | None = 128,
        probe: Source = EXAMPLES,
        loss_fn: LossFn | None = None,
        closure: Closure | None = None,
        seed: int = 0,
    ) -> None:
        if layers is not None:
            whole("layers", layers, 1)
        for name, number, least in (
            ("steps", steps, 1),
            ("probes", probes, 1),
            ("paths", paths, 0),
            ("columns", columns, 0),
            ("rows", rows, 0),
        ):
            whole(name, number, least)
        schedule = Log(per_decade=1) if schedule is None else schedule
        super().__init__(schedule, probe, examples, loss_fn, closure, seed)
        self.layers = layers
        self.steps = steps
        self.probes = probes
        self.paths = paths
        self.columns = columns
        self.rows = rows

    def measure(self, moment: Moment) -> Measurement:
        """Measure identities and assumptions.

        Raises:
            FloatingPointError: the gradient is not finite.
            MemoryError: the Lanczos basis or the entries would not fit.
        """
        found = check_assumptions(
            moment.risk(self.examples),
            self.layers,
            self.seed,
            steps=self.steps,
            probes=self.probes,
            paths=self.paths,
            columns=self.columns,
            rows=self.rows,
        )
        text = np.str_(found.markdown())
        return Measurement(found.summary(), {"text": text}, ("text",))
