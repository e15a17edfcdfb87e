"""Published hyper-parameters by method and model; for the built-in model, those measured here.

Sources. The first row of a method and model counts unless a source is asked for; a row that names
several is the same in all of them.

    paper      2402.09656 and its sequel 2406.11263: WanliYoung/Collapse-in-Model-Editing
    authors    the method's own repository: kmeng01/rome, kmeng01/memit,
               scalable-model-editing/unified-model-editing (EMMET) and /encore,
               jianghoucheng/AlphaEdit and /nse, xpq-tech/PMET, lbq8942/BetaEdit,
               wpwpwpyo/LyapLock, XiaojieGu/UltraEdit, MINE-USTC/StableEdit (their modules for
               ZsRE); those of LocFT-BF (2509.22072) and CrispEdit (2602.15823)
    easyedit   zjunlp/EasyEdit; what it calls R-ROME is C-ROME here
    others     the method as a baseline elsewhere: alphaedit, encore (as above), blue
               (xpq-tech/BLUE), nas (SasyaTitech/NAS), sphere (PlusLabNLP/SPHERE, with its
               projection)
    measured   chosen on this model, the built-in one: layers 4 to 8 and lambda 1000 by the batch
               study (configs/batch.py). The exceptions: ROME, C-ROME, EMMET and FT edit layer 5;
               EMMET's lambda is 1; AlphaEdit has none, and BetaEdit's is lambda1; NSE's alpha and
               upper_bound are distances in this model's residual stream; FT has no l-infinity
               ball; the places and rates of LocFT-BF, LoRA, UltraEdit and StableEdit are those
               of the sweep (configs/sweep.py), CrispEdit's are MEMIT's and FT's, not searched.
               All other values are the methods' defaults

A combination that is missing was not found published. Left out are keys that are the same
everywhere (fact_token subject_last; v_loss_layer, the last one; mom2_adjustment true but for ROME),
that name modules, that the method does not read (mom2_update_weight of AlphaEdit and BetaEdit), and
those of `jaxedit stats`: wikipedia, float32, mom2_n_samples 100000 (10000 for Llama-3 in ENCORE's
repository). FT ran one fact a step; the file for GPT-2 XL says batch_size 3.

LocFT-BF for Mistral-7B-v0.1 (block 23, lr 5e-5) trains the block's attention and norms as well,
which no edit here changes: it cannot be reproduced and has no row.

Where released files changed, these are the later values, as far as that can be told: before,
EasyEdit had mom2_adjustment true for ROME on GPT-2 XL, weight 1 on layers 3-8 and 4-8 for EMMET on
GPT-J and Llama-2, and (before or since) norm_constraint 5e-5 for FT on GPT-J; EMMET's authors had
weight 1, decay 1e-3 and clamp 4 on Llama-2.
"""

from typing import Any, NamedTuple

from jaxedit.models.config import DecoderConfig
from jaxedit.models.model import Model


class KnownModel(NamedTuple):
    """A model that hyper-parameters are known for: what it is told by, and its hub ids."""

    family: str
    L: int
    D: int
    F: int
    base: str
    tuned: str | None = None  # the instruction-tuned one, where a repository says it edited that


KNOWN_MODELS = {
    "gpt2-xl": KnownModel("gpt2", 48, 1600, 6400, "openai-community/gpt2-xl"),
    "gpt-j-6b": KnownModel("gptj", 28, 4096, 16384, "EleutherAI/gpt-j-6b"),
    "llama-2-7b": KnownModel("llama", 32, 4096, 11008, "meta-llama/Llama-2-7b-hf"),
    "llama-3-8b": KnownModel(
        "llama",
        32,
        4096,
        14336,
        "meta-llama/Meta-Llama-3-8B",
        "meta-llama/Meta-Llama-3-8B-Instruct",
    ),
    "qwen2.5-7b": KnownModel(
        "qwen2", 28, 3584, 18944, "Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-7B-Instruct"
    ),
    "smollm2-135m": KnownModel("llama", 30, 576, 1536, "smollm2-135m"),
}

