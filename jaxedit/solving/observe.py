"""What a model holds at the subjects of requests: MLP keys at one layer, the residual stream or MLP output of another."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxedit.edits.request import Request
from jaxedit.mesh import place
from jaxedit.models.layers import block_at, causal, run_layer, run_layers, start
from jaxedit.models.model import Model
from jaxedit.solving.rows import PREFIX_STEP, Row, fill, in_parts, pad_tokens, round_up

POOLINGS = ("group_means", "mean")
ROWS_AT_ONCE = 512  # bounds memory


class Questions(NamedTuple):
    """The rows of requests up to their subjects: for each the templates, then the bare prompt."""

    rows: list[Row]
    width: int
    weight_R: np.ndarray  # how much each template counts in a request's key


def ask(model: Model, requests: list[Request], groups: tuple[tuple[str, ...], ...], pooling: str) -> Questions:
    """Tokenises requests in groups of templates, for repeated observation.

    Args:
      model: gives the tokenizer.
      requests: at least one.
      groups: context templates; with pooling "group_means" a key is the mean over groups of the means within them (MEMIT
        counts the bare prompt as much as all sampled templates together), with "mean" that over all templates.
      pooling: one of POOLINGS.
    """
    templates = [template for group in groups for template in group]
    rows = []
    for request in requests:
        for template in (*templates, "{}"):
            row = fill(model.tokenizer, template, request.prompt, request.subject)
            rows.append(row._replace(tokens=row.tokens[: row.subject + 1]))
    share = [1 / (len(groups) * len(group)) for group in groups for _ in group]
    even = [1 / len(templates)] * len(templates)
    weight_R = np.array(share if pooling == "group_means" else even, np.float32)
    return Questions(rows, round_up(max(len(row.tokens) for row in rows), PREFIX_STEP), weight_R)


def observe(
    model: Model, questions: Questions, layer: int, z_layer: int, part: str = "residual"
) -> tuple[np.ndarray, np.ndarray]:
    """The pooled keys of requests at a layer [N, F], and what z_layer holds at their bare subjects [N, D].

    Args:
      model: with the edits so far.
      questions: from `ask`.
      layer: whose MLP's keys; at most z_layer.
      z_layer: where a value is read.
      part: which value: the "residual" stream after the layer, or its "mlp"'s output.
    """
    n_data = model.mesh.shape["data"]
    parts, n_rows = in_parts(questions.rows, ROWS_AT_ONCE)
    keys, values = [], []
    for taken in parts:
        height = round_up(len(taken), n_data)
        token_BT = pad_tokens([row.tokens for row in taken], height, questions.width)
        subject_B = np.array([row.subject for row in taken] + [0] * (height - len(taken)), np.int32)
        placed = place(model.mesh, "BT", token_BT), place(model.mesh, "B", subject_B)
        key_BF, value_BD = jax.device_get(_observe(model, *placed, jnp.int32(layer), jnp.int32(z_layer), part))
        keys.append(key_BF[: len(taken)])
        values.append(value_BD[: len(taken)])
    R = len(questions.weight_R)
    key_NRF, value_NRD = (np.concatenate(arrays)[:n_rows].reshape(-1, R + 1, arrays[0].shape[-1]) for arrays in (keys, values))
    return np.einsum("NRF,R->NF", key_NRF[:, :R], questions.weight_R), value_NRD[:, R]


@functools.partial(jax.jit, static_argnames="part")
def _observe(model: Model, token_BT, subject_B, layer, z_layer, part: str):
    B, T = token_BT.shape
    position_BT = jnp.broadcast_to(jnp.arange(T), (B, T))
    attending = causal(position_BT)
    h_BTD = run_layers(model, start(model, token_BT, position_BT), attending, 0, layer)
    h_BTD, key_BTF = run_layer(model, h_BTD, attending, layer)

    def at_subject(array_BTX):
        return jnp.take_along_axis(array_BTX, subject_B[:, None, None], axis=1)

    if part == "residual":
        value_B1D = at_subject(run_layers(model, h_BTD, attending, layer + 1, z_layer + 1))
    else:

        def key_at_z():
            return run_layer(model, run_layers(model, h_BTD, attending, layer + 1, z_layer), attending, z_layer)[1]

        z_key_B1F = at_subject(lax.cond(z_layer > layer, key_at_z, lambda: key_BTF))
        value_B1D = block_at(model, z_layer).mlp.value(z_key_B1F, model.overlay, z_layer)
    return at_subject(key_BTF)[:, 0], value_B1D[:, 0]
