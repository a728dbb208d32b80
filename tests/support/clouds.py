"""Real storages on this machine: S3 (moto), GCS (gcp-storage-emulator), Azure (azurite), and a wire to be cut."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from support.server import free_ports

ROOT = Path(__file__).parents[2]
#: The account that azurite knows; published in its documentation.
AZURE_ACCOUNT = "devstoreaccount1"
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


class S3:
    """An S3 with one bucket called `models`; keys are checked by nobody."""

    def __init__(self) -> None:
        from moto.server import ThreadedMotoServer

        (self.port,) = free_ports(1)
        self._server = ThreadedMotoServer("127.0.0.1", self.port, verbose=False)
        self._server.start()
        import botocore.session

        self.client: Any = botocore.session.get_session().create_client(
            "s3", endpoint_url=f"http://127.0.0.1:{self.port}", region_name="us-east-1",
            aws_access_key_id="testing", aws_secret_access_key="testing",
        )  # fmt: skip
        self.client.create_bucket(Bucket="models")

    @property
    def url(self) -> str:
        return f"s3://127.0.0.1:{self.port}/models"

    def put(self, files: Mapping[str, bytes | str]) -> None:
        for key, content in files.items():
            self.client.put_object(Bucket="models", Key=key, Body=content)

    def remove(self, *keys: str) -> None:
        for key in keys:
            self.client.delete_object(Bucket="models", Key=key)

    def close(self) -> None:
        self.client.close()
        self._server.stop()


class Gcs:
    """A GCS with one bucket called `models`."""

    def __init__(self) -> None:
        from gcp_storage_emulator.server import create_server

        (self.port,) = free_ports(1)
        self._server = create_server("127.0.0.1", self.port, in_memory=True, default_bucket="models")
        self._server.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def put(self, files: Mapping[str, bytes | str]) -> None:
        import requests

        for key, content in files.items():
            answer = requests.post(
                f"{self.endpoint}/upload/storage/v1/b/models/o",
                params={"uploadType": "media", "name": key},
                data=content.encode() if isinstance(content, str) else content,
                headers={"content-type": "application/octet-stream"},
                timeout=60,
            )
            answer.raise_for_status()

    def close(self) -> None:
        self._server.stop()


class Azure:
    """An Azure Blob storage with one container called `models`."""

    def __init__(self, place: Path) -> None:
        (self.port,) = free_ports(1)
        self._process = subprocess.Popen(
            ["node", str(azurite()), "--blobHost", "127.0.0.1", "--blobPort", str(self.port), "--inMemoryPersistence",
             "--skipApiVersionCheck", "--silent", "--disableTelemetry"],
            cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            wait_for_port(self.port)
            from azure.storage.blob import BlobServiceClient

            self.client = BlobServiceClient(
                f"http://127.0.0.1:{self.port}/{AZURE_ACCOUNT}",
                credential={"account_name": AZURE_ACCOUNT, "account_key": AZURE_KEY},
            )
            self.client.create_container("models")
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise

    @property
    def url(self) -> str:
        return f"as://http://127.0.0.1:{self.port}/{AZURE_ACCOUNT}/models"

    def put(self, files: Mapping[str, bytes | str]) -> None:
        for key, content in files.items():
            self.client.get_blob_client("models", key).upload_blob(content, overwrite=True)

    def close(self) -> None:
        self.client.close()
        self._process.kill()
        self._process.wait()


def azurite() -> Path:
    """The program, installed once below the project's cache; skips the test where it cannot be had."""
    place = ROOT / ".cache" / "azurite"
    program = place / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("npm is not installed: no azurite")
    place.mkdir(parents=True, exist_ok=True)
    with (place / "lock").open("w") as lock:
        # Tests of several files run at the same time.
        fcntl.flock(lock, fcntl.LOCK_EX)
        done, failed = place / "done", place / "failed"
        if failed.exists() and time.time() - failed.stat().st_mtime < 3600:
            pytest.skip(f"azurite cannot be had: {failed.read_text()}")
        if not done.exists():
            try:
                subprocess.run(
                    ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(place), "azurite@3"],
                    check=True, capture_output=True, timeout=60,
                )  # fmt: skip
            except (OSError, subprocess.SubprocessError) as error:
                # Whoever else wants it need not wait for the same.
                failed.write_text(str(error))
                pytest.skip(f"azurite cannot be had: {error}")
            done.touch()
    return program


def wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise AssertionError(f"nothing listens at port {port}")


class Wire:
    """A TCP proxy in front of a port.

    `cut_after`: a connection ends once it has carried so many bytes to the client; `cuts` is how often that may still
    happen. `broken`: connections are closed at once. `stuck`: they are taken and nothing is answered.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.cut_after = 0
        self.cuts = 0
        self.broken = False
        self.stuck = False
        #: Bytes that went to clients.
        self.carried = 0
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._open.add(client)
            if self.broken:
                self._shut(client)
                continue
            if self.stuck:
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                self._shut(client)
                continue
            self._open.add(server)
            threading.Thread(target=self._pump, args=(client, server, False), daemon=True).start()
            threading.Thread(target=self._pump, args=(server, client, True), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        carried = 0
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if counted and (self.broken or self.stuck):
                    break
                target.sendall(data)
                if counted:
                    carried += len(data)
                    self.carried += len(data)
                    if self.cuts > 0 and carried >= self.cut_after:
                        self.cuts -= 1
                        break
        self._shut(source)
        self._shut(target)

    def _shut(self, sock: socket.socket) -> None:
        self._open.discard(sock)
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        sock.close()

    def close(self) -> None:
        # Closing alone does not wake a thread that waits in accept.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in list(self._open):
            self._shut(sock)


@contextlib.contextmanager
def wire_to(port: int) -> Iterator[Wire]:
    wire = Wire(port)
    try:
        yield wire
    finally:
        wire.close()
