"""The page for browsers: its files, what may be replaced by it, and the server of `demo`."""

import hashlib
import http.client
import json
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import mobilenetv2
from mobilenetv2.classifier import Classifier
from mobilenetv2.command_config import DemoConfig, PageConfig
from mobilenetv2.config import NetworkConfig, Preprocessing
from mobilenetv2.data.resizing import resize_and_crop
from mobilenetv2.errors import ConfigError
from mobilenetv2.shipping import demo, drawing_style, web_export, web_page, web_runtime
from mobilenetv2.shipping.demo import served
from mobilenetv2.shipping.held_out import held_out
from mobilenetv2.shipping.proof import Threshold
from mobilenetv2.shipping.web_page import Page, write_page

RunCli = Callable[..., tuple[int, str, str]]
SOURCES = Path(web_page.__file__).parent / "web"
SCRIPTS = sorted(SOURCES.glob("*.js"))
EVIL = "</script><img src=x onerror=alert(1)>"


@pytest.fixture
def assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small stand-ins for the runtime, which are the pinned ones as far as anybody can see."""
    folder = tmp_path / "dist"
    folder.mkdir()
    for name in web_runtime.DIGESTS:
        (folder / name).write_text(f"stand-in for {name}")
    digests = {name: web_runtime.integrity(folder / name) for name in web_runtime.DIGESTS}
    monkeypatch.setattr(web_runtime, "DIGESTS", digests)
    return folder


@pytest.fixture
def page(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a page around a file that only claims to be a model."""

    def write(where: str = "page", /, **facts: Any) -> Path:
        wanted = Preprocessing(colour="grey", height=8, width=8, resize=8, mean=(0,), std=(1,))
        classifier = Classifier.create(NetworkConfig(width=0.05), wanted, ("a", "b", EVIL))
        folder = tmp_path / where
        folder.mkdir()
        (folder / "model.onnx").write_bytes(b"model")
        write_page(Page(**({"name": where, "classifier": classifier, "sure": 0.6} | facts)), folder)
        return folder

    return write


