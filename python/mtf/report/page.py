"""The report of a run as one HTML page: no scripts, no fonts, no links; light and dark; printable."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import mtf
from mtf.formatting import duration
from mtf.report.pictures.hover import STYLE as HOVER_STYLE
from mtf.report.pictures.style import svg

if TYPE_CHECKING:
    from mtf.report.run import RunData, SourceSummary
    from mtf.report.run_log import Session

_STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1c1e22; --muted: #6a707a; --line: #e2e5ea; --soft: #f5f6f8;
  --warn: #b25a00; }
@media (prefers-color-scheme: dark) { :root { --paper: #15171b; --ink: #e6e8ec; --muted: #9aa1ac; --line: #2c3038;
  --soft: #1d2026; --warn: #f0a850; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1000px; margin: 0 auto; padding: 2rem 1.25rem 3rem; }
h1 { font-size: 1.6rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
.sub { color: var(--muted); margin: .15rem 0 1.2rem; overflow-wrap: anywhere; }
dl.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: 1px; margin: 0;
  background: var(--soft); border: 1px solid var(--line); border-radius: 8px; overflow: hidden; }
dl.facts div { padding: .55rem .8rem; }
dl.facts dt { color: var(--muted); font-size: .78rem; }
dl.facts dd { margin: 0; font-weight: 600; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
dl.origin { display: grid; gap: .1rem .8rem; margin: .8rem 0 0; font-size: .82rem; }
dl.origin div { display: flex; gap: .6rem; } dl.origin dt { color: var(--muted); min-width: 4.2rem; }
dl.origin dd { margin: 0; overflow-wrap: anywhere; }
ul.notes { border-left: 3px solid var(--warn); margin: 1.2rem 0 0; padding: .1rem 0 .1rem 1.6rem; }
.scroll { overflow-x: auto; } .tall { max-height: 36rem; overflow-y: auto; }
.tall th { position: sticky; top: 0; background: var(--paper); }
table { border-collapse: collapse; width: 100%; font-size: .87rem; font-variant-numeric: tabular-nums; }
th, td { padding: .32rem .7rem .32rem 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { white-space: normal; color: var(--muted); font-weight: 600; font-size: .78rem; vertical-align: bottom; }
th:first-child, td:first-child, td.text, th.text { text-align: left; }
td.text { white-space: normal; }
td:first-child { max-width: 18rem; overflow: hidden; text-overflow: ellipsis; }
i.key { display: inline-block; width: .7rem; height: .7rem; border-radius: 2px; margin-right: .45rem;
  print-color-adjust: exact; }
figure { margin: 0 0 1.6rem; break-inside: avoid; }
figure .scroll svg { display: block; width: 100%; min-width: 820px; height: auto; }
svg image { image-rendering: pixelated; }
figcaption { color: var(--muted); font-size: .87rem; margin-top: .25rem; }
details { margin-top: 2.2rem; } summary { cursor: pointer; font-size: 1.1rem; font-weight: 700; }
pre { background: var(--soft); border: 1px solid var(--line); border-radius: 8px; padding: .8rem 1rem; font-size: .8rem;
  overflow-x: auto; }
footer { color: var(--muted); font-size: .8rem; margin-top: 2.5rem; }
@media print { :root { --paper: #fff; --ink: #000; --muted: #555; --line: #ccc; --soft: #fff; }
  main { max-width: none; padding: 0; } body { font-size: 11px; } h2 { break-after: avoid; }
  .scroll, .tall { overflow: visible; max-height: none; } tr { break-inside: avoid; } }
@media (max-width: 600px) { main { padding: 1rem .8rem 2rem; } dl.facts { grid-template-columns: 1fr 1fr; } }
"""

_NONE, _TALL = "-", 20
_CAPTIONS = {
    "losses": "Each row of the log has the mean since the row before. Point at a figure to read its values.",
    "validation": "Measured on held-out data.",
    "learning_rates": "As the schedulers left them after each logged update.",
    "others": "Everything else that was logged.",
    "data_wait": "Time in which the training loop waited for its next batch.",
    "weights": "The share of batches that weights, weight curve and edits promise each source at each step.",
    "shares": "Batches drawn from each source, divided by all batches drawn up to each step.",
    "passes": "Batches drawn divided by the length of the source.",
    "schedule": "A function of configuration, seed, edits and position: the same in every run and after every resume.",
}


