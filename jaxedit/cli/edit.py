"""Write one fact into a model and see what it does: perplexity and continuation before and after.

    jaxedit edit --prompt="{} is located in the city of" --subject="The Eiffel Tower" --target=Rome
    jaxedit edit --method=c-rome --prompt="{} is based in" --subject=BP --target=Munich \\
        --set=editor.v_lr=0.3

Hyper-parameters are those published for the method and the model's family and size; --set changes
one under its published name. Where none are published, --layer must be given.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from jaxedit.cli._flags import (
    FLAGS,
    json_flag,
    load_model,
    model_flags,
    set_flag,
    whole_numbers,
)
from jaxedit.cli._output import print_json, results_console, show_table
from jaxedit.distributed import is_first_process

if TYPE_CHECKING:
    from jaxedit.editors import Editor
    from jaxedit.models.model import Model


def define_flags() -> None:
    """Define the flags of this command."""
    model_flags()
    flags.DEFINE_string("method", "rome", "the editing method")
    flags.DEFINE_list("layer", None, "the layer to edit, or several with commas; else as published")
    flags.DEFINE_string("stats", None, "second moments from `jaxedit stats`")
    set_flag()
    flags.DEFINE_string("prompt", None, 'with one {} where the subject goes, e.g. "{} is based in"')
    flags.DEFINE_string("subject", None, "e.g. BP")
    flags.DEFINE_string("target", None, "the new answer, e.g. Munich")
    flags.DEFINE_string("target_true", None, "the old answer, to see its probability as well")
    flags.DEFINE_string("texts", "builtin", "for the perplexity: a .json, .jsonl or .txt file")
    flags.DEFINE_string("save", None, "write the edit to this .safetensors file")
    json_flag()


def main() -> None:
    """Edit, measure, print."""
    from jaxedit.datasets import read_texts
    from jaxedit.edits.apply import apply
    from jaxedit.edits.edit import edit_to_arrays
    from jaxedit.edits.request import Request
    from jaxedit.files import to_safetensors, write_atomic
    from jaxedit.metrics.facts import evaluate_facts
    from jaxedit.metrics.perplexity import perplexity
    from jaxedit.models.generate import generate
    from jaxedit.stats.second_moments import Stats

    # What is asked, and the model and editor for it.
    missing = [f"--{name}" for name in ("prompt", "subject", "target") if not FLAGS[name].value]
    if missing:
        raise ValueError(f"missing {', '.join(missing)}; see jaxedit edit --help for an example")
    request = Request(FLAGS.prompt, FLAGS.subject, FLAGS.target, FLAGS.target_true)
    check_flags()
    texts = read_texts(FLAGS.texts)
    model = load_model()
    editor = read_editor(model)
    stats = Stats.load(Path(FLAGS.stats)) if FLAGS.stats else None

    # The edit, and both models on the request and the texts.
    edit, _, info = editor.edit(model, [request], editor.init(model, stats))
    edited = apply(model, edit)
    result: dict[str, Any] = {
        "request": request.summary,
        "method": FLAGS.method,
        "model": FLAGS.model,
        "optimisation": info,
    }
    for when, version in (("unedited", model), ("edited", edited)):
        score = perplexity(version, texts)
        (metrics,) = evaluate_facts(version, [request])
        (text,) = generate(version, [request.prompt_text], max_new_tokens=12)
        result[when] = {
            "perplexity": score.mean,
            "pooled": score.pooled,
            **metrics,
            "continuation": text.removeprefix(request.prompt_text),
        }

    # What is left of it: a file, and the numbers.
    if FLAGS.save and is_first_process():
        write_atomic(Path(FLAGS.save), to_safetensors(*edit_to_arrays(edit)))
    if FLAGS.json:
        print_json(result)
    else:
        show(result)


def check_flags() -> None:
    """Check the method and what --set and --layer say, before a model is loaded."""
    from jaxedit.study.config import default_config, set_key

    config = default_config(FLAGS.method)
    for text in FLAGS.set:
        if not text.startswith("editor."):
            raise ValueError(f"--set={text}: of one edit the keys are editor.NAME=VALUE")
        set_key(config, text)
    if FLAGS.layer is not None:
        whole_numbers("layer")


def read_editor(model: "Model") -> "Editor":
    """Make the editor: published hyper-parameters, then --layer, then --set."""
    from jaxedit.editors import layer_field, published_hyper
    from jaxedit.study.config import default_config, editor_from, set_key

    hyper: dict[str, Any] = {}
    try:
        hyper = published_hyper(FLAGS.method, model)
    except ValueError:
        if FLAGS.layer is None:
            raise
    if FLAGS.layer is not None:
        layers, name = whole_numbers("layer"), layer_field(FLAGS.method)
        if name == "layer" and len(layers) != 1:
            raise ValueError(f"--layer={','.join(FLAGS.layer)}: {FLAGS.method} edits one layer")
        hyper[name] = layers[0] if name == "layer" else tuple(layers)
    config = default_config(FLAGS.method, **hyper)
    for text in FLAGS.set:
        set_key(config, text)
    return editor_from(config.to_dict()["editor"])


def show(result: dict[str, Any]) -> None:
    """Print the result for people."""
    from jaxedit.reports.formatting import format_number, format_percent

    console = results_console()
    console.print(f"{result['request']} with {result['method']} in {result['model']}\n")
    versions = result["unedited"], result["edited"]
    rows = [
        ["perplexity", *(format_number(version["perplexity"]) for version in versions)],
        ["P(new)", *(format_number(version["probability_new"]) for version in versions)],
        ["accuracy", *(format_percent(version["efficacy_accuracy"]) for version in versions)],
        ["continuation", *(version["continuation"] for version in versions)],
    ]
    show_table(["", "unedited", "edited"], rows, left=("", "unedited", "edited"))
    numbers = [f"{name} {format_number(value)}" for name, value in result["optimisation"].items()]
    console.print("\n" + ", ".join(numbers))
