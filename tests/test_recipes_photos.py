"""Recipes for photographs: each trains for two steps on tiny datasets, and what they wrote is used again."""

import csv
import importlib
import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from fastload import Loader, TrainConfig, Trainer, convert, open_dataset, settings
from fastload.errors import CheckpointError, ConfigError
from fastload.weights import build
from tests.conftest import ROOT, write_folder, write_image

sys.path.insert(0, str(ROOT / "recipes"))
import cnn_food11
import ensemble
import predict
import resnet_flowers
import sweep_flowers
import transfer
import transfer_ants_bees
import vit_flowers
import whole_checkpoints

pytestmark = pytest.mark.usefixtures("no_accelerate_left")
README = ROOT / "recipes" / "README.md"
SIZE = 40
FEW: dict[str, Any] = {
    "batch_size": 3,
    "epochs": 1,
    "max_steps": 2,
    "device": "cpu",
    "log_with": None,
    "weights": "none",
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_folder(tmp_path_factory.mktemp("photos") / "insects")
    (root / "cat_to_name.json").write_text(json.dumps({"bee": "honey bee", "ant": "red ant", "wasp": "wasp"}))
    return root


@pytest.fixture(scope="module")
def insects(source: Path) -> Path:
    return convert(source, source.parent / "insects.fastload", size=SIZE)


@pytest.fixture(scope="module")
def trained(insects: Path) -> Path:
    """The best checkpoint of a tiny network after two steps."""
    output = insects.parent / "trained"
    resnet_flowers.main(resnet_flowers.Settings(dataset=insects, model="test_resnet", size=SIZE, output=output, **FEW))
    return output / "best.safetensors"


def result_of(output: Path) -> dict[str, Any]:
    found = json.loads((output / "result.json").read_text())
    assert isinstance(found, dict)
    return found


# --- resnet_flowers ---


@pytest.mark.parametrize(
    ("model", "head"),
    [("resnet18", "fc."), ("vgg16.tv_in1k", "head.fc."), ("densenet121", "classifier."), ("inception_v3", "fc."),
     ("alexnet", "classifier.6."), ("squeezenet1_1", "classifier.1.")],
)  # fmt: skip
def test_the_head_of_the_notes_networks_is_found(model: str, head: str) -> None:
    with torch.device("meta"):  # shapes without memory
        network, _ = build(model, 5, "none")
    (found,) = transfer.head_of(network)
    assert found == head
    assert {len(p) for name, p in network.named_parameters() if name.startswith(head)} == {5}


@pytest.mark.parametrize("augment", ["notes", "strong", "flip", "none"])
def test_every_augmentation_gives_crops_and_validation_sees_them_whole_only_if_they_are_strong(augment: str) -> None:
    images = torch.randint(256, (3, SIZE, SIZE, 3), dtype=torch.uint8)
    train, valid = resnet_flowers.transforms(augment, 96, 64)
    assert train(images).shape == (3, 3, 64, 64)
    assert valid(images).shape == ((3, 3, 96, 96) if augment == "strong" else (3, 3, 64, 64))


def test_from_weights_a_new_head_comes_first_and_then_all_layers(insects: Path, trained: Path, tmp_path: Path) -> None:
    s = resnet_flowers.Settings(
        dataset=insects, model="test_resnet", size=SIZE, output=tmp_path / "run", **{**FEW, "weights": str(trained)}
    )
    resnet_flowers.main(s)
    result = result_of(tmp_path / "run")
    assert [e["phase"] for e in result["epochs"]] == ["head", "all"]
    assert result["weights"].startswith("best.safetensors")
    assert (result["size"], result["crop"]) == (SIZE, 32)
    assert [e["phase"] for e in result_of(trained.parent)["epochs"]] == ["all"], "from scratch no head alone"


def test_the_sweep_prints_the_notes_table_with_ours_beside_it(
    insects: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        sweep_flowers, "NOTES",
        {(SIZE, 1): {"head": "39% in 5m", "all": "76% in 6m"}, (256, 1): {"head": "87% in 13m", "all": "95% in 16m"}},
    )  # fmt: skip
    s = resnet_flowers.Settings(
        dataset=insects, model="test_resnet", sweep=True, head_epochs=1, output=tmp_path / "sweep", **FEW
    )
    resnet_flowers.main(s)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    result = result_of(tmp_path / "sweep" / f"{SIZE}px-1epochs")
    for line, phase, notes in zip(lines[2:4], ("head", "all"), ("39% in 5m", "76% in 6m"), strict=True):
        accuracy = next(e["accuracy"] for e in result["epochs"] if e["phase"] == phase)
        assert [phase, "test_resnet", "notes", notes, f"{accuracy:.2%}"] == [
            *(cell.strip() for cell in line.split("|")[3:6]), line.split("|")[7].strip(), line.split("|")[8].split()[0]
        ]  # fmt: skip
    assert f"stores {SIZE} px" in lines[4]
    monkeypatch.setattr(sweep_flowers, "NOTES", {(256, 1): {"head": "87% in 13m"}})
    with pytest.raises(ConfigError, match=f"stores {SIZE} px; convert it"):
        resnet_flowers.main(s)


# --- transfer_ants_bees ---


def three_layouts(root: Path) -> list[Path]:
    """Write the same 11 photographs as class folders, beside text files with their labels, and as a list."""
    rows = ["path,label,split"]
    seed = 0
    for split, counts in (("train", {"ants": 4, "bees": 3}), ("val", {"ants": 2, "bees": 2})):
        for name, count in counts.items():
            for number in range(count):
                seed += 1
                for image in (
                    root / "folders" / split / name,
                    root / "texts" / split / f"{name}_image",
                    root / "listed",
                ):
                    write_image(image / f"{split}{name}{number}.jpg", seed)
                text = root / "texts" / split / f"{name}_label" / f"{split}{name}{number}.txt"
                text.parent.mkdir(parents=True, exist_ok=True)
                text.write_text(f"{name}\n")
                rows.append(f"{split}{name}{number}.jpg,{name},{split}")
    (root / "listed" / "photographs.csv").write_text("\n".join(rows) + "\n")
    return [root / "folders", root / "texts", root / "listed" / "photographs.csv"]


def test_the_notes_three_layouts_of_ants_and_bees_give_the_same_dataset(tmp_path: Path) -> None:
    made = [convert(source, tmp_path / f"{source.stem}.fastload", size=SIZE) for source in three_layouts(tmp_path)]
    layouts = [open_dataset(path).manifest.source["layout"] for path in made]
    assert layouts == ["split-class-folders", "sidecars", "list"]
    folders, *others = ([content_of(open_dataset(path, split)) for split in ("train", "valid")] for path in made)
    assert [len(split) for split in folders] == [7, 4]
    assert all(other == folders for other in others)
    assert {open_dataset(path).mean for path in made} == {open_dataset(made[0]).mean}


def content_of(dataset: Any) -> dict[bytes, str]:
    """Return the class of each image: the order of samples follows their paths, which differ."""
    return {image.numpy().tobytes(): dataset.classes[label] for image, label in dataset}


@pytest.mark.parametrize("frozen", [True, False])
def test_ants_and_bees_from_a_weights_file(insects: Path, trained: Path, tmp_path: Path, frozen: bool) -> None:
    dataset = convert(three_layouts(tmp_path)[1], tmp_path / "insects.fastload", size=SIZE)
    s = transfer_ants_bees.Settings(
        dataset=dataset, model="test_resnet", frozen=frozen, size=SIZE, crop=32, output=tmp_path / "run",
        **{**FEW, "weights": str(trained)},
    )  # fmt: skip
    transfer_ants_bees.main(s)
    result = result_of(tmp_path / "run")
    assert [e["phase"] for e in result["epochs"]] == ["head" if frozen else "all"]
    assert "fc" in result["weights"], "three classes there, two here: the head is new"
    before, _ = whole_checkpoints.open_checkpoint(trained)
    after, _ = whole_checkpoints.open_checkpoint(tmp_path / "run" / "last.safetensors")
    same = [
        torch.equal(a, b)
        for (name, a), (_, b) in zip(before.named_parameters(), after.named_parameters(), strict=True)
        if "fc" not in name
    ]
    assert all(same) if frozen else not any(same)


# --- vit_flowers, cnn_food11 ---


def test_a_vision_transformer(insects: Path, tmp_path: Path) -> None:
    s = vit_flowers.Settings(dataset=insects, size=32, patch_size=16, depth=1, output=tmp_path / "run", **FEW)
    vit_flowers.main(s)
    network, about = whole_checkpoints.open_checkpoint(tmp_path / "run" / "best.safetensors")
    assert network(whole_checkpoints.view(about)(torch.zeros(2, SIZE, SIZE, 3, dtype=torch.uint8))).shape == (2, 3)


@pytest.fixture(scope="module")
def food(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of images renamed to Food-11's layout by the command in the README."""
    here = tmp_path_factory.mktemp("food")
    readme = README.read_text()
    block = next(b for b in readme.split("```sh\n")[1:] if "food11/training" in b).split("```")[0]
    commands = "\n".join(line for line in block.splitlines() if not line.startswith(("fastload", "python")))
    (here / "flowers5").symlink_to(source / "train")
    subprocess.run(["bash", "-euc", commands], cwd=here, check=True)
    return convert(here / "food11", size=32)


def test_the_readmes_command_makes_food11s_layout_of_class_folders(food: Path) -> None:
    train, valid = (open_dataset(food, split) for split in ("train", "valid"))
    assert train.manifest.source["layout"] == "file-names"
    assert train.classes == ("0", "1", "2")
    assert torch.bincount(valid.labels).tolist() == [1, 1, 1], "every tenth of each class, from the first on"
    assert torch.bincount(train.labels).tolist() == [3, 4, 3], "ant, bee, wasp"


@pytest.fixture(scope="module")
def cooks(food: Path) -> list[Path]:
    """Two checkpoints of different networks on the same food."""
    outputs = {model: food.parent / f"run-{model}" for model in ("food11", "test_resnet")}
    for model, output in outputs.items():
        cnn_food11.main(cnn_food11.Settings(dataset=food, model=model, size=32, output=output, **FEW))
    return [output / "best.safetensors" for output in outputs.values()]


def test_the_notes_settings_for_food11(cooks: list[Path]) -> None:
    config = result_of(cooks[0].parent)["config"]
    assert {k: config[k] for k in ("optimizer", "lr", "weight_decay", "clip_grad_norm", "patience", "monitor")} == {
        "optimizer": "adam", "lr": 3e-4, "weight_decay": 1e-5, "clip_grad_norm": 10.0, "patience": 300,
        "monitor": "loss",
    }  # fmt: skip


def test_the_notes_network_has_the_notes_layers() -> None:
    network = cnn_food11.Food11(11, 128)
    convolutions = [m.out_channels for m in network if isinstance(m, torch.nn.Conv2d)]
    linears = [(m.in_features, m.out_features) for m in network if isinstance(m, torch.nn.Linear)]
    assert convolutions == [64, 128, 256, 512, 512]
    assert linears == [(512 * 4 * 4, 1024), (1024, 512), (512, 11)]
    assert network(torch.zeros(1, 3, 128, 128)).shape == (1, 11)
    with pytest.raises(ConfigError, match="multiple of 32"):
        cnn_food11.Food11(11, 100)


# --- predict ---


def options_of_predict(trained: Path, images: Path, out: Path, **more: Any) -> predict.Settings:
    return predict.Settings(
        checkpoint=trained, images=images, table=out / "p.csv", sheet=out / "p.png", device="cpu", batch_size=3, **more
    )


def test_a_validation_image_gets_the_probabilities_that_it_got_in_validation(
    source: Path, insects: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predict.main(options_of_predict(trained, source / "valid", tmp_path, top=9))
    assert "7 images: " in capsys.readouterr().out
    with (tmp_path / "p.csv").open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    files = (source / "valid").rglob("*.jpg")
    assert [row["file"] for row in rows] == sorted(str(f.relative_to(source / "valid")) for f in files)
    assert {row["class1"] for row in rows} <= {"honey bee", "red ant", "wasp"}, "names for people"

    # In the dataset the same images lie in another order; samples.csv says which is which.
    network, about = whole_checkpoints.open_checkpoint(trained)
    valid = open_dataset(insects, "valid")
    trainer = Trainer(TrainConfig(device="cpu", output=tmp_path / "none"))
    outputs, _ = trainer.predict(network, fastload_loader(valid, about))
    wanted = dict(zip(paths_of(insects, "valid"), outputs.softmax(1), strict=True))
    for row in rows:
        got = {row[f"class{k}"]: float(row[f"probability{k}"]) for k in (1, 2, 3)}
        p = wanted["valid/" + row["file"]]
        assert [got[name] for name in about["display_names"]] == pytest.approx(p.tolist(), abs=1e-3)
    with Image.open(tmp_path / "p.png") as sheet:
        assert sheet.width > sheet.height > 0


def fastload_loader(dataset: Any, about: dict[str, Any]) -> Loader:
    return Loader(dataset, 4, augment=whole_checkpoints.view(about), shuffle=False)


def paths_of(dataset: Path, split: str) -> list[str]:
    with (dataset / "samples.csv").open(newline="") as opened:
        return [row["path"] for row in csv.DictReader(opened) if row["split"] == split]


def test_one_image_and_images_that_are_none(
    source: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = next((source / "valid" / "bee").iterdir())
    predict.main(options_of_predict(trained, image, tmp_path, top=2))
    assert capsys.readouterr().out.count("%  ") == 2
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "good.jpg").write_bytes(image.read_bytes())
    (tmp_path / "mixed" / "bad\x1b.jpg").write_bytes(b"no image")
    predict.main(options_of_predict(trained, tmp_path / "mixed", tmp_path))
    assert "left out: bad\\x1b.jpg: not an image" in capsys.readouterr().err
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 2
    (tmp_path / "mixed" / "good.jpg").unlink()
    for nothing in (tmp_path / "mixed", tmp_path / "missing.jpg"):
        with pytest.raises(ConfigError, match="no image there that can be read"):
            predict.main(options_of_predict(trained, nothing, tmp_path))
    with pytest.raises(ConfigError, match=r"p\.csv cannot be written \(File exists\)"):
        predict.main(options_of_predict(trained, image, image))
    with pytest.raises(ConfigError, match="top=0: at least 1 is needed"):
        options_of_predict(trained, image, tmp_path, top=0)
    with pytest.raises(ConfigError, match="batch_size=-1: at least 1 is needed"):
        predict.Settings(checkpoint=trained, images=image, batch_size=-1)


@pytest.mark.parametrize("wrong", ["{", "[]", "{}", '{"model": "test_resnet", "classes": 3}', None])
def test_a_checkpoint_that_does_not_say_what_it_is(trained: Path, tmp_path: Path, wrong: str | None) -> None:
    (tmp_path / "a.safetensors").write_bytes(trained.read_bytes())
    if wrong is not None:
        (tmp_path / "a.json").write_text(wrong)
    with pytest.raises(CheckpointError, match="a recipe for photographs wrote"):
        whole_checkpoints.open_checkpoint(tmp_path / "a.safetensors")


# --- ensemble ---


def test_votes_weigh_probabilities(food: Path, cooks: list[Path], tmp_path: Path) -> None:
    s = ensemble.Settings(dataset=food, checkpoints=tuple(cooks), device="cpu", result=tmp_path / "result.json")
    ensemble.main(replace(s, votes=(1, 3)))
    got = json.loads((tmp_path / "result.json").read_text())
    valid = open_dataset(food, "valid")
    p = []
    for file in cooks:
        network, about = whole_checkpoints.open_checkpoint(file)
        images = whole_checkpoints.view(about)(torch.stack([image for image, _ in valid]))
        p.append(network.eval()(images).softmax(1))
    accuracies = [(x.argmax(1) == valid.labels).float().mean().item() for x in (*p, p[0] / 4 + 3 * p[1] / 4)]
    assert [row["accuracy"] for row in got["members"]] == pytest.approx(accuracies[:2])
    assert got["accuracy"] == pytest.approx(accuracies[2])
    with pytest.raises(ConfigError, match="give each a number"):
        ensemble.main(replace(s, votes=(1,)))


def test_checkpoints_of_other_classes_do_not_vote(food: Path, trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="other classes"):
        ensemble.main(ensemble.Settings(dataset=food, checkpoints=(trained,), device="cpu", result=tmp_path / "r.json"))


def test_a_split_without_labels_judges_nobody(food: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    valid = open_dataset(food, "valid")
    valid.labels.fill_(-1)
    monkeypatch.setattr("fastload.open_dataset", lambda *_: valid)
    s = ensemble.Settings(dataset=food, checkpoints=(tmp_path / "none",), device="cpu", result=tmp_path / "result.json")
    with pytest.raises(ConfigError, match=r"--split valid of .* has no labels"):
        ensemble.main(s)


def test_mirrored_images_vote_too(food: Path, cooks: list[Path], tmp_path: Path) -> None:
    s = ensemble.Settings(
        dataset=food, checkpoints=(cooks[1],), tta=True, device="cpu", result=tmp_path / "result.json"
    )
    ensemble.main(s)
    network, about = whole_checkpoints.open_checkpoint(cooks[1])
    valid = open_dataset(food, "valid")
    images = whole_checkpoints.view(about)(torch.stack([image for image, _ in valid]))
    outputs = network.eval()(images) + network(images.flip(3))
    accuracy = (outputs.argmax(1) == valid.labels).float().mean().item()
    assert json.loads((tmp_path / "result.json").read_text())["accuracy"] == pytest.approx(accuracy)


# --- what the documents say ---


def test_every_command_that_is_named_is_one() -> None:
    no_settings = (
        "demo", "demo_images", "inputs", "lookahead", "models", "several", "speed_network", "sweep_flowers", "transfer",
        "whole_checkpoints",
    )  # fmt: skip
    files = [file for file in (ROOT / "recipes").glob("*.py") if file.stem not in no_settings]
    found = set()
    for file in (*files, README):
        for name, words in re.findall(r"^python recipes/(\w+)\.py([^#\n]*)", file.read_text(), re.MULTILINE):
            recipe = importlib.import_module(name)
            # What a run leaves is not here yet.
            words = re.sub(r"--config runs/\S+|--help", "", words).replace("recipes/", f"{ROOT}/recipes/")
            assert isinstance(settings.parse(recipe.Settings, shlex.split(words)), recipe.Settings)
            found.add(name)
    assert found == {file.stem for file in files}
