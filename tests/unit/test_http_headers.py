"""What request headers ask for: codings, deadlines, parameters; and the codings themselves."""

from __future__ import annotations

import gzip
import re
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conch.config.flags import FlagError, parse
from conch.protocol.v2.coding import Inflater, coded_head, deflate
from conch.protocol.v2.headers import accepted_coding, content_coding, forwarded, parse_timeout, read_extras
from conch.types.error import Code, InferError

CODINGS = ["gzip", "deflate"]
TOO_LARGE = (
    "decompressed request size exceeds the maximum allowed input size of 100 bytes. Use --http-max-input-size to "
    "increase the limit."
)


@pytest.mark.parametrize(
    ("value", "coding"),
    [
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("GZIP", "gzip"),
        ("gzip, deflate", "gzip"),
        ("deflate, gzip", "deflate"),
        ("gzip;q=0.5, deflate;q=0.8", "deflate"),
        ("deflate;q=0.8, gzip;q=0.8", "deflate"),
        ("identity, gzip", ""),
        ("gzip;q=0.5, identity;q=0.4", "gzip"),
        ("gzip;q=0", ""),
        ("gzip;q=0.000", ""),
        ("*", ""),
        ("br", ""),
        ("br, gzip", "gzip"),
        (" gzip ; q = 0.3 ", "gzip"),
        ("gzip;level=9;q=0.3, deflate;q=0.2", "gzip"),
        ("gzip;q=x", ""),
        ("gzip;q=2", ""),
        ("gzip;q=-1", ""),
        ("", ""),
        (",,;", ""),
    ],
)
def test_the_coding_that_is_liked_best_is_taken(value: str, coding: str) -> None:
    """Quality decides, then the order; what is not known, or is not liked at all, is passed over."""
    assert accepted_coding(value) == coding


@given(st.text(max_size=40))
def test_any_accept_encoding_has_an_answer(value: str) -> None:
    """Whatever a client sends, the answer is a coding there is."""
    assert accepted_coding(value) in {"", "gzip", "deflate"}


def test_a_body_is_plain_gzip_or_deflate() -> None:
    """Any other coding, or several, is unsupported."""
    assert [content_coding(each) for each in ("", "identity", "gzip", "x-gzip", "Deflate")] == [
        "", "", "gzip", "gzip", "deflate",
    ]  # fmt: skip
    for value in ("br", "gzip, gzip", "gzip;q=1", "chunked"):
        with pytest.raises(InferError, match="Unsupported compression type") as caught:
            content_coding(value)
        assert caught.value.code is Code.UNSUPPORTED


@pytest.mark.parametrize(
    ("value", "nanoseconds"),
    [
        ("1", 1_000_000_000),
        ("2.5", 2_500_000_000),
        (".25", 250_000_000),
        ("3.", 3_000_000_000),
        ("0.000000001", 1),
        ("999999999.999999999", 999_999_999_999_999_999),
    ],
)
def test_a_timeout_is_decimal_seconds(value: str, nanoseconds: int) -> None:
    """To the nanosecond, without rounding."""
    assert parse_timeout(value) == nanoseconds


@pytest.mark.parametrize(
    "value", ["", ".", "0", "0.0", "-1", "+1", "1e3", "100m", "1S", "nan", "inf", "1,5", " 1", "٣", "1" * 10, "1, 1"]
)
def test_other_timeouts_are_refused(value: str) -> None:
    """What is no number of seconds, or no time at all, is told what was expected; gRPC's spelling too."""
    with pytest.raises(InferError, match="Unable to parse Request-Timeout, expected seconds as a decimal") as caught:
        parse_timeout(value)
    assert caught.value.code is Code.INVALID_ARG
    assert caught.value.message.endswith(f"got: {value}")


def test_most_requests_ask_for_nothing_special() -> None:
    """Only a deadline or a coding makes a request special."""
    assert read_extras({"host": "x", "accept-encoding": "identity"}) is None
    extras = read_extras({"accept-encoding": "gzip", "request-timeout": "1"})
    assert extras is not None
    assert (extras.coding, extras.timeout_ns) == ("gzip", 1_000_000_000)


def test_headers_whose_names_match_are_forwarded() -> None:
    """A part of the name will do, in any case; names keep the client's spelling, values become text."""
    pattern = re.compile("my_|dup", re.IGNORECASE)
    lines = [
        ("My_One", "1"),
        ("x-DUP", "a"),
        ("x-DUP", "b"),
        ("other", "my_"),
        ("my_text", "é".encode().decode("latin-1")),
    ]
    assert forwarded(pattern, lines) == {"My_One": "1", "x-DUP": "a, b", "my_text": "é"}


@pytest.mark.parametrize(
    "name",
    [
        "sequence_id",
        "sequence_start",
        "sequence_end",
        "Priority",
        "timeout",
        "headers",
        "binary_data_output",
        "Triton_x",
    ],
)
def test_reserved_headers_are_not_forwarded(name: str) -> None:
    """No header can steer the server under the name of a parameter."""
    with pytest.raises(InferError) as caught:
        forwarded(re.compile("."), [(name, "1")])
    assert caught.value.message == f"Header '{name}' is reserved for Triton usage and cannot be forwarded."


