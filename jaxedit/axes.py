"""The alphabet: one letter an axis, used for names, parameter shapes, layouts and sharding.

    B batch   T query position   S key position   P learned positions   D residual width   F MLP hidden width
    N query heads   K key-value heads   H head width   V vocabulary   L layers   E edited layers   R rank of an edit
    M whitened or second MLP hidden width (whiteners `MF`, second moments `EMF`)

An array's name ends in its axes (`h_BTD`, `u_FR`), a parameter's shape is a word (`"mlp/w_down":
"LFD"`), and the two rule tables below say which mesh axis each letter is split over. There are two
tables because a single one would split `BTD` over `data` twice."""

import logging
from collections.abc import Mapping

from jax.sharding import PartitionSpec

# Kernels are stored in x out, whatever the checkpoint they came from did. L is always the leading
# axis.
PARAMETERS: dict[str, str] = {
    "embed/tokens": "VD",
    "embed/positions": "PD",
    "attn/norm_scale": "LD",
    "attn/norm_bias": "LD",
    "attn/w_q": "LDNH",
    "attn/w_k": "LDKH",
    "attn/w_v": "LDKH",
    "attn/b_q": "LNH",
    "attn/b_k": "LKH",
    "attn/b_v": "LKH",
    "attn/q_norm_scale": "LH",
    "attn/k_norm_scale": "LH",
    "attn/w_o": "LNHD",
    "attn/b_o": "LD",
    "mlp/norm_scale": "LD",
    "mlp/norm_bias": "LD",
    "mlp/w_gate": "LDF",
    "mlp/w_up": "LDF",
    "mlp/b_up": "LF",
    "mlp/w_down": "LFD",
    "mlp/b_down": "LD",
    "final/norm_scale": "D",
    "final/norm_bias": "D",
    "head/w": "DV",
    "head/b": "V",
}

ACTIVATION_RULES: Mapping[str, str] = {
    "B": "data",
    "N": "model",
    "K": "model",
    "F": "model",
    "V": "model",
}
PARAMETER_RULES: Mapping[str, str] = {
    "D": "data",
    "M": "data",
    "N": "model",
    "K": "model",
    "F": "model",
    "V": "model",
}


def partition(
    letters: str, shape: tuple[int, ...], mesh_shape: Mapping[str, int], rules: Mapping[str, str]
):
    """The PartitionSpec of an array with these axis letters.

    An axis whose size the mesh axis does not divide is replicated (and logged), so odd head counts
    still run.

    Args:
      letters: one letter for each axis, e.g. "BTD".
      shape: the array's shape.
      mesh_shape: mesh axis name -> size.
      rules: axis letter -> mesh axis name (ACTIVATION_RULES or PARAMETER_RULES).

    Raises:
      ValueError: where letters and shape differ in length, or two letters ask for the same mesh
        axis.
    """
    if len(letters) != len(shape):
        raise ValueError(
            f"axes {letters!r} name {len(letters)} axes, but the array has shape {shape}"
        )
    spec: list[str | None] = []
    for letter, size in zip(letters, shape, strict=True):
        axis = rules.get(letter)
        if axis is not None and axis in spec:
            raise ValueError(
                f"axes {letters!r} would be split over mesh axis {axis!r} twice; rules: {dict(rules)}"
            )
        parts = mesh_shape.get(axis, 1) if axis else 1
        if parts > 1 and size % parts:
            logging.getLogger("jaxedit").info(
                "axis %s of %s (size %d) is not divided by mesh axis %s (%d): replicated",
                letter,
                letters,
                size,
                axis,
                parts,
            )
            axis = None
        spec.append(axis if parts > 1 else None)
    return PartitionSpec(*spec)
