"""The command line: Triton's flags in, `ServerOptions` out."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from conch.config.cache_flags import cache_options, deprecation
from conch.config.flag_table import FLAGS, Flag, titles
from conch.config.flag_values import FlagValueError
from conch.config.repository_url import RepositoryUrl, UrlError, is_url, parse_url
from conch.config.server import (
    GpuOptions,
    GrpcOptions,
    HostPolicy,
    HttpOptions,
    LogOptions,
    MemoryOptions,
    MetricsOptions,
    RateOptions,
    RepositoryOptions,
    Restriction,
    ServerOptions,
    TraceOptions,
    TrafficOptions,
)
from conch.config.trace_flags import trace_options

_LOOPBACK: Final = "127.0.0.1"
_EVERYWHERE: Final = "0.0.0.0"  # noqa: S104  Triton's default

_SUCCESSORS: Final = {
    "strict-model-config": "disable-auto-complete-config",
    **dict.fromkeys(("trace-file", "trace-level", "trace-rate", "trace-count", "trace-log-frequency"), "trace-config"),
}


class FlagError(Exception):
    """The command line cannot be followed; the text is for the person who wrote it."""


class HelpAsked(Exception):  # noqa: N818  it is no error
    """`--help` was given; `text` is the answer."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


@dataclass(slots=True)
class _Given:
    """What the command line says, flag by flag; repeated flags have a list."""

    values: dict[str, Any] = field(default_factory=dict)
    arguments: list[str] = field(default_factory=list)


def parse(argv: Sequence[str], prog: str, environ: Mapping[str, str] = os.environ) -> ServerOptions:
    """Read `argv` (without the program's own name).

    GNU long options: `--flag=value` or `--flag value`, unique prefixes, `--` ends the flags. As `tritonserver` the
    listeners are at 0.0.0.0 and arguments that are no flags are refused; as any other program they are at 127.0.0.1
    and such arguments are model repositories. Raises FlagError and HelpAsked, nothing else.
    """
    given = _read(argv, prog)
    triton = prog == "tritonserver"
    if given.arguments and triton:
        raise FlagError(f"Unexpected argument: {given.arguments[0]}")
    repositories = [*given.values.get("model-store", ()), *given.values.get("model-repository", ())]
    repositories += given.arguments
    if not repositories and environ.get("AIP_STORAGE_URI"):
        repositories = [environ["AIP_STORAGE_URI"]]
    _check_caches(given.values)
    options = _options(given.values, tuple(map(_path, repositories)), _EVERYWHERE if triton else _LOOPBACK, environ)
    _check_repository(options.repository, prog)
    _check_ports(options)
    return options


def arguments(argv: Sequence[str], prog: str) -> list[str]:
    """Those of `argv`, as parsed before, that are no flags: what to serve, last among the repositories."""
    return _read(argv, prog).arguments


def deprecations(argv: Sequence[str], prog: str) -> list[str]:
    """Triton's warnings for flags that do what they say and have a better successor; `argv` as parsed before."""
    given = _read(argv, prog).values
    return [
        *[
            f"Warning: '--{name}' has been deprecated! Please use '--{successor}' instead."
            for name, successor in _SUCCESSORS.items()
            if name in given
        ],
        *deprecation(given),
    ]


def usage(prog: str) -> str:
    """The text of `--help`, grouped like Triton's."""
    triton = prog == "tritonserver"
    lines = [f"Usage: {prog} [options]{'' if triton else ' TARGET ...'}", "  --help", "\tPrint usage"]
    for group, title in titles().items():
        lines += ["", f"{title}:"]
        for flag in FLAGS.values():
            if flag.group != group:
                continue
            lines.append(f"  --{flag.name} {flag.metavar}".rstrip())
            text = flag.help.replace("{address}", _EVERYWHERE if triton else _LOOPBACK)
            if not flag.sets:
                text += " No effect yet."
            lines += textwrap.wrap(text, 88, initial_indent="\t", subsequent_indent="\t")
    return "\n".join(lines) + "\n"


# --- from argv to values ---


def _read(argv: Sequence[str], prog: str) -> _Given:
    given = _Given()
    waiting = list(reversed(argv))
    while waiting:
        word = waiting.pop()
        if word == "--":
            given.arguments += reversed(waiting)
            break
        if not word.startswith("-") or word == "-":
            given.arguments.append(word)
            continue
        if word in ("--help", "-h"):
            raise HelpAsked(usage(prog))
        if not word.startswith("--"):
            raise FlagError(f"{prog}: invalid option -- '{word[1]}'")
        name, equals, value = word[2:].partition("=")
        flag = _find(name, word, prog)
        if flag is None:
            if equals:
                raise FlagError(f"{prog}: option '--help' doesn't allow an argument")
            raise HelpAsked(usage(prog))
        if flag.read is None:
            if equals:
                raise FlagError(f"{prog}: option '--{flag.name}' doesn't allow an argument")
            given.values[flag.name] = True
            continue
        if not equals:
            if not waiting:
                raise FlagError(f"{prog}: option '--{flag.name}' requires an argument")
            value = waiting.pop()
        _take(given, flag, value)
    return given


