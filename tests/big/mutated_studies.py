"""The readers of statistics, adapters, edits and studies that mutate_inputs.py tries."""

import functools
import io
import json
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from mutated_readers import Call, Make, Reader, checkpoint, load_checked, mutated_files
from mutations import mutate_bytes, mutate_json
from safetensors import safe_open
from safetensors.numpy import save

import jaxedit
from jaxedit.edits.edit import LowRank, make_edit

PROMPT = ("{} is located in the city of", "The Eiffel Tower", "Rome")


def study_readers() -> dict[str, Reader]:
    """Return these readers by name."""
    return {
        "npz": Reader(500, npz),
        "stats": Reader(500, stats),
        "stats-part": Reader(300, stats_part),
        "curves": Reader(250, curves),
        "references": Reader(200, references),
        "target-cache": Reader(150, target_cache),
        "orbax": Reader(80, orbax),
        "adapter": Reader(600, adapter),
        "edit": Reader(500, edit),
        "study": Reader(900, study),
    }


def mutated_metadata(
    path: Path, key: str, call: Callable[[], Any], mention: tuple[str, ...] = ()
) -> Make:
    """Mutate the JSON that a safetensors file has as metadata, its arrays, or its bytes."""
    whole = path.read_bytes()
    with safe_open(path, framework="numpy") as file:
        arrays = {name: file.get_tensor(name) for name in list(file.keys())}
        described = json.loads(file.metadata()[key])

    def make(rng: random.Random) -> Call:
        choice = rng.random()
        if choice < 0.6:
            text = mutate_json(rng, described).decode("utf-8", "replace")
            path.write_bytes(save(arrays, {rng.choice([key] * 20 + ["more"]): text}))
        elif choice < 0.8:
            path.write_bytes(save(mutated_arrays(rng, arrays), {key: json.dumps(described)}))
        else:
            path.write_bytes(mutate_bytes(rng, whole))
        return call, (path.name, *mention)

    return make


