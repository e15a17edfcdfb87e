"""Second moments are taken by the model that they were made of, however its prompts begin."""

import jaxedit
from jaxedit.models.model import with_bos

TEXTS = ["Once upon a time there was a little girl who lived in the forest."] * 3


def test_a_begin_of_text_token_before_requests_does_not_make_another_model(golden, tmp_path):
    """An editor with anchor="bos" puts one before its prompts; the corpus was read without."""
    model = golden("llama")
    stats = jaxedit.collect_stats(model, TEXTS, [3])
    stats.save(tmp_path / "stats.safetensors")
    stats = jaxedit.Stats.load(tmp_path / "stats.safetensors")
    assert stats.of(with_bos(model), 3).shape == (112, 112)

    # And those that were made behind one.
    behind = jaxedit.collect_stats(with_bos(model), TEXTS, [3])
    assert behind.of(model, 3).shape == (112, 112)
