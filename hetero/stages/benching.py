"""Stage: load time, latency, memory and placement of exported files on devices, as a report."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hetero import check as measuring
from hetero._files import write_json
from hetero.bundle import Artifact, Bundle
from hetero.check import Place
from hetero.errors import ConfigError
from hetero.history import Entry, History
from hetero.latency import quiet
from hetero.progress import Reporter
from hetero.report import Limit, Measurement, Report, load_limits
from hetero.stages.running import CheckOptions, chosen, performance, plan_for, publish

if TYPE_CHECKING:
    from hetero.devices import Plan, RunResult

MINUTE_S = 60.0
#: Points of the curve of a sustained run.
PARTS = 60
#: Runs of a profile: each is recorded operator by operator, and one is like another.
PROFILED_RUNS = 100
#: Side of the picture whose decoding and resizing is timed: a phone's camera, scaled by its app.
PICTURE_PX = 1024


@dataclass(frozen=True)
class BenchOptions:
    """How to measure.

    Attributes:
        check: Devices, files, length and limits.
        sustained_min: Minutes of a sustained measurement; 0 for none.
        duty: Part of the time in which the model runs, above 0 and at most 1.
        profile: Time each operator too, in a run of its own.
        accelerator: Where the runtime is to run the model; "" for the worker's choice.
        fail_on_fallback: Fail where operators run elsewhere than on the accelerator.
    """

    check: CheckOptions = field(default_factory=CheckOptions)
    sustained_min: float = 0.0
    duty: float = 1.0
    profile: bool = False
    accelerator: str = ""
    fail_on_fallback: bool = False

    def __post_init__(self) -> None:
        if self.sustained_min < 0 or not 0 < self.duty <= 1:
            raise ConfigError(
                "sustained: minutes above 0 and a duty above 0 and at most 1, got "
                f"{self.sustained_min:g} and {self.duty:g}"
            )
        if self.duty < 1 and not self.sustained_min:
            raise ConfigError("duty is for a sustained measurement: give --sustained MINUTES")
        if self.fail_on_fallback and not self.accelerator:
            raise ConfigError("fail-on-fallback: name what is not to be left with --accelerator")

    def plan(self) -> Plan:
        """The plan of the measurement."""
        made: Plan = replace(
            plan_for(self.check.thorough, self.check.threads), accelerator=self.accelerator
        )
        if not self.sustained_min:
            return made
        wall_s = 60 * self.sustained_min
        busy_s = wall_s * self.duty
        return replace(
            made,
            duty=self.duty,
            min_runs=1,
            min_s=busy_s,
            max_s=busy_s + made.warmup_s + 1,
            timeout_s=3 * wall_s + 600,
        )


def bench(
    bundle: Bundle,
    output: Path,
    options: BenchOptions,
    *,
    reporter: Reporter,
    history: History | None = None,
) -> Report:
    """The report of a bundle's exported files' load time, latency and memory on devices.

    The inputs are the bundle's probe pictures; latencies go to `output` one by one.

    Args:
        bundle: With exported files.
        output: For everything raw and the report.
        options: See `BenchOptions`.
        reporter: Shows progress.
        history: Gets a row for each file and device; None keeps none.
    """
    from hetero import devices

    asked = options.check
    files = runnable(bundle, asked)
    opened = [devices.open_device(x, asked.inventory) for x in asked.devices]
    for device in opened:
        if device.execution != "native":
            raise ConfigError(
                f"{device.name}: its times say nothing, it is {device.execution}; leave it out "
                "here, `hetero check` compares its embeddings"
            )
    limits = load_limits(asked.limits) if asked.limits else ()
    probe, plan = bundle.probe(), options.plan()
    measured: list[Measurement] = [preprocessing(bundle)]
    facts = {
        "command": asked.command,
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": f"{bundle.manifest.model.backbone}, weights {bundle.digest[:12]}",
    }
    series: dict[str, list[float]] = {}
    cells = [(f, x) for f in files for x in opened if f.kind in devices.formats_of(x)]
    with reporter.bar("measure", len(cells)) as bar:
        for item, device in cells:

            def run(plan: Plan, item: Artifact = item, device: Any = device) -> RunResult:
                return devices.run(
                    device,
                    bundle.path(item),
                    item.kind,
                    bundle.inputs(item, probe.pixels),
                    folder=output / "runs",
                    plan=plan,
                    resume=asked.resume,
                )

            result = run(plan)
            place = Place(device.name, item.kind, item.precision)
            title = f"{item.kind} {item.precision} on {device.name}"
            measured += performance(place, item, result)
            if options.sustained_min:
                measured += sustained(place, result)
                for name, values in pace(result.latency_ns, result.marks).items():
                    series[f"{name}|{device.name}|{item.kind}|{item.precision}"] = values
            if options.accelerator:
                measured.append(fallen_back(place, result, options))
                facts[f"placement of {title}"] = placement(result)
            if options.profile:
                profiled = run(profile_plan(plan))
                name = f"{device.name}-{item.kind}-{item.precision}.json".replace("/", "_")
                facts[f"profile of {title}"] = written(profiled, output / "profile" / name)
            series[f"latency_ms|{device.name}|{item.kind}|{item.precision}"] = measuring.points(
                result.latency_ns / 1e6
            )
            facts[title] = _told(result)
            if history is not None:
                history.add(entry(bundle, item, result, options))
            bar.advance(1, f"{item.kind} {item.precision}")
    report = Report(
        subject=f"latency of {bundle.manifest.model.backbone}",
        measurements=tuple(measured),
        facts=facts,
        series=series,
    )
    judged = report.judged_by(limits)
    publish(judged, output)
    return judged


def runnable(bundle: Bundle, options: CheckOptions) -> tuple[Artifact, ...]:
    """The chosen files for which a worker on one of the devices has a runtime.

    Raises:
        ConfigError: None.
    """
    from hetero import devices

    opened = [devices.open_device(x, options.inventory) for x in options.devices]
    formats = tuple(dict.fromkeys(x for device in opened for x in devices.formats_of(device)))
    files = tuple(f for f in chosen(bundle, options) if f.kind in formats)
    if not files:
        raise ConfigError(
            f"{bundle.root}: none of the chosen files runs on {', '.join(options.devices)}; "
            f"there run {', '.join(formats)}"
        )
    return files


def _told(result: RunResult) -> str:
    """What one wants to know beside the numbers, in the order to tell it."""
    from hetero import devices

    timing = devices.timing(result)
    grade = f"{timing.validity}: {timing.reason}" if timing.reason else timing.validity
    names = (
        "runtime", "runtime_version", "provider", "cpu", "threads", "governor",
        "temperature_before_c", "temperature_after_c", "temperature_max_c", "clock_before_mhz",
        "clock_after_mhz", "load_before", "load_after", "throttled",
    )  # fmt: skip
    facts = result.facts
    told = [f"{name.replace('_', ' ')} {facts[name]}" for name in names if facts.get(name)]
    return ", ".join([grade, *told])


def preprocessing(bundle: Bundle, repeats: int = 15) -> Measurement:
    """What it takes this machine, in Python, from a JPEG's bytes to a model's input."""
    from PIL import Image

    from hetero.preprocess import decode

    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    stored = io.BytesIO()
    side = (PICTURE_PX, PICTURE_PX * 3 // 4)
    Image.fromarray(noise).resize(side, Image.Resampling.BICUBIC).save(stored, "jpeg", quality=90)
    times = []
    for _ in range(repeats):
        began = time.perf_counter_ns()
        bundle.preprocess.pixels(decode(stored.getvalue()))
        times.append(time.perf_counter_ns() - began)
    return Measurement("preprocess_p50", float(np.median(times)) / 1e6, "ms", n=repeats)


def sustained(place: Place, result: RunResult) -> list[Measurement]:
    """The first minute against the last; of a run below two minutes, its halves."""
    parts = minutes(result.latency_ns, result.marks)
    if parts is None:
        doubt = "invalid: the worker did not say when its runs were"
        nothing = place.measured("sustained_ratio", float("nan"))
        return [replace(nothing, doubt=doubt)]
    first, last = (float(np.median(x)) for x in parts)
    doubt = f"noisy: {result.conditions.restarts} restarts" if result.conditions.restarts else ""
    rows = [
        place.measured("latency_first_minute_p50", first / 1e6, "ms", n=len(parts[0])),
        place.measured("latency_last_minute_p50", last / 1e6, "ms", n=len(parts[1])),
        place.measured("sustained_ratio", last / first),
    ]
    return [replace(m, doubt=doubt) for m in rows]


def minutes(
    latency_ns: np.ndarray, marks: tuple[tuple[float, int], ...]
) -> tuple[np.ndarray, np.ndarray] | None:
    """The latencies of the first minute and of the last, by the device's own clock.

    Args:
        latency_ns: Every measured run, in order.
        marks: Seconds and runs until then: see `hetero.devices.RunResult`.

    Returns:
        None where the marks do not tell. Of less than two minutes, the two halves.
    """
    if len(marks) < 2 or marks[-1][0] <= marks[0][0]:
        return None
    seconds, runs = (np.array(x, dtype=np.float64) for x in zip(*marks, strict=True))
    window = min(MINUTE_S, (seconds[-1] - seconds[0]) / 2)
    until = int(np.interp(seconds[0] + window, seconds, runs))
    since = int(np.interp(seconds[-1] - window, seconds, runs))
    begin, end = int(runs[0]), int(runs[-1])
    if not (begin < until and since < end <= len(latency_ns)):
        return None
    return latency_ns[begin:until], latency_ns[since:end]


def pace(
    latency_ns: np.ndarray, marks: tuple[tuple[float, int], ...], parts: int = PARTS
) -> dict[str, list[float]]:
    """The course of a sustained run, in parts of equal time, as series of a report.

    Args:
        latency_ns: Every measured run, in order.
        marks: Seconds and runs until then: see `hetero.devices.RunResult`.
        parts: At most this many; parts without a run are left out.

    Returns:
        "sustained_s", the middle of each part since the first run, and "sustained_ms", the median
        of its runs; empty where the marks do not tell.
    """
    if len(marks) < 2 or marks[-1][0] <= marks[0][0] or marks[-1][1] > len(latency_ns):
        return {}
    seconds, runs = (np.array(x, dtype=np.float64) for x in zip(*marks, strict=True))
    edges = np.linspace(seconds[0], seconds[-1], parts + 1)
    at = np.interp(edges, seconds, runs).astype(int)
    middles, medians = [], []
    for begin, end, a, b in zip(edges, edges[1:], at, at[1:], strict=False):
        if b > a:
            middles.append(round(float((begin + end) / 2 - seconds[0]), 3))
            medians.append(float(np.median(latency_ns[a:b])) / 1e6)
    return {"sustained_s": middles, "sustained_ms": medians}


def placement(result: RunResult) -> str:
    """Where the operators run, in words."""
    parts = ", ".join(f"{n} on {where}" for where, n in result.placement.items())
    return f"operators: {parts}" if parts else "not known: the runtime does not tell"


def fallen_back(place: Place, result: RunResult, options: BenchOptions) -> Measurement:
    """How many operators run elsewhere than asked."""
    wanted = options.accelerator
    others = sum(
        count
        for where, count in result.placement.items()
        if where.removesuffix("ExecutionProvider").lower() != wanted
    )
    m = place.measured("operators_fallen_back", others, "count")
    if not result.placement:
        m = replace(m, value=float("nan"), doubt="invalid: the runtime does not tell where")
    if not options.fail_on_fallback:
        return m
    why = f"every operator was to run on {wanted}"
    return Limit("operators_fallen_back", at_most=0, why=why).laid_on(m)


def profile_plan(plan: Plan) -> Plan:
    """The plan of a run of its own that records every operator."""
    return replace(
        plan, profile=True, duty=1.0, warmup_runs=5, warmup_s=0.0, min_s=0.0,
        min_runs=PROFILED_RUNS, max_s=60.0,
    )  # fmt: skip


def written(result: RunResult, path: Path) -> str:
    """The slowest operators in words; all of them are written to a file."""
    if not result.profile:
        return f"none: {result.profile_missing or 'the runtime recorded no operator'}"
    ops = [vars(op) for op in result.profile]
    write_json(path, {"facts": dict(result.facts), "operators": ops})
    total = sum(op.ns for op in result.profile)
    slowest = [f"{op.name} ({op.op}) {op.ns / total:.0%}" for op in result.profile[:5]]
    return f"{len(ops)} operators, the slowest: {', '.join(slowest)}; all in {path.name}"


def entry(bundle: Bundle, item: Artifact, result: RunResult, options: BenchOptions) -> Entry:
    """The row of the history for a measured file."""
    from hetero import devices

    timing = devices.timing(result)
    facts = result.facts
    return Entry(
        kind="sustained" if options.sustained_min else "measure",
        subject=f"{bundle.root.name} {item.kind} {item.precision}",
        bundle_sha256=bundle.digest,
        file_sha256=item.sha256,
        format=item.kind,
        precision=item.precision,
        device=facts["device"],
        settings=settings(facts["threads"], options.accelerator, options.duty),
        validity=timing.validity,
        reason=timing.reason,
        quiet_ns=quiet(result.latency_ns),
        p50_ns=timing.p50_ns,
        conditions={k: v for k, v in facts.items() if v and not k.endswith("_sha256")},
        raw={
            "runs": timing.runs,
            "load_ns": result.load_ns,
            "first_ns": result.first_ns,
            "peak_memory_bytes": result.peak_memory_bytes,
            "latency_ms": measuring.points(result.latency_ns / 1e6),
        },
    )


def settings(threads: str, accelerator: str, duty: float = 1.0) -> str:
    """What changes the numbers of one file on one device, in words."""
    parts = [f"threads {threads}", accelerator, f"duty {duty:g}" if duty < 1 else ""]
    return ", ".join(x for x in parts if x)
