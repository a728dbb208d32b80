"""A package with a backend, installed as far as Python can tell: a module and its entry points in a folder."""

from __future__ import annotations

from pathlib import Path


def install(site: Path, module: str, source: str, **points: str) -> Path:
    """`points`: backend's name -> `module:Class`. The folder has to be on `sys.path` or PYTHONPATH."""
    site.mkdir(exist_ok=True)
    (site / f"{module}.py").write_text(source)
    metadata = site / f"{module}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module.replace('_', '-')}\nVersion: 1.0\n")
    lines = [f"{name} = {target}" for name, target in points.items()]
    (metadata / "entry_points.txt").write_text("\n".join(["[conch.backends]", *lines, ""]))
    return site
