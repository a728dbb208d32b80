"""The command line: what each flag sets, and what is said about wrong ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from conch.config.flag_table import FLAGS, titles
from conch.config.flags import FlagError, HelpAsked, deprecations, parse, usage
from conch.config.server import ServerOptions, TlsOptions

REPOSITORY = "--model-repository=/r"


def triton(*argv: str) -> ServerOptions:
    return parse([REPOSITORY, *argv], "tritonserver", {})


def refusal(*argv: str, prog: str = "tritonserver") -> str:
    with pytest.raises(FlagError) as caught:
        parse(argv, prog, {})
    return str(caught.value)


def get(options: ServerOptions, path: str) -> Any:
    value: Any = options
    for name in path.split("."):
        value = getattr(value, name)
    return value


def test_triton_defaults() -> None:
    """As tritonserver, listeners are at 0.0.0.0 and Triton's ports."""
    options = triton()
    assert (options.http.address, options.http.port) == ("0.0.0.0", 8000)
    assert (options.grpc.address, options.grpc.port) == ("0.0.0.0", 8001)
    assert (options.metrics.address, options.metrics.port) == ("0.0.0.0", 8002)
    assert options.repository.paths == (Path("/r"),)
    assert options.repository.control_mode == "none"
    assert options.ignored == ()


def test_conch_defaults() -> None:
    """As conch serve, listeners are at 127.0.0.1, and arguments are repositories."""
    options = parse(["a", "--http-port=0", "b"], "conch serve", {})
    assert (options.http.address, options.grpc.address, options.metrics.address) == ("127.0.0.1",) * 3
    assert options.repository.paths == (Path("a"), Path("b"))


def test_metrics_follow_http() -> None:
    """The metrics address is the HTTP address unless given."""
    assert triton("--http-address=127.0.0.2").metrics.address == "127.0.0.2"
    assert triton("--http-address=127.0.0.2", "--metrics-address=localhost").metrics.address == "localhost"


@pytest.mark.parametrize(
    ("argument", "path", "value"),
    [
        ("--id=x y", "id", "x y"),
        ("--id=", "id", ""),
        ("--exit-timeout-secs=5", "exit_timeout", 5.0),
        ("--log-verbose=2", "log.verbose", 2),
        ("--log-verbose=true", "log.verbose", 1),
        ("--log-verbose=False", "log.verbose", 0),
        ("--log-info=off", "log.info", False),
        ("--log-warning=0", "log.warning", False),
        ("--log-error=FALSE", "log.error", False),
        ("--log-format=ISO8601", "log.format", "ISO8601"),
        ("--log-file=/tmp/a b", "log.file", "/tmp/a b"),
        ("--exit-on-error=false", "repository.exit_on_error", False),
        ("--strict-readiness=false", "repository.strict_readiness", False),
        ("--disable-auto-complete-config", "repository.auto_complete", False),
        ("--strict-model-config=true", "repository.auto_complete", False),
        ("--strict-model-config=false", "repository.auto_complete", True),
        ("--model-control-mode=EXPLICIT", "repository.control_mode", "explicit"),
        ("--model-load-thread-count=9", "repository.load_threads", 9),
        ("--model-load-retry-count=2", "repository.load_retries", 2),
        ("--model-config-name=h100", "repository.config_name", "h100"),
        ("--allow-http=false", "http.enabled", False),
        ("--http-port=0", "http.port", 0),
        ("--http-port=65535", "http.port", 65535),
        ("--http-address=[::1]", "http.address", "::1"),
        ("--reuse-http-port=1", "http.reuse_port", True),
        ("--http-max-input-size=1", "http.max_input_size", 1),
        ("--allow-grpc=0", "grpc.enabled", False),
        ("--grpc-port=9", "grpc.port", 9),
        ("--grpc-address=::", "grpc.address", "::"),
        ("--reuse-grpc-port=on", "grpc.reuse_port", True),
        ("--allow-metrics=false", "metrics.enabled", False),
        ("--allow-gpu-metrics=false", "metrics.gpu", False),
        ("--pinned-memory-pool-byte-size=0", "gpu.pinned_bytes", 0),
        ("--allow-cpu-metrics=false", "metrics.cpu", False),
        ("--metrics-port=9", "metrics.port", 9),
        ("--metrics-interval-ms=500.5", "metrics.interval_ms", 500),
        ("--metrics-config=summary_quantiles=0.5:0.1,1:0", "metrics.config", (("summary_quantiles", "0.5:0.1,1:0"),)),
        ("--model-store=/s", "repository.paths", (Path("/s"), Path("/r"))),
        ("--model-repository=file:///s", "repository.paths", (Path("/r"), Path("/s"))),
        ("--backend-config=onnxruntime,a=1", "backend", {"onnxruntime": {"a": "1"}}),
        ("--backend-config=default-max-batch-size=8", "backend", {"": {"default-max-batch-size": "8"}}),
    ],
)
def test_flags_with_effect(argument: str, path: str, value: object) -> None:
    """A flag sets its option, written as one word or as two."""
    assert get(triton(argument), path) == value
    assert get(triton(*argument.split("=", 1)), path) == value


