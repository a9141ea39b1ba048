"""The page in a real browser, where one is installed; nothing here reaches a network."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from html import unescape
from pathlib import Path

import pytest
from sample_report import compared, diagnosis, failing, fleet, passing, plane, runs_over_time
from test_render import evil

from hetero.progress import Reporter
from hetero.render import _verdict, html
from hetero.report import Report
from hetero.stages import reviewing

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next((path for name in NAMES if (path := shutil.which(name))), None)

pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(NAMES)} is installed")

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # No name resolves, so neither the page nor the browser itself gets anywhere.
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--enable-logging=stderr",
)


@dataclass(frozen=True)
class Visit:
    """What a visit to a page left behind."""

    dom: str
    console: list[str]
    requests: list[str]


def visit(text: str, folder: Path, width: int = 1280, flags: tuple[str, ...] = ()) -> Visit:
    page, log = folder / "page.html", folder / "net.json"
    page.write_text(text, encoding="utf-8")
    done = subprocess.run(
        [
            str(BROWSER),
            *FLAGS,
            *flags,
            f"--user-data-dir={folder / 'profile'}",
            f"--window-size={width},900",
            f"--log-net-log={log}",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=True,
    )
    return Visit(
        done.stdout, re.findall(r":CONSOLE.*", done.stderr), asked_for_by_page(log, page.as_uri())
    )


def asked_for_by_page(log: Path, itself: str) -> list[str]:
    events = json.loads(log.read_text(encoding="utf-8"))["events"]
    found = [e["params"] for e in events if "initiator" in e.get("params", {})]
    # The browser's own requests, for updates and the like, have no page for an initiator.
    return [
        p["url"]
        for p in found
        if p["initiator"] != "not an origin" and not p["url"].startswith(("data:", itself))
    ]


def without_policy(text: str) -> str:
    bare, count = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    assert count == 1
    return bare


def test_the_check_itself_sees_requests_and_console_errors(tmp_path):
    page = (
        "<img src='http://example.org/x.png'><link rel=stylesheet href='https://example.org/a.css'>"
        "<script>console.error('boom')</script>"
    )
    seen = visit(page, tmp_path)
    assert set(seen.requests) == {"http://example.org/x.png", "https://example.org/a.css"}
    assert any("boom" in line for line in seen.console)


@pytest.mark.parametrize("make", [passing, failing, fleet, compared, evil])
def test_the_page_shows_the_verdict_asks_for_nothing_and_has_no_errors(make, tmp_path):
    made: Report = make()
    text = html.render(made, plane(), diagnosis() if make is evil else None)
    # Once with its content security policy, and once without, so that it is not the policy alone.
    for folder, page in (("with", text), ("without", without_policy(text))):
        (tmp_path / folder).mkdir()
        seen = visit(page, tmp_path / folder)
        assert seen.console == []
        assert seen.requests == []
        body = re.sub(r"<style>.*?</style>", "", seen.dom, flags=re.DOTALL)
        words = unescape(" ".join(re.sub(r"<[^>]+>", " ", body).split())).replace("\u00a0", " ")
        assert " ".join(_verdict.sentence(made).split()) in " ".join(words.split())


def history(folder: Path) -> str:
    runs_over_time(folder)
    reviewing.review([folder], folder, reporter=Reporter(quiet=True))
    return (folder / reviewing.PAGE).read_text(encoding="utf-8")


def test_the_page_of_runs_over_time_asks_for_nothing_and_has_no_errors(tmp_path):
    seen = visit(history(tmp_path / "runs"), tmp_path)
    assert seen.console == []
    assert seen.requests == []
    assert "▼ regression" in seen.dom


WIDTHS = (360, 768, 820, 1280)


@pytest.mark.parametrize("make", [failing, fleet, compared, history])
def test_the_page_does_not_scroll_sideways(make, tmp_path):
    # Headless windows have a least width, so the page is put into frames as wide as what it is
    # read on, all of them at once.
    probe = (
        "<script>addEventListener('load', () => parent.postMessage("
        "[innerWidth, document.documentElement.scrollWidth], '*'))</script>"
    )
    if make is history:
        page = history(tmp_path / "runs")
    else:
        page = html.render(make(), plane(), diagnosis() if make is failing else None)
    inner = without_policy(page).replace("</body>", f"{probe}</body>")
    (tmp_path / "inner.html").write_text(inner, encoding="utf-8")
    outer = (
        "<script>addEventListener('message', e => document.title += ` [${e.data}]`)</script>"
    ) + "".join(
        f"<iframe src='inner.html' style='border:0;width:{width}px;height:900px'></iframe>"
        for width in WIDTHS
    )
    seen = visit(outer, tmp_path, width=1400)
    found = {int(a): int(b) for a, b in re.findall(r"\[(\d+),(\d+)\]", seen.dom)}
    assert set(found) == set(WIDTHS), seen.dom[:500]
    assert all(needed <= shown for shown, needed in found.items()), found


#: Every visible text whose contrast with what is behind it is below what WCAG 2.2 AA asks: 4.5, or
#: 3 for large letters. Colours that are see-through are mixed with what is behind them; Chromium
#: gives a color-mix() as color(srgb …).
CONTRAST = r"""
function parts(text) {
  const n = (text.match(/-?[\d.]+(?:e-?\d+)?/g) || []).map(Number);
  return text.startsWith('color(srgb') ? [...n.slice(0, 3).map(x => 255 * x), n[3] ?? 1]
                                       : [n[0], n[1], n[2], n[3] ?? 1];
}
function over(top, below) {
  return [0, 1, 2].map(i => top[3] * top[i] + (1 - top[3]) * below[i]).concat(1);
}
function ground(e) {
  if (!e) return [255, 255, 255, 1];
  const own = parts(getComputedStyle(e).backgroundColor);
  return own[3] === 1 ? own : over(own, ground(e.parentElement));
}
function luminance(c) {
  const [r, g, b] = c.slice(0, 3).map(x => x / 255)
    .map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
addEventListener('load', () => {
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), poor = [];
  let seen = 0, node;
  while ((node = walk.nextNode())) {
    const e = node.parentElement, style = getComputedStyle(e);
    if (!node.data.trim() || !e.checkVisibility() || e.closest('svg, script, style')) continue;
    const below = ground(e), ink = over(parts(style.color), below);
    const [a, b] = [luminance(ink), luminance(below)].sort((x, y) => y - x);
    const size = parseFloat(style.fontSize), bold = style.fontWeight >= 700;
    const least = size >= 24 || (bold && size >= 18.66) ? 3 : 4.5;
    seen += 1;
    if ((a + 0.05) / (b + 0.05) < least) poor.push([node.data.trim().slice(0, 40), style.color,
      `rgb(${below.slice(0, 3).map(Math.round)})`].join(' on '));
  }
  const page = getComputedStyle(document.body).backgroundColor;
  document.title = JSON.stringify({seen, poor, page});
});
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("make", [failing, fleet, compared, history])
def test_every_text_stands_out_from_what_is_behind_it(make, scheme, tmp_path):
    text = make(tmp_path / "runs") if make is history else html.render(make(), plane(), diagnosis())
    page = without_policy(text).replace("</body>", f"<script>{CONTRAST}</script></body>")
    # 0 is dark and 1 light, in Chromium's own settings.
    flag = f"--blink-settings=preferredColorScheme={int(scheme == 'light')}"
    seen = visit(page, tmp_path, flags=(flag,))
    title = re.search(r"<title>(\{.*?\})</title>", seen.dom, re.DOTALL)
    assert title is not None, seen.console
    found = json.loads(unescape(title[1]))
    assert found["page"] == {"light": "rgb(244, 245, 247)", "dark": "rgb(15, 18, 22)"}[scheme]
    assert found["seen"] > 20
    assert found["poor"] == []


