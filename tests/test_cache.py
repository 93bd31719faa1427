"""Where things lie that can be had again."""

from pathlib import Path

import pytest

from mobilenetv2.cache import cache_folder
from mobilenetv2.errors import ConfigError


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOBILENETV2_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/mobilenetv2")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_folder() == Path("/home/someone/.cache/mobilenetv2")
    monkeypatch.setenv("MOBILENETV2_CACHE", "/elsewhere")
    assert cache_folder() == Path("/elsewhere")


def test_without_a_home_it_has_to_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    for name in ("MOBILENETV2_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="MOBILENETV2_CACHE"):
        cache_folder()
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/mobilenetv2")
