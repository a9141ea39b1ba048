"""Emulated boards: what the ARM kernels of the real runtimes give, and that nothing is a time."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from fakes import tiny_pixels, write_onnx, write_tflite

from hetero import _plugins
from hetero.devices import Plan, _arm64, _debian, examine, qemu, run
from hetero.errors import ConfigError, DeviceError

UNTIMED = Plan(0, 0.0, 0, 0.0, timeout_s=600)
SIZE, WIDTH, DIM = 16, 8, 12  # of the small net: pixels, channels, numbers out


@pytest.fixture(scope="module")
def built():
    """The userland, made once for all who test; a machine that cannot make it skips."""
    try:
        return qemu.build()
    except DeviceError as error:
        pytest.skip(str(error))


# -- the address ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "name", "board", "threads"),
    [
        ("", "qemu:pi5", "pi5", None),
        ("pi4", "qemu:pi4", "pi4", None),
        ("pi3,threads=2", "qemu:pi3,threads=2", "pi3", 2),
        ("threads=3", "qemu:threads=3", "pi5", 3),
    ],
)
def test_an_address_is_a_board_and_options(address, name, board, threads):
    device = qemu.device(address)
    assert (device.name, device.board, device.threads) == (name, board, threads)
    assert device.execution == "emulated"


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("pi6", "no board 'pi6'; there are pi3, pi4, pi5"),
        ("pi5,pi4", "cannot use 'pi4'"),
        ("pi5,threads=0", "at least 1, got '0'"),
        ("pi5,python=/usr/bin/python3", "cannot use 'python"),
    ],
)
def test_an_address_that_cannot_be_is_refused(address, says):
    with pytest.raises(ConfigError, match=f"^qemu: .*{says}"):
        qemu.device(address)


# -- building it, without a network ---------------------------------------------------------------


DEB822 = """\
# comment
Types: deb deb-src
# http://snapshot.example/
URIs: http://deb.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Architectures: amd64
Signed-By: /usr/share/keyrings/debian.gpg

