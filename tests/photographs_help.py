"""Real photographs to test with: a dozen that the demo's script cuts from pictures in scikit-image's wheel, CC0."""

from __future__ import annotations

import random
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

from recipes.demo_images import PICTURES, REGIONS, cut

# Folder of the split, class -> photographs, and the picture they are cut from.
COUNTS = {("train", "ants"): 4, ("train", "bees"): 3, ("val", "ants"): 2, ("val", "bees"): 3}
CUT_FROM = {"ants": "cat", "bees": "coffee"}


def write_photographs(root: Path) -> Path:
    """Write train/ and val/ of class folders under `root`, as the folders of hymenoptera are; return the folder."""
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        pytest.skip('scikit-image is not installed: pip install "fastload[demo]"')
    data = Path(spec.origin).parent / "data"
    pictures = {name: Image.open(data / PICTURES[picture]).convert("RGB") for name, picture in CUT_FROM.items()}
    for (split, name), count in COUNTS.items():
        for number in range(count):
            file = root / "photographs" / split / name / f"{number:04d}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            region = REGIONS["train" if split == "train" else "valid"]
            cut(pictures[name], region, random.Random(f"{split} {name} {number}")).save(file, quality=90)
    return root / "photographs"
