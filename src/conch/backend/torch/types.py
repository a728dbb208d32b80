"""Which data types and shapes of strings a config may ask of PyTorch. Pure."""

from __future__ import annotations

from conch.config.sequence_tensors import with_hidden_entries
from conch.pb.model_config_pb2 import ModelConfig, ModelInput, ModelOutput
from conch.types.dtype import BY_NUMBER, BYTES
from conch.types.error import internal, unsupported


def check_types(config: ModelConfig, *, worker: bool) -> None:
    """Raises InferError, in Triton's words where it has some."""
    if worker and (config.batch_input or config.batch_output):
        raise unsupported(
            f"unable to load model '{config.name}', batch_input and batch_output are not supported for PyTorch models "
            "in worker processes",
            "save the model as TorchScript or with torch.export, or remove them",
        )
    whole = with_hidden_entries(config)
    for entries, role, what in ((whole.input, "input", "input"), (whole.output, "output", "output")):
        for entry in entries:
            if BY_NUMBER.get(entry.data_type) is not BYTES:
                continue
            if worker:
                raise unsupported(
                    f"unsupported datatype TYPE_STRING for {role} '{entry.name}' for model '{config.name}'",
                    "only TorchScript knows lists of strings; for a Python module use the python backend",
                )
            _check_strings(config, entry, what)


def _check_strings(config: ModelConfig, entry: ModelInput | ModelOutput, role: str) -> None:
    dims = entry.reshape.shape if entry.HasField("reshape") else entry.dims
    if len(dims) + (config.max_batch_size > 0) > 1:
        raise internal(
            f"Triton only supports 1 dimensional List of String as {role} for '{entry.name}' for model '{config.name}'",
            "write dims: [ 1 ] reshape: { shape: [] } for one string per row, or set max_batch_size: 0 and dims: [ -1 ]"
            if config.max_batch_size > 0
            else "write dims: [ -1 ]",
        )
