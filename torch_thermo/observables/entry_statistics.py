"""Statistics of stored Hessian entries: normalised means, their controls, correlations."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from torch_thermo.observables.correlation import CorrelationTest, correlation_test

#: the paper's "approximately 0" of a normalised mean
THRESHOLD = 0.15
#: entries that vary in fewer examples are not correlated: r would be 1 or 0 by one example
LEAST_NONZERO = 10
#: active examples that a coupling set needs
LEAST_ACTIVE = 1000


@dataclass(frozen=True)
class EntryCorrelations:
    """Correlations between some of the stored entries.

    Attributes:
        test: the matrix beside its nulls.
        column: (K,) int64, the flat parameter index i of each entry.
        row: (K,) int64, its j.
        given_active: over the active examples only, or over all.
    """

    test: CorrelationTest
    column: Tensor
    row: Tensor
    given_active: bool


@dataclass(frozen=True)
class CouplingSetSize:
    """With how many of the others an entry is correlated.

    Attributes:
        value: mean number of significant partners.
        share: the same, as a share of the other entries.
        entries: K, the entries looked at.
        reason: why it is NaN; empty if it is not.
    """

    value: float
    share: float
    entries: int
    reason: str = ""


@dataclass(frozen=True)
class HessianEntries:
    r"""`E_n[i, j] = l'_n d2T_n / d theta_i d theta_j` for C columns i and R rows j.

    Attributes:
        columns: (C,) int64, flat indices i of parameters.
        rows: (R,) int64, flat indices j.
        entries: (n_active, C, R) float64; those of the other examples are 0 and not stored.
        active: (samples,) bool, the examples with l' != 0, in the order of the batches; those of
            weight 0 (ignored targets) are left out.
        structural: (C, R) bool, no path passes both weights: see `hessian_entries`.
        products: example products (one example, one column) that were made.
    """

    columns: Tensor
    rows: Tensor
    entries: Tensor = field(repr=False)
    active: Tensor = field(repr=False)
    structural: Tensor = field(repr=False)
    products: int

    @property
    def samples(self) -> int:
        """Number n of examples that the risk counts: of a weight above 0."""
        return len(self.active)

    @property
    def active_share(self) -> float:
        """Share p of the examples that are active."""
        return len(self.entries) / self.samples

    @property
    def bound(self) -> float:
        """`sqrt(p / (1 - p))`, which no |z_1| exceeds, whatever the entries are."""
        p = self.active_share
        return math.sqrt(p / (1 - p)) if p < 1 else math.inf

    @property
    def silent(self) -> Tensor:
        """(C, R) bool: exactly 0 in every example; the structural ones, and dead gates."""
        return ~(self.entries != 0).any(0)

    @property
    def reason(self) -> str:
        """Why all normalised means are NaN; empty if they are not."""
        if not len(self.entries):
            return f"none of {self.samples} examples is active: every entry is 0"
        if bool(self.silent.all()):
            count, number = len(self.entries), self.silent.numel()
            return f"all {number} entries are 0 in each of the {count} active examples"
        if self.samples < 2:
            return "a spread over examples needs 2 or more, got 1"
        return ""

    def means(self) -> Tensor:
        """Return (C, R) means over all examples: the entries of the risk's functional Hessian."""
        return self.entries.sum(0) / self.samples

    def normalised_means(self, batch: int = 1, given_active: bool = False) -> Tensor:
        r"""Return z_B of each entry: the mean over its standard deviation in minibatches of B.

        `z_1 = mean / sd` over examples (sd with 1/n), `z_B = sqrt(B) z_1` for minibatches drawn
        with replacement: the bootstrap in closed form, for any number of replicates.
        With a share p of active examples `z_1^2 = p z_a^2 / (1 + (1 - p) z_a^2) <= p / (1 - p)`,
        where z_a is that given active: z_1 falls with p even if nothing else changes, which is
        what z_a is the control for.

        Args:
            batch: B.
            given_active: over the active examples only (z_a).

        Returns:
            (C, R); +-inf of an entry that is the same in all examples and not 0; NaN of one that is
            0 in all, or with one example.

        Raises:
            ValueError: `batch` below 1.
        """
        _at_least("batch", batch, 1)
        count = len(self.entries) if given_active else self.samples
        mean = self.entries.sum(0) / max(count, 1)
        # centred: where all examples are active and alike the difference of squares loses all
        squares = (self.entries - mean).square().sum(0)
        squares += (count - len(self.entries)) * mean.square()
        sd = (squares / max(count, 1)).sqrt()
        z = torch.where(sd > 0, math.sqrt(batch) * mean / sd, math.nan)
        return self._with_constant(z, count)

    def _with_constant(self, z: Tensor, count: int) -> Tensor:
        """Return z with +-inf where the entry is the same in all `count` examples and not 0."""
        if count < 2 or count > len(self.entries):
            return z
        value = self.entries[0]
        # exactly: of equal numbers the mean is off by a rounding
        constant = (self.entries == value).all(0) & (value != 0)
        return torch.where(constant, value.sign() * math.inf, z)

    def minibatch_means(self, batch: int, replicates: int = 1000, seed: int = 0) -> Tensor:
        """Return (replicates, C, R) means of minibatches of B examples drawn with replacement.

        Drawn from the store: no product is made.

        Raises:
            ValueError: `batch` or `replicates` below 1.
        """
        _at_least("batch", batch, 1)
        _at_least("replicates", replicates, 1)
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(self.samples, (replicates, batch), generator=generator)
        counts = torch.zeros(replicates, self.samples, dtype=torch.float64)
        counts.scatter_add_(1, drawn, torch.ones(drawn.shape, dtype=torch.float64))
        flat = counts[:, self.active] @ self.entries.flatten(1) / batch
        return flat.reshape(replicates, *self.entries.shape[1:])

    def bootstrap(self, batch: int, replicates: int = 1000, seed: int = 0) -> Tensor:
        """Return (C, R) normalised means z_B by the bootstrap; NaN where they are 0 or one.

        An entry that is the same in all examples and not 0 is +-inf, as in `normalised_means`.

        Raises:
            ValueError: `batch` below 1, or fewer than 2 replicates.
        """
        _at_least("replicates", replicates, 2)
        means = self.minibatch_means(batch, replicates, seed)
        sd = means.std(0)
        z = torch.where(sd > 0, means.mean(0) / sd, math.nan)
        return self._with_constant(z, self.samples)

    def share_below(
        self,
        threshold: float = THRESHOLD,
        batch: int = 1,
        structural: bool = True,
        given_active: bool = False,
    ) -> float:
        """Return the share of the entries with |z_B| < threshold.

        An entry that is the same in all examples and not 0 has z = +-inf: counted, not below.

        Args:
            threshold: the paper's is .15.
            batch: B, without which the threshold means nothing.
            structural: count the entries that are 0 in every example, as below; else leave them
                out.
            given_active: of z given active.

        Returns:
            NaN without an active example, and with `structural=False` when no z is defined (see
            `reason`).

        Raises:
            ValueError: `batch` below 1.
        """
        z = self.normalised_means(batch, given_active)
        defined = ~z.isnan()
        zeros = int(self.silent.sum()) if structural and len(self.entries) else 0
        counted = int(defined.sum()) + zeros
        if not counted:
            return math.nan
        return (int((z[defined].abs() < threshold).sum()) + zeros) / counted

    def correlations(
        self,
        entries: int = 64,
        given_active: bool = False,
        permutations: int = 100,
        rate: float = 0.05,
        seed: int = 0,
    ) -> EntryCorrelations:
        """Correlate some entries with each other over the examples (Li, Fig. 7).

        Means of minibatches are sums of examples, so their correlations are the same as those of
        the examples: only noisier by the bootstrap. Over all examples the zeros of the inactive
        ones are values too; two entries whose means differ from 0 are then correlated by being
        active together, which `given_active` leaves out. Of E[i, j] and E[j, i], which are one
        number, one is taken. What is significant is decided against random signs on each value: a
        permutation would also take apart the magnitudes that all entries of an example share
        (l'_n, |x_n|), and call these a correlation. See `correlation_test`.

        Args:
            entries: K at most, drawn from those that are not 0 in 10 examples or more; the same
                seed prefers the same entries, so that matrices of two moments can be compared.
            given_active: over the active examples only.
            permutations: samples of each null.
            rate: false-discovery rate.
            seed: of the choice and of the nulls.

        Returns:
            NaN with the reason where there are fewer than two such entries.

        Raises:
            ValueError: `entries` below 2, and what `correlation_test` raises.
        """
        _at_least("entries", entries, 2)
        moving = ((self.entries != 0).sum(0) >= LEAST_NONZERO).flatten() & self._first_of_pair()
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(moving.numel(), generator=generator)
        chosen = order[moving[order]][:entries].sort().values
        values = self.entries.flatten(1)[:, chosen]
        if not given_active:
            every = values.new_zeros(self.samples, len(chosen))
            every[self.active] = values
            values = every
        test = correlation_test(values, permutations, rate, seed)
        rows = len(self.rows)
        return EntryCorrelations(
            test, self.columns[chosen // rows], self.rows[chosen % rows], given_active
        )

    def _first_of_pair(self) -> Tensor:
        """Return (C * R,) bool, the first of the entries with the same two parameters."""
        rows, columns = len(self.rows), len(self.columns)
        i, j = self.columns.repeat_interleave(rows), self.rows.repeat(columns)
        pairs = torch.stack([torch.minimum(i, j), torch.maximum(i, j)])
        _, of = pairs.unique(dim=1, return_inverse=True)
        place = torch.arange(len(of))
        first = torch.full_like(place, len(of)).scatter_reduce(0, of, place, "amin")
        return first[of] == place

    def coupling_set_size(
        self, entries: int = 64, permutations: int = 100, rate: float = 0.05, seed: int = 0
    ) -> CouplingSetSize:
        """Return with how many others an entry is correlated significantly, given active.

        The number of discoveries grows with the number of examples, as weak correlations are seen
        with many only: below 1000 active examples it says more of these than of the net, and is
        not given.

        Args:
            entries: K at most.
            permutations: samples of each null.
            rate: false-discovery rate.
            seed: of the choice and of the nulls.

        Returns:
            NaN with the reason below 1000 active examples.
        """
        if len(self.entries) < LEAST_ACTIVE:
            reason = f"it needs {LEAST_ACTIVE} active examples or more, got {len(self.entries)}"
            return CouplingSetSize(math.nan, math.nan, 0, reason)
        test = self.correlations(entries, True, permutations, rate, seed).test
        if test.reason:
            return CouplingSetSize(math.nan, math.nan, 0, test.reason)
        size = float(test.partners.double().mean())
        return CouplingSetSize(size, size / (len(test.matrix) - 1), len(test.matrix))

    def summary(
        self,
        seed: int = 0,
        over_all: EntryCorrelations | None = None,
        given_active: EntryCorrelations | None = None,
    ) -> dict[str, float]:
        """Return the numbers to follow while a network trains; NaN where undefined.

        samples, active_share p, bound, structural_share and silent_share of the entries; the
        shares |z_1| < .15 of all entries, of those that are not silent, and of these given active;
        of 64 entries the mean |r|, that of shuffled examples (correlation_null) and of random signs
        (correlation_sign_null), and the share of the pairs that are significant against the
        latter, over all examples and given active; coupling_set_size; products.

        Args:
            seed: of the correlations.
            over_all: the correlations over all examples, if they are there already.
            given_active: those over the active ones, likewise.
        """
        every = (over_all or self.correlations(seed=seed)).test
        given = (given_active or self.correlations(given_active=True, seed=seed)).test
        return {
            "samples": float(self.samples),
            "active_share": self.active_share,
            "bound": self.bound,
            "structural_share": float(self.structural.double().mean()),
            "silent_share": float(self.silent.double().mean()),
            "share_below": self.share_below(),
            "share_below_moving": self.share_below(structural=False),
            "share_below_active": self.share_below(structural=False, given_active=True),
            "correlation": every.mean_abs,
            "correlation_null": every.null_mean_abs,
            "correlation_sign_null": every.sign_null_mean_abs,
            "correlated_share": every.share,
            "correlation_active": given.mean_abs,
            "correlation_active_null": given.null_mean_abs,
            "correlation_active_sign_null": given.sign_null_mean_abs,
            "correlated_share_active": given.share,
            "coupling_set_size": self.coupling_set_size(seed=seed).value,
            "products": float(self.products),
        }


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
