"""The names of Triton's `tritonfrontend`: ports over a `conch.tritonserver.Server` (or `conch.Server`)."""

from conch.tritonfrontend.frontends import KServeGrpc, KServeHttp, Metrics

__all__ = ["KServeGrpc", "KServeHttp", "Metrics"]
