from __future__ import annotations

import math

import pytest

from torch_thermo.papers import verdicts
from torch_thermo.papers.verdicts import (
    ARITHMETIC_SLIP,
    LABELS_SWAPPED,
    MISPRINT,
    NO_CONTENT,
    NOT_MEASURED,
    NOT_REPRODUCED,
    REPRODUCED,
    WITHIN_SPREAD,
    Claim,
)

NAN = math.nan


@pytest.mark.parametrize(
    ("ours", "spread", "verdict"),
    [
        (2.44, NAN, REPRODUCED),
        (2.34, 0.0, REPRODUCED),  # the tolerance's edge, but for rounding
        (2.20, 0.02, NOT_REPRODUCED),
        (2.20, NAN, NOT_REPRODUCED),
        (-2.44, 0.02, NOT_REPRODUCED),
        (2.20, 0.13, WITHIN_SPREAD),  # noise that could hide the difference is no agreement
        (2.20, 0.11, NOT_REPRODUCED),
        (2.20, 0.26, NOT_MEASURED),  # more than five tolerances: that is not known well enough
        (2.44, 0.26, NOT_MEASURED),  # agreement by luck is none either
        (9.00, 0.26, NOT_REPRODUCED),  # but what is further off than all noise is off
        (NAN, 0.02, NOT_MEASURED),
        (math.inf, 0.02, NOT_MEASURED),
    ],
)
def test_a_number(ours, spread, verdict):
    assert verdicts.number(2.44, ours, 0.101, spread) == verdict


@pytest.mark.parametrize(
    ("ours", "spread", "verdict"),
    [
        (-2.1e-10, NAN, REPRODUCED),
        (-1e-10, NAN, REPRODUCED),
        (-2.7e-9, NAN, NOT_REPRODUCED),
        (-1.5e-9, 0.4, WITHIN_SPREAD),
        (-2.7e-9, 0.6, NOT_MEASURED),  # not known to an order of magnitude
        (2.7e-10, 5.0, NOT_REPRODUCED),  # a wrong sign is no matter of spread
        (0.0, 5.0, NOT_REPRODUCED),
        (NAN, NAN, NOT_MEASURED),
    ],
)
def test_an_order_of_magnitude(ours, spread, verdict):
    assert verdicts.decades(-2.7e-10, ours, 0.5, spread) == verdict


def test_bounds():
    assert verdicts.at_most(0.1, 0.05, 0.0, NAN) == REPRODUCED
    assert verdicts.at_most(0.1, 0.1, 0.0, NAN) == REPRODUCED
    assert verdicts.at_most(0.1, 0.5, 0.01, 0.02) == NOT_REPRODUCED
    assert verdicts.at_most(0.1, 0.13, 0.01, 0.02) == WITHIN_SPREAD
    assert verdicts.at_most(0.1, 0.5, 0.01, 0.3) == NOT_MEASURED
    assert verdicts.at_most(0.1, NAN, 0.01, 0.3) == NOT_MEASURED
    assert verdicts.at_least(0.1, 0.5, 0.0, NAN) == REPRODUCED
    assert verdicts.at_least(0.1, 0.05, 0.01, 0.001) == NOT_REPRODUCED
    assert verdicts.at_least(0.1, NAN, 0.01, NAN) == NOT_MEASURED


def test_noise_as_large_as_the_number_measures_nothing():
    # each of these was "within the spread" for any spread that is large enough
    for wide in (1.3, 10.0, 1e9, math.inf):
        assert verdicts.number(2.44, 0.0, 1.0, wide) == NOT_MEASURED
        assert verdicts.at_most(0.1, 0.5, 0.0, wide) == NOT_MEASURED
        assert verdicts.decades(2.44, 100.0, 0.5, wide) == NOT_MEASURED


def test_a_law_gains_nothing_from_noise():
    for spread in (NAN, 0.01, 10.0):
        assert verdicts.law(0.0, 0.2, 0.05, spread) == NOT_REPRODUCED
        assert verdicts.law(0.0, -0.04, 0.05, spread) == REPRODUCED
        assert verdicts.content(null=0.3)(0.0, 0.2, 0.05, spread) == NOT_REPRODUCED


