"""One program at a time works in a run folder."""

import os
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO

from mobilenetv2.errors import ConfigError

if sys.platform != "win32":
    import fcntl

LOCK_NAME = ".lock"


class RunLock:
    """An exclusive lock on a run folder. The system takes it back from a process that dies.

    Where the system or the drive has no locks, this does nothing.
    """

    def __init__(self, folder: Path) -> None:
        """Take the lock.

        Raises:
            ConfigError: another program holds it.
            OSError: the folder cannot be written.
        """
        self._path = folder / LOCK_NAME
        self._file: IO[str] | None = None
        if sys.platform == "win32":
            return
        while True:
            file = self._path.open("a+", encoding="utf-8")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read().strip() or "unknown"
                file.close()
                raise ConfigError(
                    f"{folder}: another program is at work in this run ({holder}); wait for it, or "
                    "name another folder"
                ) from None
            except OSError:
                file.close()
                return
            if self._is_in_place(file):
                break
            file.close()  # its holder has deleted it since it was opened
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        self._file = file

    def release(self) -> None:
        """Give the lock back."""
        if self._file is not None:
            with suppress(OSError):
                self._path.unlink()
            self._file.close()
            self._file = None

    def _is_in_place(self, file: IO[str]) -> bool:
        try:
            return os.path.samestat(self._path.stat(), os.fstat(file.fileno()))
        except FileNotFoundError:
            return False
