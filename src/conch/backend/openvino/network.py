"""Reads, shapes and compiles models, and turns OpenVINO's exceptions into our errors. The only importer of openvino."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any, Final

from conch.backend.agree import dims_of
from conch.backend.openvino.check import check_dims, check_names
from conch.backend.openvino.plan import Plan, Property, check_device, cpu_properties, device_properties
from conch.backend.openvino.signature import ELEMENTS, Signature, find_slot, read_signature
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.dtype import BY_NUMBER
from conch.types.error import Code, InferError, internal, invalid

_LOG: Final = logging.getLogger(__name__)
#: The formats that OpenVINO reads, by the names that Triton's documentation gives to files.
_FILES: Final = ("model.xml", "model.onnx", "model.pdmodel", "model.tflite", "model.saved_model", "model.savedmodel")
#: What says where in OpenVINO's sources something was thrown.
_PLACES: Final = re.compile(
    r"Exception from \S+:\d+:|Check '.*?' failed at \S+:\d+:|While validating node .*?friendly_name '.*?':", re.DOTALL
)


def runtime() -> Any:
    """The openvino package. Raises InferError where it is not installed."""
    try:
        import openvino  # noqa: PLC0415  heavy; a server without such models does not pay for it
    except ImportError as error:
        raise invalid(
            "unable to find backend library for backend 'openvino', try specifying runtime on the model configuration.",
            f"pip install 'conch[openvino]' ({error})",
        ) from None
    return openvino


def find_model(directory: Path, filename: str, model: str) -> Path:
    """The model in a version directory: `filename`, else model.xml, else a file of another format that is there.

    Raises InferError where there is none.
    """
    for name in [filename] if filename else _FILES:
        if (directory / name).exists():
            return directory / name
    raise InferError(
        Code.UNAVAILABLE,
        f"unable to find '{directory / (filename or _FILES[0])}' for model '{model}'",
        "put model.xml and model.bin there, or name another file in default_model_filename",
    )


def make_core(plan: Plan) -> Any:
    """An OpenVINO core with the plan's extension. Raises InferError."""
    core = runtime().Core()
    # A mapped file that somebody overwrites or cuts while it is served would end the process.
    core.set_property({"ENABLE_MMAP": False})
    if plan.extension:
        try:
            core.add_extension(plan.extension)
        except RuntimeError as error:
            raise runtime_error("loading custom CPU extensions", error) from None
    return core


def read_network(core: Any, path: Path) -> Any:
    """The model as its file says it. Raises InferError for files that OpenVINO cannot read."""
    try:
        return core.read_model(str(path))
    except RuntimeError as error:
        raise runtime_error("reading model", error) from None


def shape_network(config: ModelConfig, plan: Plan, network: Any) -> Signature:
    """Give `network` the batch dimension, shapes and types that the config asks for. Its signature; raises InferError.

    With a batch, a first dimension that the file fixes becomes any size (or, if the plan says so, max_batch_size).
    """
    signature = read_signature(config.name, network)
    check_names(config, signature)
    shapes = {}
    for entry in config.input:
        slot = find_slot(signature.inputs, entry.name)
        assert slot is not None
        shapes[slot.index] = _wanted(config, plan, slot.shape, dims_of(entry))
    if shapes != {slot.index: slot.shape for slot in signature.inputs}:
        try:
            network.reshape({index: list(shape) for index, shape in shapes.items() if shape is not None})
        except RuntimeError as error:
            raise _refused(config, error) from None
        signature = read_signature(config.name, network)
    check_dims(config, signature, plan.reshape)
    return signature


def convert_types(config: ModelConfig, signature: Signature, network: Any) -> Any:
    """The model with the config's types at its edge, where they differ from its own. Raises InferError."""
    ov = runtime()
    steps = ov.preprocess.PrePostProcessor(network)
    differs = False
    for entries, slots, edge in (
        (config.input, signature.inputs, steps.input),
        (config.output, signature.outputs, steps.output),
    ):
        for entry in entries:
            slot = find_slot(slots, entry.name)
            datatype = BY_NUMBER[entry.data_type]
            if slot is not None and slot.datatype is not datatype:
                edge(slot.index).tensor().set_element_type(getattr(ov.Type, ELEMENTS[datatype]))
                differs = True
    if not differs:
        return network
    try:
        return steps.build()
    except RuntimeError as error:
        raise runtime_error("apply model input preprocessing", error) from None


def compile_network(model: str, core: Any, plan: Plan, network: Any, cpus: int, instances: int) -> Any:
    """The model ready to run on the plan's device. Raises InferError."""
    if plan.device != "CPU":
        check_device(model, plan.device, core.available_devices)
        # For devices that stand for others, the CPU among them.
        core.set_property("CPU", _known(model, core, "CPU", cpu_properties(plan, cpus, instances)))
    properties = _known(model, core, plan.device, device_properties(plan, cpus, instances))
    try:
        return core.compile_model(network, plan.device, properties)
    except RuntimeError as error:
        raise runtime_error("loading model", error) from None


def runtime_error(doing: str, error: Exception) -> InferError:
    """What OpenVINO raised, in Triton's form, without what is about its sources."""
    said = " ".join(_PLACES.sub("", str(error)).split())
    return internal(f"openvino error in {doing} : {said or type(error).__name__}")


def _wanted(config: ModelConfig, plan: Plan, shape: tuple[int, ...] | None, dims: list[int]) -> tuple[int, ...] | None:
    """What one input's shape becomes."""
    batching = config.max_batch_size > 0
    if shape is None or plan.reshape:
        shape = (-1, *dims) if batching else tuple(dims)
    if batching and shape:
        shape = (config.max_batch_size if plan.fixed_batch else -1, *shape[1:])
    return shape


def _refused(config: ModelConfig, error: RuntimeError) -> InferError:
    found = runtime_error("setting max batch size" if config.max_batch_size else "setting shape", error)
    found.hint = (
        "the model does not take the batch or the shapes of its config: export it so that it does, "
        "or set max_batch_size: 0 and the dims that it has"
    )
    return found


def _known(model: str, core: Any, device: str, properties: dict[str, Property]) -> dict[str, Property]:
    """Without what the device does not know: it would refuse to work. Each such one is logged."""
    try:
        supported = {str(each) for each in core.get_property(device, "SUPPORTED_PROPERTIES")}
    except RuntimeError as error:
        raise runtime_error("loading model", error) from None
    for key in sorted(properties.keys() - supported):
        _LOG.warning(
            "model '%s': '%s' has no effect, this version of OpenVINO does not know it for %s", model, key, device
        )
    return {key: value for key, value in properties.items() if key in supported}
