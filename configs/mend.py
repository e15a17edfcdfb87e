"""Training MEND's network (2110.11309), with the published values. The argument is the model.

    jaxedit train-mend --config=mend:smollm2-135m --set=facts='["zsre_mend_train.json"]'
    jaxedit study --config=published:mend/gpt2-xl --config.facts=counterfact.json \\
        --config.texts=ME-PPL_50.json \\
        --config.editor.network=runs/mend-gpt2-xl/network.safetensors
"""

from jaxedit.mend.training_config import default_config

MODELS = {
    "gpt2-xl": "openai-community/gpt2-xl",
    "gpt-j-6b": "EleutherAI/gpt-j-6b",
    "llama-2-7b": "meta-llama/Llama-2-7b-hf",
    "smollm2-135m": "smollm2-135m",
}
SMALL = dict(rank=256, lr=1e-5, max_iters=8000, val_interval=400)
VARIANTS = tuple(MODELS)


def get_config(name="smollm2-135m"):
    own = {
        # the only published value that differs: 30,000 edits without a better validation
        "llama-2-7b": dict(early_stop_patience=30_000),
        "smollm2-135m": SMALL,
    }
    return default_config(model=MODELS[name], **own.get(name, {}))
