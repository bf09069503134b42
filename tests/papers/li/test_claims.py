from __future__ import annotations

import math

import numpy as np
import pytest

from tests.papers.li.stored_runs import EPOCHS, LAYERS, SAMPLES, risk_at, write_run
from torch_thermo.papers.courses import Course, course
from torch_thermo.papers.li import claims, curvature
from torch_thermo.papers.verdicts import (
    NO_CONTENT,
    NOT_MEASURED,
    NOT_REPRODUCED,
    REPRODUCED,
    Row,
)


@pytest.fixture
def make(tmp_path):
    """Runs of some seeds with some measurements changed."""
    made = []

    def runs(seeds: int = 1, net: str = "vgg", without=(), epochs=EPOCHS, **changes):
        given = {name.replace("__", "/"): value for name, value in changes.items()}
        made.append(None)
        return [
            write_run(tmp_path / f"{len(made)}_{seed}", net, seed, epochs, given, without)
            for seed in range(seeds)
        ]

    return runs


def only(rows: list[Row], part: str) -> Row:
    (row,) = (row for row in rows if part in row.quantity)
    return row


def verdict(rows: list[Row], part: str) -> str:
    return only(rows, part).verdict


def test_a_median_leaves_out_where_the_risk_is_zero(make):
    runs = make(2)
    found = Course(np.array(EPOCHS, float), np.tile(np.arange(6.0), (2, 1)))
    assert claims.while_active(runs, found).tolist() == [2.0, 2.0]  # of 0 to 4: at 40 R = 0
    found.values[:, 1] = math.nan
    assert claims.while_active(runs, found).tolist() == [2.5, 2.5]
    solved = make(2, order_parameter__risk=0.0)
    assert np.isnan(claims.while_active(solved, found)).all()


def test_weights_skew_and_slightly(make):
    rows = claims.weight_rows(make())
    ratio, size = rows
    assert ratio.ours == pytest.approx((0.01 + 0.04) / 0.01)
    assert [row.verdict for row in rows] == [REPRODUCED, REPRODUCED]
    assert "the control, before training: 1.00" in ratio.note
    assert "classifier.0 with 0.120" in size.note
    still = claims.weight_rows(make(weight_symmetry__w_sym=0.015))
    assert verdict(still, "over its floor") == NOT_REPRODUCED
    much = claims.weight_rows(make(weight_symmetry__w_sym=lambda epoch: 0.01 + 0.01 * epoch))
    assert [row.verdict for row in much] == [REPRODUCED, NOT_REPRODUCED]


def test_gradients_are_judged_together_and_by_layer(make):
    rows = claims.gradient_rows(make())
    assert only(rows, "all entries").ours == pytest.approx(0.02)
    assert only(rows, "worst layer").ours == pytest.approx(0.04)  # the last layer has .9
    assert "has 0.89" in rows[0].note
    assert [row.verdict for row in rows] == [REPRODUCED, REPRODUCED]
    layer = {f"gradient_symmetry__w_sym/{LAYERS[1]}": 0.3}
    bad = claims.gradient_rows(make(**layer))
    assert [row.verdict for row in bad] == [REPRODUCED, NOT_REPRODUCED]
    assert "features.3" in bad[1].note
    pooled = claims.gradient_rows(make(gradient_symmetry__w_sym=0.2))
    assert verdict(pooled, "all entries") == NOT_REPRODUCED


def test_symmetric_circuits_say_nothing_of_training(make):
    rows = claims.circuit_rows(make())
    for order in range(3):
        assert verdict(rows, f"order {order}") == NO_CONTENT
    broken = claims.circuit_rows(make(circuit_sample__w_sym=lambda epoch: 0.05 + 0.01 * epoch))
    assert verdict(broken, "order 0") == NOT_REPRODUCED
    mended = claims.circuit_rows(make(circuit_sample__w_sym=lambda epoch: 0.05 + 0.5 * (epoch < 1)))
    assert verdict(mended, "order 0") == REPRODUCED
    assert verdict(rows, "y T/A > 0") == REPRODUCED
    assert "the untrained net: 0.50" in only(rows, "y T/A > 0").note
    mixed = claims.circuit_rows(make(circuit_symmetry__positive=0.8))
    assert verdict(mixed, "y T/A > 0") == NOT_REPRODUCED


def test_orders_that_were_not_sampled_are_left_out(make):
    rows = claims.circuit_rows(make(without=("circuit_sample_order1", "circuit_sample_order2")))
    assert [row.quantity for row in rows if "order" in row.quantity] == [
        "W_sym of sampled circuits above its floor, order 0, at the end"
    ]


