"""All pages at the widths of a phone and of a desk, light and dark: whole, named, and silent."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.browser import Browser
from tests.pages import PAGES, Pages


@pytest.mark.slow
def test_pages_fit_have_no_serious_fault_and_say_nothing_to_the_console(tmp_path):
    with Pages(tmp_path) as pages, Browser(tmp_path) as browser:
        for width, dark in ((390, True), (1280, False)):
            browser.window(width, dark=dark)
            for name in PAGES:
                pages.show(browser, name)
                assert (name, width, browser.faults()) == (name, width, [])
                assert (name, width, browser.overflow()) == (name, width, [])
                assert browser.run("document.documentElement.scrollWidth") == width
        assert browser.run("document.querySelectorAll('audio').length") > 0
        assert browser.said == []


@pytest.mark.slow
def test_two_songs_are_compared_by_keys_alone(tmp_path: Path) -> None:
    playing = "players().map(player => !player.paused)"
    with Pages(tmp_path, seconds=20.0) as pages, Browser(tmp_path) as browser:
        pages.show(browser, "compare")
        assert browser.run(playing) == [False, False]
        browser.key("1")
        browser.until("!players()[0].paused && players()[0].currentTime > 0.5")
        browser.key("2")
        browser.until("!players()[1].paused")
        assert browser.run(playing) == [False, True]
        assert browser.run("players()[1].currentTime") > 0.4  # goes on where the other was
        browser.key(" ")
        browser.until("players()[1].paused")
        assert browser.run(playing) == [False, False]
        browser.key(" ")
        browser.until("!players()[1].paused")
        # Paused before the sound begins.
        press = "new KeyboardEvent('keydown', {key: '1', bubbles: true})"
        browser.run(f"document.body.dispatchEvent({press}), players()[0].pause()")
        browser.run("new Promise(done => setTimeout(done, 200))")
        assert browser.said == []
