"""M of a layer's keys for `jaxedit.solving.solve`: a whitener, and the keys of past edits."""

from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from jaxedit.edits.edit import Array
from jaxedit.mesh import device_put_global, parameter_sharding
from jaxedit.solving.past_keys import PastKeys, no_past_keys


class KeyRegulariser(NamedTuple):
    """M of one layer's keys.

    Attributes:
      whitener_MF: W; None: the identity.
      past: the keys of past edits in W's coordinates; None: no past edits.
    """

    whitener_MF: Array | None = None
    past: PastKeys | None = None

    @property
    def n_history(self) -> int:
        """Past keys that are not folded."""
        return 0 if self.past is None else self.past.key_FR.shape[1]


def shard_regulariser(mesh: Mesh, whitener_MF: np.ndarray) -> KeyRegulariser:
    """Put a whitener on the devices, split as the weight is that it belongs to; no history."""
    sharding = parameter_sharding(mesh, "MF", whitener_MF.shape)
    return KeyRegulariser(device_put_global(sharding, whitener_MF))


def shard_folded(mesh: Mesh, basis_MF: np.ndarray, fold_MM: np.ndarray) -> KeyRegulariser:
    """Put a basis on the devices as a whitener; what M is within it stays on the host in float64.

    Args:
      mesh: the devices.
      basis_MF: of the subspace in which M is.
      fold_MM: L^-1 with L L^T = M in that basis; M holds the past keys too, so that none are left
        to be added.
    """
    M, F = basis_MF.shape
    regulariser = shard_regulariser(mesh, basis_MF)
    return regulariser._replace(past=no_past_keys(F, M, fold_MM))
