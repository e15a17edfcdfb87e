"""The experiments of arXiv 2402.09656 on its models, with the values that were released.

Single edits, each on the untouched model (the pilot, figure 2). The argument is MODEL, or
METHOD/MODEL (rome, memit, ft, mend):

    jaxedit study --config=paper:gpt-j-6b --config.facts=counterfact.json \\
        --config.texts=ME-PPL_50.json

Which of them collapse, and what the models that do can still do (sections 3 and 4; perplexity
levels fixed beforehand):

    jaxedit report --workdir=runs/paper
    jaxedit surrogate --run=runs/paper --tasks=piqa,hellaswag,lambada_standard

In sequence, the 107 hard cases (HardCF) against as many normal ones, and HardEdit (section 5).
METHOD/MODEL@FACTS edits runs/FACTS.json (hard, normal, hard_edit), and `compare` puts several
beside each other and beside the paper's curves:

    jaxedit compare --config=paper \\
        --variants=rome/gpt-j-6b@hard,memit/gpt-j-6b@hard,ft/gpt-j-6b@hard \\
        --set=stats=stats.safetensors --set=texts=ME-PPL_1k.json --set=eval.perplexity_every=2 \\
        --reference=curves.json:NAME

The guard keeps every edit, as in the paper; --config.guard.action=rollback shows what a guard
saves. MEND's network comes first: `jaxedit train-mend --config=mend:MODEL`. The built-in model,
smollm2-135m, has the values chosen on it, and facts by `jaxedit screen` (hard.py says how):

    jaxedit compare --config=paper --variants=rome/smollm2-135m@hard,rome/smollm2-135m@normal,... \\
        --set=stats=stats.safetensors --set=texts=ME-PPL_1k.json --set=eval.perplexity_every=10

Files: CounterFact in its original or flat form, HardCF, HardEdit and ME-PPL from the
authors' repository. Hardware, estimated: gpt2-xl fits one 16 GB accelerator in float32, gpt-j-6b
and llama-2-7b one of 24 GB in bfloat16 (MEMIT, with second moments: 40 GB). Time: not measured; the
journal's `time_s` says it for each edit, and a study of 21,919 single edits can be run in stages by
raising --config.n_facts.

Expected. Unedited perplexity on ME-PPL_50: 68.77, 49.04, 33.18 (gpt2-xl, gpt-j-6b, llama-2-7b). Of
21,919 single ROME edits 77, 85 and 21 take it over 1000. In sequence on hard cases it passes 1000
after 6, 2 and 2 edits; on normal ones it ends at 74.5, 53.0 and 37.5. The report puts these beside
what is measured.
"""

from pathlib import Path

from jaxedit.study.config import read_config

SOURCES = {  # model -> where its values are from
    "gpt2-xl": "paper",
    "gpt-j-6b": "paper",
    "llama-2-7b": "paper",
    "smollm2-135m": "measured",
}
METHODS = ("rome", "memit", "ft", "mend")
FACTS = ("normal", "hard", "hard_edit")
VARIANTS = tuple(
    f"{method}/{model}@{facts}" for facts in FACTS for model in SOURCES for method in METHODS
)
KNOWN = (*SOURCES, *(f"{method}/{model}" for model in SOURCES for method in METHODS), *VARIANTS)


def get_config(entry="gpt2-xl"):
    if entry not in KNOWN:
        raise ValueError(
            f"unknown experiment {entry!r}; this configuration knows {', '.join(KNOWN)}"
        )
    name, _, facts = entry.partition("@")
    method, _, model = name.rpartition("/")
    method = method or "rome"
    published = Path(__file__).with_name("published.py")
    config = read_config(published, f"{method}/{model}/{SOURCES[model]}")
    if method == "mend":
        config.update(editor=dict(network=f"runs/mend-{model}/network.safetensors"))
    # as in the paper, also where the tokenizer adds a token
    config.update(eval=dict(bos=False))
    config.mode = "sequential" if facts else "single"
    if facts:
        config.facts = f"runs/{facts}.json"
    return config