def inflate(coding: str, body: bytes, limit: int = 100, step: int = 7) -> bytes:
    inflater = Inflater(coding, body, limit)
    for _ in range(10_000):
        plain = inflater.step(step)
        if plain is not None:
            return plain
    raise AssertionError("it never ends")


@given(st.binary(max_size=100), st.sampled_from(CODINGS), st.integers(1, 50))
def test_what_was_compressed_comes_back(body: bytes, coding: str, step: int) -> None:
    """In steps of any size; our compression is what the standard library reads."""
    assert inflate(coding, deflate(coding, [body[:10], memoryview(body)[10:]]), step=step) == body
    assert (gzip.decompress if coding == "gzip" else zlib.decompress)(deflate(coding, [body])) == body


@pytest.mark.parametrize("coding", CODINGS)
def test_cut_off_bodies_are_refused(coding: str) -> None:
    """Every proper beginning of a body is corrupt, whatever its last bytes seem to say."""
    body = deflate(coding, [b"x" * 50 + b"y" * 50])
    for size in range(1, len(body)):
        with pytest.raises(InferError, match=f"failed to decompress the {coding} request body: ") as caught:
            inflate(coding, body[:size])
        assert caught.value.code is Code.INVALID_ARG


@given(st.binary(min_size=1, max_size=60), st.sampled_from(CODINGS))
def test_any_body_is_read_or_refused(body: bytes, coding: str) -> None:
    """Nothing a client sends raises anything but our error."""
    try:
        plain = inflate(coding, body)
    except InferError:
        return
    assert len(plain) <= 100


@given(st.integers(0, 60), st.integers(0, 255), st.sampled_from(CODINGS))
def test_flipped_bytes_are_found(place: int, value: int, coding: str) -> None:
    """The checksums of both formats are checked: a changed body is refused, or is the same body."""
    whole = deflate(coding, [b"hello, " * 10])
    place %= len(whole)
    changed = whole[:place] + bytes([value]) + whole[place + 1 :]
    try:
        assert inflate(coding, changed) == b"hello, " * 10
    except InferError:
        assert changed != whole


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("size", [101, 1000, 50_000_000])
def test_bombs_are_refused(coding: str, size: int) -> None:
    """What grows beyond the limit is refused as soon as it does; the limit itself is fine."""
    with pytest.raises(InferError) as caught:
        inflate(coding, deflate(coding, [bytes(size)]))
    assert caught.value.message == TOO_LARGE
    assert inflate(coding, deflate(coding, [bytes(100)])) == bytes(100)


def test_of_an_honest_bomb_nothing_is_kept() -> None:
    """The size at the end of a gzip body tells that it is too large before a byte of it has been kept."""
    inflater = Inflater("gzip", gzip.compress(bytes(300_000)), 290_000)
    assert inflater.step(262_144) is None
    assert inflater._pieces == []
    with pytest.raises(InferError, match="decompressed request size"):
        inflater.step(1 << 20)


def test_gzip_bodies_may_have_parts() -> None:
    """Parts follow one another (RFC 1952 2.2), to a limit; deflate has none, and nothing else may follow."""
    assert inflate("gzip", gzip.compress(b"ab") + gzip.compress(b"") + gzip.compress(b"c")) == b"abc"
    for coding, body in (
        ("gzip", gzip.compress(b"") * 2000),
        ("gzip", gzip.compress(b"a") + b"xx"),
        ("deflate", zlib.compress(b"a") * 2),
    ):
        with pytest.raises(InferError, match="failed to decompress"):
            inflate(coding, body)
    with pytest.raises(InferError, match="nothing to be decompressed"):
        inflate("gzip", b"")


def test_the_wrong_name_for_the_coding_is_forgiven() -> None:
    """As in Triton: the two formats tell themselves apart."""
    assert inflate("gzip", zlib.compress(b"a")) == inflate("deflate", gzip.compress(b"a")) == b"a"


def test_a_head_tells_of_its_coding() -> None:
    """Content-Length counts compressed bytes, Inference-Header-Content-Length the others."""
    head = b"HTTP/1.1 200 OK\r\nInference-Header-Content-Length: 5\r\nContent-Length: 9\r\n"
    assert coded_head(head, "gzip", 7) == (
        b"HTTP/1.1 200 OK\r\nInference-Header-Content-Length: 5\r\nContent-Encoding: gzip\r\nContent-Length: 7\r\n"
    )


def test_patterns_that_are_none_stop_the_start() -> None:
    """The flag is checked when the server starts, not when the first request comes."""
    flags = ["--model-repository=/tmp", "--http-header-forward-pattern"]
    assert parse([*flags, "my_.*"], "tritonserver").http.header_forward_pattern == "my_.*"
    with pytest.raises(FlagError, match="is not a regular expression"):
        parse([*flags, "("], "tritonserver")
