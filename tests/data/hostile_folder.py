"""A folder with everything that real folders have wrong, and a list of what was planted where."""

import io
import os
import struct
import zlib
from collections import defaultdict
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, features

CLASSES = ("cat", "dog", "été 花 🐈")
SOUND_PER_CLASS = {"train": 40, "val": 12}
BROKEN_HEIC = "broken" if find_spec("pillow_heif") else "not_a_picture"


def photo(seed: int, width: int = 240, height: int = 180) -> Image.Image:
    """A picture with structure at every scale; no two seeds look alike."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for cells in (3, 6, 12, 24, 48):
        grid = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        layer = grid.resize((width, height), Image.Resampling.BICUBIC)
        total += np.asarray(layer, dtype=np.float64) / cells**0.5
    total -= total.min()
    return Image.fromarray((total * (255 / total.max())).astype(np.uint8))


def burst_of(seed: int, shots: int = 3) -> list[Image.Image]:
    """The same scene from a hand that is not quite steady, in changing light."""
    scene = photo(seed, 480, 360)
    rng = np.random.default_rng(seed)
    return [
        ImageEnhance.Brightness(scene.crop((x, y, x + 460, y + 340))).enhance(light)
        for x, y, light in zip(
            rng.integers(5, 15, shots),
            rng.integers(5, 15, shots),
            np.linspace(1, 1.06, shots),
            strict=True,
        )
    ]


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, bits: int, colour_type: int, raw: bytes | None = None) -> bytes:
    """A PNG from scratch: what Pillow cannot write. Without ``raw`` it is black."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    if raw is None:
        row = bytes(1 + (width * bits + 7) // 8)
        packer = zlib.compressobj(9)
        packed = b"".join(packer.compress(row * 100) for _ in range(height // 100)) + packer.flush()
    else:
        packed = zlib.compress(raw)
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    )


def png_48_bit(image: Image.Image) -> bytes:
    """An RGB picture with 16 bits per channel."""
    pixels = (np.asarray(image).astype(">u2") * 257).reshape(image.height, -1)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    return png(image.width, image.height, 16, 2, rows)


def sideways(image: Image.Image, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, "JPEG", exif=exif)


class HostileFolder:
    """Writes the folder.

    Attributes:
        root: With ``train/`` and ``val/`` inside.
        planted: For each kind of finding, the groups of paths that must be reported, no more and no
            less.
        passed_over: Paths that are no pictures.
        files: How many pictures there are.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.planted: dict[str, set[frozenset[Path]]] = defaultdict(set)
        self.passed_over: set[Path] = set()
        self.files = 0
        self._seed = 0
        self._sound()
        self._unreadable()
        self._unusual()
        self._copies()
        self._not_pictures()

    def fresh(self) -> Image.Image:
        """A picture like no other."""
        self._seed += 1
        return photo(self._seed)

    def put(self, where: str, content: bytes, *kinds: str) -> Path:
        path = self.root / where
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        self.files += 1
        for kind in kinds:
            self.planted[kind].add(frozenset([path]))
        return path

    def together(self, kind: str, *paths: Path) -> None:
        self.planted[kind].add(frozenset(paths))

    def _sound(self) -> None:
        for split, count in SOUND_PER_CLASS.items():
            for name in CLASSES:
                for number in range(count):
                    nested = "2019/summer/" if number % 5 == 0 else ""
                    where = f"{split}/{name}/{nested}photo_{number:03}.jpg"
                    self.put(where, encoded(self.fresh(), "JPEG", quality=90))
        for odd in ("[red]brackets[/red].jpg", "new\nline.jpg", "escape\x1b[31m.jpg", "UPPER.JPG"):
            self.put(f"train/cat/{odd}", encoded(self.fresh(), "JPEG"))

    def _unreadable(self) -> None:
        jpeg, as_png = encoded(self.fresh(), "JPEG"), encoded(self.fresh(), "PNG")
        gif, tiff = encoded(self.fresh(), "GIF"), encoded(self.fresh(), "TIFF")
        self.put("train/cat/half.jpg", jpeg[: len(jpeg) // 2], "truncated")
        self.put("train/cat/nearly_whole.jpg", jpeg[: len(jpeg) - 300], "truncated")
        self.put("val/dog/half.png", as_png[: len(as_png) // 2], "truncated")
        self.put("train/dog/half.gif", gif[: len(gif) // 2], "truncated")
        self.put("train/dog/half.tif", tiff[: len(tiff) // 2], "truncated")
        self.put("train/dog/half.bmp", encoded(self.fresh(), "BMP")[:50_000], "truncated")
        self.put("train/dog/bad_checksum.png", as_png[:20] + b"\xff" + as_png[21:], "broken")
        self.put("train/dog/head_only.png", as_png[:40], "broken")
        self.put("train/dog/empty.jpg", b"", "not_a_picture")
        self.put("train/dog/zeros.jpg", bytes(5000), "not_a_picture")
        self.put("train/dog/page.jpg", b"<!DOCTYPE html><html>404</html>", "not_a_picture")
        self.put("train/dog/words.png", b"no picture at all", "not_a_picture")
        self.put("train/dog/phone.heic", b"\0\0\0\x18ftypheic\0\0\0\0" * 20, BROKEN_HEIC)
        self.put("train/dog/bomb.png", png(25_000, 20_000, 1, 0), "too_large")
        self.put("train/dog/smaller_bomb.png", png(13_000, 10_000, 1, 0), "too_large")
        if os.geteuid() != 0:  # root reads everything
            self.put("train/dog/secret.jpg", jpeg, "forbidden").chmod(0)

    def _unusual(self) -> None:
        put, fresh = self.put, self.fresh
        put("train/cat/png_named.jpg", encoded(fresh(), "PNG"), "wrong_extension")
        put("train/cat/jpeg_named.png", encoded(fresh(), "JPEG"), "wrong_extension")
        put("train/dog/gif_named.jpg", encoded(fresh(), "GIF"), "wrong_extension", "palette")
        more = {"save_all": True, "append_images": [fresh()]}
        put("train/cat/waving.gif", encoded(fresh(), "GIF", **more), "animated", "palette")
        put("train/cat/waving.png", encoded(fresh(), "PNG", **more), "animated")
        put("train/cat/pages.tif", encoded(fresh(), "TIFF", **more), "animated")
        if features.check("webp"):
            put("train/cat/waving.webp", encoded(fresh(), "WEBP", **more), "animated")
            put("train/cat/webp_named.jpg", encoded(fresh(), "WEBP"), "wrong_extension")
            put("val/cat/sound.webp", encoded(fresh(), "WEBP"))
        if features.check("avif"):
            put("val/cat/sound.avif", encoded(fresh(), "AVIF"))
        put("train/cat/press.jpg", encoded(fresh().convert("CMYK"), "JPEG"), "cmyk")
        put("train/cat/press.tif", encoded(fresh().convert("CMYK"), "TIFF"), "cmyk")
        deep = Image.fromarray(np.asarray(fresh().convert("L")).astype(np.uint16) * 257)
        put("train/dog/deep.png", encoded(deep, "PNG"), "sixteen_bit")
        deep = Image.fromarray(np.asarray(fresh().convert("L")).astype(np.uint16) * 257)
        put("train/dog/deep.tif", encoded(deep, "TIFF"), "sixteen_bit")
        put("train/dog/deep_colour.png", png_48_bit(fresh()), "sixteen_bit")
        put("val/dog/grey.jpg", encoded(fresh().convert("L"), "JPEG"))
        for mode in ("RGBA", "LA"):
            see_through = fresh().convert(mode)
            see_through.putalpha(photo(9000, *see_through.size).convert("L"))
            put(f"train/cat/{mode}.png", encoded(see_through, "PNG"), "alpha")
        put("train/dog/palette.png", encoded(fresh().quantize(), "PNG"), "palette")
        keyed = encoded(fresh().quantize(), "PNG", transparency=3)
        put("train/dog/keyed.png", keyed, "palette", "alpha")
        for orientation in range(2, 9):
            content = sideways(fresh(), orientation)
            put(f"train/dog/turned_{orientation}.jpg", content, "exif_rotated")
        put("train/dog/turned.tif", encoded(fresh(), "TIFF", tiffinfo={274: 6}), "exif_rotated")
        put("train/dog/dot.png", encoded(Image.new("RGB", (1, 1), "red"), "PNG"), "tiny")
        put("train/dog/icon.png", encoded(photo(9001, 12, 10), "PNG"), "tiny")
        thread = encoded(photo(9002, 1, 20_000), "PNG")
        put("val/dog/thread.png", thread, "tiny", "extreme_aspect")
        put("val/dog/banner.jpg", encoded(photo(9003, 900, 90), "JPEG"), "extreme_aspect")

    def _copies(self) -> None:
        def jpeg(quality: int = 92) -> Callable[[Image.Image], bytes]:
            return lambda image: encoded(image, "JPEG", quality=quality)

        # Copies of one file: within a class, under two labels, in two splits.
        content = jpeg()(self.fresh())
        same = [
            self.put(f"train/cat/{name}.jpg", content) for name in ("it", "it (1)", "copies/it")
        ]
        self.together("duplicates", *same)
        content = jpeg()(self.fresh())
        both = self.put("train/cat/which.jpg", content), self.put("train/dog/which.jpg", content)
        self.together("duplicates", *both)
        self.together("two_labels", *both)
        content = jpeg()(self.fresh())
        leak = self.put("train/dog/seen.jpg", content), self.put("val/dog/seen_again.jpg", content)
        self.together("duplicates", *leak)
        self.together("leak", *leak)

        # Near duplicates: each kind of copy within a class, and in two splits.
        copies: dict[str, Callable[[Image.Image], bytes]] = {
            "half": lambda image: jpeg()(image.resize((image.width // 2, image.height // 2))),
            "square": lambda image: jpeg()(image.resize((128, 128))),
            "pressed": jpeg(quality=30),
            "lit": lambda image: jpeg()(ImageEnhance.Brightness(image).enhance(1.08)),
            "grey": lambda image: jpeg()(image.convert("L")),
            "format": lambda image: encoded(image, "PNG"),
        }
        for name, copy in copies.items():
            image = self.fresh()
            pair = (
                self.put(f"train/cat/near/{name}_a.jpg", jpeg()(image)),
                self.put(
                    f"train/cat/near/{name}_b{'.png' if name == 'format' else '.jpg'}", copy(image)
                ),
            )
            self.together("near_duplicates", *pair)
            image = self.fresh()
            pair = (
                self.put(f"train/dog/near/{name}.jpg", jpeg()(image)),
                self.put(
                    f"val/dog/near/{name}{'.png' if name == 'format' else '.jpg'}", copy(image)
                ),
            )
            self.together("near_duplicates", *pair)
            self.together("leak", *pair)
        shots = [
            self.put(f"train/{CLASSES[2]}/burst_{number}.jpg", jpeg()(shot))
            for number, shot in enumerate(burst_of(9100))
        ]
        self.together("near_duplicates", *shots)
        image = self.fresh()
        both = (
            self.put("train/cat/alike.jpg", jpeg()(image)),
            self.put("train/dog/alike.jpg", jpeg(50)(image)),
        )
        self.together("near_duplicates", *both)
        self.together("near_two_labels", *both)

    def _not_pictures(self) -> None:
        train = self.root / "train"
        for name in ("cat/.hidden.jpg", "cat/Thumbs.db", "dog/notes.txt", "dog/clip.mp4"):
            (train / name).write_bytes(b"not a picture")
            self.passed_over.add(train / name)
        stray = self.put("train/stray.jpg", encoded(self.fresh(), "JPEG"), "in_no_class")
        self.passed_over.add(stray)
        self.files -= 1
        (train / "cat/nowhere.jpg").symlink_to("gone.jpg")
        (train / "cat/round").symlink_to(train / "cat", target_is_directory=True)
        (train / "dog/itself.jpg").symlink_to("itself.jpg")
        os.mkfifo(train / "dog/pipe.jpg")
        self.passed_over |= {
            train / "cat/nowhere.jpg",
            train / "cat/round",
            train / "dog/itself.jpg",
            train / "dog/pipe.jpg",
        }
