"""The run that a new one overwrites: kept aside until there is something to put in its place."""

import shutil
from collections.abc import Iterable
from pathlib import Path

REPLACED = ".replaced"
"""Name of the folder inside the run's."""


class ReplacedRun:
    """The files of the run that lay in a folder before, in a folder inside it."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._aside = run / REPLACED

    def set_aside(self, files: Iterable[Path]) -> None:
        """Move the files that are there, in this order.

        If some lie aside already, a new run was killed before it began: those are still the ones
        to keep, and what that run has left is nothing.
        """
        present = [file for file in files if file.exists()]
        if self._aside.exists():
            for file in present:
                file.unlink()
        elif present:
            self._aside.mkdir()
            for file in present:
                file.replace(self._aside / file.name)

    def bring_back(self) -> None:
        """The new run failed before it began: all is as it was."""
        if self._aside.exists():
            for file in self._aside.iterdir():
                file.replace(self._run / file.name)
            self._aside.rmdir()

    def forget(self) -> None:
        """Remove the files."""
        if self._aside.exists():
            shutil.rmtree(self._aside, ignore_errors=True)
