"""Reads forests with treelite, and turns its exceptions into our errors. The only importer of treelite."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from conch.types.error import Code, InferError, invalid

#: treelite begins its texts with a time and the place in its source: `[19:50:11] /path/file.cc:42: `.
_PLACE: Final = re.compile(r"^\[\d\d:\d\d:\d\d\] \S+?:\d+: ")


def treelite() -> Any:
    """The treelite package. Raises InferError where it is not installed."""
    try:
        import treelite  # noqa: PLC0415  a server without forests does not pay for it
        import treelite.gtil  # noqa: PLC0415
    except ImportError as error:
        raise invalid(
            "unable to find backend library for backend 'fil', try specifying runtime on the model configuration.",
            f"pip install 'conch[forest]' ({error})",
        ) from None
    return treelite


def read_forest(path: Path, kind: str, allow_unknown_field: bool) -> Any:
    """The `treelite.Model` in a file of format `kind`. Raises InferError for files that are not whole."""
    library = treelite()
    front = library.frontend
    try:
        if kind == "treelite_checkpoint":
            return library.Model.deserialize(str(path))
        if kind == "lightgbm":
            _refuse_cut(path)
            return front.load_lightgbm_model(str(path))
        if kind == "xgboost_json":
            return front.load_xgboost_model(str(path), format_choice="json", allow_unknown_field=allow_unknown_field)
        if kind == "xgboost_ubj" or _holds_ubj(path):
            return front.load_xgboost_model(str(path), format_choice="ubjson", allow_unknown_field=allow_unknown_field)
        return front.load_xgboost_model_legacy_binary(str(path))
    except Exception as error:  # noqa: BLE001  treelite raises bare exceptions, too
        raise unreadable(path, kind, error) from None


def unreadable(path: Path, kind: str, error: Exception) -> InferError:
    text = _PLACE.sub("", str(error).partition("\nStack trace")[0].strip()) or type(error).__name__
    text = text.splitlines()[0]
    return InferError(
        Code.UNKNOWN,
        f"unable to read '{path}' as {kind}: {text}",
        "the file may be cut, or of another format: check parameter 'model_type'",
    )


def _refuse_cut(path: Path) -> None:
    """A LightGBM file says how long each of its trees is; treelite reads one that ends early without a word."""
    content = path.read_bytes()
    sizes = re.search(rb"^tree_sizes=([\d ]+)$", content, re.MULTILINE)
    begin = content.find(b"\nTree=0")
    if sizes and len(content) - begin < sum(map(int, sizes[1].split())):
        raise ValueError(f"the file ends early, {len(sizes[1].split())} trees do not fit into it")


def _holds_ubj(path: Path) -> bool:
    """XGBoost from 2.1 on writes UBJSON under any name that does not end with .json: an object with a typed key."""
    with path.open("rb") as file:
        return file.read(2) in (b"{L", b"{i", b"{U")
