"""Second moments against the golden ones and float64; their files, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference.distance import relative
from safetensors.numpy import save_file

import jaxedit
from jaxedit.models.layers import causal_attention, embed, run_layer, run_layers
from jaxedit.stats import collect
from jaxedit.stats.second_moments import Stats
from jaxedit.stats.spectra import compare_stats
from jaxedit.stats.sums import add_batch, total_of, zero_sums

FAMILIES = ("gpt2", "gptj", "llama", "qwen2", "gpt_neox")


@pytest.mark.parametrize("family", FAMILIES)
def test_moments_are_the_golden_ones(golden, golden_expected, texts, family):
    """All six layers in one pass.

    Texts are not cut there, though some are longer than the positions.
    """
    _, expected = golden_expected(family)
    stats = jaxedit.collect_stats(golden(family), texts(family), range(6), max_length=1000)
    assert stats.n_tokens == int(expected["mom2/n_tokens"])
    for layer in range(6):
        assert relative(stats.moments[layer], expected[f"mom2/{layer}"]) <= 1e-5


def test_one_pass_is_as_good_as_several(golden, texts):
    model = golden("gpt2")
    every = jaxedit.collect_stats(model, texts("gpt2"), [4, 1])
    assert list(every.moments) == [1, 4]
    for layer in (1, 4):
        alone = jaxedit.collect_stats(model, texts("gpt2"), [layer])
        assert relative(every.moments[layer], alone.moments[layer]) < 1e-6


def test_batches_do_not_change_the_result(golden, texts, monkeypatch):
    model = golden("gpt2")
    whole = jaxedit.collect_stats(model, texts("gpt2"), [3])
    monkeypatch.setattr(collect, "GROUP_TOKENS", 200)
    cut = jaxedit.collect_stats(model, texts("gpt2"), [3])
    assert cut.n_tokens == whole.n_tokens
    assert 0 < relative(cut.moments[3], whole.moments[3]) < 1e-6


@jax.jit
def keys_of_layer_3(model, token_BT):
    position_BT = jnp.broadcast_to(jnp.arange(token_BT.shape[1]), token_BT.shape)
    attn_context = causal_attention(position_BT)
    h_BTD = run_layers(model, embed(model, token_BT, position_BT), attn_context, 0, 3)
    return run_layer(model, h_BTD, attn_context, 3)[1].key_BTF


def test_neither_packing_nor_padding_nor_float32_sums_make_a_difference(golden, texts, monkeypatch):
    """To texts one by one, each padded to one length, whose keys are summed in float64."""
    monkeypatch.setattr(collect, "GROUP_TOKENS", 400)
    model = golden("gpt2")
    found = jaxedit.collect_stats(model, texts("gpt2"), [3])
    keys = []
    for text in texts("gpt2"):
        tokens = model.tokenizer.encode(text)
        key_BTF = keys_of_layer_3(model, np.array([tokens + [0] * (100 - len(tokens))]))
        keys.append(np.asarray(key_BTF[0, : len(tokens)], np.float64))
    key_QF = np.concatenate(keys)
    assert found.n_tokens == len(key_QF)
    assert relative(found.moments[3], key_QF.T @ key_QF / len(key_QF)) < 1e-6


def test_a_key_is_what_bfloat16_weights_multiply(shared):
    """Keys rounded to the weights' dtype, their products exact: to the float64 sum of these."""
    model = jaxedit.load(str(shared / "golden" / "gpt2"), dtype="bfloat16")
    token_BT = np.random.default_rng(0).integers(1, 200, size=(2, 64), dtype=np.int32)
    position_BT = np.broadcast_to(np.arange(64, dtype=np.int32), token_BT.shape)
    rows = (token_BT, position_BT, np.ones_like(token_BT))
    found = total_of(add_batch(model, *rows, np.array([3]), zero_sums(model, [3])), 0)
    key_BTF = keys_of_layer_3(model, token_BT)
    rounded_QF, exact_QF = (
        np.asarray(each_BTF, np.float64).reshape(128, -1)
        for each_BTF in (key_BTF.astype(model.dtype), key_BTF)
    )
    assert relative(found, rounded_QF.T @ rounded_QF) < 1e-6
    assert 1e-6 < relative(found, exact_QF.T @ exact_QF) < 1e-3


