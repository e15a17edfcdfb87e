"""Adapters of `jaxedit export --format=gguf-lora` in llama.cpp itself, and beside its converter's.

    pip install llama-cpp-python==0.3.36
    pip download --no-binary llama-cpp-python --no-deps llama-cpp-python==0.3.36    (and unpack it)
    PYTHONPATH=tests python tests/big/gguf_lora.py FOLDER --source=llama_cpp_python-0.3.36

A check, not a test: pip compiles llama-cpp-python for five minutes. Hardware: two CPU cores, 3 GB.
Result there (llama-cpp-python 0.3.36):

Logits of tiny models in float32, with low-rank edits of two steps and a dense one: they differ by
8e-6 for llama (unedited 7e-6) and by 9e-3 for gpt2 (unedited 2e-3), whose GELU llama.cpp looks up
in a table of float16.

Ten of the built-in facts written into SmolLM2 by ROME, one after the other. On the model's weights
in float32 the change of log P(target) is off by less than 0.005 % for each, and all ten
continuations are the same. On the file itself, Q4_1, llama.cpp also rounds activations to 8 bits:

    log P(target)            unedited              edited                change
                          here  llama.cpp       here  llama.cpp       here  llama.cpp    off by
    The Eiffel Tower    -5.167   -5.173       -0.005   -0.005        5.162    5.168      0.11 %
    Cuba               -14.895  -14.407      -10.856  -11.092        4.039    3.315     17.93 %
    To Kill a ...      -11.234  -10.689       -1.346   -1.360        9.888    9.330      5.65 %
    sodium             -16.222  -16.461       -2.120   -1.984       14.102   14.476      2.66 %
    Tiger Woods         -7.804   -7.809       -1.229   -1.372        6.575    6.437      2.09 %
    Nigeria             -8.378   -8.085       -0.034   -0.042        8.344    8.043      3.61 %
    the telephone       -7.289   -7.475      -17.609  -18.150      -10.320  -10.675      3.44 %
    BP                  -9.495   -9.949       -3.980   -3.945        5.515    6.004      8.87 %
    Saudi Arabia        -4.865   -4.719       -0.029   -0.032        4.836    4.687      3.09 %
    Toronto             -9.115   -9.072       -0.204   -0.194        8.911    8.878      0.37 %

4.78 % on average, seven of ten within 5 %; the unedited model alone is off by as much (0.24 nats on
average, the edited one by 0.11). Six continuations of ten are the same edited, eight unedited.

Files beside the converter's: the same bits for llama, qwen2 and gpt_neox. Of gpt2 the converter
turns the factors, and llama.cpp refuses its file ("incorrect shape").
"""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import jax
import numpy as np
from absl import app, flags
from conftest import SHARED
from reference.models import write_gguf

import jaxedit
from jaxedit import Dense, LowRank
from jaxedit.edits.apply import without_edits
from jaxedit.edits.edit import make_edit
from jaxedit.exports.export import export
from jaxedit.models.built_in import built_in_file
from jaxedit.models.generate import continue_tokens
from jaxedit.study.config import default_config
from jaxedit.study.edited import EditedModel, open_run
from jaxedit.study.loop import run_study

SOURCE = flags.DEFINE_string("source", None, "the unpacked source archive of llama-cpp-python")

WEIGHT = "mlp/w_down"
N_FACTS, N_NEW = 10, 10
ROME = dict(
    layer=5,
    context_templates=("{}", "The first thing is. {}", "They said that it was. {}"),  # few: quicker
    v_num_grad_steps=15,
    v_lr=0.5,
    v_weight_decay=0.5,
    kl_factor=0.0625,
)
# Of the families that there are tiny golden models of.
CONVERTED = ("gpt2", "gpt_neox", "llama", "qwen2")


def main(argv: list[str]) -> None:
    """Compares tiny models, edits of SmolLM2, and the files themselves."""
    folder = Path(argv[1])
    for family in ("gpt2", "llama"):
        compare_logits(folder / f"tiny-{family}", family)
    edited = study(folder / "rome")
    adapter = exported(edited, folder / "rome-adapter", "gguf-lora") / "adapter.gguf"
    compare_answers(edited, adapter, built_in_file(), False)
    compare_answers(edited, adapter, in_float32(folder / "float32.gguf"), True)
    if SOURCE.value:
        for family in CONVERTED:
            compare_files(folder / f"converted-{family}", family)


