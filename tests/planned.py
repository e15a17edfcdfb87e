"""A tiny model and a small workload that plans are tested with."""

import jax.numpy as jnp

from jaxedit.plan.models import abstract_model, read_decoder_config
from jaxedit.plan.phases import PHASES, Phase
from jaxedit.plan.workload import Workload

SIZES = dict(
    model_type="llama",
    hidden_size=256,
    intermediate_size=512,
    num_attention_heads=8,
    num_key_value_heads=4,
    num_hidden_layers=6,
    max_position_embeddings=256,
    rms_norm_eps=1e-5,
    vocab_size=1024,
)
WORK = Workload(layers=(2, 3), n_requests=20, n_templates=3, v_num_grad_steps=4, row_tokens=128)


def phase_called(name: str) -> Phase:
    return next(phase for phase in PHASES if phase.name == name)


def tiny_model(mesh, directory: str, dtype=jnp.bfloat16):
    return abstract_model(mesh, directory, read_decoder_config(directory), dtype, WORK.layers)
