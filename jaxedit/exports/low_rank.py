"""The sum of edits in low-rank factors, layer by layer, for adapters.

A layer's change is ΔW_FD = Σ u_FR v_RD over its edits, so the factors of all edits side by side are
factors of the sum. Where they are more than an adapter may have, or an edit is dense, the truncated
SVD takes their place: the closest change of that rank in the Frobenius norm (Eckart and Young
1936). The SVD of a product of factors is had from its small core: with U = Q_u R_u and
Vᵀ = Q_v R_v, UV = Q_u (R_u R_vᵀ) Q_vᵀ, and no F x D matrix is made. All of it is float64 on the
host.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import scipy.linalg

from jaxedit.edits.edit import Dense, Edit, LowRank
from jaxedit.exports.written import round_to

NEGLIGIBLE = 2.0**-24  # of the largest singular value: below float32's rounding


class LayerFactors(NamedTuple):
    """The change of one layer of a weight as it is written.

    Attributes:
      weight: e.g. "mlp/w_down".
      layer: which.
      u_FR: in the dtype asked for, padded with zeros to the common rank.
      v_RD: the same.
      rank: before the padding.
      error: relative Frobenius error of the product of the factors, after the cut and the rounding.
    """

    weight: str
    layer: int
    u_FR: np.ndarray
    v_RD: np.ndarray
    rank: int
    error: float


class _Product(NamedTuple):
    """An exact change as factors, float64."""

    u_FR: np.ndarray
    v_RD: np.ndarray


def factors_by_layer(edits: Iterable[Edit], max_rank: int, dtype: str) -> list[LayerFactors]:
    """Sum edits in factors of one common rank, for each layer of each weight that they change.

    Columns are scaled by powers of two, which changes no bit of the product, so that both factors
    are of one size and neither underflows in float16. In float32 the product of the factors of
    low-rank edits is that of the edits where nothing is cut.

    Args:
      edits: of one model.
      max_rank: a change of a higher rank is cut to it.
      dtype: of the factors: "float32", "bfloat16" or "float16".

    Raises:
      ValueError: where a change holds numbers that are not finite, or too large for the dtype.
    """
    found = []
    for (weight, layer), deltas in group_by_layer(edits).items():
        change = _sum_exactly(deltas)
        u_FR, v_RD = _balance(*_factorise(change, max_rank))
        about = f"the edit of layer {layer}"
        u_FR, v_RD = round_to(u_FR, dtype, about), round_to(v_RD, dtype, about)
        error = _error(change, u_FR, v_RD)
        found.append(LayerFactors(weight, layer, u_FR, v_RD, u_FR.shape[1], error))
    common = max((factors.rank for factors in found), default=0)
    return [
        factors._replace(u_FR=_pad(factors.u_FR, 1, common), v_RD=_pad(factors.v_RD, 0, common))
        for factors in found
    ]


def group_by_layer(edits: Iterable[Edit]) -> dict[tuple[str, int], list[LowRank | Dense]]:
    """Collect the changes of each layer of each weight, in the order of the layers.

    Args:
      edits: of one model.

    Returns:
      (weight, layer) -> its changes, in the order of the edits.

    Raises:
      ValueError: where a change holds numbers that are not finite.
    """
    groups: dict[tuple[str, int], list[LowRank | Dense]] = {}
    for edit in edits:
        for delta in edit.deltas:
            groups.setdefault((delta.weight, delta.layer), []).append(delta)
            arrays = delta[2:]
            if not all(np.isfinite(np.asarray(array)).all() for array in arrays):
                raise ValueError(
                    f"an edit of layer {delta.layer} holds numbers that are not finite; leave it "
                    "out (--run_steps, --after_step)"
                )
    return dict(sorted(groups.items()))


def sum_dense(deltas: list[LowRank | Dense]) -> np.ndarray:
    """Write the sum of a layer's changes out, float64 [F, D]."""
    first = deltas[0]
    if isinstance(first, Dense):
        shape = first.delta_FD.shape
    else:
        shape = first.u_FR.shape[0], first.v_RD.shape[1]
    sum_FD = np.zeros(shape)
    for delta in deltas:
        if isinstance(delta, Dense):
            sum_FD += np.asarray(delta.delta_FD, np.float64)
        else:
            sum_FD += np.asarray(delta.u_FR, np.float64) @ np.asarray(delta.v_RD, np.float64)
    return sum_FD


