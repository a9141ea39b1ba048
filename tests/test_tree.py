"""The tree of modules reads as it is drawn: named on the sheet, and none too long."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHEET = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
FOLDERS = ("devices", "export", "hetero")

MOST_LINES = 400

#: What is longer, and why.
LONG = {
    "devices/_worker.py": "one file, copied as it is to devices that have nothing of ours",
}


def modules() -> dict[str, Path]:
    """Every module of the three folders by its path; links into the other two not followed."""
    found = {}
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            name = path.relative_to(ROOT).as_posix()
            if not name.startswith(("hetero/export/", "hetero/devices/")):
                found[name] = path
    return found


def on_the_sheet() -> set[str]:
    """Paths that the drawing names: "devices/ssh.py", "hetero/index"."""
    drawn = re.search(r"^```\n(.*?)^```$", SHEET, re.MULTILINE | re.DOTALL)
    assert drawn, "docs/architecture.md has no drawing"
    head, _, *lines = drawn[1].splitlines()
    edges = [head.index(f"{folder}/") for folder in FOLDERS]
    named = set()
    for line in lines:
        for folder, low, high in zip(FOLDERS, edges, [*edges[1:], None], strict=True):
            for name in re.findall(r"(?<![\w.])(\w+(?:\.py|/))", line[low:high]):
                named.add(f"{folder}/{name.rstrip('/')}")
    return named


def test_everything_on_the_sheet_exists():
    gone = [name for name in sorted(on_the_sheet()) if not (ROOT / name).exists()]
    assert not gone, f"docs/architecture.md names what is not there: {gone}"


def test_everything_public_is_on_the_sheet():
    public = set()
    for folder in FOLDERS:
        for path in (ROOT / folder).iterdir():
            if path.name.startswith("_") or path.is_symlink():
                continue
            if path.suffix == ".py" or (path / "__init__.py").exists():
                public.add(f"{folder}/{path.name}")
    assert len(public) > 50
    missing = sorted(public - on_the_sheet())
    assert not missing, f"docs/architecture.md says nothing of {missing}"


def test_no_module_is_longer_than_a_reader_can_hold_without_a_reason():
    lengths = {n: path.read_text("utf-8").count("\n") for n, path in modules().items()}
    assert len(lengths) > 200
    long = {name: n for name, n in lengths.items() if n > MOST_LINES and name not in LONG}
    assert not long, f"split along a natural seam, or say why in LONG: {long}"


def test_every_exception_is_still_needed():
    for name, why in LONG.items():
        assert why
        assert modules()[name].read_text("utf-8").count("\n") > MOST_LINES, name
