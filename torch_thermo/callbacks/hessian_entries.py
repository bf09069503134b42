"""Entries of the functional Hessian, example by example, while a network trains."""

from __future__ import annotations

from torch_thermo.callbacks.base import ThermoCallback
from torch_thermo.callbacks.moment import Measurement, Moment
from torch_thermo.callbacks.probe import EXAMPLES, Source
from torch_thermo.callbacks.schedule import Log, Schedule, whole
from torch_thermo.observables.correlation import LEVELS
from torch_thermo.observables.hessian_entries import hessian_entries
from torch_thermo.risk import Closure, LossFn


class HessianEntries(ThermoCallback):
    """Are the Hessian's entries 0 in the mean over examples, and independent of each other?

    Stored as `hessian_entries`: samples, active_share p and bound sqrt(p / (1 - p)), which no
    normalised mean z_1 exceeds; structural_share and silent_share, the entries that no path
    makes, and those that are 0 in all examples; share_below, the share of |z_1| < .15 among all
    entries, share_below_moving among those that are not silent, share_below_active of these over
    the active examples alone, the control; of 64 entries the mean |r| correlation beside
    correlation_null (each entry's examples shuffled) and correlation_sign_null (random signs, which
    keep the magnitudes that an example's entries share), and correlated_share, the pairs that are
    significant against the latter at a false-discovery rate of 5 %; the same over the active
    examples, correlation_active, correlation_active_null, correlation_active_sign_null and
    correlated_share_active; coupling_set_size, NaN below 1000 active examples; products.

    As arrays: columns (C,) and rows (R,); z_1, z_active, structural and silent (C, R); of the
    K correlated entries correlation_column, correlation_row (K,), correlation and significant
    (K, K), null_levels, and null_quantiles (shuffled) and sign_null_quantiles (random signs) of
    |r| at them; correlation, significant and both quantiles also with `_active`. The same
    parameters are measured at each step.

    It needs a loss of the form criterion(output, target), and a model that answers an example alone
    as in its batch; on others it is skipped with one notice. Not in the plan of `Thermometer()`:
    add it by `Thermometer(callbacks=[*default_plan(), HessianEntries()])`. What it costs: a product
    for each column and active example.

    Li, Figs. 6 and 7.

    Args:
        schedule: default 1 a decade of steps and the end.
        columns: how many parameters i, drawn at random.
        rows: how many parameters j.
        examples: measure on so many of the probe's examples.
        probe, loss_fn, closure: see `ThermoCallback`.
        seed: of the probe, of the choice of entries and of the nulls.

    Raises:
        ValueError: columns or rows below 1, and see `ThermoCallback`.
        TypeError: arguments of another kind.
    """

    observable = "hessian_entries"

    def __init__(
        self,
        schedule: Schedule | None = None,
        columns: int = 16,
        rows: int = 128,
        examples: int | None = 128,
        probe: Source = EXAMPLES,
        loss_fn: LossFn | None = None,
        closure: Closure | None = None,
        seed: int = 0,
    ) -> None:
        whole("columns", columns, 1)
        whole("rows", rows, 1)
        schedule = Log(per_decade=1) if schedule is None else schedule
        super().__init__(schedule, probe, examples, loss_fn, closure, seed)
        self.columns = columns
        self.rows = rows

    def measure(self, moment: Moment) -> Measurement:
        """Measure the entries on the probe; of a small net at most all.

        Raises:
            TypeError: the loss is no function of the output, or the examples can't be told apart.
            FloatingPointError: an entry is not finite.
        """
        if moment.source:
            moment.source.function(moment.model, "the Hessian of each example")
        risk = moment.risk(self.examples)
        columns, rows = min(self.columns, risk.numel), min(self.rows, risk.numel)
        found = hessian_entries(risk, columns, rows, seed=self.seed)
        every = found.correlations(seed=self.seed)
        given = found.correlations(given_active=True, seed=self.seed)
        return Measurement(
            found.summary(self.seed, every, given),
            arrays={
                "columns": found.columns.numpy(),
                "rows": found.rows.numpy(),
                "z_1": found.normalised_means().numpy(),
                "z_active": found.normalised_means(given_active=True).numpy(),
                "structural": found.structural.numpy(),
                "silent": found.silent.numpy(),
                "correlation_column": every.column.numpy(),
                "correlation_row": every.row.numpy(),
                "correlation": every.test.matrix.numpy(),
                "significant": every.test.significant.numpy(),
                "null_levels": LEVELS,
                "null_quantiles": every.test.null_quantiles.numpy(),
                "sign_null_quantiles": every.test.sign_null_quantiles.numpy(),
                "correlation_active": given.test.matrix.numpy(),
                "significant_active": given.test.significant.numpy(),
                "null_quantiles_active": given.test.null_quantiles.numpy(),
                "sign_null_quantiles_active": given.test.sign_null_quantiles.numpy(),
            },
        )
