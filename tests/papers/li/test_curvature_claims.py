from __future__ import annotations

import math

import numpy as np
import pytest

from tests.papers.li.stored_runs import EPOCHS, STEPS_PER_EPOCH, risk_at
from torch_thermo.papers.li import curvature, entries
from torch_thermo.papers.verdicts import (
    NO_CONTENT,
    NOT_MEASURED,
    NOT_REPRODUCED,
    REPRODUCED,
    Row,
    at_least,
    at_most,
)
from torch_thermo.store import Run, Store, load_run


def with_arrays(run: Run, epoch: int, **arrays) -> Run:
    """The same run with other arrays of the entries at an epoch."""
    step = epoch * STEPS_PER_EPOCH
    stored = dict(run.arrays("hessian_entries", step))
    Store.open(run.path).save_arrays("hessian_entries", step, stored | arrays)
    return load_run(run.path)


def sampled(examples: int, strength: float, seed: int = 0) -> np.ndarray:
    """Correlations of 64 columns over some examples; strength 0: of independent ones."""
    rng = np.random.default_rng(seed)
    mixing = np.eye(64) + strength * np.random.default_rng(99).normal(size=(64, 64))
    return np.corrcoef((rng.normal(size=(examples, 64)) @ mixing.T).T)


def row_of(rows: list[Row], part: str) -> Row:
    (row,) = (row for row in rows if part in row.quantity)
    return row


def verdict(rows: list[Row], part: str) -> str:
    return row_of(rows, part).verdict


def verdicts(rows: list[Row]) -> list[str]:
    return [row.verdict for row in rows]


def test_the_share_of_small_means(make):
    rows = entries.share_rows(make())
    assert [row.ours for row in rows] == pytest.approx([0.96, 0.99])
    assert verdicts(rows) == [REPRODUCED, REPRODUCED]
    # of 1000 examples 287 are active at epoch 10, and 82 at epoch 20: too few
    assert rows[1].quantity.endswith("at epoch 10")
    few = entries.share_rows(make(hessian_entries__share_below_moving=0.9))
    assert verdicts(few) == [NOT_REPRODUCED, NOT_REPRODUCED]
    never = entries.share_rows(make(hessian_entries__active_share=0.0))
    assert verdicts(never) == [NOT_MEASURED, NOT_MEASURED]


def test_a_share_that_fewer_active_examples_make_has_no_content(make):
    # at the end 3 of 100 examples are active
    few = {
        "hessian_entries__samples": 1e4,
        "hessian_entries__active_share": lambda epoch: 1.0 if epoch < 10 else 0.03,
        "hessian_entries__bound": lambda epoch: math.inf if epoch < 10 else 0.176,
    }
    start, end = entries.share_rows(make(**few))
    # no entry's bound is below .15, and yet none of the z from before training would be above
    assert (start.verdict, end.verdict) == (REPRODUCED, NO_CONTENT)
    assert end.quantity.endswith("late")
    # before training entries of one sign have |z_a| = 1.32
    always = entries.share_rows(make(**few | {"hessian_entries__active_share": 0.03}))
    assert always[0].verdict == NO_CONTENT
    # entries that were far from 0 in the mean before training, and are not now
    (run,) = make(**few | {"hessian_entries__active_share": lambda epoch: 1.0 - 0.01 * epoch})
    assert verdicts(entries.share_rows([with_arrays(run, 0, z_active=np.full(9, 0.14))])) == [
        REPRODUCED,
        NO_CONTENT,
    ]
    run = with_arrays(run, 0, z_active=np.full(9, 2.0))
    assert verdicts(entries.share_rows([run])) == [REPRODUCED, REPRODUCED]


def test_one_seed_that_arithmetic_forces_is_enough(make):
    small = {"hessian_entries__samples": 1e4}
    forced = make(**small, hessian_entries__active_share=lambda epoch: 1.0 if epoch < 3 else 0.03)
    free = make(**small, hessian_entries__active_share=1.0)
    free = [with_arrays(run, 0, z_active=np.full(9, 2.0)) for run in free]
    assert verdicts(entries.share_rows(free)) == [REPRODUCED, REPRODUCED]
    assert verdicts(entries.share_rows([*free, *forced, *free])) == [REPRODUCED, NO_CONTENT]


