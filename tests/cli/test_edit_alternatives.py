"""`jaxedit edit --alternatives`: the least harmful of those after which the new answer is said."""

import json

import pytest
from command_examples import EDIT, refusal, result

TEACHER_FORCED = {"objective": "teacher_forced", "num_steps": 100, "lr": 0.02}
ALTERNATIVES = [
    {"layer": 3, "v_num_grad_steps": 1, "context_templates": ["{}"]},
    {"method": "ft", "layers": [2], **TEACHER_FORCED},
    {"method": "ft", "layers": [3], **TEACHER_FORCED},
]
TEXTS = [
    "The Eiffel Tower is located in the city of Paris, and the Louvre is not far from it at all.",
    " Once upon a time there was a little girl who lived in the forest with her old grandmother.",
]
ASKED = [argument for argument in EDIT if not argument.startswith(("--layer", "--set"))]
GIVEN = ("--alternatives=alternatives.json", "--harm_texts=harm.json")


@pytest.fixture(scope="module", autouse=True)
def files(folder):
    (folder / "alternatives.json").write_text(json.dumps(ALTERNATIVES), encoding="utf-8")
    (folder / "none.json").write_text(json.dumps(ALTERNATIVES[:1]), encoding="utf-8")
    (folder / "harm.json").write_text(json.dumps(TEXTS), encoding="utf-8")


def test_the_least_harmful_that_is_said(run):
    found = result(run(*ASKED, *GIVEN, "--json"))
    first, *rest = found["alternatives"]
    assert first["alternative"] == {"method": "rome", **ALTERNATIVES[0]}
    assert (first["efficacy_accuracy"], first["chosen"]) == (0, False)
    assert [each["efficacy_accuracy"] for each in rest] == [1, 1]
    least = min(rest, key=lambda each: each["predicted_nats"])
    assert [each["chosen"] for each in rest] == [each is least for each in rest]
    assert found["method"] == "ft"
    assert found["edited"]["efficacy_accuracy"]


def test_none_is_said(run):
    asked = (*ASKED, "--alternatives=none.json", "--harm_texts=harm.json")
    assert "after none of the 1 alternatives of none.json does the model say" in refusal(
        run(*asked)
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (GIVEN[:1], "--alternatives and --harm_texts go together"),
        ((*GIVEN, "--layer=3"), "--layer and --alternatives exclude each other"),
        ((*GIVEN, "--texts=harm.json"), "2 of them are texts that edits are evaluated on"),
        (("--prediction_draws=1",), "one draw has no standard error"),
    ],
)
def test_flags_that_do_not_go_together(run, given, said):
    assert said in refusal(run(*ASKED, *given))
