"""How the values of command line flags are read. A reader raises `FlagValueError` with Triton's text."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

#: From the text of a value to what it means.
Reader = Callable[[str], Any]

INT_MAX: Final = 2_147_483_647
INT64_MAX: Final = 9_223_372_036_854_775_807

_TRUE: Final = frozenset({"true", "on", "1"})
_FALSE: Final = frozenset({"false", "off", "0"})
_APIS: Final = (
    "health",
    "metadata",
    "inference",
    "shared-memory",
    "model-config",
    "model-repository",
    "statistics",
    "trace",
    "logging",
)


class FlagValueError(Exception):
    """Why a value will not do. `part` is what to add to the flag's name, where one key of several is at fault."""

    def __init__(self, message: str, part: str = "") -> None:
        super().__init__(message)
        self.part = part


def text(value: str) -> str:
    """Any text that can be written as UTF-8; arguments may hold bytes that cannot."""
    if not value.isprintable():
        raise FlagValueError(f"Invalid option value. Got {value!r}")
    return value


def pattern(value: str) -> str:
    """A regular expression."""
    try:
        re.compile(value)
    except (re.error, OverflowError, RecursionError) as error:
        shown = value if len(value) <= 100 else f"{value[:100]}..."
        raise FlagValueError(f"'{shown}' is not a regular expression: {error}") from None
    return value


def filled(value: str) -> str:
    """A text that must not be empty."""
    if not value.strip():
        raise FlagValueError(f"Invalid option value. Got {value}")
    return text(value)


def address(value: str) -> str:
    """A host name or IP address to listen at; brackets around an IPv6 address are taken off."""
    bare = value.removeprefix("[").removesuffix("]")
    if not re.fullmatch(r"[\w.:%-]{1,255}", bare, re.ASCII):
        raise FlagValueError(f"Invalid option value. Got {value}")
    return bare


def boolean(value: str) -> bool:
    if value.lower() in _TRUE:
        return True
    if value.lower() in _FALSE:
        return False
    raise FlagValueError(f"invalid value for bool option: {value}")


def integer(low: int = 0, high: int = INT_MAX, outside: str = "") -> Reader:
    """A whole number from `low` to `high`; `outside` is the text for numbers beyond them."""

    def read(value: str) -> int:
        if not re.fullmatch(r"[+-]?[0-9]+", value.strip(" ")):
            raise FlagValueError(f"Invalid option value. Got {value}")
        # Numbers of thousands of digits are not worth converting, and Python refuses them.
        number = int(value) if len(value) <= 30 else high + 1
        if not low <= number <= high:
            raise FlagValueError(outside or f"Provided option value is out of bound. Got {value}")
        return number

    return read


def number(low: float = 0.0, high: float = math.inf) -> Reader:
    def read(value: str) -> float:
        try:
            result = float(value)
        except ValueError:
            raise FlagValueError(f"Invalid option value. Got {value}") from None
        if not low <= result <= high or not math.isfinite(result):
            raise FlagValueError(f"Provided option value is out of bound. Got {value}")
        return result

    return read


def milliseconds(value: str) -> int:
    """At least one: an interval of zero would never rest."""
    result: float = number(low=1, high=INT_MAX)(value)
    return int(result)


def verbosity(value: str) -> int:
    lowered = value.lower()
    if lowered in ("true", "false"):
        return int(lowered == "true")
    level: int = integer()(value)
    return level


def choice(*options: str, refusal: str) -> Reader:
    """One of `options`, in any case; gives it as written here."""
    by_name = {option.lower(): option for option in options}

    def read(value: str) -> str:
        if value.lower() not in by_name:
            raise FlagValueError(f"{refusal}, expected one of {', '.join(options)}, got: {value}")
        return by_name[value.lower()]

    return read


def config_name(value: str) -> str:
    if not value:
        raise FlagValueError("Error: empty argument for --model-config-name")
    if not re.fullmatch(r"[^\s/\0]+", value) or value in (".", ".."):
        raise FlagValueError(f"Invalid option value. Got {value}")
    return value


def backend_setting(value: str) -> tuple[str, str, str]:
    """`<backend>,<key>=<value>`, or `<key>=<value>` for all backends (the backend is empty then)."""
    form = f"--backend-config option format is '<backend name>,<setting>=<value>'. Got {value}"
    head, equals, setting = value.partition("=")
    backend, comma, key = head.rpartition(",")
    if comma and not backend:
        raise FlagValueError(
            "No backend specified. --backend-config option format is <backend name>,<setting>=<value> or "
            f"<setting>=<value>. Got {value}"
        )
    if not equals or not key or not setting:
        raise FlagValueError(form)
    return backend, key, setting


def cache_setting(value: str) -> tuple[str, str]:
    """`<cache>,<key>=<value>` or a whole `<cache>,<text>`; gives the cache and its setting."""
    cache, _, setting = value.partition(",")
    if not cache or not setting:
        raise FlagValueError(
            f"No cache specified. --cache-config option format is <cache name>,<setting>=<value>. Got {value}"
        )
    key, equals, worth = setting.partition("=")
    if not (key and equals and worth):
        raise FlagValueError(f"--cache-config option format is '<cache name>,<setting>=<value>'. Got {value}")
    return cache, setting


