"""Benchmark programs of the user's own: what they print, read; and real programs of this machine.

No such benchmark is to be had here. What they print is in the form of their sources, with figures
from published logs; that it arrives whole is shown with programs that every machine has.
"""

from __future__ import annotations

import json
import shutil
import sys
import threading
import time
from pathlib import Path

import exporting
import pytest
from adbd import Adbd
from test_adb import server  # noqa: F401  an adb server of our own
from test_bench import call

from hetero.devices import Figures, Plan, Tool, open_device, read_figures, run_tool
from hetero.errors import ConfigError, DeviceError

if sys.platform == "win32":
    pytest.skip("the programs are those of POSIX", allow_module_level=True)

#: Of `benchmark_model` in 2026; figures of arm64 Android as somebody published them.
LITERT = """\
INFO: STARTING!
INFO: Log parameter values verbosely: [0]
INFO: Num threads: [4]
INFO: Loaded model ./model.tflite
INFO: Initialized TensorFlow Lite runtime.
INFO: Created TensorFlow Lite XNNPACK delegate for CPU.
INFO: The input model file size (MB): 24.6229
INFO: Initialized session in 119.515ms.
INFO: Running benchmark for at least 5 iterations and at least 0.5 seconds but terminate if \
exceeding 150 seconds.
INFO: count=9 first=87112 curr=51629 min=51629 max=87112 avg=58147.4 std=11478 p5=51629 \
median=51962 p95=87112

INFO: Running benchmark for at least 1000 iterations and at least 1 seconds but terminate if \
exceeding 150 seconds.
INFO: count=1000 first=52162 curr=49785 min=49088 max=686105 avg=63743.2 std=60716 p5=49620 \
median=51891 p95=68628

INFO: Inference timings in us: Init: 119515, First inference: 87112, Warmup (avg): 58147.4, \
Inference (avg): 63743.2
INFO: Memory footprint delta from the start of the tool (MB): init=55.4961 overall=55.4961
"""
#: Of `onnxruntime_perf_test` from 1.17 on.
PERF_TEST = """\
Setting intra_op_num_threads to 1
Session creation time cost: 0.217932 s
First inference time cost: 196 ms
Total inference time cost: 0.49481 s
Total inference requests: 5
Average inference time cost total: 98.961997 ms
Total inference run time: 0.494854 s
Number of inferences per second: 10.104
Avg CPU usage: 11 %
Peak working set size: 271122432 bytes
Avg CPU usage:11
Peak working set size:271122432
Runs:5
Min Latency: 0.0958204 s
Max Latency: 0.101519 s
P50 Latency: 0.0995086 s
P90 Latency: 0.101519 s
P95 Latency: 0.101519 s
P99 Latency: 0.101519 s
P999 Latency: 0.101519 s
"""


# -- what they print ------------------------------------------------------------------------------


def test_benchmark_model_is_read_in_nanoseconds_and_without_its_warm_up():
    assert read_figures(LITERT) == Figures(
        runs=1000, load_ns=119515000, first_ns=87112000, mean_ns=63743200, min_ns=49088000,
        max_ns=686105000, p50_ns=51891000, p95_ns=68628000,
    )  # fmt: skip


def test_an_older_benchmark_model_has_no_percentiles():
    older = LITERT.replace(" p5=49620 median=51891 p95=68628", "").replace("INFO: ", "")
    found = read_figures(older)
    assert found
    assert (found.mean_ns, found.p50_ns, found.p95_ns) == (63743200, None, None)


def test_a_profile_behind_it_is_no_other_measurement():
    profiled = LITERT + "Timings (microseconds): count=50 first=79449 curr=8 min=7 max=8 avg=7\n"
    assert read_figures(profiled) == read_figures(LITERT)


def test_onnxruntime_perf_test_is_read_in_nanoseconds():
    found = read_figures(PERF_TEST)
    assert found
    assert (found.runs, found.peak_memory_bytes) == (5, 271122432)
    assert (found.load_ns, found.first_ns) == pytest.approx((217932000, 196e6))
    assert (found.mean_ns, found.min_ns) == pytest.approx((98961997, 95820400))
    assert (found.p50_ns, found.p90_ns, found.p99_ns) == pytest.approx(
        (99508600, 101519000, 101519000)
    )


