"""GGUF files, written as llama.cpp's converter would, give the model of their HF origin.

Their tokenizers are in test_gguf_tokenizer.
"""

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Q
from reference.models import (
    add_byte_level,
    assert_same_logits,
    finish,
    gguf_tensors,
    hf_logits,
    hf_model,
    start_gguf,
    token_rows,
    write_gguf,
)
from tokenizers import Tokenizer

import jaxedit

LLAMA = dict(intermediate_size=64, num_key_value_heads=2)  # rows of 32 and 64: whole blocks of 32
KINDS = [Q.F32, Q.F16, Q.BF16, Q.Q8_0, Q.Q4_0, Q.Q4_1]


def assert_reads_as(path, model, length: int = 23) -> None:
    rows = token_rows(model.config.vocab_size, length=length)
    assert_same_logits(jaxedit.logits(jaxedit.load(str(path)), rows), hf_logits(model, rows))


@pytest.mark.parametrize("kind", KINDS, ids=[kind.name for kind in KINDS])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_every_quantisation_is_read(tiny_checkpoint, tmp_path, family, kind):
    directory = tiny_checkpoint(family, **(LLAMA if family == "llama" else {}))
    path = tmp_path / "tiny.gguf"
    model = write_gguf(path, directory, kind)
    assert_reads_as(path, model)
    stored = {tensor.tensor_type for tensor in gguf.GGUFReader(path).tensors}
    assert stored == {Q.F32, kind}
    if kind == Q.F32:
        rows = token_rows(96)
        assert_same_logits(hf_logits(model, rows), hf_logits(hf_model(directory), rows), atol=0)


@pytest.mark.parametrize("kind", [Q.Q4_K, Q.Q6_K], ids=["Q4_K", "Q6_K"])
def test_k_quants_are_read(tiny_checkpoint, tmp_path, kind):
    directory, path = tiny_checkpoint("llama", intermediate_size=256), tmp_path / "tiny.gguf"
    rng = np.random.default_rng(3)
    names = [f"blk.{layer}.ffn_down.weight" for layer in range(3)]
    model = write_gguf(
        path, directory, raw={n: (random_blocks(rng, 32, kind), kind) for n in names}
    )
    down = model.model.layers[0].mlp.down_proj.weight.detach().numpy()
    assert down.shape == (32, 256)
    assert 0.05 < down.std() < 5
    assert_reads_as(path, model)


def random_blocks(rng, n_blocks: int, kind: Q) -> np.ndarray:
    """Make rows of one block of 256 weights: random bits, but scales of a usual size."""
    size = gguf.GGML_QUANT_SIZES[kind][1]
    blocks = rng.integers(0, 256, (n_blocks, size), dtype=np.uint8)
    scale = np.frombuffer(np.float16(1e-3 if kind == Q.Q4_K else 2e-4).tobytes(), np.uint8)
    if kind == Q.Q4_K:  # super-block scale, super-block minimum, 6-bit scales, 4-bit weights
        blocks[:, 0:2], blocks[:, 2:4] = scale, scale
    else:  # low bits, high bits, 8-bit scales, super-block scale
        blocks[:, -2:] = scale
    return blocks


def test_a_tied_llama_with_narrow_heads_is_read(tiny_checkpoint, tmp_path):
    directory = tiny_checkpoint(
        "llama", tie_word_embeddings=True, num_key_value_heads=4, rope_theta=50.0, head_dim=12
    )
    path = tmp_path / "tiny.gguf"
    model = write_gguf(path, directory)
    assert "output.weight" not in {t.name for t in gguf.GGUFReader(path).tensors}
    assert_reads_as(path, model, length=48)


def test_biases_are_read_where_the_file_has_them(tiny_checkpoint, tmp_path):
    path = tmp_path / "tiny.gguf"
    assert_reads_as(path, write_gguf(path, tiny_checkpoint("llama", attention_bias=True)))


def test_llama3_scaling_is_read_from_rope_freqs(tiny_checkpoint, tmp_path):
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 40,
    }
    directory = tiny_checkpoint("llama", rope_scaling=scaling, rope_theta=30.0)
    path = tmp_path / "tiny.gguf"
    rotary = hf_model(directory).model.rotary_emb
    factors = (30.0 ** (-torch.arange(0, 8, 2) / 8) / rotary.inv_freq).numpy().astype(np.float32)
    assert factors.min() == pytest.approx(1, abs=1e-5)
    assert factors.max() > 4
    model = write_gguf(path, directory, extra={"rope_freqs.weight": factors})
    assert_reads_as(path, model, length=48)


def test_linear_scaling_is_read_from_metadata(tiny_checkpoint, tmp_path):
    directory = tiny_checkpoint("llama", rope_scaling={"rope_type": "linear", "factor": 3.0})
    path = tmp_path / "tiny.gguf"

    def change(writer):
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(3.0)

    assert_reads_as(path, write_gguf(path, directory, change=change), length=48)


def test_a_gpt2_with_a_copy_of_its_embedding_is_read(tiny_checkpoint, tmp_path):
    directory, path = tiny_checkpoint("gpt2", n_inner=40), tmp_path / "tiny.gguf"
    embedding = hf_model(directory).transformer.wte.weight.detach().numpy()
    assert_reads_as(path, write_gguf(path, directory, extra={"output.weight": embedding}))


def test_edits_are_named_as_in_hf(tiny_checkpoint, tmp_path):
    for family in ("gpt2", "llama"):
        directory, path = tiny_checkpoint(family), tmp_path / f"{family}.gguf"
        write_gguf(path, directory)
        ours, origin = (jaxedit.load(str(place)).metadata for place in (path, directory))
        assert ours.tensor_names == origin.tensor_names


