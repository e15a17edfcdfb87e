"""The published hyper-parameters of every method. The argument is METHOD/MODEL or
METHOD/MODEL/SOURCE.

    jaxedit stats --model=EleutherAI/gpt-j-6b --layers=3,4,5,6,7,8 --corpus=CORPUS
    --out=stats.safetensors jaxedit study --config=configs/published.py:memit/gpt-j-6b
    --config.stats=stats.safetensors \
        --config.facts=counterfact.json --config.texts=ME-PPL_50.json

Sources. Without one the first row counts; a row that names several is the same in all of them.

    paper      2402.09656 and its sequel 2406.11263: WanliYoung/Collapse-in-Model-Editing
    authors    the method's own repository: kmeng01/rome, kmeng01/memit, scalable-model-editing/unified-model-editing (EMMET)
               and /encore, jianghoucheng/AlphaEdit and /nse, xpq-tech/PMET, lbq8942/BetaEdit
    easyedit   zjunlp/EasyEdit; what it calls R-ROME is C-ROME here
    others     the method as a baseline elsewhere: alphaedit, encore (as above), blue (xpq-tech/BLUE), nas (SasyaTitech/NAS)

A combination that is missing was not found published. Left out are keys that are the same
everywhere (fact_token subject_last; v_loss_layer, the last one; mom2_adjustment true but for ROME),
that name modules, that the method does not read (mom2_update_weight of AlphaEdit and BetaEdit), and
those of `jaxedit stats`: wikipedia, float32, mom2_n_samples 100000 (10000 for Llama-3 in ENCORE's
repository). FT ran one fact a step; the file for GPT-2 XL says batch_size 3.

Where released files changed, these are the later values, as far as that can be told: before,
EasyEdit had mom2_adjustment true for ROME on GPT-2 XL, weight 1 on layers 3-8 and 4-8 for EMMET on
GPT-J and Llama-2, and (before or since) norm_constraint 5e-5 for FT on GPT-J; EMMET's authors had
weight 1, decay 1e-3 and clamp 4 on Llama-2.

The guard only records. batch_size is 1; AlphaEdit and NSE were run with --config.batch_size=100.
Hardware, estimated: gpt2-xl fits one 16 GB accelerator in float32; the others in bfloat16 one of 24
GB for ROME and FT, and one of 40 GB for the methods that hold second moments, 2 to 7 GB. Time: not
measured here; the journal's `time_s` says it for each edit. Expected: for ROME see `paper.py`; the
others have not been run here on these models. """

from jaxedit.study.config import default_config

# name: the base model, and the instruction-tuned one where a row's repository says that it was
# edited.
MODELS = {
    "gpt2-xl": ("openai-community/gpt2-xl", None),
    "gpt-j-6b": ("EleutherAI/gpt-j-6b", None),
    "llama-2-7b": ("meta-llama/Llama-2-7b-hf", None),
    "llama-3-8b": ("meta-llama/Meta-Llama-3-8B", "meta-llama/Meta-Llama-3-8B-Instruct"),
    "qwen2.5-7b": ("Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-7B-Instruct"),
}
TUNED = dict(tuned=True)

# How a target is found. FT's columns are its own.
TARGET = ("v_num_grad_steps", "v_lr", "v_weight_decay", "clamp_norm_factor", "kl_factor")
FAR_20 = (20, 0.5, 0.5, 4.0, 0.0625)
FREE_25 = (25, 0.5, 1e-3, 4.0, 0.0625)
NEAR_20 = (20, 0.5, 0.5, 0.75, 0.0625)
NEAR_25 = (25, 0.5, 0.5, 0.75, 0.0625)
SLOW_25 = (25, 0.1, 0.5, 0.75, 0.0625)
FT = ("num_steps", "lr", "weight_decay", "norm_constraint", "kl_factor")

EMMET = dict(emmet_lambda=0.1, update_norm_lambda=0.0)
ALPHA = dict(L2=10.0, nullspace_threshold=0.02)
NSE_GPT2 = dict(mom2_update_weight=1e4, alpha=35.0, upper_bound=150.0)
NSE_GPTJ = dict(mom2_update_weight=1.5e4, alpha=15.0, upper_bound=100.0)
NSE_LLAMA = dict(mom2_update_weight=1.5e4, alpha=2.5, upper_bound=50.0)
BETA = dict(lambda1=3000.0, lambda2=10.0, tau=1000, nullspace_threshold=0.02)

