"""Running mean and variance of rows, merged batch by batch, in float64 on the host.

Batches a and b of n_a and n_b rows with means m and sums of squared deviations s merge to
(Chan, Golub and LeVeque 1979)

    n = n_a + n_b,   m = m_a + n_b d / n,   s = s_a + s_b + n_a n_b d^2 / n,   d = m_b - m_a

and the variance is s / (n - 1).
"""

from typing import NamedTuple

import numpy as np

EPS = float(np.finfo(np.float32).eps)  # as released, beside every division


class Moments(NamedTuple):
    """The moments of rows [keys, output gradients] of width in + out.

    Attributes:
      n: how many rows.
      mean: float64, of each entry.
      square_sum: float64, of each entry's deviations from the mean.
      product_sum_DD: float64 [out, out], of the products of the gradients' deviations; None where
        only variances are needed.
    """

    n: int
    mean: np.ndarray
    square_sum: np.ndarray
    product_sum_DD: np.ndarray | None = None

    @property
    def std(self) -> np.ndarray:
        """The standard deviation of each entry."""
        return np.sqrt(self.square_sum / (self.n - 1 + EPS))


def zero_moments(width: int, n_products: int = 0) -> Moments:
    """Return the moments of no rows.

    Args:
      width: of a row.
      n_products: the entries at its end whose products are summed.
    """
    zero, products = np.zeros(width), np.zeros((n_products, n_products))
    return Moments(0, zero, zero, products if n_products else None)


def moments_of(rows: np.ndarray, n_products: int = 0, unbiased: bool = False) -> Moments:
    """Compute the moments of a batch of rows [n, width].

    Args:
      rows: at least one.
      n_products: the entries at a row's end whose products are summed.
      unbiased: multiply the batch's unbiased variance by n, not by n - 1, as the released code of
        UltraEdit does.
    """
    deviation = rows.astype(np.float64)
    n, mean = len(rows), deviation.mean(axis=0)
    deviation -= mean
    square_sum = np.einsum("ny,ny->y", deviation, deviation)
    if unbiased and n > 1:
        square_sum *= n / (n - 1)
    if not n_products:
        return Moments(n, mean, square_sum)
    last = deviation[:, -n_products:]
    return Moments(n, mean, square_sum, last.T @ last)


def merge_moments(a: Moments, b: Moments) -> Moments:
    """Return the moments of the rows of both."""
    n, difference = a.n + b.n, b.mean - a.mean
    mean = a.mean + b.n * difference / n
    square_sum = a.square_sum + b.square_sum + a.n * b.n * difference**2 / n
    if a.product_sum_DD is None or b.product_sum_DD is None:
        return Moments(n, mean, square_sum)
    last = difference[-len(a.product_sum_DD) :]
    between_DD = a.n * b.n / n * np.outer(last, last)
    return Moments(n, mean, square_sum, a.product_sum_DD + b.product_sum_DD + between_DD)
