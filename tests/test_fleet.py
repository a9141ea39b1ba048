"""A fleet of devices in memory, driven by the real session: away, failing, slow, interrupted."""

from __future__ import annotations

import io
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeDevice, line, raw_files, transcript
from geometry import on_circle
from rich.console import Console
from test_check import CLEAR, IDS, QUERIES, a_reference, vectors

from hetero import devices
from hetero.agreement import agreement
from hetero.board import Board
from hetero.bundle import Artifact, Bundle
from hetero.cells import Cell, NotRun, Pair
from hetero.check import Place
from hetero.devices import Entry, Inventory, Plan, likely_causes
from hetero.errors import BundleError, ConfigError, DeviceError, Interrupted, StorageError
from hetero.progress import Reporter
from hetero.report import Limit, Measurement, Report
from hetero.stages import checking, fleet, running

REFERENCE = a_reference(CLEAR)
PICTURES = {i: np.full((2, 2, 3), n, np.uint8) for n, i in enumerate(IDS)}
ROWS = vectors(CLEAR).vectors
#: Twenty degrees off at one query.
OFF = vectors({**CLEAR, "qa1": 22.0}).vectors


class Query(Bundle):
    """A bundle of two files that never were exported."""

    space, digest = REFERENCE.query.space, "d" * 64

    def __init__(self, root: Path) -> None:
        for item in FILES:
            (root / item.path).write_bytes(item.precision.encode())
        self._at = root

    def path(self, artifact: Artifact) -> Path:
        return self._at / artifact.path


def a_file(precision: str, kind: str = "onnx") -> Artifact:
    return Artifact(
        path=f"model.{precision}.{kind}",
        kind=kind,
        sha256="0" * 64,
        size_bytes=4,
        precision=precision,
        input="uint8_nhwc",
    )


FILES = (a_file("fp32"), a_file("int8"))


def answering(name: str, *rows: np.ndarray, **changed: Any) -> FakeDevice:
    """A device that gives these rows for one file after the other."""
    device = FakeDevice([transcript(x, 20) for x in rows], name=name, **changed)
    given = list(rows)

    def serve(short: str) -> None:
        if short == "out.bin":
            device.files = raw_files(given.pop(0), 20)

    device.on_get = serve
    return device


class Away(FakeDevice):
    """A device whose way is cut for good."""

    def connect(self, folder: Path) -> Any:
        self.connections += 1
        raise ConnectionRefusedError("no route to it")


@dataclass
class Fleet:
    """Runs devices, and keeps what was said."""

    home: Path
    said: list[str] = field(default_factory=list)

    def __call__(
        self, *opened: FakeDevice, files: tuple[Artifact, ...] = FILES, **options: Any
    ) -> fleet.Outcome:
        by_name = {x.name: x for x in opened}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(devices, "open_device", lambda name, _: by_name[name])
            reporter = Reporter()
            patch.setattr(reporter, "line", self.said.append)
            return fleet.run_files(
                Query(self.home),
                files,
                REFERENCE,
                PICTURES,
                self.home / "check",
                running.CheckOptions(
                    devices=tuple(x.name for x in opened), thorough="quick", **options
                ),
                reporter,
            )


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    plan = Plan(0, 0.0, 20, 0.0, timeout_s=60, heartbeat_s=10, reconnect_s=0.0, restarts=0)
    monkeypatch.setattr(running, "plan_for", lambda *_: plan)
    return Fleet(tmp_path)


def places(outcome: fleet.Outcome) -> list[tuple[str, str]]:
    return [(r.place.device, r.place.precision) for r in outcome.runs]


# -- side by side ---------------------------------------------------------------------------------


def test_every_file_runs_on_every_device_in_the_order_given(run: Fleet) -> None:
    outcome = run(answering("b:1", ROWS, ROWS), answering("a:1", ROWS, ROWS))
    assert places(outcome) == [("b:1", "fp32"), ("a:1", "fp32"), ("b:1", "int8"), ("a:1", "int8")]
    assert outcome.not_run == ()
    for ran in outcome.runs:
        np.testing.assert_allclose(ran.vectors.vectors, ROWS, atol=1e-6)
        name = f"{running.file_name(ran.place)}.safetensors"
        assert (run.home / "check" / "embeddings" / name).exists()


