"""The alphabet of axis letters: in the whole package one letter names one axis.

An array's name ends in its axes, the outermost first: `h_BTD` is a residual stream of B rows, T
positions and D channels, `u_FR @ v_RD` the product of an edit's factors. A digit is an axis of that
size (`place_Q2`). What is no axis of this list (bytes, candidates, processes, windows of text) gets
no suffix at all.

Rows and positions

    B  batch row
    G  batch of a packed corpus, or group of texts
    T  query position
    S  key position: cached ones first, then the call's own
    O  prefix position: before the fact's token, and in shared beginnings of templates
    U  suffix position: from the fact's token on
    P  learned position table
    Q  position picked out of rows: read, scored or sampled

The network

    L  layer
    D  residual width
    F  MLP hidden width
    N  query head
    K  key-value head
    A  query head among those that share a key-value head
    H  head width
    X  flattened heads, N * H
    V  vocabulary
    W  vocabulary entry of one chunk
    Z  shard of the vocabulary over the mesh axis `model`

Editing

    I  request (fact)
    C  context template
    J  vector among several: optimised together (PMET), or of a draw of labels and a text
    E  edited layer
    R  rank of an edit: column of its factors
    M  MLP hidden width a second time: rows of second moments, whitened or selected coordinates
    Y  width of what a network of MEND reads: inputs, gradients, or both

The same letters spell parameters' shapes (`PARAMETERS`: `"mlp/w_down"` is `"LFD"`), einsum
equations and the layouts of checkpoints (`jaxedit.models.families`), and the two rule tables say by
letter which mesh axis an array is split over. There are two tables because one alone would split
`BTD` over `data` twice. A word given to a sharding function may hold `_`: an axis that is not
split.
"""

import logging
from collections.abc import Mapping

from jax.sharding import PartitionSpec

GLOSSARY: dict[str, str] = {
    "B": "batch row",
    "G": "batch of a packed corpus, or group of texts",
    "T": "query position",
    "S": "key position: cached ones first, then the call's own",
    "O": "prefix position: before the fact's token, and in shared beginnings of templates",
    "U": "suffix position: from the fact's token on",
    "P": "learned position table",
    "Q": "position picked out of rows: read, scored or sampled",
    "L": "layer",
    "D": "residual width",
    "F": "MLP hidden width",
    "N": "query head",
    "K": "key-value head",
    "A": "query head among those that share a key-value head",
    "H": "head width",
    "X": "flattened heads, N * H",
    "V": "vocabulary",
    "W": "vocabulary entry of one chunk",
    "Z": "shard of the vocabulary over the mesh axis `model`",
    "I": "request (fact)",
    "C": "context template",
    "J": "vector among several: optimised together (PMET), or of a draw of labels and a text",
    "E": "edited layer",
    "R": "rank of an edit: column of its factors",
    "M": "MLP hidden width a second time: rows of second moments, whitened or selected coordinates",
    "Y": "width of what a network of MEND reads: inputs, gradients, or both",
}

# Kernels are stored in x out, whatever the checkpoint they came from did. L is always the leading
# axis: layers are stacked.
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
    "attn/q_all_heads_norm_scale": "LNH",
    "attn/k_all_heads_norm_scale": "LKH",
    "attn/w_o": "LNHD",
    "attn/b_o": "LD",
    "attn/post_norm_scale": "LD",
    "mlp/norm_scale": "LD",
    "mlp/norm_bias": "LD",
    "mlp/w_gate": "LDF",
    "mlp/w_up": "LDF",
    "mlp/b_up": "LF",
    "mlp/w_down": "LFD",
    "mlp/b_down": "LD",
    "mlp/post_norm_scale": "LD",
    "final/norm_scale": "D",
    "final/norm_bias": "D",
    "head/w": "DV",
    "head/b": "V",
}

# Axis letter -> mesh axis, for activations inside jit and batches that are put on devices.
ACTIVATION_RULES: Mapping[str, str] = {
    "B": "data",
    "N": "model",
    "K": "model",
    "F": "model",
    "V": "model",
}
# The same for stored arrays (weights, edits, second moments), which are split over both mesh axes.
PARAMETER_RULES: Mapping[str, str] = {
    "D": "data",
    "M": "data",
    "Y": "data",
    "N": "model",
    "K": "model",
    "F": "model",
    "V": "model",
}


def partition(
    letters: str, shape: tuple[int, ...], mesh_shape: Mapping[str, int], rules: Mapping[str, str]
) -> PartitionSpec:
    """Return the PartitionSpec of an array with these axis letters.

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
        mesh_axis = rules.get(letter)
        if mesh_axis is not None and mesh_axis in spec:
            raise ValueError(
                f"axes {letters!r} would be split over mesh axis {mesh_axis!r} twice; "
                f"rules: {dict(rules)}"
            )
        n_parts = mesh_shape.get(mesh_axis, 1) if mesh_axis else 1
        if size % n_parts:
            logging.getLogger("jaxedit").info(
                f"axis {letter} of {letters} (size {size}) is not divided by mesh axis "
                f"{mesh_axis} ({n_parts}): replicated"
            )
        is_split = n_parts > 1 and size % n_parts == 0
        spec.append(mesh_axis if is_split else None)
    return PartitionSpec(*spec)
