"""Axis scales: linear, logarithmic, signed-logarithmic, with ticks that do not crowd."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.ticker import Formatter

__all__ = ["DECADES", "Floats", "Scale", "set_scale", "signed_ticks"]

Scale = Literal["linear", "log", "signed log"]
Floats = np.ndarray[Any, np.dtype[np.float64]]

DECADES = 6
"""A signed-log axis shows at most so many decades on each side of 0."""


def set_scale(
    axes: Axes,
    which: Literal["x", "y"],
    scale: Scale,
    values: Floats,
    threshold: float | None = None,
) -> None:
    """Give an axis its scale, limits around the values, and ticks.

    A log axis that has to show 0 or less becomes signed-log: logarithmic on both sides beyond a
    threshold, linear between. Values that are all 0 leave the axis linear.

    Args:
        axes: the panel.
        which: the axis.
        scale: asked for.
        values: ``(n,)``, finite, everything the axis has to show.
        threshold: end of the linear part; by default the decade below the smallest ``|value|``, at
            most six decades below the largest.
    """
    axis = axes.xaxis if which == "x" else axes.yaxis
    setter = axes.set_xscale if which == "x" else axes.set_yscale
    limits = axes.set_xlim if which == "x" else axes.set_ylim
    sizes = np.abs(values[values != 0])
    low, high = float(values.min()), float(values.max())
    if scale == "linear" or sizes.size == 0:
        setter("linear")
        if which == "y":
            axis.set_major_formatter(_powers())
        return
    if scale == "log" and low > 0:
        setter("log")
        limits(low / 1.6, high * 1.6)
        return
    if threshold is None:
        threshold = max(float(sizes.min()), float(sizes.max()) * 10.0**-DECADES)
        threshold = 10.0 ** math.floor(math.log10(threshold))
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullFormatter

    setter("symlog", linthresh=threshold, linscale=0.5)
    margin = 0.25 * threshold
    start = low * 1.4 - margin if low < 0 else -margin if low == 0 else low / 1.6
    end = high * 1.4 + margin if high > 0 else margin if high == 0 else high / 1.6
    limits(start, end)
    ticks = signed_ticks(start, end, threshold)
    axis.set_major_locator(FixedLocator([value for value, _ in ticks]))
    axis.set_major_formatter(FixedFormatter([text for _, text in ticks]))
    axis.set_minor_locator(FixedLocator(_minor_ticks(start, end, threshold)))
    axis.set_minor_formatter(NullFormatter())


def _powers() -> Formatter:
    """Linear ticks with their power of ten each.

    matplotlib writes a common one above the axis, where the legend is.
    """
    from matplotlib.ticker import ScalarFormatter

    class Powers(ScalarFormatter):
        def __call__(self, x: float, pos: int | None = None) -> str:
            text = super().__call__(x, pos)
            power = super().get_offset().partition("e")[2]  # of "1e-9"
            return rf"${text}\cdot 10^{{{power}}}$" if power and x else text

        def get_offset(self) -> str:
            return ""

    return Powers(useOffset=False, useMathText=False)


def signed_ticks(low: float, high: float, threshold: float) -> list[tuple[float, str]]:
    """Labelled ticks of a signed-log axis: 0 and powers of ten, at most about five a side.

    Within two decades of the threshold the multiples 2 and 5 are labelled too.

    Args:
        low: lower end of the axis.
        high: upper end.
        threshold: end of the linear part.

    Returns:
        Pairs of a position and its label, ascending.
    """
    ticks = [(0.0, "0")] if low <= 0 <= high else []
    # On a long two-sided axis the innermost powers of ten would stand on the 0.
    crowded = min(high, -low) >= threshold and max(high, -low) >= 1e3 * threshold
    innermost = 3 * threshold if crowded else threshold * (1 - 1e-9)
    for sign, reach in ((1, high), (-1, -low)):
        if reach < threshold:
            continue
        first = math.ceil(math.log10(threshold) - 1e-9)
        last = math.floor(math.log10(reach) + 1e-9)
        stride = max(1, math.ceil((last - first + 1) / 5))
        exponents = range(last, first - 1, -stride)
        minus = "" if sign > 0 else "-"
        ticks += [
            (sign * 10.0**e, f"${minus}10^{{{e}}}$") for e in exponents if 10.0**e >= innermost
        ]
        if crowded and last == first:
            # its one power of ten, as on the other side: multiples here alone would confuse
            ticks.append((sign * 10.0**last, f"${minus}10^{{{last}}}$"))
        elif sum(low <= sign * 10.0**e <= high for e in range(first, last + 1)) < 2:
            ticks += [
                (sign * m * 10.0**e, f"${minus}{m}\\cdot 10^{{{e}}}$")
                for e in range(first - 1, last + 1)
                for m in (2, 5)
                if threshold < m * 10.0**e <= reach
            ]
    return sorted(tick for tick in ticks if low <= tick[0] <= high)


def _minor_ticks(low: float, high: float, threshold: float) -> list[float]:
    reach = max(high, -low)
    exponents = range(math.floor(math.log10(threshold)), math.ceil(math.log10(reach)) + 1)
    if len(exponents) > DECADES + 1:
        return [s * 10.0**e for e in exponents for s in (-1, 1) if 10.0**e >= threshold]
    sizes = [m * 10.0**e for e in exponents for m in range(1, 10) if m * 10.0**e >= threshold]
    return [sign * size for size in sizes for sign in (-1, 1)]
