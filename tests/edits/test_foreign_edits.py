"""Edits that do not fit a model are refused before anything is added."""

import numpy as np
import pytest

import jaxedit
from jaxedit import Dense, Edit, LowRank

ONES_FR, ONES_RD, ONES_FD = (np.ones(shape, np.float32) for shape in ((112, 1), (1, 48), (112, 48)))


@pytest.mark.parametrize(
    ("family", "delta", "message"),
    [
        (
            "gpt2",
            LowRank("mlp/w_down", 1, ONES_FR, ONES_RD),
            r"\(112, 48\) matrix, this model's",
        ),
        ("gpt2", Dense("mlp/w_down", 1, ONES_FD), r"\(192, 48\): another model's edit"),
        ("llama", LowRank("mlp/w_down", 6, ONES_FR, ONES_RD), r"layers \[6\] .*has layers 0 to 5"),
        ("llama", LowRank("attn/w_o", 1, ONES_FR, ONES_RD), "'attn/w_o'; of .* can be edited: mlp"),
        ("llama", LowRank("../x", 1, ONES_FR, ONES_RD), r"the weight '\.\./x'; of .* can be"),
    ],
)
def test_an_edit_that_does_not_fit_is_refused(golden, family, delta, message):
    edit = Edit((delta,), {}, {}, base=None)  # one that does not say on which weights it is
    with pytest.raises(ValueError, match=message):
        jaxedit.apply(golden(family), edit)
