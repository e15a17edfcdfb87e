"""Single ROME edits, each on the untouched model: which make it collapse, and was it predicted.

    jaxedit study --config=single_edits --config.facts=counterfact.json \\
        --config.texts=ME-PPL_50.json
    jaxedit study --config=single_edits --config.model=MODEL --config.editor.layer=8

All facts of the file are edited; --config.n_facts=200 takes the first 200. Hardware: two CPU cores,
4 GB. Time: about 6 seconds an edit with its perplexity, made 16 at a time. Expected, on
SmolLM2-135M-Instruct: the 26 of CounterFact's 10,000 flat cases that have a one-token subject first
do damage, and so do others that the screening ranks as high; normal ones do not. The report's
figure has the change of the loss against what was predicted from forward passes
(`screening="log"`), and against the relative perturbation of the edit.

For a model without published layers run it at a few layers: the one to edit is where facts are said
afterwards and normal ones leave the perplexity as it is.
"""

from jaxedit.study.config import default_config


def get_config():
    config = default_config("rome")
    config.update(mode="single", screening="log", guard=dict(max_ppl_ratio=1.1, action="keep"))
    return config
