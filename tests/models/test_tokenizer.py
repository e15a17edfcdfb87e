"""Tokenizer files are read as written; offsets find a subject's last and a target's first token."""

import io
import json
import shutil

import pytest
import sentencepiece
import tokenizers
import transformers
from tokenizers import decoders, models, pre_tokenizers, processors

from jaxedit.models.tokenizer import Tokenizer, first_token_after, last_token_of, read_tokenizer


@pytest.fixture(scope="module")
def gpt2(shared, tmp_path_factory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("gpt2")
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(shared / "tokenizers/gpt2" / name, directory)
    (directory / "config.json").write_text('{"model_type": "gpt2"}')
    return read_tokenizer(directory)


@pytest.fixture(scope="module")
def pieces_directory(tmp_path_factory):
    """Make a directory as Llama-2's, with a tokenizer.model: sentencepiece BPE with bytes."""
    directory = tmp_path_factory.mktemp("pieces")
    lines = [
        "The Eiffel Tower is located in the city of Paris",
        "The mother tongue of the author is French",
        "The capital of Italy is Rome, and the capital of France is Paris",
        "Beyoncé Knowles was born in Houston, Texas",
    ]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines * 5),
        model_writer=model,
        vocab_size=340,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (directory / "tokenizer.model").write_bytes(model.getvalue())
    (directory / "config.json").write_text('{"model_type": "llama"}')
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "legacy": False,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


@pytest.fixture(scope="module")
def pieces(pieces_directory) -> Tokenizer:
    return read_tokenizer(pieces_directory)


TEXTS = [
    "The Eiffel Tower is located in the city of",
    "Beyoncé's mother, in 1998!",
    "unseen: 東京 🙂",
    "  two  spaces",
    "",
]


def test_a_tokenizer_json_is_read_as_written(tiny_checkpoint):
    directory = tiny_checkpoint("llama")
    ours = read_tokenizer(directory)
    theirs = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    assert (ours.add_bos, ours.bos_id, ours.eos_id) == (False, 0, 0)
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text).ids
    text = "The Eiffel Tower is in Rome."
    ids, ends = ours.encode_with_ends(text)
    assert ours.decode(ids) == text
    assert "".join(text[start:end] for start, end in ends) == text


def test_vocabulary_and_merges_give_the_tokens_of_hf(shared, gpt2):
    theirs = transformers.GPT2Tokenizer.from_pretrained(shared / "tokenizers/gpt2")
    assert gpt2.encode("Hello world") == [15496, 995]
    for text in [*TEXTS, "a<|endoftext|>b"]:
        assert gpt2.encode(text) == theirs(text)["input_ids"]
        assert gpt2.decode(gpt2.encode(text)) == text
    assert (gpt2.add_bos, gpt2.bos_id, gpt2.eos_id) == (False, 50256, 50256)


def test_a_begin_of_text_token_is_added_where_asked_for(gpt2):
    assert gpt2.encode("Hello", bos=True) == [50256, 15496]
    assert gpt2.encode_with_ends("Hello", bos=True)[1] == [(0, 0), (0, 5)]


def test_many_texts_are_tokenised_as_each_is_and_cut(gpt2):
    found = gpt2.encode_many(["Hello", ""], bos=True)
    assert [tokens.tolist() for tokens in found] == [[50256, 15496], [50256]]
    assert gpt2.encode_many(["Hello world"], max_length=1)[0].tolist() == [15496]


def test_a_sentencepiece_model_gives_the_tokens_of_sentencepiece(pieces, pieces_directory):
    model_file = str(pieces_directory / "tokenizer.model")
    theirs = sentencepiece.SentencePieceProcessor(model_file=model_file)
    assert pieces.add_bos
    assert (pieces.bos_id, pieces.eos_id) == (theirs.bos_id(), theirs.eos_id()) == (1, 2)
    for text in TEXTS:
        assert pieces.encode(text, bos=False) == theirs.encode(text), text
        assert pieces.encode(text) == [1, *theirs.encode(text)]
        assert pieces.decode(pieces.encode(text, bos=False)) == text


