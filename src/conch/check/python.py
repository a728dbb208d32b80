"""Python models without running them: the syntax of model.py, its class, what it imports, its environment."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

from conch.backend.api import Host, ModelFiles
from conch.backend.python.environment import PATH
from conch.check.environments import environment_is_sound, has_environment
from conch.check.finding import Place, Severity
from conch.check.layout import is_file
from conch.check.locate import locate
from conch.check.subject import Subject
from conch.config.normalize import normalize
from conch.pb.model_config_pb2 import ModelInput, ModelOutput
from conch.types.error import InferError

_CLASS = "TritonPythonModel"
_GIVEN = frozenset({"triton_python_backend_utils", "c_python_backend_utils", "conch"})


def read_models(subject: Subject) -> None:
    """Everything about model.py, for each version that is served."""
    config = subject.config
    if config is None or config.backend != "python":
        return
    environment_is_sound(subject)
    dynamic = False
    for version in subject.served:
        path = subject.version_folder(version) / (config.default_model_filename or "model.py")
        if is_file(path) and path.suffix == ".py":
            dynamic |= _model(subject, path)
    _completed(subject, dynamic)


def _completed(subject: Subject, dynamic: bool) -> None:
    """`dynamic`: the model completes its config itself."""
    config = subject.config
    assert config is not None
    if dynamic and subject.options.auto_complete:
        if subject.options.run_code and not subject.failed:
            _complete(subject)
            return
        if not (config.input and config.output):
            subject.find(
                "python-config-is-not-known",
                "its inputs and outputs come from auto_complete_config, which was not run",
                "--import runs it, in a process of its own",
                at=subject.directory,
            )
            return
        tensors: list[ModelInput | ModelOutput] = [*config.input, *config.output]
        subject.complete = all(each.data_type and each.dims for each in tensors)
        return
    subject.complete = True
    if not config.input and not config.output and subject.served and not subject.failed:
        subject.find(
            "tensors-are-declared",
            "the config has no inputs and outputs, and model.py no auto_complete_config that adds them",
            "write input and output into config.pbtxt",
        )


def _complete(subject: Subject) -> None:
    import asyncio  # noqa: PLC0415  only here is anything run

    from conch.backend.find import find_backend  # noqa: PLC0415

    assert subject.config is not None
    loop = asyncio.new_event_loop()
    try:
        files = ModelFiles(subject.directory, max(subject.served))
        find_backend("python").complete(subject.config, files, Host(loop))
        normalize(subject.config)
        subject.complete = True
    except InferError as error:
        details = f"{error.message}\n{error.hint}" if "Traceback" in error.hint else error.message
        subject.find("python-auto-complete-works", details, at=locate(subject.root, error.message))
    finally:
        loop.close()


def _model(subject: Subject, path: Path) -> bool:
    """Whether the class has auto_complete_config."""
    try:
        tree = ast.parse(path.read_bytes(), filename=str(path))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line, column = (getattr(error, "lineno", 0) or 0), (getattr(error, "offset", 0) or 0)
        deep = isinstance(error, RecursionError | MemoryError)
        said = "it is nested too deeply" if deep else error.msg if isinstance(error, SyntaxError) else str(error)
        other = has_environment(subject)
        subject.find(
            "python-file-compiles",
            f"{path.name} is no valid Python: {said}",
            "the place is where Python gave up; the mistake may be just before it",
            at=Place(path, line, column),
            severity=Severity.WARNING if other else None,
        )
        return False
    _imports(subject, path, tree)
    found = _class(tree)
    if found is None:
        if not _may_define(tree):
            classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
            subject.find(
                "python-class-is-there",
                f"{path.name} has no class {_CLASS}" + (f"; it has {', '.join(classes)}" if classes else ""),
                f"call the model's class {_CLASS}",
                at=Place(path, _line_of(tree, classes), 1),
            )
        return False
    methods = {node.name for node in found.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    assigned = {target.id for node in found.body if isinstance(node, ast.Assign)
                for target in node.targets if isinstance(target, ast.Name)}  # fmt: skip
    plain = all(isinstance(base, ast.Name) and base.id == "object" for base in found.bases)
    if plain and "execute" not in methods | assigned:
        subject.find(
            "python-execute-is-there",
            f"class {_CLASS} has no method execute; it has {', '.join(sorted(methods)) or 'none'}",
            "def execute(self, requests): ... returns a list of responses, one for each request",
            at=Place(path, found.lineno, found.col_offset + 1),
        )
    return "auto_complete_config" in methods | assigned or not plain


def _imports(subject: Subject, path: Path, tree: ast.Module) -> None:
    """What the file imports whatever happens must be there, unless the model has an environment of its own."""
    if has_environment(subject):
        return
    for node, name in _imported(tree):
        top = name.partition(".")[0]
        if top in _GIVEN or top in sys.builtin_module_names or top in sys.stdlib_module_names:
            continue
        if any((folder / top).is_dir() or (folder / f"{top}.py").is_file() or any(folder.glob(f"{top}.*.so"))
               for folder in (path.parent, subject.directory)):  # fmt: skip
            continue
        if _is_installed(top):
            continue
        subject.find(
            "python-imports-are-there",
            f"{path.name} imports '{name}', which is not installed",
            f"install the package that brings '{top}' where the server runs, or give the model an environment of its "
            f"own: requirements.txt beside {path.name}, or the parameter {PATH}",
            at=Place(path, node.lineno, node.col_offset + 1),
        )


def _imported(tree: ast.Module) -> Iterator[tuple[ast.stmt, str]]:
    for node in tree.body:
        if isinstance(node, ast.Import):
            for each in node.names:
                yield node, each.name
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node, node.module


def _is_installed(name: str) -> bool:
    try:
        return name in sys.modules or importlib.util.find_spec(name) is not None
    except (ImportError, ValueError, AttributeError):
        return False


def _class(tree: ast.Module) -> ast.ClassDef | None:
    return next((node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == _CLASS), None)


def _may_define(tree: ast.Module) -> bool:
    """Whether the name may come from elsewhere: an import, an assignment, a class inside if or try."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom | ast.Import) and any(
            each.name == "*" or (each.asname or each.name) == _CLASS for each in node.names
        ):
            return True
        if isinstance(node, ast.Name) and node.id == _CLASS and isinstance(node.ctx, ast.Store):
            return True
        if isinstance(node, ast.ClassDef) and node.name == _CLASS:
            return True
        if isinstance(node, ast.FunctionDef) and node.name == "__getattr__":
            return True
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"globals", "setattr"}:
            return True
    return False


def _line_of(tree: ast.Module, classes: list[str]) -> int:
    named = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name in classes]
    return named[0].lineno if named else 1
