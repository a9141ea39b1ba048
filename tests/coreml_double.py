"""A double of Apple's part of coremltools, and a tiny package for it.

`put_double` makes a folder in which `coremltools` is the installed one, link by link, but for its
one compiled file, `libcoremlpython`, which exists on macOS only: in its place is `APPLE`, which
executes a package by our interpreter of MIL programs. So all but Apple's own call is the real
thing: worker, coremltools' MLModel and its checks of the inputs. What the double cannot show is
anything that Apple's runtime does: its numbers, its choice of processors, its times.
"""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import hetero

APPLE = '''
"""In the place of coremltools' libcoremlpython: our interpreter instead of Apple's runtime."""
import json, os
from pathlib import Path

FAULT = json.loads(os.environ.get("COREML_DOUBLE", "{}"))

class _MLModelAssetProxy: pass
class _MLCPUComputeDeviceProxy: pass
class _MLGPUComputeDeviceProxy: pass
class _MLNeuralEngineComputeDeviceProxy: pass

class _MLComputePlanProxy:
    """Convolutions and matrices go where the units allow; everything else stays on the CPU."""
    def __init__(self, package, units):
        from coremltools.models import compute_device as devices, compute_plan as plan
        self.plan, self.usages = plan, {}
        cpu = devices.MLCPUComputeDevice(_MLCPUComputeDeviceProxy())
        fast = {
            "CPU_AND_NE": devices.MLNeuralEngineComputeDevice(_MLNeuralEngineComputeDeviceProxy()),
            "CPU_AND_GPU": devices.MLGPUComputeDevice(_MLGPUComputeDeviceProxy()),
        }.get(units, cpu)
        operations = []
        for op in package.operations:
            made = plan.MLModelStructureProgramOperation({}, op.type, [], [], op)
            operations.append(made)
            if op.type != "const":
                where = fast if op.type in ("conv", "linear", "matmul") else cpu
                self.usages[id(op)] = plan.MLComputePlanDeviceUsage(where, [cpu, fast])
        block = plan.MLModelStructureProgramBlock([], operations, [])
        main = plan.MLModelStructureProgramFunction([], block)
        program = plan.MLModelStructureProgram({"main": main})
        self.model_structure = plan.MLModelStructure(None, program, None)
    def get_compute_device_usage_for_mlprogram_operation(self, op):
        return self.usages.get(id(op.__proxy__))

class _MLModelProxy:
    def __init__(self, path, units, function, hints, asset):
        from hetero.export import _mil, _mil_file
        if FAULT.get("at") == "load":
            raise RuntimeError("Error compiling model: a made-up failure")
        self.package = _mil_file.read(Path(path))
        self.program = _mil.prepare(self.package)
        self.path, self.calls = path, 0
    @staticmethod
    def maximum_supported_specification_version():
        return FAULT.get("newest", 10)
    def predict(self, data, state):
        import numpy as np
        from hetero.export import _mil
        if FAULT.get("at") == self.calls:
            raise RuntimeError("Error computing NN outputs: a made-up failure")
        self.calls += 1
        (port,), (out,) = self.package.inputs, self.package.outputs
        given = data[port.name]
        if port.kind == "image RGB":  # as Core ML does: Pillow's rows, columns, colours
            given = np.asarray(given).astype(np.float32).transpose(2, 0, 1)[None]
        return {out.name: _mil.run(self.program, {port.name: given})[out.name]}
    def get_compiled_model_path(self):
        return self.path
    @staticmethod
    def get_compute_plan(path, units):
        if FAULT.get("at") == "plan":
            raise RuntimeError("MLComputePlan is only supported on macOS 14.4+")
        from coremltools.models.compute_plan import MLComputePlan
        from hetero.export import _mil_file
        return MLComputePlan(_MLComputePlanProxy(_mil_file.read(Path(path)), units))
'''

#: Libraries that coremltools imports where they are installed, for converters unused here.
SLOW = ("sklearn", "torchao", "transformers", "xgboost", "tensorflow", "executorch")


def put_double(folder: Path, **fault: Any) -> dict[str, str]:
    """The environment in which a worker finds the double, with one fault."""
    spec = importlib.util.find_spec("coremltools")
    assert spec is not None
    assert spec.submodule_search_locations
    package = folder / "coremltools"
    if not package.exists():
        package.mkdir(parents=True)
        for part in Path(spec.submodule_search_locations[0]).iterdir():
            if part.name != "__pycache__":
                (package / part.name).symlink_to(part)
        (package / "libcoremlpython.py").write_text(APPLE)
        for name in SLOW:
            (folder / f"{name}.py").write_text("raise ImportError('left out for speed')\n")
    ours = Path(hetero.__file__).parent.parent
    path = os.pathsep.join([str(folder), str(ours), os.environ.get("PYTHONPATH", "")])
    return {"PYTHONPATH": path, "COREML_DOUBLE": json.dumps(fault)}


def write_coreml(path: Path, *, image: bool = True) -> Path:
    """A Core ML package with the matrix of the other tiny models: an RGB image in, or floats."""
    import coremltools as ct
    import numpy as np
    from coremltools.converters.mil import Builder as mb  # noqa: N813
    from fakes import SIZE, tiny_weights

    shape = (1, 3, SIZE, SIZE) if image else (1, SIZE, SIZE, 3)

    @mb.program(input_specs=[mb.TensorSpec(shape=shape)], opset_version=ct.target.iOS17)
    def program(pixels):
        rows = mb.transpose(x=pixels, perm=[0, 2, 3, 1]) if image else pixels
        flat = mb.reshape(x=rows, shape=[1, SIZE * SIZE * 3])
        return mb.linear(x=flat, weight=tiny_weights(), name="embedding")

    entry = (
        ct.ImageType(name="pixels", shape=shape, color_layout=ct.colorlayout.RGB)
        if image
        else ct.TensorType(name="pixels", shape=shape, dtype=np.float32)
    )
    model = ct.convert(
        program,
        inputs=[entry],
        convert_to="mlprogram",
        compute_precision=ct.precision.FLOAT32,
        minimum_deployment_target=ct.target.iOS17,
        skip_model_load=True,
    )
    model.save(str(path))
    return path
