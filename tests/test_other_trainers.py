"""A Loader as a plain iterable in the loops of Lightning and Hugging Face. Each skips where not installed."""

import warnings
from pathlib import Path

import pytest
import torch

from fastload import Augment, Loader, open_dataset

pytestmark = pytest.mark.usefixtures("no_accelerate_left")


def loader(dataset: Path, split: str = "train") -> Loader:
    return Loader(open_dataset(dataset, split), 4, augment=Augment(), device="cpu", shuffle=split == "train")


def network() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(20 * 20 * 3, 3))


@pytest.mark.filterwarnings("ignore")
def test_lightning(dataset: Path, tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning.pytorch", reason="pip install lightning")

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.network, self.seen, self.validated = network(), [], 0

        def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> torch.Tensor:
            self.seen.append(batch[1].tolist())
            return torch.nn.functional.cross_entropy(self.network(batch[0]), batch[1])

        def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> None:
            self.validated += len(batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    module = Module()
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, num_sanity_val_steps=0,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, loader(dataset), loader(dataset, "valid"))
    expected = loader(dataset)
    assert module.seen == [labels.tolist() for _ in range(2) for _, labels in expected]
    assert module.validated == 2 * 7


def test_hugging_face(dataset: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers = pytest.importorskip("transformers", reason="pip install transformers")
    seen: list[list[int]] = []

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network()

        def forward(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            seen.append(labels.tolist())
            logits = self.network(images)
            return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}

    class Named:
        """Batches as the keyword arguments that Hugging Face's models take."""

        def __init__(self, batches: Loader) -> None:
            self.batches = batches

        def __len__(self) -> int:
            return len(self.batches)

        def __iter__(self):  # type: ignore[no-untyped-def]
            return ({"images": images, "labels": labels} for images, labels in self.batches)

    class Trainer(transformers.Trainer):  # type: ignore[misc, name-defined]
        def get_train_dataloader(self) -> Named:
            return Named(loader(dataset))

    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), num_train_epochs=2, use_cpu=True, report_to=[], save_strategy="no",
        disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    Trainer(model=Model(), args=arguments, train_dataset=open_dataset(dataset)).train()
    expected = loader(dataset)
    assert seen == [labels.tolist() for _ in range(2) for _, labels in expected]