class Tags(HTMLParser):
    """Every tag with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def tags(folder: Path, *names: str) -> list[dict[str, str | None]]:
    found = Tags((folder / "index.html").read_text("utf-8")).found
    return [attributes for name, attributes in found if name in names]


def kept(folder: Path) -> list[dict[str, str]]:
    """What the service worker keeps."""
    worker = (folder / "service-worker.js").read_text("utf-8")
    match = re.search(r"^const FILES = (\[.*?^\]);", worker, re.DOTALL | re.MULTILINE)
    assert match is not None
    found: list[dict[str, str]] = json.loads(match[1])
    return found


# ------------------------------------------------------------------------ the whole export


def test_a_proven_page(digits_model: Path, tmp_path: Path, run_cli: RunCli) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    out = tmp_path / "site"
    pictures = held_out(mobilenetv2.load(digits_model), digits_model, "digits", None)
    shares = mobilenetv2.load(digits_model).logits(pictures.prepared.pictures).softmax(1).numpy()
    best = np.sort(shares.max(1))
    unsure = int(np.diff(best[:100]).argmax()) + 1  # where rounding cannot matter
    sure = float(best[unsure - 1 : unsure + 1].mean())
    arguments = ("export", digits_model, "--format", "web", "--verify", "digits", "--out", out,
                 "--sure", repr(sure))  # fmt: skip
    code, printed, error = run_cli(*arguments)
    assert (code, error) == (0, "")
    assert "same label" in printed
    assert printed.rstrip().endswith(str(out))
    certificate = json.loads((tmp_path / "site.certificate.json").read_text())
    assert certificate["passed"]
    assert certificate["comparison"]["pictures"] == 359
    assert not list(tmp_path.glob(".export-*"))

    import onnxruntime

    session = onnxruntime.InferenceSession(str(out / "model.onnx"))
    about = json.loads((out / "page.json").read_text())
    assert json.loads(session.get_modelmeta().custom_metadata_map["labels"]) == about["labels"]
    assert about["name"] == "digits"
    assert about["drawing"]["box"] == 1
    assert about["sure"] == sure
    # The remarks on "not sure" are true of what the classifier says.
    answered = shares.max(1) >= sure
    right = shares.argmax(1) == pictures.labels
    assert answered.sum() == 359 - unsure
    assert about["proof"] == {
        "data": "digits, test set",
        "pictures": 359,
        "accuracy": pytest.approx(right.mean()),
        "answered": pytest.approx(answered.mean()),
        "right": pytest.approx(right[answered].mean()),
    }

    assert run_cli(*arguments)[0] == 2
    assert run_cli(*arguments, "--overwrite", "--fp16", "--max-drop", "0.05", "--quiet")[0] == 0
    assert (out / "model.onnx").stat().st_size < about["model"]["bytes"] - 50_000
    assert not list(tmp_path.glob(".export-*"))


def test_an_unproven_page_is_not_delivered(
    digits_model: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    pytest.importorskip("onnxruntime")
    code, _, error = run_cli(
        "export", digits_model, "--format", "web", "--verify", "digits", "--out",
        tmp_path / "site", "--max-difference", "1e-12",
    )  # fmt: skip
    assert code == 1
    assert f"{tmp_path / 'site'}: not delivered" in error.replace("\n", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_eight_bits(
    digits_model: Path, tmp_path: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    # Random weights keep no floor; what is tested is where the files go.
    monkeypatch.setattr("mobilenetv2.shipping.ladder.installed", lambda *_: False)
    monkeypatch.setattr("mobilenetv2.shipping.int8.threshold", lambda *_: Threshold(None, 0.0, 1.0))
    monkeypatch.setattr(
        "mobilenetv2.shipping.export.threshold", lambda *_: Threshold(None, 0.0, 1.0)
    )
    code, _, error = run_cli(
        "export", digits_model, "--format", "web", "--int8", "--verify", "digits", "--out",
        tmp_path / "site",
    )  # fmt: skip
    assert (code, error) == (0, "")
    assert {file.name for file in tmp_path.iterdir()} == {
        "site", "site.certificate.json", "site.ladder.png",
    }  # fmt: skip
    about = json.loads((tmp_path / "site/page.json").read_text())
    assert about["files"] == web_page.files_of(tmp_path / "site")
    assert about["proof"]["accuracy"] < 0.5


# ------------------------------------------------------------------------ the files


def test_the_files_are_those_that_are_listed(page: Callable[..., Path], assets: Path) -> None:
    for folder in (page("one"), page("two", assets=assets)):
        there = web_page.files_of(folder)
        about = json.loads((folder / "page.json").read_text())
        assert about["files"] == there
        urls = [entry["url"] for entry in kept(folder)]
        own = [url for url in urls if not url.startswith("https:")]
        assert sorted(own) == [name for name in there if name != "service-worker.js"]
        assert len(set(urls)) == len(urls)
        # Everything that the page asks for is among them.
        asked = [tag.get("src") or tag.get("href") for tag in tags(folder, "script", "link", "img")]
        asked += [about["runtime"][part]["file"] for part in ("script", "wasm")]
        asked += [about["model"]["file"], "page.json", "index.html"]
        for script in SCRIPTS:
            asked += re.findall(r'from "\./(.*?)"', script.read_text("utf-8"))
        assert set(asked) == set(urls)
        places = re.compile(r"\{\{\w+\}\}")
        assert not any(places.search((folder / name).read_text("latin-1")) for name in there)


def test_the_runtime_is_pinned(page: Callable[..., Path], assets: Path) -> None:
    cdn = f"https://cdn.jsdelivr.net/npm/onnxruntime-web@{web_runtime.VERSION}/dist/"
    beside = f"{web_runtime.FOLDER}/"
    for folder, base in ((page("one"), cdn), (page("two", assets=assets), beside)):
        about = json.loads((folder / "page.json").read_text())
        digests = {entry["url"]: entry.get("integrity") for entry in kept(folder)}
        for part, name in (("script", web_runtime.SCRIPT), ("wasm", web_runtime.WASM)):
            digest = web_runtime.DIGESTS[name]
            assert about["runtime"][part] == {"file": base + name, "integrity": digest}
            assert digests[base + name] == digest


def test_the_policy_lets_nothing_else_in(page: Callable[..., Path], assets: Path) -> None:
    for folder in (page("one"), page("two", assets=assets)):
        (policy,) = [
            str(tag["content"])
            for tag in tags(folder, "meta")
            if tag.get("http-equiv") == "Content-Security-Policy"
        ]
        rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
        assert rules["default-src"] == "'none'"
        assert "unsafe-inline" not in policy
        assert "'unsafe-eval'" not in policy
        assert "*" not in policy
        elsewhere = re.findall(r"https?:[^\s;]+", policy)
        assert ("https:" in policy) == (folder.name == "one")
        assert all(place == web_runtime.ON_CDN.base for place in elsewhere)
        # What comes from elsewhere is bytes, which the page checks before they are a script.
        assert rules["script-src"] == "'self' blob: 'wasm-unsafe-eval'"
        assert [tag["src"] for tag in tags(folder, "script")] == ["page.js"]
        inline = [tag for tag in tags(folder, "script") if "src" not in tag]
        assert not inline
        assert not tags(folder, "style")
        assert not [tag for tag in tags(folder, "body", "button", "img") if "style" in tag]


def test_the_manifest(page: Callable[..., Path]) -> None:
    folder = page("a page with a long name")
    manifest = json.loads((folder / "manifest.webmanifest").read_text())
    assert manifest["name"] == "a page with a long name"
    assert manifest["display"] == "standalone"
    drawn = [icon for icon in manifest["icons"] if icon["type"] == "image/png"]
    for icon in drawn:
        with Image.open(folder / icon["src"]) as image:
            assert f"{image.width}x{image.height}" == icon["sizes"]
            assert len(image.getcolors(100_000) or ()) > 3
    assert all((folder / icon["src"]).is_file() for icon in manifest["icons"])


def test_a_change_of_anything_is_another_release(page: Callable[..., Path]) -> None:
    def release(folder: Path) -> str:
        found = {
            match[0]
            for name in ("index.html", "service-worker.js")
            for match in re.findall(
                r'(?:name="release" content|RELEASE =)[= ]*"([0-9a-f]{24})()"',
                (folder / name).read_text("utf-8"),
            )
        }
        (only,) = found  # the same in both
        return only

    assert release(page("one", name="x")) == release(page("two", name="x"))
    assert len({release(page("three", name="y")), release(page("four", sure=0.7, name="y"))}) == 2


def test_what_comes_from_outside_stays_text(page: Callable[..., Path]) -> None:
    folder = page("x", name=EVIL)
    assert EVIL not in (folder / "index.html").read_text("utf-8")
    assert "&lt;img src=x" in (folder / "index.html").read_text("utf-8")
    assert EVIL not in (folder / "service-worker.js").read_text("utf-8")
    assert json.loads((folder / "page.json").read_text())["labels"][2] == EVIL
    for script in SCRIPTS:
        text = script.read_text("utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", text)


def test_the_scripts_fit_the_page() -> None:
    ids = {tag["id"] for _, tag in Tags((SOURCES / "index.html").read_text("utf-8")).found
           if "id" in tag}  # fmt: skip
    text = "".join(script.read_text("utf-8") for script in SCRIPTS)
    assert set(re.findall(r'element\("([\w-]+)"\)', text)) <= ids
    words = (SOURCES / "words.js").read_text("utf-8")
    english, chinese = re.findall(r"^const (?:ENGLISH|CHINESE) = \{\n(.*?)^\};", words, re.M | re.S)
    entries = [dict(re.findall(r"^  (\w+): (.*),$", part, re.M)) for part in (english, chinese)]
    assert entries[0].keys() == entries[1].keys()
    for key, sentence in entries[0].items():
        assert sorted(re.findall(r"\{\w+\}", sentence)) == sorted(
            re.findall(r"\{\w+\}", entries[1][key])
        ), key
    used = set(re.findall(r'say\("(\w+)"', text)) | set(re.findall(r"fact\(\"(\w+)\"", text))
    used |= set(re.findall(r'"(camera[A-Z]\w+)"', text))
    used |= {
        str(tag[kind])
        for _, tag in Tags((SOURCES / "index.html").read_text("utf-8")).found
        for kind in ("data-word", "data-label")
        if kind in tag
    }
    assert used <= entries[0].keys()


@pytest.mark.parametrize("colour", ["rgb", "grey"])
def test_the_page_resizes_as_training_did_to_the_pixel(colour: str, tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node to run the page's script with")
    random = np.random.default_rng(0)
    sizes = [(60, 80, 24), (33, 20, 32), (24, 24, 24), (7, 9, 28), (301, 190, 64), (64, 1, 8)]
    cases, expected = [], []
    for number, (height, width, resize) in enumerate(sizes):
        pixels = random.integers(0, 256, (height, width, 4), dtype=np.uint8)
        pixels[..., 3] = 255
        (tmp_path / f"{number}").write_bytes(pixels.tobytes())
        cases.append([str(tmp_path / f"{number}"), height, width, resize])
        image = Image.fromarray(pixels).convert("RGB")
        image = image if colour == "rgb" else image.convert("L")
        short = min(height, width)
        size = (int(resize * height / short), int(resize * width / short))
        expected.append(np.array(resize_and_crop(image, *size, resize).convert("RGB")))
    program = """
        import { readFileSync, writeFileSync } from "node:fs";
        const { prepared } = await import(process.argv[2]);
        for (const [file, height, width, resize] of JSON.parse(process.argv[3])) {
          const data = new Uint8ClampedArray(readFileSync(file));
          const picture = prepared({ width, height, data }, { colour: process.argv[4], resize });
          writeFileSync(`${file}-${picture.height}-${picture.width}`, picture.data);
        }
    """
    (tmp_path / "run.mjs").write_text(program)
    module = tmp_path / "picture.mjs"
    module.write_text((SOURCES / "picture.js").read_text("utf-8"))
    subprocess.run(
        [node, tmp_path / "run.mjs", module.as_uri(), json.dumps(cases), colour], check=True
    )
    for number, wanted in enumerate(expected):
        height, width, _ = wanted.shape
        made = np.fromfile(tmp_path / f"{number}-{height}-{width}", np.uint8)
        assert np.array_equal(made.reshape(wanted.shape), wanted), sizes[number]


@pytest.mark.parametrize(
    ("meanwhile", "started", "lights"),
    [
        ("", [True], 1),
        ("camera.stop();", [False], 0),
        ("document.hidden = true;", [False], 0),
        ("starts.push(camera.start());", [False, True], 1),
        ("starts.push(camera.start()); camera.stop();", [False, False], 0),
        ("starts.push(camera.turn());", [False, True], 1),
    ],
)
def test_no_camera_stays_on_that_came_too_late(
    meanwhile: str, started: list[bool], lights: int, tmp_path: Path
) -> None:
    """What happens while the browser asks for permission decides about the stream that comes."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node to run the page's script with")
    program = """
        const on = new Set(), given = [];
        const asked = () => new Promise((resolve) => given.push(() => {
          const track = { stop: () => on.delete(track) };
          on.add(track);
          resolve({ getTracks: () => [track] });
        }));
        const mediaDevices = { getUserMedia: asked };
        Object.defineProperty(globalThis, "navigator", { value: { mediaDevices } });
        globalThis.document = { hidden: false };
        const { Camera } = await import(process.argv[2]);
        const camera = new Camera({ srcObject: null, play: async () => {} });
        const starts = [camera.start()];
        MEANWHILE
        for (const give of given) give();
        const started = await Promise.all(starts);
        const lights = on.size;
        camera.stop();
        console.log(JSON.stringify([started, lights, on.size]));
    """
    (tmp_path / "run.mjs").write_text(program.replace("MEANWHILE", meanwhile))
    module = tmp_path / "camera.mjs"
    module.write_text((SOURCES / "camera.js").read_text("utf-8"))
    printed = subprocess.run(
        [node, tmp_path / "run.mjs", module.as_uri()], check=True, capture_output=True
    ).stdout
    assert json.loads(printed) == [started, lights, 0]


