"""The pages of the documentation, their blocks of code, and a way to run these."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TEXTS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "export/*.md", "devices/*.md", "examples/**/*.md")
    for path in ROOT.glob(pattern)
)
BLOCK = re.compile(
    r"^(?P<skip><!-- not run: (?P<why>.+?) -->\n)?```(?P<kind>bash|python)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)

#: Any fence, however it is written or indented, with its language and what follows.
FENCE = re.compile(r"^(?P<indent>[ >]*)(?P<mark>`{3,}|~{3,})(?P<kind>[^\n`]*)$", re.MULTILINE)

#: Languages of blocks that are read, not run.
DATA = {"", "text", "toml", "json", "yaml", "csv"}

#: How a line begins that somebody would paste into a terminal.
COMMAND = re.compile(
    r"^\s*(?:\$ )?(?:hetero|pip|python3?|make|npm|apt-get|torchrun|docker|git) [a-z-]", re.MULTILINE
)


def blocks(text: str) -> list[tuple[int, str, str]]:
    """Line, language and content of every block that is to be run."""
    return [
        (text.count("\n", 0, found.start("code")) + 1, found["kind"], found["code"])
        for found in BLOCK.finditer(text)
        if not found["skip"]
    ]


def escaping(text: str) -> list[str]:
    """What keeps a block from being run or marked: one line each, with the block's line."""
    found = []
    known = {m.start("kind") for m in BLOCK.finditer(text)}
    fences = list(FENCE.finditer(text))
    for opening, closing in zip(fences[::2], fences[1::2], strict=False):
        line = text.count("\n", 0, opening.start()) + 1
        kind, content = opening["kind"].strip(), text[opening.end() : closing.start()]
        if opening["indent"] or opening["mark"] != "```":
            found.append(f"{line}: write ``` at the beginning of the line")
        elif kind in ("bash", "python"):
            if opening.start("kind") not in known:
                found.append(f"{line}: this {kind} block is not seen by the tests")
        elif kind not in DATA:
            found.append(f"{line}: {kind!r} is neither run nor data; there are {sorted(DATA)}")
        elif COMMAND.search(content):
            found.append(f"{line}: commands that nobody runs; make the block bash, run or marked")
    if len(fences) % 2:
        found.append("a block is not closed")
    return found


def run(kind: str, code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A block run in `folder`, with the package as `hetero` and `python` on the path."""
    tools = folder / ".bin"
    tools.mkdir(exist_ok=True)
    for name, arguments in (
        ("hetero", "-c 'from hetero.cli import main; main()'"),
        ("python", ""),
    ):
        (tools / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n')
        (tools / name).chmod(0o755)
    command = ["bash", "-euo", "pipefail", "-c", code]
    if kind == "python":
        command = [sys.executable, "-c", code]
    return subprocess.run(
        command,
        cwd=folder,
        env={
            **os.environ,
            "PATH": f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
