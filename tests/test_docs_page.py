"""The pages of docs/ in headless Chromium (browser.py): width, console, colours, print. Without a
Chromium these tests are skipped."""
import json

import pytest
from browser import browser, chromium
from conftest import ROOT
from test_look_page import CONTRAST

pytestmark = pytest.mark.slow

NAMES = ["index", "equations", "opd", "topd", "ar_opd", "hindsight_sd", "grpo"]
A4 = 718  # dots between the margins that Chromium leaves on an A4 page
# Elements that reach out of the screen, the innermost first. Something that scrolls by itself may.
WIDE = """[...document.querySelectorAll("body *")].reverse()
  .filter((e) => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest("pre.raw"))
  .map((e) => e.outerHTML.slice(0, 120)).slice(0, 5)"""


@pytest.fixture(scope="module")
def chrome():
    path = chromium()
    if path is None:
        pytest.skip("there is no Chromium here, so docs/ was not looked at in a browser; apt-get install -y chromium")
    with browser(path) as page:
        yield page


def open_page(chrome, name, **screen):
    chrome.errors.clear()
    chrome.open((ROOT / f"docs/{name}.html").as_uri(), **screen)
    chrome.until(f"document.readyState == 'complete' && location.href.endsWith('/{name}.html')")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1300, 420])
def test_a_page_fits_the_screen_and_can_be_read(chrome, name, dark, width):
    open_page(chrome, name, width=width, dark=dark)
    assert chrome.run("document.documentElement.scrollWidth <= innerWidth"), chrome.run(WIDE)
    paper = chrome.run("getComputedStyle(document.body).backgroundColor")
    assert (sum(json.loads(f"[{paper[4:-1]}]")) < 150) == dark
    if width == 1300:  # commands and pictures; on a narrow screen they may scroll
        cut = "[...document.querySelectorAll('.raw')].filter((e) => e.scrollWidth > e.clientWidth)"
        assert chrome.run(f"{cut}.map((e) => e.textContent)") == []
    found = chrome.run(CONTRAST)
    assert len(found) > 20
    assert [f for f in found if f[0] < 4.5] == []
    assert chrome.errors == []


@pytest.mark.parametrize("name", NAMES)
def test_a_page_fits_the_narrowest_screen_and_its_target_can_be_read(chrome, name):
    open_page(chrome, name, width=320, dark=True)
    assert chrome.run("document.documentElement.scrollWidth <= innerWidth"), chrome.run(WIDE)
    chrome.run("location.hash = document.querySelector('.l[id], h2[id]')?.id ?? ''")
    chrome.until("location.hash === '' || document.querySelector(':target') !== null")
    assert [f for f in chrome.run(CONTRAST) if f[0] < 4.5] == []


@pytest.mark.parametrize("name, dark", [*((n, False) for n in NAMES), ("topd", True)])
def test_print_is_black_on_white_and_fits_the_paper(chrome, name, dark):
    """The screen's colours must not reach the paper, no line may be cut off at its edge, and no line
    of a picture may be broken."""
    open_page(chrome, name, width=A4, dark=dark)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    chrome.call("Emulation.setEmulatedMedia", media="print", features=[scheme])
    try:
        assert chrome.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert chrome.run("getComputedStyle(document.querySelector('nav')).display") == "none"
        assert [f for f in chrome.run(CONTRAST) if f[0] < 4.5] == []
        assert chrome.run("document.documentElement.scrollWidth <= innerWidth"), chrome.run(WIDE)
        cut = "[...document.querySelectorAll('pre')].filter((e) => e.scrollWidth > e.clientWidth + 1)"
        assert chrome.run(f"{cut}.map((e) => e.textContent.slice(0, 80))") == []
        # A line of a picture that went on below itself would make the picture taller.
        tall = """(e) => { const s = getComputedStyle(e), lines = e.textContent.split("\\n").length;
          const high = lines * parseFloat(s.lineHeight) + parseFloat(s.paddingTop) * 2;
          return s.whiteSpace !== "pre" || Math.abs(e.offsetHeight - high) > 2; }"""
        broken = f"[...document.querySelectorAll('.raw')].filter({tall}).map((e) => e.textContent)"
        assert chrome.run(broken) == []
        assert (chrome.run("document.querySelectorAll('.raw').length") > 0) == (name in NAMES[2:])
    finally:
        chrome.call("Emulation.setEmulatedMedia", media="")