Types: deb
URIs: http://deb.example/debian
Suites: bookworm-backports
Components: main

Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main
Enabled: no
"""
ONE_LINE = """\
deb-src http://source.example/debian bookworm main
deb [arch=amd64 signed-by=/etc/own.gpg] http://one.example/debian bookworm main  # here
deb http://other.example/node nodistro main
"""


def test_debians_own_sources_are_taken_for_any_architecture_and_no_other_sources(tmp_path):
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d/debian.sources").write_text(DEB822)
    (tmp_path / "sources.list").write_text(ONE_LINE)
    assert _debian._sources(tmp_path, "bookworm") == (
        "Types: deb\nURIs: http://deb.example/debian\nSuites: bookworm bookworm-updates\n"
        "Components: main contrib\nSigned-By: /usr/share/keyrings/debian.gpg\n\n"
        "Types: deb\nURIs: http://one.example/debian\nSuites: bookworm\nComponents: main\n"
        "Signed-By: /etc/own.gpg\n"
    )
    with pytest.raises(DeviceError, match="no source of Debian trixie"):
        _debian._sources(tmp_path, "trixie")


def test_a_recipe_asks_for_the_runtimes_that_are_installed_here(monkeypatch):
    def version(name):
        if name == "numpy":
            return "9.8.7"
        raise _arm64.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(_debian, "release", lambda: "bookworm")
    monkeypatch.setattr(_arm64.importlib.metadata, "version", version)
    made = _arm64.recipe("openssh-server")
    assert made.wheels[:2] == ("numpy==9.8.7", "onnxruntime")
    assert made.packages == (*_arm64.PACKAGES, "openssh-server")


def test_equal_recipes_share_a_build_and_others_do_not():
    one = _arm64.Recipe("bookworm", ("a", "b"), ("x==1",))
    assert one.key == _arm64.Recipe("bookworm", ("b", "a"), ("x==1",)).key
    others = [
        _arm64.Recipe("trixie", ("a", "b"), ("x==1",)),
        _arm64.Recipe("bookworm", ("a",), ("x==1",)),
        _arm64.Recipe("bookworm", ("a", "b"), ("x==2",)),
    ]
    assert len({x.key for x in (one, *others)}) == 4


@pytest.fixture
def made_here(monkeypatch, tmp_path):
    """Builds in a cache of their own whose making only leaves a mark; the list of makings."""
    made: list[Path] = []

    def make(wanted, work, done, say):
        say("making")
        done.mkdir()
        (done / "number").write_text(str(len(made)))
        made.append(done)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(_arm64, "_make", make)
    return made


def test_a_build_is_made_once_and_again_only_when_asked(made_here, tmp_path):
    steps: list[str] = []
    recipe = _arm64.Recipe("bookworm")
    for again, number in ((False, "0"), (False, "0"), (True, "1")):
        built = _arm64.build(recipe, steps.append, again=again)
        assert (built.folder / "number").read_text() == number
    assert steps == ["making", "making"]
    assert built.folder == tmp_path / "hetero/arm64" / recipe.key
    assert sorted(x.name for x in built.folder.parent.iterdir()) == [
        recipe.key,
        f"{recipe.key}.lock",
    ]


def test_a_build_that_failed_or_was_killed_leaves_nothing_that_is_taken_for_one(
    made_here, tmp_path, monkeypatch
):
    recipe = _arm64.Recipe("bookworm")
    left = tmp_path / f"hetero/arm64/.{recipe.key}.killed"
    left.mkdir(parents=True)

    def fail(wanted, work, done, say):
        done.mkdir()
        raise DeviceError("qemu", "the mirror is away")

    with monkeypatch.context() as patch:
        patch.setattr(_arm64, "_make", fail)
        with pytest.raises(DeviceError, match="the mirror is away"):
            _arm64.build(recipe)
    assert [x.name for x in left.parent.iterdir()] == [f"{recipe.key}.lock"]
    assert _arm64.build(recipe).folder.is_dir()


def test_a_cache_that_cannot_be_written_says_how_to_choose_another(made_here, tmp_path):
    (tmp_path / "hetero").write_text("a file")
    with pytest.raises(DeviceError, match="set XDG_CACHE_HOME"):
        _arm64.build(_arm64.Recipe("bookworm"))


def test_a_machine_that_is_no_debian_is_told_what_to_do(monkeypatch):
    about = {"ID": "fedora", "PRETTY_NAME": "Fedora 99", "VERSION_CODENAME": ""}
    monkeypatch.setattr(_debian.platform, "freedesktop_os_release", lambda: about)
    with pytest.raises(DeviceError, match=r"this is Fedora 99; use a Debian container"):
        _debian.release()


def test_a_missing_program_and_a_failing_one_are_one_line_each():
    with pytest.raises(DeviceError, match="no-such-program is not on this machine"):
        _debian.call(["no-such-program"])
    script = "echo noise >&2; echo 'E: Failed to fetch http://deb.example' >&2; exit 100"
    with pytest.raises(DeviceError, match="exit code 100: E: Failed to fetch") as caught:
        _debian.call(["sh", "-c", script])
    assert "\n" not in str(caught.value)


def test_a_torn_package_is_not_half_unpacked_in_silence(tmp_path):
    torn = tmp_path / "torn.deb"
    torn.write_bytes(b"!<arch>\n")
    with pytest.raises(DeviceError, match=r"torn\.deb is no whole Debian package|tar failed"):
        _debian.unpack([torn], tmp_path / "root")


# -- what a board shows of itself -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("board", "core", "features"),
    [
        ("pi3", "Cortex-A53", ["asimd"]),
        ("pi4", "Cortex-A72", ["asimd"]),
        ("pi5", "Cortex-A76", ["asimd", "dotprod", "fp16"]),
    ],
)
def test_a_board_shows_its_own_core_and_none_of_this_machines_sensors(
    built, board, core, features, tmp_path
):
    with qemu.device(board).connect(tmp_path) as link:
        found = link.probe()
    assert (found["cpu"], found["features"], found["cpus"]) == (core, features, 4)
    assert found["system"].endswith("aarch64")
    assert (found["governor"], found["clock_mhz"], found["temperatures_c"]) == (None, None, {})


def test_a_board_has_the_runtimes_of_this_machine(built, tmp_path):
    wanted = dict(x.partition("==")[::2] for x in _arm64.recipe().wheels)
    checks = {name: detail for name, _, detail, _ in examine(qemu.device(""), tmp_path)}
    for check, package in (("onnxruntime", "onnxruntime"), ("litert", "ai-edge-litert")):
        assert checks[check].startswith(wanted[package] or ("1", "2"))


def test_the_emulator_has_every_feature_that_a_board_lists(built):
    # What the guest's kernel interface says, by the dynamic loader: AT_HWCAP.
    hwcap = {"asimd": 1 << 1, "crc32": 1 << 7, "asimddp": 1 << 20, "fphp": 1 << 9}
    for name, board in qemu.BOARDS.items():
        python = qemu.command(built, name)
        code = "import ctypes; print(ctypes.CDLL(None).getauxval(16))"
        done = subprocess.run([*python, "-c", code], capture_output=True, text=True, check=True)
        has = int(done.stdout)
        for feature, bit in hwcap.items():
            assert feature not in board.features.split() or has & bit, (name, feature)
        assert bool(has & hwcap["asimddp"]) == (name == "pi5")


# -- numerics -------------------------------------------------------------------------------------


def write_net(folder: Path) -> dict[str, Path]:
    """A small depthwise-separable net as fp32 and int8 ONNX files (u8 x s8, QDQ)."""
    from onnx import TensorProto, helper, numpy_helper, save_model
    from onnxruntime import quantization

    rng = np.random.default_rng(0)

    def weights(name, *shape):
        scale = np.sqrt(2 / np.prod(shape[1:]))
        return numpy_helper.from_array(rng.normal(0, scale, shape).astype(np.float32), name)

    w = [
        weights("stem", WIDTH, 3, 3, 3),
        weights("deep", WIDTH, 1, 3, 3),
        weights("wide", 4 * WIDTH, WIDTH, 1, 1),
        weights("head", DIM, 4 * WIDTH),
    ]
    same = {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}
    nodes = [
        helper.make_node("Conv", ["pixels", "stem"], ["a"], strides=[2, 2], **same),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "deep"], ["c"], group=WIDTH, **same),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Conv", ["d", "wide"], ["e"], kernel_shape=[1, 1]),
        helper.make_node("Relu", ["e"], ["f"]),
        helper.make_node("GlobalAveragePool", ["f"], ["g"]),
        helper.make_node("Flatten", ["g"], ["h"]),
        helper.make_node("Gemm", ["h", "head"], ["embedding"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [1, 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [1, DIM])],
        w,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    fp32, int8 = folder / "net.fp32.onnx", folder / "net.int8.onnx"
    save_model(model, fp32)

    @dataclass
    class Reader(quantization.CalibrationDataReader):
        left: list[np.ndarray]

        def get_next(self):
            return {"pixels": self.left.pop()} if self.left else None

    quantization.quantize_static(
        fp32,
        int8,
        Reader(list(pictures(32, seed=7)[:, None])),
        quant_format=quantization.QuantFormat.QDQ,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )
    return {"fp32": fp32, "int8": int8}


def pictures(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3, SIZE, SIZE)).astype(np.float32)


def by_definition(model: Path, inputs: np.ndarray) -> np.ndarray:
    """What this machine's onnxruntime gives without 8-bit kernels.

    They saturate on x86 processors that lack VNNI; between the quantisers of an unoptimised graph
    the arithmetic is in float.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"pixels": x[None]})[0] for x in inputs])


