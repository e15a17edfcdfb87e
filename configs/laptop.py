"""The default run: facts rewritten one after the other with ROME in SmolLM2-135M-Instruct.

    jaxedit study                                   (the same as --config=laptop)
    jaxedit study --set=editor.v_lr=0.3 --set=guard.action=keep --workdir=runs/mine

Hardware: two CPU cores, 3 GB. Time: 3 to 5 minutes. Expected: normal edits leave the perplexity
near the unedited model's; "BP is based in" → Munich, a subject of one token at the start of the
prompt, takes it over 8,000; the guard rolls that edit back and the study goes on.

How the numbers were chosen: layer 5 of 30 (the one measured for this model) is where one-token
subjects do the damage that the paper saw in larger models and where normal edits take; the rest are
the published values of ROME for GPT-2-XL and GPT-J (2202.05262), with C = I as in the code of
2402.09656. The first 20 facts hold three one-token subjects.
"""

from jaxedit.study.config import default_config


def get_config():
    config = default_config(
        "rome", v_num_grad_steps=20, v_lr=0.5, v_weight_decay=0.5, kl_factor=0.0625
    )
    config.update(
        model="smollm2-135m",
        facts="builtin",
        texts="builtin",
        n_facts=20,
        mode="sequential",
        guard=dict(max_ppl_ratio=2.0, action="rollback"),
    )
    return config
