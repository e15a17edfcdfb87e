"""GGUF files, written as llama.cpp's converter would, give the same model and the same tokens as
their HF origins.
"""

import json

import gguf
import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType as Q
from reference.models import (
    add_byte_level,
    add_tensor,
    assert_same_logits,
    finish,
    gguf_tensors,
    hf_logits,
    hf_model,
    load_layout,
    start_gguf,
    token_rows,
)
from tokenizers import Tokenizer

import jaxedit
from jaxedit.models.gguf import tokenizer_from_metadata

LLAMA = dict(intermediate_size=64, num_key_value_heads=2)  # rows of 32 and 64: whole blocks of 32
KINDS = [Q.F32, Q.F16, Q.BF16, Q.Q8_0, Q.Q4_0, Q.Q4_1]


def write(path, directory, kind=Q.F32, raw=None, drop=(), extra=None, change=None):
    """Writes the tiny checkpoint as GGUF and returns the torch model with the weights a reader
    should find.

    `raw` gives some tensors as (bytes, kind); `drop` leaves tensors out, `extra` adds some;
    `change` gets the writer."""
    model = hf_model(directory)
    writer = start_gguf(path, model.config)
    add_byte_level(writer, Tokenizer.from_file(str(directory / "tokenizer.json")))
    if change:
        change(writer)
    for hf_name, (name, array) in gguf_tensors(model).items():
        if name in drop:
            continue
        if raw and name in raw:
            data, raw_kind = raw[name]
            writer.add_tensor(name, data, raw_dtype=raw_kind)
            load_layout(model, hf_name, gguf.quants.dequantize(data, raw_kind))
        else:
            load_layout(model, hf_name, add_tensor(writer, name, array, kind))
    for name, array in (extra or {}).items():
        writer.add_tensor(name, array)
    finish(writer)
    return model


def assert_reads_as(path, model, length: int = 23) -> None:
    rows = token_rows(model.config.vocab_size, length=length)
    assert_same_logits(jaxedit.logits(jaxedit.load(str(path)), rows), hf_logits(model, rows))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_every_quantisation(tiny_checkpoint, tmp_path, family, kind):
    directory, path = (
        tiny_checkpoint(family, **(LLAMA if family == "llama" else {})),
        tmp_path / "tiny.gguf",
    )
    model = write(path, directory, kind)
    assert_reads_as(path, model)
    stored = {t.tensor_type for t in gguf.GGUFReader(path).tensors}
    assert stored == {Q.F32, kind}
    if kind == Q.F32:
        rows = token_rows(96)
        assert_same_logits(hf_logits(model, rows), hf_logits(hf_model(directory), rows), atol=0)


@pytest.mark.parametrize("kind", [Q.Q4_K, Q.Q6_K], ids=lambda kind: kind.name)
def test_k_quants(tiny_checkpoint, tmp_path, kind):
    directory, path = tiny_checkpoint("llama", intermediate_size=256), tmp_path / "tiny.gguf"
    rng = np.random.default_rng(3)
    raw = {
        f"blk.{layer}.ffn_down.weight": (random_blocks(rng, 32, kind), kind) for layer in range(3)
    }
    model = write(path, directory, raw=raw)
    down = model.model.layers[0].mlp.down_proj.weight.detach().numpy()
    assert down.shape == (32, 256)
    assert 0.05 < down.std() < 5
    assert_reads_as(path, model)


def random_blocks(rng, n_blocks: int, kind: Q) -> np.ndarray:
    """Rows of one block of 256 weights: random bits, but scales that give weights of a usual size."""
    size = gguf.GGML_QUANT_SIZES[kind][1]
    blocks = rng.integers(0, 256, (n_blocks, size), dtype=np.uint8)
    scale = np.frombuffer(np.float16(1e-3 if kind == Q.Q4_K else 2e-4).tobytes(), np.uint8)
    if kind == Q.Q4_K:  # super-block scale, super-block minimum, 6-bit scales, 4-bit weights
        blocks[:, 0:2], blocks[:, 2:4] = scale, scale
    else:  # low bits, high bits, 8-bit scales, super-block scale
        blocks[:, -2:] = scale
    return blocks


