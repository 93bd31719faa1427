"""A page for a classifier, served on this computer and to this computer alone."""

import tempfile
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from rich.console import Console

from mobilenetv2.classifier import Classifier
from mobilenetv2.command_config import DemoConfig, ExportConfig, PageConfig
from mobilenetv2.data.named_sets import NAMES
from mobilenetv2.errors import ConfigError, ModelFileError, WorkFailed
from mobilenetv2.runtimes.installed import require
from mobilenetv2.shipping.drawing_style import SMALL
from mobilenetv2.shipping.export import export
from mobilenetv2.shipping.formats import Content
from mobilenetv2.shipping.held_out import ENOUGH, HeldOut, held_out
from mobilenetv2.shipping.onnx_file import OnnxFormat
from mobilenetv2.shipping.web_export import measured, page_name, style_of
from mobilenetv2.shipping.web_page import MODEL, Page, made_here, write_page
from mobilenetv2.shipping.web_runtime import check_assets
from mobilenetv2.training import load

HOST = "127.0.0.1"


def demo(config: DemoConfig, console: Console) -> None:
    """Serve a page until Ctrl-C.

    Args:
        config: what was asked for.
        console: for the address.

    Raises:
        ConfigError: the port is taken, or ``--assets`` lacks files.
        UserError: there is no classifier, or a library is missing.
    """
    with served(config, console) as server:
        address = f"http://{HOST}:{server.server_port}/"
        print(address, flush=True)
        console.print("for this computer only; Ctrl-C ends it", style="dim")
        if config.browser:
            webbrowser.open(address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            console.print("ended", style="dim")


@contextmanager
def served(config: DemoConfig, console: Console) -> Iterator[ThreadingHTTPServer]:
    """A server that is bound to its port; its page goes when the block ends."""
    folder = config.model
    tell = partial(console.print, style="dim", markup=False)
    classifier = None if made_here(folder) else load.load(folder, tell)
    if classifier is None and config.page != PageConfig():
        raise ConfigError(
            f"--assets and --sure: {folder} is a finished page, with a runtime and a rule of its "
            "own; name the model, or export the page anew"
        )
    if config.page.assets is not None:
        check_assets(config.page.assets)
    try:
        # Before the page is made, so that a port in use is told at once.
        server = ThreadingHTTPServer((HOST, config.port), PageHandler)
    except OSError as error:
        raise ConfigError(
            f"--port {config.port}: cannot be used ({error.strerror or error}); name another, or "
            "0 for any that is free"
        ) from error
    with server, tempfile.TemporaryDirectory(prefix="mobilenetv2-demo-") as name:
        if classifier is not None:
            folder = Path(name)
            make_page(config, classifier, folder, console)
        server.RequestHandlerClass = partial(PageHandler, directory=str(folder))
        yield server


def make_page(config: DemoConfig, classifier: Classifier, folder: Path, console: Console) -> None:
    """Write a page into ``folder``, proven where held-out pictures are quick to have."""
    require("onnx", "onnxruntime")
    pictures = _quick_pictures(classifier, config, console)
    model = folder / MODEL
    if pictures is None:
        OnnxFormat().write(Content(classifier), folder, model.stem)
        console.print(
            "not proven on held-out pictures: export --format web does that",
            style="dim",
        )
    else:
        as_onnx = ExportConfig(model=config.model)
        with tempfile.TemporaryDirectory() as name:  # the certificate is of no use to the page
            export(as_onnx, classifier, pictures, Path(name) / MODEL)
            model.write_bytes((Path(name) / MODEL).read_bytes())
        console.print(f"proven on {len(pictures)} pictures of {pictures.name}", style="dim")
    page = Page(
        name=page_name(config.model),
        classifier=classifier,
        sure=config.page.sure,
        drawing=style_of(classifier, pictures),
        measured=measured(model, classifier, pictures, config.page.sure) if pictures else None,
        assets=config.page.assets,
        offline=False,  # or the browser would keep the page when the program has ended
    )
    try:
        write_page(page, folder)
    except OSError as error:
        raise WorkFailed(f"{folder}: cannot be written ({error.strerror or error})") from error


def _quick_pictures(classifier: Classifier, config: DemoConfig, console: Console) -> HeldOut | None:
    """Some held-out pictures, unless they are not to be had or it takes long to decode them."""
    try:
        own = load.own_data(config.model, config.source.data_dir)
    except ModelFileError:
        return None
    wanted = classifier.preprocessing
    if own.data not in NAMES and max(wanted.height, wanted.width) > SMALL:
        return None
    try:
        found = held_out(classifier, config.model, None, config.source.data_dir)
    except ConfigError as error:
        console.print(str(error), style="dim", markup=False)
        return None
    return found.some(ENOUGH)  # a folder's are sorted by class


class PageHandler(SimpleHTTPRequestHandler):
    """Gives files of one folder to pages of this computer, and nothing else."""

    extensions_map = {  # noqa: RUF012 - the base class declares it so
        "": "application/octet-stream",
        ".html": "text/html; charset=utf-8",
        ".css": "text/css; charset=utf-8",
        ".js": "text/javascript; charset=utf-8",
        ".mjs": "text/javascript; charset=utf-8",
        ".json": "application/json",
        ".png": "image/png",
        ".svg": "image/svg+xml",
        ".wasm": "application/wasm",
        ".webmanifest": "application/manifest+json",
    }

    def send_head(self) -> Any:
        """As the base class, for requests that were really meant for this computer."""
        # A page elsewhere can point a name of its own at 127.0.0.1, but not change this header.
        host = self.headers.get("Host", "").rsplit(":", 1)[0]
        if host not in (HOST, "localhost"):
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST)
            return None
        # A page may come from a stranger, with links to what is not theirs to read.
        wanted = Path(self.translate_path(self.path))
        wanted = (wanted / "index.html" if wanted.is_dir() else wanted).resolve()
        if not wanted.is_relative_to(Path(self.directory).resolve()):
            self.send_error(HTTPStatus.NOT_FOUND)
            return None
        return super().send_head()

    def list_directory(self, path: Any) -> None:
        """Folders are not shown."""
        self.send_error(HTTPStatus.NOT_FOUND)

    def end_headers(self) -> None:
        """With what keeps browsers from remembering another model, or guessing types."""
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal is for the address."""