def test_rank_correlation():
    first = np.array([1.0, 2.0, 5.0, 100.0])
    assert claims.rank_correlation(first, first**3) == pytest.approx(1.0)
    assert claims.rank_correlation(first, -first) == pytest.approx(-1.0)
    # ties have their mean rank: 1, 2.5, 2.5, 4 against 1, 2, 3, 4
    ties = np.array([1.0, 2.0, 2.0, 3.0])
    assert claims.rank_correlation(first, ties) == pytest.approx(4.5 / math.sqrt(5.0 * 4.5))
    assert math.isnan(claims.rank_correlation(first, np.ones(4)))


def test_the_order_parameter_falls_with_the_loss(make):
    rows = claims.order_rows(make())
    assert [row.verdict for row in rows] == [REPRODUCED] * 3 + [NOT_REPRODUCED]
    order = only(rows, "over OP at the start")
    assert order.ours == 0.0
    # OP = R^1.5 / 2 and p = R, so that OP / p^2 goes as R^(-1/2)
    p = round(SAMPLES * risk_at(20)) / SAMPLES
    expected = risk_at(20) ** 1.5 / p**2
    assert f"goes to {expected:.2g} times its start" in order.note
    ratios = np.sqrt([risk_at(epoch) for epoch in EPOCHS[:-1]]) / 2
    assert rows[3].quantity == "OP / R, median"
    assert rows[3].ours == pytest.approx(np.median(ratios))
    assert rows[2].ours == pytest.approx(0.02 * np.median(ratios))
    assert "at 0.002 the same weights would have a tenth of it" in rows[2].note


def test_an_order_parameter_that_does_not_fall(make):
    rows = claims.order_rows(make(order_parameter__value=lambda epoch: 1.0 + epoch))
    assert verdict(rows, "rank correlation") == NOT_REPRODUCED
    assert verdict(rows, "over OP at the start") == NOT_REPRODUCED
    near = claims.order_rows(make(order_parameter__scaled=lambda epoch: 0.5 * risk_at(epoch)))
    assert verdict(near, "eta OP / R") == NOT_REPRODUCED


def test_zero_risk_through_saddles(make):
    rows = claims.risk_rows(make(2))
    assert [row.verdict for row in rows] == [REPRODUCED] * 3
    assert "exactly 0 in 2 of 2 seeds" in rows[0].note
    assert "2 solved" in rows[2].note
    stuck = claims.risk_rows(make(training__train_risk=0.05))
    assert verdict(stuck, "smallest risk") == NOT_REPRODUCED
    # within the residual bound of 0 is not below 0
    edge = claims.risk_rows(make(hessian_extremes__lambda_min=-1e-3,
                                 hessian_extremes__residual_min=2e-3))  # fmt: skip
    assert verdict(edge, "lambda_min < 0") == NOT_REPRODUCED
    once = claims.risk_rows(make(phase__code=lambda epoch: 2.0 if epoch == 3 else 1.0))
    row = only(once, "plastic phase")
    assert (row.ours, row.verdict) == (pytest.approx(0.8), NOT_REPRODUCED)
    unknown = claims.risk_rows(make(phase__code=math.nan))
    assert verdict(unknown, "plastic phase") == NOT_REPRODUCED

    # the examples of the curvature were all learned before those of the gradient
    def soon(epoch: float) -> float:
        return float(epoch < 3)

    early = claims.risk_rows(
        make(phase__risk=soon, hessian_extremes__lambda_min=lambda epoch: -soon(epoch))
    )
    assert only(early, "lambda_min < 0").ours == 1.0


def test_the_share_that_arithmetic_forces_has_no_content(make):
    rows = curvature.share_rows(make())
    assert [row.ours for row in rows] == pytest.approx([0.96, 0.99])
    assert [row.verdict for row in rows] == [REPRODUCED, REPRODUCED]
    assert "at epoch 20" in rows[1].note
    forced = curvature.share_rows(make(hessian_entries__bound=0.14))
    assert [row.verdict for row in forced] == [NO_CONTENT, NO_CONTENT]
    few = curvature.share_rows(make(hessian_entries__share_below_moving=0.9))
    assert [row.verdict for row in few] == [NOT_REPRODUCED, NOT_REPRODUCED]
    never = curvature.share_rows(make(hessian_entries__active_share=0.0))
    assert [row.verdict for row in never] == [NOT_MEASURED, NOT_MEASURED]


def test_what_arithmetic_forces():
    np.testing.assert_array_equal(
        curvature.forced_below([0.1, 0.2, math.inf, curvature.THRESHOLD]), [1.0, 0.0, 0.0, 0.0]
    )


def test_what_chance_puts_below():
    normal = np.random.default_rng(0).normal(size=(20_000, 25)).mean(1)
    expected = (np.abs(normal) < curvature.THRESHOLD).mean()
    assert curvature.chance_below(25)[0] == pytest.approx(expected, abs=0.01)
    assert curvature.chance_below([curvature.LEAST - 1])[0] < curvature.LATE
    assert curvature.chance_below([curvature.LEAST])[0] >= curvature.LATE


