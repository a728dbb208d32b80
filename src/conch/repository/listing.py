"""Which models a storage holds, as it was last seen; a storage that cannot be asked holds what it held."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from conch.repository.bucket import Bucket
from conch.repository.local import is_name
from conch.types.error import InferError, internal

log = logging.getLogger("conch.repository")

#: Seconds for which a listing counts as what there is now.
FRESH_SECONDS: Final = 1.0


class Listing:
    """All calls from any thread; `names` does not wait on an event loop's."""

    def __init__(self, bucket: Bucket, clock: Callable[[], float]) -> None:
        self._bucket = bucket
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: frozenset[str] = frozenset()
        self._seen_at = float("-inf")
        #: What the log was told last, empty when all is well.
        self._told = ""
        self._asking = False
        self._asker = ThreadPoolExecutor(1, "conch-listing")

    def names(self) -> frozenset[str]:
        if self._clock() - self._seen_at > FRESH_SECONDS:
            if _on_a_loop():
                self._ask_soon()
            else:
                self._ask_again()
        return self._seen

    def last(self) -> frozenset[str]:
        return self._seen

    def ask(self) -> None:
        """Raises InferError when the storage cannot be asked or has no such bucket."""
        try:
            found = self._bucket.folders()
        except (InferError, FileNotFoundError) as error:
            with self._lock:
                # Who asks next shall not wait as long as we did.
                self._seen_at = self._clock()
            raise (self._gone() if isinstance(error, FileNotFoundError) else error) from None
        self.note(found)

    def note(self, folders: Iterable[str]) -> None:
        """These are what there is now."""
        with self._lock:
            self._seen = frozenset(name for name in folders if is_name(name))
            self._seen_at, self._told = self._clock(), ""

    def tell(self, raised: InferError | FileNotFoundError) -> None:
        """Log it, once until it is over or another thing is the matter: polls ask again and again."""
        error = self._gone() if isinstance(raised, FileNotFoundError) else raised
        with self._lock:
            told, self._told = self._told, error.message
        if told != error.message:
            log.warning("%s", error.message)

    def forget_time(self) -> None:
        """The next question goes to the storage."""
        with self._lock:
            self._seen_at = float("-inf")

    def close(self) -> None:
        self._asker.shutdown(wait=False, cancel_futures=True)

    def _ask_again(self) -> None:
        try:
            self.ask()
        except InferError as error:
            # A cut wire must not unload models.
            self.tell(error)

    def _ask_soon(self) -> None:
        with self._lock:
            if self._asking:
                return
            self._asking = True

        def work() -> None:
            try:
                self._ask_again()
            finally:
                with self._lock:
                    self._asking = False

        try:
            self._asker.submit(work)
        except RuntimeError:
            # The server stops; nobody needs to know any more.
            return

    def _gone(self) -> InferError:
        url = self._bucket.url
        return internal(
            f"failed to read model repository {url}: there is no bucket '{url.bucket}'",
            "check the URL; who may not list a bucket may be told that it is not there",
        )


def _on_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
