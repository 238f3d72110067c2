"""The command line: bench gpu-util, compare, training, loader, memory, growth, convert, augment, truth, figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from bench.cores import num_cores, workers_beside_a_step, workers_to_try
from fastload.errors import ConfigError, exit_with, printable

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
Html = Annotated[
    Path | None,
    typer.Option("--html", metavar="FILE", help="Write a page with charts there; one file.", show_default=False),
]
Png = Annotated[
    Path | None,
    typer.Option("--png", metavar="FILE", help="Write a picture there; needs matplotlib.", show_default=False),
]
DatasetOrFolder = Annotated[
    Path | None,
    typer.Argument(
        metavar="DATASET_OR_FOLDER",
        help="An image folder, or what `fastload convert` wrote of one (the folder is then looked for beside it).",
        show_default=False,
    ),
]
Loaders = Annotated[
    str,
    typer.Option(
        help="What feeds the step, with commas between: folder (ImageFolder and DataLoader), ffcv, host, mapped, "
        "gpu, auto (the fastest placement that fits). The report is about the first one."
    ),
]
AssumedRate = Annotated[
    float | None,
    typer.Option(
        help="Also say whether these loaders would do for a GPU that trains so many images/s.", show_default=False
    ),
]
BESIDE_A_STEP = "DataLoader's worker processes.  [default: one less than the cores, and at least 2]"


def main() -> None:
    """Run the command line; a user's mistake is one sentence and exit code 2."""
    exit_with(app)


