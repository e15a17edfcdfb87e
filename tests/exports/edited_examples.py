"""Golden models with edits of both kinds, and what exports of them are compared on."""

import dataclasses
import functools
from pathlib import Path

import numpy as np
from reference.models import padded
from safetensors import safe_open

import jaxedit
from jaxedit import Request
from jaxedit.edits.apply import apply
from jaxedit.edits.edit import Edit
from jaxedit.models.model import Model
from jaxedit.study.edited import EditedModel, edit_model

REQUESTS = (
    Request("{} originates from", "Park Seo-joon", "London"),
    Request("The occupation of {} is", "Gunnar Birkerts", "journalist"),
)
TEXTS = ("The sun rises in the east.", "Bread is baked in an oven, and eaten by people.")
PROMPTS = [
    prompt.replace("{}", subject)
    for prompt in ("{}", "{} originates from", "The occupation of {} is", "{}'s owner, who")
    for subject in ("Park Seo-joon", "Gunnar Birkerts", "Paris", "John D'earth", "the sea in 1998")
]
LAYERS = (2, 3)  # both edits change the first, the dense one the second as well


@functools.cache
def edited_model(directory: Path) -> EditedModel:
    """Load a golden model and write two facts into it, once for all tests."""
    return with_two_edits(jaxedit.load(str(directory)))


def with_two_edits(model: Model) -> EditedModel:
    """Write two facts into a model of six layers: one with ROME, one with fine-tuning."""
    first, _, _ = edit_model(
        model, REQUESTS[0], layer=2, v_num_grad_steps=6, context_templates=["{}"]
    )
    second, _, _ = edit_model(first, REQUESTS[1], "ft", layers=LAYERS, lr=3e-3, num_steps=4)
    return EditedModel(
        model=second,
        source=model.metadata.source,
        editor={"method": "rome"},
        records=(),
        requests=REQUESTS,
        unedited_ppl=None,
        texts="",
    )


def with_factor(edited: EditedModel, model: Model, factor: float) -> EditedModel:
    """Write the same edits into a model without edits, but smaller or larger.

    Args:
      edited: whose edits.
      model: its base.
      factor: what the edits are multiplied by.
    """
    for edit in edited.model.metadata.history:
        deltas = tuple(
            delta._replace(**{field: getattr(delta, field) * np.float32(factor)})
            for delta in edit.deltas
            for field in [delta._fields[-1]]
        )
        model = apply(model, dataclasses.replace(edit, deltas=deltas))
    return edited._replace(model=model)


def prompt_tokens(model: Model) -> np.ndarray:
    """Tokenise PROMPTS to rows of one length."""
    return padded([model.tokenizer.encode(prompt) for prompt in PROMPTS])


def summed_changes(edits: tuple[Edit, ...]) -> dict[str, np.ndarray]:
    """Sum the changes of edits in float64: HF name -> change in its orientation."""
    total: dict[str, np.ndarray] = {}
    for edit in edits:
        for name, delta in edit.dense().items():
            total[name] = total.get(name, 0.0) + delta.astype(np.float64)
    return total


def read_tensors(folder: Path) -> dict:
    """Read the checkpoint of a folder with the torch side of the package."""
    tensors = {}
    for path in sorted(folder.glob("model*.safetensors")):
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            assert not tensors.keys() & set(names)
            tensors |= {name: file.get_tensor(name) for name in names}
    return tensors