def page(report: RunData, pictures: Mapping[str, Any]) -> str:
    """The whole page.

    Args:
        report: the run.
        pictures: its figures by name.
    """
    figures = {name: figure_of(figure, _CAPTIONS[name]) for name, figure in pictures.items()}
    first, later = ("losses", "validation"), [name for name in figures if name not in ("losses", "validation")]
    parts = [
        _header(report),
        _notes(report.notes),
        section("Losses and validation", "".join(figures[name] for name in first if name in figures)),
        section("Sources", _source_table(report) if report.sources else ""),
        section("More figures", "".join(figures[name] for name in later)),
        section("Sessions", _session_table(report.sessions, report.update) if report.sessions else ""),
        section("Checkpoints", _checkpoint_table(report) if report.checkpoints else ""),
        _configuration(report.config),
    ]
    return page_of(report.name, parts, str(report.root))


def page_of(title: str, parts: Sequence[str], source: str) -> str:
    """A whole page of ``parts``, which are HTML; ``source``: where it was read from."""
    footer = f"<footer>mtf {html.escape(mtf.__version__)}, from {html.escape(source)}, {_when(None)}</footer>"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}{HOVER_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in (*parts, footer) if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def section(title: str, content: str) -> str:
    """A part of a page; nothing where it is empty."""
    if not content:
        return ""
    return f"<section>\n<h2>{html.escape(title)}</h2>\n{content}\n</section>"


def _header(report: RunData) -> str:
    cells = "".join(
        f"<div><dt>{html.escape(key)}</dt><dd>{html.escape(value)}</dd></div>"
        for key, value in {**_outcome(report), **_extent(report), **report.versions}.items()
    )
    last = report.sessions[-1] if report.sessions else None
    origin = [("host", last.host), ("commit", last.commit), ("command", last.command)] if last is not None else []
    started = "".join(
        f"<div><dt>{key}</dt><dd><code>{html.escape(value)}</code></dd></div>" for key, value in origin if value
    )
    return (
        f'<h1>{html.escape(report.name)}</h1>\n<p class="sub">{html.escape(_state(report.sessions))}</p>\n'
        f'<dl class="facts">{cells}</dl>' + (f'\n<dl class="origin">{started}</dl>' if started else "")
    )


def _outcome(report: RunData) -> dict[str, str]:
    """What came out, as far as it is known."""
    results = report.results
    facts = {}
    if results.metric is not None and results.best is not None:
        facts[f"best {results.metric}"] = f"{results.best:.5g} (update {results.best_update:,})"
        facts[f"final {results.metric}"] = f"{results.final:.5g}"
    if results.training_loss is not None:
        facts["last train/loss"] = f"{results.training_loss:.5g}"
    if results.duration_s is not None:
        facts["time in fit"] = duration(results.duration_s)
    if results.samples_per_s is not None:
        facts["samples per second"] = f"{results.samples_per_s:,.0f}"
    return facts


def _extent(report: RunData) -> dict[str, str]:
    """How far the run came, and how it was mixed."""
    epoch, step = report.position or (0, 0)
    place = f"{epoch:,} done" if step == 0 else f"{epoch:,}, step {step:,}"
    facts = {
        "updates": f"{report.update:,}",
        "batches": "?" if report.history is None else f"{report.history.num_steps:,}",
        "epoch" if step else "epochs": place if report.position else "?",
        "sources": f"{len(report.sources):,}",
        "mixed by": (report.strategy or "?").lower().replace("_", " "),
        "seed": "?" if report.seed is None else str(report.seed),
        "resumed": _times(sum(session.first_update > 0 for session in report.sessions)) if report.sessions else "?",
        "ranks": str(report.sessions[-1].world_size) if report.sessions else "?",
    }
    if report.window > 1:
        facts["batches per update"] = str(report.window)
    return {key: value for key, value in facts.items() if value != "?"}


def _state(sessions: Sequence[Session]) -> str:
    if not sessions:
        return "A run of mtf"
    last = sessions[-1]
    began = f"Began {_when(sessions[0].start_s)}"
    if last.end_s is None:
        return f"{began}; its last session, of {_when(last.start_s)}, is running or broke off"
    return f"{began}, last stopped {_when(last.end_s)}" + (f" ({last.reason})" if last.reason else "")


def _notes(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    return '<ul class="notes">' + "".join(f"<li>{html.escape(note)}</li>" for note in notes) + "</ul>"


def _source_table(report: RunData) -> str:
    colors = report.palette
    columns: list[tuple[str, Any]] = [
        ("weight", lambda s: _number(s.weight, "{:.3g}")),
        ("length", lambda s: _number(s.length, "{:,}")),
        ("batches", lambda s: _number(s.num_batches, "{:,}")),
        ("passes", lambda s: _number(s.passes, "{:.2f}")),
        ("share", lambda s: _number(s.share, "{:.2%}")),
        ("by weight", lambda s: _number(s.expected_share, "{:.2%}")),
        ("farthest off, batches", lambda s: _number(s.max_deviation, "{:.2f}")),
        ("first loss", lambda s: _number(s.first_loss, "{:.4g}")),
        ("last loss", lambda s: _number(s.last_loss, "{:.4g}")),
        ("waited, s", lambda s: _number(s.wait_s, "{:.3g}")),
        ("waited per batch, ms", lambda s: _number(_each(s), "{:.3g}")),
    ]
    # A column in which nothing is known says nothing.
    used = [(title, show) for title, show in columns if any(show(source) for source in report.sources)]
    rows = []
    for i, source in enumerate(report.sources):
        key = f'<i class="key" style="background:{colors[i]}"></i>{html.escape(source.name)}'
        rows.append([key, *(show(source) or _NONE for _, show in used)])
    return table(["source", *(title for title, _ in used)], rows)


def _each(source: SourceSummary) -> float | None:
    return 1000 * source.wait_s / source.num_batches if source.wait_s is not None and source.num_batches else None


def _session_table(sessions: Sequence[Session], update: int) -> str:
    rows = []
    for i, session in enumerate(sessions):
        is_last = i + 1 == len(sessions)
        if session.end_s is not None:
            how = session.reason or "came to its end"
        else:
            how = "runs or broke off" if is_last else "broke off"
        until = session.last_update if session.last_update is not None else update if is_last else None
        rows.append(
            [
                _when(session.start_s),
                f"{session.first_update:,}",
                _NONE if until is None else f"{until:,}",
                _when(session.end_s) if session.end_s is not None else _NONE,
                str(session.world_size),
                html.escape(how),
            ]
        )
    return table(["began", "from update", "to update", "stopped", "ranks", "how it ended"], rows, text=(3, 5))


def _checkpoint_table(report: RunData) -> str:
    monitor = report.config.get("checkpoint", {}).get("monitor_metric")
    rows = []
    for entry in report.checkpoints:
        remark = "; ".join([*entry.links, *(["replaced by a resume"] if entry.replaced else []), entry.error or ""])
        rows.append(
            [
                html.escape(entry.name),
                f"{entry.update:,}",
                _NONE if entry.epoch is None else str(entry.epoch),
                _size(entry.num_bytes),
                *([_number(entry.monitored, "{:.5g}") or _NONE] if monitor else []),
                html.escape(remark.strip("; ")),
            ]
        )
    heads = ["checkpoint", "update", "epoch", "size", *([str(monitor)] if monitor else []), ""]
    return table(heads, rows, text=(len(heads) - 1,))


def _configuration(config: dict[str, Any]) -> str:
    if not config:
        return ""
    text = html.escape(json.dumps(config, indent=2, ensure_ascii=False))
    return f"<details>\n<summary>Configuration</summary>\n<pre>{text}</pre>\n</details>"


def figure_of(figure: Any, caption: str) -> str:
    """A matplotlib figure with its caption below."""
    picture = svg(figure, _alt(figure))
    return f'<figure>\n<div class="scroll">{picture}</div>\n<figcaption>{html.escape(caption)}</figcaption>\n</figure>'


def _alt(figure: Any) -> str:
    return "; ".join(title for axes in figure.axes if (title := axes.get_title(loc="left")))


def table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], text: Sequence[int] = (), *, are_html: bool = False
) -> str:
    """A table whose cells are HTML already.

    Args:
        heads: of the columns.
        rows: their cells.
        text: columns that aren't numbers.
        are_html: whether the heads are HTML, too.
    """

    def cell(tag: str, column: int, content: str) -> str:
        return f'<{tag} class="text">{content}</{tag}>' if column in text else f"<{tag}>{content}</{tag}>"

    head = "".join(cell("th", c, content if are_html else html.escape(content)) for c, content in enumerate(heads))
    body = "\n".join("<tr>" + "".join(cell("td", c, x) for c, x in enumerate(row)) + "</tr>" for row in rows)
    tall = " tall" if len(rows) > _TALL else ""
    return f'<div class="scroll{tall}"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def _number(value: float | None, text: str) -> str:
    return "" if value is None else text.format(value)


def _size(num_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.3g} {unit}" if unit != "B" else f"{num_bytes:.0f} B"
        num_bytes /= 1024
    return f"{num_bytes:.3g} GiB"


def _when(time_s: float | None) -> str:
    when = datetime.now(timezone.utc) if time_s is None else datetime.fromtimestamp(time_s, timezone.utc)
    return when.strftime("%Y-%m-%d %H:%M:%S UTC")


def _times(number: int) -> str:
    return {0: "never", 1: "once", 2: "twice"}.get(number, f"{number} times")
