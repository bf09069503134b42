"""V. Vanchurin, *Towards a theory of machine learning*: trainings, measurements, figures."""

from torch_thermo.papers.vanchurin.preparing import prepare

__all__ = ["prepare"]
