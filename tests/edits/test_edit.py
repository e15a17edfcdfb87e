"""Edits against HF torch models with the change written into their weights; applying, undoing and
adding up, bit for bit.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

import jaxedit
from jaxedit import Dense, LowRank
from jaxedit.edits import edit as edit_module
from jaxedit.edits.edit import allocate_for, make_edit, replay_edits, to_dense
from jaxedit.models import layers

WEIGHT = "mlp/w_down"


def token_rows(model, rows: int = 2, length: int = 11) -> np.ndarray:
    return np.random.default_rng(3).integers(0, model.config.V, (rows, length))


def random_edit(
    model,
    seed: int,
    low_rank: dict[int, int] | None = None,
    dense: tuple[int, ...] = (),
    size: float = 0.3,
):
    """Normal random changes: `low_rank` is layer -> rank, `dense` the layers changed in full."""
    rng = np.random.default_rng(seed)
    _, F, D = model.base[WEIGHT].shape

    def draw(*shape):
        return (size * rng.standard_normal(shape)).astype(np.float32)

    deltas = [
        LowRank(WEIGHT, layer, draw(F, rank), draw(rank, D))
        for layer, rank in (low_rank or {}).items()
    ]
    return make_edit(model, [*deltas, *(Dense(WEIGHT, layer, draw(F, D)) for layer in dense)])


def three_edits(model):
    """Edits that meet in layer 2 and reach over layers 1 to 4, low-rank and dense."""
    return [
        random_edit(model, 1, low_rank={2: 1}),
        random_edit(model, 2, low_rank={1: 2, 2: 3}, dense=(4,)),
        random_edit(model, 3, low_rank={3: 1}, dense=(2,)),
    ]


def apply_all(model, edits):
    for edit in edits:
        model = jaxedit.apply(model, edit)
    return model


def logits(model) -> np.ndarray:
    return np.asarray(jaxedit.logits(model, token_rows(model)))


def layer_delta(model, layer: int) -> np.ndarray:
    """The overlay's change of a layer; zeros where it has no room for one."""
    slot = int(model.overlay.slot[WEIGHT][layer]) if WEIGHT in model.overlay.slot else -1
    return (
        np.asarray(model.overlay.delta[WEIGHT][slot])
        if slot >= 0
        else np.zeros(model.base[WEIGHT].shape[1:], np.float32)
    )


@pytest.fixture
def roomy(golden):
    """The golden llama with room for `three_edits`, so that few overlays' shapes are compiled."""
    model = golden("llama")
    for edit in three_edits(model):
        model = allocate_for(model, edit)
    return model


@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama", "llama, square"])
def test_logits_are_those_of_hf_with_the_change_written_into_its_weights(
    family, shared, golden, tiny_checkpoint
):
    if (
        family == "llama, square"
    ):  # a square weight hides a transposed change from every check of shapes
        directory = tiny_checkpoint("llama", intermediate_size=32, num_hidden_layers=5)
        model = jaxedit.load(str(directory))
    else:
        directory, model = shared / "golden" / family, golden(family)
    F, D = model.base[WEIGHT].shape[1:]
    edit = random_edit(model, 0, low_rank={1: 2, 3: 1}, dense=(2, 4), size=0.5)
    changes = edit.dense()
    assert len(changes) == 4

    hf = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.no_grad():
        before = hf(torch.as_tensor(token_rows(model))).logits.numpy()
        for name, change in changes.items():
            assert change.dtype == np.float32
            assert (
                change.shape
                == ((F, D) if family == "gpt2" else (D, F))
                == tuple(hf.get_parameter(name).shape)
            )
            hf.get_parameter(name).add_(torch.from_numpy(np.ascontiguousarray(change)))
        theirs = hf(torch.as_tensor(token_rows(model))).logits.numpy()
    assert np.abs(theirs - before).max() > 1  # the change is one that shows
    np.testing.assert_allclose(logits(jaxedit.apply(model, edit)), theirs, atol=1e-4, rtol=0)


def test_an_edits_norm_is_that_of_its_whole_change(golden):
    edit = three_edits(golden("llama"))[1]
    whole = np.concatenate([np.ravel(change) for change in edit.dense().values()]).astype(
        np.float64
    )
    assert whole.size == 3 * 112 * 48
    assert edit.norm == pytest.approx(np.linalg.norm(whole), rel=1e-6)


def test_applying_leaves_the_model_as_it_was(roomy):
    model = jaxedit.apply(roomy, three_edits(roomy)[0])
    before = [np.array(leaf) for leaf in jax.tree.leaves(model)]
    logits_before = logits(model)
    edited = apply_all(model, three_edits(model)[1:])
    assert all(np.array_equal(a, b) for a, b in zip(before, jax.tree.leaves(model), strict=True))
    assert np.array_equal(logits(model), logits_before)
    assert not np.array_equal(logits(edited), logits_before)
    assert all(edited.base[name] is model.base[name] for name in model.base)  # shared, not copied
    assert (len(model.metadata.history), len(edited.metadata.history)) == (1, 3)


def test_undo_gives_the_bits_of_a_model_that_never_had_the_edit(roomy):
    edits = three_edits(roomy)
    full = apply_all(roomy, edits)
    for gone in edits:
        kept = [edit for edit in edits if edit is not gone]
        undone, never = jaxedit.undo(full, gone), apply_all(roomy, kept)
        assert np.array_equal(undone.overlay.delta[WEIGHT], never.overlay.delta[WEIGHT])
        assert np.array_equal(undone.overlay.slot[WEIGHT], never.overlay.slot[WEIGHT])
        assert np.array_equal(logits(undone), logits(never))
        assert not np.array_equal(logits(undone), logits(full))
        assert list(undone.metadata.history) == kept


