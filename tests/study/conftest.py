"""Quick studies of the golden gpt2, of one editor, whole or with an editor that has a state."""

import json
from pathlib import Path

import numpy as np
import pytest
from study_examples import FACTS, TEMPLATES, TEXTS

import jaxedit
from jaxedit import LowRank
from jaxedit.editors import Editor
from jaxedit.edits.edit import make_edit
from jaxedit.models.model import allocate_deltas
from jaxedit.study import context, loop


@pytest.fixture(scope="session")
def model(golden):
    """The unedited model, with the room for edits that a study gives it, so that nothing is
    compiled twice.
    """
    return allocate_deltas(golden("gpt2"), "mlp/w_down", (3,))


@pytest.fixture(scope="session")
def editor():
    return jaxedit.make_editor("rome", layer=3, v_num_grad_steps=4, context_templates=TEMPLATES)


@pytest.fixture(scope="session")
def configure(study_config):
    """A function: (facts, **keys) -> a quick study; it keeps every edit unless told not to."""
    hyper = dict(layer=3, v_num_grad_steps=4, context_templates=TEMPLATES)

    def make(asked=FACTS, ratio=1e6, action="rollback", evaluation=(), **keys):
        guard = dict(max_ppl_ratio=ratio, action=action)
        return study_config("rome", asked, TEXTS, hyper, evaluation, guard=guard, **keys)

    return make


@pytest.fixture(scope="session")
def whole(configure, tmp_path_factory):
    """A function: **keys -> the folder of an uninterrupted study; each is run once."""
    done: dict[str, Path] = {}

    def run(**keys) -> Path:
        key = json.dumps(keys, sort_keys=True)
        if key not in done:
            done[key] = loop.run_study(configure(**keys), tmp_path_factory.mktemp("whole") / "run")
        return done[key]

    return run


@pytest.fixture
def remembering(monkeypatch, model):
    """Studies use an editor whose edits depend on its state, which rome's do not.

    The state is what the kept edits' memories hold, one number each. A subject "Bob" is
    destructive, "Nan" and "Huge" are so beyond what is finite, "Nobody" cannot be edited."""
    scale = {"Bob": 30.0, "Nan": np.nan, "Huge": 1e38}
    direction = {"Bob": 3}  # one of those that raise the perplexity, 1.34 times

    def edit(model, requests, state):
        (request,) = requests
        if request.subject == "Nobody":
            raise ValueError("Nobody cannot be edited")
        seed = sum(map(ord, request.summary)) + 1000 * len(state) + round(sum(state))
        rng = np.random.default_rng(direction.get(request.subject, seed))
        u_FR, v_RD = (
            rng.standard_normal((192, 1)) / 14,
            rng.standard_normal((1, 48)) * scale.get(request.subject, 0.05),
        )
        made = make_edit(
            model, [LowRank("mlp/w_down", 3, u_FR, v_RD)], {"learnt": np.array(float(seed))}
        )
        return made, (*state, float(seed)), {"n_learnt": len(state)}

    made = Editor(
        name="remembering",
        hyper=None,
        slots=lambda model: {"mlp/w_down": (3,)},
        init=lambda model, stats: (),
        edit=edit,
        restore=lambda state, edit: (*state, float(edit.memory["learnt"])),
    )
    monkeypatch.setattr(context, "editor_from", lambda *_, **__: made)
    return made
