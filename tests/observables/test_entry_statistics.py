import dataclasses
import math

import pytest
import torch

from torch_thermo.observables import HessianEntries


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def store(entries, samples=None, structural=None):
    """A store as it would have been measured; the active examples are spread over all."""
    count = len(entries)
    samples = samples or count
    active = torch.zeros(samples, dtype=torch.bool)
    active[torch.arange(count) * samples // max(count, 1)] = True
    c, r = entries.shape[1:]
    none = torch.zeros(c, r, dtype=torch.bool)
    return HessianEntries(
        columns=torch.arange(c) * 10,
        rows=torch.arange(r) + 100,
        entries=entries,
        active=active,
        structural=none if structural is None else structural,
        products=count * c,
    )


def with_zeros(found):
    every = torch.zeros(found.samples, *found.entries.shape[1:], dtype=torch.float64)
    every[found.active] = found.entries
    return every


class TestNormalisedMeans:
    def test_over_all_examples(self):
        found = store(randn(12, 3, 4) + 0.3, samples=40)
        every = with_zeros(found)
        expected = every.mean(0) / every.std(0, correction=0)
        torch.testing.assert_close(found.normalised_means(), expected, rtol=1e-12, atol=0)
        torch.testing.assert_close(found.means(), every.mean(0), rtol=1e-12, atol=0)
        for batch in (4, 100):
            torch.testing.assert_close(
                found.normalised_means(batch), math.sqrt(batch) * expected, rtol=1e-12, atol=0
            )

    def test_given_active(self):
        found = store(randn(12, 3, 4) + 0.3, samples=40)
        entries = found.entries
        torch.testing.assert_close(
            found.normalised_means(given_active=True),
            entries.mean(0) / entries.std(0, correction=0),
            rtol=1e-12,
            atol=0,
        )

    @pytest.mark.parametrize("samples", [12, 13, 40, 1000])
    def test_what_activity_alone_does(self, samples):
        found = store(randn(12, 5, 5) * randn(5, 5, seed=1) + randn(5, 5, seed=2), samples=samples)
        p, z = 12 / samples, found.normalised_means(given_active=True)
        expected = z.sign() * (p * z**2 / (1 + (1 - p) * z**2)).sqrt()
        torch.testing.assert_close(found.normalised_means(), expected, rtol=1e-10, atol=1e-14)
        assert found.normalised_means().abs().max() <= found.bound

    def test_bound_is_reached(self):
        """By an entry that is the same in all active examples."""
        found = store(torch.full((5, 1, 1), -2.0).double(), samples=50)
        assert found.bound == pytest.approx(1 / 3)
        assert float(found.normalised_means()) == pytest.approx(-1 / 3, rel=1e-12)
        assert store(torch.ones(5, 1, 1).double()).bound == math.inf

    def test_alike(self):
        """No cancellation where the spread is small beside the mean."""
        entries = 1 + 1e-9 * randn(30, 1, 1)
        found = float(store(entries).normalised_means())
        expected = 1 / float((entries - 1).std(correction=0))
        assert found == pytest.approx(expected, rel=1e-6)

    def test_constant(self):
        """The same in all examples: no spread beside a mean that is not 0."""
        entries = randn(30, 2, 2)
        entries[:, 0, 0], entries[:, 0, 1], entries[:, 1, 0] = 0.1, -3.0, 0.0
        found = store(entries)
        for z in (found.normalised_means(4), found.normalised_means(given_active=True)):
            assert z[0].tolist() == [math.inf, -math.inf]
            assert z[1].isnan().tolist() == [True, False]
        assert found.bootstrap(10, 50)[0].tolist() == [math.inf, -math.inf]
        few = store(entries, samples=40)
        assert few.normalised_means()[0].isfinite().all()
        assert few.bootstrap(10, 50)[0].isfinite().all()
        assert few.normalised_means(given_active=True)[0].isinf().all()

    def test_reasons(self):
        assert store(randn(3, 2, 2)).reason == ""
        none = store(torch.zeros(3, 2, 2).double(), samples=5)
        assert none.reason == "all 4 entries are 0 in each of the 3 active examples"
        assert store(randn(1, 2, 2)).reason == "a spread over examples needs 2 or more, got 1"

    def test_undefined(self):
        entries = randn(6, 2, 2)
        entries[:, 0, 1] = 0
        found = store(entries, samples=9)
        nan = [[False, True], [False, False]]
        assert found.normalised_means().isnan().tolist() == nan
        assert found.silent.tolist() == nan
        assert store(randn(1, 2, 2), samples=5).normalised_means(given_active=True).isnan().all()
        assert store(randn(1, 2, 2), samples=5).normalised_means().isfinite().all()

    def test_refusals(self):
        with pytest.raises(ValueError, match="batch must be at least 1, got 0"):
            store(randn(3, 1, 1)).normalised_means(0)


class TestBootstrap:
    def test_minibatch_means_are_means_of_examples(self):
        found = store(randn(6, 2, 3), samples=10)
        means = found.minibatch_means(4, 50, seed=3)
        drawn = torch.randint(10, (50, 4), generator=torch.Generator().manual_seed(3))
        torch.testing.assert_close(means, with_zeros(found)[drawn].mean(1), rtol=0, atol=1e-15)

    @pytest.mark.parametrize("batch", [1, 5, 64])
    def test_closed_form(self, batch):
        """Means of 20,000 minibatches: the closed form within the bootstrap's own error."""
        found = store(randn(30, 3, 4) + 0.4, samples=50)
        replicates = 20_000
        boot, closed = found.bootstrap(batch, replicates), found.normalised_means(batch)
        # the error of a mean is 1 / sqrt(replicates) of its sd, that of the sd a bit more than half
        error = (1 + 2 * closed.square()).sqrt() / math.sqrt(replicates)
        assert ((boot - closed) / error).abs().max() < 4

    def test_is_of_the_seed(self):
        found = store(randn(6, 2, 3), samples=10)
        assert torch.equal(found.bootstrap(4, 9, seed=1), found.bootstrap(4, 9, seed=1))
        assert not torch.equal(found.bootstrap(4, 9, seed=1), found.bootstrap(4, 9, seed=2))

    def test_no_active_example(self):
        found = store(randn(0, 2, 3), samples=10)
        assert found.bootstrap(4, 9).isnan().all()

    def test_refusals(self):
        found = store(randn(6, 2, 3))
        with pytest.raises(ValueError, match="batch must be at least 1, got 0"):
            found.minibatch_means(0)
        with pytest.raises(ValueError, match="replicates must be at least 1, got 0"):
            found.minibatch_means(1, 0)
        with pytest.raises(ValueError, match="replicates must be at least 2, got 1"):
            found.bootstrap(1, 1)


class TestShareBelow:
    def found(self):
        """z_1 of .1, .2, -.1, and an entry that is 0."""
        spread = torch.tensor([1.0, -1.0]).repeat(50).double()
        entries = torch.stack([spread + 0.1, spread + 0.2, spread - 0.1, 0 * spread], 1)
        return store(entries.reshape(100, 2, 2))

    def test_counts(self):
        found = self.found()
        assert found.share_below() == pytest.approx(3 / 4)
        assert found.share_below(structural=False) == pytest.approx(2 / 3)
        assert found.share_below(0.25) == 1.0
        assert found.share_below(0.05) == pytest.approx(1 / 4)

    def test_constant_entries_are_not_below(self):
        entries = self.found().entries.clone()
        entries[:, 0, 1] = 0.1
        found = store(entries)
        assert found.share_below() == pytest.approx(3 / 4)
        assert found.share_below(structural=False) == pytest.approx(2 / 3)
        assert store(entries[:, :1, 1:]).share_below() == 0.0

    def test_all_silent(self):
        """As where one moves: entries that are 0 are below, and left out without structural."""
        entries = torch.zeros(30, 2, 2).double()
        found = store(entries, samples=50)
        assert found.share_below() == found.share_below(given_active=True) == 1.0
        assert math.isnan(found.share_below(structural=False))
        assert found.reason
        entries[:, 0, 0] = randn(30)
        assert store(entries, samples=50).share_below(10.0) == 1.0

    def test_depends_on_the_minibatch(self):
        assert self.found().share_below(batch=100, structural=False) == 0.0

    def test_given_active(self):
        found = store(self.found().entries, samples=1000)
        assert found.share_below(structural=False) == 1.0
        assert found.share_below(structural=False, given_active=True) == pytest.approx(2 / 3)

    def test_few_active_examples_suffice(self):
        """With p < .022 the bound is below .15: the share is 1 whatever the entries are."""
        found = store(randn(20, 5, 5) + 100, samples=1000)
        assert found.bound < 0.15
        assert found.share_below(structural=False) == 1.0
        assert found.share_below(structural=False, given_active=True) == 0.0


class TestCorrelations:
    def test_chosen_entries(self):
        entries = randn(50, 3, 4)
        entries[9:, 1, 2] = 0  # 9 examples: too few
        found = store(entries).correlations(permutations=5)
        pairs = list(zip(found.column.tolist(), found.row.tolist(), strict=True))
        every = [(c, r) for c in (0, 10, 20) for r in (100, 101, 102, 103)]
        every.remove((10, 102))
        assert pairs == every
        kept = torch.arange(12) != 6
        expected = torch.corrcoef(entries.flatten(1)[:, kept].T)
        torch.testing.assert_close(found.test.matrix, expected, rtol=0, atol=1e-13)

    def test_same_entries_at_two_moments(self):
        one, two = (
            store(randn(50, 10, 10, seed=s)).correlations(20, permutations=1) for s in (0, 1)
        )
        assert len(one.column) == 20
        assert torch.equal(one.column, two.column)
        assert torch.equal(one.row, two.row)
        other = store(randn(50, 10, 10)).correlations(20, permutations=1, seed=1)
        assert not torch.equal(one.row, other.row)

    def test_activity_correlates_entries(self):
        """Independent given active, with means of 1: r = (1 - p) / (1 - p + sd^2) over all."""
        found = store(1 + randn(4000, 2, 4), samples=8000)
        over_all = found.correlations(permutations=20).test
        given = found.correlations(permutations=20, given_active=True)
        assert given.given_active
        assert over_all.mean_abs == pytest.approx(0.5 / 1.5, abs=0.03)
        assert over_all.share == 1.0
        assert given.test.samples == 4000
        assert given.test.mean_abs == pytest.approx(given.test.null_mean_abs, rel=0.3)
        assert given.test.share <= 1 / 28

    def test_an_entry_and_its_mirror_are_one(self):
        values = randn(50, 4, 4)
        entries = values + values.transpose(1, 2)
        found = dataclasses.replace(
            store(entries), columns=torch.tensor([7, 3, 5, 9]), rows=torch.tensor([7, 3, 5, 9])
        )
        chosen = found.correlations(permutations=20)
        pairs = {frozenset(pair) for pair in torch.stack([chosen.column, chosen.row], 1).tolist()}
        assert len(pairs) == len(chosen.column) == 10
        assert chosen.test.share < 0.1

    def test_a_scale_that_all_entries_share_is_no_correlation(self):
        """As l'_n is, or |x_n|: given it the entries are independent."""
        scale = randn(300, 1, 1, seed=1).exp()
        found = store(scale * randn(300, 4, 8), samples=400)
        for given in (False, True):
            test = found.correlations(given_active=given, permutations=30).test
            assert test.share < 0.01
            assert test.mean_abs > 1.2 * test.null_mean_abs
            assert test.mean_abs == pytest.approx(test.sign_null_mean_abs, rel=0.1)

    def test_too_few(self):
        found = store(randn(9, 3, 4), samples=100).correlations()
        assert "2 columns that vary, got 0 of 0" in found.test.reason
        assert math.isnan(found.test.share)

    def test_refusals(self):
        with pytest.raises(ValueError, match="entries must be at least 2, got 1"):
            store(randn(20, 3, 4)).correlations(1)


class TestCouplingSetSize:
    def test_planted(self):
        """Blocks of four entries that share a factor: three partners each."""
        factor = randn(1200, 5, 1)
        found = store(factor + randn(1200, 5, 4, seed=1)).coupling_set_size(permutations=20)
        assert found.entries == 20
        assert found.value == pytest.approx(3.0, abs=0.5)
        assert found.value >= 3.0
        assert found.share == pytest.approx(found.value / 19)

    def test_independent(self):
        found = store(randn(1200, 5, 4)).coupling_set_size(permutations=20)
        assert found.value < 0.5

    def test_shared_scale(self):
        """Independent given it: no partners."""
        found = store(randn(1200, 1, 1, seed=1).exp() * randn(1200, 5, 4))
        assert found.coupling_set_size(permutations=20).value < 0.5

    def test_condition(self):
        found = store(randn(999, 2, 2), samples=5000).coupling_set_size()
        assert math.isnan(found.value)
        assert math.isnan(found.share)
        assert found.reason == "it needs 1000 active examples or more, got 999"
        assert not store(randn(1000, 2, 2)).coupling_set_size(permutations=2).reason

    def test_without_entries(self):
        found = store(torch.zeros(1000, 2, 2).double()).coupling_set_size()
        assert math.isnan(found.value)
        assert "got 0 of 0" in found.reason


def test_summary():
    structural = torch.zeros(3, 4, dtype=torch.bool)
    structural[0, :3] = True
    entries = 0.2 + randn(30, 3, 4)
    entries[:, 0] = 0
    found = store(entries, samples=120, structural=structural)
    summary = found.summary()
    assert summary["samples"] == 120
    assert summary["active_share"] == 0.25
    assert summary["bound"] == pytest.approx(3**-0.5)
    assert summary["structural_share"] == 0.25
    assert summary["silent_share"] == pytest.approx(1 / 3)
    assert summary["share_below"] == found.share_below()
    assert summary["share_below_moving"] == found.share_below(structural=False)
    assert summary["share_below_active"] == found.share_below(structural=False, given_active=True)
    assert summary["correlation"] == found.correlations().test.mean_abs
    assert summary["correlation_sign_null"] == found.correlations().test.sign_null_mean_abs
    given = found.correlations(given_active=True).test
    assert summary["correlation_active_sign_null"] == given.sign_null_mean_abs
    assert summary["correlation_active"] == found.correlations(given_active=True).test.mean_abs
    assert math.isnan(summary["coupling_set_size"])
    assert summary["products"] == 90


def test_summary_without_an_active_example():
    summary = store(randn(0, 3, 4), samples=7).summary()
    assert summary["active_share"] == summary["bound"] == 0.0
    for name in ("share_below", "share_below_active", "correlation", "correlated_share"):
        assert math.isnan(summary[name])