class BeforeCommand(TyperCommand):
    """Takes what stands before the first `--` for itself; the rest is a command, kept as it is in `ctx.meta`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse what comes before `--`."""
        if "--" in args:
            at = args.index("--")
            args, ctx.meta["command"] = args[:at], args[at + 1 :]
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the line under Usage."""
        return ["[OPTIONS]", "DATASET_OR_FOLDER | -- COMMAND ..."]


@app.command("gpu-util", cls=BeforeCommand)
def gpu_util(
    context: typer.Context,
    data: DatasetOrFolder = None,
    model: Annotated[str, typer.Option(help="A timm model.")] = "resnet18",
    size: Annotated[int, typer.Option(help="Side of the crops that it trains on, in pixels.")] = 128,
    batch_size: Annotated[int, typer.Option(help="Images per step.")] = 64,
    steps: Annotated[
        int, typer.Option(help="Steps that are measured, after warm-up; at least six for each worker.")
    ] = 30,
    workers: Annotated[int | None, typer.Option(help=BESIDE_A_STEP, show_default=False)] = None,
    precision: Annotated[str, typer.Option(help="no or bf16.")] = "no",
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, mps; the best one where not given.", show_default=False)
    ] = None,
    images: Annotated[int, typer.Option(help="Use at most so many images of a folder.")] = 2000,
    loader: Loaders = "folder,auto",
    assume_gpu_rate: AssumedRate = None,
    json: Json = None,
    html: Html = None,
    png: Png = None,
) -> None:
    """Say how busy the device is, why, and what converting would gain.

    `bench gpu-util FOLDER`: the same training step is fed by ImageFolder and DataLoader, and by fastload, with the same
    transforms; beside both stands the ceiling: the same step on a few batches that are already there.

    `bench gpu-util -- python train.py ...` (or `accelerate launch`, `torchrun`): runs your own script, unchanged, and
    says on standard error, once it has ended, how long its loops waited for data. Its output, its exit code and its
    signals stay its own.
    """
    words = context.meta.get("command")
    _one_way_in(context, data, words)
    if words:
        from bench.script import watch_and_say

        raise typer.Exit(watch_and_say(words, json=json, html=html, png=png))
    assert data is not None
    from rich.console import Console

    from bench.gpu_util import Options, measure, reached_gain
    from bench.outputs import Outputs
    from fastload.profiling.terminal import say

    outputs = Outputs(json=json, html=html, png=png)
    workers = workers_beside_a_step() if workers is None else workers
    options = Options(model=model, size=size, batch_size=batch_size, steps=steps, workers=workers,
                      precision=precision, device=device, max_images=images, assume_gpu_rate=assume_gpu_rate,
                      loaders=tuple(word.strip() for word in loader.split(",") if word.strip()))  # fmt: skip
    outputs.check()
    report, console = measure(data, options), Console()
    outputs.write(report, console)
    say(report, console, reached_gain(report))


def _tell(measure: Callable[[], dict[str, Any]], say: Callable[[dict[str, Any]], None], file: Path | None) -> None:
    """Measure, write the result where asked, and print it: in this order, for who reads may not wait (`| head -1`)."""
    from rich.console import Console

    from bench.outputs import Outputs, say_written
    from fastload.profiling.report import write_json

    Outputs(json=file).check()
    result = measure()
    if file is not None:
        write_json(file, result)
        say_written(file, Console())
    say(result)


def _one_way_in(context: typer.Context, data: Path | None, words: list[str] | None) -> None:
    if words is None and data is None:
        raise ConfigError(
            "what to run is missing; give an image folder, or -- and a command: bench gpu-util -- python train.py"
        )
    if words is not None and (data is not None or not words):
        raise ConfigError(
            f"{'both a folder and a' if data else 'no'} command after --; give one: bench gpu-util -- python train.py"
        )
    if words:
        for name in context.params:
            source = context.get_parameter_source(name)
            if source is not None and source.name == "COMMANDLINE" and name not in ("json", "html", "png"):
                raise ConfigError(
                    f"--{name.replace('_', '-')} is for a folder of images; a script keeps its own settings, so leave "
                    "it out, or write it after the script's name."
                )


@app.command()
def compare(
    before: Annotated[Path, typer.Argument(help="A report: what `bench gpu-util --json` wrote.", show_default=False)],
    after: Annotated[Path, typer.Argument(help="Another one.", show_default=False)],
    html: Html = None,
) -> None:
    """Say what changed between two reports of gpu-util, and what else differs: machine, versions, settings."""
    from rich.console import Console

    from bench.outputs import Outputs
    from fastload.profiling.compare import compare as compared
    from fastload.profiling.reading import read_report
    from fastload.profiling.terminal import say_comparison

    outputs, reports = Outputs(html=html), [read_report(file) for file in (before, after)]
    outputs.check()
    console = Console()
    try:
        changed = compared(*reports)
        outputs.write(reports[1], console, changed)
        say_comparison(changed, console)
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as e:
        raise ConfigError(
            f"{printable(before)} or {printable(after)} is not as the schema of reports says ({printable(e)}); measure "
            "again."
        ) from None


@app.command()
def loader(
    folder: Annotated[Path, typer.Argument(help="An image folder: class folders.", show_default=False)],
    store: Annotated[int, typer.Option(help="Side of the stored images, in pixels.")] = 128,
    size: Annotated[int, typer.Option(help="Side of the random crops, in pixels.")] = 112,
    batch_size: Annotated[int, typer.Option(help="Images per batch.")] = 64,
    workers: Annotated[
        list[int] | None,
        typer.Option(
            help="DataLoader's worker processes; may be given again: the best is kept.  [default: 1, 2, 4, half the "
            "cores and all of them]"
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(help="Workers or threads of each of the others.  [default: one per core]", show_default=False),
    ] = None,
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
        store=store, size=size, batch_size=batch_size, workers=tuple(workers or workers_to_try()),
        threads=num_cores() if threads is None else threads,
        rounds=rounds, crop=crop, max_images=images,
    )  # fmt: skip
    _tell(lambda: measure(folder, options), say, json)


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

    _tell(lambda: measure(folder, store=store, size=size, batch_size=batch_size, epochs=epochs), say, json)


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

    sizes = tuple(thousands or (1, 10, 100, 1000))
    _tell(lambda: measure(sizes, batch_size=batch_size, rounds=rounds), say, json)


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
    slow_images: Annotated[
        int | None,
        typer.Option(help="The PIL loop and ffcv's writer take only so many of the images.", show_default=False),
    ] = None,
    json: Json = None,
) -> None:
    """Measure conversion: images/s of decoding alone, of fastload, of ffcv's writer and of the usual PIL loop.

    Same files, same cores, in turn, medians. Also the stored pixels against Pillow's, and peak memory.
    """
    from bench.convert import measure, say

    options: dict[str, Any] = {"size": size, "workers": workers, "rounds": rounds, "repeat": repeat, "made": made,
                               "count": count, "slow_images": slow_images}  # fmt: skip
    _tell(lambda: measure(folder, **options), say, json)


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

    _tell(lambda: measure(store=store, size=size, batch_size=batch_size, rounds=rounds, device=device), say, json)


@app.command()
def training(
    folder: Annotated[Path, typer.Argument(help="An image folder: class folders.", show_default=False)],
    model: Annotated[str, typer.Option(help="A timm model, or quick: a small one for 32 pixels.")] = "resnet18",
    size: Annotated[int, typer.Option(help="Side of the images, in pixels.")] = 64,
    batch_size: Annotated[int, typer.Option(help="Images per step.")] = 64,
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 12,
    seeds: Annotated[int, typer.Option(help="Trainings of each, with seeds from 0.")] = 3,
    workers: Annotated[int | None, typer.Option(help=BESIDE_A_STEP, show_default=False)] = None,
    lr: Annotated[float, typer.Option(help="Adam's learning rate.")] = 1e-3,
    crop: Annotated[
        Literal["padded", "resized"], typer.Option(help="RandomCrop with padding, or RandomResizedCrop.")
    ] = "padded",
    precision: Annotated[Literal["no", "bf16"], typer.Option(help="no or bf16.")] = "no",
    json: Json = None,
) -> None:
    """Train by the usual loop of ImageFolder-like files and DataLoader, and as a recipe: seconds and accuracy.

    Same network, images, transforms, optimizer and steps; seed by seed, in turn.
    """
    from bench.training import Options, measure, say

    workers = workers_beside_a_step() if workers is None else workers
    options = Options(model=model, size=size, batch_size=batch_size, epochs=epochs, seeds=seeds, workers=workers, lr=lr,
                      crop=crop, precision=precision)  # fmt: skip
    _tell(lambda: measure(folder, options), say, json)


@app.command()
def truth(
    step_ms: Annotated[float, typer.Option(help="Length of a step of the grid, in milliseconds.")] = 10.0,
    steps: Annotated[int, typer.Option(help="Steps that count, of each point.")] = 60,
    only: Annotated[str | None, typer.Option(help="grid, cases or cost.", show_default=False)] = None,
    json: Json = None,
) -> None:
    """Measure the profiler itself: loaders and steps of known length, loaders slow for a known reason, its cost."""
    from bench.truth import measure, say

    _tell(lambda: measure(step_ms=step_ms, num_steps=steps, only=only), say, json)


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
