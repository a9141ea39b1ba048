"""What every test runs in: caches of its own, one thread a worker, nothing sent anywhere."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, settings
from sshd import Sshd, missing, serving

from hetero.devices import _arm64

# Before anything imports NumPy, PyTorch or ONNX Runtime; child processes inherit them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

# No test is timed: a machine may be busy. On CI the same examples are drawn every time.
settings.register_profile(
    "hetero",
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("hetero")

# torchvision's operators, as its _meta_registrations.py expects them to be declared.
_BOXES = "nms qnms"
_OTHERS = """
    roi_align _roi_align_backward ps_roi_align _ps_roi_align_backward roi_pool _roi_pool_backward
    ps_roi_pool _ps_roi_pool_backward qroi_align deform_conv2d _deform_conv2d_backward
"""
_OPERATORS = {
    **dict.fromkeys(_BOXES.split(), "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"),
    **dict.fromkeys(_OTHERS.split(), "(Tensor a) -> Tensor"),
}


@pytest.fixture(scope="session", autouse=True)
def own_home(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[Path]:
    """A home folder of this run's own, so that no user's cache or setting has a say."""
    home = tmp_path_factory.mktemp("home")
    userlands = _arm64.cache()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        for kind in ("CACHE", "CONFIG", "DATA", "STATE"):
            patch.setenv(f"XDG_{kind}_HOME", str(home / kind.lower()))
        # Half a minute and 240 MB each: named by what is in them, so nobody's setting has a say.
        _arm64.cache().parent.mkdir(parents=True)
        _arm64.cache().symlink_to(userlands)
        # Only a list of the machine's fonts, which takes seconds to make.
        cache: pytest.Cache | None = getattr(pytestconfig, "cache", None)
        if cache is not None:
            patch.setenv("MPLCONFIGDIR", str(cache.mkdir("matplotlib")))
        yield home


@pytest.fixture(scope="session")
def sshd(own_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """A real OpenSSH server on the loopback interface; skips where there is none."""
    if why := missing():
        pytest.skip(why)
    with serving(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture
def ssh_address(sshd: Sshd, tmp_path: Path) -> str:
    """What goes after "ssh:", with a work folder of the test's own on that device."""
    return f"{sshd.address},folder={tmp_path / 'far'}"


@pytest.fixture(scope="session")
def timm() -> ModuleType:
    """The timm library, its backbones ready to build; skips where it is not installed.

    timm needs torchvision, whose CUDA build cannot be imported beside a CPU build of PyTorch until
    its operators are declared. On a machine where the two match nothing is done.
    """
    torch = pytest.importorskip("torch", reason="needs the extra 'train'")
    for name in ("timm", "torchvision"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed; needs the extra 'timm'")
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        # The declarations last as long as the object that made them.
        torch._hetero_tests_torchvision = torch.library.Library("torchvision", "DEF")
        for name, signature in _OPERATORS.items():
            torch._hetero_tests_torchvision.define(name + signature)
    return importlib.import_module("timm")