def test_the_settings_say_whether_a_begin_of_text_token_is_added(pieces_directory, tmp_path):
    directory = shutil.copytree(pieces_directory, tmp_path / "no_bos")
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    settings["add_bos_token"] = False
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    without = read_tokenizer(directory)
    assert not without.add_bos
    assert without.bos_id == 1


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "tokenizer_class", ["GPT2Tokenizer", "PreTrainedTokenizerFast", "LlamaTokenizer", None]
)
def test_tokenizer_json_decides_not_the_class(tmp_path, tokenizer_class, model_type):
    """transformers 5 rebuilds GPT2Tokenizer from code and loses SmolLM2's splitting of digits."""
    written = byte_level(["1 2", "Ġ 1"], digits=True)
    written.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", 256)]
    )
    written.enable_truncation(2)
    written.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    settings = dict(bos_token="<|bos|>", eos_token="<|gone|>", tokenizer_class=tokenizer_class)
    given = {key: value for key, value in settings.items() if value is not None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(given))
    ours = read_tokenizer(tmp_path)
    assert [ours.decode([i]) for i in ours.encode("12 1212", bos=False)] == list("12 1212")
    assert ours.add_bos
    assert ours.encode("1") == [256, written.token_to_id("1")]
    # A token that the vocabulary lacks has no id: transformers would give it one that the model
    # lacks.
    assert (ours.bos_id, ours.eos_id) == (256, None)


def byte_level(
    merges: list[str], digits: bool = False, trim: bool | None = None
) -> tokenizers.Tokenizer:
    """Make a byte-level BPE of 256 bytes, `<|bos|>` (256) and these merges.

    Args:
      merges: pairs of tokens, each pair one text.
      digits: whether digits are split singly.
      trim: whether offsets leave out spaces, as RoBERTa's do; absent: as tokenizers gives them.
    """
    merged = [merge.replace(" ", "") for merge in merges]
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<|bos|>", *merged]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    pairs = [tuple(merge.split()) for merge in merges]
    made = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    steps = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False))
    made.pre_tokenizer = pre_tokenizers.Sequence(steps)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<|bos|>"])
    if trim is not None:
        made.post_processor = processors.ByteLevel(trim_offsets=trim)
    return made


@pytest.mark.parametrize("model_type", ["llama", "gpt2", None])
@pytest.mark.parametrize("tokenizer_class", ["GPT2Tokenizer", "LlamaTokenizer", None])
def test_a_directory_without_a_tokenizer_is_refused(tmp_path, tokenizer_class, model_type):
    if model_type:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    if tokenizer_class:
        settings = json.dumps({"tokenizer_class": tokenizer_class})
        (tmp_path / "tokenizer_config.json").write_text(settings)
    (tmp_path / "vocab.json").write_text("{}")  # without its merges
    message = r"no tokenizer in .*expected tokenizer.json or vocab.json with merges.txt or"
    with pytest.raises(ValueError, match=message):
        read_tokenizer(tmp_path)


def test_a_tokenizer_file_that_is_broken_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model"')
    with pytest.raises(ValueError, match="no usable tokenizer in"):
        read_tokenizer(tmp_path)


# Subjects and targets

SUBJECTS = [  # prompt, subject, the text of the subject's last token
    ("{} is located in", "The Eiffel Tower", " Tower"),
    ("The mother tongue of {} is", "Danielle Darrieux", "ux"),
    ("In {}, the", "Washington, D.C", "C"),
    ("{} is in", "Washington, D.C.", "."),
    ("{}'s mother", "Beyoncé Knowles", "les"),
    ("Who is {}?", "Beyoncé", "cé"),
    ("I like {}", "AC/DC", "DC"),
    ("{} is a city", "Łódź", "\N{REPLACEMENT CHARACTER}"),  # the second byte of ź
    ('"{}" was created by', "Yahoo!", '!"'),  # the subject's last token goes beyond it
    ("Why is {}n here?", "Steve", " Steven"),  # likewise
    ("{}", "Q", "Q"),
]


@pytest.mark.parametrize(("prompt", "subject", "last"), SUBJECTS)
@pytest.mark.parametrize("bos", [False, True])
def test_the_last_token_of_a_subject_is_found(gpt2, prompt, subject, last, bos):
    text = prompt.replace("{}", subject)
    end = prompt.index("{}") + len(subject)
    ids, offsets = gpt2.encode_with_ends(text, bos)
    at = last_token_of(offsets, end)
    assert gpt2.decode([ids[at]]) == last
    assert offsets[at][0] < end <= offsets[at][1]
    # The tokens up to there hold the whole subject, those before them do not.
    assert subject in gpt2.decode(ids[: at + 1])
    assert subject not in gpt2.decode(ids[:at])