# ------------------------------------------------------------------------ how drawings look


def test_the_style_of_drawings() -> None:
    random = np.random.default_rng(0)
    pictures = np.zeros((40, 40, 40), np.uint8)
    for picture in pictures:  # bars of 20 × 4, wherever
        top, left = random.integers(0, 20), random.integers(0, 36)
        picture[top : top + 20, left : left + 4] = 255
    style = drawing_style.measure(pictures)
    assert (style.ink, style.box) == ("light", 0.5)
    assert style.stroke == pytest.approx(0.1, rel=0.2)
    dark = drawing_style.measure(255 - pictures)
    assert (dark.ink, dark.box, dark.stroke) == ("dark", style.box, style.stroke)
    assert drawing_style.measure(np.zeros((3, 9, 9), np.uint8)) == drawing_style.DrawingStyle()


def test_the_style_of_mnist_is_found(test_data: Path) -> None:
    """As LeCun describes it: a box of 20 of 28 pixels, centred by mass."""
    from mobilenetv2.config import DataConfig
    from mobilenetv2.data.named_sets import read_named_set

    data = DataConfig(data="mnist", data_dir=test_data / "data/mnist")
    style = drawing_style.measure(np.asarray(read_named_set(data).test[0][:1000]))
    assert (style.ink, style.centre) == ("light", "mass")
    assert style.box == pytest.approx(20 / 28, abs=1e-4)
    assert 2 / 28 < style.stroke < 4 / 28


