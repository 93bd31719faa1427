"""ONNX Runtime Web, pinned: where a page gets it from, and what makes sure that it is the one.

The digests are those of the files in the npm package, so that neither a delivery network nor a
local copy can put anything else into a page.
"""

import base64
import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from mobilenetv2.errors import ConfigError

VERSION = "1.30.0"
CDN = "https://cdn.jsdelivr.net"
SCRIPT = "ort.wasm.bundle.min.mjs"
WASM = "ort-wasm-simd-threaded.wasm"
DIGESTS = {
    SCRIPT: "sha384-PLWz+nHEVHpjwBsO0YVdvQj6n5814Iv8E3b8FG0Rp/uIAtjFMCKOpP66iPzedrIG",
    WASM: "sha384-vjBJ1z7qrhkTyYsNqKeF6c7N+nOJSU94czEo+tvZcu8G75JparGq9kB+kTnEUNVM",
}
"""The files of the runtime, as `integrity` attributes state them."""
BYTES = 73_054 + 14_239_897
FOLDER = f"onnxruntime-web-{VERSION}"
HOW_TO_GET = (
    f"`npm pack onnxruntime-web@{VERSION}`, unpack the archive, and name its folder package/dist"
)


@dataclass(frozen=True)
class WebRuntime:
    """Where the runtime of a page lies.

    Attributes:
        base: address of the folder that holds the files, with a slash at its end.
    """

    base: str

    @property
    def local(self) -> bool:
        """Whether it lies beside the page."""
        return not self.base.startswith("https:")

    def file(self, name: str) -> dict[str, str]:
        """Address and digest of one of its files."""
        return {"file": self.base + name, "integrity": DIGESTS[name]}


ON_CDN = WebRuntime(f"{CDN}/npm/onnxruntime-web@{VERSION}/dist/")
BESIDE_THE_PAGE = WebRuntime(f"{FOLDER}/")


def check_assets(assets: Path) -> None:
    """Make sure that a folder holds the runtime.

    Raises:
        ConfigError: names the files that are missing or of another version, and where to get them.
    """
    missing = [name for name in DIGESTS if not (assets / name).is_file()]
    if missing:
        raise ConfigError(f"--assets {assets}: lacks {', '.join(missing)}; {HOW_TO_GET}")
    try:
        other = [name for name in DIGESTS if integrity(assets / name) != DIGESTS[name]]
    except OSError as error:
        raise ConfigError(f"--assets {assets}: cannot be read ({error.strerror})") from error
    if other:
        raise ConfigError(
            f"--assets {assets}: {', '.join(other)}: not the file of onnxruntime-web {VERSION}; "
            f"{HOW_TO_GET}"
        )


def copy_assets(assets: Path, page: Path) -> None:
    """Put the runtime beside a page."""
    (page / FOLDER).mkdir()
    for name in DIGESTS:
        shutil.copyfile(assets / name, page / FOLDER / name)


def integrity(file: Path) -> str:
    """The digest of a file as an `integrity` attribute states it."""
    digest = hashlib.sha384(file.read_bytes()).digest()
    return f"sha384-{base64.b64encode(digest).decode()}"
