"""What clients are told while the repository changes under a server that polls it."""

from __future__ import annotations

from parity import polling
from parity.cases import Case, Grpc, get, infer, post, x_int
from parity.polling import Upheaval

FLAGS, FOLDERS, write = polling.FLAGS, polling.FOLDERS, polling.write
LOAD, UNLOAD = "/v2/repository/models/edited/load", "/v2/repository/models/edited/unload"


def questions(when: str) -> list[Case]:
    """Everything about every model, asked `when`."""
    # Unloads go on after a model's folder is gone, and count against readiness until they are over.
    ready: list[Case] = [] if when == "without a member" else [get(f"poll: ready {when}", "/v2/health/ready")]
    return [
        post(f"poll: index {when}", "/v2/repository/index", b""),
        post(f"poll: index of what is ready {when}", "/v2/repository/index", {"ready": True}),
        *ready,
        *(infer(f"poll: {when}", name, {"inputs": [x_int()]}) for name in polling.ASKED),
    ]


CASES: list[Case] = [
    Upheaval("poll: first polls", polling.settle),
    *questions("at the start"),
    post("poll: load is refused", LOAD, b""),
    post("poll: unload is refused", UNLOAD, b""),
    post("poll: load with a config is refused", LOAD, {"parameters": {"config": "{}"}}),
    Grpc("grpc poll: load is refused", "RepositoryModelLoad", {"model_name": "edited"}),
    Grpc("grpc poll: unload is refused", "RepositoryModelUnload", {"model_name": "edited"}),
    get("poll: statistics before the touch", "/v2/models/touched/stats"),
    Upheaval("poll: good changes", polling.good, (("edited", "second"), ("above", "second member"), ("late", "first"))),
    get("poll: statistics after the touch", "/v2/models/touched/stats"),
    *questions("after good changes"),
    Upheaval("poll: mistakes", polling.mistakes),
    *questions("after mistakes"),
    Upheaval("poll: bad changes", polling.bad),
    *questions("after bad changes"),
    Upheaval("poll: mended", polling.mended, (("edited", "third"), ("broken", "mended"), ("mistaken", "first"))),
    *questions("when all is mended"),
    Upheaval("poll: a member goes", polling.members),
    *questions("without a member"),
    Upheaval("poll: the member is back", polling.back, (("above", "third member"),)),
    *questions("at the end"),
    Grpc("grpc poll: index at the end", "RepositoryIndex"),
]