def test_the_share_at_another_active_share():
    rng = np.random.default_rng(0)
    values = rng.normal(0.3, 1.0, size=(400, 50))  # given active
    given = values.mean(0) / values.std(0)
    for p in (1.0, 0.25, 0.02):
        every = np.concatenate([values, np.zeros((round(400 * (1 / p - 1)), 50))])
        expected = (np.abs(every.mean(0) / every.std(0)) < entries.THRESHOLD).mean()
        assert entries.share_if(given, p) == pytest.approx(expected)
    sizes = np.abs(rng.normal(size=200_000))
    assert pytest.approx(sizes.mean() / sizes.std(), rel=0.01) == entries.ONE_SIGN


def test_what_chance_puts_below():
    normal = np.random.default_rng(0).normal(size=(20_000, 25)).mean(1)
    expected = (np.abs(normal) < entries.THRESHOLD).mean()
    assert entries.chance_below(25)[0] == pytest.approx(expected, abs=0.01)
    assert entries.chance_below([entries.LEAST - 1])[0] < entries.LATE
    assert entries.chance_below([entries.LEAST])[0] >= entries.LATE


def test_the_control_takes_the_last_measurement_with_enough_examples(make):
    late, rise = entries.mean_rows(make())
    # of 1000 examples 287 are active at epoch 10, and 82 at epoch 20
    assert late.ours == pytest.approx(0.85)
    assert late.quantity.endswith("at epoch 10")
    assert rise.ours == pytest.approx(-0.1)
    assert [late.verdict, rise.verdict] == [NOT_REPRODUCED, NOT_REPRODUCED]
    up = entries.mean_rows(
        make(hessian_entries__share_below_active=lambda epoch: 0.95 + 0.004 * epoch)
    )
    assert verdicts(up) == [REPRODUCED, REPRODUCED]
    none = entries.mean_rows(make(hessian_entries__samples=200.0))
    assert verdicts(none) == [NOT_MEASURED, NOT_MEASURED]
    assert none[0].note == entries.NOTHING


def active_until(epoch: float):
    return {"hessian_entries__active_share": lambda now: 0.5 if now <= epoch else 0.01}


@pytest.mark.parametrize("rows", [entries.share_rows, entries.mean_rows])
@pytest.mark.parametrize("last", [0, 3])
def test_a_last_measurement_near_the_first_says_nothing_of_training(make, rows, last):
    found = rows(make(hessian_entries__share_below_active=0.99, **active_until(last)))[-1]
    assert found.verdict == NOT_MEASURED
    assert math.isnan(found.ours)
    assert "not measured" in found.note
    assert f"at epoch {last}" in found.quantity


def test_growth_and_shrinking_need_two_measurements(make):
    grow = entries.correlation_rows(make(**active_until(0)))[1]
    assert (grow.verdict, "at epoch 0" in grow.quantity) == (NOT_MEASURED, True)
    dead = {"hessian_entries__active_share": lambda epoch: float(epoch < 1)}
    assert verdict(curvature.spectrum_rows(make(**dead)), "over that before") == NOT_MEASURED
    # one measurement alone, late
    once = make(epochs=(20,))
    assert entries.mean_rows(once)[1].verdict == NOT_MEASURED
    assert entries.share_rows(once)[0].verdict == NOT_MEASURED
    once = make(epochs=(20,), hessian_entries__active_share=0.5)
    for rows in (entries.share_rows, entries.mean_rows, entries.correlation_rows):
        assert set(verdicts(rows(once))) == {NOT_MEASURED}
    assert verdict(curvature.spectrum_rows(once), "over that before") == NOT_MEASURED
    # nor if the first is not before training
    late = make(epochs=(10, 20), hessian_entries__active_share=0.5)
    assert entries.mean_rows(late)[1].verdict == NOT_MEASURED


