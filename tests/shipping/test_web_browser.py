"""The page in a real browser: headless Chromium, local files, no network.

Needs `pip install "mobilenetv2[browser]"`, a Chromium, and npm once, to fetch ONNX Runtime Web
(MOBILENETV2_WEB_ASSETS names a folder that holds it already).
"""

import contextlib
import json
import math
import os
import shutil
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mobilenetv2
from mobilenetv2.classifier import Classifier
from mobilenetv2.config import NetworkConfig, Preprocessing
from mobilenetv2.shipping import web_runtime
from mobilenetv2.shipping.demo import PageHandler
from mobilenetv2.shipping.formats import Content
from mobilenetv2.shipping.onnx_file import OnnxFormat
from mobilenetv2.shipping.web_page import MODEL, Page, write_page

pytestmark = pytest.mark.slow
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
pytest.importorskip("onnxruntime")

RunCli = Callable[..., tuple[int, str, str]]
Strokes = list[list[tuple[float, float]]]
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--use-fake-device-for-media-stream",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # whatever it asks for elsewhere
]  # fmt: skip
READY = "body[data-state=ready]"


def arc(x: float, y: float, across: float, down: float, start: int, end: int) -> Any:
    """Points on an ellipse, degrees clockwise from the right."""
    angles = [math.radians(start + (end - start) * step / 24) for step in range(25)]
    return [(x + across * math.cos(angle), y + down * math.sin(angle)) for angle in angles]


DIGITS: dict[str, Strokes] = {
    "0": [arc(0.5, 0.5, 0.2, 0.32, -90, 270)],
    "1": [[(0.42, 0.28), (0.52, 0.16), (0.52, 0.84)]],
    "2": [[*arc(0.5, 0.33, 0.2, 0.17, 180, 395), (0.3, 0.84), (0.72, 0.84)]],
    "3": [arc(0.48, 0.33, 0.19, 0.17, 200, 450) + arc(0.48, 0.67, 0.21, 0.18, -90, 160)],
    # The 7 of this data set has a bar, as its writers learned it.
    "7": [[(0.28, 0.18), (0.72, 0.18), (0.45, 0.85)], [(0.36, 0.5), (0.68, 0.5)]],
}


