"""Core ML programs as data: operations, types, constants; nothing is run here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hetero.errors import BundleError, ExportError
from hetero.export._mil_store import NUMPY, WEIGHTS_KEY, Weights, line, message, model_file

#: MIL's number for an element type -> our name for it.
_DTYPES: Mapping[int, str] = MappingProxyType(
    {
        1: "bool",
        2: "string",
        10: "fp16",
        11: "fp32",
        12: "fp64",
        21: "int8",
        22: "int16",
        23: "int32",
        24: "int64",
        31: "uint8",
        32: "uint16",
        33: "uint32",
        34: "uint64",
    }
)

#: Core ML's number for what an array that an app gives or gets holds.
_ARRAYS: Mapping[int, str] = MappingProxyType(
    {65552: "fp16", 65568: "fp32", 65600: "fp64", 131080: "int8", 131104: "int32"}
)

#: Core ML's number for what an image holds.
_COLOURS: Mapping[int, str] = MappingProxyType({10: "GREY", 20: "RGB", 30: "BGR", 40: "GREY fp16"})

#: In letters; converters name values after modules, and nest them deeply.
_LONGEST_NAME = 500

#: A single tensor larger than this would not fit a phone; a file that declares it is hostile.
MAX_ELEMENTS = 1 << 28


@dataclass(frozen=True)
class Value:
    """Name and type of what an operation gives.

    Attributes:
        name: Unique in a program.
        dtype: "fp16", "fp32", "int32", "bool", "string" ...
        shape: None stands for a number that is only known when the program runs.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True, eq=False)
class Constant:
    """A value that is stored in the file.

    Attributes:
        type: Its name is that of what holds it.
        data: An array of exactly the type's shape, or a text.
    """

    type: Value
    data: NDArray[Any] | str


@dataclass(frozen=True, eq=False)
class Operation:
    """One operation of a program.

    Attributes:
        type: "conv", "relu", "const" ...
        inputs: Input name -> the values bound to it: names of earlier values, or constants.
        outputs: What it gives.
    """

    type: str
    inputs: Mapping[str, tuple[str | Constant, ...]]
    outputs: tuple[Value, ...]


@dataclass(frozen=True, eq=False)
class Port:
    """An input or output that the package offers to an app.

    Attributes:
        name: Its name.
        kind: "image RGB", "image BGR", "image GREY" or "array fp32" and so on.
        shape: Of an array; of an image (height, width).
    """

    name: str
    kind: str
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Package:
    """A Core ML package with one ML program.

    Attributes:
        path: The ``.mlpackage`` folder.
        version: Core ML's specification version; 8 is iOS 17.
        opset: "CoreML7" and so on.
        description: The text that Xcode shows.
        metadata: The user-defined texts.
        inputs: What an app gives.
        outputs: What an app gets.
        arguments: The program's own inputs, in the program's types.
        operations: In the order of the program.
        results: Names of the values that the program gives back.
        weight_bytes: Size of the weight file.
    """

    path: Path
    version: int
    opset: str
    description: str
    metadata: Mapping[str, str]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    arguments: tuple[Value, ...]
    operations: tuple[Operation, ...]
    results: tuple[str, ...]
    weight_bytes: int


def read(path: Path) -> Package:
    """A package, all of its structure and constants checked.

    Raises:
        BundleError: A file is missing, torn, altered or leads outside.
        ExportError: It has more than one function, control flow, or a type that is not known here.
        MissingExtraError: coremltools is not installed.
    """
    spec = message(path)
    file = model_file(path)
    metadata = dict(spec.description.metadata.userDefined)
    weights = Weights(path, file.parent, metadata.get(WEIGHTS_KEY, ""))
    functions = list(spec.mlProgram.functions.values())
    if len(functions) != 1:
        raise ExportError(
            f"{path}: {len(functions)} functions, one was expected; split the package"
        )
    function = functions[0]
    block = function.block_specializations.get(function.opset)
    if block is None:
        raise BundleError(f"{file}: no operations for {function.opset!r}; export it again")
    arguments = tuple(_value(x.name, x.type, file) for x in function.inputs)
    inputs = tuple(_port(x, file) for x in spec.description.input)
    outputs = tuple(_port(x, file) for x in spec.description.output)
    for said, has in ((inputs, [x.name for x in arguments]), (outputs, block.outputs)):
        if sorted(x.name for x in said) != sorted(has):
            raise BundleError(
                f"{file}: the description names {[x.name for x in said]} where the program has "
                f"{list(has)}; export it again"
            )
    return Package(
        path=path,
        version=spec.specificationVersion,
        opset=function.opset,
        description=spec.description.metadata.shortDescription,
        metadata=metadata,
        inputs=inputs,
        outputs=outputs,
        arguments=arguments,
        operations=tuple(_operation(x, weights, file) for x in block.operations),
        results=tuple(block.outputs),
        weight_bytes=weights.size_bytes,
    )


