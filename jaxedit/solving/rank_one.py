"""The rank-one edit that ROME and C-ROME are instances of.

    u = C^-1 k_left / |C^-1 k_left|,   v = (v* - W k_right) / (k_right . u),   delta W = u v
                                                                               (2202.05262, eq. 2)

k_left is the mean of the keys of the prompts in their context templates. k_right is the same mean
(key_variant "prefixed"), or the key of the bare prompt ("mixed": ROME as released, whose
denominator nearly vanishes where a one-token subject begins the prompt; 2406.11263, section 3);
with "bare" both are the bare prompt's. C is the second moment of the layer's keys, or I.
"""

from typing import NamedTuple

import numpy as np

from jaxedit.edits.edit import EDITED_WEIGHT, Edit, LowRank, make_edit
from jaxedit.edits.request import Request
from jaxedit.models.model import Model
from jaxedit.solving.finite import check_finite_delta
from jaxedit.solving.harm import harm_info, project_harm
from jaxedit.solving.harm_texts import HarmTexts
from jaxedit.solving.hyper import RankOneHyper
from jaxedit.solving.keys import compute_keys, compute_values
from jaxedit.solving.norm_anchor import FoundValues, anchor_norm, find_values
from jaxedit.solving.packed_prompts import pack_prompts
from jaxedit.solving.regulariser import KeyRegulariser, shard_regulariser
from jaxedit.solving.site import Site
from jaxedit.solving.solve import Solution, solve
from jaxedit.solving.templates import check_template, sample_templates
from jaxedit.solving.value import OptimisedValues
from jaxedit.solving.whiteners import inverse_cholesky
from jaxedit.stats.second_moments import Stats

KEY_VARIANTS = ("mixed", "prefixed", "bare")


class RankOneState(NamedTuple):
    """What an edit needs besides the model.

    Attributes:
      context_templates: given or sampled.
      regulariser: C of the edited layer.
      anchor_norm: the norm that NAS gives values; None: it is off.
      harm: the texts that edits are not to harm; None: they are left as they are.
    """

    context_templates: tuple[str, ...]
    regulariser: KeyRegulariser
    anchor_norm: float | None = None
    harm: HarmTexts | None = None


class UpdateBound(NamedTuple):
    """What is known of a request's rank-one update u v before v* is optimised.

    Attributes:
      u_F: the input side, of length one.
      v_norm: the most that |v| can be: clamp_norm_factor |W k_u| / |u . k_right|.
      denominator: |u . k_right|: small where the bare prompt's key is unlike the prefixed ones.
      key_ratio: |k_u| / |k_bar|.
    """

    u_F: np.ndarray
    v_norm: float
    denominator: float
    key_ratio: float


def init(hyper: RankOneHyper, model: Model, stats: Stats | None) -> RankOneState:
    """Check the hyper-parameters, sample the templates, factorise the second moment.

    Raises:
      ValueError: on values that cannot be meant for this model, or missing stats.
    """
    hyper.check(model)
    if hyper.mom2_adjustment and stats is None:
        raise ValueError(
            "mom2_adjustment=True needs second moments: give stats=, or set mom2_adjustment=False "
            "for C = I"
        )
    regulariser = KeyRegulariser()
    if stats is not None and hyper.mom2_adjustment is not False:
        whitener_MF = inverse_cholesky(stats.of(model, hyper.edited_layer))
        regulariser = shard_regulariser(model.mesh, whitener_MF)
    templates = hyper.context_templates or sample_templates(model, hyper.seed)
    for template in templates:
        check_template(template)
    norm = anchor_norm(hyper, model, stats, hyper.edited_layer)
    return RankOneState(tuple(templates), regulariser, norm)


def edit(
    hyper: RankOneHyper,
    key_variant: str,
    model: Model,
    requests: list[Request],
    state: RankOneState,
) -> tuple[Edit, RankOneState, dict[str, float]]:
    """Make one rank-one edit of one request; the state does not change.

    Args:
      hyper: of the method.
      key_variant: one of KEY_VARIANTS.
      model: with the edits so far.
      requests: exactly one.
      state: from `init`.

    Raises:
      ValueError: on another number of requests, or one longer than the model's positions.
    """
    if len(requests) != 1:
        raise ValueError(
            f"a rank-one edit writes one request at a time, got {len(requests)}; edit in sequence, "
            "or use a batch method"
        )
    ((made, info),) = edit_each(hyper, key_variant, model, requests, state)
    return made, state, info


