"""Spectra of symmetric linear maps that are known by their products alone."""

from torch_thermo.spectra.estimate import Estimate
from torch_thermo.spectra.extended_lanczos import (
    ExtendedRun,
    extended_lanczos,
    extended_memory,
)
from torch_thermo.spectra.lanczos import LanczosRun, SymmetricMap, lanczos, lanczos_memory
from torch_thermo.spectra.probes import hadamard_order, probe_blocks, rademacher
from torch_thermo.spectra.spectral_measure import Extremes, SpectralMeasure, spectral_measure
from torch_thermo.spectra.trace import trace

__all__ = [
    "Estimate",
    "ExtendedRun",
    "Extremes",
    "LanczosRun",
    "SpectralMeasure",
    "SymmetricMap",
    "extended_lanczos",
    "extended_memory",
    "hadamard_order",
    "lanczos",
    "lanczos_memory",
    "probe_blocks",
    "rademacher",
    "spectral_measure",
    "trace",
]
