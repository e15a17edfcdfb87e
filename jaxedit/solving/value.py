"""The value to write: v* of ROME (2202.05262, eq. 4) and z* of MEMIT (2210.07229, eq. 16).

For each of many requests at once a vector delta is optimised, added at the fact's token to
what leaves the edited layer, so that the model says the target:

    L = mean over templates of -(1/|o|) sum_t log p(o_t | ...)                       target loss
        + kl_factor KL(p_delta || p_0) at the subject's last token of "{} is a"      essence KL
        + v_weight_decay |delta| / |init|^2                                          weight decay

(|delta| is not squared) with Adam, at most v_num_grad_steps - 1 updates, a stop before the step
where L < 0.05, and after each step the projection |delta| <= clamp_norm_factor |init|. In pre-norm
blocks adding to the MLP's output or to the layer's output is the same, so ROME and MEMIT differ in
`init` alone: the MLP's output or the residual stream of the first template
(`jaxedit.solving.site`). The value is init + delta.

PMET (2308.08742) has two vectors, added to the MLP's and to the attention's output, each with its
own decay and projection. In sequential blocks the second one also passes through the layer's own
MLP. As released, the target loss is weighted by nll_loss_factor, and by a tenth of it in a pass
after one in which every target token was the most likely one in every template; such a pass is the
last where in addition kl_factor KL <= 0.01.

ENCORE (2502.01636) also stops at the k-th such pass, for prob_cutoff -k. Its released code counts
other passes: prob_cutoff_count="five_tokens" (`jaxedit.editors.encore`).

The vector changes only positions from the fact's token on, and only layers above. So the
rest is run once, its keys and values kept, and a step computes a rectangle of suffixes and the
logits that the loss reads. From the outside in:

    value          requests in chunks of like length, on the host
    prompt_batch   a chunk as padded arrays; a drawing of what is run once, what in each step
    prefill        what is run once
    value_loop     the steps: gradient, stop, update, projection
    value_loss     the terms of L
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxedit.edits.apply import without_edits
from jaxedit.edits.request import Request
from jaxedit.mesh import device_bytes_limit, platform, shard_batch
from jaxedit.models.model import Model
from jaxedit.rounding import ceil_div, next_power_of_two
from jaxedit.solving.finite import check_finite
from jaxedit.solving.hyper import TargetHyper
from jaxedit.solving.prompt_batch import (
    PaddedShape,
    PromptBatch,
    common_shape,
    equal_chunks,
    to_batch,
)
from jaxedit.solving.prompts import TokenisedRequest, tokenise_request
from jaxedit.solving.site import Site
from jaxedit.solving.value_loop import NUMERIC_HYPERS, LossVariant, optimise_batch

# Requests are optimised together until a device's products are large. With more of them, more would
# be padded to the longest suffix.
ENOUGH_POSITIONS = 384
SAVED_BYTES = 2**30  # the most that a device keeps of their forward pass for its gradient
# On accelerators, where every batch reads the weights above the edited layer anew. By the kind of
# device and not by what it has free, so that a resumed study gives the same bits.
ACCELERATOR_POSITIONS = 3072
ACCELERATOR_SHARE = 0.5  # of a device's memory, for what is kept
ACCELERATOR_HELD_BYTES = 2**33  # where its memory is not known
# A compiled program holds so many times the products that are counted here: layers' inputs,
# attention's scores and padding besides (2.3 to 2.5 in plans of GPT-J and Llama-2 for v5e).
HELD_FOR_SAVED = 2.5
MANY_BATCHES = 4
RELEASED_CORRECT_TOKENS = 5  # ENCORE's code compares with this number, whatever the target's length


# What of the values must be finite, in the order in which it is computed.
CHECKED = (
    ("key_ICF", "keys"),
    ("bare_key_IF", "bare prompt's key"),
    ("value_ICD", "MLP outputs"),
    ("bare_value_ID", "bare prompt's MLP output"),
    ("init_ID", "value before the edit"),
    ("nll_I", "target loss at the vector added to the output"),
    ("kl_I", "KL term at the vector added to the output"),
    ("decay_I", "weight decay at the vector added to the output"),
    ("delta_ID", "vector added to the output"),
)


class OptimisedValues(NamedTuple):
    """The values of I requests in C templates. Keys and values are those before the edit.

    Attributes:
      delta_ID: the vectors; a value to write is init + delta.
      init_ID: the residual stream or MLP's output of the first template.
      key_ICF: MLP keys at the fact's token.
      value_ICD: MLP outputs there.
      bare_key_IF: the key of the bare prompt.
      bare_value_ID: its MLP output.
      nll_I: the target loss at the end, in nats.
      kl_I: the essence KL, times kl_factor.
      decay_I: the weight decay.
      n_steps_I: forward passes, the published count.
    """

    delta_ID: np.ndarray
    init_ID: np.ndarray
    key_ICF: np.ndarray
    value_ICD: np.ndarray
    bare_key_IF: np.ndarray
    bare_value_ID: np.ndarray
    nll_I: np.ndarray
    kl_I: np.ndarray
    decay_I: np.ndarray
    n_steps_I: np.ndarray


def optimise_values(
    model: Model,
    requests: list[Request],
    templates: tuple[str, ...],
    layer: int,
    hyper: TargetHyper,
    site: Site,
) -> OptimisedValues:
    """Optimise the values of requests, each independent of the others.

    Args:
      model: with the edits so far.
      requests: at least one.
      templates: context templates with one `{}` each; the first gives `init`.
      layer: the vector is added to this layer's output.
      hyper: published names and values.
      site: what `init` is, and whether a second vector is optimised along with delta, for the
        attention's output; that one is not returned.
    """
    tokenised = [
        tokenise_request(model, request, templates, hyper.leading_space, hyper.fact_token)
        for request in requests
    ]

    # Requests of like length together: a rectangle is as long as its longest suffix.
    shapes = [common_shape([request]) for request in tokenised]
    sizes = [(shape.suffix, shape.n_read, shape.prefix) for shape in shapes]
    order = sorted(range(len(requests)), key=sizes.__getitem__)
    groups = [
        equal_chunks(group, requests_per_batch(model, common_shape(group), len(templates), layer))
        for group in _groups(model, [tokenised[i] for i in order], len(templates), layer)
    ]

    # prob_cutoff is published as minus the number of passes.
    max_correct_passes = None if hyper.prob_cutoff is None else -hyper.prob_cutoff
    correct_tokens = RELEASED_CORRECT_TOKENS if hyper.prob_cutoff_count == "five_tokens" else None
    variant = LossVariant(site, max_correct_passes, hyper.reduce_nll_when_correct, correct_tokens)

    def run(model: Model, hyper: TargetHyper) -> OptimisedValues:
        of_groups = []
        for chunks, n_requests in groups:
            of_chunks = [
                _optimise_chunk(model, chunk, common_shape(chunk), layer, hyper, variant)
                for chunk in chunks
            ]
            arrays = map(np.concatenate, zip(*of_chunks, strict=True))
            of_groups.append([array[:n_requests] for array in arrays])
        in_order = map(np.concatenate, zip(*of_groups, strict=True))
        return OptimisedValues(*(array[np.argsort(order)] for array in in_order))

    values = run(model, hyper)
    if not hyper.keep_unedited_norm:
        return values

    # The value keeps its direction and gets the norm of what the unedited model holds there.
    anchor_ID = run(without_edits(model), dataclasses.replace(hyper, v_num_grad_steps=1)).init_ID
    wanted_ID = values.init_ID + values.delta_ID
    scale_I = np.linalg.norm(anchor_ID, axis=1) / np.linalg.norm(wanted_ID, axis=1)
    return values._replace(delta_ID=scale_I[:, None] * wanted_ID - values.init_ID)


def _groups(
    model: Model, in_order: list[TokenisedRequest], n_templates: int, layer: int
) -> list[list[TokenisedRequest]]:
    """Divide requests into those that are batched apart: one group, or one for each suffix.

    On accelerators batches are large. Where there are many of them, requests of one suffix fill
    their own, and none is padded to another's.
    """
    batch_size = requests_per_batch(model, common_shape(in_order), n_templates, layer)
    if platform(model.mesh) == "cpu" or len(in_order) < MANY_BATCHES * batch_size:
        return [in_order]
    by_suffix: dict[int, list[TokenisedRequest]] = {}
    for request in in_order:
        by_suffix.setdefault(common_shape([request]).suffix, []).append(request)
    return list(by_suffix.values())


def requests_per_batch(model: Model, shape: PaddedShape, n_templates: int, layer: int) -> int:
    """Choose how many requests are optimised together.

    A power of two with enough positions for the platform, or fewer if their products would take
    more than it is to keep.
    """
    config, n_data, n_model = model.config, model.mesh.shape["data"], model.mesh.shape["model"]
    enough_positions, saved_bytes = ENOUGH_POSITIONS, SAVED_BYTES
    if platform(model.mesh) != "cpu":
        enough_positions = ACCELERATOR_POSITIONS
        limit = device_bytes_limit(model.mesh)
        held_bytes = ACCELERATOR_HELD_BYTES if limit is None else ACCELERATOR_SHARE * limit
        saved_bytes = held_bytes / HELD_FOR_SAVED
    positions = (n_templates + 1) * shape.suffix  # of one request, with its KL prompt
    enough = next_power_of_two(ceil_div(enough_positions * n_data, positions))

    # The products of a position in one layer: both outputs, whole on every device; attention's and
    # the MLP's, which are split over `model`.
    split = config.H * (config.N + 2 * config.K) + config.F * (1 + config.gated)
    floats = 2 * config.D + ceil_div(split, n_model)
    request_bytes = 4 * floats * positions * (config.L - 1 - layer)
    return max(1, min(enough, int(saved_bytes * n_data // request_bytes)))


def _optimise_chunk(
    model: Model,
    tokenised: list[TokenisedRequest],
    shape: PaddedShape,
    layer: int,
    hyper: TargetHyper,
    variant: LossVariant,
) -> OptimisedValues:
    """Optimise the values of requests that lie in one batch."""
    on_host = to_batch(tokenised, shape, model.mesh.shape["data"])
    # The rows are split over `data`; what names positions in them is on every device.
    letters = {"token_BT": "BT", "fact_position_B": "B", "request_B": "B"}
    batch = PromptBatch(
        **{
            name: shard_batch(model.mesh, letters.get(name, "_"), np.asarray(array))
            for name, array in on_host._asdict().items()
        }
    )
    numbers = {name: jnp.float32(getattr(hyper, name)) for name in NUMERIC_HYPERS}
    of_batch = jax.device_get(optimise_batch(model, batch, layer, numbers, shape, variant))

    # Rows to templates: a request's rows begin with its templates, in their order.
    n_templates = len(tokenised[0].templates)
    row_IC = on_host.first_row_I[:, None] + np.arange(n_templates)
    key_BF, value_BD = of_batch.pop("key_BF"), of_batch.pop("value_BD")
    found = OptimisedValues(
        key_ICF=key_BF[row_IC],
        value_ICD=value_BD[row_IC],
        bare_key_IF=key_BF[on_host.bare_row_I],
        bare_value_ID=value_BD[on_host.bare_row_I],
        **of_batch,
    )
    for name, what in CHECKED:
        check_finite(what, getattr(found, name), layer)
    return found
