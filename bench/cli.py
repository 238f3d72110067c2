"""The command line of the benchmarks: bench gpu-util | loader | memory | growth | convert | augment | figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from fastload.errors import exit_with

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Measure: how busy the device is and why, and how fast batches come. Peers run beside it, on the same cores.",
)

Json = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Write everything measured there.", show_default=False),
]


def main() -> None:
    """Run the command line; a user's mistake is one sentence and exit code 2."""
    exit_with(app)


@app.command("gpu-util")
def gpu_util(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATASET_OR_FOLDER",
            help="An image folder, or what `fastload convert` wrote of one (the folder is then looked for beside it).",
            show_default=False,
        ),
    ],
    model: Annotated[str, typer.Option(help="A timm model.")] = "resnet18",
    size: Annotated[int, typer.Option(help="Side of the crops that it trains on, in pixels.")] = 128,
    batch_size: Annotated[int, typer.Option(help="Images per step.")] = 64,
    steps: Annotated[int, typer.Option(help="Steps that are measured, after warm-up.")] = 30,
    workers: Annotated[int, typer.Option(help="DataLoader's worker processes.")] = 2,
    precision: Annotated[str, typer.Option(help="no or bf16.")] = "no",
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, mps; the best one where not given.", show_default=False)
    ] = None,
    images: Annotated[int, typer.Option(help="Use at most so many images of a folder.")] = 2000,
    json: Json = None,
) -> None:
    """Say how busy the device is, why, and what converting would gain.

    The same training step is fed by ImageFolder and DataLoader, and by fastload, with the same transforms;
    beside both stands the ceiling: the same step on a few batches that are already there.
    """
    from bench.gpu_util import Options, measure, say

    options = Options(model=model, size=size, batch_size=batch_size, steps=steps, workers=workers,
                      precision=precision, device=device, max_images=images)  # fmt: skip
    say(measure(data, options), json)


@app.command()
def loader(
    folder: Annotated[Path, typer.Argument(help="An image folder: class folders.", show_default=False)],
    store: Annotated[int, typer.Option(help="Side of the stored images, in pixels.")] = 128,
    size: Annotated[int, typer.Option(help="Side of the random crops, in pixels.")] = 112,
    batch_size: Annotated[int, typer.Option(help="Images per batch.")] = 64,
    workers: Annotated[
        list[int] | None,
        typer.Option(help="DataLoader's worker processes; may be given again: the best is kept.  [default: 1, 2, 4]"),
    ] = None,
    threads: Annotated[int, typer.Option(help="Workers or threads of all others that have any.")] = 2,
    rounds: Annotated[int, typer.Option(help="Epochs of each loader, in turn.")] = 5,
    crop: Annotated[
        Literal["plain", "resized", "padded"],
        typer.Option(help="RandomCrop, RandomResizedCrop, or RandomCrop of the stored size with a padding of 4."),
    ] = "plain",
    images: Annotated[int, typer.Option(help="Use at most so many images of the folder.")] = 1_000_000_000,
    json: Json = None,
) -> None:
    """Measure loaders alone: images/s and seconds to the first batch.

    ImageFolder and DataLoader, timm's create_loader, ffcv's own Loader (where it is installed, and all images are of
    the stored size) and each placement of fastload: same images, same transforms (random crop, mirror,
    normalization), same cores, same output; epochs in turn, medians.
    """
    from bench.loader import Options, measure, say

    options = Options(
        store=store, size=size, batch_size=batch_size, workers=tuple(workers or (1, 2, 4)), threads=threads,
        rounds=rounds, crop=crop, max_images=images,
    )  # fmt: skip
    say(measure(folder, options), json)


@app.command()
def memory(
    folder: Annotated[Path, typer.Argument(help="An image folder: class folders.", show_default=False)],
    store: Annotated[int, typer.Option(help="Side of the stored images, in pixels.")] = 128,
    size: Annotated[int, typer.Option(help="Side of the random crops, in pixels.")] = 112,
    batch_size: Annotated[int, typer.Option(help="Images per batch.")] = 64,
    epochs: Annotated[int, typer.Option(help="How many are run.")] = 50,
    json: Json = None,
) -> None:
    """Measure the private memory that a loader adds to its process, in host and mapped, over many epochs."""
    from bench.memory import measure, say

    say(measure(folder, store=store, size=size, batch_size=batch_size, epochs=epochs), json)


@app.command()
def growth(
    thousands: Annotated[
        list[int] | None,
        typer.Option(help="Thousands of images of 32 px; may be given again.  [default: 1, 10, 100, 1000]"),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images per batch.")] = 256,
    rounds: Annotated[int, typer.Option(help="Measurements of each, in turn.")] = 5,
    json: Json = None,
) -> None:
    """Measure what a larger dataset costs: images/s and seconds to open, for made images of 32 px."""
    from bench.growth import measure, say

    say(measure(tuple(thousands or (1, 10, 100, 1000)), batch_size=batch_size, rounds=rounds), json)


@app.command()
def convert(
    folder: Annotated[Path | None, typer.Argument(help="An image folder: class folders.", show_default=False)] = None,
    size: Annotated[int, typer.Option(help="Side of the stored images, in pixels.")] = 256,
    workers: Annotated[int, typer.Option(help="Processes or threads of each, but for the PIL loop, which has 1.")] = 2,
    rounds: Annotated[int, typer.Option(help="Runs of each, in turn.")] = 5,
    repeat: Annotated[int, typer.Option(help="Take every image so many times: a small folder is over too soon.")] = 1,
    made: Annotated[
        str | None,
        typer.Option(metavar="WIDTHxHEIGHT", help="Make photographs instead of a folder.", show_default=False),
    ] = None,
    count: Annotated[int, typer.Option(help="How many photographs --made makes.")] = 2000,
    json: Json = None,
) -> None:
    """Measure conversion: images/s of decoding alone, of fastload, of ffcv's writer and of the usual PIL loop.

    Same files, same cores, in turn, medians. Also the stored pixels against Pillow's, and peak memory.
    """
    from bench.convert import measure, say

    say(measure(folder, size=size, workers=workers, rounds=rounds, repeat=repeat, made=made, count=count), json)


@app.command()
def augment(
    store: Annotated[int, typer.Option(help="Side of the stored images, in pixels.")] = 256,
    size: Annotated[int, typer.Option(help="Side of the random resized crops, in pixels.")] = 224,
    batch_size: Annotated[
        int | None, typer.Option(help="Images per batch; 64 on a CPU, 512 on a GPU.", show_default=False)
    ] = None,
    rounds: Annotated[int, typer.Option(help="Batches of each, in turn.")] = 9,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; the best one where not given.")] = None,
    json: Json = None,
) -> None:
    """Measure augmentation: ms per batch of fastload, torchvision per batch and per image, Kornia and FFCV.

    Random resized crop, mirror and normalization; the same with ColorJitter, and with TrivialAugmentWide. One
    batch of noise, the same cores or GPU, in turn, medians. On a GPU also the floor (bytes over the bandwidth of
    a copy), launches and host time.
    """
    from bench.augment import measure, say

    say(measure(store=store, size=size, batch_size=batch_size, rounds=rounds, device=device), json)


@app.command()
def figures(
    check: Annotated[bool, typer.Option("--check", help="Change nothing; fail where README.md differs.")] = False,
) -> None:
    """Write the figures of README.md anew from bench/results/*.json."""
    from bench.figures import update

    if not update(Path(__file__).parents[1], check=check):
        raise typer.Exit(1)


if __name__ == "__main__":
    main()
