"""GGUF files of the families that transformers reads as well, each by both.

Tensors are named by llama.cpp's own table, in the package `gguf`.
"""

import gguf
import numpy as np
import pytest
import torch
import transformers
from reference.models import (
    add_byte_level,
    assert_same_logits,
    finish,
    hf_greedy,
    hf_logits,
    hf_model,
    token_rows,
)
from tokenizers import Tokenizer

import jaxedit
from jaxedit.datasets import read_texts
from jaxedit.models.built_in import built_in_file

ARCHITECTURES = {
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "phi3": gguf.MODEL_ARCH.PHI3,
    "gemma3_text": gguf.MODEL_ARCH.GEMMA3,
}
# As llama.cpp's converter names how such models split texts.
PRE = {"qwen2": "qwen2", "qwen3": "qwen2", "phi3": "dbrx", "gemma3_text": "gpt-2"}
# What transformers takes for given where it reads a file; of six layers one has no window.
AS_TRANSFORMERS_READS = {
    "qwen3": dict(head_dim=128),
    "gemma3_text": dict(
        head_dim=256, query_pre_attn_scalar=256, num_hidden_layers=6, layer_types=None
    ),
}
TEXTS = [
    " The Eiffel Tower is located in the city of Paris, France",
    "  Zwei  Leerzeichen,\n\neine Zeile\t\tund naïve 日本語 😀 x**2",
    "Numbers 12345 and a<end_of_turn>b",
]


def write(path, directory, family: str, change=None):
    """Write a tiny checkpoint as llama.cpp's converter would; return the torch model.

    Args:
      path: the file.
      directory: the checkpoint.
      family: whose it is.
      change: called with the writer.
    """
    model = hf_model(directory)
    config, architecture = model.config, ARCHITECTURES[family]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    ropes = config.rope_parameters
    writer.add_rope_freq_base(ropes.get("full_attention", ropes)["rope_theta"])
    if family == "phi3":
        writer.add_rope_dimension_count(int(8 * ropes["partial_rotary_factor"]))
        writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
    elif getattr(config, "head_dim", None):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if family == "gemma3_text":
        writer.add_sliding_window(config.sliding_window)
    add_byte_level(writer, Tokenizer.from_file(str(directory / "tokenizer.json")), PRE[family])
    writer.add_pad_token_id(0)
    if change:
        change(writer)

    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = tensor.float().numpy()
        if family == "gemma3_text" and name.endswith("norm.weight"):
            array = array + 1  # as `Gemma3Model.modify_tensors` does
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), array)
    finish(writer)
    return model


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_a_file_is_the_model_it_was_made_of(tiny_checkpoint, tmp_path, family):
    directory = tiny_checkpoint(family, **AS_TRANSFORMERS_READS.get(family, {}))
    theirs = write(tmp_path / "tiny.gguf", directory, family)
    model = jaxedit.load(str(tmp_path / "tiny.gguf"))
    rows = token_rows(96, length=30)
    assert_same_logits(jaxedit.logits(model, rows), hf_logits(theirs, rows))
    assert model.config.family == family
    read = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="tiny.gguf", dtype=torch.float32
    ).eval()
    assert_same_logits(jaxedit.logits(model, rows), hf_logits(read, rows))


def test_longrope_is_read_from_two_tensors(tiny_checkpoint, tmp_path):
    factors = {"short_factor": [1.0, 1.5, 2.0, 4.0], "long_factor": [3.0, 4.0, 5.0, 6.0]}
    directory = tiny_checkpoint(
        "phi3",
        rope_parameters={"rope_type": "longrope", **factors},
        max_position_embeddings=96,
        original_max_position_embeddings=48,
    )

    def change(writer):
        writer.add_rope_scaling_attn_factors((1 + np.log(2) / np.log(48)) ** 0.5)
        for name in ("short", "long"):
            array = np.array(factors[f"{name}_factor"], np.float32)
            writer.add_tensor(f"rope_factors_{name}.weight", array)

    theirs = write(tmp_path / "tiny.gguf", directory, "phi3", change)
    model = jaxedit.load(str(tmp_path / "tiny.gguf"))
    assert model.config.rope.longest == 48
    rows = token_rows(96, length=40)
    assert_same_logits(jaxedit.logits(model, rows), hf_logits(theirs, rows))


def test_yarn_in_a_gguf_file_is_refused(tiny_checkpoint, tmp_path):
    def change(writer):
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(4.0)

    write(tmp_path / "tiny.gguf", tiny_checkpoint("qwen2"), "qwen2", change)
    with pytest.raises(ValueError, match=r"qwen2.rope.scaling.type='yarn'.*Hugging Face"):
        jaxedit.load(str(tmp_path / "tiny.gguf"))


@pytest.fixture(scope="module")
def gemma3():
    """Load Gemma 3 270M out of the packages of its parts."""
    return jaxedit.load("gemma3-270m")


@pytest.fixture(scope="module")
def theirs():
    """Load Gemma 3 270M and its tokenizer by transformers' own reader of GGUF files."""
    path = built_in_file("gemma3-270m")
    load = transformers.AutoModelForCausalLM.from_pretrained
    model = load(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    return model, tokenizer


@pytest.mark.gemma3
def test_gemma3_is_that_of_transformers(gemma3, theirs):
    model, tokenizer = theirs
    for text in TEXTS:
        tokens = gemma3.tokenizer.encode(text)
        assert tokens == tokenizer(text).input_ids
        assert tokens[0] == tokenizer.bos_token_id
        ours, expected = jaxedit.logits(gemma3, [tokens]), hf_logits(model, [tokens])
        assert_same_logits(ours, expected, atol=1e-3)


@pytest.mark.gemma3
def test_gemma3_goes_on_as_in_transformers(gemma3, theirs):
    prompt = "The Eiffel Tower is located in the city of"
    tokens = gemma3.tokenizer.encode(prompt)
    expected = gemma3.tokenizer.decode(hf_greedy(theirs[0], tokens, 12))
    assert jaxedit.generate(gemma3, [prompt], max_new_tokens=12) == [prompt + expected]


@pytest.mark.gemma3
@pytest.mark.parametrize("bos", [True, False])
def test_gemma3_scores_texts_as_transformers_does(gemma3, theirs, shared, bos):
    """The first of ME-PPL_50; of all fifty tests/README.md says what was found."""
    texts = read_texts(str(shared / "data" / "me-ppl" / "ME-PPL_50.json"))[:8]
    nlls = []
    for text in texts:
        token_1T = torch.tensor([gemma3.tokenizer.encode(text, bos=bos)])
        with torch.no_grad():
            logp_TV = torch.log_softmax(theirs[0](token_1T).logits[0, :-1].double(), -1)
        nlls.append(-logp_TV.gather(1, token_1T[0, 1:, None]).mean().item())
    expected = float(np.mean(np.exp(nlls)))
    assert jaxedit.perplexity(gemma3, texts, bos=bos).mean == pytest.approx(expected, rel=1e-3)


def test_a_gemma3_of_62_layers_scales_by_the_residual_streams_width(tiny_checkpoint, tmp_path):
    more = dict(num_hidden_layers=62, layer_types=None, query_pre_attn_scalar=8)
    write(tmp_path / "tiny.gguf", tiny_checkpoint("gemma3_text", **more), "gemma3_text")
    config = jaxedit.load(str(tmp_path / "tiny.gguf")).config
    assert config.attn_scale == pytest.approx((32 / 4) ** -0.5)
