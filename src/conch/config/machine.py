"""What this process may use of the machine."""

from __future__ import annotations

import math
import os
from pathlib import Path


def cpus(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """CPUs that may be used: the affinity mask, cut by the container's CPU quota (cgroup v2 or v1). At least 1."""
    allowed = len(os.sched_getaffinity(0))
    quota = _quota(cgroup)
    return max(1, min(allowed, math.ceil(quota))) if quota else allowed


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
