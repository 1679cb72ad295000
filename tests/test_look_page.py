"""The page of look.py in headless Chromium (browser.py): lists, links, tabs, filter, keyboard,
colours. Without a Chromium these tests are skipped."""
import json

import pytest
import torch
from browser import browser, chromium

import look
import topd
from common import page as pages
from common.seen import Rollout, Seen

pytestmark = pytest.mark.slow

NAMES = ["opd", "topd", "ar_opd"]
WORDS = ["8", " -", " 5", " =", " 3"]
OPEN = "!document.getElementById('panel').hidden"
PANEL = "document.getElementById('panel').innerText"
# Contrast of two colours after WCAG 2, and the colours that an element really has: a colour with an
# alpha lies over the one below it.
CONTRAST = """(() => {
  const over = (css, below) => {
    const [r, g, b, alpha = 1] = css.match(/[\\d.]+/g).map(Number);
    return [r, g, b].map((x, i) => alpha * (css.startsWith("color(") ? x : x / 255) + (1 - alpha) * below[i]);
  };
  const behind = (e) => over(getComputedStyle(e).backgroundColor, e.parentElement ? behind(e.parentElement) : [1, 1, 1]);
  const light = (colour) => colour.map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4))
    .reduce((sum, x, i) => sum + x * [0.2126, 0.7152, 0.0722][i], 0);
  const found = [];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || !e.getClientRects().length || e.closest("script, style")) continue;
    const ink = getComputedStyle(e)[e.closest("svg") ? "fill" : "color"];
    const [a, b] = [light(over(ink, behind(e))), light(behind(e))].sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), e.className.baseVal ?? e.className, e.textContent.slice(0, 30)]);
  }
  return found;
})()"""


