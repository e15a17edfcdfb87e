"""Factorisations of second moments on the host, in float64: what whiteners are made of.

A whitener is a W with M^-1 = W^T W (`jaxedit.solving.solve`): L^-1 of M = L L^T, or U^T / sqrt(b)
where an update may change only the subspace that U spans and M = b I there.
"""

import logging
from collections.abc import Mapping

import numpy as np

ILL_CONDITIONED = 1e8  # the factor's own condition is then 1e4, and float32 holds 7 digits


def inverse_cholesky(
    moment_FF: np.ndarray,
    scale: float = 1.0,
    ridge: float = 0.0,
    dtype: type[np.floating] = np.float32,
) -> np.ndarray:
    """Compute L^-1 of the Cholesky factorisation scale C + ridge I = L L^T.

    Args:
      moment_FF: C, symmetric.
      scale: lambda.
      ridge: b.
      dtype: of what is returned; it is computed in float64.

    Returns:
      L^-1 [F, F], on the host.

    Raises:
      ValueError: where the matrix is not positive definite.
    """
    import scipy.linalg

    moment = np.asarray(moment_FF, np.float64)
    is_diagonal = np.count_nonzero(moment) == np.count_nonzero(np.diagonal(moment))
    diagonal_F = scale * np.diagonal(moment) + ridge
    if np.all(diagonal_F > 0) and is_diagonal:  # C = I, where there are no statistics
        return np.diag((1 / np.sqrt(diagonal_F)).astype(dtype))
    moment = scale * (moment + moment.T) / 2
    moment[np.diag_indices_from(moment)] += ridge
    norm = np.linalg.norm(moment, 1)
    try:
        lower = scipy.linalg.cholesky(moment, lower=True, overwrite_a=True)
    except np.linalg.LinAlgError as error:
        raise ValueError(
            f"the second moment ({len(moment)} wide) is not positive definite: {error}. It was "
            "gathered from too few tokens, or is of low rank; take more than 10 x F tokens, or add "
            "a small multiple of the identity"
        ) from error
    if dtype is np.float32:  # what float64 keeps is made of parts of such a one, edit by edit
        _report_condition(lower, float(norm), ridge)
    # LAPACK's inverse of a triangle takes a fifth of a triangular solve's time.
    (invert,) = scipy.linalg.get_lapack_funcs(["trtri"], [lower])
    inverse, _ = invert(lower, lower=1, overwrite_c=1)
    return inverse.astype(dtype, copy=False)


def _report_condition(lower: np.ndarray, norm: float, ridge: float) -> None:
    """Warn where M = L L^T is ill-conditioned, with LAPACK's estimate of its condition number.

    Args:
      lower: L [F, F].
      norm: of M, the 1-norm.
      ridge: that M has.
    """
    import scipy.linalg

    (estimate,) = scipy.linalg.get_lapack_funcs(["pocon"], [lower])
    reciprocal, _ = estimate(lower, norm, uplo="L")
    if reciprocal * ILL_CONDITIONED >= 1:
        return
    logging.getLogger("jaxedit").warning(
        "a regulariser M of keys (%d wide, with %g added to its diagonal) has a condition number "
        "of about %.1e: along its smallest directions an update is large and no better than the "
        "second moment's own error there. Take more tokens in jaxedit stats, or a ridge where the "
        "method has one",
        len(lower),
        ridge,
        1 / reciprocal if reciprocal > 0 else float("inf"),
    )


def null_space(
    moment_FF: np.ndarray, threshold: float | Mapping[int, float], layer: int
) -> np.ndarray:
    """Compute U [F, M], the eigenvectors of a second moment with eigenvalues below a threshold.

    Args:
      moment_FF: of the layer's keys.
      threshold: a number, or one for each layer.
      layer: whose second moment it is.

    Raises:
      ValueError: where there is none, or the layer has no threshold.
    """
    if isinstance(threshold, Mapping):
        if layer not in threshold:
            raise ValueError(
                f"nullspace_threshold names layers {sorted(threshold)}, not layer {layer}"
            )
        threshold = threshold[layer]
    value_F, vector_FF = np.linalg.eigh(np.asarray(moment_FF, np.float64))
    is_below_F = value_F < threshold
    if not is_below_F.any():
        raise ValueError(
            f"nullspace_threshold={threshold}: no eigenvalue of layer {layer}'s second moment is "
            f"below it (they go from {value_F[0]:.3g} to {value_F[-1]:.3g}), so nothing may "
            "change; give a higher one"
        )
    return vector_FF[:, is_below_F]
