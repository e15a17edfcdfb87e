"""What a matplotlib figure shows, read back."""

import numpy as np


def points(line) -> list[list[float]]:
    """Return the points of a line."""
    return np.transpose(line.get_data()).tolist()
