"""Numbers as a table or a figure shows them."""

from typing import Any

import numpy as np

from jaxedit.analyses.damage_prediction import COLLAPSE_PPL

HIGHEST_PPL = 1e100  # what a figure draws larger ones as, infinite ones included


def format_number(value: Any) -> str:
    """A number for people: thousands separated, small ones with three figures."""
    value = float(value)
    if not np.isfinite(value):
        return str(value)
    return (
        f"{value:,.0f}"
        if round(abs(value), 1) >= 1000
        else f"{value:.3g}"
        if abs(value) < 10
        else f"{value:.1f}"
    )


def clip_for_plot(ppl: list[float]) -> tuple[np.ndarray, float]:
    """Perplexities as a figure shows them, what is not finite at ten times the highest of the
    others; and that place.
    """
    value = np.array(ppl, float)
    top = 10.0 * min(HIGHEST_PPL, max([COLLAPSE_PPL, *value[np.isfinite(value)]]))
    return np.where(np.isfinite(value), np.minimum(value, top), top), top
