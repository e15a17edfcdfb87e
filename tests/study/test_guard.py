"""The guard: what trips it, and what it refuses to be."""

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
    assert guard.trips(score(10, 30), unedited, 1.0) == ""
    assert (
        guard.trips(score(1, 78), unedited, 1.0) == ""
    )  # 39.5: a text may get worse, the mean decides
    assert guard.trips(score(2, 80), unedited, 1.0) == "perplexity 2.05 times the unedited model's"
    assert guard.trips(score(1, 2), unedited, 1.0) == ""


def test_a_text_that_broke_trips_whatever_the_limit():
    guard = Guard(max_ppl_ratio=1e300)
    for broken in (np.inf, np.nan):
        assert (
            guard.trips(score(10, broken), score(10, 30), 1.0)
            == "the loss of 1 texts is not finite"
        )
    assert guard.trips(score(1e200, 30), score(10, 30), 1.0) == ""
    overflowing = Perplexity(
        np.array([4 * 1000.0]), np.array([4])
    )  # finite losses, a mean that is not
    assert overflowing.mean == np.inf
    assert guard.trips(overflowing, score(10), 1.0) == "perplexity inf times the unedited model's"


def test_an_edit_that_is_not_finite_trips():
    for norm in (np.inf, np.nan):
        assert Guard().trips(score(10), score(10), norm) == "the edit itself is not finite"


@pytest.mark.parametrize("ratio", [1.0, 0.5, 0.0, -2.0, float("nan")])
def test_a_limit_that_is_none_is_refused(ratio):
    with pytest.raises(ValueError, match=r"guard\.max_ppl_ratio=.*: expected a number over 1"):
        Guard(max_ppl_ratio=ratio)


def test_an_unknown_action_is_refused():
    with pytest.raises(
        ValueError, match=r"guard\.action='undo': expected one of record, rollback, stop"
    ):
        Guard(action="undo")
    assert [Guard(action=action).action for action in ACTIONS] == ["record", "rollback", "stop"]