def exported(edited: EditedModel, out: Path, format: str) -> Path:
    if not out.exists():
        export(edited, out, format)
    return out


def random_edits(model: jaxedit.Model, source: str) -> EditedModel:
    """Adds two edits that meet in a layer, and a dense one."""
    rng = np.random.default_rng(0)
    _, F, D = model.base[WEIGHT].shape

    def draw(*shape: int) -> np.ndarray:
        return 0.3 * rng.standard_normal(shape)

    for deltas in (
        [LowRank(WEIGHT, 1, draw(F, 2), draw(2, D)), LowRank(WEIGHT, 0, draw(F, 1), draw(1, D))],
        [LowRank(WEIGHT, 1, draw(F, 1), draw(1, D)), Dense(WEIGHT, 2, draw(F, D))],
    ):
        model = jaxedit.apply(model, make_edit(model, deltas))
    return EditedModel(model, source, {}, (), (), None, "")


# Tiny models whose weights and cache are float32 there too.


def compare_logits(folder: Path, family: str) -> None:
    """Prints how far the logits of a tiny model are from llama.cpp's, without and with edits."""
    path = folder / "base.gguf"
    if not path.exists():
        folder.mkdir(parents=True)
        write_gguf(path, SHARED / "golden" / family)
    edited = random_edits(jaxedit.load(str(path)), str(path))
    adapter = exported(edited, folder / "adapter", "gguf-lora") / "adapter.gguf"
    token_BT = np.random.default_rng(1).integers(3, edited.model.config.V, (4, 20))
    for name, model, lora in (
        ("unedited", without_edits(edited.model), None),
        ("edited", edited.model, adapter),
    ):
        here = np.asarray(jaxedit.logits(model, token_BT))
        loaded = load_there(path, lora, is_float32=True)
        there = np.stack([logits_there(loaded, tokens) for tokens in token_BT.tolist()])
        print(f"tiny {family}, {name}: logits differ by {np.abs(here - there).max():.1e}", end=", ")
        print(f"the largest is {np.abs(here).max():.1f}")


def load_there(base: Path, lora: Path | None, is_float32: bool = False) -> Any:
    """Loads a model with an adapter in llama.cpp."""
    llama_cpp = importlib.import_module("llama_cpp")  # no extra has it: pip compiles it
    exact = dict(type_k=0, type_v=0, flash_attn=False) if is_float32 else {}
    return llama_cpp.Llama(
        str(base),
        lora_path=lora and str(lora),
        n_ctx=64,
        n_threads=1,
        n_threads_batch=1,
        logits_all=True,
        verbose=False,
        **exact,
    )


def logits_there(model: Any, tokens: list[int]) -> np.ndarray:
    """Returns llama.cpp's logits [T, V]."""
    model.reset()
    model.eval(tokens)
    return np.array(model.scores[: len(tokens)])


def continued_there(model: Any, tokens: list[int], n_new: int) -> list[int]:
    """Returns the most likely next tokens, one after the other."""
    new = [int(logits_there(model, tokens)[-1].argmax())]
    while len(new) < n_new:
        model.eval(new[-1:])
        new.append(int(model.scores[model.n_tokens - 1].argmax()))
    return new


# SmolLM2 with ten facts.


def study(folder: Path) -> EditedModel:
    """Writes ten of the built-in facts, one after the other."""
    config = default_config("rome", **ROME)
    config.update(n_facts=N_FACTS, guard=dict(action="keep"), eval=dict(perplexity_every=N_FACTS))
    run_study(config, folder)
    return open_run(folder)


def in_float32(path: Path) -> Path:
    """Writes the built-in model's weights, as they are dequantised, to a file of float32."""
    llama_cpp = importlib.import_module("llama_cpp")
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype, options.allow_requantize = llama_cpp.LLAMA_FTYPE_ALL_F32, True
    if not path.exists():
        names = [str(each).encode() for each in (built_in_file(), path)]
        assert llama_cpp.llama_model_quantize(*names, options) == 0
    return path


