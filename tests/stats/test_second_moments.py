"""Second moments against the golden ones and float64; their files, and what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxedit
from jaxedit.models.layers import causal_attention, embed, run_layer, run_layers
from jaxedit.stats import collect
from jaxedit.stats.second_moments import Stats, compare_stats

FAMILIES = ("gpt2", "gptj", "llama", "qwen2", "gpt_neox")


@pytest.fixture(scope="module")
def texts(shared):
    """A function: family -> its golden texts."""
    return lambda family: json.loads(
        (shared / "golden" / family / "cases.json").read_text(encoding="utf-8")
    )["texts"]


def relative(found, expected) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("family", FAMILIES)
def test_golden_moments(golden, shared, texts, family):
    """All six layers in one pass, to 1e-5 relative; texts are not cut there, though some are longer
    than the positions.
    """
    expected = load_file(shared / "golden" / family / "expected.safetensors")
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
    attending = causal_attention(jnp.broadcast_to(jnp.arange(token_BT.shape[1]), token_BT.shape))
    h_BTD = run_layers(model, embed(model, token_BT, attending.position_BT), attending, 0, 3)
    return run_layer(model, h_BTD, attending, 3)[1]


def test_sums_against_float64(golden, texts, monkeypatch):
    """Texts one by one and summed in float64: neither packing nor padding nor float32 sums make a
    difference.
    """
    monkeypatch.setattr(collect, "GROUP_TOKENS", 400)
    model, some = golden("gpt2"), texts("gpt2")
    found = jaxedit.collect_stats(model, some, [3])
    key_NF = np.zeros((0, model.config.F))
    for (
        text
    ) in some:  # one a row, its end filled up to one length for all, which attention does not see
        tokens = model.tokenizer.encode(text)
        key_BTF = keys_of_layer_3(model, np.array([tokens + [0] * (100 - len(tokens))]))
        key_NF = np.concatenate([key_NF, np.asarray(key_BTF[0, : len(tokens)], np.float64)])
    assert found.n_tokens == len(key_NF)
    assert relative(found.moments[3], key_NF.T @ key_NF / len(key_NF)) < 1e-6


@pytest.mark.parametrize("n_data", [1, 4])
def test_batches_hold_every_token_once_and_little_else(n_data):
    rng = np.random.default_rng(0)
    token_lists = [
        list(rng.integers(1, 1000, size=size)) for size in [*rng.integers(5, 300, size=90), 437]
    ]
    batches_GCBT = collect._batches(token_lists, n_data)
    G, _, B, T = batches_GCBT.shape
    assert B % n_data == 0
    assert T >= 437
    assert B // n_data * T <= 2048
    token_GBT, position_GBT, segment_GBT = np.moveaxis(batches_GCBT, 1, 0)
    for i, tokens in enumerate(token_lists):
        here = segment_GBT == i + 1
        assert token_GBT[here].tolist() == tokens
        assert position_GBT[here].tolist() == list(range(len(tokens)))
    assert np.sum(segment_GBT > 0) == sum(map(len, token_lists)) > 0.8 * G * B * T


@pytest.mark.parametrize("n_data", [1, 64])
def test_every_device_has_work(n_data):
    """However many there are, most of what they compute with texts of one length is of a text."""
    token_lists = [[7] * 1000] * 1100
    batches = [
        collect._batches(group, n_data)
        for group in collect._groups(token_lists, collect.GROUP_TOKENS * n_data)
    ]
    assert 0.8 * sum(batch_GCBT[:, 0].size for batch_GCBT in batches) < 1_100_000


def test_edits_count_but_the_weights_below_them_are_remembered(golden, texts):
    model = golden("llama")
    generator = np.random.default_rng(0)
    delta = jaxedit.LowRank(
        "mlp/w_down",
        2,
        *(
            generator.standard_normal(shape).astype(np.float32)
            for shape in ((model.config.F, 1), (1, model.config.D))
        ),
    )
    edited = jaxedit.apply(model, jaxedit.Edit((delta,), {}, {}))
    before, after = (
        jaxedit.collect_stats(each, texts("llama"), [2, 3]) for each in (model, edited)
    )
    np.testing.assert_array_equal(
        after.moments[2], before.moments[2]
    )  # the key comes before the weight that was edited
    assert relative(after.moments[3], before.moments[3]) > 0.01
    assert after.of(model, 3) is after.moments[3]
    assert after.made_from["fingerprint"] == before.made_from["fingerprint"]
    assert (before.made_from["n_edits"], after.made_from["n_edits"]) == (0, 1)


def test_tokens_length_and_order(golden, texts):
    model = golden("gpt2")
    first = jaxedit.collect_stats(model, texts("gpt2"), [3], max_tokens=301)
    other = jaxedit.collect_stats(model, texts("gpt2"), [3], max_tokens=301, seed=1)
    assert first.n_tokens == other.n_tokens == 301
    assert relative(first.moments[3], other.moments[3]) > 0.01
    read = collect.shuffle_texts(texts("gpt2"), 1)[: other.made_from["n_texts_read"]]
    lengths = [len(model.tokenizer.encode(text)) for text in read]
    assert sum(lengths[:-1]) < 301 <= sum(lengths)
    assert other.made_from["n_texts"] == len(read) - lengths.count(0)
    short = jaxedit.collect_stats(model, texts("gpt2"), [3], max_length=7)
    assert short.n_tokens == sum(
        min(7, len(model.tokenizer.encode(text))) for text in texts("gpt2")
    )


def test_an_interrupted_pass_goes_on_to_the_same_bits(golden, texts, monkeypatch, tmp_path):
    monkeypatch.setattr(collect, "GROUP_TOKENS", 300)
    model, part = golden("gpt2"), tmp_path / "a" / "stats.part"
    whole = jaxedit.collect_stats(model, texts("gpt2"), [2, 3])

    def stop(done, total):
        if done > 500:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        jaxedit.collect_stats(model, texts("gpt2"), [2, 3], resume=part, on_tokens=stop)
    assert part.is_file()
    for change, message in (
        (dict(seed=1), "seed: 0 there, 1 now"),
        (dict(max_length=9), "max_length: 256 there, 9 now"),
    ):
        with pytest.raises(ValueError, match=message):
            jaxedit.collect_stats(model, texts("gpt2"), [2, 3], resume=part, **change)
    with pytest.raises(ValueError, match="layers:"):
        jaxedit.collect_stats(model, texts("gpt2"), [3], resume=part)
    with pytest.raises(ValueError, match="corpus_sha256: "):
        jaxedit.collect_stats(model, [*texts("gpt2"), "more"], [2, 3], resume=part)
    with pytest.raises(ValueError, match=r"fingerprint: .*; model: "):
        jaxedit.collect_stats(golden("gptj"), texts("gpt2"), [2, 3], resume=part)
    seen = []
    again = jaxedit.collect_stats(
        model, texts("gpt2"), [2, 3], resume=part, on_tokens=lambda done, total: seen.append(done)
    )
    assert seen[0] > 500  # it began where it was
    for layer in (2, 3):
        np.testing.assert_array_equal(again.moments[layer], whole.moments[layer])
    assert not part.exists()


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


def test_moments_of_another_model_or_layer_raise(golden, texts, tiny_checkpoint):
    stats = jaxedit.collect_stats(golden("llama"), texts("llama"), [2])
    with pytest.raises(ValueError, match=r"are of layers \[2\], layer 3 is asked for"):
        stats.of(golden("llama"), 3)
    with pytest.raises(ValueError, match="112 wide, the model's MLP 192"):
        stats.of(golden("gpt2"), 2)
    like = jaxedit.load(str(tiny_checkpoint("llama", intermediate_size=112)))
    with pytest.raises(ValueError, match="made with other weights"):
        stats.of(like, 2)


def test_files_that_are_something_else(tmp_path, golden, texts):
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


def test_comparing_samples():
    rng = np.random.default_rng(0)
    scale = np.geomspace(1e-2, 1, 40)
    draw = lambda n: rng.standard_normal((n, 40)) * scale  # noqa: E731
    few, many = draw(80), draw(8000)
    small, large = (Stats.from_moments({1: x.T @ x / len(x)}, len(x)) for x in (few, many))
    found = compare_stats(small, large)[1]
    a, b = few.T @ few / 80, many.T @ many / 8000
    assert found["error"] == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(b), rel=1e-4)
    values = [np.linalg.eigvalsh(moment) for moment in (a, b)]
    tenths = [np.exp(np.log(x).reshape(10, 4).mean(axis=1)) for x in values]
    np.testing.assert_allclose(found["tenth_ratios"], tenths[0] / tenths[1], rtol=1e-4)
    assert found["tenth_ratios"][0] < 0.6  # few samples make the smallest eigenvalues too small
    assert (found["free_small"], found["free_large"]) == tuple(np.mean(x < 2e-2) for x in values)
    assert (
        found["free_small"] > found["free_large"] > 0
    )  # the threshold lies deep among the small ones


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(texts=[], layers=[1]), "at least one text"),
        (dict(texts=["a"], layers=[]), r"layers=\[\]"),
        (dict(texts=["a"], layers=[6]), r"layers=\[6\]: .* has layers 0 to 5"),
        (dict(texts=[""], layers=[1]), "hold no token"),
        (dict(texts=["a"], layers=[1], max_tokens=0), "max_tokens=0: expected at least one"),
        (dict(texts=["a"], layers=[1], max_length=-3), "max_length=-3: expected at least one"),
        (
            dict(texts=["a b " * 200], layers=[1], max_length=300),
            r"a text of the corpus has 300 tokens, more than the 256",
        ),
    ],
)
def test_what_cannot_be_gathered(golden, given, message):
    with pytest.raises(ValueError, match=message):
        jaxedit.collect_stats(golden("gpt2"), **given)


def test_a_method_that_lacks_them_says_how_to_make_them(golden):
    editor = jaxedit.make_editor(
        "memit", layers=[2, 3], context_templates=[["{}"]], mom2_update_weight=1
    )
    with pytest.raises(ValueError, match=r"needs second moments of layers \[2, 3\]: give stats="):
        editor.init(golden("gpt2"), None)
