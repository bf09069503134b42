"""The propagator's spectrum while a network trains."""

from __future__ import annotations

from typing import get_args

import numpy as np
from torch import Tensor

from torch_thermo.callbacks.base import ThermoCallback
from torch_thermo.callbacks.moment import Measurement, Moment
from torch_thermo.callbacks.probe import EXAMPLES, Source
from torch_thermo.callbacks.reading import Part
from torch_thermo.callbacks.schedule import Log, Schedule, whole
from torch_thermo.observables.propagator_spectrum import Derivative, propagator_spectrum


class PropagatorSpectrum(ThermoCallback):
    """Spectrum of log G, how strongly a change of one neuron's state is felt by the others.

    G = (I - f'w)^T (I - f'w) with w the weights between all neurons, the input's pixels among them,
    and f' the slopes of the activations; lambda are its eigenvalues. Stored as
    `propagator_spectrum`: the traces mu2 = Tr (log G)^2 and mu3 = Tr (log G)^3 with mu2_stderr and
    mu3_stderr; log_det, 0 but for rounding or the noise of the probes; skewness, min and max of log
    lambda; and for each threshold t of 1e-6, 0.03 and 0.1, of the eigenvalues with |log lambda| >
    t: count_above_t, and mu2_above_t and mu3_above_t, the means of their squares and cubes, which
    is what the paper's mu2 and mu3 are (rough where the spectrum is a quadrature, and NaN where
    their error exceeds half of them). The spectrum itself as arrays nodes and weights, with its
    density as a picture: all eigenvalues of dense and of small nets, exact, and a Lanczos
    quadrature of large ones. No loss is needed.

    Vanchurin, *Towards a theory of machine learning*, eqs. 5.4, 5.6, 7.7 and Fig. 5.

    Args:
        schedule: default 1 a decade of steps and the end.
        derivative: "mean_state", f' at the mean state over the examples (the paper's), "averaged",
            the mean of f' over the examples, or "per_sample", a spectrum for each of them.
        steps: of nets that are too large for all eigenvalues, products with G and its inverse that
            a probe takes.
        probes: random starts, of the same. 2 of 16 steps leave an error of .2 % of mu2 and of 1 to
            2 % of mu3 on a VGG of 250,000 neurons.
        module: the part to read: its name below the module, or itself. Default: the whole forward,
            else the only child with parameters.
        probe: see `ThermoCallback`.
        examples: mean over so many of the probe's examples.
        seed: of the probe and of the start vectors.

    Raises:
        ValueError: an unknown derivative, steps or probes below 1, and see `ThermoCallback`.
        TypeError: arguments of another kind.
    """

    observable = "propagator_spectrum"
    needs_loss = False
    needs_model = True

    def __init__(
        self,
        schedule: Schedule | None = None,
        derivative: Derivative = "mean_state",
        steps: int = 16,
        probes: int = 2,
        module: Part = None,
        probe: Source = EXAMPLES,
        examples: int | None = 128,
        seed: int = 0,
    ) -> None:
        if derivative not in get_args(Derivative):
            known = sorted(get_args(Derivative))
            raise ValueError(f"derivative must be of {known}, got {derivative!r}")
        whole("steps", steps, 1)
        whole("probes", probes, 1)
        schedule = Log(per_decade=1) if schedule is None else schedule
        super().__init__(schedule, probe, examples, seed=seed, module=module)
        self.derivative: Derivative = derivative
        self.steps = steps
        self.probes = probes

    def measure(self, moment: Moment) -> Measurement:
        """Measure at the mean over all ranks' examples, the same on each.

        Raises:
            UnreadableNetworkError: the part is no network that is read.
            FloatingPointError: its inputs, states or weights are not finite.
            ValueError: I - f'w is singular, as that of a recurrent net may be.
            MemoryError: the vectors of a probe don't fit into half of the memory that is left.
        """
        rows = moment.table(lambda: self._rows(moment), self.examples)
        network = moment.reading(self.part, self.examples).network
        inputs = rows.reshape(-1, *network.input_shape)
        with moment.exactly():
            spectrum = propagator_spectrum(
                network, inputs, self.derivative, self.steps, self.probes, seed=self.seed
            )
        return Measurement(
            spectrum.summary(),
            arrays={
                "nodes": spectrum.nodes.numpy(),
                "weights": spectrum.weights.numpy(),
                "dimension": np.int64(spectrum.dimension),
                "exact": np.bool_(spectrum.exact),
            },
            figures=("density", "ridgeline"),
        )

    def _rows(self, moment: Moment) -> Tensor:
        """Return the inputs of this rank's examples."""
        return moment.reading(self.part, self.examples).inputs.flatten(1).double()
