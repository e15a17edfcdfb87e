"""Second moments E[k k^T] of the MLP's keys, the covariances that locate-then-edit methods weigh an update by."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from jaxedit.models.model import Model


@dataclasses.dataclass(frozen=True, eq=False)
class Stats:
    """Uncentred second moments E[k k^T] [F, F] of the second MLP layer's input, by layer.

    Attributes:
      moments: layer -> [F, F], on the host.
      n_tokens: how many tokens they were averaged over.
    """

    moments: Mapping[int, np.ndarray]
    n_tokens: int

    @classmethod
    def from_moments(cls, moments: Mapping[int, np.ndarray], n_tokens: int) -> "Stats":
        """Stats from given matrices.

        Raises:
          ValueError: on a matrix that is not square, symmetric and finite, or a token count below one.
        """
        if n_tokens < 1:
            raise ValueError(f"n_tokens={n_tokens}: second moments are an average over at least one token")
        for layer, cov_FF in moments.items():
            cov_FF = np.asarray(cov_FF)
            square = cov_FF.ndim == 2 and cov_FF.shape[0] == cov_FF.shape[1]
            if not square or not np.all(np.isfinite(cov_FF)) or not np.allclose(cov_FF, cov_FF.T, rtol=1e-3, atol=1e-6):
                raise ValueError(f"the second moment of layer {layer} must be a finite symmetric matrix, got {cov_FF.shape}")
        return cls({int(layer): np.asarray(cov) for layer, cov in moments.items()}, int(n_tokens))

    def of(self, model: Model, layer: int) -> np.ndarray:
        """The matrix of one layer, checked against the model.

        Raises:
          ValueError: where the layer is absent or the matrix is of another width.
        """
        if layer not in self.moments:
            raise ValueError(f"these second moments are of layers {sorted(self.moments)}, layer {layer} is asked for")
        cov_FF = self.moments[layer]
        if cov_FF.shape[0] != model.config.F:
            raise ValueError(
                f"the second moments are {cov_FF.shape[0]} wide, the model's MLP {model.config.F}: another model's?"
            )
        return cov_FF
