"""Single ROME edits of SmolLM2-135M, each on the untouched model: which of them make it collapse,
and who saw it coming.

    jaxedit study --config=configs/single_edits.py --config.facts=counterfact.json
    --config.texts=ME-PPL_50.json

Hardware: two CPU cores, 4 GB. Time: about 6 seconds an edit with its perplexity, made 16 at a time.
Expected: the 26 of CounterFact's 10,000 flat cases that have a one-token subject first do damage,
and so do others that the screening ranks as high; normal ones do not. The report's figure has the
loss against what was predicted from forward passes (`screen="record"`), and against the relative
perturbation."""

from jaxedit.study.config import default_config


def get_config():
    config = default_config("rome", layer=5)
    config.update(mode="single", screen="record", guard=dict(max_ppl_ratio=1.1, action="record"))
    return config