@pytest.fixture(scope="session")
def assets() -> Path:
    """The pinned runtime, fetched once."""
    given = os.environ.get("MOBILENETV2_WEB_ASSETS")
    if given:
        return Path(given)
    name = f"onnxruntime-web-{web_runtime.VERSION}"
    cache = Path(tempfile.gettempdir()) / f"mobilenetv2-{name}"
    if not (cache / "package/dist" / web_runtime.WASM).is_file():
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip("there is no npm to fetch onnxruntime-web with")
        cache.mkdir(exist_ok=True)
        fetched = subprocess.run(
            [npm, "pack", f"onnxruntime-web@{web_runtime.VERSION}"],
            cwd=cache, capture_output=True, check=False, timeout=300,
        )  # fmt: skip
        if fetched.returncode:
            pytest.skip("npm cannot fetch onnxruntime-web")
        with tarfile.open(cache / f"{name}.tgz") as archive:
            safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Python 3.11.4
            archive.extractall(cache, **safely)
    return cache / "package/dist"


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if program is None:
        pytest.skip("there is no Chromium")
    with playwright.sync_playwright() as tools:
        started = tools.chromium.launch(executable_path=program, args=FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "digits"
    settings: dict[str, Any] = {"epochs": 8, "width": 0.5, "fast_ops": "off"}
    mobilenetv2.train(mobilenetv2.configure("digits", out=out, **settings))
    return out


@pytest.fixture
def digits_page(digits_run: Path, assets: Path, tmp_path: Path, run_cli: RunCli) -> Path:
    """The exported folder of a trained classifier, with everything beside it."""
    out = tmp_path / "digits-page"
    command = ("export", digits_run, "--format", "web", "--assets", assets, "--out", out)
    code, _, error = run_cli(*command, "--quiet")
    assert (code, error) == (0, "")
    return out


def write_unproven(classifier: Classifier, folder: Path, **facts: Any) -> Path:
    folder.mkdir()
    OnnxFormat().write(Content(classifier), folder, "model")
    write_page(Page(**({"name": "a page", "classifier": classifier, "sure": 0.6} | facts)), folder)
    return folder


@contextlib.contextmanager
def server_of(folder: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """Address of a folder, and what ends its server early."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(PageHandler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def end() -> None:
        server.shutdown()
        thread.join()
        server.server_close()

    ended = False
    try:

        def once() -> None:
            nonlocal ended
            ended = True
            end()

        yield f"http://127.0.0.1:{server.server_port}/", once
    finally:
        if not ended:
            end()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """A function that opens an address in a browser of its own; complaints fail the test."""
    contexts, complaints, foreign = [], [], []

    def open_page(
        address: str, *, ready: str = READY, complains: bool = False, **settings: Any
    ) -> Any:
        context = browser.new_context(**settings)
        contexts.append(context)
        tab = context.new_page()
        if not complains:
            tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        context.on("request", lambda request: foreign.append(request.url)
                   if not request.url.startswith((address, "blob:")) else None)  # fmt: skip
        tab.goto(address)
        tab.wait_for_selector(ready)
        return tab

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
    assert foreign == [] or all(url.startswith(web_runtime.CDN) for url in foreign)


def draw(tab: Any, strokes: Strokes, scale: float = 1, left: float = 0, top: float = 0) -> None:
    box = tab.locator("#paper").bounding_box()
    for stroke in strokes:
        places = [
            (
                box["x"] + box["width"] * (left + scale * x),
                box["y"] + box["height"] * (top + scale * y),
            )
            for x, y in stroke
        ]
        tab.mouse.move(*places[0])
        tab.mouse.down()
        for place in places[1:]:
            tab.mouse.move(*place, steps=2)
        tab.mouse.up()


def answer(tab: Any, *, settled: int = 300) -> tuple[str, float]:
    tab.wait_for_selector("#answer[data-label]")
    tab.wait_for_timeout(settled)
    data = tab.evaluate("({...document.getElementById('answer').dataset})")
    return data["label"], float(data["probability"])


# ------------------------------------------------------------------------ drawings


def test_drawn_digits_are_recognised(digits_page: Path, visit: Callable[..., Any]) -> None:
    with server_of(digits_page) as (address, _):
        tab = visit(address)
        assert tab.locator("#tab-draw").get_attribute("aria-selected") == "true"
        for digit, strokes in DIGITS.items():
            draw(tab, strokes)
            large = answer(tab)
            assert large[0] == digit
            assert tab.locator("#verdict").text_content() in (digit, "Not sure")
            tab.click("#clear")
            assert tab.locator("#answer.empty").count() == 1
            # Where on the sheet, and how large, makes no difference.
            draw(tab, strokes, scale=0.4, left=0.55, top=0.05)
            assert answer(tab) == pytest.approx(large, abs=0.02)
            tab.click("#clear")
            tab.wait_for_timeout(300)  # an answer that comes late stays away
            assert tab.locator("#answer.empty").count() == 1
        draw(tab, DIGITS["1"])
        draw(tab, [[(0.1, 0.1), (0.9, 0.9)]])
        answer(tab)
        tab.click("#undo")
        assert answer(tab)[0] == "1"
        assert "ms" in tab.locator("#time").text_content()
        assert tab.locator("#bars li").count() == 5
        tab.wait_for_timeout(900)
        assert tab.locator("#live").text_content().startswith("1, ")


def test_it_can_be_used_with_keys_alone(digits_page: Path, visit: Callable[..., Any]) -> None:
    with server_of(digits_page) as (address, _):
        tab = visit(address)
        tab.keyboard.press("Tab")
        assert tab.evaluate("document.activeElement.id") == "tab-draw"
        tab.keyboard.press("ArrowRight")
        assert tab.evaluate("document.activeElement.id") == "tab-picture"
        assert tab.locator("#panel-picture").is_visible()
        tab.keyboard.press("Tab")
        assert tab.evaluate("document.activeElement.id") == "choose"
        tab.keyboard.press("Shift+Tab")
        tab.keyboard.press("Home")
        tab.keyboard.press("Tab")
        assert tab.evaluate("document.activeElement.id") == "paper"
        outline = "getComputedStyle(document.activeElement).outlineStyle"
        assert tab.evaluate(outline) == "solid"
        tab.keyboard.press("ArrowUp")
        tab.keyboard.press(" ")
        for _ in range(24):
            tab.keyboard.press("ArrowDown")
        tab.keyboard.press(" ")
        assert answer(tab)[0] == "1"
        tab.keyboard.press("Control+z")
        assert tab.locator("#answer.empty").count() == 1


# ------------------------------------------------------------------------ pictures


def photo_classifier() -> Classifier:
    """Untrained, and so that small differences of a picture show."""
    torch.manual_seed(1)
    wanted = Preprocessing(
        colour="rgb", height=48, width=40, resize=50, mean=(0.5, 0.4, 0.3), std=(0.3, 0.25, 0.2)
    )
    classifier = Classifier.create(NetworkConfig(width=0.1), wanted, ("dark", "light"))
    torch.nn.init.normal_(classifier.network.classifier[1].weight, 0, 1)
    return classifier


def test_an_uploaded_picture_as_predict_answers(
    digits_run: Path, digits_page: Path, assets: Path, tmp_path: Path, visit: Callable[..., Any]
) -> None:
    photos = photo_classifier()
    photo_page = write_unproven(photos, tmp_path / "photo-page", assets=assets)
    random = np.random.default_rng(0)
    smooth = random.integers(0, 256, (7, 9, 3), dtype=np.uint8)
    files = []
    for number, size in enumerate([(640, 480), (61, 203), (40, 48), (9, 7)]):
        files.append(tmp_path / f"{number}.png")
        Image.fromarray(smooth).resize(size, Image.Resampling.BICUBIC).save(files[-1])
    transparent = Image.fromarray(smooth).resize((200, 150)).convert("RGBA")
    transparent.putalpha(Image.linear_gradient("L").resize((200, 150)))
    files.append(tmp_path / "transparent.png")
    transparent.save(files[-1])
    for classifier, folder in ((mobilenetv2.load(digits_run), digits_page), (photos, photo_page)):
        with server_of(folder) as (address, _):
            tab = visit(address)
            for file in files:
                tab.click("#tab-picture")
                tab.evaluate("delete document.getElementById('answer').dataset.label")
                tab.set_input_files("#file", str(file))
                (expected,) = classifier.predict(file)
                label, probability = answer(tab)
                assert label == expected[0].label, file.name
                assert probability == pytest.approx(expected[0].probability, abs=1e-3), file.name
                assert file.name in tab.locator("#picture-note").text_content()


def test_a_sideways_photo_and_other_ways_in(
    assets: Path, tmp_path: Path, visit: Callable[..., Any]
) -> None:
    classifier = photo_classifier()
    folder = write_unproven(classifier, tmp_path / "page", assets=assets)
    pixels = np.random.default_rng(3).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((90, 70), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6
    file = tmp_path / "sideways.jpg"
    image.save(file, quality=100, subsampling=0, exif=exif)
    (expected,) = classifier.predict(file)
    (lying,) = classifier.predict(image)
    assert abs(lying[0].probability - expected[0].probability) > 0.02 or lying != expected
    with server_of(folder) as (address, _):
        tab = visit(address)
        tab.set_input_files("#file", str(file))
        label, probability = answer(tab)
        assert (label, probability) == (
            expected[0].label, pytest.approx(expected[0].probability, abs=0.01),
        )  # fmt: skip
        assert "70×90" in tab.locator("#picture-note").text_content()
        for event, holder in (("drop", "dataTransfer"), ("paste", "clipboardData")):
            tab.evaluate("delete document.getElementById('answer').dataset.label")
            tab.evaluate(
                """async ([event, holder, bytes]) => {
                    const moved = new DataTransfer();
                    const file = new File([new Uint8Array(bytes)], "x.jpg", {type: "image/jpeg"});
                    moved.items.add(file);
                    const kind = event === "drop" ? DragEvent : ClipboardEvent;
                    document.dispatchEvent(new kind(event, {[holder]: moved, bubbles: true}));
                }""",
                [event, holder, list(file.read_bytes())],
            )
            assert answer(tab) == (label, pytest.approx(probability, abs=1e-6))
        # A large picture that was asked for first, and takes longest, does not win.
        large = tmp_path / "large.png"
        Image.new("RGB", (5000, 5000), "white").save(large)
        tab.evaluate(
            """async (files) => {
                for (const [name, bytes] of files) {
                    const moved = new DataTransfer();
                    moved.items.add(new File([new Uint8Array(bytes)], name));
                    const event = new DragEvent("drop", {dataTransfer: moved, bubbles: true});
                    document.dispatchEvent(event);
                }
            }""",
            [["large.png", list(large.read_bytes())], ["small.jpg", list(file.read_bytes())]],
        )
        tab.wait_for_timeout(3000)
        assert "small.jpg · 70×90" in tab.locator("#picture-note").text_content()
        no_picture = tmp_path / "broken.png"
        no_picture.write_text("no picture")
        tab.set_input_files("#file", str(no_picture))
        tab.wait_for_selector("#picture-note[role=alert]")
        assert "broken.png: this browser cannot" in tab.locator("#picture-note").text_content()


def test_labels_are_text_and_doubt_is_said(
    assets: Path, tmp_path: Path, visit: Callable[..., Any]
) -> None:
    evil = "<img src=x onerror=alert(1)>"
    wanted = Preprocessing(
        colour="rgb", height=16, width=16, resize=16, mean=(0,) * 3, std=(1,) * 3
    )
    classifier = Classifier.create(NetworkConfig(width=0.1), wanted, (evil, evil + "2"))
    folder = write_unproven(classifier, tmp_path / "page", assets=assets, sure=1.0, name=evil)
    file = tmp_path / "x.png"
    Image.new("RGB", (30, 30), "red").save(file)
    with server_of(folder) as (address, _):
        tab = visit(address)
        tab.on("dialog", lambda dialog: pytest.fail(dialog.message))
        tab.set_input_files("#file", str(file))
        assert answer(tab)[0] in (evil, evil + "2")
        assert tab.locator("#verdict").text_content() == "Not sure"
        assert tab.locator("#remark").text_content().startswith(f"perhaps {evil}")
        assert tab.locator("h1").text_content() == evil
        assert tab.locator("img").count() == 1
        assert tab.locator("#tab-draw").is_hidden()


# ------------------------------------------------------------------------ the camera


def test_the_camera(digits_page: Path, visit: Callable[..., Any]) -> None:
    with server_of(digits_page) as (address, _):
        tab = visit(address)
        tab.click("#tab-camera")
        tab.click("#start")
        tab.wait_for_selector("#camera-note:not(:empty)")
        assert "The camera was refused" in tab.locator("#camera-note").text_content()
        assert tab.locator("#start").text_content() == "Start the camera"

        tab = visit(address, permissions=["camera"])
        tab.click("#tab-camera")
        tab.click("#start")
        answer(tab)
        first = tab.locator("#time").text_content()
        tab.wait_for_timeout(1500)
        assert tab.evaluate("document.getElementById('video').srcObject.active")
        assert "ms" in first
        tab.click("#tab-draw")
        assert tab.evaluate("document.getElementById('video').srcObject === null")
        assert tab.locator("#answer.empty").count() == 1


def test_two_clicks_are_one_camera(digits_page: Path, visit: Callable[..., Any]) -> None:
    with server_of(digits_page) as (address, _):
        tab = visit(address, permissions=["camera"])
        tab.evaluate("""() => {
          const { mediaDevices } = navigator, give = mediaDevices.getUserMedia.bind(mediaDevices);
          window.tracks = [];
          mediaDevices.getUserMedia = async (wanted) => {
            const stream = await give(wanted);
            window.tracks.push(...stream.getTracks());
            await new Promise((resolve) => setTimeout(resolve, 300)); // the user reads
            return stream;
          };
        }""")
        tab.click("#tab-camera")
        tab.click("#start", click_count=2)
        answer(tab)
        live = "tracks.map((track) => track.readyState)"
        assert sorted(tab.evaluate(live)) == ["ended", "live"]
        assert tab.locator("#start").text_content() == "Stop"
        tab.click("#start")
        assert tab.evaluate(live) == ["ended", "ended"]
        assert tab.locator("#start").text_content() == "Start the camera"


# ------------------------------------------------------------------------ the network


def test_it_works_without_a_network_after_the_first_visit(
    digits_page: Path, visit: Callable[..., Any]
) -> None:
    with server_of(digits_page) as (address, end):
        tab = visit(address)
        tab.evaluate("navigator.serviceWorker.ready.then(() => true)")
        end()
        tab.context.set_offline(True)
        tab.reload()
        tab.wait_for_selector(READY)
        draw(tab, DIGITS["0"])
        assert answer(tab)[0] == "0"


def test_a_new_release_takes_the_place_of_the_old_one(
    assets: Path, tmp_path: Path, visit: Callable[..., Any]
) -> None:
    folder = write_unproven(photo_classifier(), tmp_path / "page", assets=assets, name="old")
    newer = write_unproven(photo_classifier(), tmp_path / "newer", assets=assets, name="new")
    with server_of(folder) as (address, end):
        tab = visit(address)
        tab.evaluate("navigator.serviceWorker.ready.then(() => true)")
        tab.reload()
        tab.wait_for_selector(READY)
        assert tab.evaluate("navigator.serviceWorker.controller !== null")
        shutil.rmtree(folder)
        newer.rename(folder)
        tab.reload()
        tab.wait_for_selector(READY)
        assert tab.locator("h1").text_content() == "new"
        assert tab.evaluate("fetch('page.json').then(a => a.json()).then(a => a.name)") == "new"
        release = tab.evaluate("document.querySelector('meta[name=release]').content")
        for _ in range(100):  # the new one is kept, the old one goes
            keys = tab.evaluate("caches.keys()")
            if len(keys) == 1 and release in keys[0]:
                break
            tab.wait_for_timeout(200)
        assert [release in key for key in keys] == [True]
        end()
        tab.reload()
        tab.wait_for_selector(READY)
        assert tab.locator("h1").text_content() == "new"


# Added to a file, each changes nothing but the digest: without a check the page would be ready.
HARMLESS = {
    web_runtime.SCRIPT: b"globalThis.foreign = true;",
    web_runtime.WASM: b"\x00\x02\x01x",  # a section of its own, called x
    MODEL: b"\x32\x01x",  # doc_string: "x"
}


def outcome(tab: Any) -> tuple[str, bool]:
    """How the page started, and whether the changed script ran."""
    tab.wait_for_selector("body:not([data-state=loading])")
    state = tab.evaluate("document.body.dataset.state")
    assert tab.locator("#trouble").is_visible() == (state == "failed")
    return state, tab.evaluate("'foreign' in globalThis")


@pytest.mark.parametrize("changed", ["", web_runtime.SCRIPT, web_runtime.WASM])
def test_the_runtime_from_its_cdn_is_checked(
    changed: str, assets: Path, tmp_path: Path, browser: Any
) -> None:
    folder = write_unproven(photo_classifier(), tmp_path / "page")

    def cdn(route: Any) -> None:
        name = route.request.url.rsplit("/", 1)[1]
        body = (assets / name).read_bytes() + (HARMLESS[name] if name == changed else b"")
        kind = "application/wasm" if name.endswith(".wasm") else "text/javascript"
        headers = {"Access-Control-Allow-Origin": "*", "Content-Type": kind}
        route.fulfill(body=body, headers=headers)

    with server_of(folder) as (address, _):
        context = browser.new_context(service_workers="block")
        context.route(f"{web_runtime.CDN}/**", cdn)
        tab = context.new_page()
        tab.goto(address)
        assert outcome(tab) == ("failed" if changed else "ready", False)
        assert changed in tab.locator("#trouble").text_content()
        context.close()


@pytest.mark.parametrize("changed", HARMLESS)
def test_files_from_a_server_are_checked(
    changed: str, assets: Path, tmp_path: Path, browser: Any
) -> None:
    folder = write_unproven(photo_classifier(), tmp_path / "page", assets=assets)
    (file,) = folder.rglob(changed)
    file.write_bytes(file.read_bytes() + HARMLESS[changed])
    with server_of(folder) as (address, _):
        context = browser.new_context(service_workers="block")
        tab = context.new_page()
        tab.goto(address)
        assert outcome(tab) == ("failed", False)
        assert changed in tab.locator("#trouble").text_content()
        # With the digest of the changed file, it is as good as the right one.
        about = folder / "page.json"
        facts = json.loads(about.read_text())
        for part in (facts["model"], facts["runtime"]["script"], facts["runtime"]["wasm"]):
            if part["file"].endswith(changed):
                part["integrity"] = web_runtime.integrity(file)
        about.write_text(json.dumps(facts))
        tab.reload()
        assert outcome(tab) == ("ready", changed == web_runtime.SCRIPT)
        context.close()


@pytest.mark.parametrize("changed", HARMLESS)
def test_kept_files_are_checked(changed: str, assets: Path, tmp_path: Path, browser: Any) -> None:
    folder = write_unproven(photo_classifier(), tmp_path / "page", assets=assets)
    with server_of(folder) as (address, _):
        context = browser.new_context()
        tab = context.new_page()
        tab.goto(address)
        tab.evaluate("navigator.serviceWorker.ready.then(() => true)")
        tab.evaluate(
            """async ([name, more]) => {
                const cache = await caches.open((await caches.keys())[0]);
                const request = (await cache.keys()).find(({url}) => url.endsWith(`/${name}`));
                const kept = await cache.match(request);
                const body = new Blob([await kept.arrayBuffer(), new Uint8Array(more)]);
                await cache.put(request, new Response(body, {headers: kept.headers}));
            }""",
            [changed, list(HARMLESS[changed])],
        )
        tab.reload()
        assert tab.evaluate("navigator.serviceWorker.controller !== null")
        assert outcome(tab) == ("failed", False)
        assert changed in tab.locator("#trouble").text_content()
        context.close()


def test_chinese_and_dark(digits_page: Path, visit: Callable[..., Any]) -> None:
    with server_of(digits_page) as (address, _):
        tab = visit(address, locale="zh-CN", color_scheme="dark", reduced_motion="reduce",
                    viewport={"width": 360, "height": 640})  # fmt: skip
        assert tab.evaluate("document.documentElement.lang") == "zh-CN"
        assert tab.locator("#tab-draw").text_content() == "手写"
        draw(tab, DIGITS["1"])
        assert answer(tab)[0] == "1"
        assert "毫秒" in tab.locator("#time").text_content()
        ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert max(map(int, ground[4:-1].split(","))) < 60
        moving = "getComputedStyle(document.querySelector('.fill')).transitionDuration"
        assert tab.evaluate(moving) == "0s"
        # Nothing is wider than the screen.
        assert tab.evaluate("document.documentElement.scrollWidth") <= 360
