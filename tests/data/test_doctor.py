import hashlib
import json
import os
import re
import resource
from collections import defaultdict

import numpy as np
import pytest
from hostile_folder import CLASSES, HostileFolder, encoded, photo, png
from rich.console import Console

from mobilenetv2.data import contact_sheet as sheets
from mobilenetv2.data.contact_sheet import contact_sheet
from mobilenetv2.data.doctor import examine
from mobilenetv2.data.doctor_table import render
from mobilenetv2.data.examination import KINDS, UNUSABLE_KINDS
from mobilenetv2.data.folders import scan_folder
from mobilenetv2.data.splits import content_split
from mobilenetv2.errors import DataError


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    return HostileFolder(tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="module")
def examination(hostile):
    return examine(scan_folder(hostile.root))


@pytest.fixture
def make(tmp_path):
    """Writes pictures, by class and name, and returns the folder scanned."""

    def make(**classes):
        for name, contents in classes.items():
            (tmp_path / "root" / name).mkdir(parents=True, exist_ok=True)
            for number, content in enumerate(contents):
                (tmp_path / "root" / name / f"{number}.jpg").write_bytes(content)
        return scan_folder(tmp_path / "root")

    return make


def jpegs(first, count, width=96, height=72):
    return [encoded(photo(first + number, width, height), "JPEG") for number in range(count)]


def found(examination):
    by_kind = defaultdict(set)
    for finding in examination.findings:
        by_kind[finding.kind].add(frozenset(finding.paths))
    return by_kind


def printed(examination, width):
    console = Console(record=True, width=width, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    render(examination, console)
    console.file.close()
    return console.export_text()


# ---------------------------------------------------------------- the hostile folder


def test_the_folder_is_as_large_as_promised(hostile):
    assert hostile.files >= 200
    assert set(KINDS) - set(hostile.planted) <= {
        "forbidden", "missing", "no_usable", "few_pictures", "imbalance",
    }  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_planted_defect_is_found_and_no_other(hostile, examination, kind):
    assert found(examination).get(kind, set()) == hostile.planted.get(kind, set())


def test_everything_is_counted_once(hostile, examination):
    assert len(examination.pictures) == hostile.files
    assert {path for path, _ in examination.passed_over} == hostile.passed_over
    unusable = {picture.path for picture in examination.pictures if not picture.usable}
    assert unusable == {
        path for kind in UNUSABLE_KINDS for group in hostile.planted[kind] for path in group
    }
    assert sum(len(examination.usable(split)) for split in examination.splits) == sum(
        sum(examination.counts(split)) for split in examination.splits
    )
    assert sum(picture.usable for picture in examination.pictures) == hostile.files - len(unusable)
    examination.require_usable()


def test_the_worst_comes_first(examination):
    severities = [finding.severity for finding in examination.findings]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)


def test_the_files_are_not_touched(hostile):
    def state():
        return {
            path: (path.stat().st_mtime_ns, path.stat().st_mode, path.stat().st_size)
            for path in hostile.root.rglob("*")
            if path.exists()
        }

    before = state()
    contact_sheet(examine(scan_folder(hostile.root)))
    assert state() == before


def test_threads_change_nothing(hostile, examination):
    assert examine(scan_folder(hostile.root), threads=1) == examination


def test_json_tells_it_all(hostile, examination):
    document = json.loads(examination.to_json())
    by_kind = defaultdict(set)
    for finding in document["findings"]:
        assert finding["severity"] == KINDS[finding["kind"]].severity
        by_kind[finding["kind"]].add(frozenset(hostile.root / path for path in finding["paths"]))
    assert by_kind == found(examination)
    assert len(document["pictures"]) == hostile.files
    bomb = next(p for p in document["pictures"] if p["path"] == "train/dog/bomb.png")
    assert bomb["usable"] is False
    assert "500 megapixels" in bomb["reason"]
    plain = next(p for p in document["pictures"] if p["path"] == "val/cat/photo_001.jpg")
    content = (hostile.root / plain["path"]).read_bytes()
    assert plain["digest"] == plain["group"] == hashlib.sha256(content).hexdigest()
    assert (plain["width"], plain["height"], plain["format"], plain["mode"], plain["bytes"]) == (
        240, 180, "JPEG", "RGB", len(content),
    )  # fmt: skip
    assert document["counts"]["val"][CLASSES[2]] == 12
    assert len(document["passed_over"]) == len(hostile.passed_over)


def test_sizes_are_those_of_the_upright_picture(examination):
    by_name = {picture.path.name: picture for picture in examination.pictures}
    for name, size in (("turned_3.jpg", (240, 180)), ("turned_6.jpg", (180, 240))):
        assert (by_name[name].width, by_name[name].height) == size
    assert (by_name["turned.tif"].width, by_name["turned.tif"].height) == (180, 240)


