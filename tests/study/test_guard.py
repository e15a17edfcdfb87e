"""The guard: what it calls a violation, and which limits and actions there are."""

import numpy as np
import pytest

from jaxedit import Perplexity
from jaxedit.study.guard import ACTIONS, Guard


def score(*per_text: float) -> Perplexity:
    """Texts of four tokens with these perplexities."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return Perplexity(4 * np.log(np.array(per_text)), np.full(len(per_text), 4))


def test_the_limit_is_a_ratio_of_means():
    guard, unedited = Guard(max_ppl_ratio=2.0), score(10, 30)
    assert guard.violation(score(10, 30), unedited, 1.0) is None
    # 39.5: a text may get worse, the mean decides.
    assert guard.violation(score(1, 78), unedited, 1.0) is None
    code, reason = guard.violation(score(2, 80), unedited, 1.0)
    assert (code, reason) == ("ppl_ratio", "perplexity 2.05 times the unedited model's")
    assert guard.violation(score(1, 2), unedited, 1.0) is None


@pytest.mark.parametrize(
    ("statistic", "harmless", "damaging", "reason"),
    [
        ("mean", (10, 30, 75), (10, 30, 300), "perplexity 2.43 times the unedited model's"),
        # one broken text of three: the cube root of its ratio
        ("pooled", (10, 30, 600), (10, 30, 1000), "pooled perplexity 2.15 times the unedited"),
        ("median", (10, 30, 1e9), (10, 70, 100), "median perplexity 2.33 times the unedited"),
    ],
)
def test_another_statistic_may_be_limited(statistic, harmless, damaging, reason):
    guard, unedited = Guard(max_ppl_ratio=2.0, statistic=statistic), score(10, 30, 100)
    assert guard.violation(score(*harmless), unedited, 1.0) is None
    violation = guard.violation(score(*damaging), unedited, 1.0)
    assert violation is not None
    assert violation.code == "ppl_ratio"
    assert violation.reason.startswith(reason)


def test_an_unknown_statistic_is_refused():
    with pytest.raises(ValueError, match=r"guard\.statistic='mode': expected one of mean, pooled"):
        Guard(statistic="mode")


def test_a_text_whose_loss_is_not_finite_is_a_violation_whatever_the_limit():
    guard = Guard(max_ppl_ratio=1e300)
    for broken in (np.inf, np.nan):
        code, reason = guard.violation(score(10, broken), score(10, 30), 1.0)
        assert (code, reason) == ("non_finite_loss", "the loss of 1 texts is not finite")
    assert guard.violation(score(1e200, 30), score(10, 30), 1.0) is None


def test_finite_losses_whose_perplexity_overflows_are_a_violation():
    overflowing = Perplexity(np.array([4 * 1000.0]), np.array([4]))
    assert overflowing.mean == np.inf
    code, reason = Guard(max_ppl_ratio=1e300).violation(overflowing, score(10), 1.0)
    assert (code, reason) == ("ppl_ratio", "perplexity inf times the unedited model's")


def test_an_edit_that_is_not_finite_is_a_violation():
    for norm in (np.inf, np.nan):
        code, reason = Guard().violation(score(10), score(10), norm)
        assert (code, reason) == ("non_finite_edit", "the edit itself is not finite")
        assert Guard().violation(None, score(10), norm).code == "non_finite_edit"
    assert Guard().violation(None, score(10), 1.0) is None


def test_a_large_relative_perturbation_needs_the_perplexity():
    guard = Guard(max_relative_perturbation=0.1)
    assert [guard.needs_perplexity(p) for p in (0.1, 0.11, np.inf, np.nan)] == [False, *[True] * 3]
    assert not Guard(max_relative_perturbation=None).needs_perplexity(np.inf)


@pytest.mark.parametrize("ratio", [1.0, 0.5, 0.0, -2.0, float("nan")])
def test_a_limit_that_is_none_is_refused(ratio):
    with pytest.raises(ValueError, match=r"guard\.max_ppl_ratio=.*: expected a number over 1"):
        Guard(max_ppl_ratio=ratio)


def test_an_unknown_action_is_refused():
    message = r"guard\.action='undo': expected one of keep, rollback, stop"
    with pytest.raises(ValueError, match=message):
        Guard(action="undo")
    assert [Guard(action=action).action for action in ACTIONS] == ["keep", "rollback", "stop"]