def test_of_a_character_in_many_tokens_a_subject_ends_with_the_last(gpt2):
    """GPT-2 has no token for this character: every byte is one, all at the same offsets."""
    text = "The city of 𠮷 is"
    ids, offsets = gpt2.encode_with_ends(text)
    at = last_token_of(offsets, len("The city of 𠮷"))
    assert offsets[at] == offsets[at - 1] == offsets[at - 2]
    assert gpt2.decode(ids[: at + 1]) == "The city of 𠮷"
    assert gpt2.decode(ids[at + 1 :]) == " is"


def test_of_a_character_in_many_tokens_a_target_begins_with_the_first(gpt2):
    ids, offsets = gpt2.encode_with_ends("The city of 𠮷 is")
    first = first_token_after(offsets, len("The city of"))
    assert gpt2.decode(ids[:first]) == "The city of"
    assert gpt2.decode(ids[first:]) == " 𠮷 is"


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize(("prompt", "subject", "last"), SUBJECTS[:7])
def test_subjects_end_where_they_do_with_sentencepiece(pieces, prompt, subject, last, bos):
    text = prompt.replace("{}", subject)
    end = prompt.index("{}") + len(subject)
    ids, offsets = pieces.encode_with_ends(text, bos)
    at = last_token_of(offsets, end)
    assert pieces.decode(ids[int(bos) : at + 1]) == text[:end]


@pytest.mark.parametrize("bos", [False, True])
def test_targets_begin_where_they_do_with_sentencepiece(pieces, bos):
    ids, offsets = pieces.encode_with_ends("The capital of Italy is Rome", bos)
    first = first_token_after(offsets, len("The capital of Italy is"))
    assert pieces.decode(ids[first:]) == "Rome"


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize(
    ("prompt", "target"),
    [
        ("The capital of Italy is", " Rome"),
        ("I said:", ' "Ciao!"'),
        ("東京は", "日本"),
        ("He is", " Łukasz"),
        ("a", "\n\nb"),
    ],
)
def test_the_first_token_of_a_target_is_found(gpt2, prompt, target, bos):
    ids, offsets = gpt2.encode_with_ends(prompt + target, bos)
    at = first_token_after(offsets, len(prompt))
    assert gpt2.decode(ids[at:]) == target
    assert gpt2.decode(ids[int(bos) : at]) == prompt


@pytest.mark.parametrize("trim", [False, True])
def test_subjects_and_targets_are_found_with_and_without_a_tokens_space(trim):
    """Some tokenizer files cut the space off a token's offsets."""
    backend = byte_level(["Ġ T", "ĠT o", "Ġ i", "Ġi s"], trim=trim)
    tokenizer = Tokenizer(backend, False, None, None)
    text = "a To is"
    ids, offsets = tokenizer.encode_with_ends(text)
    assert [tokenizer.decode([i]) for i in ids] == ["a", " To", " is"]
    assert offsets == ([(0, 1), (2, 4), (5, 7)] if trim else [(0, 1), (1, 4), (4, 7)])
    assert last_token_of(offsets, len("a To")) == 1
    assert last_token_of(offsets, len("a")) == 0
    assert first_token_after(offsets, len("a To")) == 2
    assert first_token_after(offsets, len("a To ")) == 2
    assert first_token_after(offsets, 0) == 0


def test_a_subject_without_tokens_is_refused(tiny_checkpoint):
    tokenizer = read_tokenizer(tiny_checkpoint("llama"))
    with pytest.raises(ValueError, match=r"no token begins before character 2: .* for the subject"):
        last_token_of(tokenizer.encode_with_ends("東京")[1], 2)


def test_a_target_without_tokens_is_refused(tiny_checkpoint):
    tokenizer = read_tokenizer(tiny_checkpoint("llama"))
    with pytest.raises(ValueError, match=r"no token reaches beyond character 5: .* for the target"):
        first_token_after(tokenizer.encode_with_ends("He is東京")[1], 5)
