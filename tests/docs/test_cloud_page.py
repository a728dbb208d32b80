"""The page on cloud repositories says what is so."""

from __future__ import annotations

import re
from pathlib import Path

from conch.config import cloud
from conch.config.flag_table import FLAGS
from conch.config.repository_url import parse_url

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "cloud.md").read_text()
SOURCES = "".join((ROOT / "src" / "conch" / "config" / name).read_text() for name in ("cloud.py", "repository_url.py"))


def test_urls_of_the_page_are_repositories() -> None:
    """Each URL of the table is read as what its row says."""
    rows = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| `")]
    urls = [url for row in rows for url in re.findall(r"`([^`]+)`", row)]
    assert len(urls) == 7
    for url in urls:
        parse_url(url.replace(":port", ":1"))


def test_the_credential_file_of_the_page_is_read(tmp_path: Path) -> None:
    """The example is a file that Triton and Conch read, and its longer prefix wins."""
    example = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)[0]
    file = tmp_path / "credentials.json"
    file.write_text(example)
    environ = {cloud.CREDENTIAL_FILE: str(file)}
    assert cloud.cloud_credential(parse_url("s3://minio.corp:9000/b"), environ).get("key_id") == "me"
    assert cloud.cloud_credential(parse_url("s3://bucket"), environ).get("region") == "eu-central-1"
    assert cloud.cloud_credential(parse_url("gs://bucket"), environ).get("path") == "/secrets/service-account.json"
    assert cloud.cloud_credential(parse_url("as://a/c"), environ).get("auth_type") == "key"


def test_flags_and_variables_of_the_page_exist() -> None:
    """What the page names is what the server reads."""
    named = set(re.findall(r"--([a-z][a-z-]+)", PAGE))
    assert named <= FLAGS.keys()
    for variable in re.findall(r"\b(?:TRITON|AWS|AZURE|GOOGLE|STORAGE|XDG)_[A-Z_]+", PAGE):
        assert variable in SOURCES, variable
