"""TLS and mutual TLS with real clients, and with clients that do it wrong."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from tritonclient.utils import InferenceServerException

from conch.config.server import HttpOptions, TlsOptions
from conch.transport import http2_frames as h2
from conch.transport import tls
from support.certificates import Authority
from support.grpc_server import GrpcServer
from support.h2client import INFER, block, data, framed, headers, infer_message
from support.http_plane import Plane
from support.http_server import ServerThread
from support.http_wire import infer, tensor
from support.server import TRITONSERVER, Server
from support.until import until

#: Short, so that a stalled handshake is soon over; others have to be done with theirs in this time.
PATIENCE = 5.0


class Files:
    """An authority, a server's and a client's certificate, and a stranger's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority(folder)
        self.root = str(self.authority.root)
        self.authority.issue("server")
        self.authority.issue("client")
        Authority(folder, "other").issue("stranger")

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def options(self, mutual: bool) -> dict[str, Any]:
        return {
            "use_ssl": True, "use_ssl_mutual": mutual, "server_cert": self.path("server.pem"),
            "server_key": self.path("server.key"), "root_cert": self.root,
        }  # fmt: skip

    def client(self, name: str = "client", alpn: tuple[str, ...] = ()) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.root)
        if name:
            context.load_cert_chain(self.path(f"{name}.pem"), self.path(f"{name}.key"))
        if alpn:
            context.set_alpn_protocols(list(alpn))
        return context


def secure_http(**options: Any) -> ServerThread:
    return ServerThread(Plane(), **options)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(params=[False, True], ids=["tls", "mutual"])
def http(request: pytest.FixtureRequest, files: Files) -> Iterator[ServerThread]:
    server = secure_http(**files.options(request.param))
    yield server
    server.close()


@pytest.fixture
def mutual_http(files: Files) -> Iterator[ServerThread]:
    server = secure_http(**files.options(True))
    yield server
    server.close()


@pytest.fixture
def mutual_grpc(files: Files) -> Iterator[GrpcServer]:
    with GrpcServer(**files.options(True)) as server:
        yield server


def triton_grpc(server: GrpcServer, files: Files, name: str) -> grpcclient.InferenceServerClient:
    own = {"private_key": files.path(f"{name}.key"), "certificate_chain": files.path(f"{name}.pem")} if name else {}
    return grpcclient.InferenceServerClient(f"localhost:{server.port}", ssl=True, root_certificates=files.root, **own)


def infer_grpc(client: grpcclient.InferenceServerClient, size: int = 4) -> np.ndarray[Any, Any]:
    data = np.arange(size, dtype=np.float32).reshape(1, -1)
    tensor = grpcclient.InferInput("INPUT0", list(data.shape), "FP32")
    tensor.set_data_from_numpy(data)
    return client.infer("identity", [tensor]).as_numpy("OUTPUT0")


def test_tritonclient_grpc_with_tls(files: Files) -> None:
    """The client that trusts the authority is served, small tensors and large."""
    with GrpcServer(**files.options(False)) as server, triton_grpc(server, files, "") as client:
        assert client.is_server_live()
        for size in (4, 1 << 20):
            assert (infer_grpc(client, size) == np.arange(size)).all()


def test_tritonclient_grpc_with_mutual_tls(mutual_grpc: GrpcServer, files: Files) -> None:
    """Who shows a certificate of the authority is served."""
    with triton_grpc(mutual_grpc, files, "client") as client:
        assert infer_grpc(client).tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize("name", ["", "stranger"])
def test_grpc_without_the_right_certificate_is_refused(name: str, mutual_grpc: GrpcServer, files: Files) -> None:
    """No certificate, or one of another authority: no call gets through."""
    with triton_grpc(mutual_grpc, files, name) as client, pytest.raises(InferenceServerException, match="UNAVAILABLE"):
        client.is_server_live(client_timeout=60)


