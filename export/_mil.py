"""A reference interpreter for Core ML programs: runs an exported package where Core ML cannot.

Operation by operation, in the order of the program, each result rounded to the type that the
program declares for it: float16 storage with float32 arithmetic inside an operation. It proves
graph, weights, compression and rounding. It does not show what an Apple chip does inside an
operation, and says nothing about speed there.

What it does not know it refuses by name; it never skips an input or an attribute.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hetero.errors import BundleError, ExportError, require
from hetero.export._mil_file import Constant, Operation, Package, Value, read

if TYPE_CHECKING:
    from torch import Tensor

#: Versions of the language whose operations mean what `_mil_ops` computes: iOS 15 to 18.
OPSETS = ("CoreML5", "CoreML6", "CoreML7", "CoreML8")

#: Inputs that are lists of values even where one is given.
_LISTS = frozenset({"values"})


@dataclass(frozen=True, eq=False)
class Step:
    """One operation, ready to run.

    Attributes:
        operation: As the file has it.
        function: What it does.
        bound: Input name -> names of values or values, a list for inputs that are lists.
        drops: Names of the values that nothing needs after this step.
    """

    operation: Operation
    function: Callable[..., Any]
    bound: Mapping[str, Any]
    drops: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Program:
    """A package's program with its constants unpacked, ready to run.

    Attributes:
        package: What it was read from.
        constants: Name -> value; weights that are compressed in the file are unpacked here.
        steps: The operations that are not constants.
    """

    package: Package
    constants: Mapping[str, Tensor | str]
    steps: tuple[Step, ...]


def load(path: Path) -> Program:
    """The program in a package, every operation and input of it known.

    Raises:
        BundleError: The package is missing, torn or altered.
        ExportError: An operation, input or attribute is not known to this interpreter.
        MissingExtraError: coremltools or PyTorch is not installed.
    """
    return prepare(read(path))


def prepare(package: Package) -> Program:
    """The program of a package that has been read, ready to run. Raises what `load` does."""
    torch = require("torch", "coreml")
    from hetero.export._mil_ops import OPS

    if package.opset not in OPSETS:
        raise ExportError(
            f"{package.path}: Core ML opset {package.opset!r} is not known to the reference "
            f"interpreter; it knows {', '.join(OPSETS)}"
        )
    constants: dict[str, Tensor | str] = {}
    known = {value.name for value in package.arguments}
    waiting: list[tuple[Operation, Callable[..., Any], dict[str, Any]]] = []
    for operation in package.operations:
        function = OPS.get(operation.type)
        if function is None:
            raise ExportError(f"{package.path}: Core ML op {operation.type!r} {_UNKNOWN}")
        bound = _bound(package, operation, function, known | set(constants))
        if operation.type == "const" or operation.type.startswith("constexpr_"):
            with torch.inference_mode():
                constants.update(_call(package, operation, function, _values(bound, constants)))
        else:
            waiting.append((operation, function, bound))
            known |= {value.name for value in operation.outputs}
    for name in package.results:
        if name not in known | set(constants):
            raise BundleError(f"{package.path}: no op gives the output {name!r}; export it again")
    return Program(package, constants, _steps(waiting, package, frozenset(constants)))


def run(program: Program, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The outputs of a program by name.

    Args:
        program: From `load`.
        inputs: By name; floats or whole numbers in the shape that the program declares. An image
            is float32 (1, 3, h, w), 0..255.

    Raises:
        ExportError: An operation cannot be executed, or gives what the program does not declare.
    """
    import torch

    package = program.package
    values: dict[str, Any] = dict(program.constants)
    with torch.inference_mode():
        for declared in package.arguments:
            given = torch.from_numpy(np.ascontiguousarray(inputs[declared.name]))
            values[declared.name] = _stored(given, declared, f"{package.path}: input")
        for step in program.steps:
            arguments = _values(step.bound, values)
            values.update(_call(package, step.operation, step.function, arguments))
            for name in step.drops:
                del values[name]
    return {name: values[name].numpy() for name in package.results}


_UNKNOWN = "is not known to the reference interpreter; export another format, or report the op"


