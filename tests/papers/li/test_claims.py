from __future__ import annotations

import math

import numpy as np
import pytest

from tests.papers.li.stored_runs import EPOCHS, LAYERS, SAMPLES, risk_at
from torch_thermo.papers.courses import Course, course
from torch_thermo.papers.li import claims
from torch_thermo.papers.verdicts import (
    NO_CONTENT,
    NOT_MEASURED,
    NOT_REPRODUCED,
    REPRODUCED,
    Row,
)


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
    # with R = 0 at the end no example is active, so that OP = 0 by identity
    assert [row.verdict for row in rows] == [REPRODUCED, NO_CONTENT, REPRODUCED, NOT_REPRODUCED]
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
    def rising(epoch: float) -> float:
        return 1.0 + epoch

    rows = claims.order_rows(make(order_parameter__value=rising, phase__order_parameter=rising))
    assert verdict(rows, "rank correlation") == NOT_REPRODUCED
    assert verdict(rows, "over OP at the start") == NOT_REPRODUCED
    near = claims.order_rows(make(order_parameter__scaled=lambda epoch: 0.5 * risk_at(epoch)))
    assert verdict(near, "eta OP / R") == NOT_REPRODUCED


def test_zeros_that_both_have_are_no_common_fall(make):
    def falling(epoch: float) -> float:
        return 2.0**-epoch if epoch < 10 else 0.0

    def rising(epoch: float) -> float:
        return 2.0 ** (epoch - 10) if epoch < 10 else 0.0

    runs = make(epochs=range(41), order_parameter__risk=falling, order_parameter__value=rising)
    row = only(claims.order_rows(runs), "rank correlation")
    assert (row.ours, row.verdict) == (pytest.approx(-1.0), NOT_REPRODUCED)
    assert row.note.startswith("10 epochs a seed")


def test_a_correlation_that_shifts_reach_as_well_has_no_content(make):
    def waves(epoch: float) -> float:
        return 1.0 + epoch % 2

    runs = make(epochs=range(20), order_parameter__risk=waves, order_parameter__value=waves)
    row = only(claims.order_rows(runs), "rank correlation")
    assert (row.ours, row.verdict) == (pytest.approx(1.0), NO_CONTENT)
    assert "47.4% of the shifts reach it" in row.note  # 9 of 19


def test_shifts():
    ordered = np.arange(4.0)
    found = claims.shifted_correlations(ordered, ordered)
    np.testing.assert_allclose(found, [-0.2, -0.6, -0.2])  # with 3 0 1 2, 2 3 0 1 and 1 2 3 0


def test_the_fall_is_beyond_that_of_fewer_active_examples(make):
    assert verdict(claims.order_rows(make(hessian_entries__active_share=0.9)), "start") == (
        REPRODUCED
    )
    # OP goes as p^2, and by nothing else
    squared = make(
        epochs=EPOCHS[:-1],
        phase__order_parameter=lambda epoch: risk_at(epoch) ** 2,
        hessian_entries__active_share=risk_at,
    )
    row = only(claims.order_rows(squared), "start")
    assert (row.ours, row.verdict) == (pytest.approx(risk_at(20) ** 2), NO_CONTENT)
    assert "goes to 1 times its start" in row.note


def frustrated(since: int) -> dict[str, object]:
    """From an epoch on all units are dead: R = 1 without a gradient."""

    def order(epoch: float) -> float:
        return float(epoch < since)

    return {
        "order_parameter__value": order,
        "order_parameter__scaled": lambda epoch: 0.02 * order(epoch),
        "order_parameter__risk": 1.0,
        "phase__order_parameter": order,
        "phase__risk": 1.0,
        "phase__code": lambda epoch: 1.0 if epoch < since else 2.0,
        "training__train_risk": 1.0,
        "hessian_entries__active_share": 1.0,
        "hessian_extremes__lambda_min": lambda epoch: -order(epoch),
    }


@pytest.mark.parametrize("since", [0, 1, 3])
def test_a_frustrated_net_reproduces_nothing(make, since):
    runs = make(**frustrated(since))
    rows = claims.order_rows(runs)
    assert [row.verdict for row in rows] == [NOT_MEASURED] * 4
    assert "with R > 0 and OP = 0, frustrated" in rows[0].note
    assert "frustrated at the end" in rows[1].note
    assert [row.verdict for row in claims.risk_rows(runs)] == [NOT_REPRODUCED] * 3


