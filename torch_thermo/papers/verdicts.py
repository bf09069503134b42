"""What a paper states, what we measure, and the rules that say whether the two agree.

A verdict is computed, never written: a claim holds the paper's number, the tolerance with its
reason, and a rule; the rule gets our number and its spread. The rules know nothing of any paper.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

__all__ = [
    "ARITHMETIC_SLIP",
    "LABELS_SWAPPED",
    "MISPRINT",
    "NOT_MEASURED",
    "NOT_REPRODUCED",
    "NO_CONTENT",
    "REPRODUCED",
    "WITHIN_SPREAD",
    "Claim",
    "Row",
    "Rule",
    "arithmetic",
    "at_least",
    "at_most",
    "content",
    "decades",
    "formula",
    "law",
    "number",
    "order",
    "picked",
]

REPRODUCED = "reproduced"
NOT_REPRODUCED = "not reproduced"
WITHIN_SPREAD = "within the spread"
NOT_MEASURED = "not measured"
ARITHMETIC_SLIP = "arithmetic slip"
MISPRINT = "misprint"
LABELS_SWAPPED = "labels swapped"
NO_CONTENT = "no content"

Rule = Callable[[float, float, float, float], str]
"""``(paper, ours, tolerance, spread) -> verdict``; a spread of NaN is one that is not known."""

NOISE = 5.0  # tolerances; where twice the spread is more the number is not known well enough
CHANCE = 0.05  # share of random targets that a rule with content may accept


def number(paper: float, ours: float, tolerance: float, spread: float) -> str:
    """A stated number: reproduced if ``|ours - paper| <= tolerance``.

    Further off, but no further than twice the spread over seeds, it is within the spread: the
    paper's could be one of our seeds, but noise that could hide a difference proves no agreement.
    Where twice the spread is more than the paper's number itself, or than five tolerances, what it
    does not refute is not measured.
    """
    return _judged(ours - paper, tolerance, spread, abs(paper))


def _judged(off: float, tolerance: float, spread: float, size: float) -> str:
    """The verdict for a distance; ``size`` is what noise may not exceed."""
    if not math.isfinite(off):
        return NOT_MEASURED
    miss, noise = abs(off), 2.0 * spread
    if tolerance > 0.0:
        size = min(size, NOISE * tolerance)
    if noise > size and miss <= max(noise, tolerance):
        return NOT_MEASURED
    if miss <= tolerance:
        return REPRODUCED
    return WITHIN_SPREAD if miss <= noise else NOT_REPRODUCED


def decades(paper: float, ours: float, tolerance: float, spread: float) -> str:
    """A stated order of magnitude: the same sign, and ``|log10(ours / paper)| <= tolerance``.

    The spread is in decades too, and measures nothing where twice it is more than one.
    """
    if not math.isfinite(ours):
        return NOT_MEASURED
    if ours * paper <= 0.0:
        return NOT_REPRODUCED
    return _judged(math.log10(ours / paper), tolerance, spread, 1.0)


def at_most(paper: float, ours: float, tolerance: float, spread: float) -> str:
    """A stated upper bound: reproduced if ``ours <= paper + tolerance``."""
    over = max(ours - paper, 0.0) if math.isfinite(ours) else ours
    return _judged(over, tolerance, spread, abs(paper))


def at_least(paper: float, ours: float, tolerance: float, spread: float) -> str:
    """A stated lower bound: reproduced if ``ours >= paper - tolerance``."""
    return at_most(-paper, -ours, tolerance, spread)


def arithmetic(paper: float, ours: float, tolerance: float, spread: float) -> str:
    """A number that the paper computes from its own formula, recomputed.

    There are no seeds, so no spread counts: what is further off than the digits printed allow
    is a slip.
    """
    verdict = number(paper, ours, tolerance, math.nan)
    return ARITHMETIC_SLIP if verdict == NOT_REPRODUCED else verdict


def law(paper: float, ours: float, tolerance: float, spread: float) -> str:
    """A law, of which ours is how far it is from holding: noise is no excuse, no spread counts."""
    return at_most(paper, abs(ours), tolerance, math.nan)


def formula(corrected: float) -> Rule:
    """An identity as the paper prints it, beside its corrected form.

    Args:
        corrected: how far the corrected form is from holding.

    Returns:
        A rule where ours is how far the *printed* form is from holding. It is a misprint if the
        printed form fails and the corrected one holds.
    """

    def rule(paper: float, ours: float, tolerance: float, spread: float) -> str:
        verdict = law(paper, ours, tolerance, spread)
        if verdict == NOT_REPRODUCED and abs(corrected) <= tolerance:
            return MISPRINT
        return verdict

    return rule


def content(null: float, holds: Rule = law) -> Rule:
    """A law that might hold whatever is measured.

    Args:
        null: what ours would be on numbers that no training produced: of a law how far it is from
            holding there.
        holds: the law's own rule; by default ours is how far it is from holding on the run.

    Returns:
        A rule that judges as ``holds`` does. A law that holds on the null as well says nothing of
        training: no content. Whether one that holds beside an unknown null (NaN) says anything is
        not measured.
    """

    def rule(paper: float, ours: float, tolerance: float, spread: float) -> str:
        verdict = holds(paper, ours, tolerance, spread)
        if verdict != REPRODUCED:
            return verdict
        if math.isnan(null):
            return NOT_MEASURED
        return NO_CONTENT if holds(paper, null, tolerance, math.nan) == REPRODUCED else verdict

    return rule


def picked(null: float) -> Rule:
    """A stated number beside the nearest of several that we measure.

    Args:
        null: the share of random targets that the same rule does not refuse.

    Returns:
        A rule that refuses as `number` does. What it does not refuse has no content if more than
        one random target in twenty would have passed as well.
    """

    def rule(paper: float, ours: float, tolerance: float, spread: float) -> str:
        verdict = number(paper, ours, tolerance, spread)
        if math.isfinite(ours) and verdict != NOT_REPRODUCED and null > CHANCE:
            return NO_CONTENT
        return verdict

    return rule


def order(paper: float, ours: float, tolerance: float, spread: float) -> str:
    """Which of two labelled quantities is the larger, as the share of points where it is one.

    The labels are swapped if the other one is the larger at all points where the paper has this
    one. No spread counts.
    """
    verdict = law(0.0, ours - paper, tolerance, spread)
    if verdict == NOT_REPRODUCED and abs(1.0 - ours - paper) <= tolerance:
        return LABELS_SWAPPED
    return verdict


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        quantity: what it is.
        where: in the paper: section, equation or figure.
        paper: as the paper prints it.
        ours: what we measure or compute; NaN where it could not be, and the note says why.
        spread: standard deviation over seeds, NaN with fewer than two.
        tolerance: how far apart the two may be.
        reason: why so far.
        verdict: of the claim's rule.
        note: what there is to add.
        claim: what was judged.
    """

    quantity: str
    where: str
    paper: str
    ours: float
    spread: float
    tolerance: float
    reason: str
    verdict: str
    note: str
    claim: Claim