def test_a_number_with_an_exponent_is_one():
    found = read_figures(PERF_TEST.replace("0.0958204 s", "9.5e-05 s"))
    assert found
    assert found.min_ns == pytest.approx(95000)


@pytest.mark.parametrize(
    "text",
    ["", "average 3 ms", LITERT.partition("Inference timings")[0], PERF_TEST[:200], "count=1 a=2"],
)
def test_what_is_in_no_known_form_or_cut_short_has_no_figures(text):
    assert read_figures(text) is None


# -- which program, which arguments ---------------------------------------------------------------


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "android_aarch64_benchmark_model"
    path.write_text('#!/bin/sh\ncat "$1"\n')
    return path


def test_a_known_program_is_known_by_its_files_name(program):
    tool = Tool.named(str(program))
    assert (tool.name, tool.formats) == ("benchmark_model", ("tflite",))
    assert "--graph={model}" in tool.arguments


def test_a_name_says_what_a_program_is(program):
    tool = Tool.named(f"onnxruntime_perf_test={program}")
    assert (tool.name, tool.formats) == ("onnxruntime_perf_test", ("onnx",))


@pytest.mark.parametrize(
    ("spec", "arguments", "said"),
    [
        ("/nowhere/benchmark_model", "", "is no program"),
        ("mine={}", "", "arguments of 'mine' are not known"),
        ("mine={}", "--fast", r"have no \{model\}"),
        ("mine={}", "'{model}", "cannot be read"),
    ],
)
def test_a_program_that_cannot_be_run_is_refused(program, spec, arguments, said):
    with pytest.raises(ConfigError, match=said):
        Tool.named(spec.replace("{}", str(program)), arguments)


def test_a_device_that_only_emulates_runs_none(program, tmp_path):
    with pytest.raises(ConfigError, match="its times say nothing"):
        run_tool(open_device("qemu:pi5"), Tool.named(str(program)), program, folder=tmp_path)


# -- real programs --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def phone(server, tmp_path_factory):  # noqa: F811
    """A phone that runs its programs here, and where on it we work: the bundle goes there once."""
    adbd = Adbd()
    adbd.start()
    yield adbd, tmp_path_factory.mktemp("phone")
    adbd.stop()


@pytest.fixture(params=["local", "adb", "ssh"])
def device(request):
    """Three ways to one machine."""
    if request.param == "adb":
        adbd, folder = request.getfixturevalue("phone")
        return open_device(f"adb:127.0.0.1:{adbd.port},folder={folder}")
    if request.param == "ssh":
        pytest.importorskip("asyncssh")
        return open_device(f"ssh:{request.getfixturevalue('ssh_address')}")
    return open_device("local")


def real(name: str, arguments: str) -> Tool:
    """A program of this machine."""
    path = shutil.which(name)
    assert path
    return Tool.named(f"{name}={Path(path).resolve()}", arguments)


def test_what_a_real_program_prints_comes_back_whole(device, tmp_path):
    model = tmp_path / "model.tflite"
    model.write_text(LITERT)
    done = run_tool(device, real("cat", "{model}"), model, folder=tmp_path / "out")
    assert done.text == LITERT
    assert done.figures == read_figures(LITERT)
    assert (done.folder / "output.txt").read_text() == LITERT
    assert done.command[1].startswith("../store/")


@pytest.mark.parametrize(
    "word",
    ["a b", "$(touch owned)", "; touch owned", "it's", '"', "*", "{other}", "`touch owned`", "\\"],
)
def test_an_argument_arrives_as_the_word_it_was(device, tmp_path, word):
    model = tmp_path / "m.onnx"
    model.write_bytes(b"any")
    tool = Tool("printf", Path(shutil.which("printf") or ""), ("%s|", word, "{model}", "{threads}"))
    plan = Plan(threads=3)
    done = run_tool(device, tool, model, folder=tmp_path / "out", plan=plan)
    first, file, threads, _ = done.text.split("|")
    assert (first, threads) == (word, "3")
    assert file.endswith(".onnx")
    assert not list(tmp_path.rglob("owned"))
    assert done.figures is None