def test_what_a_random_target_would_meet_as_well_has_no_content():
    assert verdicts.picked(null=0.05)(-2.5, -2.46, 0.05, NAN) == REPRODUCED
    assert verdicts.picked(null=0.06)(-2.5, -2.46, 0.05, NAN) == NO_CONTENT
    assert verdicts.picked(null=0.9)(-2.5, -2.7, 0.05, 0.12) == NO_CONTENT
    assert verdicts.picked(null=0.9)(-2.5, -2.7, 0.05, 5.0) == NO_CONTENT
    assert verdicts.picked(null=0.06)(-2.5, -2.7, 0.05, 0.01) == NOT_REPRODUCED
    assert verdicts.picked(null=0.06)(-2.5, NAN, 0.05, 0.01) == NOT_MEASURED


def test_arithmetic_has_no_spread():
    assert verdicts.arithmetic(1.47, 1.4698, 0.03, NAN) == REPRODUCED
    assert verdicts.arithmetic(1.37, 1.4698, 0.03, 9.0) == ARITHMETIC_SLIP
    assert verdicts.arithmetic(1.37, NAN, 0.03, NAN) == NOT_MEASURED


def test_a_misprint_needs_a_corrected_form_that_holds():
    assert verdicts.formula(1e-14)(0.0, 300.0, 1e-9, NAN) == MISPRINT
    assert verdicts.formula(1.0)(0.0, 300.0, 1e-9, NAN) == NOT_REPRODUCED
    assert verdicts.formula(1e-14)(0.0, -1e-12, 1e-9, NAN) == REPRODUCED
    assert verdicts.formula(NAN)(0.0, 300.0, 1e-9, NAN) == NOT_REPRODUCED
    assert verdicts.formula(1e-14)(0.0, NAN, 1e-9, NAN) == NOT_MEASURED


def test_a_law_that_holds_on_anything_has_no_content():
    assert verdicts.content(null=1e-13)(0.0, 1e-13, 1e-9, NAN) == NO_CONTENT
    assert verdicts.content(null=0.3)(0.0, 1e-13, 1e-9, NAN) == REPRODUCED
    assert verdicts.content(null=0.3)(0.0, -0.2, 1e-9, NAN) == NOT_REPRODUCED
    assert verdicts.content(null=0.0)(0.0, 0.2, 1e-9, NAN) == NOT_REPRODUCED
    assert verdicts.content(null=0.0)(0.0, NAN, 1e-9, NAN) == NOT_MEASURED


def test_a_bound_that_the_null_meets_as_well_has_no_content():
    def judge(null: float, ours: float, spread: float = NAN) -> str:
        return verdicts.content(null, verdicts.at_least)(0.98, ours, 0.005, spread)

    assert judge(1.0, 0.99) == NO_CONTENT
    assert judge(0.0, 0.99) == REPRODUCED
    assert judge(1.0, 0.9) == NOT_REPRODUCED
    # beside a null that is not known nobody can say whether the law says anything
    assert judge(NAN, 0.99) == NOT_MEASURED
    assert judge(NAN, 0.9) == NOT_REPRODUCED
    assert judge(NAN, NAN) == NOT_MEASURED
    assert judge(1.0, 0.97, 0.01) == WITHIN_SPREAD


def test_an_order():
    assert verdicts.order(1.0, 1.0, 0.0, NAN) == REPRODUCED
    assert verdicts.order(1.0, 0.0, 0.0, NAN) == LABELS_SWAPPED
    assert verdicts.order(0.0, 1.0, 0.0, NAN) == LABELS_SWAPPED
    assert verdicts.order(1.0, 0.02, 0.0, 0.5) == NOT_REPRODUCED
    assert verdicts.order(1.0, 0.98, 0.0, 0.5) == NOT_REPRODUCED
    assert verdicts.order(1.0, NAN, 0.0, NAN) == NOT_MEASURED


def test_a_claim_is_judged_by_its_rule():
    claim = Claim("beta", "sec. 10", "1.37", 1.37, 0.03, "digits", verdicts.arithmetic)
    row = claim.judge(1.4698, note="from -2.3")
    assert (row.verdict, row.ours, row.paper, row.note) == (
        ARITHMETIC_SLIP,
        1.4698,
        "1.37",
        "from -2.3",
    )
    assert math.isnan(row.spread)
    assert claim.judge(1.37).verdict == REPRODUCED


@pytest.mark.parametrize("tolerance", [-0.1, math.inf, NAN])
def test_a_claim_without_a_tolerance_is_refused(tolerance):
    with pytest.raises(ValueError, match=r"tolerance of 'beta' must be at least 0, got"):
        Claim("beta", "sec. 10", "1.37", 1.37, tolerance, "digits")
    with pytest.raises(ValueError, match="needs a reason"):
        Claim("beta", "sec. 10", "1.37", 1.37, 0.1, "")