def test_without_a_loss_at_any_epoch_nothing_is_measured(make):
    names = ("order_parameter/value", "order_parameter/scaled", "order_parameter/risk")
    names += ("phase/order_parameter", "phase/risk", "hessian_entries/active_share")
    runs = make(**{name.replace("/", "__"): 0.0 for name in names}, training__train_risk=0.0)
    rows = claims.order_rows(runs)
    assert [row.verdict for row in rows] == [NOT_MEASURED] * 4
    assert "R = 0 from the start" in rows[1].note
    zero, *saddles = claims.risk_rows(runs)
    assert "seed 0 from epoch 0 on" in zero.note
    assert [row.verdict for row in saddles] == [NOT_MEASURED] * 2


def test_without_active_examples_there_is_no_control_of_the_fall(make):
    row = only(claims.order_rows(make(hessian_entries__active_share=0.0)), "start")
    assert row.verdict == NOT_MEASURED
    assert "no example is active" in row.note


def test_zero_risk_is_that_at_the_end(make):
    row = claims.risk_rows(make(2))[0]
    assert (row.ours, row.verdict) == (0.0, REPRODUCED)
    assert "exactly 0 in 2 of 2 seeds: seed 0 from epoch 40 on, seed 1 from epoch 40" in row.note
    for risk in (lambda epoch: 0.6 * (epoch != 20), lambda epoch: 1e-4 + risk_at(epoch)):
        assert claims.risk_rows(make(training__train_risk=risk))[0].verdict == NOT_REPRODUCED
    one = [*make(), *make(training__train_risk=0.005), *make(training__train_risk=0.01)]
    row = claims.risk_rows(one)[0]
    assert (row.ours, row.verdict) == (pytest.approx(0.005), NOT_REPRODUCED)
    assert "exactly 0 in 1 of 3 seeds: seed 0 from epoch 40 on; largest 0.01" in row.note


def test_zero_risk_through_saddles(make):
    rows = claims.risk_rows(make(2))
    # the untrained net has negative curvature and is plastic as well
    assert [row.verdict for row in rows] == [REPRODUCED, NO_CONTENT, NO_CONTENT]
    assert "2 solved" in rows[2].note
    brought = claims.risk_rows(
        make(
            hessian_extremes__lambda_min=lambda epoch: -float(epoch > 0),
            phase__code=lambda epoch: float(epoch > 0),
        )
    )
    assert [row.verdict for row in brought] == [REPRODUCED] * 3
    few = claims.risk_rows(make(phase__risk=lambda epoch: float(epoch < 10)))
    assert [row.verdict for row in few][1:] == [NOT_MEASURED] * 2
    assert "2 to 2 trained measurements" in few[1].note
    # within the residual bound of 0 is not below 0
    edge = claims.risk_rows(make(hessian_extremes__lambda_min=-1e-3,
                                 hessian_extremes__residual_min=2e-3))  # fmt: skip
    assert verdict(edge, "lambda_min < 0") == NOT_REPRODUCED
    once = claims.risk_rows(make(phase__code=lambda epoch: 2.0 if epoch == 3 else 1.0))
    row = only(once, "plastic phase")
    assert (row.ours, row.verdict) == (pytest.approx(0.75), NOT_REPRODUCED)
    unknown = claims.risk_rows(make(phase__code=math.nan))
    assert verdict(unknown, "plastic phase") == NOT_REPRODUCED

    # the examples of the curvature were all learned before those of the gradient
    def soon(epoch: float) -> float:
        return float(epoch < 20)

    early = claims.risk_rows(
        make(phase__risk=soon, hessian_extremes__lambda_min=lambda epoch: -soon(epoch))
    )
    assert only(early, "lambda_min < 0").ours == 1.0


def test_spread_is_over_seeds(make):
    both = [*make(order_parameter__scaled=0.0), *make()]
    scaled, risk = (course(both, f"order_parameter/{name}").values for name in ("scaled", "risk"))
    medians = [0.0, np.median(scaled[1, :-1] / risk[1, :-1])]
    row = only(claims.order_rows(both), "eta OP / R")
    assert row.spread == pytest.approx(np.std(medians, ddof=1))
    assert math.isnan(claims.weight_rows(make())[0].spread)
