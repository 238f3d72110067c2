"""Published weights: found where they lie, said where not; no network is used."""

import hashlib
import io
import re
import socket
import threading
import time
import urllib.error
from email.message import Message
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from huggingface_hub import constants
from safetensors.torch import load_file, save, save_file

from fastload import weights as module
from fastload.errors import CheckpointError, ConfigError
from fastload.weights import build, export, find_published, resolve

NAME = "resnet18.tv_in1k"


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give this test empty caches, and no network."""

    def no_network(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network in tests")

    monkeypatch.delenv("FASTLOAD_WEIGHTS", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # whatever HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE say
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    return tmp_path


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file such as the published one: of 1000 classes."""
    file = tmp_path_factory.mktemp("published") / "model.safetensors"
    torch.manual_seed(5)
    save_file(timm.create_model("resnet18").state_dict(), file)
    return file


def test_absent_it_names_every_place_and_the_command(nowhere: Path) -> None:
    begin = time.monotonic()
    with pytest.raises(CheckpointError) as error:
        resolve("auto", NAME)
    assert time.monotonic() - begin < 5
    for said in (
        "$FASTLOAD_WEIGHTS is not set", f"{nowhere}/hub", "timm/resnet18.tv_in1k", "checkpoints/resnet18-f37072fd.pth",
        "cannot be reached (no network in tests)", f"fastload weights {NAME} -o FILE.safetensors", "--weights none",
    ):  # fmt: skip
        assert said in str(error.value)


def test_a_host_that_never_answers_costs_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()

    def never(*_: object, **__: object) -> None:
        answered.wait(60)
        raise urllib.error.URLError("late")

    monkeypatch.setattr(module, "PROBE_SECONDS", 0.05)
    monkeypatch.setattr("urllib.request.urlopen", never)
    try:
        with pytest.raises(CheckpointError, match=r"no answer in 0\.05 s"):
            resolve("auto", NAME)
    finally:
        answered.set()


class Answer(io.BytesIO):
    def info(self) -> Message:
        return Message()


def test_a_download_is_whole_or_nothing_and_waits_no_longer_than_told(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float | None] = []
    answers: list[bytes] = []

    def serve(*_: object, **__: object) -> Answer:
        waits.append(socket.getdefaulttimeout())
        return Answer(answers[-1])

    monkeypatch.setattr("urllib.request.urlopen", serve)
    monkeypatch.setattr(torch.hub, "urlopen", serve)
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(99)}, buffer)
    pth, tensors = buffer.getvalue(), save({"a": torch.zeros(99)})
    right = hashlib.sha256(b"weights").hexdigest()[:8]
    before = socket.getdefaulttimeout()
    looked: list[str] = []
    for name, answer, is_whole in (
        (f"net-{right}.pth", b"weights", True), ("net-0123abcd.pth", b"weights", False),
        # Without a checksum in its name a file is held against itself.
        ("net-1.pth", pth, True), ("net-2.pth", pth[:-40], False), ("net-3.pth", b"<html>", False),
        ("net-4.safetensors", tensors, True), ("net-5.safetensors", tensors[:-40], False),
    ):  # fmt: skip
        answers.append(answer)
        published = module.Published(name="net", repo=None, url=f"https://host/{name}")
        assert (module._download(published, looked) is not None) == is_whole
        assert (nowhere / "torch" / "checkpoints" / name).exists() == is_whole
    assert looked == [
        "https://host/net-0123abcd.pth: what came has not the checksum in its name",
        *(f"https://host/{name}: what came is no whole file of weights"
          for name in ("net-2.pth", "net-3.pth", "net-5.safetensors")),
    ]  # fmt: skip
    assert {p.name for p in (nowhere / "torch" / "checkpoints").iterdir()} == {
        "net-1.pth", f"net-{right}.pth", "net-4.safetensors"
    }  # fmt: skip
    assert waits[1] == module.STALL_SECONDS
    assert socket.getdefaulttimeout() == before


def test_offline_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE is set"):
        resolve("auto", NAME)


def in_hub_cache(root: Path, published: Path) -> None:
    folder = root / "hub" / "models--timm--resnet18.tv_in1k"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc" / "model.safetensors").write_bytes(published.read_bytes())


def in_torch_cache(root: Path, published: Path) -> None:
    folder = root / "torch" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(load_file(published), folder / "resnet18-f37072fd.pth")


