"""The page: nothing is fetched, no fact is markup, a browser sorts, filters and draws it."""

import dataclasses
import html.parser
import json
import math
import shutil

import pytest
from journals import CONFIG, ERROR, NOT_POSSIBLE, ROWS, STEPS, baseline, measured, write_journal

from jaxedit.reports.html import prompt_continuations, table_cells, write_page
from jaxedit.reports.prediction import prediction_numbers
from jaxedit.reports.records import HEADER, edit_steps
from jaxedit.study.journal import read_journal

HOSTILE = "</script><script>document.title='taken'</script>"
PROMPTS = ["The capital of France is", HOSTILE]
BROWSERS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
SKIPPED = "skipped by the screening: predicted relative perturbation 0.346"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Write a study with every kind of step, prompts, retention, and a fact that is a script."""
    config = CONFIG | {"model": "tiny", "eval": {"prompts": PROMPTS}, "editor": {"method": "rome"}}
    steps = [*STEPS, measured(8, HOSTILE, HOSTILE, 26.0, continuation=HOSTILE)]
    held = {1: {"1": 0.99}, 5: {"1": 0.8, "5": 0.25}, 8: {"1": 0.75, "5": 0.2, "6": 0.7, "8": 0.9}}
    for i, step in enumerate(steps):
        if step.step in held:
            steps[i] = dataclasses.replace(
                step,
                retention={n: {"probability_new": p} for n, p in held[step.step].items()},
                prompt_continuations=[f" said {step.step}", HOSTILE],
            )
    first = baseline(prompt_continuations=[" Paris", " x"])
    folder = tmp_path_factory.mktemp("page") / "run"
    write_page(write_journal(folder, steps, config, first), folder / "report.html")
    return folder / "report.html"


class Parser(html.parser.HTMLParser):
    """Counts tags and gathers the addresses that a browser would fetch."""

    def __init__(self):
        super().__init__()
        self.tags, self.fetched = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.fetched += [
            value for name, value in attrs if name in ("src", "href", "srcset", "action")
        ]


@pytest.fixture(scope="module")
def parsed(page):
    parser = Parser()
    parser.feed(page.read_text(encoding="utf-8"))
    return parser


def test_nothing_is_fetched(parsed):
    assert not parsed.fetched


def test_facts_are_text(page, parsed):
    assert parsed.tags.count("tr") == 1 + 8 + 1 + 2 * 4  # edits and prompts with their headers
    assert "<script>document.title" not in page.read_text(encoding="utf-8")


def test_an_edit_that_was_not_made_says_why(page):
    text = page.read_text(encoding="utf-8")
    assert f'<div class="said">{ERROR}</div>' in text
    assert f'<div class="said">{SKIPPED}</div>' in text


def test_cells_of_the_table_and_what_they_are_sorted_by():
    row = table_cells(STEPS[1], single=False)
    assert [text for text, _ in row["cells"]] == ROWS[1]
    values = dict(zip(HEADER, (value for _, value in row["cells"]), strict=True))
    assert values == {
        "#": 2,
        "edit": None,
        "perplexity": 4321.5,
        "ratio": 4321.5 / 25,
        "P(new)": 0.9,
        "accuracy": 1.0,
        "|u·k|": 1.02,
        "outcome": None,
    }
    assert (row["outcome"], row["damaging"]) == ("rolled back", True)
    assert (row["before"], row["after"]) == (" Paris.", "|\n|-|\r\n[x]")
    assert row["reason"] == "perplexity 173 times"


@pytest.mark.parametrize(
    ("step", "outcome", "reason"),
    [(NOT_POSSIBLE, "not edited", ERROR), (STEPS[-1], "skipped", SKIPPED)],
)
def test_a_step_without_an_edit_has_its_reason_in_the_table(step, outcome, reason):
    row = table_cells(step, single=False)
    assert (row["outcome"], row["reason"], row["damaging"]) == (outcome, reason, False)
    assert (row["before"], row["after"]) == (None, None)


def test_prompts_with_what_is_said_to_them_after_which_edits(page):
    journal = read_journal(page.parent)
    said = prompt_continuations(journal, edit_steps(journal))
    assert said[0] == {
        "prompt": PROMPTS[0],
        "said": [(0, " Paris"), (1, " said 1"), (5, " said 5"), (8, " said 8")],
    }


def test_how_well_damage_was_predicted_is_on_the_page(tmp_path):
    """The table and the sentences of report.md."""
    steps = []
    for step, change in enumerate((-0.01, 0.002, 0.03, 2.0), 1):
        record = measured(step, f"{step}", "b", 25 * math.exp(change), kept=False)
        orders = {"mean_nats": change, "first_nats": change, "second_nats": 0.01}
        steps.append(dataclasses.replace(record, predicted_change=orders))
    config = CONFIG | {"mode": "single"}
    journal = write_journal(tmp_path / "run", steps, config)
    write_page(journal, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    found = prediction_numbers(steps)
    assert found is not None
    row = next(row for row in found.rows if row[0] == "predicted change of the loss")
    cells = "".join(f'<td class="number">{cell}</td>' for cell in row[1:])
    assert f"<td>{row[0]}</td>{cells}" in text
    for sentence in (*found.sentences, *found.calibration):
        assert f"<p>{sentence}</p>" in text
    assert found.calibration


def test_a_study_of_failures_has_a_page(tmp_path):
    journal = write_journal(tmp_path / "run", [dataclasses.replace(NOT_POSSIBLE, step=1)])
    write_page(journal, tmp_path / "report.html")
    assert "too long is in → Rome" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def browser():
    """Start headless Chromium, which refuses every connection."""
    found = next((path for path in map(shutil.which, BROWSERS) if path), None)
    driver_path = shutil.which("chromedriver")
    if found is None or driver_path is None:
        pytest.skip("no Chromium with chromedriver on the path; launch/setup.sh dev installs it")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = found
    for flag in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-background-networking",
        "window-size=1100,2400",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(driver_path))
    yield driver
    driver.quit()


def column(browser, name: str) -> list[str]:
    """Read the cells of a column of the rows that are shown, from the top."""
    script = """return [...document.querySelectorAll("#edits tbody tr")].filter(row => !row.hidden)
        .map(row => row.cells[arguments[0]].firstChild.textContent.trim())"""
    return browser.execute_script(script, HEADER.index(name))


def click(browser, name: str) -> None:
    browser.find_elements("css selector", "#edits th button")[HEADER.index(name)].click()


def test_a_browser_fetches_nothing_and_runs_no_fact(page, browser):
    browser.get(page.as_uri())
    assert browser.title == "rome on tiny"
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    sent = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [
        entry["params"]["request"]["url"]
        for entry in sent
        if entry["method"] == "Network.requestWillBeSent"
    ]
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []


def test_a_browser_draws_every_figure(page, browser):
    browser.get(page.as_uri())
    count = "return document.querySelectorAll(arguments[0]).length"
    assert browser.execute_script(count, ".js-plotly-plot") == 3  # perplexity, retention, time
    assert browser.execute_script(count, ".scatterlayer .point") == 6
    assert browser.execute_script(count, ".bars .point") == 5


def test_a_browser_sorts_the_edits(page, browser):
    browser.get(page.as_uri())
    assert column(browser, "edit")[:7] == [cells[1] for cells in ROWS]
    click(browser, "perplexity")
    rising = ["25.5", "26.0", "26.2", "60.0", "4,322", "inf"]
    assert column(browser, "perplexity") == [*rising, "", ""]
    click(browser, "perplexity")
    assert column(browser, "perplexity") == [*reversed(rising), "", ""]
    click(browser, "P(new)")
    assert column(browser, "P(new)")[0] == "0.012 → 0.000"
    click(browser, "accuracy")
    assert column(browser, "accuracy") == ["0%", "0%", "100%", "100%", "100%", "100%", "", ""]


def test_a_browser_filters_the_edits(page, browser):
    browser.get(page.as_uri())
    words = browser.find_element("css selector", "#words")
    words.send_keys("rome eiffel")
    assert column(browser, "#") == ["1"]
    assert browser.find_element("css selector", "#count").text == "1 of 8 edits"
    words.clear()
    words.send_keys(" ")
    for outcome, steps in (("not edited", ["3"]), ("skipped", ["7"]), ("rolled back", ["2", "4"])):
        options = browser.find_elements("css selector", "#outcome option")
        next(option for option in options if option.text == outcome).click()
        assert column(browser, "#") == steps


def ground(browser) -> int:
    """Measure how light the page's ground is, of 255."""
    colour = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    return int(colour.strip("rgb()").split(",")[0])


def test_light_and_dark(page, browser):
    found = {}
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        browser.get(page.as_uri())
        ink = browser.execute_script(
            "return getComputedStyle(document.querySelector('.xtick text')).fill"
        )
        found[scheme] = ground(browser), int(ink.strip("rgb()").split(",")[0])
    assert found["light"][0] > 200 > 100 > found["light"][1]
    assert found["dark"][0] < 60 < 180 < found["dark"][1]


def test_a_page_of_five_thousand_edits_is_below_ten_megabytes(tmp_path):
    """Most of it is the library that draws the figures."""
    n = 5000
    journal = write_journal(tmp_path / "long", [measured(1, "a", "b", 26.0)])
    unedited, step = journal.steps
    records = (
        measured(i, f"Somebody whose number is {i}", "an answer", 25.0 + i / n)
        for i in range(1, n + 1)
    )
    steps = [unedited, *(step._replace(record=record) for record in records)]
    write_page(dataclasses.replace(journal, steps=steps), tmp_path / "long.html")
    page = (tmp_path / "long.html").read_text(encoding="utf-8")
    assert page.count("<tr data-outcome") == n
    assert len(page.encode()) < 10e6
