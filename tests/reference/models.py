"""HF torch models to compare with, and GGUF files of them as llama.cpp's converter writes them."""

from pathlib import Path

import gguf
import numpy as np
import torch
import transformers
from gguf import GGMLQuantizationType as Q
from tokenizers import Tokenizer


def hf_model(directory: Path, dtype: torch.dtype = torch.float32):
    """Load the HF torch model of a directory, ready to be evaluated."""
    return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()


def hf_logits(model, tokens_BT) -> np.ndarray:
    """float32 logits [B, T, V] of a torch model."""
    with torch.no_grad():
        return model(torch.as_tensor(np.asarray(tokens_BT))).logits.float().numpy()


def hf_greedy(model, tokens: list[int], n_new: int) -> list[int]:
    """Return the tokens that HF's own greedy generation adds to one row.

    It does not stop at an end-of-text token.
    """
    row = torch.tensor([tokens])
    model.generation_config.eos_token_id = None
    out = model.generate(
        row,
        attention_mask=torch.ones_like(row),
        max_new_tokens=n_new,
        do_sample=False,
        pad_token_id=0,
    )
    return out[0, len(tokens) :].tolist()


def token_rows(vocab_size: int, rows: int = 4, length: int = 23, seed: int = 0) -> np.ndarray:
    """Random token rows [rows, length]."""
    return np.random.default_rng(seed).integers(0, vocab_size, (rows, length))


def padded(token_lists: list[list[int]]) -> np.ndarray:
    """Pad token lists with zeros to one length, so that one program is compiled.

    What follows a text's end cannot change what stands before.
    """
    rows = np.zeros((len(token_lists), max(map(len, token_lists))), int)
    for row, tokens in zip(rows, token_lists, strict=True):
        row[: len(tokens)] = tokens
    return rows


def assert_same_logits(ours, theirs, atol: float = 1e-4) -> None:
    """Equal to an absolute tolerance, and of a size that makes the comparison mean something."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.5
    assert theirs.std(axis=-2).mean() > 0.2  # positions differ
    np.testing.assert_allclose(ours, theirs, atol=atol, rtol=0)


def permuted(weight: np.ndarray, n_heads: int) -> np.ndarray:
    """Turn rotary halves (HF) into neighbours, on rows of q and k weights or biases.

    As llama.cpp's `LlamaModel.permute` does.
    """
    return (
        weight.reshape(n_heads, 2, weight.shape[0] // n_heads // 2, *weight.shape[1:])
        .swapaxes(1, 2)
        .reshape(weight.shape)
    )


def unpermuted(weight: np.ndarray, n_heads: int) -> np.ndarray:
    """Turn rotary neighbours (llama.cpp, llama2.c) into halves (HF): the way back."""
    return (
        weight.reshape(n_heads, weight.shape[0] // n_heads // 2, 2, *weight.shape[1:])
        .swapaxes(1, 2)
        .reshape(weight.shape)
    )


_LLAMA = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_GPT2 = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
_ENDS = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm",
}


def gguf_name(hf_name: str) -> str:
    """llama.cpp's name of an HF tensor of a llama or gpt2 model."""
    stem, _, kind = hf_name.rpartition(".")
    if stem in _ENDS:
        return f"{_ENDS[stem]}.{kind}"
    part = stem.split(".")
    layer, rest = part[2], ".".join(part[3:])
    return f"blk.{layer}.{({**_LLAMA, **_GPT2})[rest]}.{kind}"


def gguf_tensors(model) -> dict[str, tuple[str, np.ndarray]]:
    """Return HF name -> (GGUF name, float32 array in llama.cpp's layout) of a torch model."""
    config, tensors = model.config, {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = tensor.detach().float().numpy()
        if config.model_type == "llama" and (".q_proj." in name or ".k_proj." in name):
            array = permuted(
                array,
                config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads,
            )
        elif config.model_type == "gpt2" and array.ndim == 2 and ".h." in name:
            array = array.T
        tensors[name] = (gguf_name(name), np.ascontiguousarray(array))
    return tensors


def load_layout(model, name: str, array: np.ndarray) -> None:
    """Write an array in llama.cpp's layout into the torch model: `gguf_tensors` backwards."""
    config = model.config
    if config.model_type == "llama" and (".q_proj." in name or ".k_proj." in name):
        array = unpermuted(
            array, config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
        )
    elif config.model_type == "gpt2" and array.ndim == 2 and ".h." in name:
        array = array.T
    with torch.no_grad():
        model.get_parameter(name).copy_(torch.from_numpy(np.array(array)))


def start_gguf(path: Path, config) -> gguf.GGUFWriter:
    """Make a writer with the architecture's metadata in it."""
    arch = config.model_type
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    if arch == "llama":
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
        writer.add_rope_dimension_count(config.head_dim)
        if config.head_dim * config.num_attention_heads != config.hidden_size:
            writer.add_key_length(config.head_dim)
            writer.add_value_length(config.head_dim)
    else:
        writer.add_feed_forward_length(config.n_inner or 4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    return writer


def add_byte_level(
    writer: gguf.GGUFWriter, backend, pre: str = "gpt-2", special: str = "<|endoftext|>"
) -> None:
    """Add a byte-level BPE of `tokenizers` as GGUF metadata."""
    import json

    model = json.loads(backend.to_str())["model"]
    tokens = [backend.id_to_token(i) for i in range(backend.get_vocab_size())]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(
        [gguf.TokenType.CONTROL if t == special else gguf.TokenType.NORMAL for t in tokens]
    )
    writer.add_token_merges(merges)
    writer.add_bos_token_id(tokens.index(special))
    writer.add_eos_token_id(tokens.index(special))


def add_tensor(
    writer: gguf.GGUFWriter, name: str, array: np.ndarray, kind: Q = Q.F32
) -> np.ndarray:
    """Add a tensor, matrices quantised as `kind`; return what a reader finds, in float32."""
    if kind == Q.F32 or array.ndim == 1:
        writer.add_tensor(name, array)
        return array
    raw = gguf.quants.quantize(array, kind)
    writer.add_tensor(name, raw, raw_dtype=kind)
    return gguf.quants.dequantize(raw, kind)


def finish(writer: gguf.GGUFWriter) -> None:
    """Write the file."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_gguf(path, directory, kind=Q.F32, raw=None, drop=(), extra=None, change=None):
    """Write the tiny checkpoint as GGUF; return the torch model a reader should find.

    Args:
      path: the file.
      directory: the checkpoint.
      kind: how matrices are quantised.
      raw: tensor -> (bytes, kind), of some that are given as they are to be.
      drop: tensors that are left out.
      extra: tensors that are added.
      change: called with the writer.
    """
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
