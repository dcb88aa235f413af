"""The page in a real Chromium: phone and desktop, light and dark, by keyboard alone; axe finds nothing."""

from __future__ import annotations

import os
from pathlib import Path
from time import sleep

import pytest
from browser import Browser, find
from live_server import live

import foredraft

CHECKOUT = Path(__file__).resolve().parents[3]
AXE = Path(os.environ.get("FOREDRAFT_AXE", CHECKOUT / ".venv/axe/node_modules/axe-core/axe.min.js"))
SIZES = [(390, False), pytest.param(390, True, marks=pytest.mark.full), pytest.param(1280, False, marks=pytest.mark.full),
         (1280, True)]


@pytest.fixture(scope="module")
def server():
    with live(foredraft.load(drafter="lookup+ngram"), name="embedded", max_tokens=128) as found:
        yield found


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if (program := find()) is None:
        pytest.skip("no Chromium: apt install chromium")
    with Browser(program, tmp_path_factory.mktemp("profile")) as found:
        yield found


def wait(browser, condition: str) -> None:
    for _ in range(600):
        if browser.evaluate(condition):
            return
        sleep(0.05)
    raise AssertionError(f"waited in vain for {condition}: {browser.evaluate('document.body.innerText')}")


def shown(browser, pane: str) -> str:
    """The text of a pane, rejected drafts left out."""
    return browser.evaluate(f"[...document.querySelectorAll('#{pane} .out span')].map(one => one.textContent).join('')")


@pytest.mark.parametrize(("width", "dark"), SIZES)
def test_a_text_by_keyboard(server, browser, width, dark):
    found = browser.open(server.url + "/", width, dark)
    assert found["scroll"] <= width and found["wide"] == [] and found["errors"] == []
    assert all(url.startswith(server.url) for url in found["loaded"])
    assert (sum(map(int, found["ground"][4:-1].split(","))) < 200) == dark
    wait(browser, "document.getElementById('model').textContent.startsWith('embedded')")
    browser.evaluate("document.getElementById('rejections').value = 'keep'; document.getElementById('tokens').value = 48")
    # the text has the focus from the start
    browser.press("Enter", 2)
    wait(browser, "running === null && plain.stats !== null")
    prompt = browser.evaluate("document.getElementById('text').value")
    truth = server.call("/v1/completions", {"prompt": prompt, "max_tokens": 48, "truncate_prompt_tokens": -1})[1]
    assert shown(browser, "drafts") == shown(browser, "plain") == truth["choices"][0]["text"] != ""
    assert browser.evaluate("drafts.stats.tokens_per_step") > 1 == browser.evaluate("plain.stats.tokens_per_step")
    for kind in (".p-lookup", "del.p-rejected"):
        assert browser.evaluate(f"document.querySelectorAll('#drafts {kind}').length") > 0
    assert browser.evaluate("document.querySelectorAll('#plain .out [class^=p-]').length") == 0
    assert "tokens a pass" in browser.evaluate("document.getElementById('status').textContent")
    after = browser.evaluate("document.documentElement.scrollWidth")
    assert after <= width and browser.evaluate("document.getElementById('error').textContent") == ""


def test_rejected_drafts_go_after_a_moment(server, browser):
    browser.open(server.url + "/", 1280, False)
    browser.press("Enter", 2)
    wait(browser, "document.querySelectorAll('#drafts del').length > 0")
    wait(browser, "running === null && document.querySelectorAll('#drafts del').length === 0")


def test_tab_reaches_everything_in_order(server, browser):
    browser.open(server.url + "/", 1280, False)
    reached = []
    for _ in range(13):
        reached.append(browser.evaluate("document.activeElement.id || document.activeElement.className"))
        browser.press("Tab")
    assert reached == ["text", "prefix", "tokens", "drafted", "temperature", "top_p", "seed", "order", "rejections", "key",
                       "run", "out", "out"]


def test_escape_stops_and_errors_are_shown(server, browser):
    browser.open(server.url + "/", 390, False)
    # the page sets the limit when it has read the model's card
    wait(browser, "document.getElementById('model').textContent.startsWith('embedded')")
    browser.evaluate("document.getElementById('tokens').max = 9999; document.getElementById('tokens').value = 999")
    browser.press("Enter", 2)
    wait(browser, "document.getElementById('error').textContent.includes('max_tokens is 999')")
    browser.evaluate("document.getElementById('tokens').value = 128")
    browser.press("Enter", 2)
    wait(browser, "running !== null")
    browser.press("Escape")
    wait(browser, "running === null")
    assert browser.evaluate("document.getElementById('error').textContent") == ""
    assert browser.evaluate("document.getElementById('run').disabled") is False


def test_a_server_that_does_not_answer(server, browser):
    browser.open(server.url + "/", 390, False)
    wait(browser, "document.getElementById('model').textContent.startsWith('embedded')")
    browser.evaluate("window.fetch = () => Promise.reject(new TypeError('gone')); describe(); 0")
    wait(browser, "document.getElementById('model').textContent === 'the server does not answer'")
    browser.press("Enter", 2)
    wait(browser, "running === null && document.getElementById('error').textContent === 'gone'")


@pytest.mark.parametrize(("width", "dark"), SIZES)
def test_axe(server, browser, width, dark):
    if not AXE.is_file():
        pytest.skip("no axe-core: make axe")
    browser.open(server.url + "/", width, dark)
    browser.evaluate("document.getElementById('rejections').value = 'keep'")
    browser.press("Enter", 2)
    wait(browser, "running === null && plain.stats !== null")
    browser.evaluate(AXE.read_text(encoding="utf-8") + "; 0")
    listed = "found.violations.map(one => [one.id, one.nodes.map(node => node.html)])"
    assert browser.evaluate(f"axe.run().then(found => {listed})") == []