@pytest.mark.parametrize("make", [failing, fleet, compared, history])
def test_on_paper_nothing_is_cut_off(make, tmp_path):
    # Paper is neither scrolled nor dark. What is for print is applied to a frame as wide as A4 with
    # its margins of 12 mm: 186 mm of 96 dots an inch.
    text = make(tmp_path / "runs") if make is history else html.render(make(), plane(), diagnosis())
    assert "@media print" in text
    paper = without_policy(text).replace("@media print", "@media all")
    paper = paper.replace("@media screen", "@media not all")
    probe = (
        "<script>addEventListener('load', () => parent.postMessage(JSON.stringify("
        "[...document.querySelectorAll('*')].filter(e => e.checkVisibility() && "
        "e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflowX !== 'visible')"
        ".map(e => `${e.tagName} ${e.className}: ${e.scrollWidth} in ${e.clientWidth}`)"
        ".concat(document.documentElement.scrollWidth > innerWidth ? ['page'] : [])), '*'))"
        "</script>"
    )
    (tmp_path / "inner.html").write_text(paper.replace("</body>", f"{probe}</body>"), "utf-8")
    outer = (
        "<script>addEventListener('message', e => document.title = 'cut: ' + e.data)</script>"
        "<iframe src='inner.html' style='border:0;width:703px;height:900px'></iframe>"
    )
    seen = visit(outer, tmp_path)
    title = re.search(r"<title>cut: (.*?)</title>", seen.dom, re.DOTALL)
    assert title is not None, seen.dom[:500]
    assert json.loads(unescape(title[1])) == []