def _bound(
    package: Package, operation: Operation, function: Callable[..., Any], known: set[str]
) -> dict[str, Any]:
    """The operation's inputs under their names: names of values, or values that are stored here.

    Raises:
        ExportError: An input that the function does not take, or one that it needs is missing.
        BundleError: A value is used that nothing gives.
    """
    takes = inspect.signature(function).parameters
    label = f"{package.path}: Core ML op {operation.type!r}"
    for name in operation.inputs:
        if name not in takes:
            raise ExportError(f"{label} (input {name!r}) {_UNKNOWN}")
    for name, parameter in takes.items():
        if parameter.default is parameter.empty and not operation.inputs.get(name):
            raise ExportError(f"{label} lacks its input {name!r}; this form {_UNKNOWN}")
    bound: dict[str, Any] = {}
    for name, given in operation.inputs.items():
        for item in given:
            if isinstance(item, str) and item not in known:
                raise BundleError(f"{label} uses {item!r} before it is there; export it again")
        items = [x if isinstance(x, str) else _Literal(_unpacked(x)) for x in given]
        if name not in _LISTS and len(items) != 1:
            raise ExportError(f"{label} (input {name!r}) is given {len(items)} values, not one")
        bound[name] = items if name in _LISTS else items[0]
    return bound


@dataclass(frozen=True, eq=False)
class _Literal:
    """A value, where otherwise the name of one stands."""

    value: Any


def _values(bound: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    def one(item: str | _Literal) -> Any:
        return item.value if isinstance(item, _Literal) else values[item]

    return {k: [one(x) for x in v] if isinstance(v, list) else one(v) for k, v in bound.items()}


def _call(
    package: Package, operation: Operation, function: Callable[..., Any], inputs: Mapping[str, Any]
) -> dict[str, Any]:
    """What an operation gives, by name, in the declared types.

    Raises:
        ExportError: It cannot be executed, or gives what the program does not declare.
    """
    first = operation.outputs[0].name if operation.outputs else ""
    label = f"{package.path}: Core ML op {operation.type!r} (output {first!r})"
    try:
        result = function(**inputs)
    except (
        RuntimeError,
        ValueError,
        IndexError,
        KeyError,
        TypeError,
        AttributeError,
        ArithmeticError,
        MemoryError,
    ) as error:
        line = " ".join(str(error).split())[:200]
        raise ExportError(f"{label} cannot be executed: {line}") from error
    results = result if isinstance(result, tuple) else (result,)
    if len(results) != len(operation.outputs):
        raise ExportError(f"{label} gives {len(results)} values, {len(operation.outputs)} declared")
    return {
        declared.name: _stored(value, declared, label)
        for declared, value in zip(operation.outputs, results, strict=True)
    }


def _stored(value: Any, declared: Value, label: str) -> Any:
    """The value as the program stores it.

    Floats are kept as float32, rounded to float16 where that is what the program declares.

    Raises:
        ExportError: Shape or kind is not the declared one.
    """
    import torch

    if isinstance(value, str):
        if declared.dtype == "string":
            return value
        raise ExportError(f"{label} gives a text where {declared.dtype} is declared")
    shape = tuple(value.shape)
    fits = len(shape) == len(declared.shape) and all(
        b is None or a == b for a, b in zip(shape, declared.shape, strict=True)
    )
    if not fits:
        raise ExportError(f"{label} gives shape {shape} where {declared.shape} is declared")
    floats, flags = value.is_floating_point(), value.dtype == torch.bool
    kind = "fp" if floats else "bool" if flags else "int"
    if kind not in declared.dtype:
        raise ExportError(f"{label} gives {value.dtype} where {declared.dtype} is declared")
    if declared.dtype == "fp16":
        return value.half().float()
    return value.float() if declared.dtype == "fp32" else value


def _unpacked(constant: Constant) -> Any:
    """A stored value as PyTorch's, floats widened to float32, which is exact."""
    import torch

    if isinstance(constant.data, str):
        return constant.data
    kind = constant.data.dtype
    wide = {"f": np.float32, "i": np.int32, "u": np.int32, "b": np.bool_}[kind.kind]
    if kind.itemsize == 8:
        wide = np.float64 if kind.kind == "f" else np.int64
    elif kind.itemsize == 4 and kind.kind == "u":
        wide = np.int64
    elif kind.itemsize == 1 and kind.kind != "b":
        wide = np.int8 if kind.kind == "i" else np.uint8
    return torch.from_numpy(constant.data.astype(wide))


def _steps(
    waiting: list[tuple[Operation, Callable[..., Any], dict[str, Any]]],
    package: Package,
    constants: frozenset[str],
) -> tuple[Step, ...]:
    """The steps, each with the names that no later one uses, so that memory stays small."""
    needed = set(package.results) | set(constants)
    steps: list[Step] = []
    for operation, function, bound in reversed(waiting):
        flat = [x for v in bound.values() for x in (v if isinstance(v, list) else [v])]
        touched = {x for x in flat if isinstance(x, str)} | {v.name for v in operation.outputs}
        steps.append(Step(operation, function, bound, tuple(sorted(touched - needed))))
        needed |= touched
    return tuple(reversed(steps))
