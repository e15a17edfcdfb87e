"""The findings again on a second model, Gemma 3 270M: which facts harm it, and was it predicted.

    jaxedit stats --model=gemma3-270m --layers=1 --corpus=CORPUS --max_tokens=40960 \\
        --out=gemma-stats.safetensors
    jaxedit screen --config=second_model:rome@single --set=stats=gemma-stats.safetensors \\
        --facts=counterfact.json --hard_out=runs/gemma_hard.json --normal_out=runs/gemma_normal.json
    jaxedit compare --config=second_model --set=stats=gemma-stats.safetensors \\
        --set=texts=ME-PPL_50.json

A variant is METHOD@FACTS: `single` edits each fact of runs/gemma_single.json into the unedited
model and predicts its change of the loss, `hard` and `normal` edit runs/gemma_hard.json and
runs/gemma_normal.json one after the other. rome-identity is ROME with C = I, as it was released
with the paper. Layer 1 does the least harm of those that `jaxedit layers` tried, though none is
safe by its criterion. Texts are scored behind the model's begin-of-text token. The guard keeps
every edit and only reports.

Hardware: two CPU cores, 8 GB. Time: about ten seconds an edit with its perplexity. Expected: the
table in configs/README.md.
"""

from jaxedit.study.config import check_variant, default_config

METHODS = {
    "rome": ("rome", dict(mom2_adjustment=True)),
    "c-rome": ("c-rome", dict(mom2_adjustment=True)),
    "rome-identity": ("rome", dict(mom2_adjustment=False)),
}
FACTS = ("single", "hard", "normal")
VARIANTS = tuple(f"{method}@{facts}" for facts in FACTS for method in METHODS)


def get_config(variant="rome@single"):
    check_variant(variant, VARIANTS)
    name, facts = variant.split("@")
    method, hyper = METHODS[name]
    config = default_config(method, layer=1, **hyper)
    config.update(model="gemma3-270m", facts=f"runs/gemma_{facts}.json", guard=dict(action="keep"))
    if facts == "single":
        config.update(
            mode="single", screening="log", single_batch_size=8, eval=dict(prediction_draws=12)
        )
    return config
