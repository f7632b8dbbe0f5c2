"""What a newcomer sees, in a real browser: the graph, a phase's launchpad, a gate that passed and one that failed, and
a run that was refused because of it."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from forge_instance import Make
from playwright.sync_api import Page, expect, sync_playwright

HERE = Path(__file__).parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
START_S = 120.0
SLOW_MS = 60_000.0
PROGRAM = next((found for name in BROWSERS if (found := shutil.which(name))), None)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason=f"no browser: none of {', '.join(BROWSERS)} is installed"),
]


@pytest.fixture
def page(judged: None, address: str) -> Iterator[Page]:
    """A page of a new browser, opened last: its event loop allows no other in this thread."""
    with sync_playwright() as playwright:
        sandbox = [] if os.geteuid() else ["--no-sandbox"]  # Chromium's own does not work for root
        browser = playwright.chromium.launch(executable_path=PROGRAM, args=sandbox)
        opened = browser.new_page(viewport={"width": 1280, "height": 800}, base_url=address)
        opened.set_default_timeout(SLOW_MS)
        yield opened
        browser.close()


@pytest.fixture
def judged(make: Make) -> None:
    """`right` passes its gate, `left` does not."""
    make("trunk", "left", "right", config={"left": {"value": 2.0}})


@pytest.fixture
def address(instance: dg.DagsterInstance) -> Iterator[str]:
    """A webserver on this test's instance."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "dagster_webserver", "-m", "tiny_forge", "-h", "127.0.0.1", "-p", str(port)]
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(command, cwd=HERE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        deadline = time.monotonic() + START_S
        while not answers(f"{url}/server_info"):
            assert server.poll() is None, "the webserver ended by itself"
            assert time.monotonic() < deadline, "the webserver does not answer"
            time.sleep(0.2)
        yield url
        server.send_signal(signal.SIGINT)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as found:
            return bool(found.status == 200)
    except OSError:
        return False


def test_graph_launchpad_gates_and_a_refused_run(instance: dg.DagsterInstance, page: Page) -> None:
    page.goto("/asset-groups")
    for group in ("data", "phase_1_cognate"):
        expect(page.get_by_text(group, exact=True).first).to_be_visible(timeout=SLOW_MS)
    page.get_by_text("phase_1_cognate", exact=True).first.dblclick()
    for asset in ("trunk", "left", "right", "left_child"):
        expect(page.get_by_text(asset, exact=True).first).to_be_visible(timeout=SLOW_MS)
    assert page.get_by_text("Join the Dagster community").count() == 0

    page.goto("/assets/right?view=checks&checkDetail=gate")
    expect(page.get_by_text("small passed: mean_square = 0.5625").first).to_be_visible(timeout=SLOW_MS)
    page.goto("/assets/left?view=checks&checkDetail=gate")
    expect(page.get_by_text("small FAILED: mean_square = 4").first).to_be_visible(timeout=SLOW_MS)

    page.goto("/assets/left_child")
    page.locator("button:right-of(:text('Materialize'))").first.click()
    page.get_by_role("menuitem", name="Open launchpad").click()
    launchpad = page.get_by_role("dialog").filter(has_text="Launchpad (configure assets)")
    expect(launchpad.get_by_text("No errors")).to_be_visible(timeout=SLOW_MS)
    for words in ("left_child", "value: 0.5", "steps: 1"):
        expect(launchpad).to_contain_text(words, timeout=SLOW_MS)
    launchpad.get_by_role("button", name="Materialize").click()

    run = refused(instance)
    page.goto(f"/runs/{run}")
    expect(page.get_by_text("refused, quality gate closed: left:gate").first).to_be_visible(timeout=SLOW_MS)


def refused(instance: dg.DagsterInstance) -> str:
    """The run that the page has launched, once it has ended."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        for run in instance.get_runs():
            if run.asset_selection == {dg.AssetKey("left_child")} and run.is_finished:
                assert run.status == dg.DagsterRunStatus.FAILURE
                return run.run_id
        time.sleep(0.2)
    raise AssertionError("no run of left_child was launched from the page")
