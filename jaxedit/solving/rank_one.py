"""The rank-one edit that ROME and C-ROME are instances of.

    u = C^-1 k_left / |C^-1 k_left|,   v = (v* - W k_right) / (k_right . u),   delta W = u v      (2202.05262, eq. 2)

k_left is the mean of the keys of the prompts in their context templates. k_right is the same mean
(keys="prefixed"), or the key of the bare prompt ("mixed": ROME as released, whose denominator
nearly vanishes where a one-token subject begins the prompt; 2406.11263, section 3); with "bare"
both are the bare prompt's. C is the second moment of the layer's keys, or I."""

import dataclasses
from typing import NamedTuple

import numpy as np

from jaxedit.edits.edit import Edit, LowRank, make_edit
from jaxedit.edits.request import Request
from jaxedit.models.model import Model
from jaxedit.solving.hyper import ValueHyper
from jaxedit.solving.keys import compute_keys, compute_values, pack_prompts
from jaxedit.solving.solve import (
    KeyRegulariser,
    Solution,
    inverse_cholesky,
    shard_regulariser,
    solve,
)
from jaxedit.solving.templates import check_template, sample_templates
from jaxedit.solving.value import OptimisedValues
from jaxedit.solving.value_cache import cached_values
from jaxedit.stats.second_moments import Stats

WEIGHT = "mlp/w_down"
KEYS = ("mixed", "prefixed", "bare")


@dataclasses.dataclass(frozen=True)
class RankOneHyper(ValueHyper):
    """Hyper-parameters of ROME and C-ROME under their published names.

    Attributes:
      layer: the layer to edit (or `layers=[one]`); None: the one published for the model.
      mom2_adjustment: True asks for stats, False ignores them, None uses them where given.
      context_templates: texts with one `{}` each, the first usually "{}"; None samples 21 from
        `seed`.
    """

    layer: int | None = None
    mom2_adjustment: bool | None = None
    context_templates: tuple[str, ...] | None = None

    @property
    def edited_layer(self) -> int:
        """The layer, as given or as published for the model."""
        assert self.layer is not None, "make_editor resolves it"
        return self.layer


class RankOneState(NamedTuple):
    """What an edit needs besides the model: the templates, and the second moment as a metric of
    keys.
    """

    context_templates: tuple[str, ...]
    metric: KeyRegulariser


def init(hyper: RankOneHyper, model: Model, stats: Stats | None) -> RankOneState:
    """Checks the hyper-parameters against the model, samples the templates, factorises the second
    moment.
    """
    if not 0 <= hyper.edited_layer < model.config.L - 1:
        raise ValueError(
            f"layer={hyper.edited_layer}: {model.metadata.source} can be edited at layers 0 to {model.config.L - 2}"
        )
    hyper.check(model)
    if hyper.mom2_adjustment and stats is None:
        raise ValueError(
            "mom2_adjustment=True needs second moments: give stats=, or set mom2_adjustment=False for C = I"
        )
    metric = KeyRegulariser()
    if stats is not None and hyper.mom2_adjustment is not False:
        metric = shard_regulariser(
            model.mesh, inverse_cholesky(stats.of(model, hyper.edited_layer))
        )
    templates = hyper.context_templates or sample_templates(model, hyper.seed)
    for template in templates:
        check_template(template)
    return RankOneState(tuple(templates), metric)


def edit(
    hyper: RankOneHyper, keys: str, model: Model, requests: list[Request], state: RankOneState
) -> tuple[Edit, RankOneState, dict[str, float]]:
    """One rank-one edit for one request with keys of one of KEYS; the state does not change."""
    if len(requests) != 1:
        raise ValueError(
            f"a rank-one edit writes one request at a time, got {len(requests)}; edit in sequence, or use a batch method"
        )
    ((made, info),) = edit_each(hyper, keys, model, requests, state)
    return made, state, info


def edit_each(
    hyper: RankOneHyper, keys: str, model: Model, requests: list[Request], state: RankOneState
) -> list[tuple[Edit, dict[str, float]]]:
    """For each request the edit that would write it alone, their values found together."""
    found = cached_values(
        hyper, model, requests, state.context_templates, hyper.edited_layer, residual=False
    )
    return [_write(hyper, keys, model, found, n, state) for n in range(len(requests))]


def _write(
    hyper: RankOneHyper,
    keys: str,
    model: Model,
    found: OptimisedValues,
    n: int,
    state: RankOneState,
) -> tuple[Edit, dict[str, float]]:
    """The edit that writes the n-th value found."""
    left_F = found.bare_key_NF[n] if keys == "bare" else found.key_NRF[n].mean(axis=0)
    right_F = left_F if keys == "prefixed" else found.bare_key_NF[n]
    now_D = found.value_NRD[n].mean(axis=0) if keys == "prefixed" else found.bare_value_ND[n]
    wanted_D = found.init_ND[n] + found.delta_ND[n]
    solution = solve(state.metric, left_F[:, None], right_F[:, None], (wanted_D - now_D)[None], 0.0)
    made = make_edit(model, [LowRank(WEIGHT, hyper.edited_layer, solution.u_FR, solution.v_RD)])
    return made, _info(found, n, solution, wanted_D - now_D)


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


def bound_updates(
    hyper: RankOneHyper, keys: str, model: Model, requests: list[Request], state: RankOneState
) -> list[UpdateBound]:
    """Bounds each request's update from forward passes alone.

    v* stays within clamp_norm_factor times the length of the value W k_u that the subject has now.

    Raises:
      ValueError: where a request in a template is longer than the model's positions.
    """
    packed = pack_prompts(model, requests, (state.context_templates,), "mean", hyper.fact_token)
    pooled_NF, bare_NF = compute_keys(model, packed, hyper.edited_layer)
    value_norm_N = np.linalg.norm(compute_values(model, packed, hyper.edited_layer, "mlp"), axis=1)
    left_NF = bare_NF if keys == "bare" else pooled_NF
    right_NF = pooled_NF if keys == "prefixed" else bare_NF
    no_value_RD = np.zeros((1, 1), np.float32)
    bounds = []
    for n in range(len(requests)):
        solution = solve(state.metric, left_NF[n][:, None], right_NF[n][:, None], no_value_RD, 0.0)
        denominator = abs(float(solution.gram_RR[0, 0]))
        clamped = hyper.clamp_norm_factor * float(value_norm_N[n])
        bounds.append(
            UpdateBound(
                u_F=np.asarray(solution.u_FR)[:, 0],
                v_norm=clamped / max(denominator, float(np.finfo(np.float32).tiny)),
                denominator=denominator,
                key_ratio=float(np.linalg.norm(bare_NF[n]) / np.linalg.norm(pooled_NF[n])),
            )
        )
    return bounds


def _info(found: OptimisedValues, n: int, solution: Solution, residual_D) -> dict[str, float]:
    nll, kl, decay = (float(x[n]) for x in (found.nll_N, found.kl_N, found.decay_N))
    return {
        "loss": nll + kl + decay,
        "loss_nll_nats": nll,
        "loss_kl": kl,
        "loss_weight_decay": decay,
        "probability": float(np.exp(-nll)),
        "n_steps": int(found.n_steps_N[n]),
        "denominator": abs(float(solution.gram_RR[0, 0])),
        "solve_residual": float(solution.residual),
        "init_norm": float(np.linalg.norm(found.init_ND[n])),
        "delta_norm": float(np.linalg.norm(found.delta_ND[n])),
        "residual_norm": float(np.linalg.norm(residual_D)),
        "v_norm": float(np.linalg.norm(solution.v_RD)),
    }
