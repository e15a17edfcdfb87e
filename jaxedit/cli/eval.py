"""Evaluate a model, or a study's edited model, on downstream tasks by lm-eval.

    jaxedit eval --tasks=piqa,lambada_standard --limit=800
    jaxedit eval --run=runs/laptop     --tasks=piqa              with the edits that were kept
    jaxedit eval --run=runs/scan --run_steps=2,7 --tasks=mine --task_path=tasks
    jaxedit eval --tasks=piqa --apply_chat_template --output_path=results --log_samples

--output_path writes lm-eval's own files: results_DATE.json, and with --log_samples each item in
samples_TASK_DATE.jsonl, in a folder named after the model.

Tasks are lm-eval's, by name; without a network describe local files in task files (.yaml) of your
own and give --task_path. Needs lm-eval: pip install 'jaxedit[eval]'.
"""

from pathlib import Path

from absl import flags

from jaxedit.cli._flags import FLAGS, edited_flags, json_flag, load_model, model_flags, path_flag
from jaxedit.cli._output import print_json, show_table


def define_flags() -> None:
    """Define the flags of this command."""
    model_flags()
    flags.DEFINE_list("tasks", [], "names of tasks, with commas between them")
    flags.DEFINE_integer("limit", None, "at most so many items of each task", lower_bound=1)
    path_flag("task_path", None, "a directory with task files of your own")
    flags.DEFINE_integer(
        "num_fewshot", None, "examples before each item; as the task says", lower_bound=0
    )
    flags.DEFINE_bool("apply_chat_template", False, "put prompts into the model's chat template")
    flags.DEFINE_integer(
        "seed", None, "of lm-eval's random choices, such as the examples", lower_bound=0
    )
    path_flag("output_path", None, "a folder for lm-eval's own files: results_*.json")
    flags.DEFINE_bool("log_samples", False, "write each item there, too: samples_TASK_*.jsonl")
    edited_flags()
    flags.DEFINE_alias("workdir", "run")
    json_flag()


def main() -> None:
    """Evaluate."""
    from jaxedit.metrics.baseline import check_baseline
    from jaxedit.metrics.downstream import PromptSettings, evaluate_tasks
    from jaxedit.metrics.perplexity import perplexity, scores_with_bos
    from jaxedit.metrics.task_files import check_output

    output_path = Path(FLAGS.output_path) if FLAGS.output_path else None
    check_output(output_path, FLAGS.log_samples)
    model = load_model()
    texts = ["Once upon a time"]  # a model that gives a text no loss answers nothing
    check_baseline(model, perplexity(model, texts, scores_with_bos(model)), texts)
    found = evaluate_tasks(
        model,
        FLAGS.tasks,
        limit=FLAGS.limit,
        task_path=Path(FLAGS.task_path) if FLAGS.task_path else None,
        prompts=PromptSettings(FLAGS.num_fewshot, FLAGS.apply_chat_template, FLAGS.seed),
        output_path=output_path,
        log_samples=FLAGS.log_samples,
    )
    if FLAGS.json:
        n_edits = len(model.metadata.history)
        print_json({"model": model.metadata.source, "n_edits": n_edits, "tasks": found})
        return
    rows = []
    for task, numbers in found.items():
        for name in [name for name in numbers if name != "n" and not name.endswith("_stderr")]:
            stderr = numbers.get(f"{name}_stderr")
            error = "" if stderr is None else f"± {stderr:.4f}"
            rows.append([task, name, f"{numbers[name]:.4f}", error, str(numbers.get("n", ""))])
    show_table(["task", "metric", "value", "", "items"], rows)
