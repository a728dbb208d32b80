"""What this process may use of the machine."""

from __future__ import annotations

import math
import os
from pathlib import Path

from conch.config.flag_values import FlagValueError, cores
from conch.config.server import HostPolicy
from conch.types.error import invalid


def cpus(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """CPUs that may be used: the affinity mask, cut by the container's CPU quota (cgroup v2 or v1). At least 1."""
    allowed = len(os.sched_getaffinity(0))
    quota = _quota(cgroup)
    return max(1, min(allowed, math.ceil(quota))) if quota else allowed


def policy_cores(name: str, policy: HostPolicy, nodes: Path = Path("/sys/devices/system/node")) -> frozenset[int]:
    """The CPUs that the instances of a host policy run on. Raises InferError (INVALID_ARG) where there are none."""
    allowed = frozenset(os.sched_getaffinity(0))
    chosen = allowed
    if policy.cpu_cores:
        chosen = policy.cpu_cores
        if not chosen <= allowed:
            missing = ", ".join(map(str, sorted(chosen - allowed)[:8]))
            raise invalid(
                f"host policy '{name}' names CPU cores that this process cannot use: {missing}",
                f"it may use {', '.join(map(str, sorted(allowed)))}",
            )
    if policy.numa_node is not None:
        try:
            local = cores((nodes / f"node{policy.numa_node}" / "cpulist").read_text().strip())
        except (OSError, FlagValueError):
            raise invalid(
                f"host policy '{name}' names NUMA node {policy.numa_node}, which this machine has not"
            ) from None
        chosen = chosen & local
        if not chosen:
            raise invalid(f"host policy '{name}' leaves no CPU core: NUMA node {policy.numa_node} has others")
    return chosen


def _quota(cgroup: Path) -> float | None:
    try:
        limit, period = (cgroup / "cpu.max").read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        pass
    try:
        limit = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text()
        period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text()
        return int(limit) / int(period) if int(limit) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
