import inspect
import os
import sys
import unicodedata

import pytest

from mobilenetv2.data.folders import PictureFile, scan_folder
from mobilenetv2.data.picture_tree import DRAWN_HERE, list_pictures
from mobilenetv2.errors import DataError


@pytest.fixture
def make(tmp_path):
    def make(*names):
        for name in names:
            path = tmp_path / "root" / name
            if name.endswith("/"):
                path.mkdir(parents=True, exist_ok=True)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
        return tmp_path / "root"

    return make


def names(root, files):
    return [file.path.relative_to(root).as_posix() for file in files]


def test_classes_alone(make):
    root = make("dog/b.jpg", "dog/a.PNG", "cat/deep/er/c.webp", "cat/d.jpeg")
    folder = scan_folder(root)
    assert folder.classes == ("cat", "dog")
    assert names(root, folder.train) == [
        "cat/d.jpeg",
        "cat/deep/er/c.webp",
        "dog/a.PNG",
        "dog/b.jpg",
    ]
    assert [file.label for file in folder.train] == [0, 0, 1, 1]
    assert folder.train[0] == PictureFile(root / "cat/d.jpeg", 0)
    assert (folder.val, folder.test, folder.passed_over) == (None, None, ())
    assert list(folder.splits) == ["train"]


def test_a_class_alone_in_other_characters(make):
    with pytest.raises(DataError, match="one class only, 'café'"):
        scan_folder(make("cafe\u0301/1.jpg"))


@pytest.mark.parametrize(
    ("train", "test"), [("training", "testing"), ("training_set", "test_set"), ("Train", "Test")]
)
def test_other_names_of_splits(make, train, test):
    root = make(*(f"{split}/{name}/1.jpg" for split in (train, test) for name in "ab"))
    folder = scan_folder(root)
    assert folder.classes == ("a", "b")
    assert names(root, folder.test) == [f"{test}/a/1.jpg", f"{test}/b/1.jpg"]


def test_folders_deeper_than_calls_may_be(make):
    deep = "/".join("d" * 400)
    root = make("a/1.jpg", "b/1.jpg", f"b/{deep}/2.jpg")
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 150)
    try:
        folder = scan_folder(root)
    finally:
        sys.setrecursionlimit(before)
    assert names(root, folder.train) == ["a/1.jpg", "b/1.jpg", f"b/{deep}/2.jpg"]


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_splits_beside_train(make, val):
    root = make("train/a/1.jpg", "train/b/1.jpg", f"{val}/a/2.jpg", f"{val}/b/2.jpg")
    folder = scan_folder(root)
    assert names(root, folder.train) == ["train/a/1.jpg", "train/b/1.jpg"]
    assert names(root, folder.val) == [f"{val}/a/2.jpg", f"{val}/b/2.jpg"]
    assert folder.test is None


def test_train_with_test_or_alone(make):
    root = make("train/a/1.jpg", "train/b/1.jpg")
    assert names(root, scan_folder(root).train) == ["train/a/1.jpg", "train/b/1.jpg"]
    make("test/a/1.jpg", "test/b/1.jpg", "docs/x.jpg", "preview.jpg")
    folder = scan_folder(root)
    assert names(root, folder.test) == ["test/a/1.jpg", "test/b/1.jpg"]
    assert folder.val is None
    assert {path.name: reason for path, reason in folder.passed_over} == {
        "docs": "beside train/",
        "preview.jpg": "in no class",
    }


def test_a_class_may_be_called_train(make):
    root = make("train/1.jpg", "car/1.jpg", "car/old/2.jpg")
    assert scan_folder(root).classes == ("car", "train")


def test_unicode_names_in_either_form_are_one_class(make):
    composed, decomposed = unicodedata.normalize("NFC", "été"), unicodedata.normalize("NFD", "été")
    assert composed != decomposed
    root = make(
        f"train/{composed}/花 🐈.jpg", "train/b/1.jpg", f"val/{decomposed}/1.jpg", "val/b/1.jpg"
    )
    folder = scan_folder(root)
    assert folder.classes == ("b", composed)
    assert len(folder.val) == 2