def metrics_setting(value: str) -> tuple[str, str]:
    key, equals, worth = value.partition("=")
    if not (key and equals and worth) or "," in key:
        raise FlagValueError(f"--metrics-config option format is <setting>=<value>. Got {value}")
    return key, worth


def host_policy(value: str) -> tuple[str, str, int | frozenset[int]]:
    name, _, setting = value.partition(",")
    key, _, worth = setting.partition("=")
    if not (name and key and worth):
        raise FlagValueError(f"--host-policy option format is '<policy name>,<setting>=<value>'. Got {value}")
    if key not in ("numa-node", "cpu-cores"):
        raise FlagValueError(
            f"Unsupported host policy setting '{key}' is specified, supported settings are 'numa-node', 'cpu-cores'"
        )
    return name, key, integer()(worth) if key == "numa-node" else cores(worth)


def cores(value: str) -> frozenset[int]:
    """`<lower>-<upper>`, or one number; several, with commas between."""
    found: set[int] = set()
    for part in value.split(","):
        low, dash, high = part.partition("-")
        if not low.isascii() or not low.isdigit() or (dash and not (high.isascii() and high.isdigit())):
            raise FlagValueError(
                f"host policy setting 'cpu-cores' format is '<lower_cpu_core_id>-<upper_cpu_core_id>'. Got {part}"
            )
        # Numbers of more digits are no cores, and Python refuses to read thousands.
        first, last = (int(each.lstrip("0")[:9] or "0") for each in (low, high or low))
        if not first <= last < 65536:
            raise FlagValueError(f"host policy setting 'cpu-cores' has no cores from {first} to {last}")
        found.update(range(first, last + 1))
    return frozenset(found)


def resource(value: str) -> tuple[str, int, int | None]:
    """`<name>:<count>[:<device>]`."""
    name, *rest = value.split(":")
    if not name or not 1 <= len(rest) <= 2:
        raise FlagValueError(
            "--rate-limit-resource option format is '<resource_name>:<count>:<device>' or '<resource_name>:<count>'. "
            f"Got {value}"
        )
    counts = [integer()(part) for part in rest]
    return name, counts[0], counts[1] if len(counts) == 2 else None


def pair(separator: str, first: Reader, second: Reader) -> Reader:
    def read(value: str) -> tuple[Any, Any]:
        left, found, right = value.partition(separator)
        if not found:
            raise FlagValueError(
                "Cannot parse pair option due to incorrect number of inputs.--<pair option> argument requires format "
                f"<first>{separator}<second>. Found: {value}"
            )
        return first(left), second(right)

    return read


def fraction(value: str) -> float:
    result: float = number(low=-math.inf)(value)
    if not 0.0 <= result <= 1.0:
        raise FlagValueError(f"expects limit fraction to be in range [0.0, 1.0], got {result:f}")
    return result


def port_range(value: str) -> tuple[int, int]:
    port = integer(0, 65535)
    low, high = pair("-", port, port)(value)
    if low > high:
        raise FlagValueError(f"Provided option value is out of bound. Got {value}")
    return low, high


def restriction(flag: str, noun: str) -> Reader:
    """`<api>,<api>:<key>=<value>`; `noun` is what Triton calls an API there."""

    def read(value: str) -> tuple[tuple[str, ...], str, str]:
        names, colon, setting = value.partition(":")
        key, equals, worth = setting.partition("=")
        if not (names and colon and key and equals and worth):
            raise FlagValueError(f"--{flag} option format is '<config name>:<setting>=<value>'. Got {value}")
        apis = tuple(names.split(","))
        for api in apis:
            if api not in _APIS:
                raise FlagValueError(f"unknown restricted {noun} '{api}', expected one of {', '.join(_APIS)}")
        return apis, key, worth

    return read


def trace_level(value: str) -> str:
    if value.upper() not in ("OFF", "TIMESTAMPS", "TENSORS", "MIN", "MAX"):
        raise FlagValueError(f"invalid value for trace level option: {value}")
    return value.upper()


def trace_setting(value: str) -> tuple[str, str, str]:
    """`<mode>,<key>=<value>`, or `<key>=<value>` for both modes (the mode is empty then)."""
    mode, setting = "", value
    if "," in value.partition("=")[0]:
        mode, _, setting = value.partition(",")
        trace_mode(mode)
    key, equals, worth = setting.partition("=")
    if not (key and equals and worth):
        raise FlagValueError(f"--trace-config option format is '<trace mode>,<setting>=<value>'. Got {value}")
    if not mode and key in _TRACE_KEYS:
        try:
            _TRACE_KEYS[key](worth)
        except FlagValueError as refused:
            raise FlagValueError(str(refused), key) from None
    return mode, key, worth


def trace_mode(value: str) -> str:
    if value not in ("triton", "opentelemetry"):
        raise FlagValueError(
            f'invalid value for trace mode option: {value}. Available options are "triton" and "opentelemetry"'
        )
    return value


_TRACE_KEYS: Final[Mapping[str, Reader]] = {
    "mode": trace_mode,
    "level": trace_level,
    "rate": integer(0),
    "count": integer(-1),
}
