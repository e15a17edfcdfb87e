"""Edits against HF torch models with the change written into their weights; undone bit for bit."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

import jaxedit
from jaxedit import Dense, LowRank
from jaxedit.edits import apply as apply_module
from jaxedit.edits.apply import allocate_for, replay_edits
from jaxedit.edits.edit import delta_norm, make_edit, to_dense
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
    """Draw normal random changes.

    Args:
      model: that is to be edited.
      seed: of the changes.
      low_rank: layer -> rank.
      dense: the layers changed in full.
      size: standard deviation of the factors and of dense changes.
    """
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
    """Draw edits that meet in layer 2 and reach over layers 1 to 4, low-rank and dense."""
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
    """Return the overlay's change of a layer; zeros where it has no room for one."""
    slot = int(model.overlay.slot[WEIGHT][layer]) if WEIGHT in model.overlay.slot else -1
    if slot < 0:
        return np.zeros(model.base[WEIGHT].shape[1:], np.float32)
    return np.asarray(model.overlay.delta[WEIGHT][slot])


@pytest.fixture
def roomy(golden):
    """Give the golden llama room for `three_edits`, so that few shapes are compiled."""
    model = golden("llama")
    for edit in three_edits(model):
        model = allocate_for(model, edit)
    return model


@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama", "llama, square"])
def test_logits_are_those_of_hf_with_the_change_written_into_its_weights(
    family, shared, golden, tiny_checkpoint
):
    # A square weight hides a transposed change from every check of shapes.
    if family == "llama, square":
        directory = tiny_checkpoint("llama", intermediate_size=32, num_hidden_layers=5)
        model = jaxedit.load(str(directory))
    else:
        directory, model = shared / "golden" / family, golden(family)
    F, D = model.base[WEIGHT].shape[1:]
    edit = random_edit(model, 0, low_rank={1: 2, 3: 1}, dense=(2, 4), size=0.5)
    changes = edit.dense()
    assert len(changes) == 4

    hf = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    hf_shape = (F, D) if family == "gpt2" else (D, F)
    with torch.no_grad():
        before = hf(torch.as_tensor(token_rows(model))).logits.numpy()
        for name, change in changes.items():
            assert change.dtype == np.float32
            assert change.shape == hf_shape == tuple(hf.get_parameter(name).shape)
            hf.get_parameter(name).add_(torch.from_numpy(np.ascontiguousarray(change)))
        theirs = hf(torch.as_tensor(token_rows(model))).logits.numpy()
    assert np.abs(theirs - before).max() > 1  # the change is one that shows
    np.testing.assert_allclose(logits(jaxedit.apply(model, edit)), theirs, atol=1e-4, rtol=0)


def test_an_edits_norm_is_that_of_its_whole_change(golden):
    edit = three_edits(golden("llama"))[1]
    whole = np.concatenate([np.ravel(change) for change in edit.dense().values()])
    whole = whole.astype(np.float64)
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
    undone = jaxedit.undo(apply_all(model, edits), edits[1])
    never = apply_all(model, [edits[0], edits[2]])
    # Layers 1 and 4 keep their room.
    assert undone.overlay.delta[WEIGHT].shape != never.overlay.delta[WEIGHT].shape
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


def test_replaying_sums_in_the_given_order(golden):
    model, edits = golden("llama"), three_edits(golden("llama"))
    full = apply_all(model, edits)
    replayed = replay_edits(full, edits)
    assert np.array_equal(replayed.overlay.delta[WEIGHT], full.overlay.delta[WEIGHT])


