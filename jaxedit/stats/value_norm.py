"""The mean norm of the values that facts are written with: what NAS scales them to (2602.02543).

It is one number of a layer, measured by `jaxedit.solving.norm_anchor` and kept in the file of the
second moments.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxedit.files import shorten_json

KEPT_SHARE = 0.95  # of the norms, without the largest, as released


class ValueNorm(NamedTuple):
    """A mean norm |v*| and what it is the mean of.

    Attributes:
      mean: of the norms that are left.
      stderr: its standard error.
      n_requests: facts whose values were optimised.
      n_dropped: of these, the ones with the largest norms, which are left out.
    """

    mean: float
    stderr: float
    n_requests: int
    n_dropped: int

    @classmethod
    def from_norms(cls, norm_I: np.ndarray) -> "ValueNorm":
        """Average norms without their largest twentieth, rounded down.

        Raises:
          ValueError: on fewer than two norms.
        """
        n_requests = len(norm_I)
        n_dropped = math.floor((1 - KEPT_SHARE) * n_requests)
        kept = np.sort(norm_I.astype(np.float64))[: n_requests - n_dropped]
        if len(kept) < 2:
            raise ValueError(f"a mean norm of values needs two facts or more, got {n_requests}")
        stderr = float(kept.std(ddof=1) / np.sqrt(len(kept)))
        return cls(float(kept.mean()), stderr, n_requests, n_dropped)


def to_json(norms: Mapping[int, ValueNorm]) -> dict[str, Any]:
    """Write norms by layer as JSON can hold them."""
    return {str(layer): norm._asdict() for layer, norm in sorted(norms.items())}


def from_json(content: Any) -> dict[int, ValueNorm]:
    """Read what `to_json` wrote.

    Raises:
      ValueError: where it is something else.
    """
    try:
        norms = {int(layer): ValueNorm(**norm) for layer, norm in content.items()}
        is_right = all(
            type(norm.mean) is float
            and type(norm.stderr) is float
            and type(norm.n_requests) is int
            and type(norm.n_dropped) is int
            and math.isfinite(norm.mean)
            and norm.mean > 0
            for norm in norms.values()
        )
    except (AttributeError, TypeError, ValueError):
        is_right = False
    if not is_right:
        raise ValueError(
            "expected layers with mean, stderr, n_requests and n_dropped as value_norms, got "
            f"{shorten_json(content)}"
        )
    return norms
