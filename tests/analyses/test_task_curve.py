"""Tasks along a sequence: which models are evaluated, each once, twice more where a task falls."""

import pytest

from jaxedit.analyses import task_curve
from jaxedit.analyses.task_curve import measure_tasks
from jaxedit.study.loop import run_study

FACTS = [
    {"prompt": "{} lives in", "subject": subject, "target_new": "Paris"}
    for subject in ("BP", "Bob", "Ann", "Tim", "Una", "Max", "Eve", "Ian", "Kim")
]
TEXTS = ["The Eiffel Tower is in Paris.", " Once upon a time there was a little girl"]


@pytest.fixture(scope="module")
def folder(study_config, tmp_path_factory):
    hyper = dict(layer=3, context_templates=("{}",), v_num_grad_steps=1)
    config = study_config("rome", FACTS, TEXTS, hyper, guard=dict(action="keep"))
    return run_study(config, tmp_path_factory.mktemp("tasks") / "run")


@pytest.fixture
def evaluated(monkeypatch):
    """Replace the tasks: they fall once a model has more than five edits. List who was asked."""
    asked = []

    def evaluate_tasks(model, names, *, limit, task_path):
        n_edits = len(model.metadata.history)
        asked.append(n_edits)
        accuracy = 0.2 if n_edits > 5 else 0.7
        return {name: {"acc": accuracy, "acc_stderr": 0.03, "n": limit} for name in names}

    monkeypatch.setattr(task_curve, "evaluate_tasks", evaluate_tasks)
    return asked


def test_models_are_evaluated_once_and_more_often_where_a_task_falls(folder, evaluated):
    rows = measure_tasks(folder, ["one"], 3, limit=200)
    assert evaluated == [0, 3, 6, 9, 4, 5]
    assert [row["step"] for row in rows] == [0, 3, 4, 5, 6, 9]
    assert [row["tasks"]["one"]["acc"] for row in rows] == [0.7, 0.7, 0.7, 0.7, 0.2, 0.2]

    # again: from the file, also what an interrupted run had
    again = measure_tasks(folder, ["one"], 3, limit=200)
    assert (again, len(evaluated)) == (rows, 6)
    (folder / "signals.json").write_text("{", encoding="utf-8")
    measure_tasks(folder, ["one"], 9, limit=200)
    assert evaluated[6:] == [0, 9, 3, 6]

    with pytest.raises(ValueError, match="is of other tasks, items or texts"):
        measure_tasks(folder, ["other"], 3, limit=200)
