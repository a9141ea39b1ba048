"""A terminal shows what is ours; what libraries print, from native code too, is in the log."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

NOISY = """
import logging, os, sys, warnings
from pathlib import Path
from hetero.cli._noise import aside
from hetero.errors import HeteroWarning
with aside(Path(sys.argv[1])) as log:
    os.write(2, b"INFO: native\\n")
    warnings.warn("of a library")
    logging.getLogger("a.library").warning("logged")
    warnings.warn("the cache cannot be written", HeteroWarning)
    print("progress", file=sys.stderr)
os.write(2, b"after\\n")
"""


def run(code: str, *arguments: str | Path, **variables: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "", **variables},
    )
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()


def test_what_libraries_print_is_in_the_log_and_what_is_ours_is_shown(tmp_path):
    said = run(NOISY, tmp_path)
    assert said == ["hetero: the cache cannot be written", "progress", "after"]
    (log,) = tmp_path.iterdir()
    kept = log.read_text()
    assert "INFO: native\n" in kept
    assert "logged\n" in kept
    assert "of a library" in kept


def test_debugging_shows_everything(tmp_path):
    said = run(NOISY, tmp_path, HETERO_DEBUG="1")
    assert "INFO: native" in said
    assert "logged" in said
    assert not list(tmp_path.iterdir())


def test_a_log_of_nothing_is_not_kept_and_only_the_newest_are(tmp_path):
    for number in range(12):
        (tmp_path / f"20000101-0000{number:02}-1.log").write_text("old")
    run(
        "import sys; from pathlib import Path\nfrom hetero.cli._noise import aside\n"
        "with aside(Path(sys.argv[1])): pass",
        tmp_path,
    )
    assert sorted(p.name for p in tmp_path.iterdir())[0] == "20000101-000002-1.log"
    assert len(list(tmp_path.iterdir())) == 10


def test_where_no_log_can_be_written_nothing_is_put_aside(tmp_path):
    (tmp_path / "file").write_text("")
    assert "INFO: native" in run(NOISY, tmp_path / "file")


def test_standard_error_that_somebody_replaced_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    from hetero.cli._noise import aside

    with aside(tmp_path) as log:
        assert log is None
        print("seen", file=sys.stderr)
    assert capsys.readouterr().err == "seen\n"


def test_completion_answers_without_loading_anything_heavy():
    code = (
        "import sys, atexit; from hetero.cli import main\n"
        "heavy = {'torch', 'numpy', 'onnx', 'scipy'}\n"
        "atexit.register(lambda: print('loaded', *sorted(heavy & set(sys.modules))))\n"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "_HETERO_COMPLETE": "complete_bash",
            "COMP_WORDS": "hetero tr",
            "COMP_CWORD": "1",
        },
    )
    assert done.stdout.split() == ["train", "loaded"]
    assert done.stderr == ""
