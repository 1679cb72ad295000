"""docs/playground.html: is it up to date, and does its JavaScript compute what the Python computes?

The slow tests open the committed page in headless Chromium (browser.py) and run playground.js
inside of it. Without a Chromium they are skipped.
"""
import json
import re

import numpy as np
import pytest
import torch
from browser import browser, chromium
from conftest import ROOT
from test_look_page import CONTRAST

import ar_opd
import grpo
import hindsight_sd
import opd
import topd
from common.credit import leaves
from common.data import privileged_prompt, prompt_ids
from common.grading import verify
from common.models import load_model, load_tokenizer
from docs import build_playground
from toy import world

PAGE = build_playground.PAGE
SOURCES = sorted([*build_playground.SOURCE.iterdir(), ROOT / "tests/playground.js", ROOT / "tests/browser.py"])
METHODS = ("opd", "topd", "ar_opd", "hindsight_sd", "grpo")
NUMBER = re.compile(r"\((\d)\)")

# ------------------------------------------------------------------------ the file


def test_the_committed_page_is_what_its_sources_make():
    """Byte for byte. If not: python docs/build_playground.py"""
    assert build_playground.page().encode() == PAGE.read_bytes()


def test_the_page_is_one_file_that_loads_nothing():
    html = PAGE.read_text(encoding="utf-8")
    assert len(html.encode()) < build_playground.LARGEST
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//|@import|fetch\(|XMLHttpRequest|import\(""", html)
    # All addresses lead to pages beside it.
    beside = {f"{m}.html" for m in METHODS}
    assert beside <= {a.split("#")[0] for a in re.findall(r'href="([^"$]+)"', html)} <= beside | {"", "data:,"}


def test_the_weights_of_the_page_are_near_the_models():
    w = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    q, scale = build_playground.quantised(w)
    assert np.abs(q).max() == build_playground.MOST == 8388607
    # Half a step, and the rounding of the scale and of the product to float32.
    assert np.abs(q * scale[:, None].astype(float) - w).max() <= np.abs(w).max() * 1.2e-7


@pytest.mark.parametrize("file", [f for f in SOURCES if f.suffix != ".py"], ids=lambda f: f.name)
def test_no_line_of_the_sources_is_longer_than_100_columns(file):
    lines = file.read_text(encoding="utf-8").splitlines()
    assert [i for i, line in enumerate(lines, 1) if len(line) > 100] == []


@pytest.mark.parametrize("method", METHODS)
def test_functions_and_numbers_of_a_method_are_those_of_its_file(method):
    script = (build_playground.SOURCE / f"{method}.js").read_text(encoding="utf-8")
    python = (ROOT / f"{method}.py").read_text()
    stated = {int(n) for n in re.findall(r"^ {4}.*\((\d{1,2})\)$", python.split('"""')[1], re.M)}
    assert {int(n) for n in NUMBER.findall("\n".join(re.findall("//.*", script)))} <= stated
    names = set(re.findall(r"^  (\w+)\(.*\) \{$", script, re.M))
    shared = {n for n in names if re.search(rf"^def {n}\(", python, re.M)}
    # One is enough for opd.js: what else it has, opd.py does not need (a gradient by hand, one term).
    assert len(shared) >= (1 if method == "opd" else 2), names


# ------------------------------------------------------------------------ in a browser


@pytest.fixture(scope="module")
def page():
    path = chromium()
    if path is None:
        pytest.skip("there is no Chromium here, so the playground was not tested in a browser; apt-get install -y chromium")
    with browser(path) as page:
        page.open(PAGE.as_uri())
        page.ready = float(page.until("document.body && document.body.dataset.ready"))
        page.run((ROOT / "tests/playground.js").read_text(encoding="utf-8"))
        yield page


@pytest.fixture(scope="module")
def cases(page):
    return page.run("numbers()", seconds=240)


@pytest.fixture(scope="module")
def models():
    """(the models with the page's rounded weights, the original ones, the tokenizer)."""
    tokenizer, cpu = load_tokenizer(str(ROOT / "toy/student")), torch.device("cpu")
    rounded, original = ({n: load_model(str(ROOT / "toy" / n), cpu, torch.float32) for n in build_playground.MODELS} for _ in range(2))
    for model in rounded.values():
        for p in model.parameters():
            if p.ndim == 2:
                q, scale = build_playground.quantised(p.detach().numpy())
                p.data.copy_(torch.tensor(q, dtype=torch.float32) * torch.tensor(scale)[:, None])
    return rounded, original, tokenizer


