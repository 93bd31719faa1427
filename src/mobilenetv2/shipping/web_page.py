"""A page that runs a classifier in a browser: a folder of files for any web server.

The files that do not depend on the classifier lie in ``web/`` and are copied; what depends on it is
in ``page.json``. That file also lists the folder's files, which is how a page is known as ours.
"""

import hashlib
import html
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from PIL import Image, ImageDraw

from mobilenetv2.classifier import Classifier
from mobilenetv2.shipping import web_runtime
from mobilenetv2.shipping.drawing_style import SMALL, DrawingStyle
from mobilenetv2.shipping.web_runtime import BESIDE_THE_PAGE, ON_CDN, WebRuntime

MODEL, ABOUT, MANIFEST, WORKER = (
    "model.onnx", "page.json", "manifest.webmanifest", "service-worker.js",
)  # fmt: skip
ICON, DRAWN_ICON = "icon.svg", "icon-512.png"
COPIED = (
    "page.css", "page.js", "picture.js", "drawing.js", "camera.js", "network.js", "words.js", ICON,
)  # fmt: skip
MAKER = "mobilenetv2"


@dataclass(frozen=True)
class Measured:
    """What the rule for "not sure" does to pictures that the network did not learn from.

    Attributes:
        data: which pictures.
        pictures: how many.
        accuracy: over all of them, without the rule.
        answered: share that gets an answer.
        right: share of these answers that is right.
    """

    data: str
    pictures: int
    accuracy: float
    answered: float
    right: float


@dataclass(frozen=True)
class Page:
    """What a page is about.

    Attributes:
        name: heading of the page.
        classifier: gives labels and preparation; the network itself is in the ONNX file.
        sure: least probability of an answer.
        drawing: what drawings look like; None for a classifier of photos.
        measured: what ``sure`` does; None where nobody tried.
        assets: folder with ONNX Runtime Web to copy; None to load it from its CDN.
        offline: whether browsers keep the page.
    """

    name: str
    classifier: Classifier
    sure: float
    drawing: DrawingStyle | None = None
    measured: Measured | None = None
    assets: Path | None = None
    offline: bool = True


def write_page(page: Page, folder: Path) -> None:
    """Write everything else into a folder that holds the model."""
    runtime = ON_CDN if page.assets is None else BESIDE_THE_PAGE
    if page.assets is not None:
        web_runtime.copy_assets(page.assets, folder)
    for name in COPIED:
        (folder / name).write_bytes(_source(name))
    _draw_icon(_source(ICON).decode()).save(folder / DRAWN_ICON)
    _write_json(folder / MANIFEST, _manifest(page))
    names = [*files_of(folder), ABOUT, "index.html", WORKER]
    _write_json(folder / ABOUT, _about(page, runtime, folder, names))
    release = _release(folder)
    filled = {
        "name": html.escape(page.name),
        "policy": html.escape(policy(runtime)),
        "release": release,
    }
    (folder / "index.html").write_bytes(_filled("index.html", filled))
    kept = json.dumps(_kept(runtime, names), indent=2)
    (folder / WORKER).write_bytes(_filled(WORKER, {"release": release, "files": kept}))


def files_of(folder: Path) -> list[str]:
    """Every file below a folder, as a path from it with slashes, sorted."""
    files = (file for file in folder.rglob("*") if not file.is_dir() or file.is_symlink())
    return sorted(file.relative_to(folder).as_posix() for file in files)


def made_here(folder: Path) -> bool:
    """Whether a folder holds a page that this program made."""
    about = _read_about(folder)
    return str(about.get("made_by", "")).startswith(f"{MAKER} ") and "files" in about


def strangers(folder: Path) -> list[str]:
    """Files in a page's folder that were put there by somebody else."""
    own = set(map(str, _read_about(folder).get("files", [])))
    return [name for name in files_of(folder) if name not in own]