def test_tritonclient_http_with_tls(files: Files) -> None:
    """tritonclient.http with ssl=True."""
    server = secure_http(**files.options(False))
    try:
        with httpclient.InferenceServerClient(
            f"localhost:{server.transport.port}", ssl=True, ssl_options={"ca_certs": files.root}
        ) as client:
            assert client.is_server_live()
            assert client.is_server_ready()
    finally:
        server.close()


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_curl_with_http2_offered(http: ServerThread, files: Files) -> None:
    """curl offers h2 and http/1.1, and gets the one that is spoken here."""
    done = subprocess.run(
        ["curl", "-sS", "--http2", "--cacert", files.root, "--cert", files.path("client.pem"), "--key",
         files.path("client.key"), "-w", "%{http_version} %{http_code}",
         f"https://localhost:{http.transport.port}/v2/health/live"],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "1.1 200", "")


def connect(port: int, context: ssl.SSLContext) -> ssl.SSLSocket:
    return context.wrap_socket(socket.create_connection(("127.0.0.1", port), 60), server_hostname="localhost")


def ends(sock: socket.socket) -> bool:
    """Whether the server hangs up."""
    try:
        while sock.recv(4096):
            pass
    except OSError:
        pass
    return True


@pytest.mark.parametrize("name", ["", "stranger"])
def test_http_without_the_right_certificate_is_refused(name: str, mutual_http: ServerThread, files: Files) -> None:
    """The request is not answered."""
    answer = b""
    with suppress(OSError), connect(mutual_http.transport.port, files.client(name)) as sock:
        sock.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = sock.recv(100)
    assert answer == b""


def ask_much(server: ServerThread, files: Files, *more: str, size: int = 30_000_000) -> ssl.SSLSocket:
    """A client that has asked for more than the sockets hold, and has read nothing of it."""
    sock = connect(server.transport.port, files.client(""))
    head = {"inputs": [tensor("INPUT0", "UINT8", [size], size=size)], "parameters": {"binary_data_output": True}}
    sock.sendall(infer("large", head, bytes(size), *more))
    return sock


def test_a_last_answer_is_not_cut_off_for_a_client_that_takes_its_time(files: Files) -> None:
    """A connection of TLS that is to be closed stays until its client has read all of the answer."""
    server = secure_http(**files.options(False))
    try:
        with ask_much(server, files, "Connection: close") as sock:
            time.sleep(tls.SHUTDOWN_SECONDS + 0.5)
            size = 0
            while part := sock.recv(1 << 20):
                size += len(part)
        assert size > 30_000_000
    finally:
        server.close()


def test_a_server_that_stops_waits_for_what_tls_hides(files: Files) -> None:
    """An answer is in flight until its client has taken it, though uvloop says that nothing waits."""
    server = secure_http(**files.options(False))
    try:
        with ask_much(server, files) as sock:
            first = sock.recv(1)
            server.call(server.transport.stop_accepting)
            assert all(server.call(server.transport.inflight) for _ in range(20))
            while first and sock.recv(1 << 20):
                pass
            until(lambda: server.call(server.transport.inflight) == 0)
    finally:
        server.close()


def test_a_last_answer_over_grpc_is_not_cut_off_either(files: Files) -> None:
    """A connection that is shut stays until its client has read all of the answer; then it ends at once."""
    raw = framed(infer_message("x", range(5_000_000)).SerializeToString())
    request = headers(1, block(INFER)) + b"".join(
        [data(1, raw[at : at + 1_000_000], end=at + 1_000_000 >= len(raw)) for at in range(0, len(raw), 1_000_000)]
    )
    greeting = h2.settings({h2.SETTINGS_INITIAL_WINDOW_SIZE: 1 << 30}) + h2.window_update(0, 1 << 30)
    with GrpcServer(**files.options(False)) as server, connect(server.port, files.client(alpn=("h2",))) as sock:
        sock.sendall(h2.PREFACE + greeting + request)
        (connection,) = server.transport._connections
        until(lambda: connection.sender.sent > 20_000_000)
        assert server.call(server.transport.inflight)
        server.call(connection.shut, h2.ErrorCode.NO_ERROR)
        time.sleep(tls.SHUTDOWN_SECONDS + 0.5)
        size = 0
        while part := sock.recv(1 << 20):
            size += len(part)
        assert size > 20_000_000


