"""What happens to a batch of calls around the function: its times, its statistics, and that all are answered."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence

from conch.backend.batch import drop_cancelled
from conch.backend.program.call import Call, Settled
from conch.observe.stats import Execution, ModelStats
from conch.types.error import Code, InferError, foreign, internal
from conch.types.model import ModelSpec
from conch.types.request import InferRequest

_log = logging.getLogger("conch.backend")
_now = time.monotonic_ns


class Calls:
    """One execution. `calls` are those that somebody waits for; `ended` when the function has returned."""

    def __init__(
        self, spec: ModelSpec, batch: Sequence[InferRequest], stats: ModelStats, post: Callable[..., object]
    ) -> None:
        self._spec = spec
        self._stats = stats
        self._execution = Execution(_now())
        self._decoupled = spec.decoupled
        self.calls = [Call(request, spec, stats, self._execution, post) for request in drop_cancelled(batch, stats)]

    def ended(self, error: BaseException | None = None) -> None:
        """Answers who has none yet: with `error`, else that the function gave none."""
        run_end = _now()
        left = [call for call in self.calls if not call.settled]
        if left:
            reason = self._reason(error)
            for call in left:
                # A thread that the function has started may answer meanwhile.
                with contextlib.suppress(Settled):
                    if error is None and self._decoupled:
                        call.end()
                    elif call.cancelled:
                        call.fail(InferError(Code.CANCELLED, ""))
                    else:
                        call.fail(reason)
        if not self.calls:
            return
        start, now = self._execution.start_ns, _now()
        requests = [call.request for call in self.calls]
        if self._decoupled:
            self._stats.ran(requests, self._execution, start, run_end, now)
            return
        answered = [call.request for call in self.calls if call.succeeded]
        failed = [call.request for call in self.calls if not call.succeeded]
        self._stats.executed(answered, start, start, run_end, now, failed)

    def _reason(self, error: BaseException | None) -> InferError:
        if error is None:
            return internal(f"model '{self._spec.name}' gave no answer")
        if not isinstance(error, InferError):
            _log.error("model '%s' failed", self._spec.name, exc_info=error)
        return foreign(error)
