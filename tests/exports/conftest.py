"""Models with the edits that the methods' authors made, and their exports."""

import functools

import numpy as np
import pytest
from reference.models import padded

import jaxedit
from jaxedit.edits.edit import Dense, LowRank, make_edit
from jaxedit.exports.export import export
from jaxedit.models.model import allocate_deltas
from jaxedit.study.edited import EditedModel

N_PROMPTS, N_TOKENS = 20, 12


@pytest.fixture(scope="session")
def edited_models(golden, golden_expected):
    """Make a function: (family, methods) -> the golden model with the authors' edits by them.

    Of "rome" three edits of rank one in layer 3; "memit" and "alphaedit" change layers 2 to 4, "ft"
    layer 2, as whole matrices.
    """

    @functools.cache
    def make(family: str, *methods: str) -> EditedModel:
        base = golden(family)
        _, tensors = golden_expected(family)
        # Room for all layers that any method changes: one program for all edits of a family.
        model = allocate_deltas(base, "mlp/w_down", (2, 3, 4))
        for method in methods:
            for deltas in authors_deltas(method, tensors):
                model = jaxedit.apply(model, make_edit(base, deltas))
        return EditedModel(model, base.metadata.source, {"method": methods[0]}, (), (), None, "")

    return make


def authors_deltas(method: str, tensors: dict) -> list[list[LowRank | Dense]]:
    """The changes of each of a method's edits, in x out as the golden vectors have them."""
    if method == "rome":
        factors = [(tensors[f"rome_mom2/{i}/u"], tensors[f"rome_mom2/{i}/v"]) for i in range(3)]
        return [[LowRank("mlp/w_down", 3, u[:, None], v[None])] for u, v in factors]
    name = {"ft": "ft_free"}.get(method, method)
    found = []
    for key in sorted(tensors):
        if key.startswith(f"{name}/") and "threshold" not in key:
            (layer,) = [int(part) for part in key.split(".") if part.isdigit()]
            found.append(Dense("mlp/w_down", layer, tensors[key]))
    return [found]


@pytest.fixture(scope="session")
def prompts(golden, golden_expected):
    """Make a function: family -> the tokens of twenty texts, int [20, 12]."""

    def read(family: str) -> np.ndarray:
        cases, _ = golden_expected(family)
        encode = golden(family).tokenizer.encode
        return padded([encode(text)[:N_TOKENS] for text in cases["texts"][:N_PROMPTS]])

    return read


@pytest.fixture
def exported(edited_models, tmp_path):
    """Make a function: (family, methods, format, **options) -> the folder of an export."""

    def write(family: str, methods: tuple[str, ...], format: str = "peft", **options):
        return export(edited_models(family, *methods), tmp_path / "edited", format, **options)

    return write
