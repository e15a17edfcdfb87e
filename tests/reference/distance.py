"""How far arrays are from what is expected."""

import numpy as np


def relative(found, expected) -> float:
    """Measure the distance in the Frobenius norm, relative to the expected one."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
