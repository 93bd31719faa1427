"""Where things lie that can be had again: compiled operations, downloads, copies of networks."""

import os
from pathlib import Path

from mobilenetv2.errors import ConfigError


def cache_folder() -> Path:
    """``$MOBILENETV2_CACHE``, else this program's part of the user's cache folder.

    Raises:
        ConfigError: nobody knows where that is.
    """
    if chosen := os.environ.get("MOBILENETV2_CACHE"):
        return Path(chosen)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "mobilenetv2"
    try:
        return Path.home() / ".cache" / "mobilenetv2"
    except RuntimeError as error:
        raise ConfigError(
            "This user has no home folder for what can be had again; name a folder for it in the "
            "environment variable MOBILENETV2_CACHE"
        ) from error
