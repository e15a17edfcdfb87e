"""Task files for lm-eval, over real data in files."""

from pathlib import Path

TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {path}
test_split: test
"""
CHOICE = """
output_type: multiple_choice
doc_to_text: "{{query}}Answer:"
doc_to_target: gold
doc_to_choice: choices
metric_list:
  - metric: acc
  - metric: acc_norm
"""
LAST_WORD = """
output_type: loglikelihood
doc_to_text: "{{context}}"
doc_to_target: "{{' ' + continuation}}"
metric_list:
  - metric: perplexity
    aggregation: perplexity
    higher_is_better: false
  - metric: acc
"""
FREE = """
output_type: generate_until
doc_to_text: "{{query}}"
doc_to_target: "{{choices[gold]}}"
generation_kwargs:
  until: ["\\n"]
  max_gen_toks: 12
  do_sample: false
metric_list:
  - metric: exact_match
"""


def write_tasks(folder: Path, shared: Path) -> Path:
    """Write a task of each kind into a folder; return that."""
    files = (
        ("piqa_here", "piqa.jsonl", CHOICE),
        ("lambada_here", "lambada_openai.jsonl", LAST_WORD),
        ("piqa_free", "piqa.jsonl", FREE),
    )
    for name, source, text in files:
        content = TASK.format(name=name, path=shared / "data" / "eval" / source) + text
        (folder / f"{name}.yaml").write_text(content, encoding="utf-8")
    return folder
