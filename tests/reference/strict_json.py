"""JSON without the names that Python adds to it: Infinity, -Infinity, NaN."""

import json
from typing import Any


def read_strict_json(text: str) -> Any:
    """Parse JSON; assert that no constant that JSON lacks is in it."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)