def test_repeated_flags() -> None:
    """Flags that may be given several times collect; of others the last one counts."""
    options = triton(
        "--load-model=a", "--load-model=b", "--model-control-mode=explicit", "--http-port=1", "--http-port=2",
        "--backend-config=b,k=1", "--backend-config=b,l=2",
    )  # fmt: skip
    assert options.repository.load_models == ("a", "b")
    assert options.http.port == 2
    assert options.backend == {"b": {"k": "1", "l": "2"}}


def test_unique_prefixes() -> None:
    """A flag may be cut as long as it stays unique, and a whole name wins over longer ones."""
    assert triton("--http-p", "9").http.port == 9
    assert triton("--log-v=1").log.verbose == 1
    assert triton("--id=z").id == "z"
    assert triton("--grpc-keepalive-time=5").grpc.keepalive_time_ms == 5
    assert refusal("--log-f=a").startswith(
        "tritonserver: option '--log-f=a' is ambiguous; possibilities: '--log-format' '--log-file'"
    )


EXAMPLES = {
    "<boolean>": "true", "<integer>": "2", "<float>": "1.5", "<string>": "a", "": "",
    "<<integer>:<integer>>": "0:5", "<<integer>-<integer>>": "80-90", "<<string>=<string>>": "a=b",
    "<<device_id>:<fraction>>": "0:0.5", "<<string>:<integer>:<integer>>": "r:1:0",
    "<<apis>:<key>=<value>>": "health,trace:k=v", "<<protocols>:<key>=<value>>": "health:k=v",
}  # fmt: skip
SPECIAL = {
    "rate-limit": "execution_count", "grpc-infer-response-compression-level": "high", "trace-level": "MAX",
    "trace-config": "triton,file=f", "cache-config": "local,size=5", "host-policy": "p,numa-node=1",
}  # fmt: skip


TLS = [f"--{kind}-use-ssl{more}" for kind in ("http", "grpc") for more in ("", "-mutual")]


@pytest.mark.parametrize("flag", TLS)
def test_tls_is_asked_for(flag: str) -> None:
    """Either flag turns TLS on, the mutual one asks clients for certificates; `false` is plain text."""
    kind = flag[2:6]
    files = [f"--{kind}-{name}={name}.pem" for name in ("server-cert", "server-key", "root-cert")]
    options = triton(flag + "=true", *files)
    listener = options.http if kind == "http" else options.grpc
    mutual = flag.endswith("mutual")
    root = "root-cert.pem" if mutual else ""
    assert listener.tls == TlsOptions("server-cert.pem", "server-key.pem", root, mutual, kind)
    options = triton(flag + "=false")
    assert (options.http.tls, options.grpc.tls, options.ignored) == (None, None, ())


def test_files_without_tls_are_named() -> None:
    """Certificates that nothing uses: Triton says nothing, here they are reported."""
    assert triton("--grpc-server-cert=a", "--grpc-root-cert=b").ignored == (
        "--grpc-server-cert without --grpc-use-ssl", "--grpc-root-cert without --grpc-use-ssl-mutual"
    )  # fmt: skip


def test_patterns_are_regular_expressions() -> None:
    """A pattern that is none is refused before anything starts."""
    assert triton("--grpc-header-forward-pattern=^x-").grpc.header_forward_pattern == "^x-"
    assert "'(' is not a regular expression" in refusal(REPOSITORY, "--grpc-header-forward-pattern=(")
    for hostile in ("a{99999999999}", "(" * 5000 + ")" * 5000):
        said = refusal(REPOSITORY, f"--http-header-forward-pattern={hostile}")
        assert "is not a regular expression: " in said
        assert len(said) < 300


