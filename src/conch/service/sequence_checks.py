"""What a request to a sequence model must satisfy besides, in Triton's words. Pure."""

from __future__ import annotations

from conch.types.dtype import BYTES
from conch.types.error import invalid
from conch.types.model import SequenceSpec
from conch.types.request import RequestHead, id_prefix


def check_sequence(model: str, sequence: SequenceSpec, head: RequestHead, correlation_id: int | str, rows: int) -> None:
    """Raises InferError (INVALID_ARG) for a request that cannot be part of a sequence."""
    control = sequence.control
    if control is not None and correlation_id:
        text = isinstance(correlation_id, str)
        if text != (control.datatype is BYTES):
            raise invalid(
                id_prefix(head.id) + f"sequence batching control '{control.name}' data-type is "
                f"'{'BYTES' if text else 'UINT64'}', but model '{model}' expects '{control.datatype.name}'",
                f"send sequence_id as a {'number' if text else 'string'}",
            )
    if rows != 1:
        raise invalid(
            f"inference request to model '{model}' must specify batch-size 1 due to requirements of sequence batcher",
            f"the request has {rows} rows; send a request for each sequence",
        )
    if not correlation_id and not sequence.iterative:
        raise invalid(
            f"inference request to model '{model}' must specify a non-zero or non-empty correlation ID",
            "set sequence_id, and sequence_start in the first request of a sequence",
        )