@torch.no_grad()
def logits(model, prompt, ids):
    """[len(ids), V]: what the model predicts in front of every token of `ids`."""
    return model(torch.tensor([prompt + ids])).logits[0][len(prompt) - 1 : -1]


def far(a, b):
    """The largest difference. Two lists of different lengths are infinitely far."""
    a, b = torch.as_tensor(a, dtype=torch.float64), torch.as_tensor(b, dtype=torch.float64)
    assert a.shape == b.shape
    return (a - b).abs().max().item() if a.numel() else 0.0


RUNS = [("rounded", 0, 1e-4), ("original", 1, 2e-3)]


@pytest.mark.slow
@pytest.mark.parametrize("which, number, tolerance", RUNS, ids=[r[0] for r in RUNS])
def test_logits_and_divergences_of_opd(cases, models, which, number, tolerance):
    tokenizer = models[2]
    assert len(cases["cases"]) == 20
    for case in cases["cases"]:
        found, prompt = case["teacher"], prompt_ids(tokenizer, case["problem"])
        student, teacher = (logits(models[number][n], prompt, found["ids"]) for n in ("student", "teacher"))
        assert far(found["student"], student[::8]) < tolerance
        assert far(found["teacher"], teacher[::8]) < tolerance
        s, t = student.log_softmax(-1), teacher.log_softmax(-1)
        for kind in ("reverse", "forward", "jsd"):
            assert far(found[kind], opd.divergence(s, t, kind)) < tolerance, kind


@pytest.mark.slow
@pytest.mark.parametrize("which, number, tolerance", RUNS, ids=[r[0] for r in RUNS])
def test_candidates_windows_distances_and_targets_of_topd(cases, models, which, number, tolerance):
    both, tokenizer, flags = models[number], models[2], cases["flags"]
    teacher = both["teacher"]
    teacher.ends, teacher.vocabulary = [tokenizer.eos_token_id], len(tokenizer)
    args = topd.Args(window_size=flags["K"], candidate_share=flags["candidate_share"], drop_share=flags["drop_share"], epsilon=flags["epsilon"])
    agree = points = 0
    for case in cases["cases"]:
        found, prompt = case["teacher"], prompt_ids(tokenizer, case["problem"])
        ids = found["ids"]
        s, t = (logits(both[n], prompt, ids).log_softmax(-1) for n in ("student", "teacher"))
        losses = topd.reverse_kl(s, t)
        places, pairs = topd.candidates(losses, args), []
        if places:
            hidden, cache = topd.read(teacher, torch.tensor([prompt + ids]), len(places) * flags["K"])
            with torch.no_grad():
                theirs, _ = topd.continuations(teacher, hidden, cache, [(0, len(prompt) + t) for t in places], flags["K"])
            own = [ids[t : t + flags["K"]] for t in places]
            sizes = [min(len(a), len(b)) for a, b in zip(theirs, own)]
            pairs = [(a[:n], b[:n]) for a, b, n in zip(theirs, own, sizes)]
        if [(p["t"], p["teacher"], p["student"]) for p in found["points"]] != [(t, *pair) for t, pair in zip(places, pairs)]:
            assert which == "original"  # there another token may win by less than the rounding
            continue
        agree += 1
        if not places:
            continue
        with torch.no_grad():
            expected = topd.compare([(0, t, losses[t].item()) for t in places], pairs, teacher)
        assert far([p["D"] for p in found["points"]], [p.distance for p in expected]) < tolerance
        kept, dropped = topd.divergent(expected, args)
        # Where two D are equal up to rounding, either may be dropped.
        groups = [[e for p, e in zip(found["points"], expected) if p["dropped"] == flag] for flag in (False, True)]
        assert [len(g) for g in groups] == [len(kept), len(dropped)]
        assert max([e.distance for e in groups[1]], default=0.0) <= min(e.distance for e in groups[0]) + tolerance / 10
        for group in groups:
            topd.soft_targets(group, args)
        for p, e in zip(found["points"], expected):
            assert far(p["q"], e.weights) < tolerance
            at = s[e.t : e.t + len(e.student)][:, e.teacher]
            guidance = (topd.negative_entropy(e) - (e.weights * at).sum().item()) / len(e.weights)
            assert abs(p["guidance"] - guidance) < tolerance
            points += 1
    assert agree >= 15
    assert points >= 20  # otherwise hardly anything was compared


