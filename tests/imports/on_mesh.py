"""Run with eight simulated devices: import an adapter into a model that is split over them.

Arguments: the model's directory, the adapter, the mesh, a file for what was found.
"""

import sys

import numpy as np
from adapter_examples import logits

import jaxedit


def main() -> None:
    """Write the logits, the fingerprint of the imported base, and the relative norms."""
    directory, adapter, mesh, out = sys.argv[1:]
    model = jaxedit.load(directory, mesh=mesh)
    imported = jaxedit.import_adapter(model, adapter)
    for name, array in imported.base.base.items():
        assert array.sharding == model.base[name].sharding, name
    np.savez(
        out,
        logits=logits(imported.model),
        fingerprint=imported.base.fingerprint,
        relative_norms=[weight.relative_norm for weight in imported.weights],
    )


if __name__ == "__main__":
    main()
