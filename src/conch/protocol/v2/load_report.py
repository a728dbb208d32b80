"""The header `endpoint-load-metrics` of answers to generate requests, for balancers that ask for it (ORCA)."""

from __future__ import annotations

import logging
from collections.abc import Mapping

_log = logging.getLogger("conch")


def load_header(headers: Mapping[str, str], blocks: Mapping[str, float]) -> bytes:
    """The header line, or nothing where it is not asked for or cannot be given.

    `headers` are the request's, with lower-case names. `blocks` is the gauge `nv_trt_llm_kv_cache_block_metrics` by its
    label `kv_cache_block_type`; empty where no model reports it.
    """
    wanted = headers.get("endpoint-load-metrics-format")
    if wanted is None:
        return b""
    if not {"used", "max", "tokens_per"} <= blocks.keys():
        _log.error("endpoint-load-metrics: no model reports its KV cache blocks")
        return b""
    most = blocks["max"]
    utilization = blocks["used"] / most if most > 0 else 0.0
    capacity = int(most * blocks["tokens_per"])
    if wanted == "json":
        named = f'"kv_cache_utilization":{utilization:g},"max_token_capacity":{capacity}'
        value = f'JSON {{"named_metrics":{{{named}}}}}'
    elif wanted == "text":
        value = f"TEXT named_metrics.kv_cache_utilization={utilization:f}, named_metrics.max_token_capacity={capacity}"
    else:
        _log.error("endpoint-load-metrics: the format %r is neither json nor text", wanted[:40])
        return b""
    return f"endpoint-load-metrics: {value}\r\n".encode()
