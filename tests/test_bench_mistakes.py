"""bench on data and with options that nobody has checked: one sentence and exit code 2."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from bench.cli import main
from bench.peers import training_folder
from fastload.records import Record, Source
from tests.conftest import write_image

SIZES = ("--size", "20", "--batch-size", "3")


def write_idx(root: Path) -> None:
    root.mkdir()
    for name, array in (("images-idx3", np.zeros((9, 8, 8), np.uint8)), ("labels-idx1", np.zeros(9, np.uint8))):
        head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
        (root / f"train-{name}-ubyte").write_bytes(head + array.tobytes())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("loader", "CUT", *SIZES, "--store", "24"), "bee/003.jpg: "),
        (("memory", "CUT", *SIZES, "--store", "24"), "bee/003.jpg: "),
        (("gpu-util", "CUT", *SIZES, "--model", "test_resnet", "--device", "cpu"), "bee/003.jpg: "),
        (("loader", "IDX"), "holds its samples in the layout idx"),
        (("memory", "IDX"), "holds its samples in the layout idx"),
        (("gpu-util", "IDX", "--model", "test_resnet"), "pass a folder of class folders"),
        (("loader", "GOOD", "--batch-size", "14"), "has 13 training images, less than one batch of 14"),
        (("memory", "GOOD", "--batch-size", "14"), "less than one batch of 14; use a smaller --batch-size"),
        (("loader", "GOOD", "--images", "0"), "max_images=0: at least 1 is needed"),
        (("loader", "GOOD", "--batch-size", "0"), "batch_size=0: at least 1 is needed"),
        (("memory", "GOOD", "--batch-size", "0"), "batch_size=0"),
        (("loader", "GOOD", "--workers", "-1"), "0 or more workers"),
    ],
)
def test_a_mistake_is_one_sentence(
    words: tuple[str, ...], said: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if "CUT" in words:
        broken = folder / "train" / "bee" / "003.jpg"
        broken.write_bytes(broken.read_bytes()[:-200])
    write_idx(tmp_path / "idx")
    places = {"GOOD": str(folder), "CUT": str(folder), "IDX": str(tmp_path / "idx")}
    monkeypatch.setattr(sys, "argv", ["bench", *(places.get(word, word) for word in words)])
    with pytest.raises(SystemExit) as ended:
        main()
    err = capsys.readouterr().err
    assert ended.value.code == 2
    assert said in err
    assert "Traceback" not in err
    assert "0000" not in err, "a link's name says nothing to anybody"


def test_every_ending_is_linked_by_one_that_peers_list(tmp_path: Path) -> None:
    for number, ending in enumerate((".jfif", ".gif", ".JPG", ".webp")):
        write_image(tmp_path / "in" / f"class{number}" / "a.png", number)
        Image.open(tmp_path / "in" / f"class{number}" / "a.png").save(
            tmp_path / "in" / f"class{number}" / f"b{ending}", {".jfif": "jpeg", ".JPG": "jpeg"}.get(ending)
        )
        (tmp_path / "in" / f"class{number}" / "a.png").unlink()
    with training_folder(tmp_path / "in", 100) as (root, count):
        listed = ImageFolder(str(root))
        assert count == len(listed) == 4
        assert [label for _, label in listed] == [0, 1, 2, 3]
        assert {Path(file).suffix.lower() for file, _ in listed.samples} == {".jpg"}


def test_images_without_a_label_are_no_class(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = ["bee/000.jpg", "ant/000.jpg", "wasp/000.jpg"]
    records = tuple(Record(path=f"train/{path}", label=n - 1, split="train") for n, path in enumerate(paths))
    source = Source(root=folder, layout="list", classes=("ant", "wasp"), records=records)
    monkeypatch.setattr("bench.peers.detect", lambda _: source)
    with training_folder(folder, 100) as (root, count):
        assert (count, sorted(f.name for f in root.iterdir())) == (2, ["00000", "00001"])
