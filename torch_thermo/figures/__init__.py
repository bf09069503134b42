"""Figures drawn from stored measurements, never from a live model; matplotlib only when drawing."""

from torch_thermo.figures.panels import (
    Curve,
    curves,
    density,
    draw_curves,
    draw_density,
    draw_histogram,
    histogram,
)
from torch_thermo.figures.run import overview, run_figures
from torch_thermo.figures.style import caption, new_figure, render, save

__all__ = [
    "Curve",
    "caption",
    "curves",
    "density",
    "draw_curves",
    "draw_density",
    "draw_histogram",
    "histogram",
    "new_figure",
    "overview",
    "render",
    "run_figures",
    "save",
]