def test_what_is_no_picture_is_passed_over_and_counted(make):
    root = make(
        "a/1.jpg", "b/1.jpg", "a/.hidden.jpg", "a/notes.txt", "a/Thumbs.db", "a/.cache/2.jpg",
        "__MACOSX/a/1.jpg", "@eaDir/1.jpg", ".git/1.jpg", "readme.md", "a/folder.jpg/2.jpg",
    )  # fmt: skip
    os.mkfifo(root / "a/pipe.jpg")
    folder = scan_folder(root)
    assert names(root, folder.train) == ["a/1.jpg", "a/folder.jpg/2.jpg", "b/1.jpg"]
    reasons = {path.relative_to(root).as_posix(): reason for path, reason in folder.passed_over}
    assert reasons == {
        ".git": "hidden",
        "@eaDir": "hidden",
        "__MACOSX": "hidden",
        "readme.md": "not a picture",
        "a/.cache": "hidden",
        "a/.hidden.jpg": "hidden",
        "a/Thumbs.db": "not a picture",
        "a/notes.txt": "not a picture",
        "a/pipe.jpg": "not a regular file",
    }


def test_links_are_followed_once_and_never_in_circles(make, tmp_path):
    root = make("a/1.jpg", "a/deep/2.jpg", "b/1.jpg")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "far.jpg").touch()
    (root / "a/away").symlink_to(elsewhere)
    (root / "a/0_again").symlink_to(root / "a/deep")
    (root / "a/deep/up").symlink_to(root / "a")
    (root / "a/deep/root").symlink_to(root)
    (root / "a/one.jpg").symlink_to(elsewhere / "far.jpg")
    (root / "a/gone.jpg").symlink_to("nowhere.jpg")
    (root / "a/self.jpg").symlink_to("self.jpg")
    (root / "c").symlink_to(elsewhere)
    folder = scan_folder(root)
    found = names(root, folder.train)
    assert [name for name in found if name.startswith("a/")] == [
        "a/1.jpg",
        "a/away/far.jpg",
        "a/deep/2.jpg",
        "a/one.jpg",
    ]
    assert found[-1] == "c/far.jpg"
    reasons = {path.relative_to(root).as_posix(): reason for path, reason in folder.passed_over}
    assert reasons["a/gone.jpg"] == reasons["a/self.jpg"] == "a link to nothing"
    assert (
        reasons["a/deep/up"] == reasons["a/0_again"] == "a link to a folder that is already counted"
    )


def test_the_order_depends_on_names_alone(make):
    root = make(*(f"{name}/{number}.jpg" for name in "cba" for number in (10, 9, 1)))
    first = scan_folder(root)
    for name in "abc":
        (root / name).rename(root / f"{name}_")
        (root / f"{name}_").rename(root / name)
    assert scan_folder(root) == first
    assert names(root, first.train)[:3] == ["a/1.jpg", "a/10.jpg", "a/9.jpg"]


@pytest.mark.parametrize(
    ("layout", "stray"),
    [
        (["a/1.jpg", "b/1.jpg", "loose.jpg", "notes.txt"], "loose.jpg"),
        (["train/a/1.jpg", "train/b/1.jpg", "val/x.jpg", "val/a/1.jpg", "val/b/1.jpg"],
         "val/x.jpg"),
        (["train/a/1.jpg", "train/b/1.jpg", "x.jpg", "val/a/1.jpg", "val/b/1.jpg"], "x.jpg"),
    ],
)  # fmt: skip
def test_pictures_beside_the_classes_are_told_of(make, layout, stray):
    folder = scan_folder(make(*layout))
    assert folder.in_no_class == (folder.root / stray,)
    assert len(folder.train) == 2
    assert folder.classes == ("a", "b")


@pytest.mark.parametrize("parent", ["", "train/"])
def test_what_this_program_drew_is_no_class(make, parent):
    """Whoever trains in the folder of their pictures finds runs/ there the next time."""
    runs = ["x/metrics.jsonl", "x/curves.png", "more/y/first-batch.png", "lr/find-lr.png",
            "report/test-confusion.png", "report/doctor.png", "b/benchmark.png"]  # fmt: skip
    others = ["train/a/1.jpg", "train/b/1.jpg"] if parent else ["a/1.jpg", "b/1.jpg"]
    root = make(*others, *(f"runs/{name}" for name in runs))
    folder = scan_folder(root)
    assert folder.classes == ("a", "b")
    assert len(folder.train) == 2
    assert (root / "runs", DRAWN_HERE) in folder.passed_over or parent
    if parent:
        make("val/a/1.jpg", "val/b/1.jpg")
        assert (root / "runs", DRAWN_HERE) in scan_folder(root).passed_over
        return
    mixed = scan_folder(make("runs/x/1.jpg"))  # a picture of somebody's own
    assert mixed.classes == ("a", "b", "runs")
    assert len(mixed.train) == 2 + 1 + 6


