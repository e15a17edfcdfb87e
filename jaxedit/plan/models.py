"""Models without weights: published configurations as data, and a `Model` of abstract arrays.

The configurations are what config.json of each checkpoint says, read by the family's own reader. An
abstract array is a shape with a sharding (jax.ShapeDtypeStruct): a function lowered with such a
model compiles to what it compiles to with the weights."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import tokenizers
from jax.sharding import Mesh, NamedSharding

from jaxedit import axes
from jaxedit.editors import find_published, known_name
from jaxedit.edits.edit import EDITED_WEIGHT
from jaxedit.files import local_path, read_json
from jaxedit.mesh import parameter_sharding
from jaxedit.models import family
from jaxedit.models.config import DecoderConfig, replicate_kv_heads_for
from jaxedit.models.decoder import parameter_shapes
from jaxedit.models.model import Model, ModelMetadata
from jaxedit.models.ops import Overlay, Slots
from jaxedit.models.tokenizer import Tokenizer

_LLAMA = dict(model_type="llama", hidden_act="silu", rms_norm_eps=1e-5, tie_word_embeddings=False)
_LLAMA_3 = _LLAMA | dict(
    vocab_size=128256, rope_theta=500000.0, max_position_embeddings=8192, num_key_value_heads=8
)
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2-xl": dict(
        model_type="gpt2", n_embd=1600, n_head=25, n_layer=48, n_positions=1024, vocab_size=50257
    ),
    "gpt-j-6b": dict(
        model_type="gptj",
        n_embd=4096,
        n_head=16,
        n_layer=28,
        n_positions=2048,
        rotary_dim=64,
        vocab_size=50400,
    ),
    "llama-2-7b": _LLAMA
    | dict(
        hidden_size=4096,
        intermediate_size=11008,
        num_attention_heads=32,
        num_key_value_heads=32,
        num_hidden_layers=32,
        max_position_embeddings=4096,
        vocab_size=32000,
    ),
    "llama-3-8b": _LLAMA_3
    | dict(hidden_size=4096, intermediate_size=14336, num_attention_heads=32, num_hidden_layers=32),
    "llama-3-70b": _LLAMA_3
    | dict(hidden_size=8192, intermediate_size=28672, num_attention_heads=64, num_hidden_layers=80),
    "qwen2.5-72b": dict(
        model_type="qwen2",
        hidden_act="silu",
        hidden_size=8192,
        intermediate_size=29568,
        num_attention_heads=64,
        num_key_value_heads=8,
        num_hidden_layers=80,
        max_position_embeddings=131072,
        max_window_layers=80,
        sliding_window=131072,
        use_sliding_window=False,
        rms_norm_eps=1e-5,
        rope_theta=1000000.0,
        tie_word_embeddings=False,
        vocab_size=152064,
    ),
}


def read_decoder_config(name: str) -> DecoderConfig:
    """Read the configuration of a model known by name, or of a directory with a config.json.

    Raises:
      ValueError: where there is neither, or the decoder cannot compute the model.
    """
    path = local_path(name) / "config.json"
    values = CONFIGS.get(name)
    if values is None:
        if not path.is_file():
            raise ValueError(
                f"model {name!r}: expected one of {', '.join(CONFIGS)}, or a directory with a "
                "config.json"
            )
        values = read_json(path)
    return family.read_config(dict(values), path if name not in CONFIGS else name)


def edited_layers(config: DecoderConfig) -> tuple[int, ...]:
    """Return the layers that MEMIT was published with for a model of this family and size.

    Where none are published these are five from an eighth of the depth on, where most of the
    published ones lie."""
    known = known_name(config)
    if known is not None:
        return find_published(f"memit/{known}").hyper["layers"]
    first = config.L // 8
    return tuple(range(first, min(first + 4, config.L - 2) + 1))


def abstract_model(
    mesh: Mesh, name: str, config: DecoderConfig, dtype: jnp.dtype, layers: tuple[int, ...]
) -> Model:
    """Describe the model as it would lie on a mesh, with room for edits of `layers`.

    Args:
      mesh: of devices that need not be there.
      name: what the model is called in errors.
      config: its configuration.
      dtype: of the stored weights.
      layers: at least one, in ascending order.

    Raises:
      ValueError: on a layer that the model lacks, or that has no layer above.
    """
    outside = [layer for layer in layers if not 0 <= layer < config.L - 1]
    if outside or not layers:
        raise ValueError(
            f"layers {outside or 'none'} of {name}: a value needs a layer above; give some of 0 to "
            f"{config.L - 2}"
        )
    config = replicate_kv_heads_for(config, mesh.shape["model"])
    shapes = parameter_shapes(config)
    base = {key: abstract_parameter(mesh, key, shape, dtype) for key, shape in shapes.items()}
    delta_EFD = abstract_parameter(mesh, "EFD", (len(layers), config.F, config.D))
    slots = {layer: e for e, layer in enumerate(layers)}
    slot_L = Slots(slots.get(layer, -1) for layer in range(config.L))
    overlay = Overlay({EDITED_WEIGHT: delta_EFD}, {EDITED_WEIGHT: slot_L})
    no_tokenizer = Tokenizer(tokenizers.Tokenizer(tokenizers.models.BPE()), False, None, None)
    return Model(base, overlay, config, mesh, ModelMetadata(no_tokenizer, name, {}))


def abstract_parameter(mesh: Mesh, name: str, shape: tuple[int, ...], dtype=jnp.float32) -> Any:
    """Describe an array stored as `jaxedit.mesh.parameter_sharding` says."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=parameter_sharding(mesh, name, shape))


def abstract_activation(mesh: Mesh, letters: str, shape: tuple[int, ...], dtype=jnp.int32) -> Any:
    """Describe an array that `jaxedit.mesh.shard_batch` puts on the mesh."""
    spec = axes.partition(letters, shape, mesh.shape, axes.ACTIVATION_RULES)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))


def device_bytes(tree: Any) -> int:
    """Return what one device holds of a pytree of arrays."""
    return sum(
        math.prod(array.sharding.shard_shape(array.shape)) * jnp.dtype(array.dtype).itemsize
        for array in jax.tree.leaves(tree)
    )
