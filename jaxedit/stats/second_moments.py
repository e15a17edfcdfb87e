"""Second moments E[k k^T] of the MLP's keys, the covariances that locate-then-edit methods weigh an
update by.

Uncentred, over the tokens of a corpus (2202.05262, eq. 2). With few tokens the eigenvalues spread:
10 x F tokens leave the smallest at about half of their true size, so an update goes further along
them than it should, and make the large ones too large. A threshold deep among the small eigenvalues
(AlphaEdit's null space) then counts too many directions as free, one above most of them too few.
`compare_stats` tells how far off a sample is."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxedit.files import write_atomic
from jaxedit.models.model import Model


@dataclasses.dataclass(frozen=True, eq=False)
class Stats:
    """Uncentred second moments E[k k^T] [F, F] of the second MLP layer's input, by layer.

    Attributes:
      moments: layer -> [F, F], on the host.
      n_tokens: how many tokens they were averaged over.
      made_from: what they were made from (weights' fingerprint, corpus, length, dtype, seed); empty
        where that is not known.
    """

    moments: Mapping[int, np.ndarray]
    n_tokens: int
    made_from: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_moments(
        cls,
        moments: Mapping[int, np.ndarray],
        n_tokens: int,
        made_from: Mapping[str, Any] | None = None,
    ) -> "Stats":
        """Stats from given matrices.

        Raises:
          ValueError: on a matrix that is not square, symmetric and finite, or a token count below
            one.
        """
        if n_tokens < 1:
            raise ValueError(
                f"n_tokens={n_tokens}: second moments are an average over at least one token"
            )
        for layer, cov_FF in moments.items():
            cov_FF = np.asarray(cov_FF)
            square = cov_FF.ndim == 2 and cov_FF.shape[0] == cov_FF.shape[1]
            if (
                not square
                or not np.all(np.isfinite(cov_FF))
                or not np.allclose(cov_FF, cov_FF.T, rtol=1e-3, atol=1e-6)
            ):
                raise ValueError(
                    f"the second moment of layer {layer} must be a finite symmetric matrix, got {cov_FF.shape}"
                )
        held = {int(layer): np.asarray(cov) for layer, cov in sorted(moments.items())}
        return cls(held, int(n_tokens), dict(made_from or {}))

    def of(self, model: Model, layer: int) -> np.ndarray:
        """The matrix of one layer, checked against the model.

        Raises:
          ValueError: where the layer is absent, or the matrix is another model's by its width or by
            the weights it is of.
        """
        if layer not in self.moments:
            raise ValueError(
                f"these second moments are of layers {sorted(self.moments)}, layer {layer} is asked for"
            )
        cov_FF = self.moments[layer]
        if cov_FF.shape[0] != model.config.F:
            raise ValueError(
                f"the second moments are {cov_FF.shape[0]} wide, the model's MLP {model.config.F}: another model's?"
            )
        made_with = self.made_from.get("fingerprint", model.fingerprint)
        if made_with != model.fingerprint:
            raise ValueError(
                f"the second moments were made with other weights ({self.made_from.get('model')}, {made_with}) than "
                f"{model.metadata.source} has ({model.fingerprint}); make them again with jaxedit stats"
            )
        return cov_FF

    @property
    def digest(self) -> str:
        """Sixteen hex digits that change when any of the moments does."""
        digest = hashlib.blake2b(digest_size=8)
        for layer, cov_FF in self.moments.items():
            digest.update(
                f"{layer} {cov_FF.shape}".encode()
                + np.ascontiguousarray(cov_FF, np.float32).tobytes()
            )
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Writes a .safetensors file: float32 matrices, and what they were made from.

        The sums are float64, but an average needs no more than float32: its error from so many
        tokens is far above 1e-7.

        Raises:
          OSError: where it cannot be written; a file that was there before stays as it was.
        """
        from safetensors.numpy import save

        arrays = {
            f"mom2/{layer}": np.ascontiguousarray(cov_FF, np.float32)
            for layer, cov_FF in self.moments.items()
        }
        described = json.dumps(
            {"n_tokens": self.n_tokens, "made_from": dict(self.made_from)}, sort_keys=True
        )
        write_atomic(path, save(arrays, {"stats": described}))

    @classmethod
    def load(cls, path: Path, layer: int | None = None) -> "Stats":
        """Reads what `save` wrote, or .npz files of the ROME, MEMIT and EasyEdit repositories (one,
        or a directory of them).

        Args:
          path: the file, or a directory of .npz files.
          layer: of one .npz file whose name does not tell it.

        Raises:
          ValueError: where the file is missing, cut short, or holds something else; the message
            says what was found.
        """
        from safetensors import SafetensorError, safe_open

        from jaxedit.stats.npz import read_npz

        if path.is_dir() or path.suffix == ".npz":
            return cls.from_moments(*read_npz(path, layer))
        if layer is not None:
            raise ValueError(
                f"layer={layer} is for an .npz file whose name does not tell it; {path} says its layers itself"
            )
        if not path.is_file():
            raise ValueError(f"there are no second moments at {path}; jaxedit stats makes them")
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = (file.metadata() or {}).get("stats")
                names = file.keys()
                arrays = {name: file.get_tensor(name) for name in names}
        except SafetensorError as error:
            raise ValueError(
                f"{path} ({path.stat().st_size:,} bytes) is not a whole safetensors file: {error}"
            ) from error
        if metadata is None:
            raise ValueError(
                f"{path} holds {sorted(arrays)[:3]}, not second moments written by jaxedit stats"
            )
        about = json.loads(metadata)
        moments = {int(name.removeprefix("mom2/")): array for name, array in arrays.items()}
        return cls.from_moments(moments, about["n_tokens"], about["made_from"])


def compare_stats(small: Stats, large: Stats) -> dict[int, dict[str, Any]]:
    """How far a sample is from a larger one, by layer.

    Returns:
      For each layer of both: error, |C_small - C_large| / |C_large| in the Frobenius norm;
      free_small and free_large, the shares of eigenvalues below AlphaEdit's published threshold
      2e-2; tenth_ratios, small to large, the ratios of the geometric means of each tenth of the
      eigenvalues, the smallest tenth first.
    """
    found = {}
    for layer in sorted(set(small.moments) & set(large.moments)):
        a, b = (np.asarray(stats.moments[layer], np.float64) for stats in (small, large))
        value_a, value_b = (
            np.maximum(np.linalg.eigvalsh(x), np.finfo(np.float32).tiny) for x in (a, b)
        )
        tenths = zip(
            *(np.array_split(np.log(value), min(10, len(value))) for value in (value_a, value_b)),
            strict=True,
        )
        found[layer] = {
            "error": float(np.linalg.norm(a - b) / np.linalg.norm(b)),
            "free_small": float(np.mean(value_a < 2e-2)),
            "free_large": float(np.mean(value_b < 2e-2)),
            "tenth_ratios": [
                float(np.exp(np.mean(log_a) - np.mean(log_b))) for log_a, log_b in tenths
            ],
        }
    return found