# ------------------------------------------------------------------------ what may be replaced


def settings(model: Path, out: Path | None, **more: Any) -> Any:
    from mobilenetv2.command_config import ExportConfig

    return ExportConfig(model=model, format="web", out=out, **more)


def test_only_pages_of_this_program_are_replaced(
    page: Callable[..., Path], digits_model: Path, tmp_path: Path
) -> None:
    def refusal(out: Path, **more: Any) -> str:
        with pytest.raises(ConfigError) as error:
            web_export.page_folder(settings(digits_model, out, **more))
        return str(error.value)

    empty = tmp_path / "empty"
    empty.mkdir()
    assert web_export.page_folder(settings(digits_model, empty)) == empty
    mine = page("mine")
    assert "add --overwrite" in refusal(mine)
    assert web_export.page_folder(settings(digits_model, mine, overwrite=True)) == mine
    (mine / "CNAME").write_text("example.org")
    assert "CNAME" in refusal(mine, overwrite=True)

    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "wedding.jpg").write_text("precious")
    assert "left alone" in refusal(photos, overwrite=True)
    (photos / "page.json").write_text('{"made_by": "another program", "files": []}')
    assert "left alone" in refusal(photos, overwrite=True)
    (photos / "page.json").write_text("[" * 100_000)
    assert "left alone" in refusal(photos, overwrite=True)
    assert "is no folder" in refusal(photos / "wedding.jpg", overwrite=True)
    link = tmp_path / "link"
    link.symlink_to(mine)
    assert "is no folder" in refusal(link, overwrite=True)
    assert "no folder" in refusal(tmp_path / "missing" / "x")
    (tmp_path / "new.certificate.json").write_text("{}")
    assert "certificate" in refusal(tmp_path / "new")


