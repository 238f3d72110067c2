"""Trains once to the end, and again and again killed with -9 somewhere and resumed; every run is a forked process."""

import json
import os
import signal
import sys
from pathlib import Path

import torch

from fastload import Augment, Loader, TrainConfig, Trainer, open_dataset
from fastload.phases import Phase


class Network(torch.nn.Module):
    """With dropout, so that draws matter, and batch statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3, stride=2), torch.nn.BatchNorm2d(6), torch.nn.ReLU())
        self.drop = torch.nn.Dropout(0.3)
        self.head = torch.nn.Linear(6, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(self.body(images).mean((2, 3))))


def train(dataset: Path, output: Path, resume: bool, kill_at_batch: int | None, kill_at_rename: int | None) -> None:
    count = 0

    def at_rename(event: str, args: tuple[object, ...]) -> None:
        nonlocal count
        if event == "os.rename" and str(output) in str(args[1]):
            if count == kill_at_rename:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1

    sys.addaudithook(at_rename)
    trainer = Trainer(TrainConfig(
        output=output, device="cpu", lr=0.02, ema=0.9, accumulate=2, save_every_steps=1, resume=resume,
        warmup_epochs=0.5, log_with=None, max_steps=99,
    ))  # fmt: skip
    model = Network()
    batches = 0

    def at_batch(module: torch.nn.Module, _: object) -> None:
        nonlocal batches
        if module.training:
            if batches == kill_at_batch:
                os.kill(os.getpid(), signal.SIGKILL)
            batches += 1

    model.register_forward_pre_hook(at_batch)
    loader = Loader(open_dataset(dataset), 4, augment=Augment([]), drop_last=False)
    valid = Loader(open_dataset(dataset, "valid"), 3, shuffle=False)
    phases = [Phase("head", 1, trainable=("head",)), Phase("all", 2, lr=0.01)]
    trainer.fit(model, loader, valid, phases=phases)


def run(
    dataset: Path, output: Path, *, resume: bool, kill_at_batch: int | None = None, kill_at_rename: int | None = None
) -> bool:
    """Train in a process of its own; return whether it was killed."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.dup2(2, 1)  # standard output is for the JSON
            train(dataset, output, resume, kill_at_batch, kill_at_rename)
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def outcome(output: Path, kills: int) -> dict[str, object]:
    result = json.loads((output / "result.json").read_text())
    figures = [[e["train_loss"], e["valid_loss"], e["accuracy"], e["lr"]] for e in result["epochs"]]
    return {"kills": kills, "figures": figures, "best": result["best"]["epoch"]}


# In the first epoch before anything was saved; within a window of accumulated batches; between the files that the end
# of an epoch writes, at the change of phases and later; in the second phase.
KILLS = [{"kill_at_batch": 1}, {"kill_at_batch": 3}, {"kill_at_rename": 3}, {"kill_at_batch": 3}, {"kill_at_rename": 5}]


def train_and_kill(dataset: Path, scratch: Path) -> dict[str, dict[str, object]]:
    """Return, by run: how often it was killed, and what its epochs say."""
    whole = outcome(scratch / "whole", int(run(dataset, scratch / "whole", resume=False)))
    done = [run(dataset, scratch / "killed", resume=True, **kill) for kill in KILLS]
    assert not run(dataset, scratch / "killed", resume=True)
    killed = outcome(scratch / "killed", sum(done))
    written = (scratch / "killed" / "result.json").read_bytes()
    assert not run(dataset, scratch / "killed", resume=True)  # one that has ended stays as it is
    assert (scratch / "killed" / "result.json").read_bytes() == written
    return {"whole": whole, "killed": killed}
