"""What CI services are given: annotations, summaries, the action, and the snippets of the docs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
from sample_report import DEVICE, failing, passing, unjudged

from hetero import cli
from hetero.cli._helpers import finish
from hetero.render import github, markdown
from hetero.report import Limit, Measurement, NotRun, Report

ROOT = Path(__file__).resolve().parent.parent


def runner(text: str) -> list[tuple[str, str, str]]:
    """Kind, title and message of every annotation, read as the runner reads them."""
    out = []
    for line in text.splitlines():
        # ActionCommand.TryParseV2 of actions/runner: up to the next "::" is command and properties.
        head, message = re.fullmatch(r"::([^:]*(?:(?!::).)*?)::(.*)", line).groups()  # type: ignore[union-attr]
        kind, _, properties = head.partition(" ")
        title = dict(x.split("=", 1) for x in properties.split(","))["title"]
        for sign, code in ((":", "%3A"), (",", "%2C")):
            title = title.replace(code, sign)
        for sign, code in (("\r", "%0D"), ("\n", "%0A"), ("%", "%25")):
            title, message = title.replace(code, sign), message.replace(code, sign)
        out.append((kind, title, message))
    return out


def undecided(count: int, why: str = "", outcome: str = "fail") -> Report:
    bound = 0.5 if outcome == "fail" else 2.0
    rows = tuple(
        Measurement(f"odd_{at:02}", 1.0, "", "local", "onnx", "fp32", ci=(0.0, 3.0))
        for at in range(count)
    )
    by: Any = "value" if outcome == "fail" else "interval"
    return Report("odd", rows).judged_by(
        [Limit(m.name, at_most=bound, by=by, why=why) for m in rows]
    )


# -- annotations ----------------------------------------------------------------------------------


def test_a_report_that_passes_annotates_nothing() -> None:
    assert github.render(passing()) == ""


def test_each_failure_is_an_error_with_its_place_number_and_reason() -> None:
    found = runner(github.render(failing()))
    assert {kind for kind, _, _ in found} == {"error"}
    (told,) = (m for _, title, m in found if title == "Recall@1 lost to PyTorch, TFLite int8")
    assert told.startswith("20.0 points")
    assert "limit ≤ 3 points" in told
    assert told.endswith("What an export may cost.")


def test_what_is_undecided_or_was_lost_is_a_warning() -> None:
    (one,) = runner(github.render(undecided(1, outcome="inconclusive")))
    assert one[0] == "warning"
    assert "undecided: the limit lies inside" in one[2]
    lost = NotRun("onnx", "int8", "pi", "pi: went away", "device")
    (one,) = runner(github.render(replace(passing(), not_run=(lost,))))
    assert one == ("warning", "Not run: ONNX int8 on pi", "pi: went away")


def test_a_report_in_which_nothing_was_judged_says_so() -> None:
    ((kind, title, _),) = runner(github.render(unjudged()))
    assert (kind, title) == ("warning", "Nothing was judged")


def test_no_text_ends_a_line_or_begins_a_command() -> None:
    evil = "a, b: 100%\r\n::set-output name=x::y\x1b[31m%0A"
    report = undecided(1, why=evil)
    rows = tuple(replace(m, device=evil) for m in report.measurements)
    told = github.render(replace(report, measurements=rows))
    assert told.count("\n") == 1
    assert "\x1b" not in told
    ((kind, title, message),) = runner(told)
    assert kind == "error"
    assert title.startswith("Odd 00, ONNX fp32")
    assert "100%" in message
    # Escapes are of the text itself, so that one in it does not become a line break.
    assert github._data("100%\r\n%0A") == "100%25%0D%0A%250A"
    assert github._property("a,b:c%") == "a%2Cb%3Ac%25"


@pytest.mark.parametrize(("count", "shown", "last"), [(10, 10, "Odd 09"), (23, 10, "14 more")])
def test_a_step_has_ten_annotations_of_a_kind(count: int, shown: int, last: str) -> None:
    found = runner(github.render(undecided(count)))
    assert len(found) == shown
    assert found[-1][1].startswith(last)


# -- summary and outputs --------------------------------------------------------------------------


def test_the_summary_is_the_markdown_report() -> None:
    assert github.summary(failing()) == markdown.render(failing())


def test_a_long_summary_is_cut_after_a_line_and_what_was_open_is_closed() -> None:
    report = replace(failing(), facts={f"fact {i}": "é" * 100 for i in range(300)})
    whole = markdown.render(report)
    for room in (20_000, 20_001, 20_002, 2_000, 900):
        text = github.summary(report, room)
        assert len(text.encode()) <= room
        assert "Cut here" in text
        assert text.count("<details>") == text.count("</details>")
        head = text.split("\n</details>\n\n_Cut")[0].split("\n\n_Cut")[0]
        assert whole.startswith(head)
        assert head.endswith("\n")
    assert github.summary(report, 50) == github.summary(report, -5) == ""


def test_what_other_commands_of_the_step_wrote_stays_and_counts(tmp_path: Path) -> None:
    file, out = tmp_path / "summary", tmp_path / "output"
    file.write_text("before\n")
    environ = {"GITHUB_STEP_SUMMARY": str(file), "GITHUB_OUTPUT": str(out)}
    github.tell(failing(), Path("runs/check\nverdict=pass"), environ)
    assert file.read_text() == "before\n" + markdown.render(failing())
    told = out.read_text().splitlines()
    assert told == ["verdict=fail", "report=runs/check verdict=pass/report.html"]
    file.write_bytes(b"x" * github.SUMMARY_BYTES)
    github.tell(failing(), Path("x"), environ)
    assert file.stat().st_size == github.SUMMARY_BYTES
    github.tell(failing(), Path("x"), {})


@pytest.mark.parametrize(
    ("asked", "actions", "told"),
    [(None, "true", True), (None, "", False), (True, "", True), (False, "true", False)],
)
def test_a_command_tells_github_where_it_runs_there_or_is_asked(
    asked: bool | None,
    actions: str,
    told: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    summary = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_ACTIONS", actions)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    monkeypatch.delenv("GITHUB_OUTPUT", raising=False)
    with pytest.raises(typer.Exit) as done:
        finish(failing(), tmp_path, True, False, github=asked)
    out, err = capfd.readouterr()
    assert done.value.exit_code == 1
    assert json.loads(out)["verdict"] == "fail", "standard output stays JSON"
    assert ("::error title=" in err) == told
    assert summary.exists() == told


# -- the action -----------------------------------------------------------------------------------


def yaml(text: str) -> Any:
    return pytest.importorskip("yaml", reason="PyYAML is not installed").safe_load(text)


def schema(name: str) -> Any:
    """A published schema, as check-jsonschema carries it."""
    pytest.importorskip("check_jsonschema", reason="check-jsonschema is not installed")
    folder = resources.files("check_jsonschema") / "builtin_schemas" / "vendor"
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def must_fit(value: Any, name: str) -> None:
    published = schema(name)
    jsonschema.validators.validator_for(published)(published).validate(value)


def action() -> Any:
    return yaml((ROOT / "action.yml").read_text())


def test_the_action_fits_the_published_schema() -> None:
    must_fit(action(), "github-actions")
    wrong = action()
    del wrong["runs"]["steps"][1]["shell"]
    with pytest.raises(jsonschema.ValidationError):
        must_fit(wrong, "github-actions")


def test_the_action_s_expressions_name_what_there_is() -> None:
    made, text = action(), (ROOT / "action.yml").read_text()
    named = re.findall(r"\$\{\{ (\S+) \}\}", text)
    ids = {f"steps.{x['id']}.outputs.{o}" for x in made["runs"]["steps"] if "id" in x
           for o in ("verdict", "report")}  # fmt: skip
    for name in named:
        assert name in {f"inputs.{x}" for x in made["inputs"]} | ids | {"!cancelled()"}, name
    assert {f"inputs.{x}" for x in made["inputs"]} <= set(named), "an input that nothing reads"
    for step in made["runs"]["steps"]:
        assert "${{" not in step.get("run", ""), "an input in a script would be commands"


def step(name: str) -> Any:
    (found,) = (x for x in action()["runs"]["steps"] if x["name"] == name)
    return found


def perform(
    name: str, given: Mapping[str, str], folder: Path, tools: Path
) -> tuple[subprocess.CompletedProcess[str], dict[str, str]]:
    """A shell step run as the runner does it, and the outputs it set."""
    inputs = {k: str(v.get("default", "")) for k, v in action()["inputs"].items()} | dict(given)
    variables = {
        k: re.sub(r"\$\{\{ inputs\.(\S+) \}\}", lambda m: inputs[m[1]], v)
        for k, v in step(name).get("env", {}).items()
    }
    script, out = folder / "step.sh", folder / "output"
    script.write_text(step(name)["run"])
    out.write_text("")
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", script],
        cwd=folder,
        env={
            **os.environ, **variables, "CI": "true", "GITHUB_ACTIONS": "true",
            "GITHUB_ACTION_PATH": str(ROOT), "GITHUB_OUTPUT": str(out),
            "GITHUB_STEP_SUMMARY": str(folder / "summary"), "PYTHONPATH": str(ROOT),
            "PATH": f"{tools}:{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
    )  # fmt: skip
    return done, dict(x.split("=", 1) for x in out.read_text().splitlines())


def tool(folder: Path, name: str, script: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    return folder


def test_the_action_installs_hetero_from_its_own_folder(tmp_path: Path) -> None:
    tools = tool(tmp_path / "bin", "python", 'printf "%s\\n" "$@"')
    done, _ = perform("Install hetero", {"extras": "onnx,report"}, tmp_path, tools)
    assert done.returncode == 0, done.stderr
    *_, constraint, target = words = done.stdout.splitlines()
    assert words[:3] == ["-m", "pip", "install"]
    assert Path(constraint).read_text() == (ROOT / "constraints.txt").read_text()
    assert target == f"{ROOT}[onnx,report]"
    # What pip is told is what pip takes: it builds nothing and fetches nothing here.
    from packaging.requirements import Requirement

    assert Requirement(f"hetero[{target.partition('[')[2]}").extras == {"onnx", "report"}


def test_the_action_hands_over_only_what_was_given_word_by_word(tmp_path: Path) -> None:
    tools = tool(tmp_path / "bin", "hetero", 'printf "%s\\n" "$@"')
    plain = {"query": "models/query", "gallery": "models/gallery"}
    done, _ = perform("Check", plain, tmp_path, tools)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "check", "models/query", "--gallery", "models/gallery", "--output", "runs/check",
    ]  # fmt: skip
    odd = {
        "query": "a b", "gallery": "$(touch broken)", "data": "`touch broken`", "limits": "l.toml",
        "baseline": "old run", "devices": "local:threads=2\n\nssh:pi@pi,threads=4\n",
    }  # fmt: skip
    done, _ = perform("Check", odd, tmp_path, tools)
    assert done.stdout.splitlines() == [
        "check", "a b", "--gallery", "$(touch broken)", "--output", "runs/check",
        "--data", "`touch broken`", "--limits", "l.toml", "--baseline", "old run",
        "--device", "local:threads=2", "--device", "ssh:pi@pi,threads=4",
    ]  # fmt: skip
    assert not (tmp_path / "broken").exists()


def test_the_action_s_step_ends_as_the_verdict_does_with_its_outputs_set(tmp_path: Path) -> None:
    for name in ("jinja2", "matplotlib", "junitparser"):
        pytest.importorskip(name, reason="reports need the extra 'report'")
    failing().save(tmp_path / "runs" / "check" / "report.json")
    # In place of the check a report of what it would have written; the rest is the program's own.
    script = f'exec "{sys.executable}" -m hetero.cli report runs/check'
    tools = tool(tmp_path / "bin", "hetero", script)
    done, outputs = perform("Check", {"query": "q", "gallery": "g"}, tmp_path, tools)
    assert done.returncode == 1, done.stderr
    assert outputs == {"verdict": "fail", "report": "runs/check/report.html"}
    assert (tmp_path / outputs["report"]).exists()
    assert (tmp_path / "summary").read_text().startswith("## ")
    assert "::error " in done.stderr


# -- docs/ci.md -----------------------------------------------------------------------------------


def snippet(heading: str) -> Any:
    page = (ROOT / "docs" / "ci.md").read_text()
    part = page.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    (text,) = re.findall(r"^```yaml\n(.*?)^```$", part, re.DOTALL | re.MULTILINE)
    return yaml(text)


def test_the_workflow_of_the_page_fits_the_schema_and_the_action() -> None:
    made = snippet("GitHub")
    # YAML 1.1 reads the key "on" as true.
    must_fit({("on" if k is True else k): v for k, v in made.items()}, "github-workflows")
    (used,) = (x for x in made["jobs"]["gate"]["steps"] if "hetero" in x.get("uses", ""))
    inputs = action()["inputs"]
    assert set(used["with"]) <= set(inputs)
    assert {k for k, v in inputs.items() if v.get("required")} <= set(used["with"])
    assert used["with"]["devices"].splitlines() == [DEVICE]


def test_the_gitlab_job_of_the_page_fits_the_schema_and_the_command() -> None:
    made = snippet("GitLab")
    must_fit(made, "gitlab-ci")
    job = made["model"]
    (command,) = (x for x in job["script"] if x.startswith("hetero"))
    assert job["artifacts"]["reports"]["junit"] == "check/junit.xml"
    assert command.endswith("--output check")
    if shutil.which("bash"):
        checked = subprocess.run(["bash", "-n", "-c", command], capture_output=True)
        assert checked.returncode == 0
    import typer.main

    options = {
        o for p in typer.main.get_command(cli.app).commands["check"].params for o in p.opts  # type: ignore[attr-defined]
    }  # fmt: skip
    assert set(re.findall(r"--[a-z-]+", command)) <= options