def test_late_is_from_half_of_the_training_on(make):
    rows = entries.mean_rows(make(**active_until(20)))
    assert [row.quantity.endswith("late") for row in rows] == [True, True]
    assert verdicts(rows) == [NOT_REPRODUCED, NOT_REPRODUCED]


def test_correlations_are_sparse_where_others_would_be_seen(make):
    sparse = entries.correlation_rows(make())[0]
    assert (sparse.ours, sparse.verdict) == (pytest.approx(0.1), REPRODUCED)
    dense = entries.correlation_rows(make(hessian_entries__correlated_share_active=0.6))
    assert dense[0].verdict == NOT_REPRODUCED
    for active, expected in ((0.1, NOT_MEASURED), (0.42, NOT_MEASURED), (0.44, REPRODUCED)):
        few = make(
            hessian_entries__active_share=active, hessian_entries__correlated_share_active=0.0
        )
        assert entries.correlation_rows(few)[0].verdict == expected


def test_from_how_many_examples_a_correlation_is_seen():
    n = entries.seen_from(entries.CORRELATION)
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 4000, n))
    other = 0.2 * first + math.sqrt(1 - 0.04) * second
    r = np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(first, other, strict=True)])
    assert (np.abs(r) > 2.4977 / math.sqrt(n)).mean() == pytest.approx(0.95, abs=0.015)
    assert entries.seen_from(0.1) == pytest.approx(4 * n, abs=4)


def test_correlations_that_grow(make):
    def growth(start, end, active) -> Row:
        (run,) = make(hessian_entries__active_share=lambda epoch: 1.0 if epoch < 10 else active)
        run = with_arrays(run, 0, correlation_active=start)
        run = with_arrays(run, 20, correlation_active=end)
        return entries.correlation_rows([run])[1]

    weak, strong = 0.02, 0.12  # root mean squares of .03 and .11
    # the same at other n: the mean |r| minus that of permuted examples falls by .03 or more
    same = growth(sampled(1000, strong, 1), sampled(100, strong, 2), 0.1)
    assert abs(same.ours) < 0.015
    assert same.verdict == NOT_REPRODUCED
    noise = growth(sampled(1000, 0.0, 1), sampled(100, 0.0, 2), 0.1)
    assert (abs(noise.ours) < 0.05, noise.verdict) == (True, NOT_REPRODUCED)
    more = growth(sampled(1000, weak, 1), sampled(100, strong, 2), 0.1)
    assert (more.ours > 0.05, more.verdict) == (True, REPRODUCED)
    assert "late" in more.quantity


def test_excess_squares_do_not_depend_on_the_number_of_examples():
    population = np.square(sampled(400_000, 0.12)[np.triu_indices(64, 1)]).mean()
    for examples in (1000, 300, 100):
        found = [
            entries.excess_squares(sampled(examples, 0.12, seed), examples) for seed in range(20)
        ]
        assert np.mean(found) == pytest.approx(population, rel=0.06)
    assert math.isnan(entries.excess_squares(np.zeros((0, 0)), 100))


def test_shared_magnitudes_are_no_growing_correlation(make):
    def size(epoch: float) -> float:
        return 2.0 if epoch >= 20 else 1.0

    (run,) = make(
        hessian_entries__active_share=lambda epoch: 1.0 if epoch < 10 else 0.2,
        hessian_entries__correlation_active_null=0.03,
        hessian_entries__correlation_active_sign_null=lambda epoch: 0.03 * size(epoch),
    )
    rng = np.random.default_rng(0)
    for epoch, n in ((0, 1000), (20, 200)):
        # independent entries, of which an example's share a size: r^2 is size^2 / (n - 1)
        noise = rng.normal(scale=size(epoch) / math.sqrt(n - 1), size=(64, 64))
        run = with_arrays(run, epoch, correlation_active=np.triu(noise, 1) + np.triu(noise, 1).T)
    row = entries.correlation_rows([run])[1]
    assert (abs(row.ours) < 0.05, row.verdict) == (True, NOT_REPRODUCED)
    assert "random signs" in entries.correlation_rows([run])[0].note
    assert entries.excess_squares(noise, 200) > 0.05**2  # of permuted examples alone it would be


