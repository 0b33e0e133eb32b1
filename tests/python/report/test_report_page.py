"""The page and its pictures: nothing from outside, bounded in size whatever the run, and errors in one line."""

from __future__ import annotations

import builtins
import itertools
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

pytest.importorskip("matplotlib")

import mtf
import mtf.report as pictures
from mtf import cli
from mtf.formatting import duration
from mtf.loggers.base import RunInfo
from mtf.loggers.jsonl import JsonlLogger
from mtf.loggers.run_log import RunLog
from mtf.report.history import History, make_history, plan_history
from mtf.report.metrics import Metrics, read_rows
from mtf.report.pictures.style import COLORS, MUTED, Palette, shorten, svg
from mtf.report.results import Results, results_of
from mtf.report.run_log import Session
from mtf.report.series import MAX_POINTS, Series

DOCS = Path(__file__).resolve().parents[3] / "docs"
VOID = {"meta", "image", "path", "use", "br", "rect"}


class Page(HTMLParser):
    """Checks that tags close in order; keeps attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def schedule(
    num_sources: int = 3, steps: int = 120, order: str = "even", names: list[str] | None = None
) -> mtf.Schedule:
    """A weighted mixture with falling weights."""
    options = mtf.MultiDataLoaderConfig(
        sampling_strategy=mtf.SamplingStrategy.WEIGHTED,
        weighted_order=mtf.WeightedOrder[order.upper()],
        dataloader_names=names or [f"source-{i}" for i in range(num_sources)],
        dataloader_weights=[1 / (i + 1) for i in range(num_sources)],
        epoch_length_policy=mtf.EpochLengthPolicy.FIXED_NUM_STEPS,
        steps_per_epoch=steps,
    )
    return mtf.Schedule(options, [20 + 7 * i for i in range(num_sources)], seed=5)


def write_run(path: Path, made: mtf.Schedule, updates: int, every: int) -> Path:
    """The files of a run that had ``made`` as its schedule, without training."""
    pytest.importorskip("torch")
    info = RunInfo("big <run> & co", {"checkpoint": {"root_dir": str(path / "none")}, "seed": 5})
    run_log = RunLog(path, info, 1)
    run_log.note_schedule(made.to_bytes(), 0)
    logger = JsonlLogger(path / "metrics.jsonl", info)
    for step in range(every, updates + 1, every):
        row = {f"train/{name}/loss": 1 / step + i for i, name in enumerate(made.names)}
        waits = {f"throughput/{name}/data_wait_s": 0.01 * i for i, name in enumerate(made.names)}
        logger.log_metrics({**row, **waits, "train/loss": 1.0, "throughput/data_wait_share": 0.1}, step)
    logger.log_metrics({"val/loss": 0.5, f"val/{made.names[0]}/loss": 0.25, "val/accuracy": 0.75}, updates)
    run_log.note_pause(updates, 0, None)
    return path


# Counting -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["random", "shuffled", "even"])
@pytest.mark.parametrize("max_bins", [7, 100, 1000])
def test_a_history_counts_what_is_drawn(order: str, max_bins: int) -> None:
    made = schedule(order=order)
    history = plan_history(made.plan(3), max_bins)
    drawn = np.concatenate([made.sources(epoch) for epoch in range(3)])
    ran = np.concatenate([[np.zeros(3)], np.cumsum(np.eye(3)[drawn], axis=0)])
    assert history.edges[0] == 0
    assert history.edges[-1] == history.num_steps == 360
    assert len(history.edges) == min(max_bins, 360) + 1
    assert np.array_equal(history.counts, ran[history.edges].T)
    weights = np.array([1, 1 / 2, 1 / 3]) / (11 / 6)
    assert history.expected == pytest.approx(weights[:, None] * history.edges)
    assert history.epoch_starts.tolist() == [0, 120, 240, 360]
    planned = [[s.max_deviation or 0.0 for s in epoch.sources] for epoch in made.plan(3).epochs]
    assert history.deviations == pytest.approx(np.max(planned, axis=0))
    assert np.isfinite(history.bounds).all() == (order == "even")


def test_a_history_ends_inside_an_epoch() -> None:
    made = schedule()
    history = make_history(lambda _: made, 1, 2, 17)
    assert (history.first_epoch, history.num_steps) == (1, 137)
    drawn = np.concatenate([made.sources(1), made.sources(2, 0, 17)])
    assert np.diff(history.counts, axis=1).argmax(axis=0).tolist() == drawn.tolist()


def test_a_million_steps_of_64_sources_are_thinned_out() -> None:
    history = plan_history(schedule(64, 1_000_000).plan())
    assert len(history.edges) <= 601
    assert history.totals.sum() == 1_000_000
    for draw in (pictures.schedule_raster, pictures.shares, pictures.passes):
        assert len(svg(draw(history), draw.__name__)) < 300_000


def test_series_keep_ends_and_sums_and_stay_small() -> None:
    for num in (1, 5, MAX_POINTS, MAX_POINTS + 1, 3 * MAX_POINTS + 5, 100_000):
        series = Series()
        for i in range(num):
            series.add(i + 1, float(i))
        x, y = series.points()
        assert len(x) == len(y) <= MAX_POINTS + 1
        assert (series.first, series.last, series.num_values, series.last_update) == (0.0, num - 1.0, num, num)
        assert series.total == sum(range(num))
        assert np.all(np.diff(y) > 0)
        assert y == pytest.approx(x - 1), "means of a straight line lie on it"
        few_x, few_y = series.points(100)
        assert len(few_x) <= 102
        assert few_y == pytest.approx(few_x - 1)


def test_rows_that_are_none_are_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n[]\n')
    with pytest.raises(mtf.ConfigError, match="line 2: no row"):
        read_rows(path)
    path = tmp_path / "metrics.csv"
    path.write_text("step,a\n1,2\nx,3\n")
    with pytest.raises(mtf.ConfigError, match="line 3: no row"):
        read_rows(path)


# Pictures -----------------------------------------------------------------------------------------------------------


def pixels(history: History) -> np.ndarray[Any, Any]:
    """The middle line of each row of a raster."""
    image = np.asarray(pictures.schedule_raster(history).axes[0].images[0].get_array())
    return image[2::6]


def test_the_raster_shows_each_draw_in_its_sources_colour() -> None:
    from matplotlib.colors import to_hex

    made = schedule()
    image = pixels(plan_history(made.plan()))
    drawn = made.sources()
    assert image.shape == (3, 120, 4)
    assert (image[:, :, 3] > 0).argmax(axis=0).tolist() == drawn.tolist()
    assert [to_hex(image[i, 0, :3]) for i in range(3)] == list(COLORS[:3])


def test_the_raster_of_many_steps_shows_even_the_rarest_draw() -> None:
    made = schedule(2, 100_000)
    made.update_weights([1, 1e-4])
    image = pixels(plan_history(made.plan()))
    shown = image[1, :, 3] > 0
    assert 1 <= shown.sum() <= 11
    assert image[1, shown, 3].min() > 0.1


def test_share_lines_end_at_the_shares() -> None:
    history = plan_history(schedule().plan(2))
    share, distance = pictures.shares(history).axes
    ends = {line.get_color(): line.get_ydata()[-1] for line in share.lines if line.get_linestyle() == "-"}
    assert [ends[COLORS[i]] for i in range(3)] == pytest.approx(history.shares.tolist())
    (band,) = distance.collections
    top = band.get_paths()[0].vertices[:, 1].max()
    assert top == pytest.approx(history.bounds.max())
    lines = [line for line in distance.lines if len(line.get_xdata()) > 2]
    assert all(np.abs(line.get_ydata()).max() <= top for line in lines)


def test_svg_has_the_lines_of_the_figure() -> None:
    figure = pictures.passes(schedule(steps=90).plan())
    page = Page(svg(figure, "passes"))
    assert {tag for tag, _, _ in page.attributes} <= {
        *("svg", "g", "defs", "style", "path", "use", "text", "tspan", "rect", "clippath", "image"),
    }
    for line in figure.axes[0].lines[:3]:
        drawn = [value for tag, name, value in page.attributes if tag == "path" and name == "d"]
        pixels = line.get_transform().transform(line.get_xydata())
        height = figure.bbox.height
        (shown,) = (
            path
            for path in drawn
            if len(points := re.findall(r"[ML] ([\d.]+) ([\d.]+)", path)) > 20
            and abs(float(points[-1][1]) - (height - pixels[-1][1]) * 72 / figure.dpi) < 0.02
        )
        assert shown.startswith("M ")


def test_without_weights_there_is_no_promise() -> None:
    plan = mtf.Schedule(mtf.MultiDataLoaderConfig(), [3, 5]).plan()
    assert len(pictures.shares(plan).axes) == 1


def test_sources_of_unknown_length_are_named() -> None:
    options = mtf.MultiDataLoaderConfig(
        dataloader_names=["stream", "known"],
        epoch_length_policy=mtf.EpochLengthPolicy.FIXED_NUM_STEPS,
        steps_per_epoch=10,
    )
    (axes,) = pictures.passes(mtf.Schedule(options, [None, 4]).plan()).axes
    assert axes.get_title(loc="left") == "Passes through each source (length unknown: stream)"


def test_many_sources_share_one_grey() -> None:
    palette = Palette([f"s{i}" for i in range(20)], list(range(20)))
    assert palette.shown == list(range(13, 20))
    assert len({palette[i] for i in palette.shown}) == 7
    assert {palette[i] for i in palette.others} == {MUTED}
    handles, labels = palette.entries(lambda color: color)
    assert labels == [*(f"s{i}" for i in range(13, 20)), "13 others"]
    assert len(handles) == 8


def test_long_names_lose_their_middle() -> None:
    assert shorten("a-source-with-a-very-long-name") == "a-source-wit…-name"
    assert len(shorten("a-source-with-a-very-long-name")) == 18
    assert shorten("a$b$") == r"a\$b\$"


def test_names_with_every_character_can_be_drawn() -> None:
    made = schedule(names=["<b>&", "$x_$ \\frac", "数据"])
    text = svg(pictures.schedule_raster(made.plan()), "names")
    assert "&lt;b&gt;&amp;" in text
    assert "$x_$" in text


def test_svg_is_the_same_again_and_takes_the_pages_ink() -> None:
    first, second = (svg(pictures.shares(schedule().plan()), "shares") for _ in range(2))
    assert first == second
    assert "currentColor" in first
    assert "<metadata" not in first
    drawn = ElementTree.fromstring(f'<page xmlns:xlink="http://www.w3.org/1999/xlink">{first}</page>')
    lines = [path for path in drawn.iter("path") if "stroke:" in path.get("style", "")]
    assert len(lines) > 10
    assert all(re.fullmatch(r"[-MLz .\d]+", line.get("d", "")) for line in lines)


@pytest.mark.parametrize("file", sorted(DOCS.rglob("*.svg")), ids=lambda file: str(file.relative_to(DOCS)))
def test_pictures_in_the_documentation_are_whole(file: Path) -> None:
    shapes = [shape for shape in ElementTree.parse(file).iter() if shape.tag.endswith(("}path", "}rect"))]
    assert shapes
    assert all("d" in shape.attrib or "width" in shape.attrib for shape in shapes)


# The page -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_sources", [1, 3, 64])
def test_the_page_needs_nothing_else(num_sources: int, tmp_path: Path) -> None:
    report = pictures.read_run(write_run(tmp_path / "run", schedule(num_sources), 200, 10))
    text = report.to_html()
    page = Page(text)
    for tag, name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "data", "action", "poster", "srcset"):
            assert value.startswith(("#", "data:")), f"<{tag} {name}={value[:80]}>"
        assert "url(" not in value or re.search(r"url\(['\"]?#", value)
    assert {tag for tag, _, _ in page.attributes}.isdisjoint({"script", "link", "iframe", "object", "img"})
    assert "@import" not in text
    assert re.search(r"https?:", text) is None
    assert "big &lt;run&gt; &amp; co" in text
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {value[1:] for _, name, value in page.attributes if name == "href"} <= set(ids) | {
        value[1:] for _, name, value in page.attributes if name == "href" and value.startswith("data:")
    }
    assert len(text) < 1_500_000
    assert text.count("<figure>") == 7
    assert f">{num_sources}</dd>" in text
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


def test_a_long_run_stays_small(tmp_path: Path) -> None:
    report = pictures.read_run(write_run(tmp_path, schedule(4, 250_000, "random"), 1_000_000, 500))
    assert report.position == (4, 0)
    assert report.metrics.num_rows == 2_001
    assert len(report.to_html()) < 500_000
    assert len(json.dumps(report.to_dict())) < 500_000


def test_a_notebook_shows_the_page_in_a_frame(tmp_path: Path) -> None:
    shown = pictures.read_run(write_run(tmp_path, schedule(), 20, 10))._repr_html_()
    assert shown.startswith('<iframe srcdoc="&lt;!DOCTYPE html&gt;')
    assert shown.count("<") == 2


# The command --------------------------------------------------------------------------------------------------------


def test_the_command_writes_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, schedule(), 50, 10)
    assert cli.main(["report", str(tmp_path)]) == cli.OK
    out, err = capsys.readouterr()
    assert "source-0" in out
    assert out.endswith(f"report: {tmp_path / 'report.html'}\n")
    assert err == ""
    assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert cli.main(["report", str(tmp_path), "--out", str(tmp_path / "other.html")]) == cli.OK
    assert (tmp_path / "other.html").exists()
    capsys.readouterr()
    assert cli.main(["report", str(tmp_path), "--json"]) == cli.OK
    assert json.loads(capsys.readouterr().out)["update"] == 50


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    write_run(tmp_path / "logs" / "a", schedule(), 20, 10)
    write_run(tmp_path / "logs" / "b", schedule(), 20, 10)
    write_run(tmp_path / "newer", schedule(), 20, 10)
    run_log = tmp_path / "newer" / "run.jsonl"
    run_log.write_text(run_log.read_text().replace('"format": 1', '"format": 2'))
    for folder, said in [
        ("none", "there is no such folder"),
        ("empty", "is no run"),
        ("logs", "holds 2 runs, name one of them: a, b"),
        ("newer", "written by a newer mtf (format 2, known: 1)"),
    ]:
        assert cli.main(["report", str(tmp_path / folder)]) == cli.USAGE
        error = capsys.readouterr().err
        assert error.startswith("mtf: ")
        assert error.count("\n") == 1
        assert said in error


def test_pictures_say_what_they_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_matplotlib(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *arguments, **options)

    write_run(tmp_path, schedule(), 20, 10)
    for name in [name for name in sys.modules if name.startswith("matplotlib")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without_matplotlib)
    assert pictures.read_run(tmp_path).update == 20
    with pytest.raises(mtf.ConfigError, match=r"pip install 'mtf-torch\[plot\]'"):
        pictures.read_run(tmp_path).to_html()


# Results, and values under the pointer --------------------------------------------------------------------------------


def series_of(*values: float) -> Series:
    """One value an update, from update 1 on."""
    series = Series()
    for update, value in enumerate(values, 1):
        series.add(update, value)
    return series


def test_the_best_value_is_that_of_the_monitored_metric() -> None:
    metrics = Metrics()
    metrics.series = {
        "val/loss": series_of(3, 1, 2),
        "val/accuracy": series_of(0.1, 0.5, 0.5),
        "train/loss": series_of(9),
    }
    metrics.series["throughput/samples_per_s"] = series_of(10, float("nan"), 20)
    sessions = [Session(0, 100.0, 1, {}, end_s=160.0), Session(2, 200.0, 1, {})]
    found = results_of(metrics, {}, sessions, 230.0)
    assert (found.metric, found.best, found.best_update, found.final) == ("val/loss", 1, 2, 2)
    assert (found.training_loss, found.duration_s, found.samples_per_s) == (9, 90.0, 15.0)
    monitored = {"checkpoint": {"monitor_metric": "val/accuracy", "monitor_mode": "max"}}
    found = results_of(metrics, monitored, [], None)
    assert (found.metric, found.best, found.best_update, found.duration_s) == ("val/accuracy", 0.5, 2, None)
    unknown = {"checkpoint": {"monitor_metric": "val/other"}}
    assert results_of(metrics, unknown, [], None).metric == "val/loss"
    assert results_of(Metrics(), {}, [], None) == Results()


@pytest.mark.parametrize(("seconds", "shown"), [(0.25, "0.25 s"), (61, "1 min 1 s"), (3600 * 30 + 120, "30 h 2 min")])
def test_durations_are_short(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_values_under_the_pointer_are_those_of_the_lines() -> None:
    colors = Palette(["a", "b & c"], [1.0, 1.0])
    text = svg(pictures.losses({"a": series_of(4, 3, 2), "b & c": series_of(8, 7, 6)}, colors), "losses")
    tips = re.findall(r'<g class="tip">(.*?)</g>', text)
    assert [re.findall(r"<text[^>]*>(.*?)</text>", tip) for tip in tips] == [
        ["update 1", "a 4", "b &amp; c 8"],
        ["update 2", "a 3", "b &amp; c 7"],
        ["update 3", "a 2", "b &amp; c 6"],
    ]
    strips = re.findall(r'<g class="at"><rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', text)
    for (x, width), (following, _) in itertools.pairwise(strips):
        assert float(x) + float(width) == pytest.approx(float(following), abs=0.2)
    long = svg(pictures.losses({"a": series_of(*range(1, 500))}, colors), "losses")
    assert long.count('<g class="at">') == 40


def test_the_figures_of_the_schedule_count_in_batches() -> None:
    text = svg(pictures.shares(schedule(2, 10).plan(epochs=1)), "shares")
    assert "batch 10</text>" in text
    assert "update 10</text>" not in text


def test_weights_over_time_follow_a_curve() -> None:
    options = mtf.MultiDataLoaderConfig(
        sampling_strategy="WEIGHTED",  # type: ignore[arg-type]
        dataloader_names=["a", "b"],
        weight_curve=mtf.WeightCurve([(0, [3, 1]), (50, [1, 1])]),
        epoch_length_policy="FIXED_NUM_STEPS",  # type: ignore[arg-type]
        steps_per_epoch=100,
    )
    (axes,) = pictures.weights(mtf.Schedule(options, [10, 10], seed=0).plan(epochs=1)).axes
    promised = {line.get_label(): line.get_ydata() for line in axes.get_lines()}
    assert promised["a"][0] == pytest.approx(0.75)
    assert promised["a"][-1] == pytest.approx(0.5)
    assert promised["b"][0] == pytest.approx(0.25)


def test_the_head_says_what_came_out_and_where_it_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py", "--name", "a b"])
    text = pictures.read_run(write_run(tmp_path / "run", schedule(), 40, 10)).to_html()
    assert "best val/loss" in text
    assert "train.py --name &#x27;a b&#x27;</code>" in text
    assert "<dt>host</dt>" in text
    assert "<dt>commit</dt>" not in text  # outside a repository
    assert text.index("Losses and validation") < text.index(">Sources<") < text.index("More figures")


def test_a_run_log_of_the_first_format_without_an_origin_is_read(tmp_path: Path) -> None:
    write_run(tmp_path, schedule(), 20, 10)
    path = tmp_path / "run.jsonl"
    events = [json.loads(line) for line in path.read_text().splitlines() if line]
    for event in events:
        for name in ("host", "command", "commit"):
            event.pop(name, None)
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    report = pictures.read_run(tmp_path)
    assert report.sessions[0].host is None
    assert "<dl class" in report.to_html()


# Several runs -------------------------------------------------------------------------------------------------------


def test_runs_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = write_run(tmp_path / "first", schedule(), 50, 10)
    second = write_run(tmp_path / "second", schedule(2), 30, 10)
    log = second / "run.jsonl"
    log.write_text(log.read_text().replace('"seed": 5', '"seed": 6'))
    out = tmp_path / "both.html"
    assert cli.main(["report", str(first), str(second), "--out", str(out)]) == cli.OK
    said = capsys.readouterr().out
    assert re.search(r"^ +first +second$", said, re.MULTILINE)
    assert re.search(r"^updates +50 +30$", said, re.MULTILINE)
    assert re.search(r"^seed +5 +6$", said, re.MULTILINE)
    page = Page(out.read_text(encoding="utf-8"))
    assert {tag for tag, _, _ in page.attributes}.isdisjoint({"script", "link", "iframe", "object", "img"})
    assert "Settings that differ" in page.text
    assert cli.main(["report", str(first), str(second), "--json"]) == cli.OK
    found = json.loads(capsys.readouterr().out)
    assert found["settings"]["seed"] == ["5", "6"]
    assert found["runs"]["second"]["update"] == 30


def test_a_run_beside_itself_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(write_run(tmp_path / "run", schedule(), 20, 10))
    assert cli.main(["report", run, run]) == cli.USAGE
    assert "paths must name different runs" in capsys.readouterr().err
    with pytest.raises(mtf.ConfigError, match="at least two runs"):
        pictures.compare_runs([run])
