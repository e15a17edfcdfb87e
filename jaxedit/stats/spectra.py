"""The eigenvalues of second moments, and how those of a sample compare with a larger one's."""

from typing import Any

import numpy as np

from jaxedit.stats.second_moments import Stats

FREE_BELOW = 2e-2  # AlphaEdit's published threshold (2410.02355): smaller eigenvalues are free


def spectrum(cov_FF: np.ndarray) -> dict[str, float]:
    """Compute trace, extreme eigenvalues and condition number of a second moment."""
    value_F = np.linalg.eigvalsh(np.asarray(cov_FF, np.float64))
    smallest, largest = float(value_F[0]), float(value_F[-1])
    condition = largest / smallest if smallest > 0 else float("inf")
    trace = float(value_F.sum())
    return {"trace": trace, "largest": largest, "smallest": smallest, "condition": condition}


def compare_stats(small: Stats, large: Stats) -> dict[int, dict[str, Any]]:
    """Compare the second moments of a sample with those of a larger one, layer by layer.

    Returns:
      For each layer of both:
      error: |C_small - C_large| / |C_large| in the Frobenius norm.
      free_small, free_large: the shares of eigenvalues below AlphaEdit's published threshold 2e-2.
      tenth_ratios: small to large, the ratios of the geometric means of each tenth of the
        eigenvalues, the smallest tenth first.
    """
    found = {}
    for layer in sorted(set(small.moments) & set(large.moments)):
        small_FF, large_FF = (
            np.asarray(stats.moments[layer], np.float64) for stats in (small, large)
        )
        # In ascending order; rounding may leave the least of them at or below zero.
        small_F, large_F = (
            np.maximum(np.linalg.eigvalsh(cov_FF), np.finfo(np.float32).tiny)
            for cov_FF in (small_FF, large_FF)
        )
        n_parts = min(10, len(small_F))
        log_tenths = zip(
            np.array_split(np.log(small_F), n_parts),
            np.array_split(np.log(large_F), n_parts),
            strict=True,
        )
        found[layer] = {
            "error": float(np.linalg.norm(small_FF - large_FF) / np.linalg.norm(large_FF)),
            "free_small": float(np.mean(small_F < FREE_BELOW)),
            "free_large": float(np.mean(large_F < FREE_BELOW)),
            "tenth_ratios": [
                float(np.exp(np.mean(log_small) - np.mean(log_large)))
                for log_small, log_large in log_tenths
            ],
        }
    return found
