"""The pages in a browser: they sort, filter, redraw and switch, send nothing, and what a data set brings stays text."""

import csv
import json
import os
import shutil
from pathlib import Path

import pytest

from glot.cli import glot_main, main

pytestmark = pytest.mark.slow
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
MISSING = "no browser here; apt-get install chromium chromium-driver"
EVIL = "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"


@pytest.fixture(scope="module")
def browser():
    """Chromium without a window; `make browser` fails where there is none."""
    if CHROMIUM is None or DRIVER is None:
        if os.environ.get("GLOT_BROWSER") == "1":
            pytest.fail(MISSING)
        pytest.skip(MISSING)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1200,1000"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def pages(tiny_bert, tmp_path_factory) -> dict[str, Path]:
    """The pages of an explained run and of two reported ones, on rows that are scripts."""
    root = tmp_path_factory.mktemp("pages")
    with (root / "rows.csv").open("w", newline="") as stream:
        rows = [(f"the {'cat' if number % 2 else 'dog'} {number} {EVIL}", ("<b>yes</b>", "no")[number % 2]) for number in range(40)]
        csv.writer(stream).writerows([("text", "label"), *rows])
    words = f"--task=custom --train_file={root}/rows.csv --model_name_or_path={tiny_bert} --max_length=24 --epochs=2 --verbose=0 --lr=1e-2"
    words += f" --store_dir={root}/hidden --output_dir={root}/runs"
    for name, own in (("glot", "--pooling_method=glot --gat_hidden_dim=4 --tau=0.2"), ("mean", "--pooling_method=mean")):
        assert main([*words.split(), *own.split(), f"--run_name={name}"]) == 0
    explain = ["explain", str(root / "runs/glot"), "--compare", str(root / "runs/mean"), "--text", "the red cat runs", "--text", EVIL]
    assert glot_main([*explain, "--html", str(root / "explain.html")]) == 0
    assert glot_main(["report", str(root / "runs"), "--html", str(root / "report.html")]) == 0
    return {"explain": root / "explain.html", "report": root / "report.html"}


def open_page(browser, path: Path, theme: str = "light", width: int = 1200) -> None:
    browser.get_log("performance"), browser.get_log("browser")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": theme}]})
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    )
    browser.get(path.as_uri())


def check_quiet(browser, path: Path) -> None:
    """No console message, no request but for the file, no script of the data."""
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"}
    assert asked <= {path.as_uri()}
    assert browser.title != "taken" and not browser.find_elements("css selector", "img")


def texts(browser, selector: str) -> list[str]:
    return [element.get_attribute("textContent") for element in browser.find_elements("css selector", selector)]


@pytest.mark.parametrize("width", [1200, 380])
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", ["explain", "report"])
def test_a_page_is_quiet_readable_and_fits(browser, pages, name, theme, width):
    open_page(browser, pages[name], theme, width)
    check_quiet(browser, pages[name])
    colours = browser.execute_script("const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]")
    ink, paper = (sum(int(part) for part in colour[4:-1].split(",")) / 3 for colour in colours)
    assert abs(ink - paper) > 150 and (paper < 100) == (theme == "dark")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width + 1
    browser.find_element("id", "theme").click()
    changed = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert changed != colours[1]


def test_the_slider_redraws_the_graph_and_hovering_shows_neighbours(browser, pages):
    open_page(browser, pages["explain"])
    tokens = browser.find_elements("css selector", ".token")
    assert [token.text for token in tokens][1:3] == ["the", "red"]
    set_tau = "const t = document.getElementById('tau'); t.value = arguments[0]; t.dispatchEvent(new Event('input'))"
    counts = []
    for tau in (-0.2, 0.99):
        browser.execute_script(set_tau, tau)
        browser.execute_script("arguments[0].dispatchEvent(new PointerEvent('pointerenter'))", tokens[1])
        counts.append(len(browser.find_elements("css selector", ".token.joined")))
        assert "joined with" in browser.find_element("id", "info").text
    assert counts[0] > 0 == counts[1]
    assert any("0 % of the pairs of tokens are joined" in line for line in texts(browser, "#graphs div.soft"))
    before = [token.get_attribute("style") for token in tokens]
    browser.execute_script("const v = document.getElementById('view'); v.value = 1; v.dispatchEvent(new Event('change'))")
    assert [token.get_attribute("style") for token in tokens] != before
    browser.execute_script("const r = document.getElementById('run'); r.value = 1; r.dispatchEvent(new Event('change'))")
    assert "mean: mean" in browser.find_element("id", "answer").text
    browser.execute_script("const t = document.getElementById('text'); t.value = 1; t.dispatchEvent(new Event('change'))")
    assert texts(browser, "#text option")[1] == EVIL[:80]
    check_quiet(browser, pages["explain"])


def test_tables_sort_by_their_headings_and_filter_by_words(browser, pages):
    open_page(browser, pages["report"])
    head = "#runs-1 thead th:nth-child(5) button"
    column = "#runs-1 tbody tr:not([hidden]) td:nth-child(5)"
    browser.find_element("css selector", head).click()
    rising = [float(text) for text in texts(browser, column)]
    browser.find_element("css selector", head).click()
    falling = [float(text) for text in texts(browser, column)]
    assert rising == sorted(rising) and falling == rising[::-1] and len(rising) == 2
    field = browser.find_element("css selector", "input[type=search]")
    field.send_keys("--pooling_method=glot")
    assert texts(browser, "#count-1") == ["1 of 2 rows"] and texts(browser, "#runs-1 tbody tr:not([hidden]) td:first-child") == ["glot"]
    browser.find_element("css selector", "#runs-1 tbody tr:not([hidden]) summary").click()
    assert "--pooling_method=glot" in browser.find_element("css selector", "#runs-1 tbody tr:not([hidden]) pre").text
    assert "<b>yes</b>" in " ".join(texts(browser, "td"))
    check_quiet(browser, pages["report"])


def test_a_page_is_printed(browser, pages):
    open_page(browser, pages["report"])
    printed = browser.execute_cdp_cmd("Page.printToPDF", {})["data"]
    assert len(printed) > 10_000
