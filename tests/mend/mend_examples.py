"""What the tests of MEND share: a tiny model's layout, its HF model, facts, a random network."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from reference.mend import NAMES, Mend, factors_by_hooks
from reference.models import hf_model

import jaxedit
from jaxedit.mend.network import Layout, Switches, make_layout
from jaxedit.mend.places import mlp_places, weight_sizes

LAYERS = (2, 3)
REQUESTS = [
    jaxedit.Request(
        "{} is located in the city of",
        "The Eiffel Tower",
        "Rome",
        neighbours=(("The little girl lived in", "the forest"),),
    ),
    jaxedit.Request(
        "The mother tongue of {} is",
        "Danielle Darrieux",
        "the English language",
        neighbours=(("The company was sold for", "250 million"), ("The capital is", "Rome")),
    ),
    jaxedit.Request(
        "{} sings", "Bob", "a song", neighbours=(("What is the capital of Italy?", "Rome"),)
    ),
    jaxedit.Request(
        "{} was created by", "The company", "Ann", neighbours=(("Once upon a", "time"),)
    ),
]


def layout_of(model: jaxedit.Model, **switches: Any) -> Layout:
    """Make a layout of two layers and a small rank."""
    given = Switches(**{"rank": 5} | switches)
    return make_layout(given, mlp_places(model, LAYERS), weight_sizes(model))


def names_of(model: jaxedit.Model) -> list[str]:
    """Return the names that HF has for the edited weights, in the released order."""
    names = NAMES[model.config.family]
    return [names[weight].format(l=layer) for weight, layer in mlp_places(model, LAYERS)]


def torch_mend(model: jaxedit.Model, layout: Layout) -> Mend:
    """Make a network of torch whose parameters are random, and of a size that shows."""
    sizes = weight_sizes(model)
    places = mlp_places(model, LAYERS)
    pairs = zip(names_of(model), places, strict=True)
    made = Mend({name: sizes[weight] for name, (weight, _) in pairs}, layout.switches._asdict())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            around = 1.0 if "mode_scale" in name else 0.0
            size = 1e-3 if name == "edit_lrs" else 0.3
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(size * noise + around)
    return made


class Tokens(NamedTuple):
    """A text as tokens, and how many of them are its answer's."""

    tokens: list[int]
    n_answer: int


def tokens_of(model: jaxedit.Model, prompt: str, answer: str) -> Tokens:
    """Tokenise a prompt and its answer."""
    encode = model.tokenizer.encode
    tokens = encode(f"{prompt} {answer}")
    return Tokens(tokens, len(tokens) - len(encode(prompt)))


@functools.cache
def hf_in_float64(directory: Path):
    """Load a golden model in torch, in float64."""
    return hf_model(directory).double()


def reference_factors(model: jaxedit.Model, directory: Path, request: jaxedit.Request) -> dict:
    """Compute the factors of a request's gradient in torch."""
    row = tokens_of(model, request.prompt_text, request.target_new)
    return factors_by_hooks(hf_in_float64(directory), names_of(model), *row)


def in_hf_names(edit: jaxedit.Edit) -> dict[str, np.ndarray]:
    """Return an edit's changes [out, in], whichever way HF has them."""
    return {
        delta_name: change if ".c_" not in delta_name else change.T
        for delta_name, change in edit.dense().items()
    }
