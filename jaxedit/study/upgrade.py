"""Journals of older schemas as this version reads them.

Schema 0 had no version and other names; schema 1 had the names of today, no undos and no
`start`; schema 2 had no digests: what it and those before wrote cannot be verified.

Of studies of single edits schema 0 holds wrong numbers where an edit was made by itself: the KL,
the fluency, the consistency and what was said to the study's prompts are those of a model with the
edit applied twice. They are left out, with a warning.
"""

import logging
from collections.abc import Mapping
from typing import Any

from jaxedit.editors import RENAMED_HYPER, method_names
from jaxedit.files import to_json
from jaxedit.study.config import EVALUATION, GROUPS, default_config, editor_config
from jaxedit.study.guard import NO_LIMIT
from jaxedit.study.record import SCHEMA
from jaxedit.study.renamed import upgrade_key

RECORD_KEYS = {
    "lot": "batch_first_step",
    "predicted": "predicted_perturbation",
    "fact": "metrics",
    "before": "unedited_metrics",
    "says": "continuation",
    "says_before": "unedited_continuation",
    "continuations": "prompt_continuations",
    "editor": "optimisation",
    "relative_norm": "edit_norm_ratio",
    "relative_perturbation_of_all": "total_relative_perturbation",
    "divergence_nats": "kl_nats",
    "fluency_bits": "ngram_entropy_bits",
    "consistency": "reference_score",
}
METRIC_KEYS = {
    "efficacy": "efficacy_success",
    "greedy_new": "efficacy_accuracy",
    "paraphrase": "paraphrase_success",
    "neighbourhood": "neighbourhood_success",
    "portability": "portability_accuracy",
    "prefixed": "prefixed_success",
    "prefixed_greedy": "prefixed_accuracy",
}
# What schema 0 measured with the edit applied twice, in single edits made by themselves.
MEASURED_TWICE = ("divergence_nats", "fluency_bits", "consistency", "continuations")


def upgrade_run(run: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the content of run.json to this schema; the same where it is of it already."""
    schema = run.get("schema", 0)
    if "config" not in run:
        return dict(run)
    config = _with_bos(_with_finite_guard(_with_new_hyper(run["config"])))
    # What a study of this schema wrote says with which versions.
    if schema == SCHEMA and "versions" not in run:
        return {**run, "config": config}
    if schema > 0:  # the names are those of today
        return {**run, "schema": SCHEMA, "config": _with_new_keys(config)}
    upgraded = {name: config.pop(name) for name in ("guard", "editor") if name in config}
    upgraded = {name: dict(values) for name, values in upgraded.items()}
    evaluation = EVALUATION | {"bos": False}
    for key, value in config.items():
        new, value = upgrade_key(key, value)
        if new.startswith("eval."):
            evaluation[new.removeprefix("eval.")] = value
        else:
            upgraded[new] = value
    if upgraded.get("guard", {}).get("action") == "record":
        upgraded["guard"]["action"] = "keep"
    return {"schema": SCHEMA, **run, "config": _with_new_keys(upgraded | {"eval": evaluation})}


def _with_new_hyper(config: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the hyper-parameters that had other names, in whatever schema."""
    if "editor" not in config:
        return dict(config)
    editor = {RENAMED_HYPER.get(name, name): value for name, value in config["editor"].items()}
    return {**config, "editor": editor}


def _with_finite_guard(config: Mapping[str, Any]) -> dict[str, Any]:
    """Replace a guard's infinite limit, which a study could once have, by one as good."""
    guard = config.get("guard")
    if not isinstance(guard, Mapping) or guard.get("max_ppl_ratio") != "inf":
        return dict(config)
    return {**config, "guard": {**guard, "max_ppl_ratio": NO_LIMIT}}


def _with_bos(config: Mapping[str, Any]) -> dict[str, Any]:
    """Say of a study that knew no `eval.bos` that it scored texts without a begin-of-text token."""
    evaluation = config.get("eval")
    if not isinstance(evaluation, Mapping):
        return dict(config)
    return {**config, "eval": {"bos": False, **evaluation}}


def _with_new_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Add the keys that a study begun before they were there lacks; it had their defaults."""
    defaults = to_json(default_config().to_dict())
    method = config.get("editor", {}).get("method")
    defaults["editor"] = {}
    if method in method_names():
        defaults["editor"] = to_json(editor_config(method).to_dict())
    filled = {key: value for key, value in defaults.items() if key not in config} | dict(config)
    for group in (*GROUPS, "editor"):
        filled[group] = filled[group] | {
            key: value for key, value in defaults[group].items() if key not in filled[group]
        }
    return filled


def upgrade_line(line: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    """Translate a line of the journal to this schema; the same where it is of it already.

    Args:
      line: as read.
      run: the upgraded content of run.json, which says whether the edits are single ones.
    """
    if "kind" in line:
        return dict(line)
    values = dict(line)
    if run.get("config", {}).get("mode") == "single" and values.get("step") and "lot" not in values:
        _leave_out_measured_twice(values)
    reason = values.pop("guard", None)
    if reason:
        values |= {"guard_code": _guard_code(reason), "guard_reason": reason}
    if values.pop("held", False):
        values["skipped"] = "screening"
        del values["error"]
    upgraded = {RECORD_KEYS.get(key, key): value for key, value in values.items()}
    for name in ("metrics", "unedited_metrics"):
        if name in upgraded:
            upgraded[name] = upgrade_metrics(upgraded[name])
    if "retention" in upgraded:
        retention = upgraded["retention"]
        upgraded["retention"] = {step: upgrade_metrics(held) for step, held in retention.items()}
    if "n_broken" in upgraded.get("perplexity", {}):
        perplexity = dict(upgraded["perplexity"])
        perplexity["n_non_finite"] = perplexity.pop("n_broken")
        upgraded["perplexity"] = perplexity
    return {"kind": "step" if values["step"] else "baseline", **upgraded}


def upgrade_metrics(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the names of what was measured of a fact; the same where they are of today."""
    return {METRIC_KEYS.get(key, key): value for key, value in metrics.items()}


def _guard_code(reason: str) -> str:
    if reason.startswith("the edit itself"):
        return "non_finite_edit"
    return "non_finite_loss" if reason.startswith("the loss of") else "ppl_ratio"


def _leave_out_measured_twice(values: dict[str, Any]) -> None:
    wrong = [name for name in MEASURED_TWICE if values.pop(name, None) is not None]
    if wrong:
        logging.getLogger("jaxedit").warning(
            "step %d, written by an older version, holds %s of a model with the edit applied "
            "twice; they are left out. Make the study again to have them",
            values["step"],
            ", ".join(wrong),
        )