@pytest.mark.parametrize("n_data", [1, 4])
def test_batches_hold_every_token_once_and_little_else(n_data):
    rng = np.random.default_rng(0)
    sizes = [*rng.integers(5, 300, size=90), 437]
    token_lists = [rng.integers(1, 1000, size=size) for size in sizes]
    batches_G3BT = collect.pack_batches(token_lists, n_data)
    G, _, B, T = batches_G3BT.shape
    assert B % n_data == 0
    assert T >= 437
    assert B // n_data * T <= 2048
    token_GBT, position_GBT, segment_GBT = np.moveaxis(batches_G3BT, 1, 0)
    for i, tokens in enumerate(token_lists):
        here = segment_GBT == i + 1
        assert token_GBT[here].tolist() == tokens.tolist()
        assert position_GBT[here].tolist() == list(range(len(tokens)))
    assert np.sum(segment_GBT > 0) == sum(map(len, token_lists)) > 0.8 * G * B * T


@pytest.mark.parametrize("n_data", [1, 64])
def test_most_of_what_devices_compute_is_of_texts_however_many_there_are(n_data):
    token_lists = [np.full(1000, 7)] * 1100
    groups = collect.group_texts(token_lists, collect.GROUP_TOKENS * n_data)
    n_positions = sum(collect.pack_batches(group, n_data)[:, 0].size for group in groups)
    assert 0.8 * n_positions < 1_100_000


@pytest.fixture(scope="module")
def before_and_after(golden, texts) -> tuple[Stats, Stats]:
    """Collect second moments of the golden llama without and with an edit of layer 2."""
    model, rng = golden("llama"), np.random.default_rng(0)
    u_FR = rng.standard_normal((model.config.F, 1)).astype(np.float32)
    v_RD = rng.standard_normal((1, model.config.D)).astype(np.float32)
    edit = jaxedit.Edit((jaxedit.LowRank("mlp/w_down", 2, u_FR, v_RD),), {}, {})
    edited = jaxedit.apply(model, edit)
    before, after = (jaxedit.collect_stats(m, texts("llama"), [2, 3]) for m in (model, edited))
    return before, after


def test_an_edit_changes_the_keys_of_later_layers_only(before_and_after):
    """Its own layer's key comes before the weight that was edited."""
    before, after = before_and_after
    np.testing.assert_array_equal(after.moments[2], before.moments[2])
    assert relative(after.moments[3], before.moments[3]) > 0.01


def test_the_base_weights_and_the_number_of_edits_are_remembered(golden, before_and_after):
    before, after = before_and_after
    assert after.of(golden("llama"), 3) is after.moments[3]
    assert after.made_from["fingerprint"] == before.made_from["fingerprint"]
    assert (before.made_from["n_edits"], after.made_from["n_edits"]) == (0, 1)


def test_as_many_tokens_are_read_as_asked_for_in_the_order_of_the_seed(golden, texts):
    model = golden("gpt2")
    first = jaxedit.collect_stats(model, texts("gpt2"), [3], max_tokens=301)
    other = jaxedit.collect_stats(model, texts("gpt2"), [3], max_tokens=301, seed=1)
    assert first.n_tokens == other.n_tokens == 301
    assert relative(first.moments[3], other.moments[3]) > 0.01
    read = collect.shuffle_texts(texts("gpt2"), 1)[: other.made_from["n_texts_read"]]
    lengths = [len(model.tokenizer.encode(text)) for text in read]
    assert sum(lengths[:-1]) < 301 <= sum(lengths)
    assert other.made_from["n_texts"] == len(read) - lengths.count(0)


def test_texts_are_cut_at_the_length_asked_for(golden, texts):
    model = golden("gpt2")
    stats = jaxedit.collect_stats(model, texts("gpt2"), [3], max_length=7)
    lengths = [len(model.tokenizer.encode(text)) for text in texts("gpt2")]
    assert stats.n_tokens == sum(min(7, length) for length in lengths)


def test_a_file_keeps_moments_and_what_they_were_made_from(golden, texts, tmp_path):
    model = golden("llama")
    stats = jaxedit.collect_stats(model, texts("llama"), [2], corpus="golden", seed=3)
    stats.save(tmp_path / "new" / "stats.safetensors")
    again = Stats.load(tmp_path / "new" / "stats.safetensors")
    np.testing.assert_array_equal(again.moments[2], stats.moments[2])
    assert again.made_from == stats.made_from
    assert (again.n_tokens, again.digest) == (stats.n_tokens, stats.digest)
    assert again.made_from["fingerprint"] == model.fingerprint
    assert again.of(model, 2) is again.moments[2]