def test_the_cache_of_storages_needs_one() -> None:
    """Where all repositories are folders its flags have no effect, and that is said."""
    flags = ("--repository-cache=/c", "--repository-cache-size=5")
    assert triton(*flags).ignored == (
        "--repository-cache without a repository in a cloud storage",
        "--repository-cache-size without a repository in a cloud storage",
    )
    assert triton(*flags, "--model-repository=s3://b").ignored == ()


def test_grpc_flags_are_options() -> None:
    """Times stay milliseconds, switches and counts are taken as they are."""
    options = triton(
        "--grpc-keepalive-timeout=7", "--grpc-keepalive-permit-without-calls=1", "--grpc-http2-max-ping-strikes=3",
        "--grpc-http2-max-pings-without-data=4", "--grpc-http2-min-recv-ping-interval-without-data=8",
        "--grpc-max-connection-age=9", "--grpc-max-connection-age-grace=10", "--grpc-max-response-pool-size=11",
        "--grpc-infer-response-compression-level=low",
    ).grpc  # fmt: skip
    assert (options.keepalive_timeout_ms, options.keepalive_permit_without_calls) == (7, True)
    assert (options.max_ping_strikes, options.max_pings_without_data, options.min_recv_ping_interval_ms) == (3, 4, 8)
    assert (options.max_connection_age_ms, options.max_connection_age_grace_ms) == (9, 10)
    assert (options.max_response_pool, options.compression_level) == (11, "low")


def test_zeros_before_a_core_are_no_digits() -> None:
    """However many there are."""
    (policy,) = triton(f"--host-policy=a,cpu-cores={'0' * 20}1-003").host_policies.values()
    assert policy.cpu_cores == frozenset({1, 2, 3})


def test_poll_mode() -> None:
    """The repository is polled every 15 seconds unless told otherwise; seconds without the mode are warned of."""
    assert triton("--model-control-mode=poll").repository.poll_seconds == 15
    options = triton("--model-control-mode=poll", "--repository-poll-secs=0")
    assert (options.repository.control_mode, options.repository.poll_seconds, options.ignored) == ("poll", 0, ())
    assert triton("--repository-poll-secs=3").ignored == ("--repository-poll-secs without --model-control-mode=poll",)


@pytest.mark.parametrize("name", [name for name, flag in FLAGS.items() if not flag.sets])
def test_flags_without_effect_are_named(name: str) -> None:
    """A flag of Triton's that has no effect here is read, checked and reported."""
    value = SPECIAL.get(name) or EXAMPLES[FLAGS[name].metavar]
    assert triton(f"--{name}={value}").ignored == (f"--{name}",)


@pytest.mark.parametrize(
    "name", [name for name, flag in FLAGS.items() if flag.metavar not in ("", "<string>") or name in SPECIAL]
)
def test_values_are_checked(name: str) -> None:
    """A value of the wrong type is refused, whether the flag has an effect or not."""
    assert refusal(REPOSITORY, f"--{name}=?").startswith(f'Bad option: "--{name}".\n')


