"""What the stored quantities are called, in the order they are read in, and one in few numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from torch_thermo.store.run import Run, Series

__all__ = ["QUANTITIES", "Quantity", "Summary", "measured", "quantity", "summarise"]


@dataclass(frozen=True)
class Quantity:
    """A stored series, for tables and figures.

    Attributes:
        name: ``observable/quantity``.
        label: in words, on one line.
        symbol: in mathtext, for an axis; the label where there is none.
        group: what it is drawn together with.
        scale: of its axis; "log" becomes signed-log where a value is 0 or below, "auto" is "log"
            for positive values over more than a decade and "linear" for others.
        spread: quantities of the same observable that bound it: one to add and subtract, or the
            lower and the upper edge.
        spread_name: what that band is.
        null: quantity of the same observable that it is to be compared with: the mean that chance
            alone gives.
    """

    name: str
    label: str
    symbol: str = ""
    group: str = ""
    scale: Literal["auto", "linear", "log", "signed log"] = "log"
    spread: tuple[str, ...] = ()
    spread_name: str = "± standard error"
    null: str = ""

    def beside(self, name: str) -> str:
        """The full name of another quantity of the same observable."""
        return f"{self.name.partition('/')[0]}/{name}"


def _balance(what: str, observable: str) -> tuple[Quantity, Quantity]:
    """The two numbers of a symmetry test that every reader asks for."""
    return (
        Quantity(
            f"{observable}/sign_balance",
            f"{what}: sign balance",
            r"$(n_+ - n_-)\,/\,n$",
            "symmetry",
            "linear",
            ("low", "high"),
            "95 % interval",
        ),
        Quantity(
            f"{observable}/w_sym",
            f"{what}: W_sym",
            r"$W_1(v, -v)\,/\,2\,E|v|$",
            "symmetry",
            "log",
            null="w_sym_null",
        ),
    )


QUANTITIES: tuple[Quantity, ...] = (
    Quantity(
        "order_parameter/value", "||grad R||^2, probe", r"$\|\nabla R\|^2$", "order_parameter"
    ),
    Quantity(
        "order_parameter_minibatch/value",
        "||grad R||^2, minibatch",
        r"$\|\nabla R_B\|^2$",
        "order_parameter",
    ),
    Quantity("order_parameter/risk", "risk R, probe", "$R$", "order_parameter"),
    Quantity(
        "bulk_boundary/boundary",
        "boundary loss",
        r"$\langle H_\partial \rangle$",
        "bulk_boundary",
        spread=("boundary_stderr",),
    ),
    Quantity(
        "bulk_boundary/bulk",
        "bulk loss",
        r"$\langle H \rangle$",
        "bulk_boundary",
        spread=("bulk_stderr",),
    ),
    Quantity(
        "bulk_boundary/ratio",
        "bulk / boundary",
        r"$\langle H \rangle\,/\,\langle H_\partial \rangle$",
        "bulk_boundary",
        "linear",
    ),
    Quantity(
        "hessian_extremes/lambda_max",
        "Hessian: lambda_max",
        r"$\lambda_{\max}$",
        "hessian",
        "signed log",
        ("residual_max",),
        "± residual bound",
    ),
    Quantity(
        "hessian_extremes/lambda_min",
        "Hessian: lambda_min",
        r"$\lambda_{\min}$",
        "hessian",
        "signed log",
        ("residual_min",),
        "± residual bound",
    ),
    Quantity(
        "hessian_density/odd3",
        "Hessian: asymmetry odd3",
        r"$\Sigma\lambda^3\,/\,\Sigma|\lambda|^3$",
        "hessian",
        "linear",
        ("odd3_stderr",),
    ),
    Quantity(
        "functional_density/odd3",
        "functional part: odd3",
        r"$\Sigma\lambda^3\,/\,\Sigma|\lambda|^3$",
        "hessian",
        "linear",
        ("odd3_stderr",),
    ),
    Quantity(
        "propagator_spectrum/mu2",
        "propagator: Tr log^2 G",
        r"$\mathrm{Tr}\,\log^2 G$",
        "propagator",
        spread=("mu2_stderr",),
    ),
    Quantity(
        "propagator_spectrum/mu3",
        "propagator: Tr log^3 G",
        r"$\mathrm{Tr}\,\log^3 G$",
        "propagator",
        "signed log",
        ("mu3_stderr",),
    ),
    Quantity(
        "propagator_spectrum/mu2_above_0.03",
        "propagator: mu2, a mean",
        r"$\mu_2$, $|\log\lambda| > 0.03$",
        "propagator",
        "linear",
    ),
    Quantity(
        "propagator_spectrum/mu3_above_0.03",
        "propagator: mu3, a mean",
        r"$\mu_3$, $|\log\lambda| > 0.03$",
        "propagator",
        "linear",
    ),
    Quantity(
        "circuit_symmetry/sign_balance",
        "circuits: sign balance S",
        "$S$",
        "circuits",
        "linear",
        ("sign_balance_stderr",),
    ),
    Quantity(
        "circuit_symmetry/mass_asymmetry",
        "circuits: asymmetry y T/A",
        r"$y\,T\,/\,A$",
        "circuits",
        "linear",
        ("mass_asymmetry_stderr",),
    ),
    Quantity(
        "circuit_symmetry/positive",
        "circuits: share y T > 0",
        r"share of $y\,T > 0$",
        "circuits",
        "linear",
        ("positive_low", "positive_high"),
        "95 % interval",
    ),
    Quantity(
        "circuit_sample/w_sym",
        "circuits: W_sym",
        r"$W_1(v, -v)\,/\,2\,E|v|$",
        "circuits",
        "log",
        null="w_sym_null",
    ),
    *_balance("weights", "weight_symmetry"),
    *_balance("gradient", "gradient_symmetry"),
)
"""The quantities of a summary, in its order."""

_KNOWN = {known.name: known for known in QUANTITIES} | {
    known.beside(known.null): Quantity(
        known.beside(known.null), f"{known.label}, null", known.symbol, known.group
    )
    for known in QUANTITIES
    if known.null
}


def quantity(name: str) -> Quantity:
    """What is known of a stored series; of one that is in no summary, its name."""
    return _KNOWN.get(name) or Quantity(name, name, scale="auto")


def measured(runs: Iterable[Run]) -> list[Quantity]:
    """The quantities of a summary that at least one of the runs has, each null after its own."""
    names = {name for run in runs for name in run.names}
    rows = [
        name
        for known in QUANTITIES
        for name in (known.name, *([known.beside(known.null)] if known.null else []))
    ]
    return [quantity(name) for name in rows if name in names]


@dataclass(frozen=True)
class Summary:
    """A series in few numbers.

    Attributes:
        first: the first value; NaN if it is not defined, as are the others.
        last: the last value.
        extreme: the finite value of the largest size.
        step: where that is; -1 if no value is finite.
        points: number of finite values.
    """

    first: float
    last: float
    extreme: float
    step: int
    points: int


def summarise(series: Series) -> Summary:
    """First, last and extreme value of a series."""
    first, last = (float(series.values[place]) for place in (0, -1))
    finite = np.flatnonzero(np.isfinite(series.values))
    if finite.size == 0:
        return Summary(first, last, float("nan"), -1, 0)
    extreme = int(finite[np.argmax(np.abs(series.values[finite]))])
    return Summary(
        first, last, float(series.values[extreme]), int(series.steps[extreme]), finite.size
    )
