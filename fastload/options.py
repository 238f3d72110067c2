"""The options of `fastload convert`: the type of each, and what `--help` says of it."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

Source = Annotated[
    str,
    typer.Argument(
        metavar="SRC",
        help="A folder with one folder per class, or with split folders (train, valid, test and their usual other "
        "names) that hold them; a folder with labels in the file names (3_102.jpg) or in text files beside the "
        "images; a list (.csv, .tsv, .txt); tars ('shards/{000..099}.tar'); .parquet; a table (.csv, .csv.gz, .tsv) "
        "with --target; the URL of any of these (s3://bucket/food11); torchvision:NAME; hf:NAME.",
        show_default=False,
    ),
]
Out = Annotated[
    str | None,
    typer.Argument(
        help="The dataset to write, or its URL. Where not given: SRC.fastload beside SRC (ffcv: SRC.ffcv), and "
        "cifar10.fastload here of torchvision:CIFAR10; a SRC at a URL needs it.",
        show_default=False,
    ),
]
Format = Annotated[
    Literal["resident", "ffcv"],
    typer.Option(help="resident: a dataset of one image size; ffcv: OUT/SPLIT.beton, images of their own sizes."),
]
Mode = Annotated[Literal["raw", "jpg", "proportion"], typer.Option(help="ffcv: how images are stored.")]
Quality = Annotated[int, typer.Option(help="ffcv: of the JPEGs, 1 to 100.")]
MaxResolution = Annotated[
    int | None, typer.Option(help="ffcv: shrink images to this longer side, in pixels.", show_default=False)
]
Size = Annotated[int, typer.Option(help="resident: side of the stored images, in pixels.")]
Fit = Annotated[
    Literal["stretch", "crop", "pad"],
    typer.Option(help="resident: how a picture becomes square: stretched, the centre cut out, or black added."),
]
Split = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=SHARE",
        help="Cut a split from train where the source has none, e.g. valid=0.1: the same share of every class, "
        "always the same images. May be given twice.",
        show_default=False,
    ),
]
OnBad = Annotated[
    Literal["stop", "skip"],
    typer.Option(help="At a file that is no whole image: stop and name it, or leave it out and list it."),
]
MaxPixels = Annotated[int, typer.Option(help="Images of more pixels are bad ones.")]
Layout = Annotated[
    str | None,
    typer.Option(help="Take this layout instead of finding it; --dry-run names the one found.", show_default=False),
]
PathColumn = Annotated[str | None, typer.Option(help="Of a list: where the paths are.", show_default=False)]
LabelColumn = Annotated[
    str | None, typer.Option(help="Of a list, parquet or hf: where the labels are.", show_default=False)
]
ClassNames = Annotated[
    str | None,
    typer.Option(
        help="A file or URL with names to show: JSON from class to name, or a name per line. "
        "cat_to_name.json is found.",
        show_default=False,
    ),
]
Root = Annotated[
    str | None,
    typer.Option(help="What a list's paths are relative to (or a URL), or torchvision's folder.", show_default=False),
]
Download = Annotated[bool, typer.Option("--download", help="Let torchvision or hf fetch what is missing.")]
AllowOutside = Annotated[
    bool,
    typer.Option(
        "--allow-outside",
        help="Take paths of a list that lead out of its root, and of hf: that lead out of the dataset.",
    ),
]
Target = Annotated[
    list[str] | None,
    typer.Option(
        metavar="COLUMN",
        help="The source is a table, and this column is to be predicted: a name, a number from 1, or -1 for the "
        "last. Several are predicted together by regression.",
        show_default=False,
    ),
]
Regression = Annotated[
    bool | None,
    typer.Option(
        "--regression/--classes",
        help="Of a table: whether the target is an amount or a class; whole numbers of at most 20 values and "
        "texts are classes where not given.",
        show_default=False,
    ),
]
Task = Annotated[
    str | None,
    typer.Option(
        metavar="I/N",
        help="Write only the I-th of N shares, on this machine; `fastload merge` ends it when all are done.",
        show_default=False,
    ),
]
Dask = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS", help="Let the workers of this Dask scheduler write the shards.", show_default=False
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what was found and would be done, and stop.")]
Seed = Annotated[int, typer.Option(help="Of the cut, and of the one shuffle of train.")]
Workers = Annotated[
    int | None, typer.Option(help="Processes that decode; one per core where not given.", show_default=False)
]
