"""What files beside tokenizer.json say of tokens: as transformers takes it."""

import json

import pytest
import transformers
from reference.byte_tokenizer import BOS, EOS, IDS, TURN, write_byte_model
from reference.checkpoints import edit_json

from jaxedit.models.hf_tokenizer import read_tokenizer

TEXTS = ["Once upon", f"user{TURN}hello there", f"{TURN}{EOS} a", f"{BOS}Once", "東京 🙂"]
CONFIG = "tokenizer_config.json"
AS_ADDED = {"content": TURN, "special": True, "normalized": False, "lstrip": False, "rstrip": False}


@pytest.fixture
def folder(tiny_checkpoint, tmp_path):
    return write_byte_model(tiny_checkpoint("llama", **IDS), tmp_path / "model")


def forget_turn(folder) -> None:
    """Take the token that ends turns out of tokenizer.json."""
    path = folder / "tokenizer.json"
    written = json.loads(path.read_text())
    written["added_tokens"] = [t for t in written["added_tokens"] if t["content"] != TURN]
    path.write_text(json.dumps(written))


def check_same(folder) -> None:
    ours, theirs = read_tokenizer(folder, 259), transformers.AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        plain = theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text, bos=False) == plain, text
        if not text.startswith(BOS):
            assert ours.encode(text) == theirs.encode(text), text


@pytest.mark.parametrize(
    "named",
    [
        {CONFIG: {"added_tokens_decoder": {"258": AS_ADDED}}},
        {CONFIG: {"additional_special_tokens": [TURN]}},
        {CONFIG: {"extra_special_tokens": {"turn_token": TURN}}},
        {CONFIG: {"pad_token": TURN}},
        {"added_tokens.json": {TURN: 258}},
        {"special_tokens_map.json": {"additional_special_tokens": [TURN]}},
    ],
    ids=str,
)
def test_tokens_that_another_file_names_are_tokens(folder, named):
    forget_turn(folder)
    assert 258 not in read_tokenizer(folder, 259).encode(TEXTS[1])
    for name, keys in named.items():
        path = folder / name
        known = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(known | keys))
    assert 258 in read_tokenizer(folder, 259).encode(TEXTS[1])
    check_same(folder)


@pytest.mark.parametrize("kept", [None, {"bos_token": None}, {"bos_token": TURN}], ids=str)
def test_the_token_in_front_is_the_one_that_transformers_puts_there(folder, kept):
    if kept is None:
        (folder / CONFIG).unlink()
    else:
        edit_json(folder / CONFIG, **kept)
    ours = read_tokenizer(folder, 259)
    assert (ours.add_bos, ours.bos_id) == (True, 256)
    assert ours.encode("Once")[0] == 256
    check_same(folder)


def test_several_tokens_in_front_are_refused(folder):
    path = folder / "tokenizer.json"
    written = json.loads(path.read_text())
    step = written["post_processor"]
    step["single"].insert(1, {"SpecialToken": {"id": TURN, "type_id": 0}})
    step["special_tokens"][TURN] = {"id": TURN, "ids": [258], "tokens": [TURN]}
    path.write_text(json.dumps(written))
    with pytest.raises(ValueError, match=r"puts 2 tokens in front of a text \('<\|bos\|>', '<\|tu"):
        read_tokenizer(folder, 259)


def test_templates_know_all_special_tokens(folder):
    template = "{{unk_token}}|{{pad_token}}|{{bos_token}}|{{messages[0].content}}{{sep_token}}"
    edit_json(folder / CONFIG, unk_token=TURN, pad_token=EOS, chat_template=template)
    assert rendered(folder) == [f"{TURN}|{EOS}|{BOS}|hi"] * 2


def test_of_several_templates_the_default_is_taken(folder):
    named = [
        {"name": "tool_use", "template": "tools"},
        {"name": "default", "template": "{{messages[0].content}}!"},
    ]
    edit_json(folder / CONFIG, chat_template=named)
    assert rendered(folder) == ["hi!"] * 2


def test_a_template_beside_additional_ones_is_the_default(folder):
    (folder / "chat_template.jinja").write_text("{{messages[0].content}}?")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    assert rendered(folder) == ["hi?"] * 2


def rendered(folder) -> list[str]:
    """Render a message by a folder's template, here and in transformers."""
    messages = [{"role": "user", "content": "hi"}]
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    own = read_tokenizer(folder, 259)
    return [own.render_chat(messages), theirs.apply_chat_template(messages, tokenize=False)]


def test_a_token_beyond_the_model_is_none(folder):
    edit_json(folder / CONFIG, pad_token="<|pad|>")
    assert 259 in transformers.AutoTokenizer.from_pretrained(folder).encode("a<|pad|>")
    assert max(read_tokenizer(folder, 259).encode("a<|pad|>")) == 256


def test_a_wrong_generation_config_is_what_is_blamed(folder):
    (folder / "generation_config.json").write_text('{"eos_token_id": 257.0}')
    with pytest.raises(ValueError, match=r"^[^:]*generation_config.json has eos_token_id=257.0"):
        read_tokenizer(folder)