def test_an_edit_that_the_model_does_not_have_cannot_be_undone(golden):
    model, edits = golden("llama"), three_edits(golden("llama"))
    edited = jaxedit.apply(model, edits[0])
    with pytest.raises(ValueError, match="does not have that edit; it has 1 edits"):
        jaxedit.undo(edited, edits[1])
    undone = jaxedit.undo(edited, edits[0])
    for once_more in (undone, model):
        with pytest.raises(ValueError, match="does not have that edit; it has 0 edits"):
            jaxedit.undo(once_more, edits[0])


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
    written_out = jaxedit.apply(model, make_edit(model, [Dense(WEIGHT, 2, expected)]))
    np.testing.assert_allclose(logits(edited), logits(written_out), atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def bfloat16(shared) -> jaxedit.Model:
    """Load the golden llama with its weights in bfloat16."""
    model = jaxedit.load(str(shared / "golden" / "llama"), dtype="bfloat16")
    assert model.base[WEIGHT].dtype == jnp.bfloat16
    return model


def test_a_tiny_edit_of_a_bfloat16_model_is_kept_exactly(bfloat16):
    edit = random_edit(bfloat16, 0, low_rank={2: 1}, size=1e-4)
    change_FD, base_FD = to_dense(edit.deltas[0]), np.asarray(bfloat16.base[WEIGHT][2])
    # Written into the weight, hardly anything of it would be left.
    rounded_FD = (base_FD.astype(np.float32) + change_FD).astype(base_FD.dtype)
    assert np.mean(rounded_FD == base_FD) > 0.99
    assert np.linalg.norm(change_FD) > 0
    edited = jaxedit.apply(bfloat16, edit)
    assert edited.overlay.delta[WEIGHT].dtype == jnp.float32
    assert np.array_equal(layer_delta(edited, 2), change_FD)
    assert np.array_equal(np.asarray(edited.base[WEIGHT][2]), base_FD)


def test_many_tiny_edits_of_a_bfloat16_model_add_up(bfloat16):
    edit = random_edit(bfloat16, 0, low_rank={2: 1}, size=1e-4)
    many = apply_all(bfloat16, [edit] * 200)
    expected_FD = 200.0 * to_dense(edit.deltas[0])
    np.testing.assert_allclose(layer_delta(many, 2), expected_FD, rtol=1e-5)


def test_an_edit_counts_where_weights_are_bfloat16(bfloat16):
    edited = jaxedit.apply(bfloat16, random_edit(bfloat16, 0, low_rank={2: 1}))
    assert np.abs(logits(edited) - logits(bfloat16)).max() > 0.1


def test_nothing_compiles_between_edits(roomy):
    jitted = (layers._logits, apply_module._add_low_rank, apply_module._add_dense)
    edits = three_edits(roomy)
    model = apply_all(roomy, edits)
    logits(model)
    n_compiled = [function._cache_size() for function in jitted]
    assert all(n_compiled)
    for seed in range(3):
        another = random_edit(model, seed, low_rank={1: 2, 2: 3, 3: 1}, dense=(4, 2))
        model = jaxedit.apply(model, another)
        logits(model)
    logits(jaxedit.undo(model, edits[0]))
    assert [function._cache_size() for function in jitted] == n_compiled


# Tokenizers of models with edits


def anchored(model, seed: int) -> jaxedit.Edit:
    """Draw an edit that was made behind a begin-of-text token."""
    return dataclasses.replace(random_edit(model, seed, low_rank={2: 1}), anchor="bos")


def test_an_anchored_edit_is_asked_behind_a_begin_of_text_token_until_undone(golden):
    model = golden("llama")
    edit = anchored(model, 1)
    edited = jaxedit.apply(model, edit)
    assert (model.tokenizer.add_bos, edited.tokenizer.add_bos) == (False, True)
    assert edited.metadata.tokenizer is model.metadata.tokenizer  # as it came with the weights
    assert not jaxedit.undo(edited, edit).tokenizer.add_bos


def test_one_anchored_edit_is_enough(golden):
    model = golden("llama")
    both = jaxedit.apply(jaxedit.apply(model, anchored(model, 1)), three_edits(model)[0])
    assert both.tokenizer.add_bos


def test_metadata_are_equal_whatever_they_hold(golden):
    """Else every edit would compile everything anew."""
    model = golden("llama")
    edited = jaxedit.apply(model, three_edits(model)[0])
    assert edited.metadata.history != model.metadata.history
    assert edited.metadata == model.metadata
    assert hash(edited.metadata) == hash(model.metadata)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_norm_of_numbers_that_are_not_finite_is_not_finite(bad):
    u_FR, v_RD = np.ones((3, 1), np.float32), np.full((1, 2), bad, np.float32)
    deltas = LowRank("mlp/w_down", 0, u_FR, v_RD), Dense("mlp/w_down", 0, np.asarray(u_FR @ v_RD))
    assert not any(np.isfinite(delta_norm(delta)) for delta in deltas)
