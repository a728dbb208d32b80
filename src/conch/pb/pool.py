"""The descriptor pool of our messages, apart from protobuf's default one.

Packages that define messages of the same full names (`tritonclient` is one) can then live in the same process.
"""

from __future__ import annotations

from typing import Final

from google.protobuf.descriptor_pool import DescriptorPool

POOL: Final = DescriptorPool()