ROWS = [
    # method, model, sources, first and last layer, TARGET or FT, the method's own
    ("rome", "gpt2-xl", "paper easyedit", 17, 17, FAR_20, dict(mom2_adjustment=False)),
    ("rome", "gpt2-xl", "authors", 17, 17, FAR_20, dict(mom2_adjustment=True)),
    ("rome", "gpt-j-6b", "paper easyedit", 5, 5, FAR_20, dict(mom2_adjustment=False)),
    ("rome", "gpt-j-6b", "authors", 5, 5, FAR_20, dict(mom2_adjustment=True)),
    ("rome", "llama-2-7b", "paper easyedit", 5, 5, FREE_25, dict(mom2_adjustment=False)),
    ("rome", "llama-3-8b", "easyedit", 5, 5, FREE_25, dict(mom2_adjustment=False)),
    ("rome", "qwen2.5-7b", "easyedit", 5, 5, FREE_25, dict(mom2_adjustment=False)),
    ("rome", "qwen2.5-7b", "nas", 11, 11, FREE_25, dict(mom2_adjustment=False) | TUNED),
    ("c-rome", "gpt2-xl", "paper easyedit", 17, 17, FAR_20, dict(mom2_adjustment=False)),
    ("c-rome", "gpt-j-6b", "paper easyedit", 5, 5, FAR_20, dict(mom2_adjustment=False)),
    ("c-rome", "llama-2-7b", "paper easyedit", 5, 5, FREE_25, dict(mom2_adjustment=False)),
    ("c-rome", "qwen2.5-7b", "easyedit", 5, 5, FREE_25, dict(mom2_adjustment=False)),
    ("memit", "gpt2-xl", "paper easyedit", 13, 17, NEAR_20, dict(mom2_update_weight=2e4)),
    ("memit", "gpt-j-6b", "paper authors easyedit", 3, 8, NEAR_25, dict(mom2_update_weight=1.5e4)),
    ("memit", "llama-2-7b", "paper easyedit", 4, 8, FREE_25, dict(mom2_update_weight=1.5e4)),
    ("memit", "llama-3-8b", "alphaedit", 4, 8, SLOW_25, dict(mom2_update_weight=1.5e4) | TUNED),
    ("memit", "qwen2.5-7b", "easyedit", 4, 8, FREE_25, dict(mom2_update_weight=1.5e4)),
    ("memit", "qwen2.5-7b", "nas", 7, 11, SLOW_25, dict(mom2_update_weight=1.5e4) | TUNED),
    (
        "memit-sequential",
        "gpt2-xl",
        "encore",
        13,
        17,
        NEAR_20,
        dict(mom2_update_weight=2e4, update_norm_lambda=0.0),
    ),
    (
        "memit-sequential",
        "gpt-j-6b",
        "encore",
        3,
        8,
        NEAR_25,
        dict(mom2_update_weight=1.5e4, update_norm_lambda=0.0),
    ),
    (
        "memit-sequential",
        "llama-2-7b",
        "encore",
        4,
        8,
        NEAR_25,
        dict(mom2_update_weight=1.5e4, update_norm_lambda=0.0),
    ),
    (
        "memit-sequential",
        "llama-3-8b",
        "encore",
        4,
        8,
        NEAR_25,
        dict(mom2_update_weight=1.5e4, update_norm_lambda=0.0),
    ),
    (
        "encore",
        "gpt2-xl",
        "authors",
        13,
        17,
        NEAR_20,
        dict(mom2_update_weight=2e4, update_norm_lambda=10.0, prob_cutoff=-4),
    ),
    (
        "encore",
        "llama-2-7b",
        "authors",
        4,
        8,
        NEAR_25,
        dict(mom2_update_weight=1.5e4, update_norm_lambda=10.0, prob_cutoff=-3),
    ),
    (
        "encore",
        "llama-3-8b",
        "authors",
        4,
        8,
        NEAR_25,
        dict(mom2_update_weight=1.5e4, update_norm_lambda=20.0, prob_cutoff=-2),
    ),
    ("emmet", "gpt2-xl", "authors", 17, 17, NEAR_20, EMMET | dict(mom2_update_weight=1e3)),
    ("emmet", "gpt2-xl", "easyedit", 13, 17, NEAR_20, EMMET | dict(mom2_update_weight=1.0)),
    ("emmet", "gpt-j-6b", "authors", 5, 5, NEAR_25, EMMET | dict(mom2_update_weight=1e4)),
    ("emmet", "gpt-j-6b", "easyedit", 5, 5, NEAR_25, EMMET | dict(mom2_update_weight=1e5)),
    ("emmet", "llama-2-7b", "authors", 5, 5, NEAR_25, EMMET | dict(mom2_update_weight=1e4)),
    ("emmet", "llama-2-7b", "easyedit", 5, 5, FREE_25, EMMET | dict(mom2_update_weight=1e5)),
    ("emmet", "llama-3-8b", "encore", 5, 5, NEAR_25, EMMET | dict(mom2_update_weight=1e5)),
    ("alphaedit", "gpt2-xl", "authors easyedit", 13, 17, NEAR_20, ALPHA),
    ("alphaedit", "gpt-j-6b", "authors easyedit", 3, 8, NEAR_25, ALPHA),
    ("alphaedit", "llama-2-7b", "encore", 4, 8, SLOW_25, ALPHA),
    ("alphaedit", "llama-3-8b", "authors", 4, 8, SLOW_25, ALPHA | TUNED),
    ("alphaedit", "llama-3-8b", "easyedit", 4, 8, SLOW_25, ALPHA),
    ("alphaedit", "qwen2.5-7b", "authors", 4, 8, SLOW_25, ALPHA),
    (
        "alphaedit",
        "qwen2.5-7b",
        "easyedit",
        4,
        8,
        FREE_25,
        dict(L2=1.0, nullspace_threshold=0.02) | TUNED,
    ),
    ("alphaedit", "qwen2.5-7b", "nas", 7, 11, SLOW_25, ALPHA | TUNED),
    ("betaedit", "gpt2-xl", "authors", 13, 17, NEAR_20, BETA),
    ("betaedit", "gpt-j-6b", "authors", 3, 8, NEAR_25, BETA),
    ("betaedit", "llama-3-8b", "authors", 4, 8, SLOW_25, BETA | TUNED),
    ("betaedit", "qwen2.5-7b", "authors", 4, 8, SLOW_25, BETA | TUNED),
    (
        "nse",
        "gpt2-xl",
        "authors",
        13,
        17,
        NEAR_20,
        NSE_GPT2 | dict(neuron_threshold=0.8, max_iterations=8),
    ),
    (
        "nse",
        "gpt2-xl",
        "alphaedit",
        13,
        17,
        NEAR_20,
        NSE_GPT2 | dict(neuron_threshold=1.0, max_iterations=3),
    ),
    (
        "nse",
        "gpt-j-6b",
        "authors",
        3,
        8,
        NEAR_25,
        NSE_GPTJ | dict(neuron_threshold=0.8, max_iterations=8),
    ),
    (
        "nse",
        "gpt-j-6b",
        "alphaedit",
        3,
        8,
        NEAR_25,
        NSE_GPTJ | dict(neuron_threshold=0.8, max_iterations=3),
    ),
    (
        "nse",
        "llama-3-8b",
        "alphaedit",
        4,
        8,
        SLOW_25,
        NSE_LLAMA | dict(neuron_threshold=1.0, max_iterations=3) | TUNED,
    ),
    (
        "pmet",
        "gpt2-xl",
        "blue",
        13,
        17,
        (20, 0.5, 0.5, 2.0, 0.0625),
        dict(mom2_update_weight=1e4, nll_loss_factor=1.0),
    ),
    (
        "pmet",
        "gpt-j-6b",
        "authors",
        3,
        8,
        (30, 0.2, 0.5, 0.75, 1.0),
        dict(mom2_update_weight=6e3, nll_loss_factor=1.0),
    ),
    (
        "pmet",
        "gpt-j-6b",
        "easyedit",
        3,
        8,
        (30, 0.2, 0.5, 0.75, 1.0),
        dict(mom2_update_weight=1.5e4, nll_loss_factor=1.0),
    ),
    (
        "pmet",
        "gpt-j-6b",
        "blue",
        3,
        8,
        NEAR_25,
        dict(mom2_update_weight=1.5e4, nll_loss_factor=1.0),
    ),
    (
        "pmet",
        "llama-2-7b",
        "easyedit",
        4,
        8,
        (20, 0.5, 0.5, 1.0, 0.0625),
        dict(mom2_update_weight=1.5e4, nll_loss_factor=1.0),
    ),
    (
        "pmet",
        "llama-3-8b",
        "blue",
        4,
        8,
        SLOW_25,
        dict(mom2_update_weight=1.5e4, nll_loss_factor=1.0) | TUNED,
    ),
    ("ft", "gpt2-xl", "paper easyedit", 0, 0, (25, 5e-4, 0.0, 5e-4, 0.0), {}),
    ("ft", "gpt-j-6b", "paper easyedit", 21, 21, (25, 5e-4, 0.0, False, 0.0), {}),
    ("ft", "llama-2-7b", "paper easyedit", 21, 21, (25, 5e-4, 0.0, False, 0.0), {}),
    ("ft", "llama-3-8b", "easyedit", 21, 21, (25, 5e-4, 0.0, False, 0.0), {}),
    ("ft", "qwen2.5-7b", "easyedit", 27, 27, (25, 5e-4, 0.0, False, 0.0), {}),
]

ENTRIES = tuple(
    f"{method}/{model}/{source}"
    for method, model, sources, *_ in ROWS
    for source in sources.split()
)


def get_config(entry="rome/gpt2-xl"):
    asked = entry.split("/")
    found = [row for row in ROWS if 2 <= len(asked) <= 3 and [row[0], row[1]] == asked[:2]]
    found = [row for row in found if not asked[2:] or asked[2] in row[2].split()]
    if not found:
        near = [known for known in ENTRIES if known.split("/")[0] == asked[0]] or ENTRIES
        raise ValueError(
            f"no values published as {entry!r}; expected METHOD/MODEL or METHOD/MODEL/SOURCE of {', '.join(near)}"
        )
    method, model, _, first, last, values, own = found[0]
    hyper = dict(zip(FT if method == "ft" else TARGET, values, strict=True)) | own
    base, tuned = MODELS[model]
    model = tuned if hyper.pop("tuned", False) else base
    layers = tuple(range(first, last + 1))
    hyper |= dict(layer=first) if method in ("rome", "c-rome") else dict(layers=layers)
    config = default_config(method, **hyper)
    config.update(model=model, mode="sequential", guard=dict(max_ppl_ratio=2.0, action="record"))
    return config
