"""The values to write: independent of the company they are optimised in; stops; norms."""

import numpy as np
import pytest
import torch
import transformers

import jaxedit
from jaxedit.editors import encore
from jaxedit.edits.edit import to_dense
from jaxedit.solving import value
from jaxedit.solving.hyper import TargetHyper
from jaxedit.solving.site import Site
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
    """Alone, and in three chunks of other lengths, the last one filled up."""
    model = golden("gpt2")
    alone = [
        optimise_values(model, [request], TEMPLATES, 3, HYPER, Site.RESIDUAL)
        for request in REQUESTS
    ]
    monkeypatch.setattr(value, "requests_per_batch", lambda *_: 2)
    together = optimise_values(model, REQUESTS, TEMPLATES, 3, HYPER, Site.RESIDUAL)
    for name in value.OptimisedValues._fields:
        expected = np.concatenate([getattr(values, name) for values in alone])
        np.testing.assert_allclose(
            getattr(together, name), expected, rtol=2e-4, atol=2e-5, err_msg=name
        )


@pytest.mark.same_bits
def test_sites_differ_in_the_value_before_the_edit(golden):
    """The residual stream after a layer, or the MLP's output that is part of it."""
    model, hyper = golden("gpt2"), TargetHyper(v_num_grad_steps=1)
    residual, mlp, with_attention = (
        optimise_values(model, REQUESTS[:1], TEMPLATES, 3, hyper, site) for site in Site
    )
    np.testing.assert_array_equal(mlp.init_ID, mlp.value_ICD[:, 0])
    np.testing.assert_array_equal(with_attention.init_ID, mlp.init_ID)
    assert not np.allclose(residual.init_ID, mlp.init_ID, rtol=0.1)
    np.testing.assert_array_equal(residual.key_ICF, mlp.key_ICF)
    np.testing.assert_array_equal(residual.bare_key_IF, residual.key_ICF[:, 0])


def test_requests_per_batch_fill_a_device_up_to_its_memory(golden, monkeypatch):
    model, shape = golden("gpt2"), value.PaddedShape(prefix=8, suffix=8, n_read=2)
    assert value.requests_per_batch(model, shape, n_templates=2, layer=3) == 16  # of 24 positions
    assert value.requests_per_batch(model, shape, n_templates=5, layer=3) == 8
    config = model.config
    products = 2 * config.D + config.H * (config.N + 2 * config.K) + config.F
    request_bytes = 4 * products * 24 * (config.L - 1 - 3)
    for n in (1, 5):
        monkeypatch.setattr(value, "SAVED_BYTES", n * request_bytes)
        assert value.requests_per_batch(model, shape, n_templates=2, layer=3) == n
    monkeypatch.setattr(value, "SAVED_BYTES", 1)
    assert value.requests_per_batch(model, shape, n_templates=2, layer=3) == 1


def test_keep_unedited_norm_gives_values_the_norm_they_had_in_the_unedited_model(golden):
    model, request = golden("llama"), REQUESTS[1:2]
    plain = jaxedit.make_editor("rome", layer=3, v_num_grad_steps=6, context_templates=TEMPLATES)
    first, _, _ = plain.edit(model, REQUESTS[:1], plain.init(model, None))
    once = jaxedit.apply(model, first)
    anchor = TargetHyper(v_num_grad_steps=6, keep_unedited_norm=True)
    unedited = optimise_values(model, request, TEMPLATES, 3, HYPER, Site.MLP)
    free = optimise_values(once, request, TEMPLATES, 3, HYPER, Site.MLP)
    anchored = optimise_values(once, request, TEMPLATES, 3, anchor, Site.MLP)
    norm = np.linalg.norm(unedited.init_ID)
    free_ID, anchored_ID = free.init_ID + free.delta_ID, anchored.init_ID + anchored.delta_ID
    assert np.linalg.norm(free_ID) > 1.01 * norm
    assert np.linalg.norm(anchored_ID) == pytest.approx(norm, rel=1e-5)
    direction_ID = free_ID / np.linalg.norm(free_ID)
    np.testing.assert_allclose(anchored_ID / norm, direction_ID, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "hyper"),
    [
        ("rome", dict(layer=3, context_templates=TEMPLATES)),
        (
            "memit",
            dict(
                layers=(2, 3),
                mom2_adjustment=False,
                mom2_update_weight=1.0,
                context_templates=(TEMPLATES,),
            ),
        ),
    ],
)
def test_keep_unedited_norm_reaches_the_edit(golden, name, hyper):
    model = golden("llama")
    edits = []
    for anchor in (False, True):
        editor = jaxedit.make_editor(name, v_num_grad_steps=6, keep_unedited_norm=anchor, **hyper)
        edits.append(editor.edit(model, REQUESTS[:1], editor.init(model, None))[0])
    free_FD, anchored_FD = (to_dense(edit.deltas[-1]) for edit in edits)
    assert not np.allclose(free_FD, anchored_FD, rtol=1e-3)


def is_target_likeliest(hf_model, backend, request, delta_D, layer: int) -> bool:
    """Ask torch whether with a vector every target token is the likeliest in every template.

    The vector is added after a layer, at the subject's last token.
    """
    target = backend.encode(f" {request.target_new}").ids
    hits = []
    for template in TEMPLATES:
        before, after = template.format(request.prompt).split("{}")
        tokens = backend.encode(before + request.subject + after).ids + target
        position = len(backend.encode(before + request.subject).ids) - 1

        def add(module, inputs, output, position=position):
            hidden = output[0] if isinstance(output, tuple) else output
            hidden[:, position] += torch.tensor(delta_D)

        hook = hf_model.transformer.h[layer].register_forward_hook(add)
        with torch.no_grad():
            best = hf_model(torch.tensor([tokens])).logits[0].argmax(-1).tolist()
        hook.remove()
        hits.append(best[-len(target) - 1 : -1] == target)
    return all(hits)


@pytest.mark.same_bits
def test_prob_cutoff_counts_the_passes_in_which_the_target_is_the_likeliest(golden, shared):
    model, layer = golden("gpt2"), 3
    request = jaxedit.Request("The mother tongue belongs to {}", "Danielle Darrieux", "the")
    hf_model = transformers.AutoModelForCausalLM.from_pretrained(
        shared / "golden" / "gpt2", dtype=torch.float32
    ).eval()
    hyper = dict(v_lr=0.5, v_weight_decay=1e-3, kl_factor=1e-3, clamp_norm_factor=400.0)

    def run(n_passes, cutoff=None):
        numbers = encore.Hyper(v_num_grad_steps=n_passes, prob_cutoff=cutoff, **hyper)
        return optimise_values(model, [request], TEMPLATES, layer, numbers, Site.RESIDUAL)

    # The vector of the n-th pass is what n passes end with.
    backend = model.tokenizer.backend
    hits = [
        n
        for n in range(1, 10)
        if is_target_likeliest(hf_model, backend, request, run(n).delta_ID[0], layer)
    ]
    assert len(hits) >= 3
    for k in (1, 2, 3):
        stopped = run(25, -k)
        assert stopped.n_steps_I[0] == hits[k - 1]
        np.testing.assert_array_equal(stopped.delta_ID, run(hits[k - 1]).delta_ID)
