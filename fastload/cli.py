"""The command line: fastload convert | merge | info | verify | show | weights | doctor."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fastload import converting, options
from fastload.errors import ConfigError, exit_with, printable, several

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Ends dataloader-bound training: turn an image folder into a memory-resident dataset, look at it, check it.",
)

DatasetPath = Annotated[str, typer.Argument(help="A dataset: NAME.fastload.", show_default=False)]


def main() -> None:
    """Run the command line; a user's mistake is one sentence and exit code 2."""
    exit_with(app)


def run(command: Callable[..., Any]) -> None:
    """Run a function as a command: its parameters are the flags, a FastloadError is one sentence and exit code 2."""
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    single.command()(command)
    exit_with(single)


@app.command()
def convert(
    ctx: typer.Context,
    source: options.Source,
    out: options.Out = None,
    format: options.Format = "resident",
    mode: options.Mode = "raw",
    quality: options.Quality = 90,
    max_resolution: options.MaxResolution = None,
    size: options.Size = 256,
    fit: options.Fit = "stretch",
    split: options.Split = None,
    on_bad: options.OnBad = "stop",
    max_pixels: options.MaxPixels = 178_000_000,
    layout: options.Layout = None,
    path_column: options.PathColumn = None,
    label_column: options.LabelColumn = None,
    class_names: options.ClassNames = None,
    root: options.Root = None,
    download: options.Download = False,
    allow_outside: options.AllowOutside = False,
    target: options.Target = None,
    regression: options.Regression = None,
    task: options.Task = None,
    dask: options.Dask = None,
    dry_run: options.DryRun = False,
    seed: options.Seed = 0,
    workers: options.Workers = None,
) -> None:
    """Turn images with labels into a dataset that needs no decoding.

    Every image is decoded once, brought to SIZE x SIZE and stored as bytes. The same source and options
    give the same bytes. A run that was stopped goes on where it was when the same command is given again.
    """
    from fastload import sources
    from fastload.plan import Settings

    shares = converting.parse_shares(split or [])
    given = converting.given(ctx, format)
    listing = {"layout": layout, "path_column": path_column, "label_column": label_column, "class_names": class_names,
               "root": root, "download": download, "allow_outside": allow_outside}  # fmt: skip
    writing: dict[str, Any] = {"on_bad": on_bad, "max_pixels": max_pixels, "seed": seed, "workers": workers}
    if target or regression is not None or sources.is_packed_table(source):
        converting.refuse(f"a table ({printable(source)})", given - converting.OF_TABLES)
        converting.convert_table(source, out, target, regression, shares, seed, dry_run)
        return
    converting.refuse_for_images(format, given)
    settings = Settings(size=size, fit=fit, seed=seed, max_pixels=max_pixels)
    path = converting.output_of(source, out, format, is_free=format == "resident" and not dry_run)
    found = converting.find(source, listing, shares, seed)
    if dry_run:
        converting.say_plan(found, path, settings if format == "resident" else None)
    elif format == "ffcv":
        converting.convert_to_ffcv(found, path, mode=mode, quality=quality, max_resolution=max_resolution, **writing)
    else:
        converting.convert_images(found, path, size=size, fit=fit, task=task, dask=dask, **writing)


@app.command()
def merge(
    dataset: Annotated[
        str, typer.Argument(help="What the tasks were to write: NAME.fastload, or its URL.", show_default=False)
    ],
) -> None:
    """Close a dataset whose tasks (convert --task I/N) are all done."""
    from fastload import conversion

    converting.say_written(conversion.merge(dataset, progress=True))


# The plan counts the batches under way, too; of these they are a small part of it.
_INFO_BATCH = 256


@app.command()
def info(dataset: DatasetPath) -> None:
    """Say what a dataset holds, and where this machine would keep it."""
    from fastload.devices import current_device
    from fastload.formats import open_dataset
    from fastload.formats.manifest import read_manifest
    from fastload.placement import choose, gib
    from fastload.places import as_place
    from fastload.storing import need_of

    manifest = read_manifest(as_place(dataset))
    table = Table(title=escape(printable(dataset)), title_justify="left", show_header=False, box=None)
    table.add_column(style="bold")
    table.add_column()

    def row(name: str, value: object) -> None:
        table.add_row(name, escape(printable(value)))

    device = current_device()
    for split in manifest.splits:
        opened = open_dataset(dataset, split)
        placement = choose("auto", need_of(opened, _INFO_BATCH), device)
        kind = "rows" if manifest.is_table else "images"
        row(
            split,
            f"{len(opened):,} {kind} in {converting.shards_in_words(len(opened.shards))}, {gib(opened.num_bytes)}",
        )
        row("", f"here: {placement}")
    row(manifest.sample.name, manifest.sample)
    if manifest.table is not None:
        row("", several(manifest.table["feature_names"]))
        row("target", several(manifest.table["target_names"]))
    if manifest.classes:
        row("classes", f"{len(manifest.classes)}: {several(manifest.display_names)}")
    for name, values in (("mean", manifest.mean), ("std", manifest.std)):
        if values:
            row(name, ", ".join(f"{v:.4f}" for v in values))
    row("settings", ", ".join(f"{k} {v}" for k, v in manifest.settings.items()))
    if manifest.skipped:
        row("left out", f"{len(manifest.skipped):,} bad images, listed in bad.csv")
    row("source", f"{manifest.source.get('name')}, {manifest.source.get('layout')}")
    row("written by", f"fastload {manifest.fastload}")
    Console().print(table)