def test_a_report_beside_pictures_hides_none(make):
    folder = scan_folder(
        make("train/a/1.jpg", "train/b/1.jpg", "train/doctor.json", "train/doctor.png",
             "test/a/1.jpg", "test/b/1.jpg", "test/evaluation.json", "test/a/metrics.jsonl")
    )  # fmt: skip
    assert (len(folder.train), len(folder.test)) == (2, 2)


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        (["empty/"], "No pictures"),
        (["a/notes.txt", "b/notes.txt"], "No pictures"),
        (["a/1.jpg"], "one class only, 'a'"),
        (["data/a/1.jpg", "data/b/1.jpg"], "did you mean .*/data, which holds 2 folders"),
        (["x/y/a/1.jpg", "x/y/b/1.jpg"], "did you mean .*/x/y, which holds 2 folders"),
        (["a/1.jpg", "b/"], "class 'b'"),
        (["a/1.jpg", "b/1.jpg", "c/x.txt", "d/"], "classes 'c', 'd'"),
        (["1.jpg", "2.jpg"], "2 pictures but no class folders"),
        (["1.jpg", "2.jpg", "old/"], "2 pictures but no class folders with pictures"),
        (
            ["1.jpg", "2.jpg", "old/3.jpg"],
            "one class only, 'old'.* 2 pictures beside .*1.jpg: move",
        ),
        (["a/1.jpg", "b/", "1.jpg"], "in the class 'b'.* 1 picture beside the class folders"),
        (["train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg"], "lacks class 'b'"),
        (["train/a/1.jpg", "train/b/1.jpg", "test/a/1.jpg"], "lacks class 'b'"),
        (["train/a/1.jpg", "train/b/1.jpg", "val/a/1", "val/b/1.jpg"], "class 'a' of .*val"),
        (
            ["train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", "val/b/1.jpg", "val/c/1.jpg"],
            "classes of .*train, but it has class 'c' beyond those",
        ),
        (
            ["train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", "val/bee/1.jpg"],
            "lacks class 'b' and has class 'bee' beyond those",
        ),
        (["train/a/1.jpg", "train/b/1.jpg", "test/1.jpg"], "mobilenetv2 predict"),
        (["val/a/1.jpg", "test/a/1.jpg"], "no train/"),
        (["train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", "valid/a/1.jpg"], "both for val"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_folders_that_cannot_be_used(make, layout, words):
    root = make(*layout)
    with pytest.raises(DataError, match=words) as caught:
        scan_folder(root)
    assert str(root) in str(caught.value)


def test_no_folder_at_all(make, tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        scan_folder(tmp_path / "nowhere")
    root = make("a.jpg")
    with pytest.raises(DataError, match="is a file"):
        scan_folder(root / "a.jpg")


def test_list_pictures(make):
    root = make("b/2.jpg", "b/1.jpg", "b/x.txt", "a.dat", "c/")
    (root / "b/round").symlink_to(root)
    assert list_pictures([root / "a.dat", root / "b", root / "b/1.jpg"]) == [
        root / "a.dat",
        root / "b/1.jpg",
        root / "b/2.jpg",
    ]
    with pytest.raises(DataError, match=r"nowhere.*does not exist"):
        list_pictures([root / "b", root / "nowhere"])
    with pytest.raises(DataError, match="No pictures in"):
        list_pictures([root / "c"])
    with pytest.raises(DataError, match="No pictures are named"):
        list_pictures([])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list everything")
@pytest.mark.parametrize("where", [".", "cat"])
def test_a_folder_without_permission_is_told_apart_from_an_empty_one(make, where):
    root = make("cat/1.jpg", "dog/1.jpg")
    (root / where).chmod(0)
    try:
        with pytest.raises(DataError, match="No permission to list"):
            scan_folder(root)
        with pytest.raises(DataError, match="No permission to list"):
            list_pictures([root / where])
    finally:
        (root / where).chmod(0o755)
