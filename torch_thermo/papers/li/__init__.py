"""S. W. M. Li, *Complexity from Adaptive-Symmetries Breaking*: trainings, figures, claims."""

from torch_thermo.papers.li.preparing import prepare

__all__ = ["prepare"]