@pytest.mark.slow
@pytest.mark.parametrize("which, number, tolerance", RUNS, ids=[r[0] for r in RUNS])
def test_views_and_targets_of_ar_opd(cases, models, which, number, tolerance):
    (*_, tokenizer), flags = models, cases["flags"]
    for case in cases["cases"]:
        found = case["views"]
        row = {**case, "prompt": case["problem"]}
        assert found["part"] == ar_opd.first_part(case["solution"], flags["rho"])
        users = ar_opd.views(row, ar_opd.Args(rho=flags["rho"]))
        read = {n: logits(models[number]["reader"], prompt_ids(tokenizer, u), found["ids"]) for n, u in users.items()}
        for name in ("plain", "partial", "full"):
            assert far(found[name], read[name][::8]) < tolerance, name
        plain, partial, full = (read[n].log_softmax(-1) for n in ("plain", "partial", "full"))
        target, _ = ar_opd.anchored_target(partial, full, flags["lam"], flags["clip"])
        assert far(torch.tensor(found["targets"]).exp(), target[::8].exp()) < tolerance
        assert far(found["losses"], ar_opd.forward_kl(target, plain)) < tolerance


@pytest.mark.slow
@pytest.mark.parametrize("which, number, tolerance", RUNS, ids=[r[0] for r in RUNS])
def test_verdicts_and_credit_of_hindsight_sd(cases, models, which, number, tolerance):
    tokenizer, with_peer = models[2], 0
    for case in cases["cases"]:
        found = case["group"]
        texts = [tokenizer.decode(y, skip_special_tokens=True).strip() for y in found["ids"]]
        right = [verify(t, case["answer"], y[-1] != tokenizer.eos_token_id) for t, y in zip(texts, found["ids"])]
        assert found["right"] == right
        i, j = found["chosen"], found["peer"]
        assert j != i and (j is None or right[j])
        y = found["ids"][i]
        context = privileged_prompt(case["problem"], None if j is None else texts[j], case["answer"])
        s, p = (logits(models[number]["reader"], prompt_ids(tokenizer, u), y).log_softmax(-1) for u in (case["problem"], context))
        written = torch.tensor(y)[:, None]
        assert far(found["credit"], (p.gather(1, written) - s.gather(1, written))[:, 0]) < tolerance
        assert far(found["losses"], hindsight_sd.divergence(p, s, "forward")) < tolerance
        if j is not None:
            assert found["tau"] == leaves(y, found["ids"][j])
            with_peer += 1
    assert with_peer >= 5


@pytest.mark.slow
def test_advantages_weights_and_clip_of_grpo(cases):
    differ = 0
    for case in cases["cases"]:
        found = case["group"]
        rewards, G = [float(x) for x in found["right"]], len(found["right"])
        for kind in ("std", "mean"):
            assert far(found[kind], grpo.advantages(rewards, G, kind)) < 1e-6
        drawn = [type("Drawn", (), {"ids": ids}) for ids in found["ids"]]
        for norm, weights in zip(("sequence", "token", "constant"), found["weights"]):
            args = grpo.Args(norm=norm, max_new_tokens=160)
            assert far(weights, grpo.token_weights(drawn, [True] * G, args)) < 1e-9
        table = [(ratio, A) for ratio in (0.5, 0.9, 1.1, 1.5) for A in (-1.2, 0.7)]
        for (ratio, A), (loss, stopped) in zip(table, found["clipped"]):
            expected = grpo.clipped_loss(torch.tensor([ratio]).log(), torch.zeros(1), torch.tensor([A]), 0.2, 0.28)
            assert abs(loss - expected[0].item()) < 1e-6 and stopped == expected[1].item()
        differ += 0 < sum(found["right"]) < G
    assert differ >= 5


@pytest.mark.slow
def test_a_click_on_everything_changes_something_and_makes_no_error(page):
    said = page.run("click_through()", seconds=600)
    assert said["refused"].startswith("Not yet. It must end like")
    assert said["accepted"] == "It is a problem. Its answer is 10."
    assert page.errors == []


@pytest.mark.slow
def test_clicks_at_a_bad_moment_mix_nothing_up(page):
    found = page.run("at_a_bad_moment()", seconds=300)
    assert found.pop("is_off") < 1e-4
    assert found == {"of_one_problem": True, "is_counted": False, "rho": 0.8, "branches": 2}
    assert page.errors == []


