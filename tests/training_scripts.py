"""Training scripts as people write them, small: run plainly, and run watched, they must print the same.

torchvision's references (log_every wraps the loader), timm's train.py (create_loader), notes with a loop over phases.
"""

import sys
import time

import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset


class Slow(Dataset):
    def __init__(self, count: int, seconds: float = 0.001) -> None:
        self.count, self.seconds = count, seconds

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        time.sleep(self.seconds)
        return torch.full((3, 8, 8), index / 100), index % 3


class MetricLogger:
    def log_every(self, iterable, print_freq, header):
        for number, batch in enumerate(iterable):
            yield batch
            if number % print_freq == 0:
                print(f"{header} [{number:3d}/{len(iterable)}]")


def make():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3))
    return model, torch.optim.SGD(model.parameters(), lr=0.1), torch.nn.CrossEntropyLoss()


def train_step(model, optimizer, criterion, images, labels):
    loss = criterion(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def torchvision_style(num_workers, context=None):
    model, optimizer, criterion = make()
    data = Slow(61)
    loader = DataLoader(data, batch_size=2, sampler=torch.utils.data.RandomSampler(data), num_workers=num_workers,
                        multiprocessing_context=context, persistent_workers=num_workers > 0)  # fmt: skip
    test = DataLoader(Slow(12), batch_size=2)
    for epoch in range(2):
        model.train()
        for image, target in MetricLogger().log_every(loader, 10, f"Epoch: [{epoch}]"):
            train_step(model, optimizer, criterion, image, target)
        model.eval()
        with torch.inference_mode():
            for image, _target in MetricLogger().log_every(test, 10, "Test:"):
                model(image)


def notes_style(num_workers, context=None):
    model, optimizer, criterion = make()
    # Both of one length and type: only the datasets themselves tell them apart.
    loaders = {
        phase: DataLoader(Slow(40), batch_size=2, shuffle=phase == "train", num_workers=num_workers,
                          multiprocessing_context=context, persistent_workers=num_workers > 0)
        for phase in ("train", "val")
    }  # fmt: skip
    for epoch in range(2):
        for phase in ("train", "val"):
            running_loss = 0.0
            for inputs, labels in loaders[phase]:
                with torch.set_grad_enabled(phase == "train"):
                    loss = criterion(model(inputs), labels)
                    if phase == "train":
                        optimizer.zero_grad()
                        loss.backward()
                        optimizer.step()
                running_loss += loss.item() * inputs.size(0)
            print(f"{epoch} {phase} Loss: {running_loss / 40:.4f}")


def timm_style(num_workers):
    from timm.data import create_loader

    class Images(Slow):
        transform = None

        def __getitem__(self, index):
            import numpy as np
            from PIL import Image

            image = Image.fromarray(np.full((9, 9, 3), index, np.uint8))
            return self.transform(image), index % 3

    model, optimizer, criterion = make()
    loader = create_loader(
        Images(50), input_size=(3, 8, 8), batch_size=2, is_training=True, num_workers=num_workers, use_prefetcher=False,
        no_aug=True, persistent_workers=num_workers > 0, interpolation="bilinear", pin_memory=False,
    )  # fmt: skip
    last_idx = len(loader) - 1
    for epoch in range(2):
        for batch_idx, (image, target) in enumerate(loader):
            loss = train_step(model, optimizer, criterion, image, target)
            if batch_idx in (last_idx // 2, last_idx):
                print(f"Train: {epoch} [{batch_idx}/{last_idx}] {loss:.4f}")


def accelerate_style():
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model, optimizer, criterion = make()
    model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(Slow(60), batch_size=2))
    for image, target in loader:
        loss = criterion(model(image), target)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    accelerator.print(f"{loss.item():.4f}")


def ranks_style():
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    data = Slow(120, 0.003 if rank else 0.0005)
    sampler = torch.utils.data.DistributedSampler(data)
    for _ in DataLoader(data, batch_size=2, sampler=sampler):
        time.sleep(0.001)
    torch.distributed.destroy_process_group()


def slow_style():
    try:
        for number, _ in enumerate(DataLoader(Slow(100_000), batch_size=2)):
            if number == 30:
                print("going", flush=True)
            time.sleep(0.001)
    except KeyboardInterrupt:
        print("stopped by hand")
        sys.exit(3)


def failing_style():
    print(len([None for _ in DataLoader(TensorDataset(torch.zeros(60, 2)), batch_size=2)]))
    raise SystemExit(7)


def main(words):
    for word in words:
        name, _, workers = word.partition(":")
        count, _, context = workers.partition(":")
        function = globals()[f"{name}_style"]
        function(*([int(count)] if count else []), *([context] if context else []))


if __name__ == "__main__":
    main(sys.argv[1:])
