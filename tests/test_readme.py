"""The commands and programs of the documentation run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

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


def blocks(text: str) -> list[tuple[int, str, str]]:
    """Line, language and content of every block that is to be run."""
    return [
        (text.count("\n", 0, found.start("code")) + 1, found["kind"], found["code"])
        for found in BLOCK.finditer(text)
        if not found["skip"]
    ]


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


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in TEXTS if blocks((ROOT / n).read_text())])
def test_the_code_blocks_of_a_page_run_one_after_another_in_an_empty_folder(name, tmp_path):
    pytest.importorskip("torch", reason="the commands of the documentation train and export")
    for line, kind, code in blocks((ROOT / name).read_text()):
        done = run(kind, code, tmp_path)
        assert done.returncode == 0, f"{name}:{line}\n{code}\n{done.stdout}\n{done.stderr}"


def test_the_readme_has_blocks_to_run():
    kinds = {kind for _, kind, _ in blocks((ROOT / "README.md").read_text())}
    assert kinds == {"bash", "python"}


def test_every_block_that_is_not_run_says_why():
    for name in TEXTS:
        text = (ROOT / name).read_text()
        marked = len(re.findall(r"<!-- not run", text))
        assert marked == sum(bool(found["skip"]) for found in BLOCK.finditer(text)), name


def test_every_link_to_a_file_leads_somewhere():
    for name in TEXTS:
        text = re.sub(r"```.*?^```", "", (ROOT / name).read_text(), flags=re.DOTALL | re.MULTILINE)
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
            if "://" not in target:
                assert (ROOT / name).parent.joinpath(target).exists(), f"{name}: {target}"


def test_a_block_that_fails_is_seen(tmp_path):
    assert run("bash", "false | true\n", tmp_path).returncode
    assert run("bash", "false\ntrue\n", tmp_path).returncode
    assert run("python", "raise SystemExit(1)\n", tmp_path).returncode
    assert run("bash", "hetero --help && python -c 'import hetero'\n", tmp_path).returncode == 0


def test_blocks_are_told_apart():
    text = "a\n```bash\none\n```\n<!-- not run: slow -->\n```bash\ntwo\n```\n```python\n3\n```\n"
    assert blocks(text) == [(3, "bash", "one\n"), (10, "python", "3\n")]


def test_the_results_of_the_readme_are_those_of_the_benchmark_files():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.tables", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