def test_moments_of_another_model_or_layer_are_refused(golden, texts, tiny_checkpoint):
    stats = jaxedit.collect_stats(golden("llama"), texts("llama"), [2])
    with pytest.raises(ValueError, match=r"are of layers \[2\], layer 3 is asked for"):
        stats.of(golden("llama"), 3)
    with pytest.raises(ValueError, match="112 wide, the model's MLP 192"):
        stats.of(golden("gpt2"), 2)
    like = jaxedit.load(str(tiny_checkpoint("llama", intermediate_size=112)))
    with pytest.raises(ValueError, match="made with other weights"):
        stats.of(like, 2)


def test_files_that_hold_no_second_moments_are_refused(tmp_path, golden, texts):
    path = tmp_path / "stats.safetensors"
    with pytest.raises(ValueError, match="there are no second moments at"):
        Stats.load(path)
    save_file({"weight": np.zeros((2, 2), np.float32)}, path)
    with pytest.raises(ValueError, match=r"holds \['weight'\], not second moments"):
        Stats.load(path)
    jaxedit.collect_stats(golden("llama"), texts("llama"), [2]).save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        Stats.load(path)


def test_samples_are_compared_by_distance_and_eigenvalues():
    rng = np.random.default_rng(0)
    scale = np.geomspace(1e-2, 1, 40)
    few, many = (rng.standard_normal((n, 40)) * scale for n in (80, 8000))
    small, large = (Stats.from_moments({1: x.T @ x / len(x)}, len(x)) for x in (few, many))
    found = compare_stats(small, large)[1]
    a, b = few.T @ few / 80, many.T @ many / 8000
    assert found["error"] == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(b), rel=1e-4)
    values = [np.linalg.eigvalsh(moment) for moment in (a, b)]
    tenths = [np.exp(np.log(x).reshape(10, 4).mean(axis=1)) for x in values]
    np.testing.assert_allclose(found["tenth_ratios"], tenths[0] / tenths[1], rtol=1e-4)
    assert found["tenth_ratios"][0] < 0.6  # few samples make the smallest eigenvalues too small
    assert (found["free_small"], found["free_large"]) == tuple(np.mean(x < 2e-2) for x in values)
    # The threshold lies deep among the small ones.
    assert found["free_small"] > found["free_large"] > 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(texts=[], layers=[1]), "at least one text"),
        (dict(texts=["a"], layers=[]), r"layers=\[\]"),
        (dict(texts=["a"], layers=[6]), r"layers=\[6\]: .* has layers 0 to 5"),
        (dict(texts=["a"], layers=3), "layers=3: expected a list of layers"),
        (dict(texts=["a"], layers="3"), r"layers=\['3'\]: .* has layers 0 to 5"),
        (dict(texts=["a"], layers=[3.0]), r"layers=\[3.0\]: .* has layers 0 to 5"),
        (dict(texts=["a"], layers=[True]), r"layers=\[True\]: .* has layers 0 to 5"),
        (dict(texts=["a"], layers=[10**30]), r"layers=\[1000+\]: .* has layers 0 to 5"),
        (dict(texts=[""], layers=[1]), "hold no token"),
        (dict(texts=["a"], layers=[1], max_tokens=0), "max_tokens=0: expected a whole number, 1"),
        (dict(texts=["a"], layers=[1], max_length=-3), "max_length=-3: expected a whole number, 1"),
        (
            dict(texts=["a b " * 200], layers=[1], max_length=300),
            r"a text of the corpus has 300 tokens, more than the 256",
        ),
    ],
)
def test_what_cannot_be_collected_is_refused(golden, given, message):
    with pytest.raises(ValueError, match=message):
        jaxedit.collect_stats(golden("gpt2"), **given)


def test_a_method_that_lacks_them_says_how_to_make_them(golden):
    settings = dict(layers=[2, 3], context_templates=[["{}"]], mom2_update_weight=1)
    editor = jaxedit.make_editor("memit", **settings)
    with pytest.raises(ValueError, match=r"needs second moments of layers \[2, 3\]: give stats="):
        editor.init(golden("gpt2"), None)