def test_default_names(digits_model: Path, tmp_path: Path) -> None:
    run = tmp_path / "digits"
    run.mkdir()
    assert web_export.page_folder(settings(run, None)) == run / "web"
    assert web_export.page_folder(settings(run, None, int8=True)) == run / "web-int8"
    of_file = web_export.page_folder(settings(digits_model, None))
    assert of_file == digits_model.parent / "digits-web"


def test_the_old_page_stays_if_the_new_one_cannot_come(
    page: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = page("old-page"), page("new", name="newer")
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self == new:
            raise OSError("no more")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="no more"):
        web_export._move_into_place(new, old)
    assert json.loads((old / "page.json").read_text())["name"] == "old-page"
    monkeypatch.setattr(Path, "rename", rename)
    web_export._move_into_place(new, old)
    assert json.loads((old / "page.json").read_text())["name"] == "newer"


# ------------------------------------------------------------------------ what is refused


def test_assets_must_be_the_pinned_ones(
    digits_model: Path, assets: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    pytest.importorskip("onnxruntime")
    command = ("export", digits_model, "--format", "web", "--verify", "digits", "--out",
               tmp_path / "site", "--quiet", "--assets")  # fmt: skip
    assert run_cli(*command, assets)[0] == 0
    copied = tmp_path / "site" / web_runtime.FOLDER
    assert {file.name for file in copied.iterdir()} == set(web_runtime.DIGESTS)
    before = hashlib.sha256((tmp_path / "site/page.json").read_bytes()).digest()
    (assets / web_runtime.SCRIPT).write_text("another version")
    code, _, error = run_cli(*command, assets, "--overwrite")
    assert code == 2
    assert f"{web_runtime.SCRIPT}: not the file of onnxruntime-web {web_runtime.VERSION}" in error
    (assets / web_runtime.WASM).unlink()
    code, _, error = run_cli(*command, assets, "--overwrite")
    assert code == 2
    assert f"lacks {web_runtime.WASM}" in error
    assert f"npm pack onnxruntime-web@{web_runtime.VERSION}" in error
    assert run_cli("demo", digits_model, "--no-browser", "--assets", assets)[0] == 2
    assert hashlib.sha256((tmp_path / "site/page.json").read_bytes()).digest() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--format", "web", "--raw"), "raw"),
        (("--format", "web", "--picture-size", "32", "32"), "picture_size"),
        (("--format", "web", "--bf16"), "bf16"),
        (("--assets", "dist"), "--format web"),
        (("--format", "web", "--sure", "1.5"), "sure"),
    ],
)
def test_requests_that_cannot_be_met(
    arguments: tuple[str, ...], words: str, digits_model: Path, run_cli: RunCli
) -> None:
    code, _, error = run_cli("export", digits_model, "--verify", "digits", *arguments)
    assert code == 2
    assert words in error