def test_llama_variants(tiny_checkpoint, tmp_path):
    directory = tiny_checkpoint(
        "llama", tie_word_embeddings=True, num_key_value_heads=4, rope_theta=50.0, head_dim=12
    )
    path = tmp_path / "tiny.gguf"
    model = write(path, directory)
    assert "output.weight" not in {t.name for t in gguf.GGUFReader(path).tensors}
    assert_reads_as(path, model, length=48)


def test_llama_biases(tiny_checkpoint, tmp_path):
    path = tmp_path / "tiny.gguf"
    assert_reads_as(path, write(path, tiny_checkpoint("llama", attention_bias=True)))


def test_llama3_scaling_from_rope_freqs(tiny_checkpoint, tmp_path):
    scaling = dict(
        rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=40
    )  # fmt: skip
    directory, path = (
        tiny_checkpoint("llama", rope_scaling=scaling, rope_theta=30.0),
        tmp_path / "tiny.gguf",
    )
    rotary = hf_model(directory).model.rotary_emb
    factors = (30.0 ** (-torch.arange(0, 8, 2) / 8) / rotary.inv_freq).numpy().astype(np.float32)
    assert factors.min() == pytest.approx(1, abs=1e-5)
    assert factors.max() > 4
    model = write(path, directory, extra={"rope_freqs.weight": factors})
    assert_reads_as(path, model, length=48)


def test_linear_scaling_from_metadata(tiny_checkpoint, tmp_path):
    directory = tiny_checkpoint("llama", rope_scaling={"rope_type": "linear", "factor": 3.0})
    path = tmp_path / "tiny.gguf"

    def change(writer):
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(3.0)

    assert_reads_as(path, write(path, directory, change=change), length=48)


def test_gpt2_with_a_copy_of_its_embedding_and_another_width(tiny_checkpoint, tmp_path):
    directory, path = tiny_checkpoint("gpt2", n_inner=40), tmp_path / "tiny.gguf"
    embedding = hf_model(directory).transformer.wte.weight.detach().numpy()
    assert_reads_as(path, write(path, directory, extra={"output.weight": embedding}))


def test_edits_are_named_as_in_hf(tiny_checkpoint, tmp_path):
    for family in ("gpt2", "llama"):
        directory, path = tiny_checkpoint(family), tmp_path / f"{family}.gguf"
        write(path, directory)
        assert (
            jaxedit.load(str(path)).metadata.tensor_names
            == jaxedit.load(str(directory)).metadata.tensor_names
        )


# What is wrong with a file
# ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [0.0, 0.0001, 0.01, 0.1, 0.7, 0.999])
def test_truncated(tiny_checkpoint, tmp_path, kept):
    path = tmp_path / "cut.gguf"
    write(path, tiny_checkpoint("llama"))
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(ValueError, match=r"cut.gguf \([\d,]+ bytes\) is not a whole GGUF file"):
        jaxedit.load(str(path))


def test_unsupported_architecture(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "mamba")
    writer.add_tensor("x", np.ones(4, np.float32))
    finish(writer)
    with pytest.raises(
        ValueError, match=r"architecture 'mamba'; GGUF files are read for gpt2, llama"
    ):
        jaxedit.load(str(tmp_path / "m.gguf"))


_SCALING = gguf.RopeScalingType


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.add_expert_count(8), "mixture of experts"),
        (
            lambda w: w.add_rope_scaling_type(_SCALING.YARN) or w.add_rope_scaling_factor(4.0),
            "'yarn' is not supported",
        ),
        (lambda w: w.add_rope_scaling_type(_SCALING.LINEAR), r"'linear' has \['factor'\]"),
        (lambda w: w.add_value_length(16), r"llama.attention.value_length=16; the decoder needs 8"),
        (
            lambda w: (
                w.kv_data[0].pop("llama.rope.dimension_count") and w.add_rope_dimension_count(4)
            ),
            "dimension_count=4",
        ),
        (
            lambda w: w.kv_data[0].pop("llama.block_count"),
            "has no 'llama.block_count' in its metadata",
        ),
        (
            lambda w: w.kv_data[0].pop("tokenizer.ggml.tokens"),
            "has no 'tokenizer.ggml.tokens' in its metadata",
        ),
        (
            lambda w: w.kv_data[0].pop("tokenizer.ggml.pre") and w.add_tokenizer_pre("jais"),
            r"'jais' is not supported.*smollm",
        ),
        (
            lambda w: w.kv_data[0].pop("tokenizer.ggml.model") and w.add_tokenizer_model("bert"),
            r"is 'bert'; supported: 'gpt2'",
        ),
        (
            lambda w: (
                w.kv_data[0].pop("llama.feed_forward_length") and w.add_feed_forward_length(73)
            ),
            r"ffn_gate.*\(72, 32\)",
        ),
    ],
)
def test_metadata_the_decoder_cannot_follow(tiny_checkpoint, tmp_path, change, message):
    path = tmp_path / "tiny.gguf"
    write(path, tiny_checkpoint("llama"), change=change)
    with pytest.raises(ValueError, match=message):
        jaxedit.load(str(path))