def test_the_places_in_their_order(nowhere: Path, published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_torch_cache(nowhere, published)
    model, origin = build(NAME, 5, "auto")
    assert origin == f"{NAME}, torch hub cache (resnet18-f37072fd.pth); left as they were: fc.weight, fc.bias"
    assert torch.equal(model.conv1.weight, load_file(published)["conv1.weight"])  # type: ignore[union-attr, arg-type]
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 5)
    in_hub_cache(nowhere, published)
    found = resolve("auto", NAME)
    assert found is not None
    assert found.origin == "timm/resnet18.tv_in1k, Hugging Face cache"
    folder = nowhere / "mine"
    folder.mkdir()
    monkeypatch.setenv("FASTLOAD_WEIGHTS", str(folder))
    assert resolve("auto", NAME) == found  # the folder does not have it
    export(NAME, folder / f"{NAME}.safetensors")
    found = resolve("auto", NAME)
    assert found is not None
    assert found.file.parent == folder
    assert load_file(found.file).keys() == load_file(published).keys()
    monkeypatch.setenv("FASTLOAD_WEIGHTS", str(published))
    found = resolve("auto", NAME)
    assert found is not None
    assert found.file == published


def test_a_file_and_none(published: Path, tmp_path: Path) -> None:
    assert resolve("none", NAME) is None
    assert resolve(None, NAME) is None
    _, origin = build("resnet18", 1000, published)
    assert origin == "model.safetensors"
    torch.manual_seed(0)
    model, origin = build("resnet18", 3, "none")
    assert origin == "none: from scratch"
    with pytest.raises(CheckpointError, match="another model"):
        build("resnet34", 3, published)
    with pytest.raises(CheckpointError, match="no such file"):
        build("resnet18", 3, tmp_path / "nothing.pth")
    torch.save(model, tmp_path / "code.pth")
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        build("resnet18", 3, tmp_path / "code.pth")
    with pytest.raises(ConfigError, match=r"call it a\.safetensors"):
        export("resnet18", tmp_path / "a.pth")


def test_names() -> None:
    assert find_published("resnet18").name == "resnet18.a1_in1k"
    assert find_published("squeezenet1_0").repo is None
    assert str(find_published("squeezenet1_0").url).endswith(".pth")
    vit = find_published("vit_tiny_patch16_224")
    assert (vit.repo, vit.url) == ("timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k", None)  # not an .npz
    with pytest.raises(ConfigError, match=r"resnet18\.tv_in1k"):
        find_published("resnet18.nonsense")
    with pytest.raises(ConfigError, match="did you mean"):
        find_published("resnet1")
    with pytest.raises(ConfigError, match="neither"):
        build("nonsense\x1b", 3, "none")


@pytest.mark.parametrize("name", ["vgg11", "densenet121"])
def test_torchvisions_own_files_fit_timms_networks(name: str) -> None:
    url = find_published(f"{name}.tv_in1k").url
    assert url is not None
    assert url == getattr(torchvision.models.get_model_weights(name), "IMAGENET1K_V1").url  # noqa: B009
    with torch.device("meta"):  # names and shapes: VGG11 has 129 million weights
        model, given = timm.create_model(name), torchvision.models.get_model(name).state_dict()
    # As the files have them: DenseNet's are older than torchvision's names, and than the count of batches.
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", k): t for k, t in given.items()}
    convert = module._conversion_for(model)
    assert convert is not None
    got = convert({k: t for k, t in old.items() if "num_batches" not in k}, model)
    expected = {k: t.shape for k, t in model.state_dict().items() if "num_batches" not in k}
    assert {k: t.shape for k, t in got.items()} == expected


def test_a_vit_of_another_image_size_keeps_its_positions(tmp_path: Path) -> None:
    small = {"embed_dim": 32, "depth": 1, "num_heads": 2}
    large = timm.create_model("vit_tiny_patch16_224", img_size=64, **small)
    save_file(large.state_dict(), tmp_path / "vit.safetensors")
    model, origin = build("vit_tiny_patch16_224", 5, tmp_path / "vit.safetensors", img_size=96, **small)
    assert origin == "vit.safetensors; left as they were: head.weight, head.bias"
    assert model.pos_embed.shape == (1, 37, 32)  # type: ignore[union-attr]