def test_two_devices_are_at_work_at_the_same_time(run: Fleet) -> None:
    # Each waits in the middle of its run until the other is in the middle of its own.
    meeting = threading.Barrier(2, timeout=30)

    class Meeting(FakeDevice):
        def follow(self, run: str, offset: int) -> tuple[bytes, bool]:
            if len(self.steps) == 3:
                meeting.wait()
            return super().follow(run, offset)

    both = []
    for name in ("one:", "two:"):
        device = answering(name, ROWS)
        both.append(Meeting(device.workers, name=name, on_get=device.on_get))
        both[-1].files = raw_files(ROWS, 20)
    outcome = run(*both, files=FILES[:1])
    assert len(outcome.runs) == 2


class Counted(FakeDevice):
    """Knows how many of all of its class are at work."""

    at_work = 0
    most = 0
    lock = threading.Lock()

    def start(self, run: str, *, fresh: bool) -> None:
        with Counted.lock:
            Counted.at_work += 1
            Counted.most = max(Counted.most, Counted.at_work)
        super().start(run, fresh=fresh)

    def get(self, name: str, target: Path) -> None:
        if name.endswith("out.bin"):
            with Counted.lock:
                Counted.at_work -= 1
        super().get(name, target)


def counted(name: str, **more: Any) -> FakeDevice:
    device = Counted([transcript(ROWS, 20), transcript(ROWS, 20)], name=name)
    device.files = raw_files(ROWS, 20)
    for key, value in more.items():
        setattr(device, key, value)
    return device


def test_devices_that_share_a_processor_take_turns(run: Fleet) -> None:
    Counted.most = Counted.at_work = 0
    outcome = run(counted("one:", lane="board"), counted("two:", lane="board"))
    assert (len(outcome.runs), Counted.most) == (4, 1)


def test_two_names_of_one_device_take_turns(run: Fleet) -> None:
    Counted.most = Counted.at_work = 0
    twice = Inventory({"one": Entry(spec="ssh:pi"), "two": Entry(spec="ssh:pi")})
    outcome = run(counted("one"), counted("two"), inventory=twice)
    assert (len(outcome.runs), Counted.most) == (4, 1)


@pytest.fixture
def noted() -> tuple[list[str], Callable[..., FakeDevice]]:
    """Names of devices in the order in which they start, and what makes such devices."""
    order: list[str] = []

    class Noted(FakeDevice):
        def start(self, run: str, *, fresh: bool) -> None:
            order.append(self.name)
            super().start(run, fresh=fresh)

    def make(name: str, **more: str) -> FakeDevice:
        # An emulated device is asked for queries alone, and times nothing.
        asked = vectors(CLEAR).take(REFERENCE.task.query_ids).vectors
        rows, runs = (ROWS, 20) if name == "local" else (asked, 0)
        device = Noted([transcript(rows, runs), transcript(rows, runs)], name=name)
        device.files = raw_files(rows, runs)
        vars(device).update(more)
        return device

    return order, make


def test_an_emulated_device_waits_until_this_machine_is_measured(run: Fleet, noted: Any) -> None:
    order, make = noted
    outcome = run(make("qemu:pi5", execution="emulated"), make("local", lane=devices.HERE))
    assert order == ["local", "local", "qemu:pi5", "qemu:pi5"]
    assert {c.device: c.execution for c in outcome.cells} == {
        "local": "native",
        "qemu:pi5": "emulated",
    }


def test_an_emulated_device_of_this_machine_waits_for_its_neighbours_and_not_for_itself(
    run: Fleet, noted: Any
) -> None:
    order, make = noted
    here = {"lane": devices.HERE}
    browser = make("browser:", execution="emulated", **here)
    outcome = run(browser, make("local", execution="native", **here))
    assert order == ["local", "local", "browser:", "browser:"]
    assert places(outcome)[:2] == [("browser:", "fp32"), ("local", "fp32")]


def test_a_device_named_twice_is_refused(run: Fleet) -> None:
    with pytest.raises(ConfigError, match="'one:' is named twice"):
        run(answering("one:", ROWS), answering("one:", ROWS))


