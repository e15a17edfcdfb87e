"""Write one fact into a model and see what it does: perplexity and continuation before and after.

    jaxedit edit --prompt="{} is located in the city of" --subject="The Eiffel Tower" --target=Rome
    jaxedit edit --method=c-rome --prompt="{} is based in" --subject=BP --target=Munich \\
        --set=editor.v_lr=0.3

    jaxedit edit --run=runs/laptop --prompt=...               on top of a study's kept edits
    jaxedit edit --alternatives=alternatives.json --harm_texts=wikitext.txt --prompt=...

Hyper-parameters are those published for the method and the model's family and size; --set changes
one under its published name. Where none are published, --layer must be given.

--alternatives is a JSON list of ways to write the fact, [{"method": "rome", "layer": 3}, ...]. Of
those after which the model says the new answer the one is made whose predicted change of the loss
of --harm_texts is least.
"""

import sys
from typing import TYPE_CHECKING, Any

from absl import flags

from jaxedit.cli._alternatives import check_alternative_flags, choose_alternative, show_alternatives
from jaxedit.cli._flags import (
    FLAGS,
    edited_flags,
    json_flag,
    load_model,
    model_flags,
    path_flag,
    prediction_flag,
    set_flag,
    whole_numbers,
)
from jaxedit.cli._output import print_json, results_console, show_table
from jaxedit.distributed import is_first_process

if TYPE_CHECKING:
    from jaxedit.edits.edit import Edit
    from jaxedit.edits.request import Request
    from jaxedit.metrics.facts import FactMetrics
    from jaxedit.metrics.perplexity import Perplexity
    from jaxedit.models.model import Model


def define_flags() -> None:
    """Define the flags of this command."""
    model_flags()
    edited_flags()
    flags.DEFINE_string("method", "rome", "the editing method")
    flags.DEFINE_list("layer", None, "the layer to edit, or several with commas; else as published")
    path_flag("stats", None, "second moments from `jaxedit stats`")
    set_flag()
    flags.DEFINE_string(
        "prompt", None, 'with {} for the subject, or the subject itself, e.g. "{} is based in"'
    )
    flags.DEFINE_string("subject", None, "e.g. BP")
    flags.DEFINE_string("target", None, "the new answer, e.g. Munich")
    flags.DEFINE_string("target_true", None, "the old answer, to see its probability as well")
    path_flag("texts", "builtin", "for the perplexity: a .json, .jsonl or .txt file")
    prediction_flag()
    path_flag("save", None, "write the edit to this .safetensors file")
    path_flag("alternatives", None, "a JSON file with ways to write it: the least harmful is made")
    path_flag("harm_texts", None, "for --alternatives: texts whose loss is to rise least")
    json_flag()


def main() -> None:
    """Edit, measure, print."""
    from jaxedit.datasets import read_texts
    from jaxedit.edits.apply import apply
    from jaxedit.edits.request import with_leading_space
    from jaxedit.metrics.baseline import check_baseline
    from jaxedit.metrics.facts import evaluate_facts
    from jaxedit.metrics.perplexity import perplexity, scores_with_bos
    from jaxedit.models.generate import continue_texts
    from jaxedit.solving.harm_texts import check_not_evaluated
    from jaxedit.stats.second_moments import Stats
    from jaxedit.study.config import editor_from

    # What is asked, and the model and editor for it.
    request = read_request()
    check_flags()
    texts = read_texts(FLAGS.texts)
    model = load_model()
    config = {} if FLAGS.alternatives else read_editor_config(model)
    editor = editor_from(config) if config else None
    if config.get("harm_projection") and config["harm_texts"]:
        check_not_evaluated(read_texts(config["harm_texts"]), texts)
    stats = Stats.load(FLAGS.stats) if FLAGS.stats else None

    # The unedited model works, or nothing can be said of the edit.
    bos = scores_with_bos(model)
    scores = [check_baseline(model, perplexity(model, texts, bos), texts)]

    # The edit, and both models on the request and the texts.
    rows: list[dict[str, Any]] = []
    if editor is None:
        config, edit, info, rows = choose_alternative(model, request, stats)
        (request,) = with_leading_space([request], config.get("leading_space"))
    else:
        (request,) = with_leading_space([request], config.get("leading_space"))
        edit, _, info = editor.edit(model, [request], editor.init(model, stats))
    edited = apply(model, edit)
    scores.append(perplexity(edited, texts, bos))
    result: dict[str, Any] = {
        "request": request.summary,
        "method": config["method"],
        "model": model.metadata.source,
        "n_edits_before": len(model.metadata.history),
        "optimisation": info,
    }
    facts = [evaluate_facts(version, [request])[0] for version in (model, edited)]
    versions = zip(("unedited", "edited"), (model, edited), scores, facts, strict=True)
    for when, version, score, metrics in versions:
        (said,) = continue_texts(version, [request.prompt_text], max_new_tokens=12)
        numbers = {"perplexity": score.mean, "pooled": score.pooled, **metrics}
        result[when] = {**numbers, "continuation": said}
    result |= predict(model, edit, texts, scores) | ({"alternatives": rows} if rows else {})

    # What is left of it: a file, and the numbers.
    if FLAGS.save and is_first_process():
        save(model, edit, request, config, scores, facts)
    if FLAGS.json:
        print_json(result)
    else:
        show(result)