@pytest.mark.parametrize("grpc", [True, False])
def test_a_client_that_never_says_goodbye_is_cut(grpc: bool, files: Files) -> None:
    """A connection that has ended is let go soon after its client has taken everything."""
    options = files.options(False) | {"slow_sender_timeout": 2.0}
    http = secure_http(**options)
    with GrpcServer(**options) as server:
        transport, call = (server.transport, server.call) if grpc else (http.transport, http.call)
        with connect(transport.port, files.client()) as sock:
            sock.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            # What answers has the connection.
            assert sock.recv(1)
            until(lambda: call(transport.connections) == 0)
    http.close()


@pytest.mark.parametrize("more", [(), ("Connection: close",)])
def test_a_client_that_never_reads_is_cut(more: tuple[str, ...], files: Files) -> None:
    """What is written for it is not kept for ever."""
    server = secure_http(**files.options(False) | {"slow_sender_timeout": 2.0})
    try:
        with ask_much(server, files, *more):
            until(lambda: server.call(server.transport.connections) == 0)
    finally:
        server.close()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_of_today_is_spoken(version: ssl.TLSVersion, mutual_http: ServerThread, files: Files) -> None:
    """TLS 1.2 and 1.3."""
    context = files.client()
    context.minimum_version = context.maximum_version = version
    with connect(mutual_http.transport.port, context) as sock:
        sock.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 200 ")


def test_tls_of_yesterday_is_not_spoken(files: Files) -> None:
    """Nothing older than TLS 1.2."""
    options = HttpOptions(**files.options(False)).tls
    assert options is not None
    assert tls.load(options, "h2").minimum_version is ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize("alpn", [(), ("http/1.1",)])
def test_grpc_wants_h2_by_alpn(alpn: tuple[str, ...], mutual_grpc: GrpcServer, files: Files) -> None:
    """Who agrees on nothing is told so by GOAWAY (INADEQUATE_SECURITY) and hung up on."""
    with connect(mutual_grpc.port, files.client(alpn=alpn)) as sock:
        said = b""
        while part := sock.recv(4096):
            said += part
    assert b"\x00\x00\x00\x0cthe client did not offer h2 by ALPN" in said


