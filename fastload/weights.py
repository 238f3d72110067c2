"""Where published weights lie on this machine, or come from: found before any data is touched, never in silence.

`none` is none; FILE is that file; `auto` looks at $FASTLOAD_WEIGHTS, the Hugging Face cache, the torch hub cache,
and last, where there is a network, at the Hub or the server that published them.
"""

from __future__ import annotations

import os
import re
import socket
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastload.checkpoint import Convert, load_matching, load_weights, write_tensors
from fastload.errors import CheckpointError, ConfigError, printable

PROBE_SECONDS = 5.0
STALL_SECONDS = 30.0  # without a byte, a download has broken off
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_ENDINGS = (".safetensors", ".pth", ".pt", ".bin")
_HASH = re.compile(r"-([a-f0-9]{8,})\.")  # of SHA-256, its first digits, as torchvision and timm name their files


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A file with weights, and in words where it is from."""

    file: Path
    origin: str


@dataclass(frozen=True, kw_only=True)
class Published:
    """Where the weights of a model called `name` were published: a repository of the Hub, a URL, both or neither."""

    name: str
    repo: str | None
    url: str | None


def resolve(weights: str | Path | None, model_name: str) -> Weights | None:
    """Return the file that `--weights` means for a model of timm or torchvision; None where none are wanted.

    Args:
        weights: `auto`, `none` (or None), or a file: .safetensors, or .pth with a state dict.
        model_name: e.g. `resnet18.tv_in1k`, which are torchvision's, or `resnet18`: timm's own choice.

    Raises:
        ConfigError: no such model.
        CheckpointError: the file is not there; or none was found in any of the places, which are named.
    """
    if weights is None or str(weights) == "none":
        return None
    if str(weights) != "auto":
        file = Path(weights)
        if not file.is_file():
            raise CheckpointError(
                f"--weights {printable(file)}: no such file; pass another, auto, or none to start from scratch."
            )
        return Weights(file=file, origin=file.name)
    published = find_published(model_name)
    looked: list[str] = []
    for look in (_in_variable, _in_hub_cache, _in_torch_cache, _download):
        found = look(published, looked)
        if found is not None:
            return found
    raise CheckpointError(
        f"no weights for {published.name}: {'; '.join(looked)}. On a connected machine run `fastload weights "
        f"{published.name} -o FILE.safetensors` and pass --weights FILE.safetensors here; or --weights none to start "
        "from scratch."
    )


def build(
    model_name: str, num_classes: int, weights: str | Path | None = "auto", **options: Any
) -> tuple[torch.nn.Module, str]:
    """Return a model of timm or torchvision with `weights` in it, and for result rows where they are from.

    Weights load by name and shape: a head for other classes stays random, and the text says so.

    Args:
        model_name: of timm, e.g. `resnet18.tv_in1k`; else of torchvision, e.g. `alexnet`.
        num_classes: outputs of the model.
        weights: as of `resolve`.
        options: passed on to timm or torchvision, e.g. `drop_rate`.

    Raises:
        ConfigError: no such model, or none with these options.
        CheckpointError: as `resolve`; or the file is damaged or of another model.
    """
    found = resolve(weights, model_name)
    model = _create(model_name, num_classes, options)
    if found is None:
        return model, "none: from scratch"
    matched = load_matching(model, found.file, convert=_conversion_for(model))
    skipped = f"; left as they were: {', '.join(matched.skipped[:4])}" if matched.skipped else ""
    more = f" and {len(matched.skipped) - 4} more" if len(matched.skipped) > 4 else ""
    return model, printable(f"{found.origin}{skipped}{more}")


def _conversion_for(model: torch.nn.Module) -> Convert | None:
    """Return timm's own conversion, e.g. of a ViT's positions to another image size, or of torchvision's names."""
    module = sys.modules[type(model).__module__]
    convert: Convert | None = getattr(module, "checkpoint_filter_fn", None)
    # VGG's and DenseNet's take no model.
    rename = getattr(module, "_filter_fn", None) or getattr(module, "_filter_torchvision_pretrained", None)
    return convert or (rename and (lambda state, _model: rename(state)))


def export(model_name: str, file: Path) -> Weights:
    """Find or fetch the published weights of a model and write them to `file` as safetensors; return their origin.

    Raises:
        ConfigError: no such model, or `file` has another ending.
        CheckpointError: as `resolve`, or `file` cannot be written.
    """
    if file.suffix != ".safetensors":
        raise ConfigError(f"{printable(file)}: weights are written as safetensors; call it {file.stem}.safetensors.")
    found = resolve("auto", model_name)
    assert found is not None  # only `none` gives None
    write_tensors(file, load_weights(found.file), {"origin": found.origin})
    return found


def find_published(model_name: str) -> Published:
    """Return where a model's weights were published.

    Raises:
        ConfigError: no such model.
    """
    import timm
    import torchvision

    if timm.is_model(model_name):
        try:
            config = timm.get_pretrained_cfg(model_name)
        except RuntimeError:  # the part behind the dot
            known = ", ".join(timm.list_pretrained(f"{model_name.partition('.')[0]}.*"))
            raise ConfigError(f"model {printable(model_name)}: timm has no such weights, but {known}.") from None
        if config is None:
            return Published(name=model_name, repo=None, url=None)
        name = f"{config.architecture}.{config.tag}" if config.tag else str(config.architecture)
        url = str(config.url or "")
        if not url and config.tag == "tv_in1k" and config.architecture in torchvision.models.list_models():
            # Torchvision's own file, under the same names in both; timm names a copy on the Hub alone.
            url = torchvision.models.get_model_weights(config.architecture).IMAGENET1K_V1.url
        # The oldest ViTs are .npz.
        return Published(name=name, repo=config.hf_hub_id or None, url=url if url.endswith(_ENDINGS) else None)
    if model_name in torchvision.models.list_models(module=torchvision.models):
        return Published(name=model_name, repo=None, url=torchvision.models.get_model_weights(model_name).DEFAULT.url)
    near = timm.list_models(f"*{model_name}*")[:5]
    hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() names all of timm's."
    raise ConfigError(f"model {printable(model_name)}: neither timm nor torchvision has it; {hint}")