# How a value is optimised, and the columns of fine-tuning.
VALUE = ("v_num_grad_steps", "v_lr", "v_weight_decay", "clamp_norm_factor", "kl_factor")
FAR_20 = (20, 0.5, 0.5, 4.0, 0.0625)
FREE_25 = (25, 0.5, 1e-3, 4.0, 0.0625)
NEAR_20 = (20, 0.5, 0.5, 0.75, 0.0625)
NEAR_25 = (25, 0.5, 0.5, 0.75, 0.0625)
SLOW_25 = (25, 0.1, 0.5, 0.75, 0.0625)
PMET_20 = (20, 0.5, 0.5, 1.0, 0.0625)
PMET_BLUE = (20, 0.5, 0.5, 2.0, 0.0625)
PMET_30 = (30, 0.2, 0.5, 0.75, 1.0)
FT = ("num_steps", "lr", "weight_decay", "norm_constraint", "kl_factor")
EPOCHS = ("epochs", "lr")
COLUMNS = {"ft": FT} | dict.fromkeys(("locft-bf", "lora", "crispedit"), EPOCHS)  # of others VALUE,
COLUMNS |= dict.fromkeys(("mend", "ultraedit", "stableedit"), ())  # or none
FT_BALL = (25, 5e-4, 0.0, 5e-4, 0.0)
FT_FREE = (25, 5e-4, 0.0, False, 0.0)
EPOCHS_25 = (25, 5e-4)

IDENTITY, WITH_C = dict(mom2_adjustment=False), dict(mom2_adjustment=True)
TUNED = dict(tuned=True)
ALPHA = dict(L2=10.0, nullspace_threshold=0.02)
ALPHA_1 = dict(L2=1.0, nullspace_threshold=0.02)
BETA = dict(lambda1=3000.0, lambda2=10.0, tau=1000, nullspace_threshold=0.02)
LYAPLOCK = dict(mom2_update_weight=1e3, alpha=60.0)
SPHERE_HALF = dict(sphere_share=0.5, sphere_strength=0.5)
SPHERE_MOST = dict(sphere_share=0.5, sphere_strength=0.8)
NSE_GPT2 = dict(mom2_update_weight=1e4, alpha=35.0, upper_bound=150.0)
NSE_GPTJ = dict(mom2_update_weight=1.5e4, alpha=15.0, upper_bound=100.0)
NSE_LLAMA = dict(mom2_update_weight=1.5e4, alpha=2.5, upper_bound=50.0)
NSE_SMOLLM = dict(mom2_update_weight=1e3, alpha=10.0, upper_bound=300.0)
MINIBATCH = dict(minibatch=100)
CRISP = dict(minibatch=32, energy_threshold=0.99)
RANK_8 = dict(r=8, lora_alpha=16.0)
NSE_3 = dict(neuron_threshold=0.8, max_iterations=3)
NSE_ALL = dict(neuron_threshold=1.0, max_iterations=3)
ULTRA_DOWN = dict(lr=1e-6, alpha=1.0, weights=("mlp/w_down",))
ULTRA_GATED = ULTRA_DOWN | dict(weights=("mlp/w_gate", "mlp/w_up"))
ULTRA_LLAMA = ULTRA_GATED | dict(gate_layers=tuple(range(11, 16)), up_layers=tuple(range(18, 25)))
STABLE = dict(alpha=10.0)


def _weight(mom2_update_weight: float, **more: float) -> dict[str, Any]:
    return dict(mom2_update_weight=mom2_update_weight, **more)


def _ridgeless(mom2_update_weight: float) -> dict[str, Any]:
    return _weight(mom2_update_weight, update_norm_lambda=0.0)


def _emmet(mom2_update_weight: float) -> dict[str, Any]:
    return _weight(mom2_update_weight, emmet_lambda=0.1, update_norm_lambda=0.0)


def _encore(mom2_update_weight: float, b: float, prob_cutoff: int) -> dict[str, Any]:
    return _weight(mom2_update_weight, update_norm_lambda=b) | dict(prob_cutoff=prob_cutoff)


def _pmet(mom2_update_weight: float) -> dict[str, Any]:
    return _weight(mom2_update_weight, nll_loss_factor=1.0)


