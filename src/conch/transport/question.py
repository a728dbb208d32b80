"""What a request's head asks, worked out once per distinct head."""

from __future__ import annotations

import re
from typing import Final

from conch.config.server import HttpOptions
from conch.protocol.v2.head import Target, json_too_large, parse_json_size
from conch.protocol.v2.headers import Extras, content_coding, forwarded, read_extras
from conch.protocol.v2.routes import Action, Route, find
from conch.transport.heads import BadRequestError, Head
from conch.types.error import InferError, invalid

#: Bodies with binary tensors may be longer than JSON may; beyond this they are refused before they are read.
MAX_BODY: Final = 1 << 33

#: Requests that a model answers.
_INFERENCE: Final = frozenset({Action.INFER, Action.GENERATE, Action.GENERATE_STREAM})


class Question:
    """One for each head."""

    __slots__ = ("coding", "error", "extras", "headers", "route", "target")

    def __init__(self, head: Head) -> None:
        self.route: Route = find(head.method, head.path)
        self.headers = head.headers
        #: For infer.
        self.target = Target(self.route.name, self.route.version)
        #: What every request with this head is told, whatever its body.
        self.error: InferError | None = None
        #: The coding of the body; empty for none.
        self.coding = ""
        #: What the client wants besides an answer; None for most.
        self.extras: Extras | None = None


class HeadReader:
    """Makes questions of heads, as the operator's options say."""

    __slots__ = ("_max", "_pattern")

    def __init__(self, options: HttpOptions) -> None:
        self._max = options.max_input_size
        pattern = options.header_forward_pattern
        self._pattern = re.compile(pattern, re.IGNORECASE) if pattern else None

    def read(self, head: Head, question: Question) -> None:
        """Fill in what the headers say. Raises BadRequestError for bodies that nobody needs to receive."""
        for read in (self._read_coding, self._read_inference, self._read_size):
            try:
                read(head, question)
            except InferError as error:
                question.error = question.error or error
        json_size = question.target.json_size
        longest = self._max if json_size < 0 or question.coding else MAX_BODY
        size = head.length if json_size < 0 else json_size
        if size > self._max:
            raise BadRequestError(400, json_too_large(size, self._max).message)
        if head.length > longest:
            raise BadRequestError(413, f"request body of {head.length} bytes exceeds the limit of {longest} bytes")
        head.limit = longest

    def _read_coding(self, head: Head, question: Question) -> None:
        coding = head.headers.get("content-encoding")
        if coding is not None:
            question.coding = content_coding(coding)

    def _read_inference(self, head: Head, question: Question) -> None:
        if question.route.action in _INFERENCE:
            question.extras = read_extras(head.headers)

    def _read_size(self, head: Head, question: Question) -> None:
        """What only infer knows: where the JSON ends, and headers that are parameters."""
        if question.route.action is not Action.INFER:
            return
        size = head.headers.get("inference-header-content-length")
        if size is not None:
            question.target.json_size = parse_json_size(size)
            if question.target.json_size < 0:
                raise invalid(f"inference header size should be in range (0, {max(head.length, 0)}), got: {size}")
        if self._pattern is not None:
            question.target.forward(forwarded(self._pattern, head.lines))