BAD = 'Bad option: "--'
MESSAGES = {
    "--http-port=abc": 'http-port".\nInvalid option value. Got abc',
    "--http-port=": 'http-port".\nInvalid option value. Got ',
    "--http-port=12x": 'http-port".\nInvalid option value. Got 12x',
    "--http-port=1_0": 'http-port".\nInvalid option value. Got 1_0',
    "--http-port=\u0663": 'http-port".\nInvalid option value. Got \u0663',
    "--http-port=-1": 'http-port".\nProvided option value is out of bound. Got -1',
    "--http-port=65536": 'http-port".\nProvided option value is out of bound. Got 65536',
    "--http-port=99999999999999": 'http-port".\nProvided option value is out of bound. Got 99999999999999',
    "--http-address=": 'http-address".\nInvalid option value. Got ',
    "--http-address=a b": 'http-address".\nInvalid option value. Got a b',
    "--allow-http=maybe": 'allow-http".\ninvalid value for bool option: maybe',
    "--log-verbose=maybe": 'log-verbose".\nInvalid option value. Got maybe',
    "--log-format=foo": 'log-format".\ninvalid argument for --log-format',
    "--model-control-mode=foo": 'model-control-mode".\ninvalid argument for --model-control-mode',
    "--model-config-name=": 'model-config-name".\nError: empty argument for --model-config-name',
    "--model-config-name=../a": 'model-config-name".\nInvalid option value. Got ../a',
    "--http-max-input-size=0":
        'http-max-input-size".\nError: --http-max-input-size must be greater than 0.',
    "--grpc-infer-thread-count=1":
        'grpc-infer-thread-count".\n'
        "invalid argument for --grpc_infer_thread_count. Must be in the range 2 to 128.",
    "--grpc-infer-thread-count=129":
        'grpc-infer-thread-count".\n'
        "invalid argument for --grpc_infer_thread_count. Must be in the range 2 to 128.",
    "--metrics-interval-ms=nan": 'metrics-interval-ms".\nProvided option value is out of bound. Got nan',
    "--backend-config=foo":
        "backend-config\".\n--backend-config option format is '<backend name>,<setting>=<value>'. Got foo",
    "--backend-config=,a=b":
        'backend-config".\nNo backend specified. --backend-config option format is <backend name>,<setting>=<value> or '
        "<setting>=<value>. Got ,a=b",
    "--cache-config=foo":
        'cache-config".\nNo cache specified. --cache-config option format is <cache name>,<setting>=<value>. Got foo',
    "--rate-limit-resource=foo":
        "rate-limit-resource\".\n--rate-limit-resource option format is '<resource_name>:<count>:<device>' or "
        "'<resource_name>:<count>'. Got foo",
    "--host-policy=p,x=1":
        "host-policy\".\nUnsupported host policy setting 'x' is specified, supported settings are 'numa-node', "
        "'cpu-cores'",
    "--model-load-gpu-limit=0:2":
        'model-load-gpu-limit".\nexpects limit fraction to be in range [0.0, 1.0], got 2.000000',
    "--cuda-memory-pool-byte-size=5":
        'cuda-memory-pool-byte-size".\nCannot parse pair option due to incorrect number of inputs.--<pair option> '
        "argument requires format <first>:<second>. Found: 5",
    "--sagemaker-safe-port-range=9-5": 'sagemaker-safe-port-range".\nProvided option value is out of bound. Got 9-5',
    "--http-restricted-api=foo:a=b": "http-restricted-api\".\nunknown restricted api 'foo'",
    "--metrics-config=summary_latencies=":
        'metrics-config".\n--metrics-config option format is <setting>=<value>. Got summary_latencies=',
    "--trace-config=a,b=c":
        'trace-config".\ninvalid value for trace mode option: a. Available options are "triton" and "opentelemetry"',
    "--trace-config=rate=x": 'trace-config rate".\nInvalid option value. Got x',
    "--trace-config=level=x": 'trace-config level".\ninvalid value for trace level option: x',
    "--load-model=": 'load-model".\nInvalid option value. Got ',
    "--model-repository=": 'model-repository".\nInvalid option value. Got ',
    "--model-repository=file://": "model-repository\".\nInvalid option value. Got 'file://'",
    "--host-policy=a,cpu-cores=0-99999999999999999999":
        "host-policy\".\nhost policy setting 'cpu-cores' has no cores from 0 to 999999999",
    "--model-repository=s3://": 'model-repository".\nNo bucket name found in path: s3://',
    "--model-repository=as://account": 'model-repository".\nInvalid azure storage path: as://account; expected as://',
    "--id=\udcff": "id\".\nInvalid option value. Got '\\udcff'",
}  # fmt: skip


