"""Special tokens: one begin-of-text, none in texts, several ends, none beyond the vocabulary."""

import shutil

import pytest
import torch
import transformers
from lm_eval.api.instance import Instance
from reference.byte_tokenizer import BOS, EOS, IDS, N_TOKENS, TURN, write_byte_model
from reference.checkpoints import edit_json
from reference.models import hf_model

import jaxedit
from jaxedit.metrics.answers import score_answers
from jaxedit.metrics.harness import HarnessModel
from jaxedit.models.generate import continue_texts, continue_tokens, stream
from jaxedit.models.generated_text import strip_special
from jaxedit.models.hf_tokenizer import read_tokenizer
from jaxedit.solving.templates import sample_groups, sample_templates
from jaxedit.stats.collect import collect_stats

TEXTS = ["Once upon", f"{BOS}Once upon", BOS, f"Once {BOS} upon", f"{EOS}{TURN}Once", "東京 🙂", ""]
PROMPTS = ["Once upon a time", "A", f"{BOS}What is", f"She said:{TURN}yes"]


@pytest.fixture(scope="module")
def source(tiny_checkpoint):
    return tiny_checkpoint("llama", **IDS)


@pytest.fixture(scope="module")
def special(source, tmp_path_factory):
    """Write a model with special tokens for many bytes, so that it says some."""
    folder = tmp_path_factory.mktemp("special") / "model"
    ends = {"eos_token_id": [257, 258, 61, 131]}
    return write_byte_model(source, folder, special=range(95, 256, 2), generation=ends)


@pytest.fixture(scope="module")
def model(special) -> jaxedit.Model:
    return jaxedit.load(str(special))


def test_a_text_has_one_begin_of_text_token_in_front(special, model):
    theirs = transformers.AutoTokenizer.from_pretrained(special)
    many = model.tokenizer.encode_many(TEXTS)
    for text, tokens in zip(TEXTS, many, strict=True):
        plain = theirs.encode(text, add_special_tokens=False)
        expected = plain if text.startswith(BOS) else [256, *plain]
        assert expected[0] == 256
        assert model.tokenizer.encode(text) == tokens.tolist() == expected
        ids, ends = model.tokenizer.encode_with_ends(text)
        assert (ids, len(ends)) == (expected, len(expected))
        assert model.tokenizer.encode(text, bos=False) == plain


@pytest.mark.parametrize("sample", [sample_templates, sample_groups])
def test_sampled_templates_begin_with_one_and_hold_no_special_token(model, sample):
    sampled = sample(model, seed=3)
    templates = sampled if isinstance(sampled[0], str) else [t for group in sampled for t in group]
    assert len(set(templates)) > 5
    for template in templates:
        tokens = model.tokenizer.encode(template.replace("{}", "BP is in"))
        assert tokens[0] == 256
        assert not set(tokens[1:]) & {256, 257, 258}


@pytest.mark.parametrize("n_new", [3, 20])
def test_what_a_model_says_is_what_hf_decodes(special, model, n_new):
    hf, tokenizer = hf_model(special), transformers.AutoTokenizer.from_pretrained(special)
    said = continue_texts(model, PROMPTS, max_new_tokens=n_new)
    texts = jaxedit.generate(model, PROMPTS, max_new_tokens=n_new)
    lengths = set()
    for prompt, ours, text in zip(PROMPTS, said, texts, strict=True):
        tokens = model.tokenizer.encode(prompt)
        row = torch.tensor([tokens])
        settings = dict(attention_mask=torch.ones_like(row), max_new_tokens=n_new, pad_token_id=0)
        new = hf.generate(row, do_sample=False, **settings)[0, len(tokens) :].tolist()
        expected = tokenizer.decode(new, skip_special_tokens=True)
        assert ours == expected
        assert text == strip_special(model.tokenizer, prompt + expected)
        assert BOS not in text
        assert "".join(stream(model, tokens, max_new_tokens=n_new)) == expected
        (kept,) = continue_tokens(model, [tokens], max_new_tokens=n_new)
        ends = {257, 258, 61, 131}
        assert kept == (new[:-1] if new[-1] in ends else new)
        lengths.add(len(new))
        assert any(token in model.tokenizer.special_ids for token in new) or n_new == 3
    assert n_new == 3 or len(lengths) > 1  # some end early


def test_texts_that_spell_special_tokens_lose_them(model):
    assert strip_special(model.tokenizer, f"a{BOS}b") == "ab"
    nested = f"{BOS[:3]}{EOS}{BOS[3:]}"
    assert strip_special(model.tokenizer, f"c{nested}d") == "cd"


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": 257}, 258, {257}),
        ({"eos_token_id": [257, 258, 7]}, 258, {257, 258, 7}),
        ({"eos_token_id": None}, 258, {257}),
        ({}, 258, {257}),
        (None, 258, {257, 258}),
        (None, [5, 258], {257, 5, 258}),
        (None, None, {257}),
    ],
)
def test_ends_are_those_of_hf_and_the_tokenizers_own(
    source, tmp_path, generation, config, expected
):
    folder = write_byte_model(source, tmp_path / "model", generation=generation)
    edit_json(folder / "config.json", eos_token_id=config)
    assert read_tokenizer(folder).end_ids == expected
    theirs = hf_model(folder).generation_config.eos_token_id
    theirs = {theirs} if isinstance(theirs, int) else set(theirs or ())
    assert theirs | {257} == expected


