"""The command fits the way in which the package was installed."""

import json
import re
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from mobilenetv2 import extras
from mobilenetv2.runtimes.installed import EXTRAS


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        (None, 'pip install "mobilenetv2[heic]"'),
        ("half a f", 'pip install "mobilenetv2[heic]"'),
        (
            {"url": "file:///home/a%20b/clone", "dir_info": {"editable": True}},
            'pip install -e "/home/a b/clone[heic]"',
        ),
        ({"url": "file:///home/clone", "dir_info": {}}, 'pip install "/home/clone[heic]"'),
        (
            {"url": "https://example.org/a.git", "vcs_info": {"vcs": "git", "commit_id": "1f"}},
            'pip install "mobilenetv2[heic] @ git+https://example.org/a.git@1f"',
        ),
        (
            {
                "url": "https://example.org/a.git",
                "vcs_info": {"vcs": "git", "commit_id": "1f", "requested_revision": "v1"},
                "subdirectory": "sub",
            },
            'pip install "mobilenetv2[heic] @ git+https://example.org/a.git@v1#subdirectory=sub"',
        ),
        (
            {"url": "file:///a/mobilenetv2.whl", "archive_info": {}},
            'pip install "mobilenetv2[heic] @ file:///a/mobilenetv2.whl"',
        ),
    ],
)
def test_from_where_it_came(origin: object, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = origin if isinstance(origin, str) or origin is None else json.dumps(origin)
    package = SimpleNamespace(read_text={"direct_url.json": text}.get)
    monkeypatch.setattr(extras, "distribution", {"mobilenetv2": package}.get)
    assert extras.pip_install("heic") == command


def test_not_installed_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def distribution(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(extras, "distribution", distribution)
    assert extras.pip_install("web") == 'pip install "mobilenetv2[web]"'


def test_pip_takes_every_extra_that_is_named() -> None:
    known = metadata.metadata("mobilenetv2").get_all("Provides-Extra") or []
    named = set()
    for file in Path(extras.__file__).parent.rglob("*.py"):
        named |= set(re.findall(r"pip_install\(.(\w+).\)", file.read_text(encoding="utf-8")))
    assert named >= {"heic", "keras", "tensorboard"}
    assert named | set(EXTRAS.values()) <= set(known)
