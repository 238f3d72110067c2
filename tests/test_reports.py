"""What is made of a report: its schema, the page, the picture, the terminal, comparisons."""

import copy
import io
import json
import sys
from html.parser import HTMLParser
from pathlib import Path

import jsonschema
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from bench.cli import app
from bench.outputs import Outputs
from fastload.errors import ConfigError
from fastload.profiler import Profile
from fastload.profiling import charts
from fastload.profiling.compare import compare
from fastload.profiling.page import MAX_BYTES, page
from fastload.profiling.plots import write_png
from fastload.profiling.reading import duration, main_loop, one_of_each, read_report, step_parts
from fastload.profiling.terminal import say
from tests.reports_help import check_report, make_loop, make_report

EVIL = "<script>alert('x')</script>\"&\x1b[31m\n'`$x$[bold]"
VOID = {"meta", "rect", "path", "br"}


class Page(HTMLParser):
    """Reads a page strictly: what opens closes, and every element and address is kept."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.said = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.said += data if self.open[-1:] != ["style"] else ""


def said(report: dict[str, object], **options: object) -> str:
    console = Console(file=io.StringIO(), width=100, color_system=None)
    say(report, console, **options)
    return console.file.getvalue()


def test_reports_are_as_the_schema_says_and_no_key_is_free() -> None:
    report = make_report(make_loop(), make_loop("host", gpu=False))
    check_report(report)
    for change in ({"more": 1}, {"version": 1}, {"verdict": {"word": "FINE", "why": "", "confidence": "high"}}):
        with pytest.raises(jsonschema.ValidationError):
            check_report({**report, **change})
    del report["loops"][0]["wait"]["share"]
    with pytest.raises(jsonschema.ValidationError):
        check_report(report)


def test_the_report_of_a_profiled_loop_is_as_the_schema_says() -> None:
    samples = torch.utils.data.TensorDataset(torch.zeros(60, 3, 8, 8), torch.zeros(60))
    with Profile(torch.utils.data.DataLoader(samples, batch_size=2), device="cpu", quiet=True) as batches:
        for _ in batches:
            pass
    report = batches.report
    check_report(report)
    assert report["run"]["entry"] == "profile"
    assert "one step" in said(report).lower()
    Page(page(report))


def test_the_page_has_every_chart_in_words_too_and_nothing_from_outside() -> None:
    report = make_report(make_loop(), make_loop("fastload, host", rate=980.0, wait=0.02))
    html = page(report)
    read = Page(html)
    tags = [tag for tag, _ in read.tags]
    assert "script" not in tags
    assert not {"href", "src", "onclick", "onload"} & {key for _, attrs in read.tags for key in attrs}
    assert "url(" not in html
    assert "@import" not in html
    for words in ("INPUT-BOUND", "decode-bound", "fastload convert flowers5 --size 128", "1,000", "Step by step"):
        assert words in read.said
    labels = [attrs["aria-label"] for _, attrs in read.tags if "aria-label" in attrs]
    assert len(labels) >= 6
    assert any("waiting for data 60 ms, 60%" in label for label in labels)
    drawn = [attrs for tag, attrs in read.tags if tag == "svg"]
    assert all("aria-label" in attrs or attrs.get("aria-hidden") == "true" for attrs in drawn)


def test_nothing_from_the_users_world_is_markup() -> None:
    report = make_report(make_loop(EVIL), data=EVIL)
    for place in (report["verdict"], report["cause"], report["actions"][0]):
        place["why" if "why" in place else "command"] = EVIL
    report["environment"]["command"] = report["environment"]["machine"]["cpu"] = EVIL
    changed = copy.deepcopy(report)
    changed["environment"]["machine"]["cpu"] = EVIL + "2"
    read = Page(page(changed, compare(report, changed)))
    assert not {"script", "bold"} & {tag for tag, _ in read.tags}
    assert "<script>alert('x')</script>\"&\\x1b[31m\\n'`$x$[bold]" in read.said
    text = said(changed)
    assert "\x1b" not in text
    assert "[bold]" in text


def test_the_page_stays_small_however_much_was_measured() -> None:
    loops = [make_loop("x" * 500, steps=2000)]
    loops += [make_loop(f"{number} {'y' * 200}", rank=number % 16, steps=20) for number in range(300)]
    report = make_report(*loops)
    report["loops"][0]["system"]["cpu_per_core"] = [0.5] * 256
    report["loops"][0]["series"]["nvml"] = [[0.1 * n, n % 100] for n in range(2000)]
    report["cause"]["evidence"] = ["z" * 5000] * 4
    assert len(page(report, compare(report, report)).encode()) < MAX_BYTES


def test_what_was_not_measured_is_said_to_be_so_and_never_0() -> None:
    report = make_report(make_loop(gpu=False))
    loop = report["loops"][0]
    loop["throughput"] = {"x_real": None, "x_load": None, "x_replay": None}
    loop["wait"] = dict.fromkeys(loop["wait"])
    loop["step_seconds"] = dict.fromkeys(loop["step_seconds"])
    loop["system"] = dict.fromkeys(loop["system"])
    loop["series"] = {"time": [], "step_seconds": [], "wait_seconds": [], "nvml": []}
    report |= {"cause": None, "resident_gain": None, "actions": []}
    report["verdict"]["why"] = "too little was measured."
    check_report(report)
    read = Page(page(report))
    assert "not measured" in read.said
    assert "0%" not in read.said
    assert "0%" not in said(report)
    report["loops"] = []
    Page(page(report))
    assert "INPUT-BOUND" in said(report)


def test_the_terminal_says_verdict_cause_loops_gain_and_a_command_on_a_line_of_its_own() -> None:
    report = make_report(make_loop(), make_loop("fastload, host", rate=980.0, wait=0.02))
    report["actions"][0]["command"] = "fastload convert " + "a" * 200
    text = said(report, reached_gain=2.3)
    assert text.startswith("INPUT-BOUND: the GPU waited 60% of the time for data.")
    assert "Cause: decode-bound." in text
    assert "waiting for data 60 ms (60%)   ▓ copy and augmentation 5 ms (5%)   ░ the step itself 35 ms (35%)" in text
    assert "2.40 times the images/s (measured; 2.30 times reached), and takes 70 MiB for 1,439 images" in text
    assert f"\n  {report['actions'][0]['command']}\n" in text, "never broken: it is pasted"


def test_of_several_ranks_the_one_that_waits_most_is_drawn_and_all_are_listed() -> None:
    report = make_report(*(make_loop(rank=rank, wait=0.1 + 0.1 * rank, rate=100.0 + rank) for rank in range(3)))
    assert main_loop(report)["rank"] == 2
    assert [loop["rank"] for loop in one_of_each(report)] == [2]
    text = said(report)
    assert all(number in text for number in ("100", "101", "102", "30%"))
    assert step_parts(main_loop(report))[0][1:] == ("waiting for data", pytest.approx(0.03))


def test_comparing_says_what_changed_what_is_noise_and_what_else_differs() -> None:
    before, after = make_report(make_loop()), make_report(make_loop(rate=900.0, wait=0.04))
    after["verdict"] = {"word": "NOT INPUT-BOUND", "why": "", "confidence": "high"}
    after["environment"]["versions"]["torch"] = "99.0"
    after["environment"]["machine"]["gpus"] = ["another"]
    after["run"]["batch_size"] = 128
    changed = compare(before, after)
    assert changed.summary == (
        "INPUT-BOUND before, NOT INPUT-BOUND after; 400 to 900 images/s (2.25 times); data wait 60% to 4%."
    )
    assert [warning.partition(":")[0] for warning in changed.warnings] == [
        "another machine", "another version", "another run",
    ]  # fmt: skip
    noise = {row.key: row.noise for row in changed.rows}
    assert noise["x_real"] is False
    assert noise["mean"] is True
    same = compare(before, before)
    assert same.warnings == ()
    assert "1.00 times, within the noise of both" in same.summary


def test_loops_of_other_names_are_compared_where_the_reports_are_about_them() -> None:
    before = make_report(make_loop("train.py:10 D"), make_loop("train.py:20 V"))
    after = make_report(make_loop("train.py:14 D", rate=800.0), make_loop("train.py:20 V"))
    rows = compare(before, after).rows
    assert list(dict.fromkeys(row.loop for row in rows)) == ["train.py:10 D → train.py:14 D", "train.py:20 V"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file"),
        ("{", "no JSON"),
        ('{"schema": "x"}', "no report of this kind"),
        ('{"schema": "fastload-gpu-util", "version": 1}', "version 1"),
        ('{"schema": "fastload-gpu-util", "version": 2}', "not whole"),
    ],
)
def test_what_is_no_report_is_refused_in_a_sentence(tmp_path: Path, content: str | None, words: str) -> None:
    file = tmp_path / "a.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=words):
        read_report(file)


def test_bench_compare_prints_and_writes_a_page(tmp_path: Path) -> None:
    for name, rate in (("before", 400.0), ("after", 900.0)):
        (tmp_path / f"{name}.json").write_text(json.dumps(make_report(make_loop(rate=rate))))
    files = [str(tmp_path / name) for name in ("before.json", "after.json", "page.html")]
    done = CliRunner().invoke(app, ["compare", files[0], files[1], "--html", files[2]])
    assert done.exit_code == 0, done.output
    assert "2.25 times" in done.output
    assert "Before and after" in Page(Path(files[2]).read_text()).said

    for wrong in (None, {"x_real": {"value": "fast"}}):
        broken = make_report(make_loop())
        broken["loops"][0]["throughput"] = wrong
        Path(files[0]).write_text(json.dumps(broken))
        done = CliRunner().invoke(app, ["compare", files[0], files[1]])
        assert isinstance(done.exception, ConfigError)
        assert "not as the schema" in str(done.exception)


def test_a_picture_is_drawn_of_whatever_was_measured(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "a.png"
    write_png(make_report(make_loop(EVIL), make_loop("host")), file)
    assert file.read_bytes().startswith(b"\x89PNG")
    report = make_report()
    report["loops"] = []
    write_png(report, file)


def test_outputs_are_looked_at_before_anything_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="is a folder"):
        Outputs(html=tmp_path).check()
    monkeypatch.setattr("bench.outputs.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r'pip install "fastload\[plot\]"'):
        Outputs(png=tmp_path / "a.png").check()
    console = Console(file=io.StringIO())
    with pytest.raises(ConfigError, match="cannot be written"):
        Outputs(json=Path("/proc/nowhere/a.json")).write(make_report(), console)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "what to run is missing"),
        (["--"], "no command after --"),
        (["folder", "--", "python"], "both a folder and a command"),
        (["--model", "resnet18", "--", "python"], "--model is for a folder"),
        (["--", "no-such-program"], "cannot be run"),
    ],
)
def test_ways_in_that_cannot_be_are_a_sentence(words: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["gpu-util", *words])
    assert isinstance(done.exception, ConfigError)
    assert message in str(done.exception)


def test_charts_of_long_runs_keep_their_highest_and_lowest_parts() -> None:
    marks, top = charts.timeline([0.1] * 5000, [0.05] * 5000)
    assert top == pytest.approx(0.1)
    assert marks.count("M") == 2 * charts.NUM_BINS
    assert charts.binned([]) == []
    assert charts.binned([(0.0, 4.0), (1.0, 6.0)], 2) == [4.0, 6.0]
    marks, top, most = charts.histogram([0.0] * 10)
    assert (most, marks.count("M")) == (10, 1)
    assert [duration(s) for s in (0.0004, 0.012, 3.14159, 240, 1200)] == ["0.4 ms", "12 ms", "3.1 s", "240 s", "20 min"]