def mutated_arrays(rng: random.Random, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Exchange, rename or drop one of some arrays."""
    changed = dict(arrays)
    name = rng.choice(sorted(changed))
    array = changed.pop(name)
    odd = [array[:-1], array.T, array * np.nan, array * np.inf, array.astype(np.int8)]
    odd += [np.zeros(()), np.zeros((0,)), array[None], array.astype(np.float64) * 1e300, -array]
    choice = rng.randrange(len(odd) + 3)
    if choice < len(odd):
        changed[name] = np.ascontiguousarray(odd[choice])
    elif choice < len(odd) + 2:
        changed[rng.choice([f"{name}x", "more", "mom2/x", "", "mom2/-1"])] = array
    return changed


def npz(folder: Path) -> Make:
    """Second moments as the ROME repository writes them."""
    path = folder / "model.layers.1.mlp.down_proj_float32_mom2_100000.npz"
    good = {"mom2.mom2": np.eye(8), "mom2.count": np.array(10), "sample_size": np.array(3)}
    odd = [np.array("x"), np.array([1, 2]), np.array(1j), np.array(np.inf), np.array(-1)]
    odd += [np.zeros((0, 0)), np.ones((3, 4)), np.array(2**60), np.full((8, 8), np.nan)]

    def make(rng: random.Random) -> Call:
        held, file = dict(good), io.BytesIO()
        if rng.random() < 0.5:
            held[rng.choice(sorted(held))] = rng.choice(odd)
        np.savez(file, **held)
        content = file.getvalue()
        choice = rng.randrange(6)
        if choice == 0:  # an array that claims more than there is
            header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (%d, %d), }"
            size = rng.choice((10**4, 10**6, 2**31))
            header = (header % (size, size)).ljust(117) + b"\n"
            entry = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
            archive = io.BytesIO()
            with zipfile.ZipFile(archive, "w") as members:
                members.writestr("mom2.mom2.npy", entry)
                members.writestr("mom2.count.npy", content[:0])
            content = archive.getvalue()
        elif choice < 4:
            content = mutate_bytes(rng, content)
        path.write_bytes(content)
        return lambda: jaxedit.Stats.load(path), (path.name,)

    return make


def stats(folder: Path) -> Make:
    """Second moments of this package; their layer is read with a model."""
    model = jaxedit.load(str(checkpoint(folder, "llama")))
    path = folder / "stats.safetensors"
    jaxedit.collect_stats(model, ["some text with a few tokens"] * 3, [1]).save(path)
    return mutated_metadata(path, "stats", lambda: jaxedit.Stats.load(path).of(model, 1))


def stats_part(folder: Path) -> Make:
    """The sums of an unfinished pass."""
    from jaxedit.stats.sums import read_sums, write_sums, zero_sums

    model = jaxedit.load(str(checkpoint(folder, "llama")))
    path, made_from = folder / "stats.part", {"model": "m", "texts": "abc", "max_length": 5}
    write_sums(path, made_from, [1], 2, zero_sums(model, [1]))
    return mutated_metadata(path, "part", lambda: read_sums(model, path, made_from, [1]))


def curves(folder: Path) -> Make:
    """Published curves."""
    from jaxedit.reports.curves import read_curves

    path = folder / "curves.json"
    path.write_text(json.dumps({"a": {"x": [0.0, 1.0, 2.0], "y": [30.0, 31.5, 1e4]}}))
    return mutated_files([path], lambda: read_curves([f"{path}:a"])[0].up_to(5))


def references(folder: Path) -> Make:
    """The ROME repository's reference texts."""
    from jaxedit.metrics.consistency import read_references

    texts = [{"relation_id": "P1", "target_id": "Q1", "samples": [{"text": "a b"}]}]
    paths = [folder / name for name in ("attribute_snippets.json", "tfidf_vocab.json", "idf.npy")]
    paths[0].write_text(json.dumps(texts))
    paths[1].write_text(json.dumps({"a": 0, "b": 1}))
    np.save(paths[2], np.ones(2))
    return mutated_files(paths, lambda: read_references(str(folder)), (str(folder),))


def target_cache(folder: Path) -> Make:
    """Values that were kept; read where an edit wants them."""
    model = jaxedit.load(str(checkpoint(folder, "llama")))
    cache = folder / "cache"
    editor = jaxedit.make_editor(
        "rome", layer=1, v_num_grad_steps=1, target_cache=str(cache), context_templates=("{}",)
    )

    def call() -> Any:
        return editor.edit(model, [jaxedit.Request(*PROMPT)], editor.init(model, None))

    call()
    return mutated_files(sorted(cache.glob("*.safetensors")), call)


def orbax(folder: Path) -> Make:
    """A converted model."""
    from jaxedit.models.orbax import write_orbax

    directory = checkpoint(folder, "llama")
    converted = folder / "converted"
    write_orbax(jaxedit.load(str(directory)), directory, converted)
    paths = [path for path in sorted((converted / "weights").rglob("*")) if path.is_file()]
    return mutated_files(paths, functools.partial(load_checked, converted), (str(converted),))


def adapter(folder: Path) -> Make:
    """A PEFT LoRA adapter: its configuration and its factors; and a file of changes."""
    model = jaxedit.load(str(checkpoint(folder, "llama")))
    place = folder / "adapter"
    place.mkdir()
    module, rng = "model.layers.1.mlp.down_proj", np.random.default_rng(0)
    name = f"base_model.model.{module}.lora_"
    arrays = {
        f"{name}A.weight": rng.normal(size=(2, model.config.F)).astype(np.float32),
        f"{name}B.weight": rng.normal(size=(model.config.D, 2)).astype(np.float32),
    }
    values = {
        **dict(peft_type="LORA", r=2, lora_alpha=4, target_modules=["down_proj"], bias="none"),
        **dict(rank_pattern={module: 2}, alpha_pattern={}, layers_to_transform=[1]),
        **dict(use_rslora=False, base_model_name_or_path="llama", init_lora_weights=True),
    }
    config, factors = place / "adapter_config.json", place / "adapter_model.safetensors"
    config.write_text(json.dumps(values))
    factors.write_bytes(save(arrays))
    changes = folder / "changes.npz"
    np.savez(changes, **{f"{module}.weight": np.ones((model.config.D, model.config.F))})
    of_adapter = mutated_files(
        [config] * 4 + [factors], lambda: jaxedit.import_edit(model, place), (str(place),)
    )
    of_changes = mutated_files([changes], lambda: jaxedit.import_edit(model, changes))
    return lambda choice: (of_adapter if choice.random() < 0.85 else of_changes)(choice)


def edit(folder: Path) -> Make:
    """The file of an edit, applied to its model."""
    model = jaxedit.load(str(checkpoint(folder, "llama")))
    path = folder / "edit.safetensors"
    u_FR = np.ones((model.config.F, 1), np.float32)
    delta = LowRank("mlp/w_down", 1, u_FR, np.ones((1, model.config.D), np.float32))
    make_edit(model, [delta]).save(path)

    def call() -> None:
        jaxedit.apply(model, jaxedit.Edit.load(path))

    return mutated_metadata(path, "edit", call, ("the edit ",))


def study(folder: Path) -> Make:
    """A study's folder: run.json, journal.jsonl, a step's arrays; opened and replayed."""
    from jaxedit.study.config import default_config

    directory, workdir = checkpoint(folder, "llama"), folder / "work"
    facts = [dict(zip(("prompt", "subject", "target_new"), PROMPT, strict=True))] * 2
    (folder / "facts.json").write_text(json.dumps(facts))
    (folder / "texts.json").write_text(json.dumps(["a text to read", "another of them"]))
    config = default_config("rome", layer=1, v_num_grad_steps=1, context_templates=("{}",))
    config.update(
        model=str(directory), facts=str(folder / "facts.json"), texts=str(folder / "texts.json")
    )
    jaxedit.run_study(config, workdir)
    steps = sorted((workdir / "steps").iterdir())
    paths = [workdir / "run.json"] * 2 + [workdir / "journal.jsonl"] * 4 + steps

    def call() -> None:
        jaxedit.open_study(workdir)
        jaxedit.edited_model(workdir)

    return mutated_files(paths, call, (str(workdir),))
