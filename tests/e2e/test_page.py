"""The report in a real browser, from file://: charts are drawn, nothing is asked of any network, nothing hostile runs."""

from __future__ import annotations

import http.server
import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import fake_run
import pytest

from knowhow.report import page

CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--hide-scrollbars", "--window-size=1320,1000"),
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    if not CHROMIUM or not DRIVER:
        pytest.skip("no chromium and chromedriver on this machine: the report was not looked at in a browser")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: the report was not looked at in a browser")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def visit(browser: object, path: Path, *, width: int = 1320) -> list[str]:
    """Load the page and wait for its charts; returns the addresses that it asked for."""
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False})
    browser.get_log("performance")
    browser.get(path.as_uri())
    until = time.monotonic() + 60
    while browser.execute_script("return document.documentElement.dataset.charts || ''") == "" and time.monotonic() < until:
        time.sleep(0.05)
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]


@pytest.mark.parametrize(("hostile", "width"), [(False, 1320), (True, 390)])
def test_report_draws_every_chart_and_asks_nothing(browser: object, tmp_path: Path, hostile: bool, width: int) -> None:
    run = fake_run.write_run(tmp_path, hostile=hostile)
    out = page.write(run, run / "report.html")
    asked = visit(browser, out, width=width)
    assert browser.execute_script("return document.documentElement.dataset.charts") == "ready"
    assert [entry["message"] for entry in browser.get_log("browser")] == [], "no error and no warning"
    assert [address for address in asked if not address.startswith(("file:", "data:", "chrome:"))] == []
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    places, drawn, marks = browser.execute_script(
        "return [document.querySelectorAll('.chart').length, document.querySelectorAll('.chart > svg, .chart svg.marks').length,"
        "[...document.querySelectorAll('.chart svg')].map(svg => svg.querySelectorAll('path').length)]"
    )
    assert places == drawn == 22
    assert min(marks) > 5, "every chart has marks, not just a frame"
    assert browser.execute_script("return document.documentElement.scrollWidth") == width, "nothing makes the page wider than the window"
    assert browser.execute_script("return document.querySelectorAll('img, iframe, object').length") == 0


def test_pointing_at_a_line_or_an_answer_shows_what_is_behind_it(browser: object, tmp_path: Path) -> None:
    run = fake_run.write_run(tmp_path)
    visit(browser, page.write(run, run / "report.html"))
    point = """const sample = document.querySelector("#explanation .sample"), found = [];
    const told = () => [sample.querySelector(".behind p").textContent, [...sample.querySelectorAll(".line")].map((cell) => cell.className).join(),
      sample.classList.contains("asked"), sample.querySelectorAll(".unit.here").length];
    const over = (node) => node.dispatchEvent(new PointerEvent("pointerover", {bubbles: true}));
    found.push(told());
    over(sample.querySelectorAll(".unit")[5]); found.push(told());
    over(sample.querySelector(".said")); found.push(told());
    sample.dispatchEvent(new PointerEvent("pointerleave")); found.push(told());
    const text = sample.querySelector(".text");
    for (const key of ["ArrowDown", "ArrowDown", "ArrowUp"]) text.dispatchEvent(new KeyboardEvent("keydown", {key, cancelable: true}));
    found.push([[...sample.querySelectorAll(".unit")].findIndex((unit) => unit.classList.contains("here"))]);
    return found;"""
    idle, line, answer, left, moved = browser.execute_script(point)
    assert idle[1:] == ["cell line,cell line,cell line,cell line", False, 0]
    assert "speaks for the answer" in line[0]
    assert line[1].count("heat-") + line[1].count("cool-") == 4, "the line's trace, layer by layer"
    assert line[2:] == [False, 1]
    assert answer[0].startswith("What this answer needs most: Without")
    assert answer[2:] == [True, 0]
    assert left == idle
    assert moved == [0]


class Counter(http.server.BaseHTTPRequestHandler):
    """Answers everything and keeps what it was asked."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return None


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Counter) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()


def test_policy_refuses_scripts_and_requests_even_if_escaping_failed(browser: object, server: str, tmp_path: Path) -> None:
    run = fake_run.write_run(tmp_path)
    out = page.write(run, run / "report.html")
    owned = "document.title = 'owned'"
    attack = f"<style>body {{ display: none }}</style><script>{owned}</script><iframe src='{server}/frame'></iframe>"
    attack += f"<img src='{server}/image' onerror=\"{owned}\">"
    whole = out.read_text("utf-8")
    out.write_text(whole.replace("<footer>", f"{attack}<footer>"), "utf-8")
    visit(browser, out)
    assert "owned" not in browser.title
    assert browser.execute_script("return getComputedStyle(document.body).display") == "block"
    assert Counter.asked == []
    refused = [entry["message"] for entry in browser.get_log("browser") if "content security policy" in entry["message"].lower()]
    assert len(refused) >= 4
    out.write_text(out.read_text("utf-8").replace("Content-Security-Policy", "nothing"), "utf-8")
    visit(browser, out)
    assert browser.title == "owned", "without the policy the same page is taken over: the check above can fail"
    assert "/image" in Counter.asked


def test_tables_are_readable_without_scripts_and_sections_by_keyboard(browser: object, tmp_path: Path) -> None:
    run = fake_run.write_run(tmp_path)
    out = page.write(run, run / "report.html")
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(out.as_uri())
        text = browser.find_element("css selector", "main").text
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    for shown in ("The specialist beats every baseline", "The chart needs scripts", "licence of the base", "Worked examples"):
        assert shown in text
    visit(browser, out)
    reachable = browser.execute_script("return [...document.querySelectorAll('a, summary, [tabindex]')].filter(e => e.tabIndex >= 0).length")
    assert reachable > 30
    assert browser.execute_script("return [...document.querySelectorAll('nav a')].every(a => document.querySelector(a.getAttribute('href')))")
