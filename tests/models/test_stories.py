"""stories260K, a real Llama with a sentencepiece vocabulary: logits, greedy text and tokens."""

import struct
from typing import NamedTuple

import gguf
import numpy as np
import pytest
import torch
import transformers
from reference.models import (
    add_tensor,
    assert_same_logits,
    finish,
    gguf_tensors,
    hf_greedy,
    hf_logits,
    start_gguf,
    token_rows,
    unpermuted,
)

import jaxedit
from jaxedit.models.generate import continue_tokens

TEXTS = [
    "Once upon a time, there was a little girl.",
    "  two  leading and    many spaces",
    "\"Don't!\" she said; he didn't.\nNew\tline",
    "naïve café — 東京 🙂 ½",
    "aaaaaaaaaa bbbb zzzz",
    "",
    " ",
    "unbelievablylongwordwithoutanyspaces",
]


class Stories(NamedTuple):
    """The llama2.c model in HF torch, by our GGUF loading and by our loading of an HF directory."""

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
    control = [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL]
    writer.add_token_types([*control, *[kinds.BYTE] * 256, *[kinds.NORMAL] * (512 - 259)])
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
    """Read a llama2.c file (version 0) as an HF torch model."""
    data = path.read_bytes()
    D, F, L, N, K, V, P = struct.unpack("<7i", data[:28])
    assert V > 0  # the head is the embedding
    H = D // N
    shapes = {
        "embed": (V, D),
        "rms_att": (L, D),
        "wq": (L, D, D),
        "wk": (L, K * H, D),
        "wv": (L, K * H, D),
        "wo": (L, D, D),
        "rms_ffn": (L, D),
        "w1": (L, F, D),
        "w2": (L, D, F),
        "w3": (L, F, D),
        "rms_final": (D,),
        "freq_real": (P, H // 2),
        "freq_imag": (P, H // 2),
    }
    values, arrays, at = np.frombuffer(data, np.float32, offset=28), {}, 0
    for name, shape in shapes.items():
        arrays[name] = values[at : at + np.prod(shape)].reshape(shape)
        at += int(np.prod(shape))
    assert at == values.size

    config = transformers.LlamaConfig(
        hidden_size=D,
        intermediate_size=F,
        num_hidden_layers=L,
        num_attention_heads=N,
        num_key_value_heads=K,
        vocab_size=V,
        max_position_embeddings=P,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    state = hf_state(arrays, {"wq": N, "wk": K})
    assert model.load_state_dict(state, strict=False).missing_keys in ([], ["lm_head.weight"])
    model.tie_weights()
    return model


def hf_state(arrays: dict[str, np.ndarray], heads: dict[str, int]) -> dict[str, torch.Tensor]:
    """Rename llama2.c's arrays to HF's; rotary neighbours in `heads` many heads become halves."""
    names = {
        "rms_att": "input_layernorm",
        "wq": "self_attn.q_proj",
        "wk": "self_attn.k_proj",
        "wv": "self_attn.v_proj",
        "wo": "self_attn.o_proj",
        "rms_ffn": "post_attention_layernorm",
        "w1": "mlp.gate_proj",
        "w2": "mlp.down_proj",
        "w3": "mlp.up_proj",
    }
    state = {"model.embed_tokens.weight": arrays["embed"], "model.norm.weight": arrays["rms_final"]}
    for name, place in names.items():
        for layer, array in enumerate(arrays[name]):
            array = unpermuted(array, heads[name]) if name in heads else array
            state[f"model.layers.{layer}.{place}.weight"] = array
    return {name: torch.from_numpy(np.array(array)) for name, array in state.items()}


def read_vocabulary(path) -> tuple[list[str], list[float]]:
    """Read a llama2.c tokenizer: pieces and scores.

    int32 longest, then for each token float32 score, int32 length, bytes.
    """
    data, at, pieces, scores = path.read_bytes(), 4, [], []
    while at < len(data):
        score, length = struct.unpack_from("<fi", data, at)
        pieces.append(data[at + 8 : at + 8 + length].decode())
        scores.append(score)
        at += 8 + length
    assert len(pieces) == 512
    return pieces, scores


def llama2c_encode(text: str, pieces: list[str], scores: list[float]) -> list[int]:
    """Tokenise as llama2.c's `encode` does.

    Characters (or their bytes), then again and again the neighbours whose union scores best.
    """
    index = {piece: i for i, piece in enumerate(pieces)}
    ids = [index[" "]] if text else []  # the dummy prefix
    for character in text:
        as_bytes = [byte + 3 for byte in character.encode()]
        ids += [index[character]] if character in index else as_bytes
    while True:
        best, best_at = -1e10, -1
        for at in range(len(ids) - 1):
            merged = index.get(pieces[ids[at]] + pieces[ids[at + 1]])
            if merged is not None and scores[merged] > best:
                best, best_at = scores[merged], at
        if best_at < 0:
            return ids
        ids[best_at : best_at + 2] = [index[pieces[ids[best_at]] + pieces[ids[best_at + 1]]]]


def test_logits_are_those_of_hf(stories):
    rows = token_rows(512, length=40)
    expected = hf_logits(stories.hf, rows)
    assert_same_logits(jaxedit.logits(stories.from_gguf, rows), expected)
    assert_same_logits(jaxedit.logits(stories.from_directory, rows), expected)


def test_greedy_text_is_that_of_hf_and_english(stories):
    tokenizer = stories.from_gguf.tokenizer
    assert (tokenizer.add_bos, tokenizer.bos_id, tokenizer.eos_id) == (True, 1, 2)
    prompt = "Once upon a time"
    start = tokenizer.encode(prompt)
    assert start == [1, *llama2c_encode(prompt, stories.pieces, stories.scores)]
    expected = hf_greedy(stories.hf, start, 40)
    ours = continue_tokens(stories.from_gguf, [start], max_new_tokens=40)[0]
    assert ours == expected
    text = tokenizer.decode(start[1:] + ours)
    story = "Once upon a time, there was a little girl named Lily. She loved to play outside"
    assert text.startswith(f"{story} in the park.")


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_are_those_of_llama2c(stories, text):
    ours = stories.from_gguf.tokenizer.encode(text, bos=False)
    assert ours == llama2c_encode(text, stories.pieces, stories.scores)
    assert stories.from_gguf.tokenizer.decode(ours) == text


def test_tokens_of_random_text_are_those_of_llama2c(stories):
    rng = np.random.default_rng(1)
    words = [piece for piece in stories.pieces[259:] if len(piece) > 1] + list("abeost  .,é")
    for _ in range(200):
        text = "".join(rng.choice(words, 12))
        expected = llama2c_encode(text, stories.pieces, stories.scores)
        assert stories.from_gguf.tokenizer.encode(text, bos=False) == expected, text
