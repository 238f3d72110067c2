"""Samples of a map-style dataset, one by one through DataLoader: the baseline, in the same order and shares."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image

from fastload.errors import DatasetError, FastloadError, printable
from fastload.stores import Boxes, Served, Wanted

Sample = tuple[torch.Tensor, torch.Tensor]
Key = tuple[int, Boxes | None]


class FolderStore:
    """Samples through torch's DataLoader, whose worker processes live as long as a pass.

    Args:
        dataset: `dataset[i] -> (uint8 [H, W, C] or float tensor, label)`.
        name: of it, for errors.
        size: (S, T) that boxes are resized to.
        workers: processes; 0 loads in this one.
        pinned: give batches in page-locked RAM.
    """

    def __init__(
        self, dataset: Any, name: str, size: tuple[int, int] | None, *, workers: int, pinned: bool = False
    ) -> None:
        self._one = _OneByOne(dataset, name, size)
        self._workers, self._pinned = workers, pinned

    def serve(self, steps: Iterator[Wanted]) -> Generator[Served, None, None]:
        """See Store.

        Raises:
            DatasetError: a sample cannot be read, or is of another size than its neighbours.
            TransformError: a sample is smaller than what is to be cut out of it.
        """
        asked: deque[Wanted] = deque()

        def keys() -> Iterator[list[Key]]:
            for wanted in steps:
                asked.append(wanted)
                yield [(index, wanted.boxes) for index in wanted.ids.tolist()]

        loader: Any = torch.utils.data.DataLoader(
            self._one, batch_sampler=keys(), num_workers=self._workers, pin_memory=self._pinned,
            collate_fn=self._one.stack,
        )  # fmt: skip
        # DataLoader draws a seed, and its processes make tensors: neither shall be on another default device.
        with torch.device("cpu"):
            batches = iter(loader)
        try:
            for batch in batches:
                if isinstance(batch, FastloadError):
                    raise batch
                yield Served(wanted=asked.popleft(), samples=batch[0], labels=batch[1])
        except Exception as e:
            # What led there stays in its cause. The frames would hold DataLoader's processes as long as it is kept.
            raise e.with_traceback(None)  # noqa: B904
        finally:
            # Its processes and threads end with it; but an error that Dask's pickling brought here holds its frames.
            if (end := getattr(batches, "_shutdown_workers", None)) is not None:
                end()
            del batches


class _OneByOne(torch.utils.data.Dataset[Sample | FastloadError]):
    """Samples and their batches; errors are given, not raised: DataLoader would put a worker's traceback into them."""

    def __init__(self, dataset: Any, name: str, size: tuple[int, int] | None) -> None:
        self._dataset, self._name, self._size = dataset, name, size

    def __getitem__(self, key: Key) -> Sample | FastloadError:
        index, boxes = key
        try:
            image, label = self._dataset[index]
            if boxes is not None and self._size is not None:
                box = boxes(np.array([image.shape[:2]]), np.array([index]))[0]
                image = cut(image, box.tolist(), self._size)
        except FastloadError as e:
            return e
        return image, torch.as_tensor(label, device=image.device)

    def stack(self, found: list[Sample | FastloadError]) -> Sample | FastloadError:
        """Return a batch, or the first error in it."""
        samples = []
        for sample in found:
            if isinstance(sample, FastloadError):
                return sample
            samples.append(sample)
        shapes = {tuple(image.shape): None for image, _ in samples}
        if len(shapes) > 1:
            first, second = ("x".join(str(n) for n in shape) for shape in list(shapes)[:2])
            return DatasetError(
                f"{printable(self._name)} holds images of their own sizes ({first}, {second}); pass cut=..., e.g. "
                "torchvision's RandomResizedCrop(224), or give the dataset a transform that brings them to one size."
            )
        return torch.stack([image for image, _ in samples]), torch.stack([label for _, label in samples])


def cut(image: torch.Tensor, box: list[int], size: tuple[int, int]) -> torch.Tensor:
    """Return the (top, left, height, width) `box` of an image, uint8 [H, W, C], resized to [S, T, C] by Pillow."""
    top, left, height, width = box
    pixels = image.numpy()
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    resized = picture.resize(
        (size[1], size[0]), Image.Resampling.BILINEAR, box=(left, top, left + width, top + height)
    )  # fmt: skip
    return torch.from_numpy(np.array(resized)).view(*size, pixels.shape[2])