def test_tensors_that_are_wrong(tiny_checkpoint, tmp_path):
    directory, path = tiny_checkpoint("llama", intermediate_size=256), tmp_path / "tiny.gguf"
    write(path, directory, drop={"blk.1.ffn_up.weight"})
    with pytest.raises(ValueError, match=r"lacks 1 tensors.*blk.1.ffn_up.weight"):
        jaxedit.load(str(path))
    write(path, directory, extra={"blk.0.ffn_down_exps.weight": np.ones((4, 4), np.float32)})
    with pytest.raises(ValueError, match=r"does not know: \['blk.0.ffn_down_exps.weight'\]"):
        jaxedit.load(str(path))
    writer_only = {
        "blk.0.ffn_down.weight": np.zeros((32, gguf.GGML_QUANT_SIZES[Q.Q8_K][1]), np.uint8)
    }
    model = hf_model(directory)
    writer = start_gguf(path, model.config)
    add_byte_level(writer, Tokenizer.from_file(str(directory / "tokenizer.json")))
    for name, array in gguf_tensors(model).values():
        if name in writer_only:
            writer.add_tensor(name, writer_only[name], raw_dtype=Q.Q8_K)
        else:
            writer.add_tensor(name, array)
    finish(writer)
    with pytest.raises(ValueError, match=r"'blk.0.ffn_down.weight' is quantised as Q8_K"):
        jaxedit.load(str(path))


# Tokenizers
# -------------------------------------------------------------------------------------------------------

TEXTS = [
    "The Eiffel Tower is located in the city of",
    " leading space, trailing space ",
    "I'll say: don't, she's, THEY'RE, we'd've",
    "1998 was 12345678 days; 3.14159, x2y33",
    "naïve café — 東京は日本の首都 🙂👩‍👩‍👧 Ελληνικά",
    "tabs\tand\n\nnewlines\r\n   and   spaces   \n ",
    "def f(x):\n    return x**2  # comment\n",
    "",
]


@pytest.fixture(scope="module")
def gpt2_metadata(shared) -> dict:
    """GPT-2's vocabulary as a GGUF file's metadata holds it."""
    vocabulary = json.loads((shared / "tokenizers/gpt2/vocab.json").read_text())
    tokens = sorted(vocabulary, key=vocabulary.get)
    merges = (shared / "tokenizers/gpt2/merges.txt").read_text().splitlines()[1:]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * 50256 + [3],
        "tokenizer.ggml.merges": [line for line in merges if line],
        "tokenizer.ggml.bos_token_id": 50256,
        "tokenizer.ggml.eos_token_id": 50256,
    }


def test_gpt2_tokenizer_equals_hf(shared, gpt2_metadata):
    ours = tokenizer_from_metadata(gpt2_metadata)
    theirs = transformers.GPT2Tokenizer.from_pretrained(shared / "tokenizers/gpt2")
    assert (ours.add_bos, ours.bos_id, ours.eos_id) == (False, 50256, 50256)
    assert len(ours.encode(TEXTS[0])) == 11
    for text in [*TEXTS, "one<|endoftext|>two"]:
        assert ours.encode(text) == theirs(text)["input_ids"], text
        assert ours.decode(ours.encode(text)) == text
    assert ours.encode("one<|endoftext|>two")[1] == 50256


def pieces(metadata: dict, text: str) -> list[str]:
    """What the text is split into before the merges."""
    backend = tokenizer_from_metadata(metadata).backend
    return [text[start:end] for _, (start, end) in backend.pre_tokenizer.pre_tokenize_str(text)]