@dataclass(frozen=True)
class Claim:
    """A number or a law that a paper states, and the rule ours is held against it by.

    Attributes:
        quantity: what it is.
        where: section, equation or figure.
        printed: as the paper prints it.
        value: the same as a number; of a law, how far it should be from holding: 0.
        tolerance: how far ours may be from it, in the rule's unit; at least 0.
        reason: why so far.
        rule: decides.

    Raises:
        ValueError: the tolerance is negative or not finite, or has no reason.
    """

    quantity: str
    where: str
    printed: str
    value: float
    tolerance: float
    reason: str
    rule: Rule = number

    def __post_init__(self) -> None:
        """Check the tolerance."""
        if not 0.0 <= self.tolerance < math.inf:
            raise ValueError(
                f"tolerance of {self.quantity!r} must be at least 0, got {self.tolerance}"
            )
        if not self.reason:
            raise ValueError(f"the tolerance of {self.quantity!r} needs a reason")

    def judge(self, ours: float, spread: float = math.nan, note: str = "") -> Row:
        """The line of the table for what we measured.

        Args:
            ours: our number.
            spread: standard deviation over seeds; NaN if not known.
            note: what there is to add.
        """
        verdict = self.rule(self.value, ours, self.tolerance, spread)
        return Row(
            quantity=self.quantity,
            where=self.where,
            paper=self.printed,
            ours=float(ours),
            spread=float(spread),
            tolerance=self.tolerance,
            reason=self.reason,
            verdict=verdict,
            note=note,
            claim=self,
        )