def test_three_steps_are_even_in_the_active_share(make):
    (run,) = make()
    assert entries.three_steps(run) == [0, 100, 200]  # p = 1, .29, .08; at 400 there is none
    (none,) = make(hessian_entries__correlation_active=math.nan)
    assert entries.three_steps(none) == []


def test_the_spectrum_is_symmetric(make):
    rows = curvature.spectrum_rows(make())
    assert verdicts(rows)[:2] == [REPRODUCED] * 2
    assert rows[0].ours == pytest.approx(0.1)
    one_sided = curvature.spectrum_rows(
        make(hessian_extremes__lambda_min=-1e-3, hessian_density__odd3=0.9)
    )
    assert verdicts(one_sided)[:2] == [NOT_REPRODUCED, NOT_REPRODUCED]
    leaning = curvature.spectrum_rows(make(hessian_density__odd3=-0.9))
    assert verdict(leaning, "odd_3") == NOT_REPRODUCED


def test_the_spectrum_shrinks_beyond_the_active_share(make):
    row = row_of(curvature.spectrum_rows(make()), "over that before training, late")
    assert row.ours == pytest.approx(risk_at(20))
    assert "goes to 1 times" in row.note  # lambda_max goes as p does
    assert row.verdict == NO_CONTENT
    faster = make(hessian_extremes__lambda_max=lambda epoch: risk_at(epoch) ** 2)
    assert verdict(curvature.spectrum_rows(faster), "over that before") == REPRODUCED
    large = curvature.spectrum_rows(make(hessian_extremes__lambda_max=1.0))
    assert verdict(large, "over that before") == NOT_REPRODUCED
    # one seed that shrinks by its active share alone
    both = [*faster, *make()]
    assert verdict(curvature.spectrum_rows(both), "over that before") == NO_CONTENT


def test_a_hessian_that_is_0_everywhere_is_not_measured(make):
    dead = make(
        hessian_extremes__lambda_max=0.0,
        hessian_extremes__lambda_min=0.0,
        hessian_density__odd3=math.nan,
        hessian_density__odd3_stderr=math.nan,
    )
    rows = curvature.spectrum_rows(dead)
    assert verdicts(rows) == [NOT_MEASURED] * 3
    assert "0 at all measurements" in rows[0].note


def test_a_bound_is_judged_beyond_the_error():
    rule = curvature.within(0.1)
    assert rule(0.25, 0.14, 0.0, math.nan) == REPRODUCED
    assert rule(0.25, 0.16, 0.0, math.nan) == NOT_MEASURED
    assert rule(0.25, 0.34, 0.0, math.nan) == NOT_MEASURED
    assert rule(0.25, 0.36, 0.0, math.nan) == NOT_REPRODUCED
    assert curvature.within(0.13)(0.25, 0.0, 0.0, math.nan) == NOT_MEASURED
    assert curvature.within(math.nan)(0.25, 0.0, 0.0, math.nan) == NOT_MEASURED
    assert curvature.within(0.1, at_least)(0.25, 0.4, 0.0, math.nan) == REPRODUCED
    assert curvature.within(0.1)(0.25, math.nan, 0.0, math.nan) == NOT_MEASURED


def test_a_law_that_the_control_does_not_bear_has_no_content():
    assert curvature.beside(0.4)(0.5, 0.3, 0.0, math.nan) == REPRODUCED
    assert curvature.beside(0.6)(0.5, 0.3, 0.0, math.nan) == NO_CONTENT
    assert curvature.beside(math.nan, at_most)(0.5, 0.3, 0.0, math.nan) == NO_CONTENT
    assert curvature.beside(0.4)(0.5, 0.7, 0.0, math.nan) == NOT_REPRODUCED


