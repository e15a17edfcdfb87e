"""Numbers of an edit that are not finite: an error of that edit, which names their place."""

import numpy as np

from jaxedit.edits.edit import Dense, LowRank
from jaxedit.mesh import to_host


def check_finite(what: str, array: np.ndarray | float, layer: int | None = None) -> None:
    """Raise a ValueError where a quantity of an edit is not finite.

    Args:
      what: its name, for the message.
      array: its numbers.
      layer: where it was computed; None: at no one layer.
    """
    numbers = np.asarray(array)
    n_bad = int(np.sum(~np.isfinite(numbers)))
    if n_bad:
        where = "" if layer is None else f" of layer {layer}"
        raise ValueError(
            f"the {what}{where} is not finite ({n_bad} of {numbers.size} numbers): the edit is not "
            "made"
        )


def check_finite_delta(delta: LowRank | Dense) -> None:
    """Raise a ValueError where an edit's change of a weight is not finite."""
    factors = (delta.u_FR, delta.v_RD) if isinstance(delta, LowRank) else (delta.delta_FD,)
    for factor in factors:
        check_finite(f"change of {delta.weight}", to_host(factor), delta.layer)