@pytest.mark.parametrize(("argument", "message"), MESSAGES.items())
def test_bad_values(argument: str, message: str) -> None:
    """A wrong value is refused with the flag's full name and Triton's words."""
    assert refusal(REPOSITORY, argument).startswith(BAD + message)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--foo",), "tritonserver: unrecognized option '--foo'"),
        (("--http-prot=1",), "tritonserver: unrecognized option '--http-prot=1'\nDid you mean --http-port"),
        (("--=1",), "tritonserver: unrecognized option '--=1'"),
        (("-x",), "tritonserver: invalid option -- 'x'"),
        (("--http-port",), "tritonserver: option '--http-port' requires an argument"),
        (("--disable-auto-complete-config=true",),
         "tritonserver: option '--disable-auto-complete-config' doesn't allow an argument"),
        (("--help=1",), "tritonserver: option '--help' doesn't allow an argument"),
        (("stray",), "Unexpected argument: stray"),
        (("--", "--id=x"), "Unexpected argument: --id=x"),
        ((), "error: creating server: Invalid argument - --model-repository must be specified"),
        ((REPOSITORY, "--load-model=a"),
         "Error: Use of '--load-model' requires setting '--model-control-mode=explicit' as well."),
        ((REPOSITORY, "--load-model=*", "--load-model=a", "--model-control-mode=explicit"),
         "Wildcard model name '*' must be the ONLY startup model if specified at all."),
        ((REPOSITORY, "--grpc-port=8000"),
         "The server cannot listen to HTTP requests and GRPC requests at the same address and port 0.0.0.0:8000"),
        ((REPOSITORY, "--metrics-port=8001"),
         "The server cannot listen to GRPC requests and metrics requests at the same address and port 0.0.0.0:8001"),
        ((REPOSITORY, "--cache-config=a,b=c", "--cache-config=d,e=f"),
         "found multiple cache configurations, but only a single cache is currently supported"),
        ((REPOSITORY, "--cache-config=a,b=c", "--response-cache-byte-size=5"),
         ("Error: Incompatible flags --response-cache-byte-size and --cache-config both provided. Please provide one "
         "or the other.")),
        ((REPOSITORY, "--http-restricted-api=health:a=b", "--http-restricted-api=trace,health:c=d"),
         ('Bad option: "--http-restricted-api".\n'
         "restricted api 'health' can not be specified in multiple config groups")),
    ],
)  # fmt: skip
def test_bad_command_lines(argv: tuple[str, ...], message: str) -> None:
    """Flags that are unknown, incomplete or contradict each other are refused in the words of GNU and Triton."""
    assert refusal(*argv).startswith(message)


def test_ports_that_do_not_clash() -> None:
    """The same port at another address, a free port twice, and a listener that is off are no clash."""
    triton("--grpc-port=8000", "--grpc-address=127.0.0.2")
    triton("--grpc-port=0", "--http-port=0", "--metrics-port=0")
    triton("--grpc-port=8000", "--allow-http=false")


def test_deprecated_flags_are_warned_of() -> None:
    """A flag that still has its effect, but a better name, is told of in Triton's words."""
    assert deprecations([REPOSITORY, "--strict-model-config=true"], "tritonserver") == [
        "Warning: '--strict-model-config' has been deprecated! Please use '--disable-auto-complete-config' instead."
    ]
    assert deprecations([REPOSITORY, "--trace-rate=5"], "tritonserver") == [
        "Warning: '--trace-rate' has been deprecated! Please use '--trace-config' instead."
    ]
    assert deprecations([REPOSITORY], "tritonserver") == []
    assert not triton("--strict-model-config=true").repository.auto_complete


def test_conch_needs_a_repository() -> None:
    """conch serve says how to name the repository."""
    assert refusal(prog="conch serve") == "--model-repository must be specified\nUsage: conch serve MODEL_REPOSITORY"


def test_repository_from_the_environment() -> None:
    """Without a repository flag AIP_STORAGE_URI is the repository."""
    options = parse([], "tritonserver", {"AIP_STORAGE_URI": "/aip"})
    assert options.repository.paths == (Path("/aip"),)
    options = parse([REPOSITORY], "tritonserver", {"AIP_STORAGE_URI": "/aip"})
    assert options.repository.paths == (Path("/r"),)


@pytest.mark.parametrize("argv", [["--help"], ["-h"], ["--hel"], ["--http-port=1", "--help", "--foo"]])
def test_help(argv: list[str]) -> None:
    """--help is answered with the usage text, before anything behind it is looked at."""
    with pytest.raises(HelpAsked) as caught:
        parse(argv, "tritonserver", {})
    assert caught.value.text == usage("tritonserver")


def test_usage_lists_every_flag() -> None:
    """The usage text has every flag once, in its group, and says which have no effect."""
    text = usage("conch serve")
    lines = text.splitlines()
    for title in titles().values():
        assert lines.count(f"{title}:") == 1
    for name, flag in FLAGS.items():
        assert lines.count(f"  --{name} {flag.metavar}".rstrip()) == 1
    assert text.count("127.0.0.1") == 2
    assert max(map(len, lines)) < 100