@pytest.mark.parametrize(
    ("odd", "error", "expected"),
    [
        (0.1, 0.1, REPRODUCED),
        (0.1, 0.2, NOT_MEASURED),
        (-0.2, 0.1, NOT_MEASURED),
        (-0.3, 0.1, NOT_MEASURED),
        (-0.4, 0.1, NOT_REPRODUCED),
        (0.1, math.nan, NOT_MEASURED),
    ],
)
def test_the_odd_moment_with_its_error(make, odd, error, expected):
    changes = {
        f"{part}_density__{name}": value
        for part in ("hessian", "functional")
        for name, value in (("odd3", odd), ("odd3_stderr", error))
    }
    assert verdict(curvature.spectrum_rows(make(**changes)), "odd_3") == expected
    changes["hessian_density__odd3"] = 0.9
    assert curvature.functional_rows({"vgg-ce": make(**changes)})[0].verdict == expected


def test_odd_moments_of_either_sign_do_not_cancel(make):
    (row,) = curvature.functional_rows(
        {
            "vgg-ce": make(
                net="vgg-ce",
                functional_density__odd3=lambda epoch: {20: 0.9, 40: -0.9}.get(epoch, 0.0),
            )
        }
    )
    assert (row.ours, row.verdict) == (pytest.approx(0.9), NOT_REPRODUCED)
    # errors differ between epochs: the median of the second half counts
    (row,) = curvature.functional_rows(
        {
            "vgg-ce": make(
                net="vgg-ce", functional_density__odd3_stderr=lambda epoch: 0.2 if epoch else 0.0
            )
        }
    )
    assert row.verdict == NOT_MEASURED


def test_the_functional_part_is_told_from_the_whole(make):
    (row,) = curvature.functional_rows({"vgg-ce": make(net="vgg-ce")})
    assert (row.ours, row.verdict) == (pytest.approx(0.05), REPRODUCED)
    assert "|odd_3| 0.8" in row.note
    # the control has no line of its own: the paper states nothing of it
    (same,) = curvature.functional_rows({"resnet": make(net="resnet", hessian_density__odd3=0.05)})
    assert same.verdict == NO_CONTENT
    (skew,) = curvature.functional_rows(
        {"resnet": make(net="resnet", functional_density__odd3=-0.6)}
    )
    assert skew.verdict == NOT_REPRODUCED


def test_a_second_half_without_a_measurement_is_not_measured(make):
    runs = make(net="vgg-ce", functional_density__odd3=0.0, hessian_density__odd3=0.9)
    runs[0].meta["epochs"] = 400  # the training went on
    (row,) = curvature.functional_rows({"vgg-ce": runs})
    assert row.verdict == NOT_MEASURED


def test_a_trace_has_its_error(make):
    (run,) = make(net="vgg-ce")
    nodes = np.array([[-1.0, 2.0], [-1.0, 1.0]])
    step = EPOCHS[-1] * STEPS_PER_EPOCH
    for rows, text in ((nodes, "0.2 ± 0.2"), (nodes[:1], "not measured"),
                       (0 * nodes, "not measured")):  # fmt: skip
        arrays = {"nodes": rows, "weights": np.full(rows.shape, 0.5), "dimension": np.int64(9)}
        Store.open(run.path).save_arrays("functional_density", step, arrays)
        (row,) = curvature.functional_rows({"vgg-ce": [load_run(run.path)]})
        assert f"tr F over the sum of |lambda| {text}" in row.note


def test_the_loosest_end(make):
    assert curvature.loosest_end(make()) == pytest.approx(1e-4)
    loose = make(hessian_extremes__residual_max=lambda epoch: 0.05 * (epoch == 3))
    assert curvature.loosest_end(loose) == pytest.approx(0.05 / risk_at(3))
    assert math.isnan(
        curvature.loosest_end(
            make(hessian_extremes__lambda_min=0.0, hessian_extremes__lambda_max=0.0)
        )
    )


def test_spread_is_over_seeds(make):
    row = row_of(curvature.spectrum_rows(make(2)), "over that before")
    assert row.spread == pytest.approx(0.0, abs=1e-12)
    share = make(hessian_entries__share_below_active=0.9)
    row = entries.mean_rows([*share, *make()])[0]
    assert row.spread == pytest.approx(np.std([0.9, 0.85], ddof=1))