def test_what_is_said_names_device_file_state_and_rows(run: Fleet) -> None:
    run(answering("one:", ROWS), files=FILES[:1])
    assert run.said[:2] == ["one:: onnx fp32: waiting", "one:: onnx fp32: running starting"]
    assert run.said[-1].startswith("one:: onnx fp32: done in ")


# -- a device that fails --------------------------------------------------------------------------


def test_a_device_that_stays_away_leaves_out_its_files_and_takes_nothing_from_others(
    run: Fleet,
) -> None:
    away = Away(name="garage")
    outcome = run(away, answering("desk", ROWS, ROWS))
    assert places(outcome) == [("desk", "fp32"), ("desk", "int8")]
    assert [(x.device, x.precision, x.obstacle) for x in outcome.not_run] == [
        ("garage", "fp32", "device"),
        ("garage", "int8", "device"),
    ]
    for x in outcome.not_run:
        assert x.reason.startswith("device could not be reached: cannot be reached (no route")
    # The second file was not worth another wait.
    assert away.connections == 1
    assert any("garage: onnx fp32: failed device could not" in x for x in run.said)


def test_a_device_that_fails_at_one_file_goes_on_with_the_next(run: Fleet) -> None:
    broken = [*transcript(ROWS, 20)[:5], line("error", kind="run-failed", text="row 2: no")]
    device = answering("bad", ROWS)
    device.workers.insert(0, broken)
    outcome = run(device, answering("good", ROWS, ROWS))
    assert places(outcome) == [("good", "fp32"), ("bad", "int8"), ("good", "int8")]
    (lost,) = outcome.not_run
    assert (lost.device, lost.precision) == ("bad", "fp32")
    assert lost.reason == "device failed: run-failed: row 2: no"


def test_a_device_that_vanishes_in_the_middle_is_away_from_then_on(run: Fleet) -> None:
    device = answering("tram", ROWS)
    device.workers[0] = [*device.workers[0][:4], *([ConnectionResetError("gone")] * 3)]
    outcome = run(device, answering("desk", ROWS, ROWS))
    assert [x.reason.partition(":")[0] for x in outcome.not_run] == [
        "device could not be reached"
    ] * 2
    assert len(outcome.runs) == 2


def test_a_runtime_that_refuses_a_file_leaves_that_out_only(run: Fleet) -> None:
    old = answering("old", ROWS)
    old.workers.insert(0, [line("error", kind="model-refused", text="opset 99 is unknown")])
    outcome = run(old, answering("new", ROWS, ROWS))
    (lost,) = outcome.not_run
    assert (lost.device, lost.precision, lost.obstacle) == ("old", "fp32", "refused")
    assert "opset 99" in lost.reason
    assert len(outcome.runs) == 3


def test_where_nothing_at_all_was_executed_the_first_failure_is_the_answer(run: Fleet) -> None:
    with pytest.raises(DeviceError, match=r"^garage: cannot be reached"):
        run(Away(name="garage"), Away(name="shed"))
    refusing = answering("old")
    refusing.workers = [[line("error", kind="model-refused", text="no")]]
    with pytest.raises(BundleError, match="refuses it: no"):
        run(refusing, files=FILES[:1])


def test_a_fault_of_this_machine_ends_the_whole_run(run: Fleet) -> None:
    class Full(FakeDevice):
        def put(self, source: Path, name: str, *, again: bool = True) -> None:
            raise StorageError("the disk is full")

    idle = FakeDevice([[None] * 10_000], name="idle", immortal=True)
    with pytest.raises(StorageError, match="full"):
        run(Full(name="full"), idle)
    assert idle.stops <= 1