def _create(model_name: str, num_classes: int, options: dict[str, Any]) -> torch.nn.Module:
    import timm
    import torchvision

    find_published(model_name)  # an unknown name is said in one sentence
    create: Any = timm.create_model if timm.is_model(model_name) else torchvision.models.get_model
    try:
        model: torch.nn.Module = create(model_name, num_classes=num_classes, **options)
    except Exception as e:  # each model says it its own way
        if not options:
            raise
        given = ", ".join(f"{key}={value!r}" for key, value in options.items())
        raise ConfigError(
            f"model {printable(model_name)} cannot be made with {printable(given)} ({printable(e).rstrip('.')}); pass "
            "other values, or another model."
        ) from e
    return model


def _in_variable(published: Published, looked: list[str]) -> Weights | None:
    place = os.environ.get("FASTLOAD_WEIGHTS")
    if not place:
        looked.append("$FASTLOAD_WEIGHTS is not set")
        return None
    names = [published.name + ending for ending in _ENDINGS]
    candidates = [Path(place) / name for name in names] if Path(place).is_dir() else [Path(place)]
    for file in candidates:
        if file.is_file():
            return Weights(file=file, origin=f"{published.name}, {file.name} of $FASTLOAD_WEIGHTS")
    looked.append(f"$FASTLOAD_WEIGHTS={printable(place)} has no {names[0]} (or {', '.join(_ENDINGS[1:])})")
    return None


def _in_hub_cache(published: Published, looked: list[str]) -> Weights | None:
    from huggingface_hub import constants, try_to_load_from_cache

    if published.repo is None:
        return None
    for name in _HUB_FILES:
        file = try_to_load_from_cache(published.repo, name)
        if isinstance(file, str):
            return Weights(file=Path(file), origin=f"{published.repo}, Hugging Face cache")
    looked.append(f"the Hugging Face cache ({printable(constants.HF_HUB_CACHE)}) has no {published.repo}")
    return None


def _in_torch_cache(published: Published, looked: list[str]) -> Weights | None:
    if published.url is None:
        return None
    file = _torch_cache() / published.url.rsplit("/", 1)[-1]
    if file.is_file():
        return Weights(file=file, origin=f"{published.name}, torch hub cache ({file.name})")
    looked.append(f"the torch hub cache has no {printable(file)}")
    return None


def _torch_cache() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def _download(published: Published, looked: list[str]) -> Weights | None:
    from huggingface_hub import constants, hf_hub_download, hf_hub_url

    if constants.HF_HUB_OFFLINE:
        looked.append("nothing is downloaded, since HF_HUB_OFFLINE is set")
        return None
    if published.repo is not None:
        for name in _HUB_FILES:
            reached = _reaches(hf_hub_url(published.repo, name))
            if reached == "":
                with suppress(Exception):  # said below: what a broken connection raises depends on the library
                    fetched = hf_hub_download(published.repo, name, etag_timeout=PROBE_SECONDS)
                    return Weights(file=Path(fetched), origin=f"{published.repo}, downloaded")
                reached = "the download broke off"
            looked.append(f"{published.repo} of the Hub: {reached}")
            if not reached.startswith("HTTP"):
                break  # another name would not be reached either
    if published.url is not None:
        reached = _reaches(published.url)
        file = _torch_cache() / published.url.rsplit("/", 1)[-1]
        if reached == "":
            reached = _fetch(published.url, file)
            if reached == "":
                return Weights(file=file, origin=f"{published.name}, downloaded from {published.url}")
        looked.append(f"{published.url}: {reached}")
    if published.repo is None and published.url is None:
        looked.append("nobody published any that timm knows of")
    return None


def _fetch(url: str, file: Path) -> str:
    """Download `url` to `file`, whole or not at all; return why that failed, or nothing."""
    named = _HASH.search(file.name)
    part = file.with_name(f".{os.getpid()}-{file.name}")  # several ranks may fetch it
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALL_SECONDS)  # torch's download has no other way to be given one
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(part), named and named[1], progress=sys.stderr.isatty())
        if named is None:  # what was cut off on its way is told by nothing but itself
            load_weights(part)
        part.replace(file)
    except CheckpointError:
        return "what came is no whole file of weights"
    except RuntimeError:
        return "what came has not the checksum in its name"
    except Exception as e:  # what a broken connection raises depends on where it breaks
        return f"the download broke off ({type(e).__name__})"
    finally:
        socket.setdefaulttimeout(before)
        with suppress(OSError):
            part.unlink(missing_ok=True)
    return ""


def _reaches(url: str) -> str:
    """Return why `url` cannot be had, or nothing where it can; after PROBE_SECONDS at the latest."""
    return _within(PROBE_SECONDS, lambda: _head(url))


def _head(url: str) -> str:
    request = urllib.request.Request(url, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=PROBE_SECONDS):
            return ""
    except urllib.error.HTTPError as e:
        return f"HTTP {e.code}"
    except OSError as e:
        return f"cannot be reached ({getattr(e, 'reason', e)})"


def _within(seconds: float, call: Callable[[], str]) -> str:
    """Return what `call` does, or after `seconds` that there was no answer: looking up a name has no timeout."""
    answers: list[str] = []
    thread = threading.Thread(target=lambda: answers.append(call()), daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else f"no answer in {seconds:g} s"