# fmt: off
ROWS = [
    # method, model, sources, first and last layer, VALUE or FT, the method's own
    ("rome", "gpt2-xl", "paper easyedit", 17, 17, FAR_20, IDENTITY),
    ("rome", "gpt2-xl", "authors", 17, 17, FAR_20, WITH_C),
    ("rome", "gpt-j-6b", "paper easyedit", 5, 5, FAR_20, IDENTITY),
    ("rome", "gpt-j-6b", "authors", 5, 5, FAR_20, WITH_C),
    ("rome", "llama-2-7b", "paper easyedit", 5, 5, FREE_25, IDENTITY),
    ("rome", "llama-3-8b", "easyedit", 5, 5, FREE_25, IDENTITY),
    ("rome", "qwen2.5-7b", "easyedit", 5, 5, FREE_25, IDENTITY),
    ("rome", "qwen2.5-7b", "nas", 11, 11, FREE_25, IDENTITY | TUNED),
    ("rome", "smollm2-135m", "measured", 5, 5, FAR_20, {}),
    ("c-rome", "gpt2-xl", "paper easyedit", 17, 17, FAR_20, IDENTITY),
    ("c-rome", "gpt-j-6b", "paper easyedit", 5, 5, FAR_20, IDENTITY),
    ("c-rome", "llama-2-7b", "paper easyedit", 5, 5, FREE_25, IDENTITY),
    ("c-rome", "qwen2.5-7b", "easyedit", 5, 5, FREE_25, IDENTITY),
    ("c-rome", "smollm2-135m", "measured", 5, 5, FAR_20, {}),
    ("memit", "gpt2-xl", "paper easyedit", 13, 17, NEAR_20, _weight(2e4)),
    ("memit", "gpt-j-6b", "paper authors easyedit", 3, 8, NEAR_25, _weight(1.5e4)),
    ("memit", "llama-2-7b", "paper easyedit", 4, 8, FREE_25, _weight(1.5e4)),
    ("memit", "llama-3-8b", "alphaedit", 4, 8, SLOW_25, _weight(1.5e4) | TUNED),
    ("memit", "qwen2.5-7b", "easyedit", 4, 8, FREE_25, _weight(1.5e4)),
    ("memit", "qwen2.5-7b", "sphere", 4, 8, FREE_25, _weight(1.5e4) | SPHERE_MOST | TUNED),
    ("memit", "qwen2.5-7b", "nas", 7, 11, SLOW_25, _weight(1.5e4) | TUNED),
    ("memit", "smollm2-135m", "measured", 4, 8, NEAR_20, _weight(1e3)),
    ("memit-sequential", "gpt2-xl", "encore", 13, 17, NEAR_20, _ridgeless(2e4)),
    ("memit-sequential", "gpt-j-6b", "encore", 3, 8, NEAR_25, _ridgeless(1.5e4)),
    ("memit-sequential", "llama-2-7b", "encore", 4, 8, NEAR_25, _ridgeless(1.5e4)),
    ("memit-sequential", "llama-3-8b", "encore", 4, 8, NEAR_25, _ridgeless(1.5e4)),
    ("memit-sequential", "smollm2-135m", "measured", 4, 8, NEAR_20, _weight(1e3)),
    ("encore", "gpt2-xl", "authors", 13, 17, NEAR_20, _encore(2e4, 10.0, -4)),
    ("encore", "llama-2-7b", "authors", 4, 8, NEAR_25, _encore(1.5e4, 10.0, -3)),
    ("encore", "llama-3-8b", "authors", 4, 8, NEAR_25, _encore(1.5e4, 20.0, -2)),
    ("encore", "smollm2-135m", "measured", 4, 8, NEAR_20, _encore(1e3, 10.0, -1)),
    ("emmet", "gpt2-xl", "authors", 17, 17, NEAR_20, _emmet(1e3)),
    ("emmet", "gpt2-xl", "easyedit", 13, 17, NEAR_20, _emmet(1.0)),
    ("emmet", "gpt-j-6b", "authors", 5, 5, NEAR_25, _emmet(1e4)),
    ("emmet", "gpt-j-6b", "easyedit", 5, 5, NEAR_25, _emmet(1e5)),
    ("emmet", "llama-2-7b", "authors", 5, 5, NEAR_25, _emmet(1e4)),
    ("emmet", "llama-2-7b", "easyedit", 5, 5, FREE_25, _emmet(1e5)),
    ("emmet", "llama-3-8b", "encore", 5, 5, NEAR_25, _emmet(1e5)),
    ("emmet", "smollm2-135m", "measured", 5, 5, NEAR_20, _emmet(1.0)),
    ("alphaedit", "gpt2-xl", "authors easyedit", 13, 17, NEAR_20, ALPHA),
    ("alphaedit", "gpt-j-6b", "authors easyedit", 3, 8, NEAR_25, ALPHA),
    ("alphaedit", "llama-2-7b", "encore", 4, 8, SLOW_25, ALPHA),
    ("alphaedit", "llama-3-8b", "authors", 4, 8, SLOW_25, ALPHA | TUNED),
    ("alphaedit", "llama-3-8b", "easyedit", 4, 8, SLOW_25, ALPHA),
    ("alphaedit", "qwen2.5-7b", "authors", 4, 8, SLOW_25, ALPHA),
    ("alphaedit", "qwen2.5-7b", "easyedit", 4, 8, FREE_25, ALPHA_1 | TUNED),
    ("alphaedit", "qwen2.5-7b", "nas", 7, 11, SLOW_25, ALPHA | TUNED),
    ("alphaedit", "qwen2.5-7b", "sphere", 4, 8, FREE_25, ALPHA | SPHERE_HALF | TUNED),
    ("alphaedit", "smollm2-135m", "measured", 4, 8, NEAR_20, ALPHA),
    ("betaedit", "gpt2-xl", "authors", 13, 17, NEAR_20, BETA),
    ("betaedit", "gpt-j-6b", "authors", 3, 8, NEAR_25, BETA),
    ("betaedit", "llama-3-8b", "authors", 4, 8, SLOW_25, BETA | TUNED),
    ("betaedit", "qwen2.5-7b", "authors", 4, 8, SLOW_25, BETA | TUNED),
    ("betaedit", "smollm2-135m", "measured", 4, 8, NEAR_20, BETA | dict(lambda1=1e3)),
    ("nse", "gpt2-xl", "authors alphaedit", 13, 17, NEAR_20, NSE_GPT2 | NSE_ALL),
    ("nse", "gpt-j-6b", "authors alphaedit", 3, 8, NEAR_25, NSE_GPTJ | NSE_3),
    ("nse", "llama-3-8b", "alphaedit", 4, 8, SLOW_25, NSE_LLAMA | NSE_ALL | TUNED),
    # Distances of this model's residual stream: a value is about 100 away, and counts as written
    # within a tenth of that.
    ("nse", "smollm2-135m", "measured", 4, 8, NEAR_25, NSE_SMOLLM | NSE_3),
    ("lyaplock", "gpt2-xl", "authors nas", 13, 17, NEAR_20, LYAPLOCK),
    ("lyaplock", "gpt-j-6b", "authors", 3, 8, NEAR_25, LYAPLOCK),
    ("lyaplock", "gpt-j-6b", "nas", 3, 7, NEAR_25, LYAPLOCK),
    ("lyaplock", "llama-3-8b", "authors nas", 4, 8, SLOW_25, LYAPLOCK | TUNED),
    ("lyaplock", "smollm2-135m", "measured", 4, 8, NEAR_25, LYAPLOCK),
    ("pmet", "gpt2-xl", "blue", 13, 17, PMET_BLUE, _pmet(1e4)),
    ("pmet", "gpt-j-6b", "authors", 3, 8, PMET_30, _pmet(6e3)),
    ("pmet", "gpt-j-6b", "easyedit", 3, 8, PMET_30, _pmet(1.5e4)),
    ("pmet", "gpt-j-6b", "blue", 3, 8, NEAR_25, _pmet(1.5e4)),
    ("pmet", "llama-2-7b", "easyedit", 4, 8, PMET_20, _pmet(1.5e4)),
    ("pmet", "llama-3-8b", "blue", 4, 8, SLOW_25, _pmet(1.5e4) | TUNED),
    ("pmet", "smollm2-135m", "measured", 4, 8, PMET_30, _pmet(1e3)),
    ("ft", "gpt2-xl", "paper easyedit", 0, 0, FT_BALL, {}),
    ("ft", "gpt-j-6b", "paper easyedit", 21, 21, FT_FREE, {}),
    ("ft", "llama-2-7b", "paper easyedit", 21, 21, FT_FREE, {}),
    ("ft", "llama-3-8b", "easyedit", 21, 21, FT_FREE, {}),
    ("ft", "qwen2.5-7b", "easyedit", 27, 27, FT_FREE, {}),
    ("ft", "smollm2-135m", "measured", 5, 5, FT_FREE, {}),
    ("locft-bf", "llama-3-8b", "authors", 22, 22, EPOCHS_25, MINIBATCH | TUNED),
    ("locft-bf", "qwen2.5-7b", "authors", 6, 6, EPOCHS_25, MINIBATCH | TUNED),
    ("locft-bf", "smollm2-135m", "measured", 12, 12, (25, 2e-3), MINIBATCH),
    ("crispedit", "llama-3-8b", "authors", 19, 23, EPOCHS_25, CRISP | TUNED),
    ("crispedit", "qwen2.5-7b", "authors", 15, 19, EPOCHS_25, CRISP | TUNED),
    ("crispedit", "smollm2-135m", "measured", 4, 8, EPOCHS_25, CRISP),
    ("lora", "smollm2-135m", "measured", 4, 8, EPOCHS_25, MINIBATCH | RANK_8),
    ("ultraedit", "gpt-j-6b", "authors", 18, 26, (), ULTRA_DOWN),
    ("ultraedit", "llama-3-8b", "authors", 11, 24, (), ULTRA_LLAMA | TUNED),
    ("ultraedit", "qwen2.5-7b", "authors", 18, 26, (), ULTRA_GATED | TUNED),
    ("ultraedit", "smollm2-135m", "measured", 16, 24, (), ULTRA_GATED | dict(lr=3e-5)),
    ("stableedit", "gpt-j-6b", "authors", 18, 26, (), ULTRA_DOWN | STABLE),
    ("stableedit", "llama-3-8b", "authors", 11, 24, (), ULTRA_LLAMA | STABLE | TUNED),
    ("stableedit", "qwen2.5-7b", "authors", 18, 26, (), ULTRA_GATED | STABLE | TUNED),
    ("stableedit", "smollm2-135m", "measured", 18, 26, (), ULTRA_DOWN | STABLE | dict(lr=3e-4)),
    ("mend", "gpt2-xl", "paper easyedit", 45, 47, (), dict(lr_scale=1.0)),
    ("mend", "gpt-j-6b", "paper easyedit", 25, 27, (), dict(lr_scale=1.0)),
    ("mend", "llama-2-7b", "paper easyedit", 29, 31, (), dict(lr_scale=1.0)),
    ("mend", "smollm2-135m", "measured", 27, 29, (), dict(lr_scale=1.25)),
]
# fmt: on

