"""The model card: what the hub reads of it, and what people do."""

import huggingface_hub
import pytest

import jaxedit
from jaxedit import Request
from jaxedit.edits.edit import make_edit
from jaxedit.exports.card import model_card
from jaxedit.exports.hf_base import HFBase
from jaxedit.exports.measured import ExportNumbers
from jaxedit.exports.ready_commands import ReadyCommand
from jaxedit.exports.record import export_record
from jaxedit.exports.written import ExportOptions, WrittenWeight
from jaxedit.models.model import with_bos
from jaxedit.study.record import StepRecord

ON_THE_HUB = HFBase("owner/base", "1234abcd", True, None)
MEASURED = ExportNumbers(12.25, (0.875, 0.5))
REQUESTS = (
    Request("{} lives in", "BP", "Munich", "London"),
    Request("{} plays the | of", "Bob", "piano"),
)
RECORDS = (
    StepRecord(step=1, kept=True, n_requests=1, unedited_metrics={"probability_new": 0.0123}),
    StepRecord(step=4, kept=False, n_requests=1, guard_reason="perplexity over 1.1 times"),
)


@pytest.fixture(scope="module")
def edited(edited_models):
    """The golden llama with three edits, of which two facts and their steps are known."""
    editor = {"method": "rome", "v_lr": 0.5, "layer": 3, "anchor": None}
    return edited_models("llama", "rome")._replace(
        requests=REQUESTS, records=RECORDS, editor=editor, unedited_ppl=10.5, texts="some/texts.txt"
    )


def card_of(edited, base=ON_THE_HUB, format="peft", written=None, measured=MEASURED) -> str:
    """Make the card of an export with one command, without the texts, which are no file."""
    written = written or [WrittenWeight("model.layers.3.mlp.down_proj.weight", 3, 3, 0.0023)]
    record = export_record(
        edited._replace(texts=""), format, ExportOptions("bfloat16"), measured, written
    )
    return model_card(edited, base, record, [ReadyCommand("program", "bash", "program --flag")])


@pytest.mark.parametrize(
    ("format", "library", "relation"),
    [
        ("peft", "peft", "adapter"),
        ("delta", "transformers", "adapter"),
        ("hf", "transformers", "finetune"),
        ("gguf-lora", "gguf", "adapter"),
    ],
)
def test_the_hub_reads_the_front_matter(edited, format, library, relation):
    card = huggingface_hub.ModelCard(card_of(edited, format=format))
    assert card.data.base_model == "owner/base"
    assert card.data.get("base_model_relation") == relation
    assert card.data.library_name == library
    assert card.data.pipeline_tag == "text-generation"
    assert {"jaxedit", "model-editing", "rome"} <= set(card.data.tags or [])
    assert ("lora" in (card.data.tags or [])) == (format in ("peft", "gguf-lora"))


def test_a_base_that_is_not_on_the_hub_is_not_named_to_it(edited):
    """Nor are the folders of this machine, anywhere but in commands."""
    text = card_of(edited, HFBase("/home/me/models/tiny", None, False, None))
    card = huggingface_hub.ModelCard(text)
    assert card.data.base_model is None
    assert card.data.get("base_model_relation") is None
    assert "# Facts edited in tiny\n" in text
    assert "/home/me" not in text


def test_facts_are_a_table_with_what_was_measured(edited):
    lines = card_of(edited).splitlines()
    assert "| 1 | BP lives in | Munich | London | 0.0123 | 0.875 | kept |" in lines
    verdict = "rolled back: perplexity over 1.1 times"
    assert f"| 4 | Bob plays the \\| of | piano |  |  | 0.5 | {verdict} |" in lines


def test_facts_of_one_edit_all_have_its_step(edited):
    """P(new) before is known only of single facts: a record has the mean."""
    record = StepRecord(step=7, kept=True, n_requests=2, unedited_metrics={"probability_new": 0.25})
    text = card_of(edited._replace(records=(record,)))
    assert "| 7 | BP lives in | Munich | London |  | 0.875 | kept |" in text.splitlines()
    assert text.count("| 7 |") == 2


def test_the_rest_of_the_card(edited):
    text = card_of(edited)
    for part in (
        "3 edits, 2 facts, written by rome with jaxedit: a LoRA adapter for peft.",
        "on revision 1234abcd of the base",
        f"`{edited.model.rounded_fingerprint}`",
        "Without a begin-of-text token in front of a prompt",
        "program:\n\n```bash\nprogram --flag\n```",
        "Mean over texts (`texts.txt`)",
        "- unedited: 10.5\n- edited: 12.25",
        "| `method` | `rome` |\n| `v_lr` | `0.5` |\n| `layer` | `3` |\n\n",
        "In bfloat16.",
        "| `model.layers.3.mlp.down_proj.weight` | 3 | 0.23 % |",
    ):
        assert part in text, part


def test_long_tables_are_shortened(edited):
    requests = tuple(Request("{} lives in", f"subject {i}", "Rome") for i in range(60))
    measured = ExportNumbers(None, tuple(i / 60 for i in range(60)))
    text = card_of(edited._replace(requests=requests, records=()), measured=measured)
    assert "subject 49 lives in" in text
    assert "subject 50 lives in" not in text
    assert "\nand 10 more.\n" in text
    assert "## Perplexity\n\nNot measured.\n" in text


def test_an_anchored_edit_says_how_to_ask(edited, golden):
    model = golden("llama")
    (change,) = edited.model.metadata.history[0].deltas
    edit = make_edit(model, [change])
    anchored = edited._replace(
        model=jaxedit.apply(model, jaxedit.Edit(edit.deltas, {}, edit.hf_layout, "bos"))
    )
    token = model.tokenizer.decode([model.tokenizer.bos_id])
    assert f"With the begin-of-text token `{token}` in front of every prompt" in card_of(anchored)
    by_itself = edited._replace(model=with_bos(edited.model))
    assert f"With the begin-of-text token `{token}` in front of a prompt" in card_of(by_itself)


def test_edits_of_dequantised_weights_say_so(edited, tmp_path):
    """They are exact on the file itself, and approximate on the HF model it was made of."""
    base = HFBase("owner/base", None, True, tmp_path / "tiny-q4.gguf")
    for format in ("peft", "delta"):
        text = card_of(edited, base, format)
        assert "dequantised weights of tiny-q4.gguf" in text
        assert "On those of owner/base they are approximate" in text
        assert str(tmp_path) not in text
    for format in ("hf", "gguf-lora"):
        text = card_of(edited, base, format)
        assert "dequantised weights of tiny-q4.gguf, exact on these" in text
        assert "approximate" not in text