@app.command()
def verify(
    dataset: Annotated[
        str,
        typer.Argument(help="A dataset: NAME.fastload, its URL, NAME.beton, or a folder of these.", show_default=False),
    ],
) -> None:
    """Check every byte of a dataset against the checksums that were written with it.

    Names every shard that was changed, cut, lost or swapped, and ends with exit code 1 if there is one.
    """
    from fastload.formats.ffcv import betons_at, find_beton_damage
    from fastload.formats.manifest import read_manifest
    from fastload.formats.resident import find_damage
    from fastload.places import as_place
    from fastload.storing import byte_bar

    place = as_place(dataset)
    betons = betons_at(place) if isinstance(place, Path) else []
    if betons:
        # Of what is left of them: one that is cut or lost is named below, with all others.
        total, num_files = sum(file.stat().st_size for file in betons if file.is_file()), len(betons)
        checks = [functools.partial(find_beton_damage, file) for file in betons]
    else:
        manifest = read_manifest(place)
        total = sum(shard.bytes for shards in manifest.splits.values() for shard in shards)
        num_files = sum(len(shards) for shards in manifest.splits.values())
        checks = [functools.partial(find_damage, place, manifest)]
    with byte_bar("verify", total, True) as advance:
        damage = [sentence for check in checks for sentence in check(advance)]
    for sentence in damage:
        print(f"damaged: {sentence}", file=sys.stderr)
    if damage:
        print(f"{len(damage)} of {num_files} files are damaged; convert again, or copy them anew.", file=sys.stderr)
        raise typer.Exit(1)
    print(f"{printable(dataset)}: {num_files} files, {total:,} bytes, all as written")


@app.command()
def show(
    dataset: DatasetPath,
    out: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("sheet.png"),
    split: Annotated[str, typer.Option(help="train, valid or test.")] = "train",
    augment: Annotated[
        str | None,
        typer.Option(
            metavar="TRANSFORMS",
            show_default=False,
            help='As a training step would see them, e.g. "RandomResizedCrop(96), ColorJitter(0.4, 0.4)".',
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Which nine samples, and which draws.")] = 0,
) -> None:
    """Draw a contact sheet: nine samples with their class names, as stored or as augmented."""
    import torch

    from fastload.augment import Augment
    from fastload.augment.written import read_written
    from fastload.formats import open_dataset
    from fastload.records import check_seed
    from fastload.sheet import contact_sheet

    check_seed(seed)
    if dataset.lower().endswith(".beton"):
        raise ConfigError(f"{printable(dataset)}: images of a .beton have their own sizes; show wants a NAME.fastload.")
    opened = open_dataset(dataset, split)
    if opened.is_table:
        raise ConfigError(f"{printable(dataset)} is a table, which has no pictures; see it with: fastload info")
    if not len(opened):
        raise ConfigError(f"{printable(dataset)}: {opened.split} is empty, as bad.csv says; pass another --split.")
    ids = torch.randperm(len(opened), generator=torch.Generator().manual_seed(seed))[:9]
    images = torch.stack([opened[int(i)][0] for i in ids])
    if augment is not None:
        pipeline = Augment(read_written(augment), dtype=torch.uint8)
        images = pipeline(images, ids=ids, seed=seed).permute(0, 2, 3, 1)
    shown = (*opened.manifest.display_names, "unlabelled")  # of label -1
    names = [shown[int(opened.labels[i])] for i in ids]
    picture = contact_sheet([image.numpy() for image in images], names)
    try:
        picture.save(out, format="PNG")
    except OSError as e:
        raise ConfigError(f"--out {printable(out)} cannot be written ({e.strerror}); pass another path.") from e
    print(f"wrote {printable(out)}")


@app.command()
def weights(
    name: Annotated[str, typer.Argument(help="A model of timm or torchvision: resnet18.tv_in1k.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="The .safetensors to write.", show_default=False)],
) -> None:
    """Find or fetch a model's published weights, as one file for a machine without a network."""
    from fastload.weights import export

    print(f"wrote {printable(out)}: {printable(export(name, out).origin)}")


@app.command()
def doctor() -> None:
    """Say what is installed, what is missing, and the command that brings it.

    Ends with exit code 1 if something is broken; what is merely absent is fine.
    """
    from fastload.doctor import examine

    marks = {"ok": "[green]ok[/]", "absent": "[yellow]absent[/]", "broken": "[red]broken[/]"}
    table = Table(box=None, show_header=False)
    with Console(stderr=True).status("looking at packages, devices and FFCV"):
        findings = examine()
    for finding in findings:
        table.add_row(marks[finding.state], escape(finding.name), escape(printable(finding.found)))
    console = Console(soft_wrap=True)
    console.print(table)
    for finding in findings:
        if finding.command:
            console.print(f"{finding.name}: {finding.command}", markup=False, highlight=False)
    if any(f.state == "broken" for f in findings):
        raise typer.Exit(1)


def _version(value: bool) -> None:
    if value:
        from fastload import __version__

        print(f"fastload {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


if __name__ == "__main__":
    main()
