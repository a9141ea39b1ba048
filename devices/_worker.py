"""The far end in Python: embeds the rows of one run folder, then times the model.

    python _worker.py RUN              one run, as described in `hetero.devices._protocol`
    python _worker.py --probe FOLDER   one line about this machine, marked "probe", on stdout

One file, however long, as it is copied to the device as it is: the standard library, NumPy and one
runtime (onnxruntime, ai-edge-litert, or on a Mac coremltools, which takes pictures as Pillow's),
nothing of ours, Python 3.9 or newer. Nobody reads its stdout and stderr but people: all that counts
is in the files of the run folder.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import fcntl
import glob
import hashlib
import importlib
import importlib.util
import json
import math
import os
import platform
import resource
import shutil
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

# NumPy's own algebra is not used here, and starting threads for it takes time and memory.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
# From onnxruntime 1.29 on it writes a device id and reports home otherwise.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

_began = time.perf_counter_ns()
import numpy as np  # noqa: E402 - timed

#: Belongs to importing a runtime: none of their packages loads without NumPy.
NUMPY_NS = time.perf_counter_ns() - _began

VERSION = 1
BEGAN = time.monotonic()
PROFILED_OPS = 500  # the slowest ones
LEAST_REST_NS = 50_000_000  # of a duty cycle
STOP_LOOK_S = 0.05  # between two looks for the host's wish to stop
RESERVE_BYTES = 16384  # given back when the disk is full, so that this can still be said
PACKAGE = "model.mlpackage"  # while it runs: Core ML reads a folder
#: Processor features that decide which kernels run, as the kernel calls them = as the field does.
FEATURES = (
    "avx2 avx512f avx512_vnni avx_vnni avx512_bf16 avx512_fp16 amx_int8 f16c fma neon asimd "
    "asimddp=dotprod i8mm asimdhp=fp16 bf16 sve sve2"
)
#: ARM's own cores by the number in /proc/cpuinfo, which has no name for them.
CORES = (
    "0xd03=A53 0xd04=A35 0xd05=A55 0xd07=A57 0xd08=A72 0xd09=A73 0xd0a=A75 0xd0b=A76 0xd0d=A77 "
    "0xd41=A78 0xd42=A78AE 0xd46=A510 0xd47=A710"
)
#: The same features as macOS calls them, below hw.optional.
APPLE_FEATURES = (
    "AdvSIMD=asimd arm.FEAT_DotProd=dotprod arm.FEAT_I8MM=i8mm arm.FEAT_FP16=fp16 "
    "arm.FEAT_BF16=bf16 avx2_0=avx2 avx512f=avx512f"
)


class RefusedError(Exception):
    """A foreseen end: `kind` is for the host, the text for people."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class StopError(Exception):
    """The host put a stop file into the run folder."""


@contextlib.contextmanager
def refused(kind: str, what: str = "") -> Iterator[None]:
    """Turns what a runtime raises, whose classes have no common base, into a RefusedError."""
    try:
        yield
    except (RefusedError, MemoryError):
        raise
    except Exception as error:
        raise RefusedError(kind, f"{what}{error}") from error


def write_all(handle: int, data: bytes) -> None:
    """Write every byte; a full disk takes a part first and refuses only the next time."""
    while data:
        data = data[os.write(handle, data) :]


def sha256(path: str) -> str:
    """Hexadecimal SHA-256 of a file; of none, where it is not there."""
    digest = hashlib.sha256()
    if os.path.exists(path):
        with open(path, "rb") as file:
            for part in iter(lambda: file.read(1 << 20), b""):
                digest.update(part)
    return digest.hexdigest()


