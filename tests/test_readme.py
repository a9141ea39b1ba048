"""The commands and programs of the documentation run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from documentation import BLOCK, ROOT, TEXTS, blocks, escaping, run

#: Each in an empty folder; the tutorials share one, see test_tutorials.py.
ALONE = [
    name
    for name in TEXTS
    if not name.startswith("docs/tutorials/") and blocks((ROOT / name).read_text())
]


@pytest.mark.slow
@pytest.mark.parametrize("name", ALONE)
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


@pytest.mark.parametrize("name", TEXTS)
def test_no_block_of_a_page_is_neither_run_nor_marked(name):
    assert escaping((ROOT / name).read_text()) == []


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("```bash\nhetero demo\n```\n", False),
        ("<!-- not run: slow -->\n```bash\nhetero demo\n```\n", False),
        ("```text\nverdict: fault\n```\n", False),
        ("```\nhetero/ is a folder\n```\n", False),
        ("```\nhetero demo\n```\n", True),
        ("```text\n$ pip install hetero\n```\n", True),
        ("```sh\nhetero demo\n```\n", True),
        ("```console\nhetero demo\n```\n", True),
        ("```python3\nprint()\n```\n", True),
        ("```bash title=x\nhetero demo\n```\n", True),
        ("- one\n\n  ```bash\n  hetero demo\n  ```\n", True),
        ("~~~bash\nhetero demo\n~~~\n", True),
        ("```bash\nhetero demo\n", True),
    ],
)
def test_a_block_that_would_escape_is_seen(text, seen):
    assert bool(escaping(text)) == seen


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