def test_a_program_that_fails_is_told_with_its_words_and_kept(device, tmp_path):
    model = tmp_path / "m.onnx"
    model.write_bytes(b"any")
    tool = real("cat", "{model} /no/such/file")
    with pytest.raises(DeviceError, match=r"cat ended with 1, saying: .*No such file") as caught:
        run_tool(device, tool, model, folder=tmp_path / "out")
    assert caught.value.exit_code == 4
    (kept,) = (tmp_path / "out").glob("tool-*/output.txt")
    assert kept.read_text().startswith("any")


def test_a_program_for_another_processor_is_told(device, tmp_path):
    model, other = tmp_path / "m.onnx", tmp_path / "other"
    model.write_bytes(b"any")
    other.write_bytes(b"\x7fELF" + bytes(100))
    tool = Tool.named(f"other={other}", "{model}")
    with pytest.raises(DeviceError, match=r"cannot be run|is it built for this processor"):
        run_tool(device, tool, model, folder=tmp_path / "out")


def test_a_program_that_takes_too_long_is_given_up_and_not_started_again(device, tmp_path):
    model = tmp_path / "m.onnx"
    model.write_bytes(b"any")
    script = tmp_path / "slow"
    script.write_text(f"#!/bin/sh\necho x >> {tmp_path / 'started'}\nexec sleep 20\n")
    tool = Tool.named(f"slow={script}", "{model}")
    with pytest.raises(DeviceError, match=r"1\.5 s"):
        run_tool(device, tool, model, folder=tmp_path / "out", timeout_s=1.5)
    assert (tmp_path / "started").read_text() == "x\n"


def test_a_phone_that_goes_away_meanwhile_is_told(phone, tmp_path):
    adbd, folder = phone
    device = open_device(f"adb:127.0.0.1:{adbd.port},folder={folder}")
    model, begun = tmp_path / "m.onnx", tmp_path / "begun"
    model.write_bytes(b"any")
    script = tmp_path / "slow"
    script.write_text(f"#!/bin/sh\ntouch {begun}\nexec sleep 60\n")

    def pull():
        while not begun.exists():
            time.sleep(0.1)
        adbd.stop()

    threading.Thread(target=pull, daemon=True).start()
    with pytest.raises(DeviceError, match=r"the way was cut.*not started again"):
        run_tool(device, Tool.named(f"slow={script}", "{model}"), model, folder=tmp_path / "out")
    adbd.start()


# -- the command ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.toolchain
@pytest.mark.parametrize(("printed", "figures"), [(PERF_TEST, True), ("fast!\n", False)])
def test_the_command_reports_what_it_says_or_that_it_is_not_understood(tmp_path, printed, figures):
    pytest.importorskip("onnxruntime")
    bundle, _ = exporting.exported("onnx", ("fp32", "fp16"))
    script, out = tmp_path / "onnxruntime_perf_test", tmp_path / "out"
    script.write_text(f"#!/bin/sh\ncat <<'END'\n{printed}END\n")
    done = call(
        bundle.root, "-p", "fp16", "--tool", script, "-o", out, "-q", "--json",
        "--history", tmp_path / "h.db",
    )  # fmt: skip
    assert done.exit_code == 0
    value = json.loads(done.stdout)
    rows = {m["name"]: m["value"] for m in value["measurements"]}
    assert rows.get("latency_p50") == (pytest.approx(99.5086) if figures else None)
    assert value["measurements"][0]["device"] == "local, onnxruntime_perf_test"
    assert [x["precision"] for x in value["not_run"]] == ([] if figures else ["fp16"])
    (kept,) = out.glob("tools/tool-*/output.txt")
    assert kept.read_text() == printed
    with pytest.raises(ConfigError, match="--tool takes no --against"):
        call(bundle.root, "--tool", script, "--profile", "-q", "-o", out)
