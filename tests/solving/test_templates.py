"""Context templates: which are accepted, and what is made of the texts that a model writes."""

import pytest

from jaxedit.editors import make_editor
from jaxedit.solving import templates
from jaxedit.solving.templates import STARTERS, check_template, sample_groups, sample_templates


@pytest.fixture
def calls(monkeypatch):
    """Let the model write its prompt, the length and awkward characters; note how it is asked."""
    calls = []

    def generate(model, prompts, max_new_tokens, top_k, seed):
        calls.append((tuple(prompts), max_new_tokens, top_k, seed))
        return [f"{prompt} {{}} to\n{max_new_tokens}  {{x}}" for prompt in prompts]

    monkeypatch.setattr(templates, "generate", generate)
    return calls


@pytest.mark.parametrize("template", ["{}", "So. {}", "{} so", "{x} {}"])
def test_templates_with_one_place_are_accepted(golden, template):
    editor = make_editor("rome", layer=3, context_templates=(template,))
    check_template(template)
    state = editor.init(golden("gpt2"), None)
    assert editor.context_templates is not None
    assert editor.context_templates(state) == (template,)


@pytest.mark.parametrize("template", ["", "So.", "{} {}", "{x}", ("{}",), None])
def test_other_templates_are_refused(template):
    with pytest.raises(ValueError, match=r"must have exactly one \{\}, where the prompt goes"):
        check_template(template)


def test_sampled_templates_hold_one_place_each_behind_the_text(calls):
    sampled = sample_templates(None, seed=3, lengths=(5, 10), n_samples=2)
    assert sampled[0] == "{}"
    assert sampled[1] == "The to 5 x. {}"
    assert sampled[10] == "You to 5 x. {}"
    assert sampled[11] == "The to 10 x. {}"
    assert len(sampled) == 1 + 2 * 2 * len(STARTERS)
    for template in sampled:
        check_template(template)


def test_each_length_is_sampled_with_a_seed_of_its_own(calls):
    sample_templates(None, seed=3, lengths=(5, 10), n_samples=2)
    assert calls == [(STARTERS * 2, 5, 5, 8), (STARTERS * 2, 10, 5, 13)]


def test_groups_are_the_bare_prompt_and_a_text_of_each_starter(calls):
    bare, sampled = sample_groups(None, seed=0)
    assert bare == ("{}",)
    assert sampled == tuple(f"{starter} to 10 x. {{}}" for starter in STARTERS)
    assert calls == [(STARTERS, 10, 5, 10)]
