"""The keys of past edits on the host, for methods that make M anew while edits go by.

Kept of a layer are C, the second moment of its keys, and S = sum of K K^T over the edits so far, of
which the last ones stay keys until they are many.
"""

from typing import NamedTuple

import numpy as np

# Past keys are kept as they are until they are more than 1/REBASE of the layer's width. Then they
# are folded into a matrix: here into S, in `jaxedit.solving.solve` into the whitener.
REBASE = 8


class KeyHistory(NamedTuple):
    """What the host keeps of a layer.

    Attributes:
      moment_FF: C.
      gram_FF: S up to some edit [F, F]; None: 0.
      recent: the keys [I, F] of each edit since.
    """

    moment_FF: np.ndarray
    gram_FF: np.ndarray | None = None
    recent: tuple[np.ndarray, ...] = ()


def append(history: KeyHistory, key_IF: np.ndarray) -> KeyHistory:
    """Add the keys of one more edit: S + K K^T."""
    history = history._replace(recent=(*history.recent, key_IF))
    n_recent, width = sum(map(len, history.recent)), key_IF.shape[1]
    if n_recent * REBASE <= width:
        return history
    return history._replace(gram_FF=gram(history), recent=())


def gram(history: KeyHistory, neurons: np.ndarray | None = None) -> np.ndarray:
    """Sum up S in float64 [M, M]: all of it, or its rows and columns of some neurons."""
    if neurons is None:
        neurons = np.arange(len(history.moment_FF))
    s_MM = np.zeros((len(neurons), len(neurons)))
    if history.gram_FF is not None:
        s_MM = history.gram_FF[np.ix_(neurons, neurons)]
    if history.recent:
        key_IM = np.concatenate(history.recent).astype(np.float64)[:, neurons]
        s_MM = s_MM + key_IM.T @ key_IM
    return s_MM
