"""Ill-conditioned second moments are reported with their condition number."""

import logging
import re

import numpy as np
import pytest

from jaxedit.solving.whiteners import inverse_cholesky


def moment_with(condition: float) -> np.ndarray:
    """Make a symmetric matrix [40, 40] with eigenvalues from 1 to 1 / condition."""
    orthogonal_FF, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((40, 40)))
    return (orthogonal_FF * np.geomspace(1, 1 / condition, 40)) @ orthogonal_FF.T


@pytest.mark.parametrize("condition", [1e9, 1e12])
def test_a_condition_number_is_reported_as_numpy_has_it(condition, caplog):
    moment_FF = moment_with(condition)
    with caplog.at_level(logging.WARNING, "jaxedit"):
        inverse_cholesky(moment_FF, scale=15000.0)
    found = re.search(r"condition number of about (\S+):", caplog.text)
    assert found
    expected = np.linalg.cond(moment_FF, 1)
    assert 0.3 * expected < float(found[1]) < 1.1 * expected  # LAPACK's estimate is from below


@pytest.mark.parametrize(("condition", "ridge"), [(1e6, 0.0), (1e12, 1e-3)])
def test_nothing_is_said_of_a_good_one_or_with_a_ridge(condition, ridge, caplog):
    with caplog.at_level(logging.WARNING, "jaxedit"):
        inverse_cholesky(moment_with(condition), ridge=ridge)
    assert not caplog.text
