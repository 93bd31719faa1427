"""Where things lie that can be had again: compiled operations, downloads, copies of networks."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$MOBILENETV2_CACHE``, else this program's part of the user's cache folder."""
    if chosen := os.environ.get("MOBILENETV2_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "mobilenetv2"