PROBLEM = "a: starts with 5 coins. c: doubles the coins. How many coins at the end? Answer briefly."
REFUSED = {
    "second start": PROBLEM.replace("c:", "b: starts with 7 coins. c:"),
    "start late": PROBLEM.replace("How", "d: begins with 7 coins. How"),
    "coins": PROBLEM.replace("starts with", "finds"),
    "How many": PROBLEM.replace(" Answer", " How many coins at the end? Answer"),
    "9 # 0": PROBLEM.replace("c:", "b: finds 9 # 0 stones. c:"),
    "d: halves the coins": PROBLEM.replace("How", "d: loses 9 coins. d: halves the coins. How").replace("d: l", "b: l"),
    "label": PROBLEM.replace("c:", "a:"),
}


@pytest.mark.slow
def test_an_own_problem_is_one_that_the_python_takes(page):
    """And the models have to know its words, and to have room for it."""
    assert page.run(f"refused({json.dumps(PROBLEM)})") == ""
    for word, text in REFUSED.items():
        said = page.run(f"refused({json.dumps(text)})")
        assert said and (word in said or word == "start late" and "second start" in said), (word, said)
        with pytest.raises(ValueError):
            world.parse(text)
    assert '"apples"' in page.run(f"refused({json.dumps(PROBLEM.replace('coins', 'apples'))})")
    more = "".join(f"{label}: {'wins' if i % 2 else 'drops'} 1 coins. " for i, label in enumerate("bdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVW"))
    text = PROBLEM.replace("c:", more + "c:").replace("Answer briefly", "Explain each step")
    assert "too long" in page.run(f"refused({json.dumps(text)})")


@pytest.mark.slow
def test_a_verdict_is_that_of_the_python(page):
    cases = [(rf"It is \boxed{{{box}}}.", gold) for box, gold in (("30.", "30"), ("5 so", "5"), ("5 a", "5"), ("5 5", "55"), ("-5", "5"), ("5:", "5"), ("", "5"))]
    cases += [(text, "12") for text in ("The answer is -12}", "The answer is 12}", "16 - 12", "14 -12", "12.5", "12.", r"12 \boxed{")]
    for text, gold in cases:
        assert page.run(f"world.verify({json.dumps(text)}, {json.dumps(gold)}, false)") == verify(text, gold, False), text


ODD = {  # link: what it chooses. What it may not say is left out, or taken to the nearest limit.
    "tab=toString&constructor=1": {"tab": "opd"},
    "tab=grpo&rollout=99": {"tab": "grpo", "rollout": 7},
    "tab=grpo&variant=toString&flipped=99,x": {"variant": "grpo", "flipped": ""},
    "tab=opd&at=1.5&temperature=-1": {"at": 2, "temperature": 0},
    "tab=opd&path=3:14.5": {"path": ""},
    "tab=opd&kind=toString": {"kind": "reverse"},
    "tab=topd&K=-3&epsilon=0": {"K": 4, "epsilon": 0.001},
    "tab=topd&K=1000&plan=none&position=2.5": {"K": 24, "plan": "sinkhorn"},
    "tab=ar_opd&lam=99&rho=0.52&ar_seed=-4.5": {"lam": 1.5, "rho": 0.5, "ar_seed": 0},
    "tab=hindsight_sd&peer=99&problem=1e9": {"problem": 29},
}


@pytest.mark.slow
def test_an_odd_link_opens_something(page):
    for link, chosen in ODD.items():
        found = page.run(f"open_link('#{link}')")
        assert {name: found[name] for name in chosen} == chosen, link
    assert page.errors == []


@pytest.mark.slow
def test_a_link_to_a_candidate_of_a_branch_restores_it(page):
    found = page.run("open_link('#tab=topd&candidate_share=0.1&candidate=31&position=1&path=43:46')")
    assert (found["candidate"], found["position"], found["path"]) == (31, 1, "43:46")
    assert page.errors == []