# What is wrong with a file


@pytest.mark.parametrize("kept", [0.0, 0.0001, 0.01, 0.1, 0.7, 0.999])
def test_a_file_that_is_cut_short_is_refused(tiny_checkpoint, tmp_path, kept):
    path = tmp_path / "cut.gguf"
    write_gguf(path, tiny_checkpoint("llama"))
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(ValueError, match=r"cut.gguf \([\d,]+ bytes\) is not a whole GGUF file"):
        jaxedit.load(str(path))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bloom", "architecture 'bloom'; GGUF files are read for gemma3, gpt2, llama"),
        ("mamba", "m.gguf: model_type 'mamba' has layers of linear attention"),
        ("qwen35", "m.gguf: model_type 'qwen35' has layers of linear attention"),
        ("qwen3moe", "m.gguf: model_type 'qwen3moe' is a mixture of experts"),
    ],
)
def test_another_architecture_is_refused(tmp_path, name, message):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", name)
    writer.add_tensor("x", np.ones(4, np.float32))
    finish(writer)
    with pytest.raises(ValueError, match=message):
        jaxedit.load(str(tmp_path / "m.gguf"))


# What a writer is told besides or instead: method and argument, or a key that is taken out.
ADD, DROP = "add", "drop"
CHANGES = {
    "experts": (
        [(ADD, "expert_count", 8)],
        "mixture of experts.*a decoder that routes tokens and a rule .* would be needed",
    ),
    "yarn": (
        [
            (ADD, "rope_scaling_type", gguf.RopeScalingType.YARN),
            (ADD, "rope_scaling_factor", 4.0),
        ],
        "scaling.type='yarn', which is read of Hugging Face checkpoints only",
    ),
    "linear without a factor": (
        [(ADD, "rope_scaling_type", gguf.RopeScalingType.LINEAR)],
        r"'linear' has \['factor'\]",
    ),
    "values of another width": (
        [(ADD, "value_length", 16)],
        r"llama.attention.value_length=16; the decoder needs 8",
    ),
    "heads rotated in part": (
        [(DROP, "llama.rope.dimension_count"), (ADD, "rope_dimension_count", 4)],
        "dimension_count=4",
    ),
    "no layers": ([(DROP, "llama.block_count")], "has no 'llama.block_count' in its metadata"),
    "no tokens": (
        [(DROP, "tokenizer.ggml.tokens")],
        "has no 'tokenizer.ggml.tokens' in its metadata",
    ),
    "another pre-tokenizer": (
        [(DROP, "tokenizer.ggml.pre"), (ADD, "tokenizer_pre", "jais")],
        r"'jais' is not supported.*smollm",
    ),
    "another tokenizer": (
        [(DROP, "tokenizer.ggml.model"), (ADD, "tokenizer_model", "bert")],
        r"is 'bert'; supported: 'gpt2'",
    ),
    "another hidden width": (
        [(DROP, "llama.feed_forward_length"), (ADD, "feed_forward_length", 73)],
        r"ffn_gate.*\(72, 32\)",
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_metadata_the_decoder_cannot_follow_is_refused(tiny_checkpoint, tmp_path, case):
    steps, message = CHANGES[case]

    def change(writer):
        for kind, name, *value in steps:
            if kind == DROP:
                del writer.kv_data[0][name]
            else:
                getattr(writer, f"add_{name}")(*value)

    path = tmp_path / "tiny.gguf"
    write_gguf(path, tiny_checkpoint("llama"), change=change)
    with pytest.raises(ValueError, match=message):
        jaxedit.load(str(path))


def test_a_tensor_that_is_missing_is_named(tiny_checkpoint, tmp_path):
    path = tmp_path / "tiny.gguf"
    write_gguf(path, tiny_checkpoint("llama"), drop={"blk.1.ffn_up.weight"})
    with pytest.raises(ValueError, match=r"lacks 1 tensors.*blk.1.ffn_up.weight"):
        jaxedit.load(str(path))


def test_a_tensor_that_is_not_known_is_named(tiny_checkpoint, tmp_path):
    path = tmp_path / "tiny.gguf"
    extra = {"blk.0.ffn_down_exps.weight": np.ones((4, 4), np.float32)}
    write_gguf(path, tiny_checkpoint("llama"), extra=extra)
    with pytest.raises(ValueError, match=r"does not know: \['blk.0.ffn_down_exps.weight'\]"):
        jaxedit.load(str(path))


def test_a_quantisation_that_cannot_be_read_is_named(tiny_checkpoint, tmp_path):
    """Q8_K is an intermediate form, which the gguf package does not read."""
    directory, path = tiny_checkpoint("llama", intermediate_size=256), tmp_path / "tiny.gguf"
    model = hf_model(directory)
    writer = start_gguf(path, model.config)
    add_byte_level(writer, Tokenizer.from_file(str(directory / "tokenizer.json")))
    for name, array in gguf_tensors(model).values():
        if name == "blk.0.ffn_down.weight":
            data = np.zeros((32, gguf.GGML_QUANT_SIZES[Q.Q8_K][1]), np.uint8)
            writer.add_tensor(name, data, raw_dtype=Q.Q8_K)
        else:
            writer.add_tensor(name, array)
    finish(writer)
    with pytest.raises(ValueError, match=r"'blk.0.ffn_down.weight' is quantised as Q8_K"):
        jaxedit.load(str(path))
