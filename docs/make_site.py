"""The site of the documentation: `make docs`, or `python docs/make_site.py`, into build/site.

Pages stand in the repository where a Git host shows them, with links relative to each other. So the
site is built from a copy of the repository's shape, in build/pages: its Markdown, and what that
links to. Nothing is rewritten. Beside it the reference is written, out of docstrings and out of the
command line's own help. What turns the folder into HTML may be another program tomorrow:
decisions/0006-the-site.md.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"
PAGES = ("*.md", "docs/**/*.md", "export/*.md", "devices/*.md", "examples/**/*.md")

#: Where the written pages go.
REFERENCE = Path("docs/reference")

_FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")


def assemble(into: Path) -> None:
    """`into` made a copy of all pages and of the files they link to, with the reference beside."""
    shutil.rmtree(into, ignore_errors=True)
    for page in (p for pattern in PAGES for p in ROOT.glob(pattern)):
        text = page.read_text()
        _put(into / page.relative_to(ROOT), text)
        for target in _LINK.findall(_FENCE.sub("", text)):
            linked = (page.parent / target).resolve()
            if "://" not in target and linked.is_file() and linked.suffix != ".md":
                copied = into / linked.relative_to(ROOT)
                copied.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(linked, copied)
    for name, text in reference():
        _put(into / REFERENCE / name, text)


def reference() -> Iterator[tuple[str, str]]:
    """File name and text of each page of the reference."""
    import hetero

    yield "cli.md", commands()
    names = "\n\n".join(f"::: hetero.{name}" for name in hetero.__all__)
    yield (
        "python.md",
        "# Python: the public names\n\n"
        "What `from hetero import …` gives. [Everything else](modules.md) may change between "
        f"versions.\n\n{names}\n",
    )
    rows = []
    for name, modules in grouped().items():
        yield (
            f"{name}.md",
            f"# `{name}`\n\n" + "\n\n".join(f"::: {m}" for m in modules) + "\n",
        )
        rows.append(f"| [`{name}`]({name}.md) | {len(modules)} |")
    yield (
        "modules.md",
        "# Python: all modules\n\nWhat has no underscore in its name. The "
        "[public names](python.md) are what to begin with.\n\n| | modules |\n| --- | ---: |\n"
        + "\n".join(rows)
        + "\n",
    )


def grouped() -> dict[str, list[str]]:
    """Page -> modules on it: a package with its modules, and every other module by itself.

    The command line is left out: it has its own page.
    """
    found: dict[str, list[str]] = {}
    for name in modules():
        if name != "hetero" and not name.startswith("hetero.cli"):
            found.setdefault(".".join(name.split(".")[:2]), []).append(name)
    return found


def modules() -> list[str]:
    """Dotted names of all modules of hetero without an underscore, sorted."""
    names = set()
    for top, package in (("hetero", "hetero"), ("export", "hetero.export")):
        names |= set(_below(ROOT / top, package))
    return sorted(names | set(_below(ROOT / "devices", "hetero.devices")))


def _below(folder: Path, package: str) -> Iterator[str]:
    for path in folder.rglob("*.py"):
        parts = list(path.relative_to(folder).with_suffix("").parts)
        if package == "hetero" and parts[0] in ("export", "devices"):
            continue  # the links, which some Pythons follow and some do not
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        inside = path == folder / "__init__.py" or (path.parent / "__init__.py").exists()
        if inside and not any(part.startswith("_") for part in parts):
            yield ".".join((package, *parts))


def commands() -> str:
    """The help of every command, as Typer writes it, in Markdown."""
    code = [sys.executable, "-m", "typer", "hetero.cli", "utils", "docs", "--name", "hetero"]
    done = subprocess.run(code, capture_output=True, text=True, env=_environment(), check=True)
    heading, _, rest = done.stdout.partition("\n")
    if heading.strip() != "# `hetero`":
        raise SystemExit(f"typer printed {heading!r} instead of the documentation of hetero")
    return f"# The command line\n\nWhat `hetero COMMAND --help` prints, of every command.\n{rest}"


def build(into: Path) -> None:
    """The site in `into`; exits with the builder's code and words if there is a warning."""
    assemble(BUILD / "pages")
    code = [sys.executable, "-m", "properdocs", "build", "--strict", "--clean"]
    code += ["--config-file", str(ROOT / "mkdocs.yml"), "--site-dir", str(into)]
    done = subprocess.run(code, cwd=ROOT, env=_environment(), check=False)
    if done.returncode:
        sys.exit(done.returncode)
    print(f"{into.relative_to(ROOT) if into.is_relative_to(ROOT) else into}/index.html")


def _environment() -> dict[str, str]:
    # Narrow terminals must not wrap the help; the checkout comes before whatever is installed.
    return {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100", "NO_COLOR": "1"}


def _put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    build(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else BUILD / "site")