def _sum_exactly(deltas: list[LowRank | Dense]) -> _Product | np.ndarray:
    """Sum a layer's changes: factors side by side, or float64 [F, D] where that is smaller."""
    factors = [delta for delta in deltas if isinstance(delta, LowRank)]
    if len(factors) == len(deltas):
        u_FR = np.concatenate([np.asarray(delta.u_FR, np.float64) for delta in factors], axis=1)
        v_RD = np.concatenate([np.asarray(delta.v_RD, np.float64) for delta in factors], axis=0)
        if u_FR.shape[1] <= min(u_FR.shape[0], v_RD.shape[1]):
            return _Product(u_FR, v_RD)
    return sum_dense(deltas)


def _factorise(change: _Product | np.ndarray, max_rank: int) -> _Product:
    """Return factors of a change, of at most a rank."""
    if not isinstance(change, _Product):
        return _truncated_svd(change, max_rank)
    if change.u_FR.shape[1] <= max_rank:
        return change
    # More than may be: the SVD of the core between two orthogonal bases.
    left_FR, left_RR = np.linalg.qr(change.u_FR)
    right_DR, right_RR = np.linalg.qr(change.v_RD.T)
    core = _truncated_svd(left_RR @ right_RR.T, max_rank)
    return _Product(left_FR @ core.u_FR, core.v_RD @ right_DR.T)


def _truncated_svd(matrix: np.ndarray, max_rank: int) -> _Product:
    """Return the factors of the closest matrix of at most a rank, of one size each."""
    u, singular_R, v = scipy.linalg.svd(matrix, full_matrices=False)
    rank = min(max_rank, max(1, int(np.sum(singular_R > NEGLIGIBLE * singular_R[0]))))
    root_R = np.sqrt(singular_R[:rank])
    return _Product(u[:, :rank] * root_R, root_R[:, None] * v[:rank])


def _balance(u_FR: np.ndarray, v_RD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale the columns of u and the rows of v by powers of two until they are of one size."""
    size_u_R, size_v_R = np.abs(u_FR).max(axis=0), np.abs(v_RD).max(axis=1)
    is_zero_R = (size_u_R == 0) | (size_v_R == 0)
    ratio_R = np.where(is_zero_R, 1.0, size_v_R) / np.where(is_zero_R, 1.0, size_u_R)
    scale_R = 2.0 ** np.round(np.log2(ratio_R) / 2)
    return u_FR * scale_R, v_RD / scale_R[:, None]


def _error(change: _Product | np.ndarray, u_FR: np.ndarray, v_RD: np.ndarray) -> float:
    """Return the relative Frobenius error of a product of factors; 0 where there is no change."""
    u_FR, v_RD = u_FR.astype(np.float64), v_RD.astype(np.float64)
    if isinstance(change, _Product):
        size = _norm_of_product(change.u_FR, change.v_RD)
        both_FR = np.concatenate([change.u_FR, -u_FR], axis=1)
        missed = _norm_of_product(both_FR, np.concatenate([change.v_RD, v_RD], axis=0))
    else:
        size, missed = np.linalg.norm(change), np.linalg.norm(change - u_FR @ v_RD)
    return float(missed / size) if size else 0.0


def _norm_of_product(u_FR: np.ndarray, v_RD: np.ndarray) -> float:
    """Return the Frobenius norm of u v, exact also where two products nearly cancel."""
    left = np.asarray(np.linalg.qr(u_FR, mode="r"))
    right = np.asarray(np.linalg.qr(v_RD.T, mode="r"))
    return float(np.linalg.norm(left @ right.T))


def _pad(array: np.ndarray, axis: int, size: int) -> np.ndarray:
    """Append zeros along an axis up to a size."""
    width = [(0, size - array.shape[axis] if i == axis else 0) for i in range(array.ndim)]
    return np.pad(array, width)