@pytest.mark.slow
def test_what_grpo_says_follows_from_the_verdicts_as_they_are_turned(page):
    page.run("open_link('#tab=grpo&problem=8&flipped=0')")
    text = "$('#group-says').textContent + $('#grpo-says').textContent"
    right = page.run("grpo_numbers().right")
    assert page.run(text).startswith(f"{sum(right)} of 8 are right.")
    turned = "right_ones().map((ok, i) => (ok ? i : -1)).filter((i) => i >= 0).join(',')"
    page.run(f"S.flipped = {turned}; set_variant('dapo')")  # now nobody is right
    said = page.run(text)
    assert "0 of 8 are right. All verdicts agree." in said and "Mean R = 0.00" in said and "never uses" in said
    # A penalty makes the rewards differ. It makes no signal.
    page.run("GROUP_NOW.list[2].ids = Array(160).fill(5); show_grpo()")
    assert page.run("grpo_numbers().advantages.some((A) => A !== 0)")
    said = page.run(text)
    assert "Mean R = −0.06" in said and "never uses" in said
    page.run("GROUP_NOW.drawn = ''")  # the next test draws another group


@pytest.mark.slow
def test_a_screen_reader_and_a_keyboard_get_what_they_need(page):
    page.run("open_link('#tab=opd')")
    page.run("$('#skip').click()")
    assert page.run("document.activeElement.id") == "opd-text"
    assert page.run("$('#clip').getAttribute('aria-valuetext')") == "5 nats"
    page.run("slide('clip', 6.5, '#clip-is')")
    assert page.run("$('#clip').getAttribute('aria-valuetext')") == "off"
    page.run("set_lambda(1.2)")
    assert page.run("$('#lam').getAttribute('aria-valuetext')") == "1.20"
    # What is read out loud stays as it is while the arrow keys move.
    kept = page.run("(async () => { const says = $('#opd-says').firstChild; await press('#opd-text', 'ArrowRight', '#opd-look'); return says.isConnected; })()")
    assert kept
    assert page.run("$('#temperature-says').hidden")
    page.run("slide('temperature', 0.5, '#temperature-says')")
    assert "not a sample" in page.run("$('#temperature-says').textContent") and not page.run("$('#temperature-says').hidden")
    # The tab is left before the change of the temperature draws something.
    page.run("slide('temperature', 1, '#temperature-says').then(() => change_tab('ar_opd'))")
    page.run("new Promise((done) => setTimeout(done, 300))")
    assert page.run("S.tab") == "ar_opd"
    assert page.errors == []


@pytest.mark.slow
@pytest.mark.parametrize("width", [320, 360, 412])
def test_a_finger_can_move_every_slider(page, width):
    page.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
    seen = []
    for tab in METHODS:
        page.run(f"change_tab({json.dumps(tab)})")
        page.until("is_drawn()")
        seen += page.run("visible('input[type=range]').map((e) => [e.id, e.getBoundingClientRect().width])")
    assert len(seen) >= 9
    assert [s for s in seen if s[1] < 100] == []
    assert page.errors == []


@pytest.mark.slow
def test_a_link_restores_a_view(page):
    found = page.run("restore_a_link()")
    assert all(set(v["link"][1:].split("&")) - {"tab=opd"} <= set(v["now"][1:].replace("%3A", ":").split("&")) for v in found["views"]), found["views"]
    assert found["at"] == 6 and found["branches"] == 2 and found["kind"] == "forward"
    assert page.errors == []


@pytest.mark.slow
def test_everything_that_can_be_operated_has_a_name(page):
    assert page.run("nameless()") == []


@pytest.mark.slow
@pytest.mark.parametrize("tab", METHODS)
@pytest.mark.parametrize("width", [1300, 420, 320])
def test_nothing_is_wider_than_the_screen(page, tab, width):
    page.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
    page.run(f"change_tab({json.dumps(tab)})")
    page.until("$(`#${S.tab} .says`).textContent.length > 20 && !document.querySelector('.cursor')")
    assert page.run("document.documentElement.scrollWidth <= innerWidth"), page.run("document.documentElement.scrollWidth")
    assert page.run("sticking_out()") == []
    assert page.errors == []


COVERED = """((sheet) => visible(`#${S.tab} .bench, #${S.tab} .controls:not(.inside)`)
  .map((e) => [e.id || e.className, e.getBoundingClientRect()])
  .filter(([, r]) => r.top < Math.min(innerHeight, sheet.bottom) && r.bottom > sheet.top)
  .map(([name]) => name))($(`#${S.tab} .side`).getBoundingClientRect())"""


