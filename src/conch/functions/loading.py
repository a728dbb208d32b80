"""Imports a user's file and gathers the functions declared in it. Only worker and helper processes do so."""

from __future__ import annotations

import importlib.util
import linecache
import sys
import traceback
from pathlib import Path
from types import ModuleType

import conch.functions
from conch.functions.declare import Declaration, DeclarationError, declared


def load_declarations(path: Path) -> list[Declaration]:
    """The declarations of the file, in order. Raises DeclarationError with file and line, whatever the file does."""
    path = path.resolve()
    _offer()
    _import(path)
    # A file may use another's functions: only its own are its models.
    found = [each for each in declared if each.file == str(path)]
    seen: dict[str, Declaration] = {}
    for each in found:
        first = seen.setdefault(each.name, each)
        if first is not each:
            raise each.refuse(
                f"there is a function '{each.name}' in line {first.line} already: rename one, or say "
                '@conch.model(name="...")'
            )
    if not found:
        raise DeclarationError(str(path), 1, "no function is declared as a model: put @conch.model above one")
    return found


def _offer() -> None:
    """`import conch` in the user's file. A worker knows the package by its folder alone, so it is empty there."""
    package = sys.modules["conch"]
    for name in conch.functions.__all__:
        if name not in vars(package):
            setattr(package, name, getattr(conch.functions, name))


def _import(path: Path) -> ModuleType:
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    name = path.stem
    if name in sys.modules or name in sys.stdlib_module_names or not name.isidentifier():
        name = f"conch_functions_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise DeclarationError(str(error.filename or path), error.lineno or 1, f"SyntaxError: {error.msg}") from error
    except FileNotFoundError as error:
        raise DeclarationError(str(path), line_in(error, path), f"{type(error).__name__}: {error}") from error
    except (Exception, SystemExit) as error:  # the user's code
        raise DeclarationError(str(path), line_in(error, path), f"{type(error).__name__}: {error}") from error
    return module


def line_in(error: BaseException, path: Path) -> int:
    """The innermost line of the file that the error went through; 1 where there is none."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    linecache.clearcache()
    return (lines[-1] if lines else 1) or 1
