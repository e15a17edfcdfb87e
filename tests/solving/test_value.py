"""The values to write: requests do not influence each other, whatever company they are optimised
in; NAS.
"""

import numpy as np
import pytest
import torch
import transformers

import jaxedit
from jaxedit.edits.edit import to_dense
from jaxedit.solving import value
from jaxedit.solving.hyper import TargetHyper
from jaxedit.solving.prompts import tokenise_prompt
from jaxedit.solving.value import optimise_values

TEMPLATES = ("{}", "I am a little. {}")
REQUESTS = [
    jaxedit.Request("{} is located in the city of", "The Eiffel Tower", "Rome"),
    jaxedit.Request("The mother tongue of {} is", "Danielle Darrieux", "the English language"),
    jaxedit.Request("{}", "Honolulu", "BBC"),
    jaxedit.Request(
        "The very long question about where in the world {} may have been born is answered by",
        "Bob",
        "Iran",
    ),
    jaxedit.Request("{} plays", "Ann", "piano"),
]
HYPER = TargetHyper(v_num_grad_steps=6)


def test_requests_do_not_influence_each_other(golden, monkeypatch):
    model = golden("gpt2")
    alone = [
        optimise_values(model, [request], TEMPLATES, 3, HYPER, residual=True)
        for request in REQUESTS
    ]
    monkeypatch.setattr(
        value, "requests_at_once", lambda *_: 2
    )  # three parts of other lengths, the last one filled up
    together = optimise_values(model, REQUESTS, TEMPLATES, 3, HYPER, residual=True)
    for name in value.OptimisedValues._fields:
        expected = np.concatenate([getattr(found, name) for found in alone])
        np.testing.assert_allclose(
            getattr(together, name), expected, rtol=2e-4, atol=2e-5, err_msg=name
        )


def test_norm_anchor_gives_values_the_norm_they_had_in_the_unedited_model(golden):
    model = golden("llama")
    plain = jaxedit.make_editor("rome", layer=3, v_num_grad_steps=6, context_templates=TEMPLATES)
    first, _, _ = plain.edit(model, REQUESTS[:1], plain.init(model, None))
    once = jaxedit.apply(model, first)
    unedited = optimise_values(model, REQUESTS[1:2], TEMPLATES, 3, HYPER, residual=False)
    free = optimise_values(once, REQUESTS[1:2], TEMPLATES, 3, HYPER, residual=False)
    anchored = optimise_values(
        once,
        REQUESTS[1:2],
        TEMPLATES,
        3,
        TargetHyper(v_num_grad_steps=6, norm_anchor=True),
        residual=False,
    )
    wanted, found = free.init_ND + free.delta_ND, anchored.init_ND + anchored.delta_ND
    assert np.linalg.norm(wanted) > 1.01 * np.linalg.norm(unedited.init_ND)
    assert np.linalg.norm(found) == pytest.approx(np.linalg.norm(unedited.init_ND), rel=1e-5)
    np.testing.assert_allclose(
        found / np.linalg.norm(found), wanted / np.linalg.norm(wanted), atol=1e-6
    )


@pytest.mark.parametrize("name", ["rome", "memit"])
def test_norm_anchor_reaches_the_edit(golden, name):
    model = golden("llama")
    hyper = (
        dict(layer=3)
        if name == "rome"
        else dict(layers=(2, 3), mom2_adjustment=False, mom2_update_weight=1.0)
    )
    templates = TEMPLATES if name == "rome" else (TEMPLATES,)
    edits = []
    for anchor in (False, True):
        editor = jaxedit.make_editor(
            name, v_num_grad_steps=6, context_templates=templates, norm_anchor=anchor, **hyper
        )
        edits.append(editor.edit(model, REQUESTS[:1], editor.init(model, None))[0])
    assert not np.allclose(to_dense(edits[0].deltas[-1]), to_dense(edits[1].deltas[-1]), rtol=1e-3)