@pytest.mark.slow
@pytest.mark.parametrize("tab", ["opd", "ar_opd", "hindsight_sd"])
def test_the_sheet_of_a_token_waits_for_the_rollout(page, tab):
    """On a narrow screen it sticks to the lower edge. It must not lie over problem and controls."""
    page.call("Emulation.setDeviceMetricsOverride", width=420, height=900, deviceScaleFactor=1, mobile=False)
    page.run(f"change_tab({json.dumps(tab)})")
    page.until("$(`#${S.tab} .says`).textContent.length > 20 && !document.querySelector('.cursor')")
    page.run("scrollTo(0, 0)")
    top = page.run("$(`#${S.tab}-text`).getBoundingClientRect().top")
    assert top > 900  # the rollout is below the screen
    for y in range(0, int(top), 150):
        page.run(f"scrollTo(0, {y})")
        page.run("new Promise((done) => setTimeout(done, 60))")
        assert page.run(COVERED) == [], y
    page.run("$(`#${S.tab}-text`).scrollIntoView()")
    page.until("getComputedStyle($(`#${S.tab} .side`)).position === 'sticky'", 10)
    assert page.run("$(`#${S.tab} .side`).getBoundingClientRect().bottom - innerHeight") < 2
    assert page.errors == []


@pytest.mark.slow
@pytest.mark.parametrize("tab", METHODS)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_all_texts_can_be_read_on_their_colours(page, tab, dark):
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    page.call("Emulation.setEmulatedMedia", features=[scheme])
    page.run(f"change_tab({json.dumps(tab)})")
    page.until("$(`#${S.tab} .says`).textContent.length > 20 && !document.querySelector('.cursor')")
    paper = page.run("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, paper[4:-1].split(","))) < 150) == dark
    found = page.run(CONTRAST)
    assert len(found) > 60
    assert [f for f in found if f[0] < 4.5] == []


def finger(page, selector, *steps):
    """Puts a finger on the middle of an element, moves it by steps (dx, dy), and lifts it."""
    page.run(f"$({json.dumps(selector)}).scrollIntoView({{block: 'center'}})")
    # Where it lies when it has come to rest: on a busy machine the page is still being laid out.
    middle = f"(() => {{ const r = $({json.dumps(selector)}).getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; }})()"
    places = [None, page.run(middle)]
    while places[-1] != places[-2]:
        page.run("new Promise((done) => setTimeout(done, 100))")
        places.append(page.run(middle))
    x, y = places[-1]
    page.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
    for dx, dy in steps:
        x, y = x + dx, y + dy
        page.call("Input.dispatchTouchEvent", type="touchMove", touchPoints=[{"x": x, "y": y}])
    page.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    page.run("new Promise((done) => setTimeout(done, 500))")  # a tap right behind a swipe only stops it


@pytest.mark.slow
@pytest.mark.parametrize("width", [1300, 420])
def test_a_finger_chooses_a_token_and_drags_lambda(page, width):
    page.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
    page.run("change_tab('ar_opd')")
    page.until("AR_OPD.ready && $('#lambda') && !document.querySelector('.cursor')")
    page.run("AR_OPD.select(5)")
    page.until("AR_OPD.at == 5 && $('#ar_opd-head').textContent.includes('token 6 of')")
    finger(page, "#ar_opd-text .token[data-i='1']")
    page.until("AR_OPD.at == 1 && $('#ar_opd-head').textContent.includes('token 2 of')")
    finger(page, "#lambda")
    middle = page.run("S.lam")
    finger(page, "#lambda", (20, 0), (20, 5), (20, 5))
    right = page.run("S.lam")
    finger(page, "#lambda", (-20, 0), (-40, 0))
    assert page.run("S.lam") < middle < right
    assert page.run("$('#lam-is').textContent") == f"{page.run('S.lam'):.2f}"
    assert page.errors == []


@pytest.mark.slow
def test_it_is_live_at_once(page):
    """The goals are two seconds and one on a quiet laptop. Here other processes may run, too: the
    best of three tries counts, and has twice as long."""
    ready, rollout = [], []
    for _ in range(3):
        page.call("Page.navigate", url="about:blank")
        page.call("Page.navigate", url=PAGE.as_uri())
        ready.append(float(page.until("document.body && document.body.dataset.ready")))
        page.run((ROOT / "tests/playground.js").read_text(encoding="utf-8"))
        rollout.append(page.run("show_tab('opd', false).then(seconds_of_a_rollout)"))
    assert min(ready) < 4000, ready
    assert min(rollout) < 2, rollout
