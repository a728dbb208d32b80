"""What becomes of a request that its model has released with RESCHEDULE."""

from __future__ import annotations

from conch.types.error import InferError, internal
from conch.types.request import InferRequest


def reschedule(request: InferRequest) -> InferError | None:
    """Back to its scheduler, if that does such a thing; else the error that it ends with. On the loop's thread."""
    again = request.form.reschedule
    if again is None:
        return internal(
            "Request is released with TRITONSERVER_REQUEST_RELEASE_RESCHEDULE, while the model is not configured to "
            "handle such a flag.",
            "let the model's config say sequence_batching { iterative_sequence: true }",
        )
    try:
        again(request)
    except InferError as error:
        return error
    return None
