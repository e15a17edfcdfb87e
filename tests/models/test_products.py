"""In which precision layers multiply, forward and backward, and which layers ask for edits."""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxedit
from jaxedit.models.layers import causal_attention, embed, embedding_and_head, run_layers
from jaxedit.models.model import Model, allocate_deltas
from jaxedit.models.ops import Overlay, PerRowEdits, Slots, split_by_edits

TOKENS = np.array([[5, 9, 2, 7], [3, 8, 1, 4]], np.int32)


@pytest.fixture(scope="module", params=["gpt2", "gptj", "llama"])
def golden_path(request, shared) -> str:
    return str(shared / "golden" / request.param)


def equations(jaxpr) -> Iterator:
    """Yield all equations of a program, of those inside its loops and branches too."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def loss(model: Model, h_BTD, unrolled: bool = False) -> jax.Array:
    position_BT = jnp.broadcast_to(jnp.arange(TOKENS.shape[1]), TOKENS.shape)
    h_BTD = run_layers(
        model, h_BTD, causal_attention(position_BT), 1, model.config.L, unrolled=unrolled
    )
    logits_BTV = embedding_and_head(model).unembed(h_BTD)
    return jnp.sum(jax.nn.log_softmax(logits_BTV)[..., 0])


def residual(model: Model) -> jax.Array:
    return embed(model, TOKENS, np.broadcast_to(np.arange(TOKENS.shape[1]), TOKENS.shape))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("unrolled", [False, True])
def test_products_are_in_the_weights_dtype_both_ways(golden_path, dtype, unrolled):
    model = jaxedit.load(golden_path, dtype=dtype)
    gradient = jax.grad(lambda h_BTD: loss(model, h_BTD, unrolled))
    program = jax.make_jaxpr(gradient)(residual(model))
    dots = [each for each in equations(program.jaxpr) if each.primitive.name == "dot_general"]
    # Attention's products, of a batch of heads, are float32.
    heads = [each for each in dots if any(each.params["dimension_numbers"][1])]
    weights = [each for each in dots if each not in heads]
    assert len(weights) > 12
    assert heads
    assert {str(var.aval.dtype) for each in weights for var in each.invars} == {dtype}
    assert {str(var.aval.dtype) for each in heads for var in each.invars} == {"float32"}
    assert {str(each.outvars[0].aval.dtype) for each in dots} == {"float32"}


def test_the_gradient_is_near_that_of_float32_products(golden_path):
    """Of the same rounded weights: what is lost is in the activations alone."""
    model = jaxedit.load(golden_path, dtype="bfloat16")
    rounded = {name: array.astype(jnp.float32) for name, array in model.base.items()}
    exact, h_BTD = dataclasses.replace(model, base=rounded), residual(model)
    found, expected = jax.grad(loss, 1)(model, h_BTD), jax.grad(loss, 1)(exact, h_BTD)
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert 0 < error < 0.03


def test_unrolled_layers_are_the_same(golden_path):
    model = jaxedit.load(golden_path)
    with_gradient, h_BTD = jax.value_and_grad(loss, 1), residual(model)
    in_loop, unrolled = with_gradient(model, h_BTD), with_gradient(model, h_BTD, True)
    np.testing.assert_allclose(unrolled[0], in_loop[0], rtol=1e-5)
    np.testing.assert_allclose(unrolled[1], in_loop[1], rtol=1e-4, atol=1e-5)


def test_no_layer_asks_whether_it_is_edited(golden_path):
    model = allocate_deltas(jaxedit.load(golden_path), "mlp/w_down", (2,))
    assert model.overlay.slot["mlp/w_down"][2] == 0
    program = jax.make_jaxpr(jax.grad(lambda h: loss(model, h)))(residual(model))
    assert not [each for each in equations(program.jaxpr) if each.primitive.name == "cond"]


def test_edits_reach_their_layer_alone(golden_path):
    """As where the layers' slots are an array, and each layer asks."""
    model = allocate_deltas(jaxedit.load(golden_path), "mlp/w_down", (2, 3))
    rng = np.random.default_rng(0)
    shape = model.overlay.delta["mlp/w_down"].shape
    delta = {"mlp/w_down": jnp.asarray(rng.normal(0, 0.1, shape), jnp.float32)}
    values = []
    for slot_L in (
        model.overlay.slot["mlp/w_down"],
        jnp.array([*model.overlay.slot["mlp/w_down"]]),
    ):
        overlay = Overlay(delta, {"mlp/w_down": slot_L})
        values.append(loss(dataclasses.replace(model, overlay=overlay), residual(model)))
    assert abs(values[0] - loss(model, residual(model))) > 1e-2
    np.testing.assert_allclose(values[0], values[1], rtol=1e-6)


def test_layers_are_divided_where_edits_begin_or_end():
    up, down = jnp.zeros((1, 2, 3)), jnp.zeros((3, 3, 2))
    rows = PerRowEdits(jnp.zeros((1, 1, 2, 1)), jnp.zeros((1, 1, 1, 3)), Slots([-1] * 5 + [0]))
    overlay = Overlay(
        {"up": up, "down": down},
        {"up": Slots([-1, -1, -1, 0, -1, -1]), "down": Slots([-1, 0, 1, 2, -1, -1])},
        {"up": rows},
    )
    runs = split_by_edits(overlay, 0, 6)
    assert [(first, end) for first, end, _ in runs] == [(0, 1), (1, 3), (3, 4), (4, 5), (5, 6)]
    assert [sorted(part.delta) for _, _, part in runs] == [[], ["down"], ["down", "up"], [], []]
    assert [bool(part.rows) for _, _, part in runs] == [False] * 4 + [True]
    assert runs[1][2].slot["down"][1:3] == (0, 1)
    assert split_by_edits(overlay, 2, 2) == []
    (unknown,) = split_by_edits(Overlay({"up": up}, {"up": jnp.zeros(6, int)}), 1, 4)
    assert unknown[:2] == (1, 4)