def test_the_control_takes_the_last_measurement_with_enough_examples(make):
    late, rise = curvature.mean_rows(make())
    # of 1000 examples 287 are active at epoch 10, and 82 at epoch 20
    assert late.ours == pytest.approx(0.85)
    assert "at epoch 10" in late.note
    assert rise.ours == pytest.approx(-0.1)
    assert [late.verdict, rise.verdict] == [NOT_REPRODUCED, NOT_REPRODUCED]
    up = curvature.mean_rows(
        make(hessian_entries__share_below_active=lambda epoch: 0.95 + 0.004 * epoch)
    )
    assert [row.verdict for row in up] == [REPRODUCED, REPRODUCED]
    none = curvature.mean_rows(make(hessian_entries__samples=200.0))
    assert [row.verdict for row in none] == [NOT_MEASURED, NOT_MEASURED]
    assert none[0].note == curvature.NOTHING


def test_correlations_are_sparse_and_grow_beyond_their_null(make):
    sparse, grow = curvature.correlation_rows(make())
    assert (sparse.ours, sparse.verdict) == (pytest.approx(0.1), REPRODUCED)
    assert (grow.ours, grow.verdict) == (pytest.approx(0.02), NOT_REPRODUCED)
    more = curvature.correlation_rows(
        make(hessian_entries__correlation_active=lambda epoch: 0.1 + 0.02 * epoch)
    )
    assert more[1].verdict == REPRODUCED
    null = curvature.correlation_rows(
        make(
            hessian_entries__correlation_active=lambda epoch: 0.1 + 0.02 * epoch,
            hessian_entries__correlation_active_null=lambda epoch: 0.03 + 0.02 * epoch,
        )
    )
    assert null[1].verdict == NOT_REPRODUCED  # it grew with the noise alone
    dense = curvature.correlation_rows(make(hessian_entries__correlated_share_active=0.6))
    assert dense[0].verdict == NOT_REPRODUCED


def test_three_steps_are_even_in_the_active_share(make):
    (run,) = make()
    assert curvature.three_steps(run) == [0, 100, 200]  # p = 1, .29, .08; at 400 there is none
    (none,) = make(hessian_entries__correlation_active=math.nan)
    assert curvature.three_steps(none) == []


def test_the_spectrum_is_symmetric_and_shrinks(make):
    rows = curvature.spectrum_rows(make())
    assert [row.verdict for row in rows] == [REPRODUCED] * 3
    assert rows[0].ours == pytest.approx(0.1)
    assert rows[2].ours == pytest.approx(risk_at(20))
    assert "goes to 1 times" in rows[2].note  # lambda_max goes as p does
    one_sided = curvature.spectrum_rows(
        make(hessian_extremes__lambda_min=-1e-3, hessian_density__odd3=0.9)
    )
    assert [row.verdict for row in one_sided][:2] == [NOT_REPRODUCED, NOT_REPRODUCED]
    leaning = curvature.spectrum_rows(make(hessian_density__odd3=-0.9))
    assert verdict(leaning, "odd_3") == NOT_REPRODUCED
    large = curvature.spectrum_rows(make(hessian_extremes__lambda_max=1.0))
    assert verdict(large, "lambda_max late") == NOT_REPRODUCED


def test_the_loosest_end(make):
    assert curvature.loosest_end(make()) == pytest.approx(1e-4)
    loose = make(hessian_extremes__residual_max=lambda epoch: 0.05 * (epoch == 3))
    assert curvature.loosest_end(loose) == pytest.approx(0.05 / risk_at(3))
    assert math.isnan(
        curvature.loosest_end(
            make(hessian_extremes__lambda_min=0.0, hessian_extremes__lambda_max=0.0)
        )
    )


def test_the_functional_part_is_told_from_the_whole(make):
    rows = curvature.functional_rows({"vgg-ce": make(net="vgg-ce")})
    assert [row.verdict for row in rows] == [REPRODUCED, REPRODUCED]
    same = curvature.functional_rows({"resnet": make(net="resnet", hessian_density__odd3=0.05)})
    assert [row.verdict for row in same] == [REPRODUCED, NOT_REPRODUCED]
    skew = curvature.functional_rows({"resnet": make(net="resnet", functional_density__odd3=-0.6)})
    assert skew[0].verdict == NOT_REPRODUCED


def test_spread_is_over_seeds(make):
    runs = make(2)
    row = only(curvature.spectrum_rows(runs), "lambda_max late")
    assert row.spread == pytest.approx(0.0, abs=1e-12)
    both = [*make(order_parameter__scaled=0.0), *make()]
    scaled, risk = (course(both, f"order_parameter/{name}").values for name in ("scaled", "risk"))
    medians = [0.0, np.median(scaled[1, :-1] / risk[1, :-1])]
    row = only(claims.order_rows(both), "eta OP / R")
    assert row.spread == pytest.approx(np.std(medians, ddof=1))
    assert math.isnan(claims.weight_rows(make())[0].spread)
