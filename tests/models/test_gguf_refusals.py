"""GGUF files whose header or metadata say what cannot be, or what the decoder does not compute."""

import logging
import struct
import time

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference.models import assert_same_logits, hf_logits, token_rows, write_gguf

import jaxedit


@pytest.fixture
def written(tiny_checkpoint, tmp_path):
    """Make a function: (change of the writer, architecture) -> a file."""

    def write(change=None, architecture: str = "llama", **given):
        path = tmp_path / "tiny.gguf"
        write_gguf(path, tiny_checkpoint(architecture), change=change, **given)
        return path

    return write


def exchanging(**values):
    """Make a change of a writer: (architecture's) keys with other values, None: taken out."""

    def change(writer):
        for name, value in values.items():
            key = name.replace("__", ".")
            writer.kv_data[0].pop(key, None)
            if value is not None:
                _add(writer, key, value)

    return change


def _add(writer, key: str, value) -> None:
    """Add a value as the type of GGUF that Python's is nearest to."""
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
    kinds |= {str: writer.add_string, list: writer.add_array}
    kinds[type(value)](key, value)


REFUSED = {
    "an unknown key": (dict(llama__logit_scale=0.5), r"unknown keys \['llama.logit_scale'\]"),
    "attention scaled": (dict(llama__attention__scale=0.1), "unknown keys"),
    "yarn's factor": (dict(llama__rope__scaling__attn_factor=0.5), r"attn_factor=0.5"),
    "not causal": (dict(llama__attention__causal=False), "causal=False; the decoder supports True"),
    "a string": (dict(llama__block_count="3"), 'block_count="3"; expected a whole number'),
    "a list": (dict(llama__attention__head_count=[4, 4, 2]), "head_count="),
    "no heads": (dict(llama__attention__head_count=0), "head_count=0"),
    "an odd number": (dict(llama__attention__head_count_kv=3), "4 query heads for 3"),
    "many layers": (dict(llama__block_count=2**31), "block_count=2147483648"),
    "layers that are not there": (dict(llama__block_count=9_999), "holds 30 tensors"),
    "a wide model": (dict(llama__embedding_length=2**31), "embedding_length=2147483648"),
    "no epsilon": (dict(llama__attention__layer_norm_rms_epsilon=float("nan")), "rms_epsilon="),
    "a base of none": (dict(llama__rope__freq_base=0.0), "freq_base=0.0"),
    "an unknown key of the tokenizer": (
        dict(tokenizer__ggml__normalizer__lowercase=True),
        r"unknown keys \['normalizer.lowercase'\]",
    ),
    "a token beyond them": (dict(tokenizer__ggml__bos_token_id=96), "bos_token_id=96; expected"),
    "types of some tokens": (dict(tokenizer__ggml__token_type=[1, 1]), "2 entries in .*token_type"),
    "tokens that are numbers": (dict(tokenizer__ggml__tokens=[1, 2]), "tokens=.* a list of str"),
    "merges of three": (dict(tokenizer__ggml__merges=["a b c"]), "'a b c' in tokenizer.ggml.merg"),
    "merges of nothing": (dict(tokenizer__ggml__merges=["qq zz"]), "no usable tokenizer: .*qq"),
    "an adapter": (dict(general__type="adapter"), "of type 'adapter'; a model is needed"),
    "a part": (dict(split__count=3), "one of 3 parts: .* llama-gguf-split --merge"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_metadata_that_cannot_be_or_is_not_computed_is_refused_by_name(written, case):
    values, message = REFUSED[case]
    path = written(exchanging(**values))
    begun = time.monotonic()
    with pytest.raises(ValueError, match=rf"tiny.gguf.*{message}"):
        jaxedit.load(path)
    assert time.monotonic() - begun < 5


def test_gpt2_refuses_unknown_keys_too(written):
    path = written(exchanging(gpt2__residual_scale=2.0), "gpt2")
    with pytest.raises(ValueError, match=r"unknown keys \['gpt2.residual_scale'\]"):
        jaxedit.load(path)


def test_keys_that_say_nothing_about_the_computation_load(written):
    notes = dict(general__name="x", quantize__imatrix__file="x", someone__note="x")
    inert = dict(llama__vocab_size=96, llama__rope__scaling__finetuned=True)
    plain = jaxedit.load(written())
    path = written(exchanging(**notes, **inert, tokenizer__ggml__eot_token_id=0))
    noted, rows = jaxedit.load(path), token_rows(96)
    assert noted.config == plain.config
    np.testing.assert_array_equal(jaxedit.logits(noted, rows), jaxedit.logits(plain, rows))


@pytest.mark.parametrize(
    ("keys", "factor"),
    [
        (dict(llama__rope__scale_linear=3.0), 3.0),  # before llama.cpp had types
        (dict(llama__rope__scaling__factor=3.0), 3.0),  # no type: linear, as in llama.cpp
        (dict(llama__rope__scaling__factor=0.0), None),
        (dict(llama__rope__scaling__type="none", llama__rope__scaling__factor=3.0), None),
    ],
)
def test_rotary_scaling_is_read_as_llama_cpp_does(tiny_checkpoint, tmp_path, keys, factor):
    scaling = {"rope_type": "linear", "factor": factor} if factor else {"rope_type": "default"}
    directory, path = tiny_checkpoint("llama", rope_scaling=scaling), tmp_path / "tiny.gguf"
    model = write_gguf(path, directory, change=exchanging(**keys))
    rows = token_rows(96, length=23)
    assert_same_logits(jaxedit.logits(jaxedit.load(path), rows), hf_logits(model, rows))


@pytest.mark.parametrize("pre", [None, "default"])
def test_a_pre_tokenizer_that_is_not_named_is_warned_of(written, caplog, pre):
    path = written(exchanging(tokenizer__ggml__pre=pre))
    with caplog.at_level(logging.WARNING, "jaxedit"):
        jaxedit.load(path)
    assert "names no pre-tokenizer (tokenizer.ggml.pre)" in caplog.text


def test_a_head_of_its_own_is_computed_with_as_in_llama_cpp(tiny_checkpoint, tmp_path):
    path = tmp_path / "tiny.gguf"
    model = write_gguf(path, tiny_checkpoint("gpt2", tie_word_embeddings=False))
    assert "output.weight" in {tensor.name for tensor in gguf.GGUFReader(path).tensors}
    rows = token_rows(96)
    assert_same_logits(jaxedit.logits(jaxedit.load(path), rows), hf_logits(model, rows))


LENGTHS = ["tokenizer.ggml.token_type", "tokenizer.ggml.tokens", "tokenizer.ggml.merges"]


@pytest.mark.parametrize("n", [2**31, 2**40, 2**63])
@pytest.mark.parametrize("key", LENGTHS)
def test_lengths_are_compared_with_the_bytes_that_are_left(written, key, n):
    path = written()
    content = bytearray(path.read_bytes())
    at = content.find(key.encode()) + len(key) + 8  # the types of array and entries
    content[at : at + 8] = struct.pack("<Q", n)
    path.write_bytes(content)
    assert_refused_at_once(path)


@pytest.mark.parametrize("at", [8, 16])
def test_counts_are_compared_with_the_bytes_that_are_left(written, at):
    path = written()
    content = bytearray(path.read_bytes())
    content[at : at + 8] = struct.pack("<Q", 2**40)
    path.write_bytes(content)
    assert_refused_at_once(path)


def assert_refused_at_once(path) -> None:
    begun = time.monotonic()
    with pytest.raises(ValueError, match=r"tiny.gguf \([\d,]+ bytes\) is not a whole GGUF file"):
        jaxedit.load(path)
    assert time.monotonic() - begun < 5


def test_a_file_of_the_other_byte_order_is_read(tiny_checkpoint, tmp_path):
    """The order of bytes is in the header; values and lengths follow it."""
    path = tmp_path / "big.gguf"
    writer = gguf.GGUFWriter(path, "llama", endianess=gguf.GGUFEndian.BIG)
    writer.add_tensor("x", np.ones(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match=r"big.gguf has no 'tokenizer.ggml.tokens'"):
        jaxedit.load(path)


@settings(
    derandomize=True,
    max_examples=60,
    deadline=5000,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    share=st.floats(0, 1),
    put=st.binary(max_size=8) | st.sampled_from([b"\xff" * 8, b"\xff\xff\xff\x7f", b"\0" * 8]),
    cut=st.integers(0, 9),
)
def test_any_bytes_in_a_header_are_read_or_refused_by_name(written, share, put, cut):
    path = written()
    content = path.read_bytes()
    at = int(share * content.find(b"blk.2.ffn_down"))
    path.write_bytes(content[:at] + put + content[at + cut :])
    message = path.name
    try:
        jaxedit.load(path)
    except ValueError as error:
        message = str(error)
    assert path.name in message
