"""One program at a time works in a run folder."""

import os
import socket
from pathlib import Path

from mobilenetv2.errors import ConfigError
from mobilenetv2.locks import Lock

LOCK_NAME = ".lock"


class RunLock:
    """An exclusive lock on a run folder."""

    def __init__(self, folder: Path) -> None:
        """Take the lock.

        Raises:
            ConfigError: another program holds it.
            OSError: the folder cannot be written.
        """
        path = folder / LOCK_NAME
        try:
            self._lock = Lock(path)
        except BlockingIOError:
            raise ConfigError(
                f"{folder}: another program is at work in this run ({_holder(path)}); wait for it, "
                "or name another folder"
            ) from None
        if self._lock.file is not None:
            self._lock.file.truncate(0)
            self._lock.file.write(f"process {os.getpid()} on {socket.gethostname()}")
            self._lock.file.flush()

    def release(self) -> None:
        """Give the lock back."""
        self._lock.release()


def _holder(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip() or "unknown"
    except OSError:  # it has just left
        return "unknown"