def _operation(raw: Any, weights: Weights, file: Path) -> Operation:
    """An operation with its constants read.

    Raises:
        ExportError: It has inner blocks, or attributes that nobody here knows.
    """
    outputs = tuple(_value(x.name, x.type, file) for x in raw.outputs)
    _named(raw.type, file)
    label = f"Core ML op {raw.type!r} (output {outputs[0].name if outputs else ''!r})"
    if raw.blocks:
        raise ExportError(f"{file}: {label} has inner blocks; control flow is not known here")
    inputs: dict[str, tuple[str | Constant, ...]] = {}
    for name, argument in raw.inputs.items():
        _named(name, file)
        bound: list[str | Constant] = []
        for binding in argument.arguments:
            if binding.WhichOneof("binding") == "name":
                bound.append(_named(binding.name, file))
            else:
                bound.append(_constant(name, binding.value, weights, file))
        inputs[name] = tuple(bound)
    stored = raw.type == "const" or raw.type.startswith("constexpr_")
    for name, value in raw.attributes.items():
        _named(name, file)
        if name == "name":
            continue  # a label for people
        if not stored or name in inputs:
            raise ExportError(f"{file}: {label} has an attribute {name!r}, which is not known here")
        inputs[name] = (_constant(name, value, weights, file),)
    return Operation(raw.type, inputs, outputs)


def _named(name: str, file: Path) -> str:
    """The name, if it is short enough to stand in a message.

    Raises:
        BundleError: It is not.
    """
    if len(name) > _LONGEST_NAME:
        raise BundleError(f"{file}: a name of {len(name)} letters: {name[:40]!r}…; export it again")
    return name


def _constant(name: str, raw: Any, weights: Weights, file: Path) -> Constant:
    """A stored value, from the weight file or from the message itself.

    Raises:
        BundleError: It is not all there.
        ExportError: It is a list, a dictionary, or several texts.
    """
    type = _value(name, raw.type, file)
    shape = tuple(n for n in type.shape if n is not None)
    if len(shape) != len(type.shape):
        raise BundleError(f"{file}: {name!r} is stored without a fixed shape; export it again")
    if raw.WhichOneof("value") == "blobFileValue" and type.dtype in NUMPY:
        blob = raw.blobFileValue
        return Constant(type, weights.array(blob.fileName, blob.offset, type.dtype, shape))
    tensor = raw.immediateValue.tensor
    kind = tensor.WhichOneof("value")
    values: Any = getattr(tensor, kind).values if kind else ()
    if type.dtype == "string":
        if kind != "strings" or len(values) != 1 or shape:
            raise ExportError(f"{file}: {name!r}: one text was expected, got {len(values)} values")
        return Constant(type, str(values[0]))
    try:
        if kind == "bytes":
            array = np.frombuffer(values, NUMPY[type.dtype])
        else:
            array = np.array(list(values)).astype(NUMPY[type.dtype])
        return Constant(type, array.reshape(shape))
    except (ValueError, TypeError, OverflowError) as error:
        raise BundleError(
            f"{file}: {name!r}: an array of {type.dtype} {shape} was expected ({line(error)}); "
            "export it again"
        ) from error


def _value(name: str, raw: Any, file: Path) -> Value:
    """A type from the message.

    Raises:
        ExportError: Not a tensor, or of an element type that is not known here.
    """
    kind = raw.WhichOneof("type")
    _named(name, file)
    if kind != "tensorType":
        raise ExportError(f"{file}: {name!r} is a {kind}; only tensors are known here")
    number = raw.tensorType.dataType
    if number not in _DTYPES:
        raise ExportError(f"{file}: {name!r} has element type {number}, which is not known here")
    shape = tuple(
        int(d.constant.size) if d.WhichOneof("dimension") == "constant" else None
        for d in raw.tensorType.dimensions
    )
    value = Value(name, _DTYPES[number], shape)
    if math.prod(d for d in shape if d is not None) > MAX_ELEMENTS:
        raise BundleError(f"{file}: {name!r} of shape {shape} is larger than any phone's memory")
    return value


def _port(raw: Any, file: Path) -> Port:
    kind = raw.type.WhichOneof("Type")
    _named(raw.name, file)
    if kind == "imageType":
        image = raw.type.imageType
        colour = _COLOURS.get(image.colorSpace, f"type {image.colorSpace}")
        return Port(raw.name, f"image {colour}", (int(image.height), int(image.width)))
    if kind == "multiArrayType":
        array = raw.type.multiArrayType
        dtype = _ARRAYS.get(array.dataType, f"type {array.dataType}")
        return Port(raw.name, f"array {dtype}", tuple(int(x) for x in array.shape))
    raise ExportError(f"{file}: {raw.name!r} is a {kind}; images and arrays are known here")