def test_plain_text_to_the_tls_port_is_hung_up_on(mutual_http: ServerThread, mutual_grpc: GrpcServer) -> None:
    """A client that does not know of TLS gets no answer in plain text, and harms nobody."""
    for port in (mutual_http.transport.port, mutual_grpc.port):
        with socket.create_connection(("127.0.0.1", port), 60) as sock:
            sock.sendall(b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n")
            assert ends(sock)


def test_a_stalled_handshake_is_hung_up_on(files: Files) -> None:
    """Silence, or half a greeting, and others are served meanwhile."""
    options = {**files.options(True), "slow_sender_timeout": PATIENCE}
    http = secure_http(**options)
    with GrpcServer(**options) as grpc, ExitStack() as stack:
        stack.callback(http.close)
        stalled = []
        for port in (http.transport.port, grpc.port):
            for start in (b"", b"\x16\x03\x01\x02\x00\x01"):
                stalled.append(stack.enter_context(socket.create_connection(("127.0.0.1", port), 60)))
                stalled[-1].sendall(start)
            with connect(port, files.client(alpn=("h2", "http/1.1"))):
                pass
        assert all(map(ends, stalled))


# ---- files that change


def serial(port: int, files: Files) -> int:
    with connect(port, files.client()) as sock:
        found = sock.getpeercert()
        assert found is not None
        return int(str(found["serialNumber"]), 16)


@pytest.fixture
def own(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest.fixture
def changing(own: Files, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServerThread]:
    """A server whose files may change; it looks at them often."""
    monkeypatch.setattr(tls, "INTERVAL", 0.02)
    server = secure_http(**own.options(True))
    yield server
    server.close()


def test_changed_certificates_are_taken_over(changing: ServerThread, own: Files) -> None:
    """New connections get the new certificate, open ones go on."""
    port = changing.transport.port
    before = serial(port, own)
    with connect(port, own.client()) as open_before:
        own.authority.issue("server")
        until(lambda: serial(port, own) != before)
        open_before.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert open_before.recv(100).startswith(b"HTTP/1.1 200 ")


def test_a_changed_root_is_taken_over(changing: ServerThread, own: Files) -> None:
    """Clients of the old authority are no longer let in, those of the new one are."""
    port = changing.transport.port
    stranger = own.client("stranger")
    Path(own.root).write_bytes((own.folder / "other.pem").read_bytes())

    def answered() -> bool:
        try:
            with connect(port, stranger) as sock:
                sock.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
                return sock.recv(100).startswith(b"HTTP/1.1 200 ")
        except (ssl.SSLError, ConnectionError):
            return False

    until(answered)


def test_broken_files_leave_the_old_certificate(
    changing: ServerThread, own: Files, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says so once for each change, and a good file later is taken over."""
    port = changing.transport.port
    before = serial(port, own)
    (own.folder / "server.pem").write_text("broken")
    until(lambda: "the certificate in use stays" in caplog.text)
    assert serial(port, own) == before
    own.authority.issue("server")
    until(lambda: serial(port, own) != before)


# ---- files that will not do

BAD_FILES = {
    "no certificate": ({"cert": ""}, "--http-use-ssl-mutual needs --http-server-cert, a PEM file"),
    "no key": ({"key": ""}, "--http-use-ssl-mutual needs --http-server-key, a PEM file"),
    "no root": ({"root": ""}, "--http-use-ssl-mutual needs --http-root-cert, a PEM file"),
    "certificate missing": ({"cert": "nope"}, "--http-server-cert '{}/nope' cannot be read: No such file or directory"),
    "key of another": (
        {"key": "client.key"},
        (
            "--http-server-cert '{0}/server.pem' and --http-server-key '{0}/client.key' cannot be used: "
            "the key is not the certificate's"
        ),
    ),
    "key with a password": (
        {"key": "locked.key"},
        (
            "--http-server-cert '{0}/server.pem' and --http-server-key '{0}/locked.key' cannot be used: "
            "the key is protected by a password"
        ),
    ),
    "no PEM": ({"root": "server.key"}, "--http-root-cert '{0}/server.key' cannot be used: "),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_server_with_bad_files_does_not_start(case: str, files: Files) -> None:
    """It says which flag and which file."""
    files.authority.issue("locked", password=b"secret")
    changes, text = BAD_FILES[case]
    fields = {"cert": "server.pem", "key": "server.key", "root": "authority.pem", **changes}
    paths = {name: files.path(value) if value else "" for name, value in fields.items()}
    with pytest.raises(tls.TlsError) as caught:
        tls.load(TlsOptions(**paths, mutual=True, flag="http"), "http/1.1")
    assert str(caught.value).startswith(text.format(files.folder))


@pytest.mark.slow
def test_the_server_process_serves_with_tls(files: Files, tmp_path: Path) -> None:
    """`tritonserver` with the flags of both listeners; with a bad file it leaves before it loads anything."""
    repository = tmp_path / "models"
    repository.mkdir()
    flags = [f"--{kind}-{name}={files.path(file)}" for kind in ("http", "grpc") for name, file in
             (("server-cert", "server.pem"), ("server-key", "server.key"), ("root-cert", "authority.pem"))]  # fmt: skip
    server = Server(repository, "--http-use-ssl=1", "--grpc-use-ssl-mutual=1", *flags, command=TRITONSERVER)
    try:
        until(lambda: "Started Metrics Service" in server.log)
        with connect(server.http_port, files.client("")) as sock:
            sock.sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\n\r\n")
            assert sock.recv(100).startswith(b"HTTP/1.1 200 ")
        with grpcclient.InferenceServerClient(
            f"localhost:{server.grpc_port}", ssl=True, root_certificates=files.root,
            private_key=files.path("client.key"), certificate_chain=files.path("client.pem"),
        ) as client:  # fmt: skip
            assert client.is_server_ready()
        until(lambda: "--http-root-cert without --http-use-ssl-mutual is accepted but has no effect yet" in server.log)
        server.stop()
    finally:
        server.close()
    broken = Server(repository, "--grpc-use-ssl=1", "--grpc-server-cert=/nowhere", command=TRITONSERVER)
    try:
        assert broken.wait() == 1
        assert "--grpc-use-ssl needs --grpc-server-key" in broken.log or "'/nowhere' cannot be read" in broken.log
    finally:
        broken.close()