@pytest.mark.parametrize("width", [60, 100, 200])
def test_the_table_is_complete_and_harmless(hostile, examination, width):
    text = printed(examination, width)
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= width
    for kind in hostile.planted:
        assert kind in UNUSABLE_KINDS or KINDS[kind].title in text
    flat = re.sub(r"\s+", "", text)
    for picture in examination.pictures:
        if not picture.usable:
            assert examination.relative(picture.path) in flat
    assert (
        f"{sum(p.usable for p in examination.pictures)}of{hostile.files}picturescanbeused" in flat
    )


def test_the_contact_sheet_shows_something_of_every_kind(examination):
    sheet = contact_sheet(examination)
    assert sheet.mode == "RGB"
    assert sheet.width == sheets.WIDTH
    assert sheet.height > 3000
    pixels = np.asarray(sheet)
    for accent in sheets.ACCENTS.values():
        colour = [int(accent[at : at + 2], 16) for at in (1, 3, 5)]
        assert (pixels == colour).all(axis=2).sum() > 500
    # Nothing is cut off at the margins.
    assert (pixels[:, :20] == 255).all()
    assert (pixels[:, -20:] == 255).all()


def test_a_split_made_from_the_examination_does_not_leak(examination):
    usable = examination.usable("train")
    groups = [picture.group for picture in usable]
    train, held_out = content_split(groups, [picture.label for picture in usable], 0.3, seed=0)
    assert not {groups[i] for i in train} & {groups[i] for i in held_out}
    burst = {i for i, picture in enumerate(usable) if picture.path.name.startswith("burst_")}
    assert len(burst) == 3
    assert burst <= set(train) or burst <= set(held_out)


# ---------------------------------------------------------------- other folders


def test_a_sound_folder_is_called_sound(make):
    examination = examine(make(a=jpegs(0, 6), b=jpegs(100, 6)))
    assert examination.findings == ()
    assert "Nothing is wrong" in printed(examination, 80)
    assert contact_sheet(examination).height < 300


def test_a_copy_that_is_added_later_leaves_its_group_its_name(make):
    before = examine(make(a=jpegs(0, 6), b=jpegs(100, 6)))
    smaller = encoded(photo(0, 96, 72).resize((72, 54)), "JPEG")
    after = examine(make(a=[*jpegs(0, 6), smaller], b=jpegs(100, 6)))
    names = {picture.path: picture.group for picture in before.pictures}
    assert {p.path: p.group for p in after.pictures if p.path in names} == names
    copy = next(picture for picture in after.pictures if picture.path not in names)
    assert copy.group == before.pictures[0].group


def test_classes_that_are_small_or_lost(make):
    examination = examine(make(many=jpegs(0, 20), few=jpegs(100, 3), lost=[b"", b"<html>"]))
    words = {finding.kind: finding.words for finding in examination.findings}
    assert words["no_usable"] == "class 'lost' has no usable picture in train"
    assert words["few_pictures"] == "class 'few' has 3 usable in train"
    with pytest.raises(DataError, match=r"class 'lost' .* the file is empty"):
        examination.require_usable()
    examination = examine(make(many=jpegs(0, 20), few=jpegs(100, 3), lost=jpegs(200, 6)))
    assert [finding.words for finding in examination.of_kind("imbalance")] == [
        "'many' has 20 pictures in train, 'few' has 3: 7 to 1"
    ]


def test_every_picture_broken(make):
    examination = examine(make(a=[b"x"], b=[b"y"]))
    assert "No picture can be decoded" in printed(examination, 80)
    assert contact_sheet(examination).height > 300


def test_a_folder_that_vanishes(make):
    folder = make(a=jpegs(0, 5), b=jpegs(100, 5))
    for file in folder.train[:9]:
        file.path.unlink()
    examination = examine(folder)
    assert len(examination.of_kind("missing")) == 9
    assert len(examination.usable("train")) == 1
    examination.pictures[9].path.unlink()
    contact_sheet(examination)


def test_memory_stays_bounded(make):
    bombs = [png(25_000, 20_000, 1, 0), png(1, 20_000, 8, 0), png(20_000, 100, 8, 2)]
    folder = make(a=[*bombs, *jpegs(0, 5)], b=jpegs(100, 5))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    examination = examine(folder)
    assert len(examination.of_kind("too_large")) == 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150 * 1024


def test_an_interrupt_does_not_wait_for_the_rest(make):
    folder = make(a=jpegs(0, 40), b=jpegs(100, 40))

    def interrupt(done, total):
        assert total == 80
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        examine(folder, progress=interrupt)


def test_names_in_a_broken_encoding_survive(make):
    folder = make(a=jpegs(0, 5), b=jpegs(100, 5))
    raw = os.fsencode(folder.root / "a") + b"/caf\xe9.jpg"
    with open(raw, "wb") as file:  # noqa: PTH123
        file.write(b"")
    examination = examine(scan_folder(folder.root))
    assert "caf\\udce9.jpg" in examination.to_json()
    assert "caf\\udce9.jpg" in printed(examination, 100)
    contact_sheet(examination)