class Log:
    """Appends events to log.jsonl, a line each, from any thread."""

    def __init__(self) -> None:
        self._handle = os.open("log.jsonl", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._lock = threading.Lock()
        size = os.fstat(self._handle).st_size
        # A worker that was killed, or a full disk, may have left half a line.
        self._torn = size > 0 and os.pread(self._handle, 1, size - 1) != b"\n"

    def __call__(self, event: str, **fields: object) -> None:
        line = {"hetero": event, "t_s": round(time.monotonic() - BEGAN, 3), **fields}
        with self._lock:
            data = b"\n" * self._torn + json.dumps(line).encode() + b"\n"
            self._torn = True
            write_all(self._handle, data)
            self._torn = False


# -- the machine ------------------------------------------------------------------------------


def text_of(path: str) -> str:
    """A small file's text, or "" where it cannot be read: sensors differ from board to board."""
    try:
        with open(path, errors="replace") as file:
            return file.read().strip("\0\n ")
    except OSError:
        return ""


def machine() -> dict[str, Any]:
    """Processor, its features and the system."""
    lines = [x.partition(":") for x in text_of("/proc/cpuinfo").splitlines()]
    info = {key.strip(): value.strip() for key, _, value in reversed(lines)}  # the first one wins
    part = f"{platform.machine()} part {info['CPU part']}" if "CPU part" in info else ""
    if info.get("CPU implementer") == "0x41":
        cores = dict(x.split("=") for x in CORES.split())
        part = f"Cortex-{cores[info['CPU part']]}" if info.get("CPU part") in cores else part
    cpu = info.get("model name") or part or platform.processor() or platform.machine()
    board = text_of("/proc/device-tree/model")
    flags = (info.get("flags") or info.get("Features") or "").split()
    names = [x.partition("=") for x in FEATURES.split()]
    return {
        **({"execution": "emulated"} if emulated() else {}),
        "cpu": f"{board}, {cpu}" if board else cpu,
        "cpus": os.cpu_count() or 1,
        "features": [field or name for name, _, field in names if name in flags],
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        **(apple(sysctl()) if sys.platform == "darwin" else {}),
    }


def sysctl() -> str:
    """What macOS says of its machine, which has no /proc; "" where it does not."""
    call = ["sysctl", "hw.model", "hw.optional", "machdep.cpu.brand_string"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(call, capture_output=True, text=True, timeout=5, check=False).stdout
    return ""


def apple(said: str) -> dict[str, Any]:
    """Processor, features and system of a Mac, out of sysctl's lines."""
    lines = (x.partition(": ") for x in said.splitlines())
    info = {key.strip(): value.strip() for key, _, value in lines}
    names = [x.split("=") for x in APPLE_FEATURES.split()]
    cpu = (info.get("hw.model"), info.get("machdep.cpu.brand_string"))
    return {
        "cpu": ", ".join(filter(None, cpu)) or platform.machine(),
        "features": [field for name, field in names if info.get("hw.optional." + name) == "1"],
        "system": f"macOS {platform.mac_ver()[0]} {platform.machine()}",
    }


def emulated() -> bool:
    """Whether qemu-user runs us on another processor: right numbers, times that mean nothing."""
    # It hides itself in /proc/self/exe, but not in the same link of our thread.
    with contextlib.suppress(OSError):
        program = os.readlink(f"/proc/self/task/{os.getpid()}/exe")
        return os.path.basename(program).startswith("qemu-")
    return False


def firmware() -> dict[str, Any]:
    """What a Raspberry Pi's firmware says of its power and heat, as bits; nothing elsewhere."""
    call = ["vcgencmd", "get_throttled"]  # a process, so not with each beat
    with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
        said = subprocess.run(call, capture_output=True, text=True, timeout=5, check=True).stdout
        return {"throttled": int(said.partition("=")[2], 16)}
    return {}


def telemetry() -> dict[str, Any]:
    """What can be read of clock, heat and load; null, or no zone, where it cannot."""
    clocks, zones = "/sys/devices/system/cpu/cpu0/cpufreq/", {}
    for zone in sorted(glob.glob("/sys/class/thermal/thermal_zone*")):
        with contextlib.suppress(ValueError):
            zones[text_of(zone + "/type") or zone] = int(text_of(zone + "/temp")) / 1000
    clock = text_of(clocks + "scaling_cur_freq")
    return {
        "governor": text_of(clocks + "scaling_governor") or None,
        "clock_mhz": int(clock) // 1000 if clock.isdigit() else None,
        "temperatures_c": zones,
        "load": os.getloadavg()[0],
    }


def usage() -> tuple[int, int]:
    """Peak memory of this process in bytes, and its involuntary context switches so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    lines = text_of("/proc/self/status").splitlines()
    kib = [int(x.split()[1]) for x in lines if x.startswith("VmHWM:")]
    # Without /proc: kilobytes, but bytes on macOS.
    peak = kib[0] * 1024 if kib else used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return peak, used.ru_nivcsw


# -- the runtimes -----------------------------------------------------------------------------


def placement(session: Any) -> dict[str, int]:
    """How many nodes run on each provider; empty where this onnxruntime does not tell (< 1.24)."""
    counts: dict[str, int] = {}
    for part in getattr(session, "get_provider_graph_assignment_info", list)():
        counts[part.ep_name] = counts.get(part.ep_name, 0) + len(part.get_nodes())
    return counts


class OnnxRuntime:
    """A model in onnxruntime: `model(block)` gives rows."""

    module, package, chooses = "onnxruntime", "onnxruntime", False
    scale, zero = 0.0, 0  # ONNX keeps none beside an integer output

    def __init__(self, path: str, threads: int, accelerator: str, profile: bool) -> None:
        import onnxruntime

        options, providers = onnxruntime.SessionOptions(), ["CPUExecutionProvider"]
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        if profile:
            options.enable_profiling, options.profile_file_prefix = True, "profile"
        if accelerator:
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
            known = {x[:-17].lower(): x for x in onnxruntime.get_available_providers()}
            if accelerator not in known:
                raise RefusedError(
                    "runtime-missing",
                    f"onnxruntime has no {accelerator!r} here, it has {', '.join(sorted(known))}",
                )
            providers = list(dict.fromkeys([known[accelerator], *providers]))
        self._session = onnxruntime.InferenceSession(path, options, providers=providers)
        self.placement = placement(self._session) if accelerator else {}
        takes, gives = self._session.get_inputs(), self._session.get_outputs()
        self.ends = len(takes), len(gives)
        self.dtype = {"tensor(float)": "float32"}.get(takes[0].type, takes[0].type[7:-1])
        self.shape = [x if isinstance(x, int) else None for x in takes[0].shape]
        self.provider = ",".join(self._session.get_providers())
        self._in, self._out = takes[0].name, [gives[0].name]

    def __call__(self, block: np.ndarray) -> np.ndarray:
        rows: np.ndarray = self._session.run(self._out, {self._in: block})[0]
        return rows

    def profile(self) -> dict[str, Any]:
        """Time and calls of every node so far; ends the recording."""
        path = self._session.end_profiling()
        with open(path, encoding="utf-8") as file:
            events = json.load(file)
        os.unlink(path)
        ops: dict[str, dict[str, Any]] = {}
        for event in events:
            about, name = event.get("args", {}), event["name"]
            if event.get("cat") != "Node" or not name.endswith("_kernel_time"):
                continue
            name = name[: -len("_kernel_time")]
            kind = {"name": name, "op": about.get("op_name", ""), "on": about.get("provider", "")}
            op = ops.setdefault(name, {**kind, "calls": 0, "ns": 0})
            op["calls"], op["ns"] = op["calls"] + 1, op["ns"] + 1000 * int(event["dur"])
        return {"ops": sorted(ops.values(), key=lambda op: -op["ns"])[:PROFILED_OPS], "why": ""}


class LiteRt:
    """A model in LiteRT (TensorFlow Lite): `model(block)` gives rows."""

    module, package, chooses = "ai_edge_litert.interpreter", "ai-edge-litert", False

    def __init__(self, path: str, threads: int, accelerator: str, profile: bool) -> None:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        kernels = {
            "": OpResolverType.AUTO,
            "xnnpack": OpResolverType.AUTO,
            "cpu": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        }
        if accelerator not in kernels:
            raise RefusedError(
                "runtime-missing", f"LiteRT has no {accelerator!r} here, it has cpu, xnnpack"
            )
        self._lite = lite = Interpreter(
            model_path=path,
            num_threads=threads,
            experimental_op_resolver_type=kernels[accelerator],
        )
        lite.allocate_tensors()
        takes, gives = lite.get_input_details(), lite.get_output_details()
        self.ends = len(takes), len(gives)
        self.dtype = np.dtype(takes[0]["dtype"]).name
        self.shape = [int(x) if x >= 0 else None for x in takes[0]["shape_signature"]]
        self._in, self._out = takes[0]["index"], gives[0]["index"]
        self.scale, self.zero = gives[0]["quantization"]
        if self.shape[:1] == [None]:
            lite.resize_tensor_input(self._in, [1, *takes[0]["shape"][1:]])
            lite.allocate_tensors()
        # Which kernels run is known only to a private method; without it nothing is claimed.
        ops: list[dict[str, Any]] = getattr(lite, "_get_ops_details", list)()
        parts = [op for op in ops if op["op_name"] == "DELEGATE"]
        self.provider = f"cpu, {len(parts)} delegated parts" if ops else "cpu"
        delegated: set[int] = set().union(*(inside(part, ops) for part in parts))
        left = len(ops) - len(parts) - len(delegated)
        self.placement = {"xnnpack": len(delegated), "cpu": left} if ops else {}

    def __call__(self, block: np.ndarray) -> np.ndarray:
        self._lite.set_tensor(self._in, block)
        self._lite.invoke()
        rows: np.ndarray = self._lite.get_tensor(self._out)
        return rows

    def profile(self) -> dict[str, Any]:
        """Nothing: the Python package gives no access to LiteRT's profiler."""
        return {"ops": [], "why": "LiteRT's Python package gives no access to its profiler"}


def inside(part: dict[str, Any], ops: list[dict[str, Any]]) -> set[int]:
    """The operators that a delegate took over: all between its inputs and its outputs."""
    makers = {out: op for op in ops if op["op_name"] != "DELEGATE" for out in op["outputs"]}
    ends = {int(x) for x in part["inputs"]}
    found: set[int] = set()
    wanted = [int(x) for x in part["outputs"]]
    while wanted:
        op = makers.get(wanted.pop())
        if op is not None and op["index"] not in found:
            found.add(op["index"])
            wanted += [int(x) for x in op["inputs"] if int(x) not in ends]
    return found


class CoreMl:
    """A package in Core ML, by coremltools: `model(block)` gives rows.

    Attributes:
        chooses: It picks threads and processors by itself, so that ours say nothing about it.
    """

    module, package, chooses = "coremltools", "coremltools", True
    scale, zero = 0.0, 0

    def __init__(self, path: str, threads: int, accelerator: str, profile: bool) -> None:
        import coremltools

        units = {"": "ALL", "cpu": "CPU_ONLY", "gpu": "CPU_AND_GPU", "ne": "CPU_AND_NE"}
        if accelerator not in units:
            raise RefusedError(
                "runtime-missing", f"Core ML has no {accelerator!r}, it has cpu, gpu, ne"
            )
        self._units = coremltools.ComputeUnit[units[accelerator]]
        with warnings.catch_warnings():
            # coremltools warns of a package that Core ML refuses, and fails at the first call.
            warnings.simplefilter("error", RuntimeWarning)
            self._model = coremltools.models.MLModel(path, compute_units=self._units)
        about = self._model.get_spec().description
        self.ends = len(about.input), len(about.output)
        self.provider = f"Core ML, {self._units.name}"
        kind, self._image = about.input[0].type, None
        if kind.WhichOneof("Type") == "imageType":
            self.dtype, self.shape = picture(kind.imageType)
            self._image = pillow()
        else:
            array = kind.multiArrayType
            self.dtype = type(array).ArrayDataType.Name(array.dataType).lower()
            self.shape = [int(x) for x in array.shape]
        self._in, self._out = about.input[0].name, about.output[0].name

    def __call__(self, block: np.ndarray) -> np.ndarray:
        given = self._image.fromarray(block[0]) if self._image else block
        rows: np.ndarray = self._model.predict({self._in: given})[self._out]
        return rows

    @property
    def placement(self) -> dict[str, int]:
        """Where Core ML plans to run how many operators; empty where it does not tell."""
        names = {"MLCPU": "cpu", "MLGPU": "gpu", "MLNeuralEngine": "ne"}
        counts: dict[str, int] = {}
        try:
            from coremltools.models.compute_plan import MLComputePlan

            compiled = self._model.get_compiled_model_path()
            plan = MLComputePlan.load_from_path(compiled, compute_units=self._units)
            for op in plan.model_structure.program.functions["main"].block.operations:
                used = plan.get_compute_device_usage_for_mlprogram_operation(op)
                if used is not None:  # constants run nowhere
                    kind = type(used.preferred_compute_device).__name__
                    where = names.get(kind.replace("ComputeDevice", ""), kind)
                    counts[where] = counts.get(where, 0) + 1
        except Exception as error:  # before macOS 14.4 and coremltools 8 nothing can be claimed
            print(f"no plan of where operators run: {error!r}", file=sys.stderr)
            return {}
        return counts

    def profile(self) -> dict[str, Any]:
        """Nothing: Core ML times operators for Xcode only."""
        return {"ops": [], "why": "Core ML gives the times of operators to Xcode only"}


def picture(about: Any) -> tuple[str, list[int | None]]:
    """Dtype and shape of a block of pictures, for an image as input."""
    colours = type(about).ColorSpace.Name(about.colorSpace)
    if colours != "RGB":
        raise RefusedError("model-refused", f"it takes an image of {colours}, expected RGB")
    return "uint8", [1, int(about.height), int(about.width), 3]


def pillow() -> Any:
    """Pillow's Image, in which coremltools takes pictures."""
    try:
        from PIL import Image
    except ImportError as error:
        fix = f"run: {sys.executable} -m pip install pillow"
        text = f"coremltools takes pictures as Pillow's, which does not load ({error}); {fix}"
        raise RefusedError("runtime-missing", text) from error
    return Image


def core_ml_is_here() -> bool:
    """Whether coremltools is the one for macOS: no other has the part that calls Core ML."""
    spec = importlib.util.find_spec("coremltools")
    folders = (spec and spec.submodule_search_locations) or ()
    return any(glob.glob(os.path.join(x, "libcoremlpython.*")) for x in folders)


def unpacked(path: str) -> str:
    """A package, which is a folder, out of the one file as which it was sent."""
    if not path.endswith(".mlpackage.zip"):
        return path
    shutil.rmtree(PACKAGE, ignore_errors=True)  # a worker before may have been killed
    import zipfile

    with zipfile.ZipFile(path) as file:
        file.extractall(PACKAGE)
    return os.path.abspath(PACKAGE)


RUNTIMES: dict[str, Any] = {"onnxruntime": OnnxRuntime, "litert": LiteRt, "coreml": CoreMl}


def version_of(module: str, package: str) -> str:
    """As the imported module says itself; asking for the package's takes as long as NumPy."""
    said = getattr(sys.modules[module], "__version__", "")
    if said:
        return str(said)
    import importlib.metadata

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # installed under another name
        return "unknown"


def import_runtime(name: str) -> str:
    """The runtime's exact version, once it is imported and so known to work here."""
    runtime = RUNTIMES[name]
    if name == "coreml" and sys.platform != "darwin" and not core_ml_is_here():
        text = f"Core ML runs on macOS only, this is {platform.system()}"
        raise RefusedError("runtime-missing", text)
    try:
        importlib.import_module(runtime.module)
        version = version_of(runtime.module.partition(".")[0], runtime.package)
        # What computes is a part of the system, and moves with it.
        system = f"macOS {platform.mac_ver()[0] or 'unknown'}, "
        return f"{system}coremltools {version}" if name == "coreml" else version
    except ImportError as error:
        fix = f"run: {sys.executable} -m pip install {runtime.package}"
        raise RefusedError(
            "runtime-missing", f"{runtime.package} does not load ({error}); {fix}"
        ) from error


# -- one run ----------------------------------------------------------------------------------


def torn(what: dict[str, Any]) -> RefusedError:
    """The refusal of a file of the job."""
    return RefusedError("file-torn", f"{what['file']} is missing or not what was sent")


class Verified(threading.Thread):
    """Reads the inputs once from end to end, while the first rows are being embedded already.

    On a small board that takes as long as many rows do. Rows of inputs that turn out not to be what
    was sent are thrown away: see `Run.embed`.
    """

    def __init__(self, about: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self.about = about
        size = np.dtype(about["dtype"]).itemsize * math.prod(about["shape"])
        if not os.path.exists(about["file"]) or os.path.getsize(about["file"]) != size:
            raise torn(about)
        self.right = False
        self.start()

    def run(self) -> None:
        self.right = sha256(self.about["file"]) == self.about["sha256"]

    def wait(self) -> None:
        """Nothing, or the refusal."""
        self.join()
        if not self.right:
            raise torn(self.about)


class Run:
    """The run folder, which is the working directory, and how far the work in it is."""

    def __init__(self, log: Log, job: dict[str, Any]) -> None:
        self.log, self.job, self.plan = log, job, job["plan"]
        self.phase, self.rows, self.runs, self.looked = "load", 0, 0, 0.0
        threading.Thread(target=self._beat, daemon=True).start()

    def _beat(self) -> None:
        while True:
            time.sleep(self.plan["beat_s"])
            self.log("beat", phase=self.phase, rows=self.rows, runs=self.runs)
            if self.phase == "measure":
                self.log("telemetry", **telemetry())

    def must_go_on(self) -> None:
        """Nothing, unless the host wants an end."""
        # A look at the disk costs as much as some rows of a fast model.
        now = time.monotonic()
        if now - self.looked >= STOP_LOOK_S:
            self.looked = now
            if os.path.exists("stop"):
                raise StopError

    def file(self, what: dict[str, Any]) -> str:
        """The path of a file of the job, once its content is known to be what the host meant."""
        if sha256(what["file"]) != what["sha256"]:
            raise torn(what)
        return str(what["file"])

    def load(self) -> None:
        """Runtime, inputs, model, and the first inference of all."""
        job, about = self.job, self.job["inputs"]
        began = time.perf_counter_ns()
        version = import_runtime(job["runtime"])
        import_ns = NUMPY_NS + time.perf_counter_ns() - began
        me = {"version": VERSION, "worker": "python", "pid": os.getpid(), "numpy": np.__version__}
        threads = 0 if RUNTIMES[job["runtime"]].chooses else job["threads"]
        what = {"runtime": job["runtime"], "runtime_version": version, "threads": threads}
        self.log("hello", **me, **what, **machine(), governor=telemetry()["governor"])
        path, shape = unpacked(self.file(job["model"])), about["shape"]
        self.count, self.checked = shape[0], Verified(about)
        self.inputs = os.open(about["file"], os.O_RDONLY)
        self.dtype, self.row_shape = np.dtype(about["dtype"]).newbyteorder("<"), shape[1:]
        self.row_bytes = self.dtype.itemsize * math.prod(self.row_shape)
        wanted, profile = job.get("accelerator", ""), bool(job.get("profile"))
        began = time.perf_counter_ns()
        with refused("model-refused"):
            self.model = RUNTIMES[job["runtime"]](path, job["threads"], wanted, profile)
        load_ns = time.perf_counter_ns() - began
        takes, kind = self.model.shape, self.model.dtype
        about_model = {"provider": self.model.provider, "input_dtype": kind, "input_shape": takes}
        placed = {"accelerator": wanted, "placement": self.model.placement} if wanted else {}
        self.log("ready", **about_model, **placed, import_ns=import_ns, load_ns=load_ns)
        if self.model.ends != (1, 1):
            raise RefusedError(
                "model-refused", "{} inputs and {} outputs, not 1".format(*self.model.ends)
            )
        fits = len(takes) == len(shape) and all(
            takes[axis] in (None, shape[axis]) for axis in range(1, len(takes))
        )
        if not fits or kind != about["dtype"]:
            given = f"the inputs are {about['dtype']} {[1, *shape[1:]]}"
            raise RefusedError("input-mismatch", f"it takes {kind} {takes}, {given}")
        self.batch = takes[0] or 1
        self.fixed = self.block(0)
        with refused("model-refused", "it loads but does not run: "):
            rows, ns = self.infer(self.fixed)
        self.dim = rows.shape[1]
        self.resume()
        about_first = {"dim": self.dim, "batch": self.batch, "start": self.rows, "runs": self.runs}
        self.log("first", ns=ns, **about_first)

    def block(self, row: int) -> np.ndarray:
        """The inputs of one call; at the end the last row fills a fixed batch up."""
        # Read, not mapped: the inputs must not count as memory that the model needs.
        rows = (min(i, self.count - 1) for i in range(row, row + self.batch))
        parts = [os.pread(self.inputs, self.row_bytes, i * self.row_bytes) for i in rows]
        data = parts[0] if self.batch == 1 else b"".join(parts)
        return np.frombuffer(data, self.dtype).reshape(self.batch, *self.row_shape)

    def infer(self, block: np.ndarray) -> tuple[np.ndarray, int]:
        """The float32 rows of one call, and its time."""
        began = time.perf_counter_ns()
        raw = self.model(block)
        ns = time.perf_counter_ns() - began
        rows = raw
        if raw.dtype.kind in "iu" and self.model.scale:
            rows = (raw.astype(np.float32) - self.model.zero) * np.float32(self.model.scale)
        if rows.ndim != 2 or rows.shape[0] != self.batch or rows.dtype.kind != "f":
            want = f"expected float32 [{self.batch}, dim]"
            raise RefusedError("model-refused", f"it gives {raw.dtype} {list(raw.shape)}, {want}")
        return rows.astype("<f4"), ns

    def resume(self) -> None:
        """Cut both files to what is whole in both, and go on from there."""
        self.out, self.lat = (
            os.open(x, os.O_RDWR | os.O_CREAT, 0o644) for x in ("out.bin", "lat.bin")
        )
        count, row_bytes = self.count, 4 * self.dim
        times = os.fstat(self.lat).st_size // 8
        rows = min(os.fstat(self.out).st_size // row_bytes, times, count)
        self.rows = rows if rows == count else rows - rows % self.batch
        self.runs = times - count if rows == count else 0
        os.ftruncate(self.out, self.rows * row_bytes)
        os.ftruncate(self.lat, (self.rows + self.runs) * 8)
        os.lseek(self.out, 0, os.SEEK_END)
        os.lseek(self.lat, 0, os.SEEK_END)

    def embed(self) -> None:
        """Every row that is not there yet: its bytes, then its time, then its event."""
        self.phase = "embed"
        for row in range(self.rows, self.count, self.batch):
            self.must_go_on()
            with refused("run-failed", f"row {row}: "):
                rows, ns = self.infer(self.block(row))
            count = min(self.batch, self.count - row)
            write_all(self.out, rows[:count].tobytes())
            write_all(self.lat, ns.to_bytes(8, "little") * count)
            self.rows = row + count
            self.log("run", i=row, n=count, ns=ns)
        try:
            self.checked.wait()
        except RefusedError:
            for handle in (self.out, self.lat):
                os.ftruncate(handle, 0)
            raise

    def unfinished(self, runs: int, spent_s: float, least_runs: int, least_s: float) -> bool:
        """Whether another run of the fixed input is due."""
        self.must_go_on()
        return (runs < least_runs or spent_s < least_s) and spent_s < self.plan["max_s"]

    def measure(self) -> dict[str, Any]:
        """Warm up, then time one fixed input; what may have disturbed it comes back."""
        plan, model, block = self.plan, self.model, self.fixed
        if not plan["min_runs"] and not plan["min_s"]:
            return {"switches": None, "cpu_share": None, "measured": 0}
        self.phase, warm, began = "warm", 0, time.monotonic()
        while self.unfinished(
            warm, time.monotonic() - began, plan["warmup_runs"], plan["warmup_s"]
        ):
            model(block)
            warm += 1
        kept = np.frombuffer(os.pread(self.lat, self.runs * 8, self.count * 8), "<i8")
        spent_ns = int(kept.sum())
        self.log("bench", warmup_runs=warm, runs=self.runs)
        self.log("telemetry", **telemetry(), **firmware())
        self.phase, duty, rest_ns = "measure", float(self.job.get("duty", 1.0)), 0
        cpu, wall, switched = time.thread_time_ns(), time.perf_counter_ns(), usage()[1]
        rested = 0
        while self.unfinished(self.runs, spent_ns / 1e9, plan["min_runs"], plan["min_s"]):
            began = time.perf_counter_ns()
            model(block)
            ns = time.perf_counter_ns() - began
            write_all(self.lat, ns.to_bytes(8, "little"))
            self.runs, spent_ns = self.runs + 1, spent_ns + ns
            # Rests are gathered: a sleep after each short run would last far longer than asked.
            rest_ns += int(ns * (1 / duty - 1))
            if rest_ns > LEAST_REST_NS:
                began = time.perf_counter_ns()
                time.sleep(rest_ns / 1e9)
                slept = time.perf_counter_ns() - began
                rest_ns, rested = rest_ns - slept, rested + slept
        cpu, wall = time.thread_time_ns() - cpu, time.perf_counter_ns() - wall - rested
        switched, measured = usage()[1] - switched, self.runs - len(kept)
        self.phase = "finish"
        self.log("telemetry", **telemetry(), **firmware())
        if self.job.get("profile"):
            self.log("profile", runs=self.runs, **model.profile())
        rhythm = {"duty": duty} if duty < 1 else {}
        # One that computes elsewhere leaves our thread waiting, undisturbed.
        share = None if model.chooses else min(1.0, cpu / wall)
        return {"switches": switched, "cpu_share": share, "measured": measured, **rhythm}

    def finish(self, disturbances: dict[str, Any]) -> None:
        """Make the files last, and sign them with their hashes."""
        signed = {"rows": self.rows, "dim": self.dim, "runs": self.runs}
        for name, handle in (("out", self.out), ("lat", self.lat)):
            os.fsync(handle)
            signed[f"{name}_bytes"] = os.fstat(handle).st_size
            signed[f"{name}_sha256"] = sha256(f"{name}.bin")
        self.log("done", **signed, peak_memory_bytes=usage()[0], **disturbances)


def take_folder() -> None:
    """Write our pid, locked as long as we live: two workers never share a folder."""
    handle = os.open("pid", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise RefusedError("busy", "another worker is at work in this folder") from error
    os.ftruncate(handle, 0)
    write_all(handle, f"{os.getpid()}\n".encode())


def read_job() -> dict[str, Any]:
    """The host's order."""
    with open("job.json", encoding="utf-8") as file:
        job: dict[str, Any] = json.load(file)
    if job.get("version") != VERSION:
        raise RefusedError("version", f"the job is of version {job.get('version')}, not {VERSION}")
    if job["runtime"] not in RUNTIMES:
        raise RefusedError("runtime-missing", f"this worker has no runtime {job['runtime']!r}")
    return job


def work(log: Log) -> None:
    """The whole run; the last event says how it ended."""
    faulthandler.enable()  # a runtime that crashes on a model leaves a trace on stderr
    try:
        take_folder()
        with open("reserve", "wb") as file:
            file.write(bytes(RESERVE_BYTES))
        run = Run(log, read_job())
        try:
            run.must_go_on()
            run.load()
            run.embed()
            run.finish(run.measure())
        except StopError:
            log("stopped", rows=run.rows, runs=run.runs)
        os.unlink("reserve")
    except RefusedError as refusal:
        log("error", kind=refusal.kind, text=" ".join(str(refusal).split())[:500])
    except MemoryError:
        log("error", kind="out-of-memory", text="not enough memory for this model")
        raise
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        with contextlib.suppress(OSError):
            os.unlink("reserve")
        log("error", kind="disk-full" if full else "worker-failed", text=repr(error)[:500])
        raise
    finally:
        shutil.rmtree(PACKAGE, ignore_errors=True)


def probe(folder: str) -> None:
    """Print what this machine is and has."""
    found: dict[str, Any] = {"hetero": "probe", "version": VERSION, "executable": sys.executable}
    for name in RUNTIMES:
        try:
            found[name] = import_runtime(name)
        except RefusedError as refusal:
            found[name], found[name + "_missing"] = "", str(refusal)
    kib = [x.split()[1] for x in text_of("/proc/meminfo").splitlines() if x.startswith("MemAvail")]
    found["memory_free_bytes"] = int(kib[0]) * 1024 if kib else None
    found["disk_free_bytes"] = shutil.disk_usage(folder).free
    print("\n" + json.dumps({**found, **machine(), **telemetry(), **firmware()}), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "--probe":
        probe(sys.argv[2])
    else:
        os.chdir(sys.argv[1])
        work(Log())
