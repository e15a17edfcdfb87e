"""`jaxedit study --track`: what the trackers hold is what the journal says."""

from collections import Counter

import pytest
from command_examples import STUDY, refusal, result
from tracked_runs import READERS

from jaxedit.reports.tracking import scalars
from jaxedit.study.journal import read_journal


@pytest.fixture(scope="module", autouse=True)
def offline():
    """Have W&B write below the work directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        for name in ("WANDB_PROJECT", "WANDB_DIR"):
            patch.delenv(name, raising=False)
        yield


def test_a_study_that_goes_on_is_tracked_whole(run, folder):
    """One more fact is asked for; what the trackers say does not mix with the results."""
    tracked = [*STUDY, "--track=tensorboard,wandb", "--json"]
    result(run(*tracked, "--config.n_facts=1"))
    found = result(run(*tracked, "--config.n_facts=2"))
    assert [step["step"] for step in found["steps"]] == [1, 2]
    records = [step.record for step in read_journal(folder / "run").steps]
    expected = {(record.step, name): n for record in records for name, n in scalars(record).items()}
    assert expected[2, "perplexity/mean"] == records[2].perplexity["mean"]
    for tracker in ("tensorboard", "wandb"):
        tracked_run = READERS[tracker](folder / "run")
        assert Counter((s, n) for s, n, _ in tracked_run.values) == Counter(expected.keys())
        for step, name, value in tracked_run.values:
            assert value == pytest.approx(expected[step, name], rel=1e-6)
    assert len(tracked_run.ids) == 1
    assert tracked_run.config["editor"]["layer"] == 3
    assert tracked_run.config["n_facts"] == 2


def test_what_cannot_be_tracked_is_said_before_anything_is_made(run, folder):
    new = [*STUDY, "--workdir=new"]
    said = refusal(run(*new, "--track=tensorboard,wandbb"))
    assert said.startswith("unknown tracker 'wandbb'; did you mean 'wandb'?")
    said = refusal(run(*new, "--tensorboard"))
    assert said == "the flag --tensorboard is called --track=tensorboard now"
    assert not (folder / "new").exists()