@pytest.mark.parametrize("command", [("export", "--format", "web"), ("demo", "--no-browser")])
def test_a_missing_library_comes_with_its_command(
    command: tuple[str, ...], digits_model: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mobilenetv2.runtimes.installed.installed", lambda *_: False)
    verify = ("--verify", "digits") if command[0] == "export" else ("--port", "0")
    code, _, error = run_cli(command[0], digits_model, *command[1:], *verify)
    assert code == 2
    assert re.search(r'onnx.*pip install .*\[export\]"', error)


def test_weights_without_labels_are_no_model(tmp_path: Path, run_cli: RunCli) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    for command in (("export", path, "--format", "web"), ("demo", path, "--port", "0")):
        code, _, error = run_cli(*command)
        assert code == 2
        assert "labels" in error


# ------------------------------------------------------------------------ the server


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, int]]:
    with served(DemoConfig(model=folder, port=0, browser=False), Console(quiet=True)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield "127.0.0.1", server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def address(page: Callable[..., Path], assets: Path) -> Iterator[tuple[str, int]]:
    with serving(page(assets=assets)) as address:
        yield address


def get(address: tuple[str, int], path: str, host: str | None = None) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(*address, timeout=10)
    connection.request("GET", path, headers={"Host": host} if host else {})
    response = connection.getresponse()
    response.read()
    connection.close()
    return response


def test_files_come_with_their_types(address: tuple[str, int]) -> None:
    runtime = f"/{web_runtime.FOLDER}"
    for path, kind in {
        "/": "text/html; charset=utf-8",
        "/page.js": "text/javascript; charset=utf-8",
        f"{runtime}/{web_runtime.SCRIPT}": "text/javascript; charset=utf-8",
        f"{runtime}/{web_runtime.WASM}": "application/wasm",
        "/manifest.webmanifest": "application/manifest+json",
        "/icon.svg": "image/svg+xml",
        "/page.css": "text/css; charset=utf-8",
        "/model.onnx": "application/octet-stream",
    }.items():
        response = get(address, path)
        assert (response.status, response.getheader("Content-Type")) == (200, kind)
        assert response.getheader("Cache-Control") == "no-store"
        assert response.getheader("X-Content-Type-Options") == "nosniff"


def test_links_out_of_a_page_are_not_followed(
    page: Callable[..., Path], assets: Path, tmp_path: Path
) -> None:
    folder = page(assets=assets)
    (tmp_path / "private.png").write_text("private")
    (folder / "leak.png").symlink_to(tmp_path / "private.png")
    (folder / "all").symlink_to(tmp_path)
    (folder / "sub").mkdir()
    (folder / "sub" / "index.html").symlink_to(tmp_path / "private.png")
    with serving(folder) as address:
        assert get(address, "/icon.svg").status == 200
        assert get(address, "/leak.png").status == 404
        assert get(address, "/all/private.png").status == 404
        assert get(address, "/sub/").status == 404


def test_nothing_else_is_served_to_nobody_else(address: tuple[str, int]) -> None:
    assert get(address, f"/{web_runtime.FOLDER}/").status == 404  # no list of files
    assert get(address, "/../conftest.py").status == 404
    assert get(address, "/%2e%2e/%2e%2e/etc/passwd").status == 404
    assert get(address, "/", host=f"localhost:{address[1]}").status == 200
    assert get(address, "/", host=f"evil.example:{address[1]}").status == 421
    others = [
        found[4][0]
        for found in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)
        if not str(found[4][0]).startswith("127.")
    ]
    for other in others:
        with socket.socket() as client:
            client.settimeout(2)
            assert client.connect_ex((str(other), address[1])) != 0


