"""TLS of the listeners: contexts from PEM files, made anew when the files change."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
from pathlib import Path
from typing import Any, Final

from conch.config.server import TlsOptions

_log = logging.getLogger("conch")

#: Seconds that a client may take for its part of the handshake.
HANDSHAKE_SECONDS: Final = 10.0
#: Seconds in which a client takes its last answer; as long as it goes on reading, as the kernel sees to.
GOODBYE_SECONDS: Final = 600.0
#: How long its own goodbye is waited for when it has taken everything; connections look after that.
SHUTDOWN_SECONDS: Final = 2.0
#: Seconds between two looks at the files.
INTERVAL: Final = 1.0

#: What tells one content of a file from the next without reading it.
_Print = tuple[tuple[int, int, int, int] | None, ...]


class TlsError(OSError):
    """TLS cannot be set up; the text names the flag and the file."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.strerror = message


class LiveContext(ssl.SSLContext):
    """What the event loop holds: each new connection gets the context that is current when it comes."""

    current: ssl.SSLContext

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        return self.current.wrap_bio(*args, **kwargs)


class Certificates:
    """One listener's certificates. `alpn` is the protocol that its clients must speak."""

    def __init__(self, options: TlsOptions, alpn: str) -> None:
        """Raises TlsError."""
        self._options = options
        self._alpn = alpn
        self._seen = self._look()
        self.context = LiveContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.current = load(options, alpn)
        self._watching: asyncio.Task[None] | None = None

    def watch(self) -> None:
        """Look at the files again and again, beside the event loop."""
        self._watching = asyncio.get_running_loop().create_task(self._watch())

    def close(self) -> None:
        if self._watching is not None:
            self._watching.cancel()

    def refresh(self) -> None:
        """Take the files as they are now, if they have changed. What cannot be used is logged, and the old stays."""
        now = self._look()
        if now == self._seen:
            return
        self._seen = now
        try:
            self.context.current = load(self._options, self._alpn)
        except TlsError as error:
            _log.error("%s; the certificate in use stays", error)
        else:
            _log.info("took over the changed certificate '%s'", self._options.cert)

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(INTERVAL)
            # The files may lie on a slow disk.
            await loop.run_in_executor(None, self.refresh)

    def _look(self) -> _Print:
        options = self._options
        return tuple(_fingerprint(path) for path in (options.cert, options.key, options.root) if path)


def load(options: TlsOptions, alpn: str) -> ssl.SSLContext:
    """A context of TLS 1.2 or newer from the files as they are now. Raises TlsError."""
    flag = options.flag
    switch = f"--{flag}-use-ssl-mutual" if options.mutual else f"--{flag}-use-ssl"
    needed = [("server-cert", options.cert), ("server-key", options.key)]
    if options.mutual:
        needed.append(("root-cert", options.root))
    for name, path in needed:
        if not path:
            raise TlsError(f"{switch} needs --{flag}-{name}, a PEM file")
        _readable(f"--{flag}-{name}", path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols([alpn])
    try:
        context.load_cert_chain(options.cert, options.key, password=_no_password)
    except (ssl.SSLError, OSError, ValueError) as error:
        raise TlsError(
            f"--{flag}-server-cert '{options.cert}' and --{flag}-server-key '{options.key}' cannot be used: "
            f"{_reason(error)}"
        ) from error
    if options.mutual:
        try:
            context.load_verify_locations(options.root)
        except (ssl.SSLError, OSError) as error:
            raise TlsError(f"--{flag}-root-cert '{options.root}' cannot be used: {_reason(error)}") from error
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _readable(flag: str, path: str) -> None:
    try:
        with Path(path).open("rb") as file:
            file.read(1)
    except OSError as error:
        raise TlsError(f"{flag} '{path}' cannot be read: {error.strerror}") from error


def _no_password() -> str:
    """Else OpenSSL would ask at the terminal."""
    raise ValueError("the key is protected by a password")


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        known = {"KEY_VALUES_MISMATCH": "the key is not the certificate's"}
        return known.get(error.reason or "", (error.reason or "it is no PEM file").replace("_", " ").lower())
    return str(error)


def _fingerprint(path: str) -> tuple[int, int, int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev


def server_arguments(certificates: Certificates | None, listener: socket.socket, patience: float) -> dict[str, Any]:
    """What `loop.create_server` is told besides the `listener`. `patience` are the seconds that a slow client has."""
    if certificates is None:
        return {}
    # What a client has not taken is hidden by uvloop's TLS: the kernel cuts off who takes nothing.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1, int(patience * 1000)))
    return {
        "ssl": certificates.context,
        "ssl_handshake_timeout": min(patience, HANDSHAKE_SECONDS),
        "ssl_shutdown_timeout": GOODBYE_SECONDS,
    }


def negotiated(transport: asyncio.BaseTransport | None) -> str | None:
    """The protocol that a client of TLS has agreed to; None when it named none of ours."""
    tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object") if transport is not None else None
    return tls.selected_alpn_protocol() if tls is not None else None