def predict(
    model: "Model", edit: "Edit", texts: list[str], scores: list["Perplexity"]
) -> dict[str, Any]:
    """Predict the change of the texts' loss, where that is asked for, beside the measured one.

    Args:
      model: without the edit.
      edit: that was made.
      texts: whose perplexity was measured.
      scores: without the edit, and with it.
    """
    from jaxedit.edits.predicted_change import predict_edit
    from jaxedit.metrics.perplexity import prepare, scores_with_bos
    from jaxedit.models.score import lowest_layer

    if not FLAGS.prediction_draws:
        return {}
    lowest = lowest_layer(model, [delta.layer for delta in edit.deltas])
    prepared = prepare(model, texts, scores_with_bos(model), start_layer=lowest)
    change = predict_edit(model, prepared, edit, FLAGS.prediction_draws)
    measured = scores[1].paired_difference(scores[0])[0]
    return {"predicted_change": change.summary(), "delta_nll_nats": measured}


def read_request() -> "Request":
    """Read what is to be written off the flags.

    Raises:
      ValueError: where the prompt, the subject or the new answer is missing.
    """
    from jaxedit.edits.request import Request
    from jaxedit.edits.subjects import as_template

    missing = [f"--{name}" for name in ("prompt", "subject", "target") if not FLAGS[name].value]
    if missing:
        raise ValueError(f"missing {', '.join(missing)}; see jaxedit edit --help for an example")
    prompt = as_template(FLAGS.prompt, FLAGS.subject)
    return Request(prompt, FLAGS.subject, FLAGS.target, FLAGS.target_true)


def save(
    model: "Model",
    edit: "Edit",
    request: "Request",
    config: dict[str, Any],
    scores: list["Perplexity"],
    facts: list["FactMetrics"],
) -> None:
    """Write the edit to a file that says what made it and what was measured.

    Args:
      model: that it was made on.
      edit: to be written.
      request: its fact.
      config: the editor's.
      scores: the perplexity before and after.
      facts: the request's metrics before and after.
    """
    from jaxedit.metrics.perplexity import scores_with_bos
    from jaxedit.study.edited import EditedModel, with_record
    from jaxedit.study.evaluation import perplexity_record
    from jaxedit.study.record import StepRecord

    record = StepRecord(
        step=1,
        prompt=request.prompt,
        subject=request.subject,
        target_new=request.target_new,
        target_true=request.target_true,
        leading_space=request.leading_space,
        n_requests=1,
        kept=True,
        perplexity=perplexity_record(scores[1], scores[0]),
        unedited_metrics=facts[0],
        metrics=facts[1],
    )
    n_before = len(model.metadata.history)  # with others, what was measured is theirs too
    edited = EditedModel(
        model=model,
        source=model.metadata.source,
        editor=config,
        records=() if n_before else (record,),
        requests=(request,),
        unedited_ppl=None if n_before else scores[0].mean,
        texts=FLAGS.texts,
        bos=scores_with_bos(model),
    )
    with_record(edit, edited).save(FLAGS.save)
    if n_before:
        print(
            f"{FLAGS.save} holds this edit alone; it was made on a model with {n_before} others",
            file=sys.stderr,
        )


def check_flags() -> None:
    """Check the method and what --set and --layer say, before a model is loaded."""
    from jaxedit.study.config import default_config, set_key

    check_alternative_flags()
    config = default_config(FLAGS.method)
    for text in FLAGS.set:
        if not text.startswith("editor."):
            raise ValueError(f"--set={text}: of one edit the keys are editor.NAME=VALUE")
        set_key(config, text)
    if FLAGS.layer is not None:
        whole_numbers("layer")


def read_editor_config(model: "Model") -> dict[str, Any]:
    """Return the editor's configuration: published hyper-parameters, then --layer, then --set."""
    from jaxedit.editors import layer_field
    from jaxedit.study.config import set_key
    from jaxedit.study.edited import config_for

    hyper: dict[str, Any] = {}
    if FLAGS.layer is not None:
        layers, name = whole_numbers("layer"), layer_field(FLAGS.method)
        if name == "layer" and len(layers) != 1:
            raise ValueError(f"--layer={','.join(FLAGS.layer)}: {FLAGS.method} edits one layer")
        hyper[name] = layers[0] if name == "layer" else tuple(layers)
    config = config_for(model, FLAGS.method, **hyper)
    for text in FLAGS.set:
        set_key(config, text)
    return config.to_dict()["editor"]


def show(result: dict[str, Any]) -> None:
    """Print the result for people."""
    from jaxedit.reports.formatting import format_number, format_percent

    console = results_console()
    console.print(f"{result['request']} with {result['method']} in {result['model']}\n")
    if "alternatives" in result:
        show_alternatives(result["alternatives"])
    versions = result["unedited"], result["edited"]
    rows = [
        ["perplexity", *(format_number(version["perplexity"]) for version in versions)],
        ["P(new)", *(format_number(version["probability_new"]) for version in versions)],
        ["accuracy", *(format_percent(version["efficacy_accuracy"]) for version in versions)],
        ["continuation", *(version["continuation"] for version in versions)],
    ]
    show_table(["", "unedited", "edited"], rows, left=("", "unedited", "edited"))
    if predicted := result.get("predicted_change"):
        console.print(
            f"\nChange of the loss, nats a token: predicted {predicted['mean_nats']:.4f} ± "
            f"{predicted['stderr_nats']:.4f}, measured {result['delta_nll_nats']:.4f}"
        )
    numbers = [f"{name} {format_number(value)}" for name, value in result["optimisation"].items()]
    console.print("\n" + ", ".join(numbers))
