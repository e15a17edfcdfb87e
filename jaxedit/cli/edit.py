"""Write one fact into a model and see what it does: perplexity before and after, what the model
says.

    jaxedit edit --prompt="{} is based in" --subject=BP --target=Munich jaxedit edit --method=c-rome
    --prompt="{} is based in" --subject=BP --target=Munich --hyper=v_lr=0.3

A hyper-parameter has its published name; its value is read as JSON where it is JSON, else as text.
"""

import json
from pathlib import Path
from typing import Any

from absl import flags

from jaxedit.cli._flags import FLAGS, json_flag, layer_numbers, load_model, model_flags
from jaxedit.cli._output import print_json
from jaxedit.distributed import is_first_process


def define_flags() -> None:
    """The flags of this command."""
    model_flags()
    flags.DEFINE_string("method", "rome", "the editing method")
    flags.DEFINE_list(
        "layer",
        ["5"],
        "the layer to edit, or several with commas; 5 is the default for smollm2-135m",
    )
    flags.DEFINE_string(
        "stats", None, "second moments from `jaxedit stats`, for methods that use them"
    )
    flags.DEFINE_multi_string(
        "hyper", [], "NAME=VALUE, a hyper-parameter; may be given several times"
    )
    flags.DEFINE_string("prompt", None, 'with one {} where the subject goes, e.g. "{} is based in"')
    flags.DEFINE_string("subject", None, "e.g. BP")
    flags.DEFINE_string("target", None, "the new answer, e.g. Munich")
    flags.DEFINE_string("target_true", None, "the old answer, where its probability is of interest")
    flags.DEFINE_string(
        "texts", "builtin", "texts for the perplexity: a .json, .jsonl or .txt file"
    )
    flags.DEFINE_string("save", None, "write the edit to this .safetensors file")
    json_flag()


def main() -> None:
    """Edits, measures, prints."""
    import jaxedit
    from jaxedit.datasets import read_texts
    from jaxedit.metrics.facts import evaluate_facts

    missing = [f"--{name}" for name in ("prompt", "subject", "target") if not FLAGS[name].value]
    if missing:
        raise ValueError(f"missing {', '.join(missing)}; see jaxedit edit --help for an example")
    request = jaxedit.Request(FLAGS.prompt, FLAGS.subject, FLAGS.target, FLAGS.target_true)
    editor = jaxedit.make_editor(
        FLAGS.method, layers=layer_numbers("layer"), **dict(map(parse_hyper, FLAGS.hyper))
    )
    texts = read_texts(FLAGS.texts)
    model = load_model()
    stats = jaxedit.Stats.load(Path(FLAGS.stats)) if FLAGS.stats else None
    edit, _, info = editor.edit(model, [request], editor.init(model, stats))
    edited = jaxedit.apply(model, edit)
    result: dict[str, Any] = {
        "request": request.summary,
        "method": FLAGS.method,
        "model": FLAGS.model,
        "editor": info,
    }
    for when, version in (("before", model), ("after", edited)):
        score = jaxedit.perplexity(version, texts)
        (fact,) = evaluate_facts(version, [request])
        says = jaxedit.generate(version, [request.prompt_text], max_new_tokens=12)[0]
        result[when] = {"perplexity": score.mean, "pooled": score.pooled, **fact, "says": says}
    if FLAGS.save and is_first_process():
        save_edit(Path(FLAGS.save), edit)
    if FLAGS.json:
        print_json(result)
    else:
        show(result)


def parse_hyper(text: str) -> tuple[str, Any]:
    """NAME=VALUE as a name and a value."""
    name, sign, value = text.partition("=")
    if not sign:
        raise ValueError(f"--hyper={text}: expected NAME=VALUE, e.g. --hyper=v_lr=0.3")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def save_edit(path: Path, edit: Any) -> None:
    """Writes an edit as a journal's step does."""
    from jaxedit.edits.serialise import edit_to_arrays, to_safetensors

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(to_safetensors(*edit_to_arrays(edit)))


def show(result: dict[str, Any]) -> None:
    """The result for people."""
    from rich.console import Console
    from rich.table import Table

    from jaxedit.reports.formatting import format_number

    console = Console(markup=False, emoji=False)  # facts and continuations may hold brackets
    console.print(
        f"{result['request']} with {result['method']} in {result['model']}\n", highlight=False
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for title in ("before", "after"):
        table.add_column(title, overflow="fold")
    before, after = result["before"], result["after"]
    table.add_row(
        "perplexity", format_number(before["perplexity"]), format_number(after["perplexity"])
    )
    table.add_row(
        "P(new)", format_number(before["probability_new"]), format_number(after["probability_new"])
    )
    table.add_row("greedy is new", *("yes" if x["efficacy_accuracy"] else "no" for x in (before, after)))
    table.add_row("says", before["says"], after["says"])
    console.print(table, highlight=False)
    console.print(
        "\n"
        + ", ".join(f"{name} {format_number(value)}" for name, value in result["editor"].items()),
        highlight=False,
    )
