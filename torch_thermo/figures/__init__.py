"""Figures drawn from stored measurements, never from a live model; matplotlib only when drawing."""

from torch_thermo.figures.panels import (
    Curve,
    curves,
    draw_counts,
    draw_curves,
    draw_histogram,
    histogram,
)
from torch_thermo.figures.ridgelines import (
    Row,
    chosen_steps,
    draw_ridgeline,
    histogram_row,
    histogram_rows,
    ridgeline,
)
from torch_thermo.figures.run import overview, run_figures
from torch_thermo.figures.spectral import (
    density,
    density_ridgeline,
    draw_density,
    draw_density_ridgeline,
    spectral_axis,
    stored_measure,
)
from torch_thermo.figures.style import caption, new_figure, render, save

__all__ = [
    "Curve",
    "Row",
    "caption",
    "chosen_steps",
    "curves",
    "density",
    "density_ridgeline",
    "draw_counts",
    "draw_curves",
    "draw_density",
    "draw_density_ridgeline",
    "draw_histogram",
    "draw_ridgeline",
    "histogram",
    "histogram_row",
    "histogram_rows",
    "new_figure",
    "overview",
    "render",
    "ridgeline",
    "run_figures",
    "save",
    "spectral_axis",
    "stored_measure",
]
