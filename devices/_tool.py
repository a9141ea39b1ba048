"""The user's own benchmark program on a device: sent, run once, what it printed kept and read.

    tool = Tool.named("benchmark_model=out/benchmark_model")
    done = run_tool(open_device("adb"), tool, Path("model.fp32.tflite"), folder=Path("bench"))
    done.figures.mean_ns

What it says is its own word: no worker of ours has seen these runs, and nobody compared vectors.
LiteRT's `benchmark_model` and ONNX Runtime's `onnxruntime_perf_test` are understood, in the form
that their sources print; what any other prints is kept as it is.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from hetero._files import canonical_json, make_folder, sha256, write_atomically, write_json
from hetero.devices._types import Device, Link, Plan
from hetero.devices._way import Way
from hetero.errors import ConfigError, DeviceError

#: The arguments of programs that are known, and the format each reads.
KNOWN: Mapping[str, tuple[str, str]] = {
    "benchmark_model": (
        "--graph={model} --num_threads={threads} --num_runs={runs} --min_secs={seconds} "
        "--max_secs={most} --warmup_runs={warmup}",
        "tflite",
    ),
    "onnxruntime_perf_test": (
        # -I makes inputs by itself, -s prints percentiles.
        "-e cpu -m times -r {runs} -x {threads} -y 1 -s -I {model}",
        "onnx",
    ),
}


@runtime_checkable
class Executes(Protocol):
    """A link that can also run a program of the user's; see `hetero.devices.Link`."""

    def execute(self, run: str, words: Sequence[str], timeout_s: float) -> tuple[bytes, int]:
        """What a program prints on both its streams, and its exit status.

        Args:
            run: The folder that it runs in.
            words: The program, which is made executable, then its arguments; relative to `run`.
            timeout_s: For all of it.

        Raises:
            ConnectionError: The way was cut, or it took longer.
            DeviceError: It cannot be run.
        """
        ...