def turned(a: np.ndarray, b: np.ndarray) -> float:
    """The largest 1 - cosine between rows, in float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return float((1 - cosine).max())


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    return write_net(tmp_path_factory.mktemp("net"))


@pytest.mark.parametrize(("precision", "most"), [("fp32", 1e-6), ("int8", 1e-4)])
def test_onnxruntime_gives_on_both_boards_what_it_gives_here(built, net, precision, most, tmp_path):
    inputs = pictures(8)
    here = by_definition(net[precision], inputs)
    rows = {}
    for board in ("pi4", "pi5"):
        device = qemu.device(board)
        result = run(device, net[precision], "onnx", inputs, folder=tmp_path, plan=UNTIMED)
        assert result.facts["cpu"] == {"pi4": "Cortex-A72", "pi5": "Cortex-A76"}[board]
        rows[board] = result.outputs
        assert turned(result.outputs, here) <= most
    assert turned(rows["pi4"], rows["pi5"]) <= most


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_litert_gives_on_both_boards_what_it_gives_here(built, dtype, tmp_path):
    pytest.importorskip("ai_edge_litert")
    model = write_tflite(tmp_path / "tiny.tflite", dtype=dtype)
    inputs = tiny_pixels(8).view(dtype)
    local = _plugins.load("hetero.devices", "local").device("")
    here = run(local, model, "tflite", inputs, folder=tmp_path, plan=UNTIMED).outputs
    for board in ("pi4", "pi5"):
        there = run(
            qemu.device(board), model, "tflite", inputs, folder=tmp_path, plan=UNTIMED
        ).outputs
        if dtype == "int8":
            np.testing.assert_array_equal(there, here)
        else:
            assert turned(there, here) <= 1e-6


def test_an_emulated_run_keeps_its_raw_times_and_says_what_they_are(built, tmp_path):
    pytest.importorskip("onnx")
    model = write_onnx(tmp_path / "tiny.onnx")
    result = run(qemu.device(""), model, "onnx", tiny_pixels(3), folder=tmp_path, plan=UNTIMED)
    assert (result.facts["execution"], result.conditions.execution) == ("emulated", "emulated")
    assert len(result.embed_ns) == 3
    assert result.latency_ns.size == 0