@pytest.mark.parametrize("ids", ["257", [257, "x"], True, {"a": 1}, 2.5])
def test_ends_that_are_no_ids_are_refused(source, tmp_path, ids):
    folder = write_byte_model(source, tmp_path / "model", generation={"eos_token_id": ids})
    with pytest.raises(
        ValueError, match=r"generation_config.json has eos_token_id=.*expected an id"
    ):
        read_tokenizer(folder)


@pytest.fixture(scope="module")
def beyond(source, tmp_path_factory) -> jaxedit.Model:
    """Load a model whose tokenizer has one token more than it has embeddings."""
    folder = tmp_path_factory.mktemp("beyond") / "model"
    return jaxedit.load(str(write_byte_model(source, folder, beyond=["Zorgon"])))


def _edit(model: jaxedit.Model, prompt: str, target: str, template: str = "{}"):
    hyper = dict(layer=1, context_templates=(template,), v_num_grad_steps=2)
    editor = jaxedit.make_editor("rome", **hyper)
    return editor.edit(model, [jaxedit.Request(prompt, "Ann", target)], editor.init(model, None))


def _ask(model: jaxedit.Model, kind: str, *arguments):
    asked = [Instance(kind, {}, arguments, 0)]
    return getattr(HarnessModel(model), kind)(asked, disable_tqdm=True)


ENTRANCES = {
    "perplexity": lambda m, word: jaxedit.perplexity(m, [f"the {word} people"]).mean,
    "answers": lambda m, word: score_answers(m, [("Ann is in", word)]),
    "generate": lambda m, word: jaxedit.generate(m, [word], max_new_tokens=2),
    "tokens": lambda m, word: continue_tokens(m, [m.tokenizer.encode(word)], max_new_tokens=1),
    "edit, prompt": lambda m, word: _edit(m, f"{{}} of {word} is in", "Rome"),
    "edit, target": lambda m, word: _edit(m, "{} is in", word),
    "edit, template": lambda m, word: _edit(m, "{} is in", "Rome", f"{word}. {{}}"),
    "stats": lambda m, word: collect_stats(m, [word * 2, "words"], [1]),
    "log-likelihood": lambda m, word: _ask(m, "loglikelihood", "Ann is", f" {word}"),
    "rolling": lambda m, word: _ask(m, "loglikelihood_rolling", f"Ann {word}"),
    "generate_until": lambda m, word: _ask(m, "generate_until", word, {"max_gen_toks": 2}),
}


@pytest.mark.parametrize("entrance", ENTRANCES)
def test_a_token_beyond_the_vocabulary_is_refused_everywhere(beyond, entrance):
    message = (
        rf"the token 'Zorgon' has the id {N_TOKENS}, but the model's vocabulary has {N_TOKENS} "
        r"tokens \(0 to 258\)"
    )
    with pytest.raises(ValueError, match=message):
        ENTRANCES[entrance](beyond, "Zorgon")
    if not entrance.startswith("edit, t"):  # one edit that is made is enough
        ENTRANCES[entrance](beyond, "Zorgo")


def test_special_ids_beyond_the_vocabulary_are_refused_where_they_are_used(source, tmp_path):
    """A begin-of-text token is: of an end that cannot be said nothing is computed."""
    folder = write_byte_model(source, tmp_path / "model", beyond=["<s>", "</s>"], add_bos=False)
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    edit_json(folder / "tokenizer_config.json", **names)
    model = jaxedit.load(str(folder), add_bos=True)
    assert jaxedit.perplexity(model, ["Once upon"]).n_non_finite == 0
    for call in (
        lambda: jaxedit.perplexity(model, ["Once upon"], bos=True),
        lambda: jaxedit.generate(model, ["Once"], max_new_tokens=2),
        lambda: _ask(model, "loglikelihood", "", "Once"),
    ):
        with pytest.raises(ValueError, match="the token '<s>' has the id 259"):
            call()
    plain = jaxedit.load(str(folder), add_bos=False)
    reference = jaxedit.load(str(shutil.copytree(source, tmp_path / "plain")))
    rows = [[40, 41, 42]]
    new = continue_tokens(plain, rows, max_new_tokens=4)
    assert new == continue_tokens(reference, rows, max_new_tokens=4)


@pytest.mark.parametrize("text", ["a\ud800", "\udfffb", "\ud83d"])
def test_half_a_surrogate_pair_is_refused(model, text):
    for call in (
        lambda: model.tokenizer.encode(text),
        lambda: model.tokenizer.encode_many(["fine", text]),
        lambda: jaxedit.perplexity(model, ["fine text", text]),
        lambda: jaxedit.generate(model, [text]),
    ):
        with pytest.raises(ValueError, match="half a surrogate pair"):
            call()