def test_undo_does_not_depend_on_when_room_was_made(golden):
    model, edits = golden("llama"), three_edits(golden("llama"))
    undone, never = (
        jaxedit.undo(apply_all(model, edits), edits[1]),
        apply_all(model, [edits[0], edits[2]]),
    )
    assert (
        undone.overlay.delta[WEIGHT].shape != never.overlay.delta[WEIGHT].shape
    )  # layers 1 and 4 keep their room
    for layer in range(model.config.L):
        assert np.array_equal(layer_delta(undone, layer), layer_delta(never, layer))
    assert np.array_equal(logits(undone), logits(never))


def test_undoing_every_edit_in_any_order_gives_the_unedited_model(golden):
    model, edits = golden("llama"), three_edits(golden("llama"))
    full = apply_all(model, edits)
    for order in itertools.permutations(edits):
        undone = full
        for edit in order:
            undone = jaxedit.undo(undone, edit)
        assert not np.any(undone.overlay.delta[WEIGHT])
        assert undone.metadata.history == ()
    assert np.array_equal(logits(undone), logits(model))


def test_rebuilding_sums_in_the_given_order(golden):
    model, edits = golden("llama"), three_edits(golden("llama"))
    full = apply_all(model, edits)
    assert np.array_equal(
        replay_edits(full, edits).overlay.delta[WEIGHT], full.overlay.delta[WEIGHT]
    )


def test_an_edit_that_the_model_does_not_have_cannot_be_undone(golden):
    model, edits = golden("llama"), three_edits(golden("llama"))
    edited = jaxedit.apply(model, edits[0])
    with pytest.raises(ValueError, match="does not have that edit; it has 1 edits"):
        jaxedit.undo(edited, edits[1])
    undone = jaxedit.undo(edited, edits[0])
    for once_more in (undone, model):
        with pytest.raises(ValueError, match="does not have that edit; it has 0 edits"):
            jaxedit.undo(once_more, edits[0])


def test_another_models_edit_raises(golden):
    llama, gpt2 = golden("llama"), golden("gpt2")
    for edit in (random_edit(llama, 0, low_rank={1: 1}), random_edit(llama, 0, dense=(1,))):
        with pytest.raises(
            ValueError,
            match=r"\(112, 48\) matrix, this model's is \(192, 48\): another model's edit",
        ):
            jaxedit.apply(gpt2, edit)
    with pytest.raises(ValueError, match=r"layers \[6\] do not exist: .*llama has layers 0 to 5"):
        jaxedit.apply(llama, random_edit(llama, 0, low_rank={6: 1}))


def test_edits_of_one_layer_add_up(roomy):
    model = roomy
    edits = [
        random_edit(model, 1, low_rank={2: 2}),
        random_edit(model, 2, dense=(2,)),
        random_edit(model, 3, low_rank={2: 1}),
    ]
    edited = apply_all(model, edits)
    expected = sum(to_dense(edit.deltas[0]).astype(np.float64) for edit in edits)
    np.testing.assert_allclose(layer_delta(edited, 2), expected, atol=2e-6, rtol=0)
    written_out = make_edit(model, [Dense(WEIGHT, 2, expected)])
    np.testing.assert_allclose(
        logits(edited), logits(jaxedit.apply(model, written_out)), atol=1e-4, rtol=0
    )


def test_a_tiny_edit_of_a_bfloat16_model_is_kept_exactly(shared):
    model = jaxedit.load(str(shared / "golden" / "llama"), dtype="bfloat16")
    edit = random_edit(model, 0, low_rank={2: 1}, size=1e-4)
    change = to_dense(edit.deltas[0])
    base = np.asarray(model.base[WEIGHT][2])
    rounded = (base.astype(np.float32) + change).astype(base.dtype)
    assert base.dtype == jnp.bfloat16
    assert (
        np.mean(rounded == base) > 0.99
    )  # written into the weight, hardly anything of it would be left
    assert np.linalg.norm(change) > 0
    edited = jaxedit.apply(model, edit)
    assert edited.overlay.delta[WEIGHT].dtype == jnp.float32
    assert np.array_equal(layer_delta(edited, 2), change)
    assert np.array_equal(np.asarray(edited.base[WEIGHT][2]), base)
    many = apply_all(model, [edit] * 200)
    np.testing.assert_allclose(layer_delta(many, 2), 200.0 * change, rtol=1e-5)
    large = jaxedit.apply(edited, random_edit(model, 0, low_rank={2: 1}))
    assert (
        np.abs(logits(large) - logits(edited)).max() > 0.1
    )  # and the overlay counts where weights are bfloat16


def test_nothing_compiles_between_edits(roomy):
    edits = three_edits(roomy)
    model = apply_all(roomy, edits)
    logits(model)
    compiled = [
        f._cache_size() for f in (layers._logits, edit_module._add_low_rank, edit_module._add_dense)
    ]
    assert all(compiled)
    for seed in range(3):
        model = jaxedit.apply(
            model, random_edit(model, seed, low_rank={1: 2, 2: 3, 3: 1}, dense=(4, 2))
        )
        logits(model)
    logits(jaxedit.undo(model, edits[0]))
    assert [
        f._cache_size() for f in (layers._logits, edit_module._add_low_rank, edit_module._add_dense)
    ] == compiled