def _find(name: str, word: str, prog: str) -> Flag | None:
    """The flag of that name or unique prefix; None for `--help`."""
    if name in FLAGS:
        return FLAGS[name]
    names = [*FLAGS, "help"]
    candidates = [each for each in names if each.startswith(name)] if name else []
    if len(candidates) == 1:
        return FLAGS.get(candidates[0])
    if candidates:
        possible = " ".join(f"'--{each}'" for each in candidates)
        raise FlagError(f"{prog}: option '{word}' is ambiguous; possibilities: {possible}")
    # Not at the top: only a wrong command line needs it.
    from difflib import get_close_matches  # noqa: PLC0415

    near = get_close_matches(name[:100], names, n=3)
    hint = f"\nDid you mean {' or '.join(f'--{each}' for each in near)}?" if near else ""
    raise FlagError(f"{prog}: unrecognized option '{word}'{hint}")


def _take(given: _Given, flag: Flag, text: str) -> None:
    assert flag.read is not None
    try:
        value = flag.read(text)
    except FlagValueError as refused:
        part = f" {refused.part}" if refused.part else ""
        raise FlagError(f'Bad option: "--{flag.name}{part}".\n{refused}') from None
    if flag.repeated:
        given.values.setdefault(flag.name, []).append(value)
    else:
        given.values[flag.name] = value


# --- from values to options ---


def _options(
    values: Mapping[str, Any], repositories: tuple[Path | RepositoryUrl, ...], address: str, environ: Mapping[str, str]
) -> ServerOptions:
    groups: dict[str, dict[str, Any]] = {"http": {"address": address}, "grpc": {"address": address}}
    for name, value in values.items():
        group, dot, key = FLAGS[name].sets.rpartition(".")
        if dot or key in ("id", "exit_timeout"):
            groups.setdefault(group, {})[key] = value
    repository = {**groups.get("repository", {}), "paths": repositories}
    if repository.get("watch"):
        # What is broken can be mended while the server runs.
        repository.setdefault("exit_on_error", False)
    repository["load_models"] = tuple(values.get("load-model", ()))
    # The deprecated flag says the opposite of "auto-complete"; the newer one wins.
    repository["auto_complete"] = not (
        values.get("disable-auto-complete-config") or values.get("strict-model-config", False)
    )
    for group in ("http", "grpc"):
        restricted = groups[group].get("restricted", ())
        groups[group]["restricted"] = tuple(Restriction(*each) for each in restricted)
    http = HttpOptions(**groups["http"])
    server = groups.get("", {})
    return ServerOptions(
        id=server.get("id", ServerOptions().id),
        exit_timeout=float(server.get("exit_timeout", ServerOptions().exit_timeout)),
        http=http,
        grpc=GrpcOptions(**groups["grpc"]),
        metrics=MetricsOptions(
            **{"address": http.address, **groups.get("metrics", {}), "config": tuple(values.get("metrics-config", ()))}
        ),
        log=LogOptions(**groups.get("log", {})),
        memory=MemoryOptions(**groups.get("memory", {})),
        gpu=_gpu(groups.get("gpu", {}), environ),
        trace=_trace(groups.get("trace", {}), environ),
        cache=cache_options(values, environ),
        repository=RepositoryOptions(**repository),
        traffic=TrafficOptions(**groups.get("traffic", {})),
        rate=RateOptions(values.get("rate-limit", "off"), tuple(values.get("rate-limit-resource", ()))),
        host_policies=_policies(values.get("host-policy", ())),
        backend=_backend(values.get("backend-config", ())),
        ignored=(
            *(f"--{name}" for name in FLAGS if name in values and not FLAGS[name].sets),
            *_idle(values, repositories),
        ),
    )


def _gpu(given: Mapping[str, Any], environ: Mapping[str, str]) -> GpuOptions:
    # Triton's containers set it where they find no driver; "0" is what people write who mean the opposite.
    enabled = environ.get("TRITON_SERVER_CPU_ONLY", "0").lower() in ("", "0", "false")
    return GpuOptions(**{**given, "enabled": enabled, "load_limits": dict(given.get("load_limits", ()))})


