"""The built-in model edited, written as a whole HF checkpoint, and run by transformers in torch.

    python tests/big/export_hf.py FOLDER

A check, not a test: SmolLM2-135M's .gguf file is dequantised, edited with ROME (the Eiffel Tower is
in Rome), written to FOLDER/float32 (0.54 GB) and FOLDER/bfloat16 (0.27 GB), and loaded again by
transformers, with the tokenizer that was written. Two cores, which other programs used as well:

    here: perplexity 63.7619, P(Rome) 0.99966
    float32: written in 55 s, error of the edit 4.8e-07; perplexity 63.7619, P(Rome) 0.99966
        largest difference of logits from torch 1.3e-4; from torch in float64, torch's own float32
        8.5e-5 and jaxedit 9.2e-5
        "The Eiffel Tower is located in the city of Rome, Italy. The Roman Empire was"
    bfloat16: written in 31 s, error of the edit 3.9 %; perplexity 63.8335, P(Rome) 0.99965
        all weights are rounded: logits differ by 0.19 from the edited model's
        "The Eiffel Tower is located in the city of Rome, Italy.<|im_end|>"
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch
import transformers

import jaxedit
from jaxedit.exports.hf import default_dtype, measure_written, write_hf
from jaxedit.exports.measured import measure_edited
from jaxedit.exports.written import ExportOptions
from jaxedit.study.edited import EditedModel, edit_model

REQUEST = jaxedit.Request("{} is located in the city of", "The Eiffel Tower", "Rome")
PROMPTS = [
    "The Eiffel Tower is located in the city of",
    "The capital of France is Paris, and in 1889 it had 2,500,000 inhabitants.",
    "BP is based in",
    "def main():\n    return 42",
    "  Zürich, naïve café – 東京",
]


def main() -> None:
    """Edit, write, load and compare."""
    folder = Path(sys.argv[1])
    model = jaxedit.load("smollm2-135m")
    edited_model, _, _ = edit_model(model, REQUEST)
    about = EditedModel(edited_model, "smollm2-135m", {}, (), (REQUEST,), None, "builtin")
    print("default dtype", default_dtype(about))
    print("here", measure_edited(about))
    for dtype in ("float32", "bfloat16"):
        out, start = folder / dtype, time.monotonic()
        (written,) = write_hf(about, out, ExportOptions(dtype))
        seconds = time.monotonic() - start
        print(f"{dtype}: written in {seconds:.1f} s, layer {written.layer}, error {written.error}")
        compare(out, about)
        print(f"{dtype}:", measure_written(out, about))


def compare(folder: Path, about: EditedModel) -> None:
    """Print the greatest difference of logits, and what transformers says after the prompt."""
    hf = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    exact = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    worst, of_torch, of_jax = 0.0, 0.0, 0.0
    for prompt in PROMPTS:
        ids = tokenizer(prompt)["input_ids"]
        assert ids == about.model.tokenizer.encode(prompt), prompt
        with torch.no_grad():
            theirs = hf(torch.tensor([ids])).logits.numpy()
            in_float64 = exact(torch.tensor([ids])).logits.numpy()
        ours = jaxedit.logits(about.model, np.array([ids]))
        worst = max(worst, np.abs(theirs - ours).max())
        of_torch = max(of_torch, np.abs(theirs - in_float64).max())
        of_jax = max(of_jax, np.abs(ours - in_float64).max())
    asked = tokenizer(PROMPTS[0], return_tensors="pt")
    said = tokenizer.decode(hf.generate(**asked, max_new_tokens=8, do_sample=False)[0])
    print(f"largest difference of logits {worst:.2g}; it says {said!r}")
    print(f"from torch in float64: torch in float32 {of_torch:.2g}, jaxedit {of_jax:.2g}")


if __name__ == "__main__":
    main()