def test_a_port_in_use(digits_model: Path, run_cli: RunCli) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, error = run_cli("demo", digits_model, "--no-browser", "--port", port)
    assert code == 2
    assert f"--port {port}: cannot be used" in error


def test_a_finished_page_has_its_own_runtime_and_rule(
    page: Callable[..., Path], assets: Path
) -> None:
    finished = page()
    for asked in (PageConfig(assets=assets), PageConfig(sure=0.99)):
        config = DemoConfig(model=finished, port=0, page=asked)
        with pytest.raises(ConfigError, match="finished page"), served(config, Console(quiet=True)):
            pass


@pytest.mark.parametrize("origin", ["digits_model", "run_without_data"])
def test_a_demo_of_a_model(
    origin: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    config = DemoConfig(model=request.getfixturevalue(origin), port=0, browser=False)
    with served(config, Console(stderr=True)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
        connection.request("GET", "/page.json")
        about = json.loads(connection.getresponse().read())
        connection.close()
        server.shutdown()
        thread.join()
    assert about["labels"] == list(map(str, range(10)))
    assert about["proof"] is None
    assert not about["offline"]
    assert "not proven" in capsys.readouterr().err


def test_a_demo_is_proven_on_pictures_of_all_classes(
    run_without_data: Path, picture_folder: Callable[..., Path]
) -> None:
    """Those of a folder come sorted by class."""
    for split, count in (("train", 2), ("test", 30)):
        labels = tuple(map(str, range(10)))
        picture_folder(labels, count, size=(8, 8), mode="L", name=f"gone/{split}")
    config, console = DemoConfig(model=run_without_data), Console(quiet=True)
    found = demo._quick_pictures(mobilenetv2.load(run_without_data), config, console)
    assert found is not None
    assert len(found) == 256
    assert set(found.labels.tolist()) == set(range(10))


@pytest.mark.slow
@pytest.mark.usefixtures("heard_interrupts")
def test_ctrl_c_ends_it_quietly(page: Callable[..., Path]) -> None:
    import signal
    import sys

    with subprocess.Popen(
        [sys.executable, "-m", "mobilenetv2", "demo", page(), "--port", "0", "--no-browser"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            match = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/\n", line)
            assert match is not None
            assert get(("127.0.0.1", int(match[1])), "/").status == 200
            process.send_signal(signal.SIGINT)
            _, error = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == 0
    assert "Traceback" not in error
