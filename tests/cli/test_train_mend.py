"""`jaxedit train-mend`: a network is trained, and the editor takes it."""

import json

from command_examples import refusal, result

import jaxedit

FACTS = [
    {
        "prompt": prompt,
        "subject": subject,
        "target_new": target,
        "neighbours": [{"prompt": "The little girl lived in", "answer": "the forest"}],
    }
    for prompt, subject, target in (
        ("{} lives in", "Bob", "Munich"),
        ("{} is based in", "Sony", "London"),
        ("{} is located in the city of", "The Eiffel Tower", "Rome"),
        ("The mother tongue of {} is", "Danielle", "English"),
    )
]
TRAIN = (
    "train-mend",
    "--config=mend",
    "--set=model=tiny",
    '--set=facts=["with_neighbours.json"]',
    "--set=layers=[2,3]",
    "--set=rank=4",
    "--set=n_train=3",
    "--set=n_validate=1",
    "--set=accumulate_bs=3",
    "--set=val_interval=3",
    "--workdir=mend",
)


def test_a_network_is_trained_and_edits(run, folder, tiny):
    """A line a validation, on standard error; the same command goes on, with more edits."""
    (folder / "with_neighbours.json").write_text(json.dumps(FACTS), encoding="utf-8")
    done = run(*TRAIN, "--set=max_iters=3", "--json")
    found = result(done)
    (validation,) = found["validations"]
    assert validation["iteration"] == 3
    assert found["best"] == validation
    assert "loss" in done.stderr
    assert "drawdown" in done.stderr
    again = result(run(*TRAIN, "--set=max_iters=6", "--track=tensorboard", "--json"))
    assert again["validations"][0] == validation
    assert [each["iteration"] for each in again["validations"]] == [3, 6]
    written = json.loads((folder / "mend" / "training.json").read_text(encoding="utf-8"))
    assert written == again["validations"]

    tracked = json.loads((folder / "mend" / "tracked.json").read_text(encoding="utf-8"))
    assert tracked["tensorboard"]["next_step"] == 7

    path = str(folder / "mend" / "network.safetensors")
    editor = jaxedit.make_editor("mend", layers=[2, 3], network=path)
    assert {layer for _, layer in editor.init(tiny, None).layout.places} == {2, 3}
    said = refusal(run(*TRAIN, "--set=max_iters=9", "--set=rank=5"))
    assert "is of another training. rank: 4 there, 5 now" in said
