"""docs/dali.md shows a pipeline: it must be one."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets

PAGE = Path(__file__).parent.parent.parent / "docs" / "dali.md"


def test_the_example_runs(tmp_path: Path) -> None:
    """A reader who copies it has a pipeline that decodes a JPEG file."""
    pytest.importorskip("nvidia.dali", reason="pip install nvidia-dali-cuda130")
    found = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found is not None
    # DALI reads the source of a definition, which must be in a file.
    (tmp_path / "dali.py").write_text(found[1])
    names: dict[str, object] = {}
    exec(compile(found[1], str(tmp_path / "dali.py"), "exec"), names)
    pipeline = names["pipe"]()  # type: ignore[operator]
    pipeline.build()
    jpeg = (Path(sklearn.datasets.__file__).parent / "images" / "flower.jpg").read_bytes()
    pipeline.feed_input("IMAGE", [np.frombuffer(jpeg, np.uint8)])
    (output,) = pipeline.run()
    assert np.array(output.as_tensor()).shape == (1, 3, 224, 224)
