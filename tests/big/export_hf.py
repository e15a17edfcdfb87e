"""The built-in model edited, written as a whole HF checkpoint, and run by transformers in torch.

    python tests/big/export_hf.py FOLDER

A check, not a test: SmolLM2-135M's .gguf file is dequantised, edited (the Eiffel Tower is in Rome),
written to FOLDER (0.54 GB in float32) and loaded again by transformers, with the tokenizer that was
written. The last columns are of the logits of twenty prompts of twelve tokens, the
largest of which is 36.8. Two cores:

    float32    error of the edit   perplexity here, there   P(Rome)   off torch   off its float64
    ROME       4.8e-7              63.7619, 63.7619         0.9997    2.0e-4      1.4e-4
    MEMIT      2.1e-6              63.7555, 63.7555         0.9116    1.5e-4      1.4e-4
    AlphaEdit  2.3e-6              63.7470, 63.7470         0.8966    1.2e-4      1.2e-4
    FT         9.9e-6              63.7218, 63.7218         0.0244    1.6e-4      1.2e-4

    Torch's own float32 is 6.4e-5 to 1.2e-4 from its float64. Each is written in 6 to 7 s.
    ROME in bfloat16: error of the edit 3.9 %, perplexity 63.8335, P(Rome) 0.9996; all weights are
    rounded, so that logits differ by 0.4.
"""

import shutil
import sys
import time
from pathlib import Path

import numpy as np
import torch
import transformers

import jaxedit
from jaxedit.datasets import read_texts
from jaxedit.exports.hf import measure_written, write_hf
from jaxedit.exports.measured import measure_edited
from jaxedit.exports.written import ExportOptions
from jaxedit.study.edited import EditedModel, edit_model

REQUEST = jaxedit.Request("{} is located in the city of", "The Eiffel Tower", "Rome")
N_PROMPTS, N_TOKENS = 20, 12
BARE = dict(v_num_grad_steps=5, context_templates=(("{}",),))
EDITS = {
    "rome": {},
    "memit": BARE | dict(layers=(4, 5), mom2_adjustment=False, mom2_update_weight=0.1),
    "alphaedit": BARE | dict(layers=(4, 5), nullspace_threshold=2e-2, L2=10.0),
    "ft": dict(layers=(5,), num_steps=5, lr=5e-4),
}


def main() -> None:
    """Edit by each method, write, load and compare; ROME's in bfloat16 too."""
    folder = Path(sys.argv[1])
    model = jaxedit.load("smollm2-135m")
    stats = jaxedit.collect_stats(model, read_texts("builtin")[:4], (4, 5))
    for method, hyper in EDITS.items():
        needed = stats if method == "alphaedit" else None
        edited_model, _, _ = edit_model(model, REQUEST, method, stats=needed, **hyper)
        about = EditedModel(edited_model, "smollm2-135m", {}, (), (REQUEST,), None, "builtin")
        print(f"{method} here", measure_edited(about))
        for dtype in ("float32", "bfloat16") if method == "rome" else ("float32",):
            out, start = folder / method / dtype, time.monotonic()
            written = write_hf(about, out, ExportOptions(dtype))
            seconds = time.monotonic() - start
            errors = ", ".join(f"layer {each.layer}: {each.error:.2g}" for each in written)
            print(f"{method}, {dtype}: written in {seconds:.1f} s, error of {errors}")
            compare(out, about)
            print(f"{method}, {dtype}:", measure_written(out, about), flush=True)
            shutil.rmtree(out)


def compare(folder: Path, about: EditedModel) -> None:
    """Print the greatest difference of logits, and what transformers says after the prompt."""
    hf = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    exact = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    token_lists = [tokenizer(text)["input_ids"] for text in read_texts("builtin")]
    cut = [tokens[:N_TOKENS] for tokens in token_lists if len(tokens) >= N_TOKENS]
    ids = np.array(cut[:N_PROMPTS])
    with torch.no_grad():
        theirs = hf(torch.tensor(ids)).logits.numpy()
        in_float64 = exact(torch.tensor(ids)).logits.numpy()
    ours = jaxedit.logits(about.model, ids)
    worst, of_torch, of_jax = (
        np.abs(a - b).max() for a, b in ((theirs, ours), (theirs, in_float64), (ours, in_float64))
    )
    asked = tokenizer(REQUEST.prompt_text, return_tensors="pt")
    said = tokenizer.decode(hf.generate(**asked, max_new_tokens=8, do_sample=False)[0])
    print(f"largest logit {np.abs(in_float64).max():.3g}, difference {worst:.2g}; it says {said!r}")
    print(f"from torch in float64: torch in float32 {of_torch:.2g}, jaxedit {of_jax:.2g}")


if __name__ == "__main__":
    main()
