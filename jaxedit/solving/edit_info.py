"""What an edit over several layers says of itself in numbers, for a study's journal."""

import numpy as np

from jaxedit.edits.edit import Dense, LowRank, delta_norm
from jaxedit.solving.value import OptimisedValues


def edit_info(
    values: OptimisedValues,
    deltas: list[LowRank | Dense],
    solve_residual: float,
    z_ID: np.ndarray,
    reached_ID: np.ndarray,
) -> dict[str, float]:
    """Summarise an edit in numbers, means over its requests.

    Args:
      values: as optimised.
      deltas: the updates.
      solve_residual: of the worst solve, relative.
      z_ID: the values to write.
      reached_ID: what the model holds after the edit; `z_miss` is |z - reached| / |delta|, 0 where
        there is no delta.
    """
    norms = {f"norm_layer_{delta.layer}": delta_norm(delta) for delta in deltas}
    delta_norm_I = np.linalg.norm(values.delta_ID, axis=1)
    miss_I = np.linalg.norm(z_ID - reached_ID, axis=1)
    z_miss_I = np.where(delta_norm_I > 0, miss_I / np.where(delta_norm_I > 0, delta_norm_I, 1), 0)
    return {
        "loss": float(np.mean(values.nll_I + values.kl_I + values.decay_I)),
        "loss_nll_nats": float(np.mean(values.nll_I)),
        "loss_kl": float(np.mean(values.kl_I)),
        "loss_weight_decay": float(np.mean(values.decay_I)),
        "probability": float(np.mean(np.exp(-values.nll_I))),
        "n_steps": float(np.mean(values.n_steps_I)),
        "delta_norm": float(np.mean(delta_norm_I)),
        "z_miss": float(np.mean(z_miss_I)),
        "solve_residual": solve_residual,
        **norms,
    }
