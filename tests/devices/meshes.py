"""Run with eight simulated devices: what meshes are made of given texts, on one host or several.

Prints one JSON object: host count -> text -> the mesh's shape and what was logged, or the error.
"""

import json
import logging
import sys

import jax

from jaxedit.mesh import make_mesh


class Messages(logging.Handler):
    """Keeps what is logged."""

    def __init__(self):
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(f"{record.levelname}: {record.getMessage()}")


def outcome(spec: str) -> dict:
    """Make a mesh; return its shape and what was logged, or the error."""
    messages = Messages()
    logging.getLogger("jaxedit").addHandler(messages)
    try:
        return {"shape": dict(make_mesh(spec).shape), "logged": messages.texts}
    except ValueError as error:
        return {"error": str(error)}
    finally:
        logging.getLogger("jaxedit").removeHandler(messages)


def main() -> None:
    """Print the outcome of every text that is given."""
    found = {"1": {spec: outcome(spec) for spec in sys.argv[1:]}}
    jax.process_count = lambda: 2
    found["2"] = {spec: outcome(spec) for spec in sys.argv[1:]}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