def compare_answers(edited: EditedModel, adapter: Path, base: Path, is_float32: bool) -> None:
    """Prints the change of log P(target) and the continuation of each edited prompt, both ways."""
    tokenizer = edited.model.tokenizer
    requests = edited.requests[:N_FACTS]
    prompts = [tokenizer.encode(request.prompt_text) for request in requests]
    rows = [tokenizer.encode(f"{r.prompt_text} {r.target_new}") for r in requests]
    assert all(row[: len(p)] == p for row, p in zip(rows, prompts, strict=True))

    # Of the unedited and of the edited model, here and there.
    found = {}
    for name, model, lora in (
        ("unedited", without_edits(edited.model), None),
        ("edited", edited.model, adapter),
    ):
        width = max(map(len, rows))
        padded = np.array([row + [0] * (width - len(row)) for row in rows])
        logits_BTV = np.asarray(jaxedit.logits(model, padded))
        new = continue_tokens(model, prompts, max_new_tokens=N_NEW)
        loaded = load_there(base, lora, is_float32)
        for i, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
            here = log_probability(logits_BTV[i], row, len(prompt))
            there = log_probability(logits_there(loaded, row), row, len(prompt))
            is_same = continued_there(loaded, prompt, len(new[i])) == new[i]
            found[name, i] = here, there, is_same

    print(f"\n{base.name}: log P(target) here and there, its change, how far that is off")
    off = []
    for i, request in enumerate(requests):
        (before, before_there, same), (after, after_there, same_after) = (
            found[name, i] for name in ("unedited", "edited")
        )
        change, change_there = after - before, after_there - before_there
        off.append(abs(change_there - change) / abs(change))
        print(
            f"{request.subject[:24]:24s} {before:8.3f} {before_there:8.3f} {after:8.3f} "
            f"{after_there:8.3f} {change:8.3f} {change_there:8.3f} {off[-1]:7.2%}  continuation: "
            f"{'same' if same else 'other'} unedited, {'same' if same_after else 'other'} edited"
        )
    same = {name: sum(found[name, i][2] for i in range(len(requests))) for name, _ in found}
    print(
        f"{base.name}: the change is off by {np.mean(off):.2%} on average, {max(off):.2%} at most; "
        f"of {len(requests)} continuations {same['edited']} are the same edited, "
        f"{same['unedited']} unedited"
    )


def log_probability(logits_TV: np.ndarray, row: list[int], n_prompt: int) -> float:
    """Returns log P of a row's tokens behind its prompt."""
    log_p_TV = np.asarray(jax.nn.log_softmax(logits_TV.astype(np.float32)))
    return float(sum(log_p_TV[t - 1, row[t]] for t in range(n_prompt, len(row))))


# The files, beside those that llama.cpp's converter makes of the peft folder.


def compare_files(folder: Path, family: str) -> None:
    """Prints whether the converter's file has the same tensors, bit for bit."""
    base = SHARED / "golden" / family
    edited = random_edits(jaxedit.load(str(base)), str(base))
    ours = exported(edited, folder / "gguf-lora", "gguf-lora") / "adapter.gguf"
    peft = exported(edited, folder / "peft", "peft")
    converter = Path(SOURCE.value) / "vendor" / "llama.cpp" / "convert_lora_to_gguf.py"
    theirs = folder / "converted.gguf"
    command = [sys.executable, converter, peft, "--base", base, "--outfile", theirs]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    here, there = (
        {t.name: (t.shape.tolist(), t.tensor_type, t.data.tobytes()) for t in reader.tensors}
        for reader in map(gguf.GGUFReader, (ours, theirs))
    )
    answer = "the same bits" if here == there else "other tensors"
    print(f"{family}: {len(here)} tensors, {answer} as the converter's")
    if here != there:
        shapes = {name: (here[name][0], there.get(name, [None])[0]) for name in here}
        print(json.dumps(shapes))


if __name__ == "__main__":
    app.run(main)
