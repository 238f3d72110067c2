"""The whole way, once, on a small made folder: photographs -> dataset -> training -> where the time went.

`make demo` runs it. Everything is written to `demo/`; what is already there is used again.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

DEMO = Path("demo")
FOLDER, DATASET, RUN, REPORT = (
    DEMO / "photographs",
    DEMO / "photographs.fastload",
    DEMO / "run",
    DEMO / "gpu-util.json",
)
SIZE = 64


def main() -> None:
    """Run each step as a user would type it; stop at the first that fails."""
    if not FOLDER.exists():
        step("recipes/demo_images.py", FOLDER)
    if not DATASET.exists():
        step("fastload", "convert", FOLDER, DATASET, "--size", SIZE * 8 // 7)
    before = set(DEMO.glob("run*/result.json"))
    step("accelerate", "launch", "--config_file", "launch/cpu.yaml" if no_gpu() else "launch/one_gpu.yaml",
         "recipes/resnet_flowers.py", DATASET, "--config", "recipes/flowers_scratch.yaml", "--batch-size", 32,
         "--epochs", 3, "--output", RUN)  # fmt: skip
    step("bench", "gpu-util", FOLDER, "--model", "resnet18", "--size", SIZE, "--batch-size", 32, "--steps", 21,
         "--json", REPORT)  # fmt: skip
    result_file = (set(DEMO.glob("run*/result.json")) - before).pop()
    result, report = (json.loads(f.read_text()) for f in (result_file, REPORT))
    print(
        f"\naccuracy {result['best']['accuracy']:.1%} on parts of the same seven pictures that training never saw "
        "(a demo, not a benchmark)\n"
        f"{result['verdict']}\n"
        f"with ImageFolder and DataLoader instead: {report['verdict']['word']}: {report['verdict']['why']}\n"
        f"wrote {DATASET}/, {result_file.parent}/ (best.safetensors, result.json, TensorBoard scalars) and {REPORT}"
    )


def step(*words: object) -> None:
    """Print a command and run it with this Python's own programs."""
    typed = [str(w) for w in words]
    print(f"\n$ {shlex.join(typed)}", flush=True)
    program = Path(sys.executable).parent / typed[0]
    command = [sys.executable, *typed] if typed[0].endswith(".py") else [str(program), *typed[1:]]
    done = subprocess.run(command, check=False)
    if done.returncode:
        sys.exit(done.returncode)


def no_gpu() -> bool:
    """Whether there is no CUDA GPU to train on; asked in a process of its own, which keeps nothing of it."""
    probe = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", probe], check=False).returncode != 0


if __name__ == "__main__":
    main()