def policy(runtime: WebRuntime) -> str:
    """The Content-Security-Policy: nothing but the page's own files and the runtime.

    The CDN gives bytes, never scripts: the page checks them and makes a module of them (``blob:``).
    """
    rules = {
        "default-src": "'none'",
        "script-src": "'self' blob: 'wasm-unsafe-eval'",
        "connect-src": "'self'" if runtime.local else f"'self' {runtime.base}",
        "style-src": "'self'",
        "img-src": "'self'",
        "manifest-src": "'self'",
        "worker-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def _about(page: Page, runtime: WebRuntime, folder: Path, names: list[str]) -> dict[str, Any]:
    from mobilenetv2 import __version__

    wanted = page.classifier.preprocessing
    model = folder / MODEL
    drawing = None
    if page.drawing is not None:
        drawing = asdict(page.drawing) | {"first": max(wanted.height, wanted.width) <= SMALL}
    return {
        "made_by": f"{MAKER} {__version__}",
        "name": page.name,
        "labels": list(page.classifier.labels),
        "input": {
            "colour": wanted.colour,
            "height": wanted.height,
            "width": wanted.width,
            "resize": wanted.resize,
            "margin": max(0, wanted.resize - min(wanted.height, wanted.width)),
        },
        "drawing": drawing,
        "sure": page.sure,
        "proof": None if page.measured is None else asdict(page.measured),
        "offline": page.offline,
        "model": {
            "file": MODEL,
            "bytes": model.stat().st_size,
            "integrity": web_runtime.integrity(model),
        },
        "runtime": {
            "version": web_runtime.VERSION,
            "script": runtime.file(web_runtime.SCRIPT),
            "wasm": runtime.file(web_runtime.WASM),
            "bytes": web_runtime.BYTES,
        },
        "files": sorted(names),
    }


def _manifest(page: Page) -> dict[str, Any]:
    return {
        "name": page.name,
        "short_name": page.name[:12],
        "start_url": "./",
        "scope": "./",
        "display": "standalone",
        "background_color": "#f5f6f8",
        "theme_color": "#2457d6",
        "icons": [
            {"src": ICON, "sizes": "any", "type": "image/svg+xml"},
            {
                "src": DRAWN_ICON,
                "sizes": "512x512",
                "type": "image/png",
                "purpose": "any maskable",
            },
        ],
    }


def _kept(runtime: WebRuntime, names: list[str]) -> list[dict[str, str]]:
    """What the service worker keeps: all that there is, except itself."""
    files = map(runtime.file, web_runtime.DIGESTS)
    pinned = {one["file"]: {"integrity": one["integrity"]} for one in files}
    own = [name for name in sorted(names) if name != WORKER]
    return [{"url": url} | pinned.get(url, {}) for url in dict.fromkeys([*own, *pinned])]


def _release(folder: Path) -> str:
    """Another one for every change of any file, and of the files that hold it."""
    digest = hashlib.sha256()
    for name in files_of(folder):
        digest.update(f"{name}\0{web_runtime.integrity(folder / name)}\n".encode())
    for name in ("index.html", WORKER):
        digest.update(_source(name))
    return digest.hexdigest()[:24]


def _source(name: str) -> bytes:
    return resources.files("mobilenetv2.shipping").joinpath("web", name).read_bytes()


def _filled(name: str, values: Mapping[str, str]) -> bytes:
    """A file with its ``{{places}}`` filled in."""
    text = _source(name).decode()
    for place, value in values.items():
        text = text.replace("{{" + place + "}}", value)
    return text.encode()


def _draw_icon(svg: str, side: int = 512, finer: int = 4) -> Image.Image:
    """The icon's rectangles as pixels, its ground without round corners: devices cut their own."""
    rectangles = [one.attrib for one in ElementTree.fromstring(svg) if one.tag.endswith("rect")]
    scale = side * finer / float(rectangles[0]["width"])
    image = Image.new("RGB", (side * finer, side * finer), rectangles[0]["fill"])
    pen = ImageDraw.Draw(image)
    for one in rectangles[1:]:
        x, y, width, height, radius = (
            float(one[key]) * scale for key in ("x", "y", "width", "height", "rx")
        )
        pen.rounded_rectangle((x, y, x + width, y + height), radius, fill=one["fill"])
    return image.resize((side, side), Image.Resampling.LANCZOS)


def _read_about(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _write_json(path: Path, value: Any) -> None:
    # In ASCII, so that labels from folder names in a broken encoding can be written too.
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="ascii")