def _trace(given: Mapping[str, Any], environ: Mapping[str, str]) -> TraceOptions:
    try:
        return trace_options(given, environ)
    except FlagValueError as refused:
        part = f" {refused.part}" if refused.part else ""
        raise FlagError(f'Bad option: "--trace-config{part}".\n{refused}') from None


def _idle(values: Mapping[str, Any], repositories: Sequence[Path | RepositoryUrl]) -> Iterator[str]:
    """Flags that wait for another one: Triton ignores them without a word."""
    if not any(isinstance(each, RepositoryUrl) for each in repositories):
        for name in ("repository-cache", "repository-cache-size"):
            if name in values:
                yield f"--{name} without a repository in a cloud storage"
    if "rate-limit-resource" in values and values.get("rate-limit", "off") == "off":
        yield "--rate-limit-resource without --rate-limit=execution_count"
    if "repository-poll-secs" in values and values.get("model-control-mode") != "poll":
        yield "--repository-poll-secs without --model-control-mode=poll"
    for group in ("http", "grpc"):
        mutual = values.get(f"{group}-use-ssl-mutual")
        for name, switch in (("server-cert", "use-ssl"), ("server-key", "use-ssl"), ("root-cert", "use-ssl-mutual")):
            on = mutual or (switch == "use-ssl" and values.get(f"{group}-use-ssl"))
            if f"{group}-{name}" in values and not on:
                yield f"--{group}-{name} without --{group}-{switch}"


def _policies(settings: Sequence[tuple[str, str, Any]]) -> Mapping[str, HostPolicy]:
    result: dict[str, dict[str, Any]] = {}
    for policy, key, value in settings:
        result.setdefault(policy, {})[key.replace("-", "_")] = value
    return {policy: HostPolicy(**given) for policy, given in result.items()}


def _backend(settings: Sequence[tuple[str, str, str]]) -> Mapping[str, Mapping[str, str]]:
    result: dict[str, dict[str, str]] = {}
    for backend, key, value in settings:
        result.setdefault(backend, {})[key] = value
    return result


def _path(text: str) -> Path | RepositoryUrl:
    if is_url(text):
        try:
            return parse_url(text)
        except UrlError as error:
            raise FlagError(f'Bad option: "--model-repository".\n{error}') from None
    path = text.removeprefix("file://")
    if not path.strip() or "\0" in path:
        raise FlagError(f'Bad option: "--model-repository".\nInvalid option value. Got {text!r}')
    return Path(path)


# --- what flags must not say together ---


def _check_repository(repository: RepositoryOptions, prog: str) -> None:
    if repository.watch and repository.control_mode == "poll":
        raise FlagError(
            "--watch and --model-control-mode=poll both follow the repository: leave one of them out (--watch sees "
            "changes at once, polling also sees those of remote repositories)"
        )
    if repository.load_models and repository.control_mode != "explicit":
        raise FlagError("Error: Use of '--load-model' requires setting '--model-control-mode=explicit' as well.")
    if "*" in repository.load_models and len(repository.load_models) > 1:
        raise FlagError("Wildcard model name '*' must be the ONLY startup model if specified at all.")
    if not repository.paths:
        if prog == "tritonserver":
            raise FlagError("error: creating server: Invalid argument - --model-repository must be specified")
        raise FlagError(f"--model-repository must be specified\nUsage: {prog} MODEL_REPOSITORY")


def _check_caches(values: Mapping[str, Any]) -> None:
    caches = {cache for cache, _ in values.get("cache-config", ())}
    if caches and "response-cache-byte-size" in values:
        raise FlagError(
            "Error: Incompatible flags --response-cache-byte-size and --cache-config both provided. "
            "Please provide one or the other."
        )
    if len(caches) > 1:
        raise FlagError("found multiple cache configurations, but only a single cache is currently supported")
    for flag, noun in (("http-restricted-api", "api"), ("grpc-restricted-protocol", "protocol")):
        seen: set[str] = set()
        for apis, _, _ in values.get(flag, ()):
            for api in apis:
                if api in seen:
                    raise FlagError(
                        f'Bad option: "--{flag}".\n'
                        f"restricted {noun} '{api}' can not be specified in multiple config groups"
                    )
                seen.add(api)


def _check_ports(options: ServerOptions) -> None:
    listeners = [
        (name, f"{listener.address}:{listener.port}")
        for name, listener in (("HTTP", options.http), ("GRPC", options.grpc), ("metrics", options.metrics))
        if listener.enabled and listener.port
    ]
    for index, (name, place) in enumerate(listeners):
        for other, taken in listeners[index + 1 :]:
            if place == taken:
                raise FlagError(
                    f"The server cannot listen to {name} requests and {other} requests at the same address and "
                    f"port {place}"
                )
