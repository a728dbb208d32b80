"""Archives with environments: whatever is in one, nothing is written outside the folder it is unpacked to."""

from __future__ import annotations

import io
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from conch.backend.python.archive import Judge, Unsound, unpack
from conch.types.error import InferError

NAMES = st.sampled_from(
    [
        "a",
        "a/b",
        "a/b/c",
        "b",
        "./a",
        "a/../b",
        "../x",
        "/x",
        "bin/python",
        "top/bin/python3.11",
        "bin/python/../x",
        "x/../../y",
        ".",
    ]
)
TARGETS = st.sampled_from(["a", "b", "../b", "..", "../..", "../../x", "{outside}", "/", "a/b", "."])
MEMBERS = st.lists(
    st.tuples(st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE]), NAMES, TARGETS),
    max_size=8,
)


def member(kind: bytes, name: str, target: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode = kind, mode
    if kind in {tarfile.SYMTYPE, tarfile.LNKTYPE}:
        info.linkname = target
    return info


def archive(path: Path, members: list[tarfile.TarInfo]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for info in members:
            data = b"content" if info.isreg() else b""
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@settings(max_examples=150, deadline=None)
@given(MEMBERS)
@example([(tarfile.SYMTYPE, ".", ".")])
def test_nothing_is_written_outside(members: list[tuple[bytes, str, str]]) -> None:
    """After any archive, unpacked or refused, what lies beside the folder is as it was."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        outside = root / "outside"
        outside.mkdir()
        (outside / "x").write_text("mine")
        made = [member(kind, name, target.format(outside=outside / "x")) for kind, name, target in members]
        try:
            unpack(archive(root / "env.tar.gz", made), root / "inside")
        except InferError:
            """Refused."""
        assert sorted(each.name for each in root.iterdir()) == ["env.tar.gz", "inside", "outside"]
        assert (outside / "x").read_text() == "mine"
        assert (outside / "x").stat().st_nlink == 1


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ([(tarfile.REGTYPE, "../x", "")], "its member '../x' leads out of it"),
        ([(tarfile.REGTYPE, "/etc/x", "")], "its member '/etc/x' leads out of it"),
        ([(tarfile.SYMTYPE, "a", "/etc")], "its link 'a' leads out of it, to '/etc'"),
        ([(tarfile.SYMTYPE, "a", "b"), (tarfile.REGTYPE, "a/x", "")], "its member 'a/x' lies below the link 'a'"),
        ([(tarfile.SYMTYPE, "a", "b"), (tarfile.REGTYPE, "a", "")], "its member 'a' is there twice, as a link"),
        ([(tarfile.REGTYPE, "a/b", ""), (tarfile.SYMTYPE, "a", "b")], "its member 'a' is there twice, as a link"),
        ([(tarfile.SYMTYPE, "bin/python", "/etc"), (tarfile.REGTYPE, "bin/python/../x", "")],
         "its member 'bin/python/../x' leads out of it"),
        ([(tarfile.SYMTYPE, "bin/python", "/etc/x"), (tarfile.SYMTYPE, "a", "bin/python/../../passwd")],
         "its link 'a' leads out of it, to 'bin/python/../../passwd'"),
        ([(tarfile.REGTYPE, "bin/x", ""), (tarfile.LNKTYPE, "a", "bin/python/../x")],
         "its link 'a' is to 'bin/python/../x', which is no file before it"),
        ([(tarfile.LNKTYPE, "a", "/etc/passwd")], "its link 'a' is to '/etc/passwd', which is no file before it"),
        ([(tarfile.FIFOTYPE, "a", "")], "its member 'a' is neither file nor folder nor link"),
    ],
)  # fmt: skip
def test_what_is_refused(members: list[tuple[bytes, str, str]], text: str) -> None:
    """Each refusal names the member."""
    judge = Judge()
    *sound, bad = members
    for each in sound:
        judge.admit(member(*each))
    with pytest.raises(Unsound) as caught:
        judge.admit(member(*bad))
    assert str(caught.value) == text


def test_the_interpreters_link_may_lead_out(tmp_path: Path) -> None:
    """bin/python of a virtual environment is a link to the machine's Python; setuid and owners do not travel."""
    tool = member(tarfile.REGTYPE, "bin/tool", mode=0o6755)
    tool.uid = tool.gid = 12345
    links = [member(tarfile.SYMTYPE, "bin/python", "/usr/bin/python3"), member(tarfile.SYMTYPE, "lib64", "lib")]
    unpack(archive(tmp_path / "env.tar.gz", [tool, *links, member(tarfile.REGTYPE, "lib/x")]), tmp_path / "env")
    assert (tmp_path / "env" / "bin" / "python").readlink() == Path("/usr/bin/python3")
    assert (tmp_path / "env" / "lib64" / "x").read_text() == "content"
    status = (tmp_path / "env" / "bin" / "tool").stat()
    assert (status.st_mode & 0o7777, status.st_uid) == (0o755, tmp_path.stat().st_uid)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"no archive", "it is no tar archive"),
        (b"", "it is no tar archive"),
        (b"PK\x03\x04rest", "it is a zip file, expected .tar.gz"),
        (b"\x28\xb5\x2f\xfdrest", "it is a zstd file, expected .tar.gz"),
    ],
)
def test_broken_archives(tmp_path: Path, content: bytes, text: str) -> None:
    """One clear sentence, with the archive's name."""
    (tmp_path / "env.tar.gz").write_bytes(content)
    with pytest.raises(InferError) as caught:
        unpack(tmp_path / "env.tar.gz", tmp_path / "env")
    assert caught.value.message == (f"the environment archive '{tmp_path}/env.tar.gz' cannot be unpacked: {text}")


def test_a_cut_archive(tmp_path: Path) -> None:
    """An archive that was copied half way is told as such."""
    whole = archive(tmp_path / "whole.tar.gz", [member(tarfile.REGTYPE, f"f{n}") for n in range(200)]).read_bytes()
    (tmp_path / "env.tar.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InferError, match=r"cannot be unpacked: .*(end|EOF|truncated|unexpected)"):
        unpack(tmp_path / "env.tar.gz", tmp_path / "env")
