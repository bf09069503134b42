"""The spectrum of the propagator: exact of small networks, matrix-free of large ones."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from torch_thermo.network import Network
from torch_thermo.observables.propagator import dense, points
from torch_thermo.observables.propagator.matrix_free import (
    Quadratures,
    joined,
    measured,
    quadratures,
)
from torch_thermo.observables.spectral_gaps import Gap, spectral_gaps
from torch_thermo.spectra import Estimate, SpectralMeasure
from torch_thermo.spectra.arguments import require_whole
from torch_thermo.spectra.estimate import jackknife_ratio, mean_estimate

__all__ = ["THRESHOLDS", "Derivative", "PropagatorSpectrum", "propagator_spectrum"]

Derivative = Literal["mean_state", "averaged", "per_sample"]

THRESHOLDS = {"1e-6": 1e-6, "0.03": 0.03, "0.1": 0.1}
"""|log lambda| above which an eigenvalue counts as dynamical, by the name in `summary`."""

# neurons, the trivial ones not counted, up to which a spectrum is exact: about 3 s of a core
_EXACT = 2000
# the same for each of many samples
_EXACT_EACH = 500
# a spread of log lambda that is rounding
_SAME = 1e-12


@dataclass(frozen=True, eq=False)
class PropagatorSpectrum(SpectralMeasure):
    """The spectral measure of log G, `G = (I - M)^T (I - M)`; its nodes are log lambda.

    Of one M it is exact, or one quadrature a probe. Of a derivative "per_sample" it has a row a
    sample, and its standard errors are those of the mean over samples.

    Attributes:
        derivative: where M = f'(y) w was taken.
    """

    derivative: Derivative = "mean_state"
    _quadratures: Quadratures | None = field(default=None, repr=False)

    def mu(self, n: int) -> Estimate:
        r"""The raw trace `mu_n = Tr (log G)^n` (Vanchurin, eq. 7.7), with control variates.

        mu_1 = log det G is 0 in a feed-forward network: as an estimate it checks the others.

        Args:
            n: the order, at least 1.

        Raises:
            ValueError, TypeError: n is no whole number of at least 1.
        """
        require_whole("n", n)
        if self._quadratures is not None:
            return self._quadratures.trace_of_power(n)
        return self._estimate(self._rows(lambda x: self.dimension * x**n))

    def mean(self, n: int, threshold: float) -> Estimate:
        r"""The mean of (log lambda)^n over the eigenvalues with |log lambda| > threshold.

        The mu_2 and mu_3 of the paper's text and figures are such means over its "dynamical"
        eigenvalues, at thresholds of about .03 to .05. NaN where no eigenvalue is so far from 1.

        Matrix-free, the numerator is `mu` less what lies below the threshold, and the denominator
        is `count`, with the reservations made there.

        Raises:
            ValueError, TypeError: n is no whole number of at least 1, or a negative threshold.
        """
        require_whole("n", n)
        number = self.count(threshold)
        if number.value == 0.0:
            return Estimate(math.nan, math.nan)
        if self._quadratures is None:
            ratio = jackknife_ratio(
                self._rows(lambda x: x**n * _above(x, threshold)),
                self._rows(lambda x: _above(x, threshold)),
            )
            return Estimate(ratio.value, 0.0) if self.exact else ratio
        total = self.mu(n)
        below = self._rows(lambda x: self.dimension * x**n * (1 - _above(x, threshold)))
        value = (total.value - float(below.mean())) / number.value
        stderr = math.hypot(total.stderr, value * number.stderr) / number.value
        return Estimate(value, stderr)

    def count(self, threshold: float) -> Estimate:
        """The number of eigenvalues with |log lambda| > threshold.

        Matrix-free a lower bound, up to the noise of the probes: a quadrature of m nodes has no
        eigenvalues to count and cannot tell those near 1 from those at 1. It is
        `N - N max(rho, share of the nodes within the threshold)`, with rho the largest share that
        eigenvalues 1 can have (the Christoffel function at 1): of nets of 1,600 neurons, 6 % low
        on average at 24 steps. The standard error adds what the second half of the steps changed.

        Raises:
            ValueError: a negative threshold.
        """
        if not threshold >= 0:
            raise ValueError(f"threshold must be at least 0, got {threshold}")
        above = self._rows(lambda x: _above(x, threshold))
        if self._quadratures is None:
            return self._estimate(self.dimension * above)
        half, full = (1 - self._quadratures.unit_masses).unbind(1)
        found = self._estimate(self.dimension * torch.minimum(above, full))
        change = self.dimension * float((full - half).mean())
        return Estimate(found.value, math.hypot(found.stderr, change))

    @property
    def skewness(self) -> float:
        """The skewness of log lambda over all N eigenvalues; NaN where they agree to rounding.

        With log det G = 0 it is `(mu_3 / N) / (mu_2 / N)^1.5`.
        """
        second, third = (self.mu(n).value / self.dimension for n in (2, 3))
        unimodular = self._quadratures is not None and self._quadratures.unimodular
        first = 0.0 if unimodular else self.mu(1).value / self.dimension
        variance = second - first**2
        if not variance > _SAME**2:
            return math.nan
        return (third - 3 * first * second + 2 * first**3) / (variance * math.sqrt(variance))

    @property
    def log_eigenvalues(self) -> Tensor:
        """Log lambda of all N neurons, (N,), in descending order.

        Raises:
            ValueError: they are not known: a spectrum from quadratures, or one a sample.
        """
        if not self.exact:
            raise ValueError(
                "log_eigenvalues needs the exact spectrum of one M: of a network of at most "
                f"{_EXACT} neurons behind the input, or exact=True, and not per_sample"
            )
        return self.nodes[0].flip(0)

    def gaps(self) -> list[Gap]:
        """Return the widest gaps between neighbouring log lambda (the arrow of Fig. 5).

        Raises:
            ValueError: see `log_eigenvalues`.
        """
        return spectral_gaps(self.log_eigenvalues)

    def summary(self) -> dict[str, float]:
        """Return its numbers by name; NaN where one is not defined.

        `mu2`, `mu3` with `_stderr`, `skewness`, `log_det`, the smallest and largest log lambda
        `min` and `max`, and for t in "1e-6", "0.03", "0.1": `count_above_t`, `mu2_above_t` and
        `mu3_above_t`, the means over the eigenvalues with |log lambda| > t. Matrix-free, these are
        NaN where their standard error exceeds half of them.
        """
        second, third, extremes = self.mu(2), self.mu(3), self.extremes
        numbers = {
            "mu2": second.value,
            "mu2_stderr": second.stderr,
            "mu3": third.value,
            "mu3_stderr": third.stderr,
            "skewness": self.skewness,
            "log_det": self.mu(1).value,
            "min": extremes.min.value,
            "max": extremes.max.value,
        }
        for name, threshold in THRESHOLDS.items():
            numbers[f"count_above_{name}"] = self._if_known(self.count(threshold))
            numbers[f"mu2_above_{name}"] = self._if_known(self.mean(2, threshold))
            numbers[f"mu3_above_{name}"] = self._if_known(self.mean(3, threshold))
        return numbers

    def _if_known(self, estimate: Estimate) -> float:
        vague = self._quadratures is not None and estimate.stderr > abs(estimate.value) / 2
        return math.nan if vague else estimate.value

    def _estimate(self, rows: Tensor) -> Estimate:
        mean = mean_estimate(rows)
        return Estimate(mean.value, 0.0) if self.exact else mean


def _above(x: Tensor, threshold: float) -> Tensor:
    return (x.abs() > threshold).double()


def propagator_spectrum(
    network: Network,
    inputs: Tensor,
    derivative: Derivative = "mean_state",
    steps: int = 24,
    probes: int = 8,
    exact: bool | None = None,
    seed: int = 0,
    damping: float = 0.0,
) -> PropagatorSpectrum:
    r"""Measure the spectrum of log G, `G = (I - M)^T (I - M)`, M = f'(y) w.

    V. Vanchurin, *Towards a theory of machine learning*, eqs. 5.4, 5.6, 7.7; Figs. 4 to 6. A
    small change dx of the states leaves residuals `(I - M) dx`, whose square is `dx^T G dx`. G has
    one eigenvalue lambda for each of the N neurons, those of the input included; most are 1. In a
    feed-forward network det G = 1; without hidden layer the spectrum is symmetric under
    lambda -> 1 / lambda and every odd trace is 0.

    Exact: the singular values s of I - M, log lambda = 2 log s, of dense nets in the small space
    through which the input acts (854 neurons: 110 and 744 that are exactly 1). Matrix-free: one
    quadrature a probe from products with G and G^-1, and control variates (see `Quadratures`).

    Everything is computed in float64, from pre-activations, on the network's device (on the CPU if
    that has no float64); products are passes through the network. A slope near 0 is autograd's: of
    tanh it is 1 - tanh^2, to 1e-16, so that of a neuron saturated beyond |y| = 15 few digits are
    left, and beyond 19 it is 0.

    Args:
        network: chain, graph or recurrent; of a recurrent one det G is not 1, and the states are
            its fixed point.
        inputs: the measuring set, `(B, *network.input_shape)`; whole numbers are taken as they are.
        derivative: where f' is taken.
            "mean_state": at `y = W_l <h_{l-1}> + b_l`, <h> the mean feed-forward state over the
            inputs (eq. 5.4). "averaged": the mean of f'(y) over the inputs. "per_sample": a
            spectrum an input. Max-pools have the choice they make at that point, with "averaged"
            that at the mean state.
        steps: matrix-free: products a probe, half with G, half with G^-1. 16 leave .5 % of mu_3 at
            lambda from e^-6 to e^4, 24 .1 %; where they fall short the stated error says so.
        probes: matrix-free: random starts; "per_sample" takes one a sample. The same number of
            products again, probes x steps, goes into plain probes for the control variates.
        exact: None: where the neurons, but those with trivial eigenvalues, are at most 2,000 (500
            with "per_sample").
        seed: of the probes.
        damping: of a recurrent network, in the iteration to its fixed points (see
            `Network.fixed_point`). One example without a fixed point is an error, and not left out:
            the mean would be one over fewer.

    Raises:
        ValueError: inputs of another shape or none, an unknown derivative, steps or probes below
            1, damping out of [0, 1), an I - M that is singular (in a recurrent network).
        TypeError: no network, no tensor, complex inputs, steps, probes or seed no whole numbers, an
            exact that is neither a bool nor None.
        FloatingPointError: NaN or infinity in inputs or weights, an example without a fixed point,
            a G that is singular to rounding, or eigenvalues so far apart (beyond about e^30 and
            e^-90) that float64 does not hold them.
        MemoryError: matrices, or the vectors of a probe, that do not fit into half of the memory
            that is left.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Tanh())
        >>> x = torch.rand(5, 6)
        >>> spectrum = propagator_spectrum(Network.from_module(model, x), x)
        >>> spectrum.log_eigenvalues.shape, abs(spectrum.mu(3).value) < 1e-10
        (torch.Size([10]), True)
    """
    _check(network, inputs, derivative, steps, probes, exact, seed, damping)
    device = network.device if network.device.type != "mps" else torch.device("cpu")
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
        x = inputs.detach().to(device, torch.float64)
        x = x.clone() if x.is_inference() else x
        weights = dense.layers(network)
        limit = _EXACT_EACH if derivative == "per_sample" else _EXACT
        if exact is None:
            exact = dense.reduced_size(network, weights) <= limit
        if exact:
            dense.require_memory(network, weights)
            nodes = _exact(network, weights, x, derivative, damping)
            return PropagatorSpectrum(
                *(nodes, torch.ones_like(nodes), derivative != "per_sample", network.neurons),
                derivative=derivative,
            )
        try:
            return _matrix_free(network, x, derivative, steps, probes, seed, damping)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            raise ValueError(f"log G needs an I - M that is not singular: {error}") from error


def _exact(
    network: Network,
    weights: list[Tensor] | None,
    x: Tensor,
    derivative: Derivative,
    damping: float,
) -> Tensor:
    """Return log lambda, (1, N), or a row a sample."""
    unimodular = not network.is_recurrent
    each = derivative == "per_sample"
    if weights is not None:
        w = dense.layer_matrix(network, weights)
        slopes = (
            points.slopes_of_each(network, x, damping)
            if each
            else _point(network, x, derivative, damping).flat_slopes(network)
        )
        return dense.log_eigenvalues(w, slopes, unimodular)
    found = (
        points.each_sample(network, x, damping)
        if each
        else [_point(network, x, derivative, damping)]
    )
    rows = []
    for point in found:
        m = dense.formed(point.derivative(network))
        rows.append(dense.log_eigenvalues(m, m.new_ones(1, len(m)), unimodular))
    return torch.cat(rows)


def _matrix_free(
    network: Network,
    x: Tensor,
    derivative: Derivative,
    steps: int,
    probes: int,
    seed: int,
    damping: float,
) -> PropagatorSpectrum:
    if derivative == "per_sample":
        runs = [
            run
            for i, point in enumerate(points.each_sample(network, x, damping))
            for run in measured(point.derivative(network), steps, 1, seed + i)
        ]
        return PropagatorSpectrum(*joined(runs), False, network.neurons, derivative=derivative)
    point = _point(network, x, derivative, damping)
    found = quadratures(
        point.derivative(network), steps, probes, seed, unimodular=not network.is_recurrent
    )
    return PropagatorSpectrum(
        *(found.nodes, found.weights, False, network.neurons),
        derivative=derivative,
        _quadratures=found,
    )


def _point(network: Network, x: Tensor, derivative: Derivative, damping: float) -> points.Point:
    point = points.mean_state(network, x, damping)
    return points.averaged(network, x, point, damping) if derivative == "averaged" else point


def _check(
    network: object,
    inputs: object,
    derivative: object,
    steps: object,
    probes: object,
    exact: object,
    seed: object,
    damping: float,
) -> None:
    if not isinstance(network, Network):
        raise TypeError(
            f"network must be a Network, got {type(network).__name__}: "
            "Network.from_module(model, example_input) reads a model"
        )
    if not isinstance(inputs, Tensor):
        raise TypeError(f"inputs must be a tensor, got {type(inputs).__name__}")
    if inputs.is_complex():
        raise TypeError(f"inputs must be real, got {inputs.dtype}")
    if inputs.shape[1:] != network.input_shape or inputs.dim() == 0 or len(inputs) == 0:
        expected = ", ".join(map(str, ("B", *network.input_shape)))
        raise ValueError(
            f"inputs must have shape ({expected}) with B at least 1, got {tuple(inputs.shape)}"
        )
    if derivative not in get_args(Derivative):
        raise ValueError(f"derivative must be one of {get_args(Derivative)}, got {derivative!r}")
    require_whole("steps", steps)
    require_whole("probes", probes)
    if exact is not None and not isinstance(exact, bool):
        raise TypeError(f"exact must be True, False or None, got {exact!r}")
    if isinstance(seed, bool) or not hasattr(seed, "__index__"):
        raise TypeError(f"seed must be a whole number, got {seed!r}")
    if not 0 <= damping < 1:
        raise ValueError(f"damping must be at least 0 and less than 1, got {damping}")