@dataclass(frozen=True)
class Tool:
    """A benchmark program.

    Attributes:
        name: What it is, for people, and for `KNOWN`.
        path: Of the program on this machine, built for the device.
        arguments: Words, in which {model}, {threads}, {runs}, {warmup}, {seconds} and {most}
            (seconds at most) are filled in.
    """

    name: str
    path: Path
    arguments: tuple[str, ...]

    @classmethod
    def named(cls, spec: str, arguments: str = "") -> Tool:
        """The tool that ``NAME=PATH`` or ``PATH`` means.

        Args:
            spec: Without a name, the file's name with one of `KNOWN` in it counts as that.
            arguments: In the words of a shell; without, those of `KNOWN`.

        Raises:
            ConfigError: There is no such file, or nobody knows its arguments.
        """
        name, equals, path = spec.rpartition("=")
        file = Path(path).expanduser()
        if not name:
            name = next((x for x in KNOWN if x in file.name), file.name)
        if not file.is_file() or (equals and not name):
            raise ConfigError(f"tool: {spec!r} is no program; expected NAME=PATH or PATH of a file")
        if not arguments and name not in KNOWN:
            raise ConfigError(
                f"tool: the arguments of {name!r} are not known; name it as one of "
                f"{', '.join(KNOWN)}, or give --tool-args, with {{model}} where the file goes"
            )
        try:
            words = shlex.split(arguments or KNOWN[name][0])
        except ValueError as error:
            raise ConfigError(f"tool: arguments {arguments!r} cannot be read ({error})") from error
        if not any("{model}" in x for x in words):
            raise ConfigError(f"tool: arguments {arguments!r} have no {{model}} for the file")
        return cls(name, file, tuple(words))

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats it reads; empty where that is not known."""
        return (KNOWN[self.name][1],) if self.name in KNOWN else ()


@dataclass(frozen=True)
class Figures:
    """What a program said of its runs; None where it did not. Times in nanoseconds."""

    runs: int | None = None
    load_ns: float | None = None
    first_ns: float | None = None
    mean_ns: float | None = None
    min_ns: float | None = None
    max_ns: float | None = None
    p50_ns: float | None = None
    p90_ns: float | None = None
    p95_ns: float | None = None
    p99_ns: float | None = None
    peak_memory_bytes: int | None = None


@dataclass(frozen=True)
class ToolResult:
    """What came of it.

    Attributes:
        tool, device: Their names.
        command: As it ran, relative to `folder` on the device.
        text: Everything it printed.
        figures: What could be read in it; None for a form that is not known.
        folder: Holds tool.json and output.txt.
    """

    tool: str
    device: str
    command: tuple[str, ...]
    text: str
    figures: Figures | None
    folder: Path


def run_tool(
    device: Device,
    tool: Tool,
    model: Path,
    *,
    folder: Path,
    plan: Plan | None = None,
    timeout_s: float | None = None,
) -> ToolResult:
    """What a benchmark program says of a model on a device; all of it on disk.

    It runs once, attached: one that was cut off is not started a second time beside itself.

    Args:
        device: From `open_device`, of a kind whose link `Executes`.
        tool: Which.
        model: The exported file.
        folder: Where the results go, each in a folder of its own.
        plan: Its threads, numbers of runs and seconds are asked for, where `tool` does.
        timeout_s: For the program; without, four times the plan's longest, and two minutes.

    Raises:
        ConfigError: A device of this kind runs no programs, or emulates.
        DeviceError: The program failed, or the way to the device was cut.
        StorageError: `folder` cannot be written.
    """
    if device.execution != "native":
        raise ConfigError(f"{device.name}: its times say nothing, it is {device.execution}")
    plan = plan or Plan()
    program = f"store/{sha256(tool.path)[:16]}-{re.sub(r'[^A-Za-z0-9_.-]', '-', tool.path.name)}"
    sent = f"store/{sha256(model)}{model.suffix}"
    given = {
        "model": f"../{sent}",
        "threads": str(plan.threads if device.threads is None else device.threads),
        "runs": str(plan.min_runs),
        "warmup": str(plan.warmup_runs),
        "seconds": f"{plan.min_s:g}",
        "most": f"{plan.max_s:g}",
    }
    words = (f"../{program}", *(_filled(x, given) for x in tool.arguments))
    order = {"tool": tool.name, "command": list(words)}
    digest = hashlib.sha256(canonical_json([device.name, order]).encode()).hexdigest()
    run = f"tool-{re.sub(r'[^a-z0-9]+', '-', tool.name.lower()).strip('-')[:30]}-{digest[:12]}"
    home = make_folder(folder / run)
    write_json(home / "tool.json", order)
    wait_s = 4 * plan.max_s + 120 if timeout_s is None else timeout_s
    with Way(device, folder, plan.reconnect_s) as way:
        way.call(lambda link: link.put(tool.path, program))
        way.call(lambda link: link.put(model, sent, again=False))
        way.call(lambda link: link.put(home / "tool.json", f"{run}/tool.json"))
        said, status = way.call(lambda link: _executed(device, link, run, words, wait_s))
    text = said.decode(errors="replace")
    write_atomically(home / "output.txt", said)
    if status:
        raise DeviceError(
            device.name,
            f"{tool.name} ended with {status}, saying: {_last(text)}; all of it is in "
            f"{home / 'output.txt'}; is it built for this processor, and are its arguments right?",
        )
    figures = read_figures(text)
    write_json(
        home / "tool.json",
        {**order, "device": device.name, "figures": asdict(figures) if figures else None},
    )
    return ToolResult(tool.name, device.name, words, text, figures, home)


def _executed(
    device: Device, link: Link, run: str, words: Sequence[str], timeout_s: float
) -> tuple[bytes, int]:
    if not isinstance(link, Executes):
        raise ConfigError(
            f"{device.name}: this kind of device runs no programs of yours; local, ssh and adb do"
        )
    try:
        return link.execute(run, words, timeout_s)
    except ConnectionError as error:
        raise DeviceError(
            device.name,
            f"the way was cut, or {timeout_s:g} s were over, while the program ran ({error}); "
            "it may still be running there, so it was not started again",
        ) from error


def _filled(word: str, given: Mapping[str, str]) -> str:
    """A word with its placeholders filled in; other braces stay as they are."""
    names = "|".join(given)
    return re.sub(rf"\{{({names})\}}", lambda found: given[found[1]], word)


def _last(text: str) -> str:
    return " ".join(text.split()[-30:]) or "nothing"


# -- what they print ------------------------------------------------------------------------------


def read_figures(text: str) -> Figures | None:
    """What a known program printed; None where it is none, or its form has changed."""
    return _litert(text) or _onnxruntime(text)


def _litert(text: str) -> Figures | None:
    """LiteRT's `benchmark_model`; times in microseconds, percentiles in newer ones only."""
    summary = re.search(
        rf"Inference timings in us: Init: {_N}, First inference: {_N}, Warmup \(avg\): {_N}, "
        rf"Inference \(avg\): {_N}",
        text,
    )
    runs = re.findall(r"^.*?\bcount=(\d+) (.*)$", text, re.MULTILINE)
    if not summary or not runs:
        return None
    # The warm-up's line comes first; profiling adds others behind, of the same runs.
    count, line = runs[1] if len(runs) > 1 else runs[0]
    us = {name: 1e3 * float(x) for name, x in re.findall(rf"(\w+)={_N}", line)}
    return Figures(
        runs=int(count),
        load_ns=1e3 * float(summary[1]),
        first_ns=1e3 * float(summary[2]),
        mean_ns=1e3 * float(summary[4]),
        min_ns=us.get("min"),
        max_ns=us.get("max"),
        p50_ns=us.get("median"),
        p95_ns=us.get("p95"),
    )


def _onnxruntime(text: str) -> Figures | None:
    """`onnxruntime_perf_test`; times in seconds and milliseconds."""

    def number(pattern: str, scale: float) -> float | None:
        found = re.findall(rf"^{pattern}", text, re.MULTILINE)
        return scale * float(found[-1]) if found else None

    # Of newer ones the mean is of all time and of the submitting too; both are milliseconds.
    mean = number(rf"Average inference time cost(?: total)?: {_N} ms", 1e6)
    runs = number(rf"Total inference requests: {_N}", 1)
    if mean is None or runs is None:
        return None
    memory = number(rf"Peak working set size: {_N} bytes", 1)
    return Figures(
        runs=int(runs),
        load_ns=number(rf"Session creation time cost: {_N} s", 1e9),
        first_ns=number(rf"First inference time cost: {_N} ms", 1e6),
        mean_ns=mean,
        min_ns=number(rf"Min Latency: {_N} s", 1e9),
        max_ns=number(rf"Max Latency: {_N} s", 1e9),
        p50_ns=number(rf"P50 Latency: {_N} s", 1e9),
        p90_ns=number(rf"P90 Latency: {_N} s", 1e9),
        p95_ns=number(rf"P95 Latency: {_N} s", 1e9),
        p99_ns=number(rf"P99 Latency: {_N} s", 1e9),
        peak_memory_bytes=None if memory is None else int(memory),
    )


_N = r"([0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)"
