"""Two ranks train in phases, once straight and once interrupted, and predict.

Each writes what it found to RANK.safetensors: weights after training, outputs, labels and figures.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file

from fastload import Augment, Loader, TrainConfig, Trainer, open_dataset
from fastload.errors import ConfigError
from fastload.phases import Phase


class StopHereError(Exception):
    pass


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 3, stride=2), torch.nn.BatchNorm2d(6), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(), torch.nn.Dropout(0.2), torch.nn.Linear(6, 3),
    )  # fmt: skip


def loader(dataset: Path, split: str, batch_size: int) -> Loader:
    return Loader(open_dataset(dataset, split), batch_size, augment=Augment([]), shuffle=split == "train")


def fit(
    dataset: Path, output: Path, *, stop_at: int | None = None, resume: bool = False
) -> tuple[Trainer, torch.nn.Module]:
    trainer = Trainer(TrainConfig(
        device="cpu", output=output, lr=0.05, optimizer="sgd", ema=0.9, save_every_steps=1, resume=resume,
        clip_grad_norm=5.0, log_with=None, max_steps=99,
    ))  # fmt: skip
    model, batches = network(), 0

    def at_batch(module: torch.nn.Module, _: object) -> None:
        nonlocal batches
        batches += module.training
        if batches == stop_at:
            raise StopHereError

    model.register_forward_pre_hook(at_batch)
    phases = [Phase("head", 1, trainable=("6",)), Phase("all", 2)]
    trainer.fit(model, loader(dataset, "train", 2), loader(dataset, "valid", 2), phases=phases)
    return trainer, model


def one_rank(rank: int, dataset: Path, out: Path) -> None:
    try:
        fit(dataset, out / "stopped", stop_at=6)
        raise AssertionError
    except StopHereError:
        pass
    fit(dataset, out / "stopped", resume=True)
    try:
        Trainer(TrainConfig(device="cpu", sync_batchnorm=True))
        raise AssertionError
    except ConfigError:
        pass
    trainer, model = fit(dataset, out / "whole")
    assert trainer.accelerator.num_processes == 2
    found = {}
    found["outputs"], found["labels"] = trainer.predict(model, loader(dataset, "valid", 2))
    evaluation = trainer.evaluate(model, loader(dataset, "valid", 3))
    assert evaluation.accuracy is not None
    assert evaluation.confusion is not None
    found["figures"] = torch.tensor([evaluation.loss, evaluation.accuracy, evaluation.num_samples])
    found["confusion"] = evaluation.confusion
    found |= {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    save_file({name: t.clone(memory_format=torch.contiguous_format) for name, t in found.items()},
              out / f"{rank}.safetensors")  # fmt: skip
    trainer.accelerator.wait_for_everyone()
    torch.distributed.destroy_process_group()
