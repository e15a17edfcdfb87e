"""The golden texts that second moments are of."""

import pytest


@pytest.fixture(scope="module")
def texts(golden_expected):
    """Make a function: family -> its golden texts."""
    return lambda family: golden_expected(family)[0]["texts"]