def test_pre_tokenizers_split_as_the_models_do(gpt2_metadata):
    text = "I'LL pay 12345, don't!\n\n  ok"
    gpt2 = pieces(gpt2_metadata, text)
    assert gpt2 == ["I", "'", "LL", " pay", " 12345", ",", " don", "'t", "!", "\n\n ", " ok"]
    assert pieces({**gpt2_metadata, "tokenizer.ggml.pre": "default"}, text) == gpt2
    smollm = pieces({**gpt2_metadata, "tokenizer.ggml.pre": "smollm"}, text)
    assert smollm == [
        "I",
        "'",
        "LL",
        " pay",
        " ",
        "1",
        "2",
        "3",
        "4",
        "5",
        ",",
        " don",
        "'t",
        "!",
        "\n\n ",
        " ok",
    ]
    llama3 = pieces({**gpt2_metadata, "tokenizer.ggml.pre": "llama-bpe"}, text)
    assert llama3 == ["I", "'LL", " pay", " ", "123", "45", ",", " don", "'t", "!\n\n", " ", " ok"]


def test_llama3_takes_whole_words_and_adds_a_begin_token(gpt2_metadata):
    # A token that no merges lead to: Llama 3 looks words up before it merges.
    metadata = {
        **gpt2_metadata,
        "tokenizer.ggml.tokens": [*gpt2_metadata["tokenizer.ggml.tokens"], "Ġqzqzq"],
    }
    metadata["tokenizer.ggml.token_type"] = [*gpt2_metadata["tokenizer.ggml.token_type"], 1]
    assert 50257 not in tokenizer_from_metadata(metadata).encode("a qzqzq")
    llama3 = tokenizer_from_metadata({**metadata, "tokenizer.ggml.pre": "llama-bpe"})
    assert llama3.encode("a qzqzq") == [50256, 64, 50257]
    told = {**metadata, "tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.add_bos_token": False}
    assert tokenizer_from_metadata(told).encode("a qzqzq") == [64, 50257]


def test_begin_token_as_the_metadata_says(gpt2_metadata):
    told = tokenizer_from_metadata({**gpt2_metadata, "tokenizer.ggml.add_bos_token": True})
    assert told.encode("a") == [50256, 64]
    assert told.encode("a", bos=False) == [64]
    del gpt2_metadata["tokenizer.ggml.bos_token_id"]
    without = tokenizer_from_metadata({**gpt2_metadata, "tokenizer.ggml.add_bos_token": True})
    gpt2_metadata["tokenizer.ggml.bos_token_id"] = 50256
    assert without.encode("a") == [64]
    with pytest.raises(ValueError, match="has none"):
        without.encode("a", bos=True)


def test_tokenizer_of_a_file_equals_its_origin(tiny_checkpoint, tmp_path):
    directory, path = tiny_checkpoint("gpt2"), tmp_path / "tiny.gguf"
    write(path, directory)
    ours, origin = jaxedit.load(str(path)).tokenizer, jaxedit.load(str(directory)).tokenizer
    assert (
        (ours.add_bos, ours.bos_id, ours.eos_id)
        == (origin.add_bos, origin.bos_id, origin.eos_id)
        == (False, 0, 0)
    )
    for text in (
        "The Eiffel Tower is located in the city of Paris.",
        " 1998: (a) 'b'<|endoftext|>c",
        "",
    ):
        assert ours.encode_with_ends(text) == origin.encode_with_ends(text)
        assert ours.decode(ours.encode(text)) == text


@pytest.mark.smollm2
def test_smollm2_tokenizer(smollm2):
    tokenizer = smollm2.tokenizer
    assert (tokenizer.add_bos, tokenizer.bos_id, tokenizer.eos_id) == (False, 1, 2)
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    digits = [tokenizer.decode([token]) for token in tokenizer.encode("In 1998 x22")]
    assert digits == ["In", " ", "1", "9", "9", "8", " x", "2", "2"]
    assert tokenizer.encode("<|im_start|>user<|im_end|>")[0] == 1
    assert tokenizer.encode("<|im_start|>user<|im_end|>")[-1] == 2
    assert [tokenizer.decode([t]) for t in tokenizer.encode("The Eiffel Tower")][-1] == " Tower"
