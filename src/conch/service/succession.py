"""Requests of sequences that began before a model was reloaded go on where they began, until their END."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from conch.schedule.api import Sequential, Version
from conch.types.error import InferError
from conch.types.request import InferRequest, RequestForm, RequestHead
from conch.types.tensor import Buffer

_START = 1

#: The versions before one that may still have sequences, the last one first.
Elders = Callable[[Version], Sequence[Version]]
#: Makes the form of a head for a version.
Prepare = Callable[[Version, RequestHead], RequestForm]


def nobody(version: Version) -> Sequence[Version]:  # noqa: ARG001
    """Where no model is ever loaded anew."""
    return ()


def succession(version: Version, elders: Elders, prepare: Prepare, head: RequestHead) -> RequestForm:
    """A form for `version`, whose requests go to an elder where that has their sequence under way.

    A head that does not fit `version` any more may still fit those. Raises InferError where it fits nobody.
    """
    try:
        form = prepare(version, head)
    except InferError as error:
        for elder in elders(version):
            try:
                form = prepare(elder, head)
            except InferError:
                continue
            form.submit = _Sorter(None, elders, prepare, version, error)
            return form
        raise
    form.submit = _Sorter(form, elders, prepare, version)
    return form


class _Sorter:
    """Sends each request to the version that has its sequence, else to the one that serves now."""

    def __init__(
        self,
        form: RequestForm | None,
        elders: Elders,
        prepare: Prepare,
        version: Version,
        error: InferError | None = None,
    ) -> None:
        """`error` is why the head does not fit `version`, where `form` is None."""
        self._submit = None if form is None else form.submit
        self._elders = elders
        self._prepare = prepare
        self._version = version
        self._error = error

    def __call__(self, request: InferRequest, /) -> None:
        elder = self._elder(request)
        if elder is not None:
            # Codecs make forms of other sequences from one form: each has a head of its own, and shares this object.
            form = self._prepare(elder, request.form.head)
            request.data = reordered(request.data, request.form.order, form.order)
            request.form = form
            form.submit(request)
        elif self._submit is not None:
            self._submit(request)
        else:
            assert self._error is not None
            raise InferError(self._error.code, self._error.message, self._error.hint)

    def _elder(self, request: InferRequest) -> Version | None:
        if request.form.flags & _START or _continues(self._version, request):
            return None
        return next((each for each in self._elders(self._version) if _continues(each, request)), None)


def _continues(version: Version, request: InferRequest) -> bool:
    scheduler = version.scheduler
    return isinstance(scheduler, Sequential) and scheduler.continues(request)


def reordered(data: tuple[Buffer, ...], old: Sequence[int], new: Sequence[int]) -> tuple[Buffer, ...]:
    """`data` in the order of another form: `old` and `new` say of each input its place in the client's list."""
    if old == new:
        return data
    by_place = dict(zip(old, data, strict=True))
    return tuple([by_place[place] for place in new])
