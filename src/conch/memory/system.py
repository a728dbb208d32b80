"""One region of POSIX shared memory, reached by its key."""

from __future__ import annotations

import errno
import mmap
import os
import stat
import weakref
from typing import Final

from conch.types.error import InferError, internal, invalid
from conch.types.tensor import Buffer

#: Where the system keeps what `shm_open` names.
FOLDER: Final = "/dev/shm"  # noqa: S108  not a temporary file: the place that POSIX shared memory has on Linux
#: Up to this many bytes a copy costs less than the view of a mapping.
COPY_LIMIT: Final = 16_384
_RESERVED: Final = "triton_python_backend_shm_region_"
#: A name that leads to a device or a pipe must not block; one that is a link must not be followed.
_FLAGS: Final = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_LONGEST: Final = 255


def file_name(region: str, key: str) -> str:
    """The one file that `key` names, as `shm_open` reads it. Raises InferError for what is no key.

    Leading slashes mean nothing. What is left is a single name: no folder, no `..`, nothing that leads elsewhere.
    """
    name = key.lstrip("/")
    if key and not name:
        raise invalid(f"cannot register shared memory region '{region}' - invalid shm key '{key}'")
    if name.startswith(_RESERVED):
        raise invalid(
            f"cannot register shared memory region '{region}' with key '{key}' as the key contains the reserved "
            f"prefix '{_RESERVED}'"
        )
    if not name or "/" in name or "\0" in name or name in {".", ".."} or len(os.fsencode(name)) > _LONGEST:
        raise _cannot_open(key, "a key is one name, such as '/my_region'")
    return name


def _cannot_open(key: str, hint: str) -> InferError:
    return internal(f"Unable to open shared memory region: '{key}'", hint)


class SystemRegion:
    """`byte_size` bytes from `offset` on of the segment `key`, which stays open while anything refers to this object.

    A client may shorten the segment at any time, and a look at memory that is gone ends the process (SIGBUS). So the
    segment's size is asked for before every use, and what is copied is read and written as a file, which fails
    with an error instead. Only a segment that is shortened while a model reads a large tensor of it is fatal, as it is
    in Triton.
    """

    __slots__ = ("__weakref__", "_file", "_mapping", "byte_size", "key", "name", "offset")

    def __init__(self, name: str, key: str, offset: int, byte_size: int, folder: str = FOLDER) -> None:
        """Raises InferError with Triton's texts."""
        self.name = name
        self.key = key
        self.offset = offset
        self.byte_size = byte_size
        #: Of the whole segment, made when it is first needed; views of it keep it alive.
        self._mapping: memoryview | None = None
        path = f"{folder}/{file_name(name, key)}"
        try:
            self._file = os.open(path, _FLAGS)
        except OSError as error:
            raise _cannot_open(key, error.strerror or "") from None
        weakref.finalize(self, os.close, self._file)
        state = os.fstat(self._file)
        if not stat.S_ISREG(state.st_mode):
            raise _cannot_open(key, "it is no shared memory")
        if offset + byte_size > state.st_size:
            raise invalid(
                f"failed to register shared memory region '{name}': invalid args",
                f"the segment has {state.st_size} bytes, {offset + byte_size} are asked for",
            )
        if not byte_size:
            raise invalid(
                f"failed to register shared memory region '{name}': unable to process address space"
                + os.strerror(errno.EINVAL),
                "a region has at least one byte",
            )

    def read(self, offset: int, size: int, *, copy: bool) -> Buffer:
        """Bytes of the region: with `copy`, or few of them, as they are now; else a view of the memory itself."""
        start = self.offset + offset
        if copy or size <= COPY_LIMIT:
            return self._read(start, size)
        if os.fstat(self._file).st_size < self.offset + self.byte_size:
            raise self._shortened()
        mapping = self._mapping
        if mapping is None:
            mapping = self._mapping = self._map()
        return mapping[start : start + size]

    def write(self, offset: int, data: Buffer) -> None:
        """`data` into the region, in one copy."""
        start, left = self.offset + offset, memoryview(data)
        while left:
            try:
                written = os.pwrite(self._file, left, start)
            except OSError as error:
                raise internal(f"failed to write to shared memory region '{self.name}'", error.strerror or "") from None
            left, start = left[written:], start + written

    def _read(self, start: int, size: int) -> bytes:
        data = os.pread(self._file, size, start)
        while len(data) < size:
            more = os.pread(self._file, size - len(data), start + len(data))
            if not more:
                raise self._shortened()
            data += more
        return data

    def _map(self) -> memoryview:
        try:
            return memoryview(mmap.mmap(self._file, self.offset + self.byte_size, access=mmap.ACCESS_READ))
        except (OSError, ValueError, OverflowError) as error:
            raise internal(f"failed to map shared memory region '{self.name}'", str(error)) from None

    def _shortened(self) -> InferError:
        return internal(
            f"shared memory region '{self.name}' is shorter than it was when it was registered",
            "unregister a region before its segment is changed",
        )
