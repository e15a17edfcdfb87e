"""What tests of the commands share: files, arguments, and how to read what a command said."""

import subprocess

from reference.strict_json import read_strict_json

FACTS = [
    {"prompt": "{} lives in", "subject": "BP", "target_new": "French"},
    {"prompt": "{} lives in", "subject": "Bob [bold]", "target_new": "Munich"},
    {"prompt": "{} is based in", "subject": "Sony", "target_new": "London"},
]
TEXTS = [
    "The Eiffel Tower is located in the city of Paris.",
    " Once upon a time there was a little girl who lived in the forest.",
]
TEMPLATES = ("{}", "I am. {}")

# In a folder with these facts and texts, and the model as "tiny".
STUDY = (
    "study",
    "--workdir=run",
    "--config.model=tiny",
    "--config.facts=facts.json",
    "--config.texts=texts.json",
    "--config.editor.layer=3",
    "--config.editor.v_num_grad_steps=4",
    "--config.editor.context_templates=('{}', 'I am. {}')",
    "--config.guard.max_ppl_ratio=1e6",
)
EDIT = (
    "edit",
    "--model=tiny",
    "--texts=texts.json",
    "--layer=3",
    "--set=editor.v_num_grad_steps=4",
    '--set=editor.context_templates=["{}", "I am. {}"]',
    "--prompt={} lives in",
    "--subject=Bob",
    "--target=Munich",
)


def result(done: subprocess.CompletedProcess) -> dict:
    """What a command printed with --json: one strict JSON object on one line, and nothing else."""
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    return read_strict_json(done.stdout)


def refusal(done: subprocess.CompletedProcess) -> str:
    """What a command said of wrong input: one line on standard error, and nothing on standard
    output.
    """
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("jaxedit: error: ")
    assert done.stderr.endswith("\n")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr.removeprefix("jaxedit: error: ").rstrip("\n")
