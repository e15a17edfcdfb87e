"""Second moments E[k k^T] of MLP keys: the covariances by which methods weigh an update.

Uncentred, over the tokens of a corpus (2202.05262, eq. 2). With few tokens the eigenvalues spread:
10 x F tokens leave the smallest at about half of their true size, so an update goes further along
them than it should, and make the large ones too large. A threshold deep among the small eigenvalues
(AlphaEdit's null space) then counts too many directions as free, one above most of them too few.
`jaxedit.stats.spectra` tells how far off a sample is.
"""

import dataclasses
import functools
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxedit.downloads import download, is_url
from jaxedit.files import local_path, to_json, to_safetensors, write_atomic
from jaxedit.models.fingerprints import compare_fingerprints, fingerprints_without_bos
from jaxedit.models.model import Model
from jaxedit.stats import value_norm
from jaxedit.stats.moments_file import read_moments
from jaxedit.stats.places import find_stats
from jaxedit.stats.value_norm import ValueNorm


@dataclasses.dataclass(frozen=True, eq=False)
class Stats:
    """Uncentred second moments E[k k^T] [F, F] of the second MLP layer's input, by layer.

    Attributes:
      moments: layer -> [F, F], on the host.
      n_tokens: how many tokens they were averaged over.
      made_from: what they were made from (the model's fingerprints, corpus, length, dtype, seed);
        empty where that is not known.
      gradients: layer -> E[g g^T] [D, D] of output gradients (`jaxedit.stats.gradients`), where
        they were collected.
      value_norms: layer -> the mean norm of values there on the same model, where it was measured.
    """

    moments: Mapping[int, np.ndarray]
    n_tokens: int
    made_from: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    gradients: Mapping[int, np.ndarray] = dataclasses.field(default_factory=dict)
    value_norms: Mapping[int, ValueNorm] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_moments(
        cls,
        moments: Mapping[int, np.ndarray],
        n_tokens: int,
        made_from: Mapping[str, Any] | None = None,
        gradients: Mapping[int, np.ndarray] | None = None,
    ) -> "Stats":
        """Make Stats of given matrices.

        Args:
          moments: layer -> E[k k^T] [F, F].
          n_tokens: how many tokens they were averaged over.
          made_from: what they were made from, where that is known.
          gradients: layer -> E[g g^T] [D, D], where they were collected.

        Raises:
          ValueError: on a matrix that is not square, symmetric and finite, or a token count below
            one.
        """
        if n_tokens < 1:
            raise ValueError(
                f"n_tokens={n_tokens}: second moments are an average over at least one token"
            )
        gradients = gradients or {}
        for layer, cov_FF in [*moments.items(), *gradients.items()]:
            if not _is_finite_symmetric(np.asarray(cov_FF)):
                raise ValueError(
                    f"the second moment of layer {layer} must be a finite symmetric matrix, "
                    f"got {np.shape(cov_FF)}"
                )
        held, held_gradients = (
            {int(layer): np.asarray(cov) for layer, cov in sorted(given.items())}
            for given in (moments, gradients)
        )
        return cls(held, int(n_tokens), dict(made_from or {}), held_gradients)

    def of(self, model: Model, layer: int) -> np.ndarray:
        """Return the matrix of one layer [F, F], checked against the model.

        Raises:
          ValueError: where the layer is absent, or the matrix is of another model: its width,
            configuration, tokenizer or weights are others.
        """
        if layer not in self.moments:
            raise ValueError(
                f"these second moments are of layers {sorted(self.moments)}, "
                f"layer {layer} is asked for"
            )
        cov_FF = self.moments[layer]
        if cov_FF.shape[0] != model.config.F:
            raise ValueError(
                f"the second moments are {cov_FF.shape[0]} wide, "
                f"the model's MLP {model.config.F}: another model's?"
            )
        self._check_model(model)
        return cov_FF

    def value_norm_of(self, model: Model, layer: int) -> float:
        """Return the mean norm of values at a layer, checked against the model.

        Raises:
          ValueError: where it was measured on another model.
        """
        self._check_model(model)
        return self.value_norms[layer].mean

    def _check_model(self, model: Model) -> None:
        made_with = self.made_from.get("fingerprint", model.fingerprint)
        if made_with != model.fingerprint:
            raise ValueError(
                "the second moments were made with other weights "
                f"({self.made_from.get('model')}, {made_with}) than "
                f"{model.metadata.source} has ({model.fingerprint}); "
                "make them again with jaxedit stats"
            )
        theirs = self.made_from.get("fingerprints", {})
        ours = fingerprints_without_bos(model.fingerprints, model.tokenizer)
        differing = compare_fingerprints(theirs, ours) if theirs else ""
        if differing:
            raise ValueError(
                f"the second moments of {self.made_from.get('model')} were made with another model "
                f"than {model.metadata.source}: {differing}; make them again with jaxedit stats"
            )

    def gradients_of(self, model: Model, layer: int) -> np.ndarray:
        """Return E[g g^T] of one layer [D, D], checked as `of`.

        Raises:
          ValueError: as `of`, and where no gradients were collected.
        """
        self.of(model, layer)
        gradient_DD = self.gradients.get(layer, np.zeros(0))
        if gradient_DD.shape != (model.config.D, model.config.D):
            raise ValueError(
                f"these second moments hold none of layer {layer}'s output gradients as wide as "
                f"the model, {model.config.D}; make them with jaxedit stats --gradients"
            )
        return gradient_DD

    @property
    def digest(self) -> str:
        """Sixteen hex digits that change when any of the moments or value norms does."""
        digest = hashlib.blake2b(digest_size=8)
        for layer, cov_FF in [*self.moments.items(), *self.gradients.items()]:
            digest.update(f"{layer} {cov_FF.shape}".encode())
            digest.update(np.ascontiguousarray(cov_FF, np.float32).tobytes())
        if self.value_norms:
            digest.update(json.dumps(value_norm.to_json(self.value_norms)).encode())
        return digest.hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a .safetensors file: float32 matrices, and what they were made from.

        The sums are float64, but an average needs no more than float32: its error from so many
        tokens is far above 1e-7.

        Raises:
          OSError: where it cannot be written; a file that was there before stays as it was.
        """
        arrays = {
            f"{kind}/{layer}": np.ascontiguousarray(cov_FF, np.float32)
            for kind, held in (("mom2", self.moments), ("grad2", self.gradients))
            for layer, cov_FF in held.items()
        }
        about = {"n_tokens": self.n_tokens, "made_from": to_json(self.made_from)}
        about["digest"] = _content_digest(self.digest, about)
        if self.value_norms:
            about["value_norms"] = value_norm.to_json(self.value_norms)
        described = json.dumps(about, sort_keys=True)
        write_atomic(local_path(path), to_safetensors(arrays, {"stats": described}))

    @classmethod
    def load(cls, place: str | os.PathLike[str], layer: int | None = None) -> "Stats":
        """Read what `save` wrote, or .npz files of the ROME, MEMIT and EasyEdit repositories.

        Args:
          place: the file, or a directory of .npz files; or where it is fetched from: an address of
            a file on the web, of one or a folder in a bucket, or hub:OWNER/NAME (`find_stats`).
          layer: of one .npz file whose name does not tell it.

        Raises:
          ValueError: where the file is missing, cut short, or holds something else; the message
            says what was found.
        """
        from jaxedit.stats.npz import read_npz

        if is_url(os.fspath(place)):
            return download(os.fspath(place), functools.partial(cls.load, layer=layer))
        path = find_stats(place)
        if path.is_dir() or path.suffix == ".npz":  # of other repositories
            moments, n_tokens = read_npz(path, layer)
            gradients: dict[int, np.ndarray] = {}
            about: dict[str, Any] = {"n_tokens": n_tokens, "made_from": {}}
        elif layer is None:
            moments, gradients, about = read_moments(path)
        else:
            raise ValueError(
                f"layer={layer} is for an .npz file whose name does not tell it; "
                f"{path} says its layers itself"
            )
        try:
            stats = cls.from_moments(moments, about["n_tokens"], about["made_from"], gradients)
            norms = value_norm.from_json(about.get("value_norms", {}))
            stats = dataclasses.replace(stats, value_norms=norms)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        _check_content(path, stats, about)
        return stats


def _check_content(path: Path, stats: Stats, about: Mapping[str, Any]) -> None:
    """Check a file's content against the digest in it; say where there is none.

    Raises:
      ValueError: where it has changed since it was written.
    """
    digest = about.get("digest")
    described = {name: about[name] for name in ("n_tokens", "made_from")}
    if digest is not None and digest != _content_digest(stats.digest, described):
        raise ValueError(
            f"{path} is not as it was written: its content does not have its digest ({digest}). "
            "Take it from a copy, or make it again with jaxedit stats"
        )
    if stats.made_from and (digest is None or "fingerprints" not in stats.made_from):
        logging.getLogger("jaxedit").warning(
            "%s was written by a version of jaxedit that took no digest of it and no fingerprints "
            "of configuration and tokenizer: these cannot be verified",
            path,
        )


def _content_digest(arrays: str, about: Mapping[str, Any]) -> str:
    """Digest the arrays' digest together with what is said of them."""
    text = json.dumps([arrays, about["n_tokens"], about["made_from"]], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _is_finite_symmetric(cov_FF: np.ndarray) -> bool:
    is_square = cov_FF.ndim == 2 and cov_FF.shape[0] == cov_FF.shape[1]
    return (
        is_square
        and bool(np.all(np.isfinite(cov_FF)))
        and np.allclose(cov_FF, cov_FF.T, rtol=1e-3, atol=1e-6)
    )
