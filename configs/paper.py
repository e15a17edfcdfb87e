"""ROME as arXiv 2402.09656 ran it, on its models. The argument names the model and with it the released values.

Single edits, each on the untouched model (the pilot, figure 2):

    jaxedit study --config=configs/paper.py:gpt-j-6b --config.facts=counterfact.json --config.texts=ME-PPL_50.json

Sequential edits, the 107 hard cases and then as many normal ones (section 5):

    jaxedit study --config=configs/paper.py:gpt-j-6b --config.mode=sequential --config.facts=hard.json \
        --config.texts=ME-PPL_1k.json --workdir=runs/gpt-j-6b-hard

The guard only records, as in the paper; --config.guard.action=rollback shows what a guard saves. Files: CounterFact in its
original or flat form, ME-PPL from the authors' repository. Hardware: gpt2-xl fits one 16 GB accelerator in float32,
gpt-j-6b and llama-2-7b one 24 GB accelerator in bfloat16. Time: not measured here; the journal's `time_s` says it for each
edit, and a study of 21,919 single edits can be run in stages by raising --config.n_facts.

Expected. Unedited perplexity on ME-PPL_50: 68.77, 49.04, 33.18 (gpt2-xl, gpt-j-6b, llama-2-7b). Of 21,919 single edits 77,
85 and 21 take it over 1000. In sequence on hard cases it passes 1000 after 6, 2 and 2 edits; on normal ones it ends at 74.5,
53.0 and 37.5.
"""

from jaxedit.study.config import default_config

# Where each model lies, and what differs from the defaults. C = I: `mom2_adjustment: false` in the released settings.
RELEASED = {
    "gpt2-xl": ("openai-community/gpt2-xl", dict(layer=17)),
    "gpt-j-6b": ("EleutherAI/gpt-j-6b", dict(layer=5)),
    "llama-2-7b": ("meta-llama/Llama-2-7b-hf", dict(layer=5, v_num_grad_steps=25, v_weight_decay=1e-3)),
    "smollm2-135m": ("smollm2-135m", dict(layer=5)),
}


def get_config(name="gpt2-xl"):
    if name not in RELEASED:
        raise ValueError(f"unknown model {name!r}; this configuration knows {', '.join(RELEASED)}")
    model, hyper = RELEASED[name]
    config = default_config("rome", mom2_adjustment=False, **hyper)
    config.update(model=model, mode="single", guard=dict(max_ppl_ratio=2.0, action="record"))
    return config