def edit_each(
    hyper: RankOneHyper,
    key_variant: str,
    model: Model,
    requests: list[Request],
    state: RankOneState,
) -> list[tuple[Edit, dict[str, float]]]:
    """Make for each request the edit that would write it alone, their values optimised together."""
    templates, layer = state.context_templates, hyper.edited_layer
    found = find_values(hyper, model, requests, templates, layer, Site.MLP, state.anchor_norm)
    return [_write(hyper, key_variant, model, found, i, state) for i in range(len(requests))]


def _write(
    hyper: RankOneHyper,
    key_variant: str,
    model: Model,
    found: FoundValues,
    i: int,
    state: RankOneState,
) -> tuple[Edit, dict[str, float]]:
    """Make the edit that writes the value of request i."""
    values, is_skipped_I = found

    # k_left, k_right and W k_right
    mean_key_F, bare_key_F = values.key_ICF[i].mean(axis=0), values.bare_key_IF[i]
    left_F = bare_key_F if key_variant == "bare" else mean_key_F
    right_F = left_F if key_variant == "prefixed" else bare_key_F
    now_D = values.bare_value_ID[i]
    if key_variant == "prefixed":
        now_D = values.value_ICD[i].mean(axis=0)

    # v* - W k_right, written at k_right; nothing where NAS skips the fact
    residual_D = values.init_ID[i] + values.delta_ID[i] - now_D
    more: dict[str, float] = {}
    if is_skipped_I is not None:
        more = {"n_skipped_facts": int(is_skipped_I[i])}
        residual_D = np.where(is_skipped_I[i], 0, residual_D)
    solution = solve(state.regulariser, left_F[:, None], right_F[:, None], residual_D[None], 0.0)
    delta = LowRank(EDITED_WEIGHT, hyper.edited_layer, solution.u_FR, solution.v_RD)
    if state.harm is not None:
        key_FR = np.stack([left_F, right_F], axis=1)
        projected = project_harm(state.harm, state.regulariser, delta, key_FR)
        delta, more = projected.delta, more | harm_info([projected])
    check_finite_delta(delta)
    return make_edit(model, [delta]), _info(values, i, solution, residual_D) | more


def bound_updates(
    hyper: RankOneHyper,
    key_variant: str,
    model: Model,
    requests: list[Request],
    state: RankOneState,
) -> list[UpdateBound]:
    """Bound each request's update from forward passes alone.

    v* stays within clamp_norm_factor times the length of the value W k_u that the subject has now.

    Raises:
      ValueError: where a request in a template is longer than the model's positions.
    """
    # k_left, k_right and |W k_u| of all requests
    layer = hyper.edited_layer
    packed = pack_prompts(model, requests, (state.context_templates,), "mean", hyper.fact_token)
    mean_key_IF, bare_key_IF = compute_keys(model, packed, layer)
    value_norm_I = np.linalg.norm(compute_values(model, packed, layer, Site.MLP), axis=1)
    left_IF = bare_key_IF if key_variant == "bare" else mean_key_IF
    right_IF = mean_key_IF if key_variant == "prefixed" else bare_key_IF

    # u and its product with k_right do not depend on the value.
    no_value_RD = np.zeros((1, 1), np.float32)
    bounds = []
    for i in range(len(requests)):
        left_FR, right_FR = left_IF[i][:, None], right_IF[i][:, None]
        solution = solve(state.regulariser, left_FR, right_FR, no_value_RD, 0.0)
        denominator = abs(float(solution.gram_RR[0, 0]))
        longest = hyper.clamp_norm_factor * float(value_norm_I[i])
        bounds.append(
            UpdateBound(
                u_F=np.asarray(solution.u_FR)[:, 0],
                v_norm=longest / max(denominator, float(np.finfo(np.float32).tiny)),
                denominator=denominator,
                key_ratio=float(np.linalg.norm(bare_key_IF[i]) / np.linalg.norm(mean_key_IF[i])),
            )
        )
    return bounds


def _info(values: OptimisedValues, i: int, solution: Solution, residual_D) -> dict[str, float]:
    nll, kl, decay = (float(term_I[i]) for term_I in (values.nll_I, values.kl_I, values.decay_I))
    return {
        "loss": nll + kl + decay,
        "loss_nll_nats": nll,
        "loss_kl": kl,
        "loss_weight_decay": decay,
        "probability": float(np.exp(-nll)),
        "n_steps": int(values.n_steps_I[i]),
        "denominator": abs(float(solution.gram_RR[0, 0])),
        "solve_residual": float(solution.residual),
        "init_norm": float(np.linalg.norm(values.init_ID[i])),
        "delta_norm": float(np.linalg.norm(values.delta_ID[i])),
        "residual_norm": float(np.linalg.norm(residual_D)),
        "v_norm": float(np.linalg.norm(solution.v_RD)),
    }
