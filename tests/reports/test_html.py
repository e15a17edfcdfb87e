"""The page: nothing is fetched, nothing of a fact is taken for markup, and a browser sorts, filters
and draws it.
"""

import html.parser
import json
import shutil

import pytest
from journals import ROWS, STEPS, measured, write

from jaxedit.reports.html import prompt_continuations, write_page
from jaxedit.reports.records import HEADER
from jaxedit.study.journal import open_journal, read_journal

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


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A study with every kind of step, prompts, retention, and a fact that tries to be a script."""
    folder = tmp_path_factory.mktemp("page") / "run"
    config = {
        "model": "tiny",
        "mode": "sequential",
        "editor": {"method": "rome"},
        "prompts": PROMPTS,
    }
    steps = [dict(step) for step in STEPS] + [measured(7, HOSTILE, HOSTILE, 26.0, says=HOSTILE)]
    looks = {1: {"1": 0.99}, 5: {"1": 0.8, "5": 0.25}, 7: {"1": 0.75, "5": 0.2, "6": 0.7, "7": 0.9}}
    for step in steps:
        if step["step"] in looks:
            step |= {
                "retention": {n: {"probability_new": p} for n, p in looks[step["step"]].items()},
                "continuations": [f" said {step['step']}", HOSTILE],
            }
        step |= {} if "error" in step else {"says_before": " Paris."}
    journal = open_journal(
        folder, {"config": config, "model_fingerprint": "abc", "n_skipped_facts": 0}
    )
    journal.append(
        {
            "step": 0,
            "perplexity": {"mean": 25.0, "pooled": 25.0, "n_non_finite": 0},
            "continuations": [" Paris", " x"],
        },
        {},
        {},
    )
    for step in steps:
        journal.append(step, {}, {})
    write_page(read_journal(folder), folder / "report.html")
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


def test_nothing_is_fetched_and_facts_are_text(page):
    parser = Parser()
    parser.feed(page.read_text(encoding="utf-8"))
    assert not parser.fetched
    assert (
        parser.tags.count("tr") == 1 + 7 + 1 + 2 * 4
    )  # edits with their header, prompts with theirs
    assert "<script>document.title" not in page.read_text(encoding="utf-8")


def test_continuations(page):
    journal = read_journal(page.parent)
    said = prompt_continuations(journal, [step.record for step in journal.steps[1:]])
    assert said[0] == {
        "prompt": PROMPTS[0],
        "said": [(0, " Paris"), (1, " said 1"), (5, " said 5"), (7, " said 7")],
    }


def test_a_study_of_failures_has_a_page(tmp_path):
    folder = write(tmp_path / "run", [STEPS[2] | {"step": 1}])
    write_page(read_journal(folder), folder / "report.html")
    assert (folder / "report.html").stat().st_size > 1e6  # the drawing library is inside


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium, which refuses every connection."""
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
    """The cells of a column of the rows that are shown, from the top."""
    script = """return [...document.querySelectorAll("#edits tbody tr")].filter(row => !row.hidden)
        .map(row => row.cells[arguments[0]].firstChild.textContent.trim())"""
    return browser.execute_script(script, HEADER.index(name))


def click(browser, name: str) -> None:
    browser.find_elements("css selector", "#edits th button")[HEADER.index(name)].click()


def test_in_a_browser(page, browser):
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
    drawn = browser.execute_script(
        "return document.querySelectorAll('.js-plotly-plot .main-svg').length"
    )
    assert drawn >= 3  # curve, retention, time
    assert (
        browser.execute_script("return document.querySelectorAll('.scatterlayer .point').length")
        == 6
    )

    assert column(browser, "edit")[:6] == [cells[1] for cells in ROWS]
    click(browser, "perplexity")
    assert column(browser, "perplexity") == ["25.5", "26.0", "26.2", "60.0", "4,322", "inf", ""]
    click(browser, "perplexity")
    assert column(browser, "perplexity") == ["inf", "4,322", "60.0", "26.2", "26.0", "25.5", ""]
    click(browser, "P(new)")
    assert column(browser, "P(new)")[0] == "0.012 → 0.000"

    browser.find_element("css selector", "#words").send_keys("rome eiffel")
    assert column(browser, "#") == ["1"]
    assert browser.find_element("css selector", "#count").text == "1 of 7 edits"
    browser.find_element("css selector", "#words").clear()
    browser.find_element("css selector", "#words").send_keys(" ")
    browser.find_element("css selector", "#outcome option:nth-child(4)").click()
    assert set(column(browser, "outcome")) == {"not edited"}


def ground(browser) -> int:
    """How light the page's ground is, of 255."""
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
