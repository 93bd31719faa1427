"""What to type for the optional libraries of this package."""

import json
from importlib.metadata import PackageNotFoundError, distribution
from urllib.parse import urlsplit
from urllib.request import url2pathname


def pip_install(extra: str) -> str:
    """The command that installs an extra, from where this package itself was installed.

    pip writes that down (``direct_url.json``, PEP 610). A package of an index has no such file.

    >>> pip_install("heic").startswith("pip install ")
    True
    """
    try:
        origin = json.loads(distribution("mobilenetv2").read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        origin = {}
    package, url = f"mobilenetv2[{extra}]", origin.get("url", "")
    if "dir_info" in origin:
        editable = "-e " if origin["dir_info"].get("editable") else ""
        return f'pip install {editable}"{url2pathname(urlsplit(url).path)}[{extra}]"'
    if vcs := origin.get("vcs_info"):
        url = f"{vcs['vcs']}+{url}@{vcs.get('requested_revision', vcs['commit_id'])}"
    if folder := origin.get("subdirectory"):
        url += f"#subdirectory={folder}"
    return f'pip install "{package} @ {url}"' if url else f'pip install "{package}"'