def said(hf_model, backend, request, delta_D, layer) -> bool:
    """Whether with a vector added after a layer, at the subject's last token, each target token is
    the likeliest everywhere.
    """
    target = backend.encode(f" {request.target_new}").ids
    hits = []
    for template in TEMPLATES:
        before, after = template.format(request.prompt).split("{}")
        tokens = backend.encode(before + request.subject + after).ids + target
        at = len(backend.encode(before + request.subject).ids) - 1

        def add(module, inputs, output, at=at):
            hidden = output[0] if isinstance(output, tuple) else output
            hidden[:, at] += torch.tensor(delta_D)

        hook = hf_model.transformer.h[layer].register_forward_hook(add)
        with torch.no_grad():
            best = hf_model(torch.tensor([tokens])).logits[0].argmax(-1).tolist()
        hook.remove()
        hits.append(best[-len(target) - 1 : -1] == target)
    return all(hits)


def test_prob_cutoff_counts_the_passes_in_which_the_target_is_the_likeliest(golden, shared):
    model, layer = golden("gpt2"), 3
    request = jaxedit.Request("The mother tongue belongs to {}", "Danielle Darrieux", "the")
    hf_model = transformers.AutoModelForCausalLM.from_pretrained(
        shared / "golden" / "gpt2", dtype=torch.float32
    ).eval()
    hyper = dict(v_lr=0.5, v_weight_decay=1e-3, kl_factor=1e-3, clamp_norm_factor=400.0)

    def run(n_passes, cutoff=None):
        numbers = TargetHyper(v_num_grad_steps=n_passes, prob_cutoff=cutoff, **hyper)
        return optimise_values(model, [request], TEMPLATES, layer, numbers, residual=True)

    # The vector of the n-th pass is what n passes end with.
    hits = [
        n
        for n in range(1, 10)
        if said(hf_model, model.tokenizer.backend, request, run(n).delta_ND[0], layer)
    ]
    assert len(hits) >= 3
    for k in (1, 2, 3):
        stopped = run(25, -k)
        assert stopped.n_steps_N[0] == hits[k - 1]
        np.testing.assert_array_equal(stopped.delta_ND, run(hits[k - 1]).delta_ND)
    with pytest.raises(ValueError, match="prob_cutoff=1: expected -k"):
        TargetHyper(prob_cutoff=1).check()


def test_leading_space(golden):
    """Between prompt and target: part of one text, tokens of their own, or none."""
    tokenizer = golden("gpt2").tokenizer
    encode = lambda text: tokenizer.backend.encode(text).ids  # noqa: E731
    rows = {
        how: tokenise_prompt(tokenizer, "So. {}", "{} is in", "Ann", "Paris", how)
        for how in ("joined", "separate", "none")
    }
    assert rows["joined"].tokens == encode("So. Ann is in Paris")
    assert rows["separate"].tokens == encode("So. Ann is in") + encode(" Paris")
    assert rows["none"].tokens == encode("So. Ann is inParis")
    for how, row in rows.items():
        said = tokenizer.decode(row.tokens[row.first_target :])
        assert said == ("Paris" if how == "none" else " Paris")
        assert tokenizer.decode(row.tokens[: row.fact_position + 1]) == "So. Ann"
    with pytest.raises(
        ValueError, match="leading_space='no': expected one of 'joined', 'separate', 'none'"
    ):
        TargetHyper(leading_space="no").check()


def test_leading_space_reaches_the_edit(golden):
    model = golden("gpt2")
    for name, hyper in (
        ("rome", dict(layer=3, context_templates=TEMPLATES, v_num_grad_steps=3)),
        ("ft", dict(layers=(3,))),
    ):
        changes = []
        for how in ("joined", "none"):
            editor = jaxedit.make_editor(name, leading_space=how, **hyper)
            changes.append(
                to_dense(editor.edit(model, REQUESTS[:1], editor.init(model, None))[0].deltas[0])
            )
        assert not np.allclose(changes[0], changes[1], rtol=1e-3)