@pytest.fixture
def terminal() -> Iterator[None]:
    """Ctrl-C as a program has it that was started from a terminal, whatever ran here before."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    signal.signal(signal.SIGINT, handler if handler is not None else signal.SIG_DFL)


@pytest.mark.usefixtures("terminal")
def test_ctrl_c_stops_every_worker_and_says_how_to_go_on(run: Fleet) -> None:
    meeting = threading.Barrier(2, timeout=30)

    class Endless(FakeDevice):
        def follow(self, run: str, offset: int) -> tuple[bytes, bool]:
            if not offset and self.alive:
                if not meeting.wait():
                    # As a terminal does it: this wakes the main thread from whatever it waits for.
                    main = threading.main_thread().ident
                    assert main is not None
                    signal.pthread_kill(main, signal.SIGINT)
                self.log = b"".join(transcript(ROWS)[:4])
            return self.log[offset:], self.alive

    both = [Endless([[None]], name=name, immortal=True) for name in ("one", "two")]
    with pytest.raises(Interrupted, match=r"2 devices; .*--resume goes on"):
        run(*both)
    assert [x.stops for x in both] == [1, 1]


# -- exit codes -----------------------------------------------------------------------------------

MEASURED = Measurement("size", 3.0, "MiB", "desk", "onnx", "fp32", n=5)


@pytest.mark.parametrize(
    ("limit", "obstacles", "verdict", "code"),
    [
        ({"at_most": 4}, (), "pass", 0),
        ({"at_most": 4}, ("unavailable",), "pass", 0),
        ({"at_most": 4}, ("device",), "inconclusive", 4),
        ({"at_most": 4}, ("refused",), "inconclusive", 2),
        ({"at_most": 4}, ("device", "refused"), "inconclusive", 2),
        ({"at_most": 2}, ("device",), "fail", 1),
        ({"at_most": 2}, ("refused",), "fail", 1),
        ({"at_most": 4, "min_n": 9}, ("device",), "inconclusive", 4),
        ({"at_most": 4, "min_n": 9}, (), "inconclusive", 3),
    ],
)
def test_a_failed_limit_counts_before_a_device_and_a_device_before_doubt(
    limit: dict[str, Any], obstacles: tuple[Any, ...], verdict: str, code: int, tmp_path: Path
) -> None:
    lost = tuple(NotRun("onnx", "int8", "garage", "why", x) for x in obstacles)
    made = Report("x", (MEASURED,), not_run=lost).judged_by([Limit("size", **limit)])
    assert (made.verdict, made.exit_code) == (verdict, code)
    # Stored and read again it is the same, so `hetero report` ends with the same code.
    made.save(tmp_path / "report.json")
    assert Report.load(tmp_path / "report.json") == made


def test_a_limit_of_ones_own_on_a_file_that_a_device_left_out_is_no_mistake() -> None:
    lost = (NotRun("onnx", "int8", "garage", "why", "device"),)
    report = Report("x", (MEASURED,), not_run=lost)
    there, waits = Limit("size", at_most=4), Limit("latency_p50", at_most=9, device="garage")
    wrong = Limit("latency_p50", at_most=9, device="shed")
    assert checking._fitting((there, waits), report, Path("own")) == (there,)
    with pytest.raises(ConfigError, match="shed"):
        report.judged_by(checking._fitting((there, wrong), report, Path("own")))


# -- agreement ------------------------------------------------------------------------------------


def agreed(**sides: dict[str, float]) -> dict[tuple[str, str], Pair]:
    cells = [(Place(name, "onnx", "int8"), vectors(x)) for name, x in sides.items()]
    return {(x.a, x.b): x for x in agreement(REFERENCE, cells)}


def test_every_pair_of_devices_and_pytorch_is_compared() -> None:
    pairs = agreed(a=CLEAR, b={**CLEAR, "qa1": 62.0}, c=CLEAR)
    assert list(pairs) == [("", "a"), ("", "b"), ("", "c"), ("a", "b"), ("a", "c"), ("b", "c")]
    same, apart = pairs["a", "c"], pairs["a", "b"]
    assert (same.cosine_worst, same.top1_same, same.apart) == (1.0, 1.0, False)
    # qa1 turned by 60 degrees, and then finds a b.
    assert apart.cosine_worst == pytest.approx(0.5)
    assert (apart.worst_id, apart.top1_same, apart.n, apart.apart) == ("qa1", 3 / 4, 4, True)
    # A file may be apart from PyTorch: that is what quantising costs, and judged elsewhere.
    assert not pairs["", "b"].apart


def test_only_queries_that_both_embedded_are_compared() -> None:
    some = {i: CLEAR[i] for i in QUERIES[1:]}
    pair = agreed(a=CLEAR, b=some)["a", "b"]
    assert (pair.n, pair.cosine_worst) == (3, 1.0)


def test_files_of_different_precisions_are_not_compared() -> None:
    cells = [(Place("a", "onnx", p), vectors(CLEAR)) for p in ("fp32", "int8")]
    assert {(x.a, x.precision) for x in agreement(REFERENCE, cells)} == {
        ("", "fp32"),
        ("", "int8"),
    }


@pytest.mark.parametrize(("degrees", "apart"), [(0.01, False), (0.2, True)])
def test_rounding_is_no_disagreement(degrees: float, apart: bool) -> None:
    moved = on_circle(*(CLEAR[i] + degrees for i in IDS), ids=IDS)
    cells = [(Place(n, "onnx", "fp32"), v) for n, v in (("a", vectors(CLEAR)), ("b", moved))]
    assert agreement(REFERENCE, cells)[-1].apart is apart


X86 = Cell(
    "desk", "onnx", "int8", "native", "onnxruntime", "1.32.0", "AMD EPYC", ("avx2", "fma"), 1, "CPU"
)
PI = replace(X86, device="pi", cpu="Cortex-A76", features=("asimd", "dotprod"))


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (X86, PI, ["desk (AMD EPYC) has no VNNI"]),
        (PI, X86, ["desk (AMD EPYC) has no VNNI"]),
        (replace(X86, features=("avx2", "avx_vnni")), PI, []),
        (replace(X86, precision="fp32"), replace(PI, precision="fp32"), []),
        (PI, replace(PI, version="1.20.0"), ["two versions of onnxruntime: 1.32.0, 1.20.0"]),
        (PI, replace(PI, runtime="onnxruntime-web"), ["two runtimes"]),
        (PI, replace(PI, provider="WebGPU"), ["computed with CPU and with WebGPU"]),
        (PI, replace(PI, features=("neon",)), ["32-bit kernels"]),
        (PI, replace(PI, execution="reference", runtime="r"), ["reference interpreter", "two run"]),
        (
            replace(PI, format="tflite", runtime="litert"),
            replace(PI, format="tflite", runtime="litert", features=("asimd",)),
            ["dotprod without i8mm"],
        ),
    ],
)
def test_the_likely_cause_is_what_is_known_to_matter(a: Cell, b: Cell, words: list[str]) -> None:
    found = likely_causes(a, b)
    assert len(found) == len(words), found
    for said, word in zip(found, words, strict=True):
        assert word in said


def test_a_pair_that_is_apart_gets_its_cause(run: Fleet) -> None:
    outcome = run(answering("one", OFF, ROWS), answering("two", ROWS, ROWS))
    pairs = {(x.precision, x.a, x.b): x for x in fleet.agreed(REFERENCE, outcome)}
    # Both fakes call themselves the same, so nothing known differs.
    assert pairs["fp32", "one", "two"].apart
    assert pairs["fp32", "one", "two"].cause == ""
    assert not pairs["int8", "one", "two"].apart


# -- the board ------------------------------------------------------------------------------------


def test_the_live_table_has_a_row_a_device_and_a_column_a_file() -> None:
    board = Board(("garage", "desk"), (("onnx", "fp32"), ("tflite", "int8")))
    board.tell("garage", "onnx", "fp32", "running", "rows 3 of 40")
    board.tell("desk", "onnx", "fp32", "failed")
    board.tell("desk", "tflite", "int8", "done", "in 4 s")
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(board.table())
    text = console.export_text()
    (garage,) = [x for x in text.splitlines() if "garage" in x]
    (desk,) = [x for x in text.splitlines() if "desk" in x]
    assert garage.split() == ["garage", "rows", "3", "of", "40", "\N{EN DASH}"]
    assert desk.split() == ["desk", "failed", "done", "in", "4", "s"]


def test_lines_that_only_count_on_are_held_back() -> None:
    said: list[str] = []
    board = Board(("a",), (("onnx", "fp32"),), said.append, every_s=3600)
    for row in range(50):
        board.tell("a", "onnx", "fp32", "running", f"rows {row} of 50")
    board.tell("a", "onnx", "fp32", "done", "in 1 s")
    assert said == ["a: onnx fp32: running rows 0 of 50", "a: onnx fp32: done in 1 s"]