def rollout(right):
    """A rollout of five tokens as three methods see it, one of which sees nothing."""
    kinds = {}
    for name, values in (("opd", [0, 0.5, 1, 2, 9]), ("topd", [0, 0.5, 1, 2, 9])):
        lists = [[(w, 0.6, True), ("<b>", 0.3, False)] for w in WORDS]
        readers = {"student": lists, "teacher": [[("7", 0.9, False), (w, 0.1, True)] for w in WORDS]}
        kinds[name] = Seen(values, [f"{name}, note {i}" for i in range(5)], readers, framed=2)
    weights = torch.tensor([[0.9, 0.1, 0.0], [0.0, 0.1, 0.9], [0.5, 0.0, 0.5]])
    point = topd.Point(0, 2, 1.0, [3, 4, 5], [4, 3, 5], None, 0.5, weights)
    windows = [" 5", " +", " 4"], WORDS[2:]
    kinds["topd"].marked, kinds["topd"].numbers = {2}, {2: 1}
    kinds["topd"].more.append(("", look.windows_as_svg(1, point, *windows)))
    kinds["ar_opd"] = "This row has no solution."
    return Rollout("How many shells?", WORDS, right, "answer 3, gold 3", kinds)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("look") / "page.html"
    views = {name: look.VIEWS[name] for name in NAMES}
    path.write_text(pages.document("Rollouts", views, [rollout(False), rollout(True)], "opd"), "utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def chrome():
    path = chromium()
    if path is None:
        pytest.skip("there is no Chromium here, so look.py's page was not tested in a browser; apt-get install -y chromium")
    with browser(path) as page:
        yield page


@pytest.fixture
def page(chrome, file):
    """The page, newly loaded on a wide screen. No test may leave an error in its console."""
    chrome.errors.clear()
    chrome.open(file)
    chrome.until("document.querySelectorAll('.rollout').length == 4")
    yield chrome
    assert chrome.errors == []


def key(page, name, text=""):
    for kind in ("keyDown", "keyUp"):
        page.call("Input.dispatchKeyEvent", type=kind, key=name, text=text if kind == "keyDown" else "")


def tap(page, selector):
    """A finger, or the mouse, on the middle of an element."""
    x, y = page.run(f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center'}}); const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; }})()")
    page.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
    page.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    page.until(OPEN)


def tab(page, name):
    page.run(f"document.querySelector('input[value={name}]').click()")


# ------------------------------------------------------------------------ lists and links


@pytest.mark.parametrize("width", [1300, 420])
def test_a_tap_opens_both_lists_and_a_second_one_shows_another_token(page, file, width):
    page.open(file, width)
    page.until("document.querySelectorAll('.rollout').length == 4")
    assert not page.run(OPEN)
    tap(page, "#r1 .pane[data-method=opd] .rollout [data-i='1']")
    said = page.run(PANEL)
    assert "opd, note 1" in said and said.index("student") < said.index("teacher")
    assert "0.600" in said and "0.900" in said and "<b>" in said        # as text, not as HTML
    assert page.run("[...document.querySelectorAll('.written th')].map(e => e.textContent)") == [" -"] * 2
    tap(page, "#r2 .pane[data-method=opd] .rollout [data-i='4']")
    assert "opd, note 4" in page.run(PANEL)
    # The panel covers neither the token nor more than the page is wide.
    inside = "(() => { const t = document.querySelector('.chosen').getBoundingClientRect(), p = document.getElementById('panel').getBoundingClientRect(); return t.bottom <= p.top || t.right <= p.left; })()"
    assert page.run(inside)
    assert page.run("document.documentElement.scrollWidth") <= width
    page.run("document.querySelector('#panel button').click()")
    assert not page.run(OPEN)
    # The focus returns to the token: the button that had it is gone.
    assert page.run("document.activeElement.closest('article').id + document.activeElement.dataset.i") == "r24"


def test_the_links_of_a_token_stand_out(page):
    tab(page, "topd")
    lines = "[...document.querySelectorAll('#r1 line.on')].map(e => [e.dataset.i, e.dataset.to])"
    tap(page, "#r1 .pane[data-method=topd] .rollout [data-i='4']")
    assert page.run(lines) == [["4", "0"], ["4", "2"]]
    # A token of the student's window is the same token.
    tap(page, "#r1 text[data-i='2']")
    assert page.run(lines) == [["2", "0"]] and "topd, note 2" in page.run(PANEL)
    assert page.run("document.querySelectorAll('svg.linked').length") == 1
    # A token of the teacher's window has no lists, but links.
    tap(page, "#r1 text[data-to='2']")
    assert page.run(lines) == [["3", "2"], ["4", "2"]]
    assert "drawn here: = 0.90 3 0.50" in page.run(PANEL)
    assert page.run("document.querySelectorAll('#panel table').length") == 0
    assert page.run("document.querySelectorAll('#r2 line.on').length") == 0


def test_a_plan_that_is_wider_than_the_screen_shows_that_it_goes_on(page, file):
    """By a shadow at the edge. It lies below a cover in the colour of the page, which moves along."""
    page.open(file, 420)
    page.until("document.querySelectorAll('.rollout').length == 4")
    tab(page, "topd")
    page.run("document.querySelector('.windows svg').setAttribute('width', 700)")
    style = "getComputedStyle(document.querySelector('.windows'))"
    assert page.run("document.querySelector('.windows').scrollWidth > 600")
    assert page.run(f"{style}.backgroundAttachment") == "local, local, scroll, scroll"
    images = page.run(f"{style}.backgroundImage")
    paper = page.run("getComputedStyle(document.body).backgroundColor")
    assert images.count("gradient(") == 4 and images.count(f"{paper} 1em") + images.count(f"{paper} 16px") == 2
    assert page.run("document.documentElement.scrollWidth") <= 420


def test_everything_can_be_done_with_the_keyboard(page):
    page.run("document.querySelector('input[value=opd]').focus()")
    key(page, "ArrowRight")                                       # from tab to tab
    assert page.run("document.querySelector(':checked').value") == "topd"
    first = "#r1 .pane[data-method=topd] .rollout"
    stops = f"document.querySelectorAll('{first} [tabindex=\"0\"]').length"
    assert page.run(stops) == 1                                   # Tab stops once per rollout
    page.run(f"document.querySelector('{first} [tabindex=\"0\"]').focus()")
    key(page, "ArrowRight")
    assert not page.run(OPEN)
    key(page, "Enter", "\r")
    assert page.run(OPEN) and "topd, note 1" in page.run(PANEL)
    key(page, "ArrowRight")                                       # an open panel follows
    assert "topd, note 2" in page.run(PANEL)
    key(page, "Escape")
    assert not page.run(OPEN) and page.run("document.activeElement.dataset.i") == "2"
    assert page.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"


# ------------------------------------------------------------------------ tabs, filter, contents


def test_a_tab_shows_one_method_and_keeps_the_open_token(page):
    visible = "[...document.querySelectorAll('.pane')].filter(e => e.offsetParent).map(e => e.dataset.method)"
    assert page.run(visible) == ["opd"] * 3                       # above, and in both rollouts
    tap(page, "#r2 .pane[data-method=opd] .rollout [data-i='3']")
    tab(page, "topd")
    assert page.run(visible) == ["topd"] * 3 and "topd, note 3" in page.run(PANEL)
    assert page.run("document.querySelector('.chosen').closest('article').id") == "r2"
    tab(page, "ar_opd")
    assert not page.run(OPEN) and "This row has no solution." in page.run("document.body.innerText")


def test_the_filter_shows_wrong_rollouts_only(page):
    shown = "[...document.querySelectorAll('article, ol li')].filter(e => e.offsetParent).map(e => e.className)"
    assert page.run(shown) == ["wrong", "right"] * 2
    page.run("document.getElementById('only-wrong').click()")
    assert page.run(shown) == ["wrong"] * 2
    page.run("document.getElementById('only-wrong').click()")
    assert len(page.run(shown)) == 4
    # The panel of a rollout that is hidden now goes with it, and that of another one stays.
    for article, stays in (("r1", True), ("r2", False)):
        tap(page, f"#{article} .pane[data-method=opd] .rollout [data-i='3']")
        page.run("document.getElementById('only-wrong').click()")
        assert page.run(OPEN) == stays
        page.run("document.getElementById('only-wrong').click()")


def test_the_contents_lead_to_the_rollouts(page):
    page.run("document.querySelectorAll('ol a')[1].click()")
    assert page.run("location.hash") == "#r2" and page.run("document.querySelector(location.hash).tagName") == "ARTICLE"


# ------------------------------------------------------------------------ colours, safety


@pytest.mark.parametrize("dark", [False, True])
def test_all_texts_can_be_read_on_their_colours(page, file, dark):
    page.open(file, dark=dark)
    page.until("document.querySelectorAll('.rollout').length == 4")
    tab(page, "topd")
    tap(page, "#r1 .pane[data-method=topd] .rollout [data-i='2']")
    paper = page.run("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, paper[4:-1].split(","))) < 150) == dark
    found = page.run(CONTRAST)
    assert len(found) > 40 and any("hot" in kind for _, kind, _ in found)
    assert [f for f in found if f[0] < 4.5] == []


def test_a_script_that_is_not_ours_does_not_run(page):
    page.run("(() => { const s = document.createElement('script'); s.textContent = 'window.stranger = 1'; document.body.append(s); })()")
    assert page.run("window.stranger") is None
    assert "Content Security Policy" in page.errors.pop()


def test_everything_that_can_be_operated_has_a_name(page):
    tap(page, "#r1 .pane[data-method=opd] .rollout [data-i='0']")
    nameless = "[...document.querySelectorAll('input, button, a, summary, [role=button], svg[role=group]')].filter(e => !(e.ariaLabel || !e.matches('svg') && e.textContent.trim() || e.closest('label')?.textContent.trim()))"
    assert page.run(f"{nameless}.length") == 0


def test_a_real_page_opens_every_token_without_an_error(chrome, tmp_path):
    look.main(["topd", "--n", "2", "--device", "cpu", "--html", str(tmp_path / "page.html")])
    chrome.errors.clear()
    chrome.open((tmp_path / "page.html").as_uri())
    chrome.until("document.querySelectorAll('.rollout').length == 10")
    for name in look.METHODS:
        tab(chrome, name)
        opened = chrome.run("[...document.querySelectorAll('.pane:not([hidden]) [role=button]')].map(t => { t.dispatchEvent(new MouseEvent('click', {bubbles: true})); return document.getElementById('panel').innerText.trim().length; })")
        assert len(opened) > 40 and min(opened) > 0
    assert chrome.errors == []
