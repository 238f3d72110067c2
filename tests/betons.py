"""What the tests of FFCV's files share: pictures, and betons made of them."""

import numpy as np

from fastload.formats.ffcv import write_beton

CLASSES = ["ant", "bee", "\udcffcrab"]
H, W, N = 37, 53, 11


def picture(index, height=H, width=W):
    """A smooth image, so that JPEG keeps it, and another one for every index."""
    y, x, c = np.meshgrid(np.linspace(0, 3, height), np.linspace(0, 3, width), np.arange(3), indexing="ij")
    return (127.5 + 127.5 * np.sin(y + 0.7 * x * (1 + c / 5) + index)).astype(np.uint8)


def sample(index):
    return picture(index), index % 3


def write(out, num_samples=N, sample=sample, workers=2, **options):
    told = []
    write_beton(
        out,
        num_samples,
        sample,
        classes=CLASSES,
        workers=workers,
        info={"source": "made"},
        advance=told.append,
        **options,
    )
    assert sum(told) == num_samples
    return out


def write_all(folder):
    """Write one beton of each mode."""
    return {mode: write(folder / f"{mode}.beton", mode=mode) for mode in ("raw", "jpg", "proportion")}


def patch(path, offset, data):
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)