ENTRIES = tuple(
    f"{method}/{model}/{source}"
    for method, model, sources, *_ in ROWS
    for source in sources.split()
)


class Published(NamedTuple):
    """A row of the table: the model's hub id (or built-in name) and all hyper-parameters."""

    model: str
    hyper: dict[str, Any]


def find_published(entry: str) -> Published:
    """Find METHOD/MODEL or METHOD/MODEL/SOURCE in the table.

    Raises:
      ValueError: where there is no such row; the message lists those of the method.
    """
    asked = entry.split("/")
    found = [row for row in ROWS if 2 <= len(asked) <= 3 and [row[0], row[1]] == asked[:2]]
    found = [row for row in found if not asked[2:] or asked[2] in row[2].split()]
    if not found:
        near = [known for known in ENTRIES if known.split("/")[0] == asked[0]] or ENTRIES
        raise ValueError(
            f"no values published as {entry!r}; expected METHOD/MODEL or METHOD/MODEL/SOURCE of "
            f"{', '.join(near)}"
        )
    method, name, _, first, last, values, own = found[0]
    hyper = dict(zip(COLUMNS.get(method, VALUE), values, strict=True)) | own
    known = KNOWN_MODELS[name]
    model = known.tuned if hyper.pop("tuned", False) else known.base
    assert model is not None
    one_layer = method in ("rome", "c-rome")
    layers = dict(layer=first) if one_layer else dict(layers=tuple(range(first, last + 1)))
    return Published(model, layers | hyper)


def known_name(config: DecoderConfig) -> str | None:
    """Return the table's name of a model of this family and size, tuned or not, or None."""
    size = config.family, config.L, config.D, config.F
    return next((name for name, known in KNOWN_MODELS.items() if known[:4] == size), None)


def published_hyper(method: str, model: Model) -> dict[str, Any]:
    """Return the hyper-parameters published for a method on a model of this family and size.

    Raises:
      ValueError: where there are none; the message says how a layer is found.
    """
    name, config = known_name(model.config), model.config
    if name is None or not any(row[:2] == (method, name) for row in ROWS):
        raise ValueError(
            f"no layer is published for {method} on {model.metadata.source} ({config.family}, "
            f"{config.L} layers of width {config.D}); give --layer "
            "(of `jaxedit stats` --layers, in Python layer= or layers=). "
            "`jaxedit layers` finds one"
        )
    return find_published(f"{method}/{name}").hyper
