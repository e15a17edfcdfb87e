"""The table of a journal: read back by the csv module and by pandas it holds the records."""

import csv
import dataclasses
import math

import pandas
import pytest
from journals import STEPS, baseline, measured, write_journal

from jaxedit.reports.csv_table import write_csv
from jaxedit.study.journal import read_journal

THIRD = 1 / 3
# A step that has what the others lack: lists, mappings of mappings, long numbers, nan, odd texts.
FULL = dataclasses.replace(
    measured(8, 'A "quoted", name', "two\nlines", 25 + THIRD, kl_nats=1e-17 * THIRD),
    continuation=" 12",
    prompt_continuations=["one", ", two"],
    retention={"1": {"probability_new": THIRD, "efficacy_accuracy": False}},
    optimisation={"loss": math.nan, "n_steps": 20},
)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A study's records and the file of them."""
    folder = tmp_path_factory.mktemp("table") / "run"
    write_journal(folder, [*STEPS, FULL], first=baseline(math.pi))
    return [step.record for step in read_journal(folder).steps], write_csv(folder)


def value_at(record, name: str):
    """What a record holds under a dotted name; None where there is nothing."""
    field, *keys = name.split(".")
    value = getattr(record, field)
    for key in keys:
        if isinstance(value, list):
            value = dict(enumerate(value)).get(int(key))
        else:
            value = None if value is None else value.get(key)
    return value


def names_within(value, name: str) -> set[str]:
    """The dotted names of what a value holds."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return set().union(*(names_within(inner, f"{name}.{key}") for key, inner in items))
    return {name}


def test_the_csv_module_reads_the_records_back(table):
    """Every value of every record is in its row, and every cell is a value of the record."""
    records, path = table
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(records) == 2 + len(STEPS)
    held = [
        set().union(*(names_within(value, name) for name, value in record.to_dict().items()))
        for record in records
    ]
    assert set(rows[0]) == set().union(*held)
    for record, row in zip(records, rows, strict=True):
        for name, cell in row.items():
            value = value_at(record, name)
            if isinstance(value, float) and math.isnan(value):
                assert cell == "nan"
            elif isinstance(value, float):
                assert float(cell) == value, name
            else:
                assert cell == ("" if value is None else str(value)), name


def test_pandas_reads_numbers_as_numbers(table):
    records, path = table
    frame = pandas.read_csv(path)
    expected = [record.perplexity["mean"] if record.perplexity else math.nan for record in records]
    assert frame["perplexity.mean"].tolist() == pytest.approx(expected, rel=1e-15, nan_ok=True)
    assert frame["step"].tolist() == list(range(9))
    assert frame["kl_nats"].iloc[-1] == pytest.approx(1e-17 * THIRD, rel=1e-15, abs=0)
    assert frame["retention.1.probability_new"].iloc[-1] == pytest.approx(THIRD, rel=1e-15)
    assert frame["prompt_continuations.1"].iloc[-1] == ", two"
    assert frame["target_new"].iloc[-1] == "two\nlines"
    assert frame["kept"].iloc[1:].tolist() == [record.kept for record in records[1:]]


def test_columns_are_in_the_order_of_a_record(table):
    records, path = table
    frame = pandas.read_csv(path)
    fields = [field.name for field in dataclasses.fields(records[0])]
    places = [fields.index(name.partition(".")[0]) for name in frame.columns]
    assert places == sorted(places)
    assert list(frame.columns[:2]) == ["kind", "step"]


def test_a_folder_that_is_no_study_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not a study's work directory"):
        write_csv(tmp_path)
    assert not list(tmp_path.iterdir())
