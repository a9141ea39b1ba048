"""The site of the documentation builds without a warning, has no dead link, fetches nothing."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import hetero

ROOT = Path(__file__).parents[1]

#: Attributes by which a page makes a browser fetch something, by element.
FETCHED = {
    "script": {"src"},
    "img": {"src", "srcset"},
    "source": {"src", "srcset"},
    "video": {"src", "poster"},
    "audio": {"src"},
    "track": {"src"},
    "iframe": {"src"},
    "embed": {"src"},
    "object": {"data"},
    "input": {"src"},
    "use": {"href", "xlink:href"},
    "image": {"href", "xlink:href"},
}

#: Kinds of <link> that are for people and search engines; every other kind is fetched.
TOLD = {"canonical", "next", "prev", "alternate", "author", "license", "me"}

_CSS_URL = re.compile(r"""(?:url\(\s*|@import\s+)["']?([^"')\s;]+)""")


class Page(HTMLParser):
    """What a page fetches, where it leads, and which anchors it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self._style = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self._style = tag == "style"
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        self.fetched += [given[name] for name in FETCHED.get(tag, ()) if name in given]
        if tag == "link" and not set(given.get("rel", "").split()) & TOLD:
            self.fetched.append(given.get("href", ""))
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        self.fetched += _CSS_URL.findall(given.get("style", ""))

    def handle_data(self, data: str) -> None:
        if self._style:
            self.fetched += _CSS_URL.findall(data)


def outside(targets: list[str]) -> list[str]:
    """Those that leave the machine."""
    return [t for t in targets if re.match(r"\s*(?:[a-z]+:)?//", t, re.IGNORECASE)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site. The command fails on any warning, so that building is a test by itself."""
    for name in ("properdocs", "material", "mkdocstrings"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed; needs the extra 'docs'")
    into = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, ROOT / "docs/make_site.py", into], capture_output=True, text=True, cwd=into
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return into


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path.read_text()) for path in sorted(site.rglob("*.html"))}


@pytest.mark.slow
def test_nothing_of_the_site_is_fetched_from_elsewhere(site: Path, pages: dict[Path, Page]) -> None:
    assert len(pages) > 50
    away = {p.name: out for p, page in pages.items() if (out := outside(page.fetched))}
    assert away == {}
    for path in site.rglob("*.css"):
        assert outside(_CSS_URL.findall(path.read_text())) == [], path.name


def dead(site: Path, pages: dict[Path, Page]) -> Iterator[str]:
    """Links within the site that lead nowhere."""
    for path, page in pages.items():
        if path.name == "404.html":
            continue  # its links begin at the root of whatever host shows it
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            here = path.relative_to(site)
            if not target.is_file():
                yield f"{here}: {link}"
            elif parts.fragment and target in pages:
                # Lines of code are numbered by the script, and "top" every page has.
                anchor = unquote(parts.fragment)
                if anchor not in pages[target].anchors and not anchor.startswith("__"):
                    yield f"{here}: {link}"


@pytest.mark.slow
def test_no_link_within_the_site_is_dead(site: Path, pages: dict[Path, Page]) -> None:
    assert list(dead(site, pages)) == []


@pytest.mark.slow
def test_every_command_and_every_public_name_is_in_the_reference(pages: dict[Path, Page]) -> None:
    from typer.main import get_command

    from hetero.cli import app

    by_name = {path.name: page for path, page in pages.items() if path.parent.name == "reference"}
    commands = list(_commands(get_command(app), ("hetero",)))
    assert len(commands) > 20
    anchors = {"-".join(c) for c in commands if len(c) > 1}  # `hetero` itself is the page
    assert anchors <= by_name["cli.html"].anchors
    assert {f"hetero.{n}" for n in hetero.__all__} <= by_name["python.html"].anchors
    assert "hetero.methods.csd.Method" in by_name["hetero.methods.html"].anchors


def _commands(command: object, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    yield path
    for name, inner in getattr(command, "commands", {}).items():
        yield from _commands(inner, (*path, name))


def test_every_measurement_of_a_report_has_its_terms_in_the_glossary() -> None:
    from hetero.render._words import WORDS

    text = (ROOT / "docs/concepts.md").read_text().lower()
    terms = re.findall(r"^### (.+)$", text, re.MULTILINE)
    assert len(terms) == len(set(terms))
    glossary = terms[terms.index("report") + 1 :]
    assert glossary == sorted(glossary)
    # The words of which the names of measurements are made, where one has to know them.
    needed = {
        "recall": "recall",
        "map": "map",
        "heterogeneous": "heterogeneous",
        "homogeneous": "homogeneous",
        "reverse": "reverse",
        "paragon": "paragon",
        "control": "negative control",
        "independent": "independent",
        "pixels": "raw pixels",
        "chance": "chance",
        "flip": "negative flip",
        "cosine": "cosine",
        "neighbour": "neighbours kept",
        "latency": "latency",
        "throughput": "throughput",
        "sustained": "sustained",
        "fallen": "operators fallen back",
        "fpr": "fpr and tpr",
        "tpr": "fpr and tpr",
        "hubness": "hubness",
        "score": "score scale",
        "worst_class": "worst served",
        "worst_group": "worst served",
    }
    assert set(needed.values()) <= set(terms)
    assert all(any(part in name for name in WORDS) for part in needed)


def test_what_a_page_would_fetch_is_seen() -> None:
    page = Page(
        '<link rel="stylesheet" href="https://a/x.css"><link rel="canonical" href="https://b/">'
        '<script src="//c/x.js"></script><img src="d.png"><a href="https://e/">e</a>'
        "<style>@import 'https://f/x.css'; p {background: url(https://g/x.png)}</style>"
        '<p style="background: url(//h/x.png)" id="here">'
    )
    assert outside(page.fetched) == [
        *("https://a/x.css", "//c/x.js", "https://f/x.css", "https://g/x.png", "//h/x.png"),
    ]
    assert page.links == ["https://e/"]
    assert page.anchors == {"here"}


def test_a_dead_link_and_a_dead_anchor_are_seen(tmp_path: Path) -> None:
    one, two = tmp_path / "one.html", tmp_path / "two.html"
    one.write_text('<a href="two.html">2</a><a href="two.html#x">x</a><a href="three.html">3</a>')
    two.write_text('<p id="y"><a href="one.html#">1</a><a href="#y">y</a><a href="https://z/">')
    found = list(dead(tmp_path, {path: Page(path.read_text()) for path in (one, two)}))
    assert found == ["one.html: two.html#x", "one.html: three.html"]
