"""An evaluation as one self-contained HTML page: tables, plots, the questions with the largest losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from twinvec_stores.evaluation.evaluate import Evaluation
    from twinvec_stores.evaluation.losses import Loss, Place

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2330; --soft: #5b6472; --line: #d9dee6; --good: #0a7d4f; --bad: #b3342f;
  --paper: #fff; --tint: #f4f6f9; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #a3abb8; --line: #343b47; --good: #4cc38a;
  --bad: #ff8a80; --paper: #14171c; --tint: #1d2229; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem 1rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
p, li { max-width: 46rem; } .soft { color: var(--soft); } .good { color: var(--good); } .bad { color: var(--bad); }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; } .best { font-weight: 700; }
svg { display: block; width: 100%; overflow: visible; }
.bars { display: grid; grid-template-columns: max-content 1fr max-content; gap: .2rem 1rem; align-items: center;
  font-variant-numeric: tabular-nums; }
details { border: 1px solid var(--line); border-radius: .4rem; margin: .5rem 0; padding: .5rem .8rem; }
summary { cursor: pointer; } .pair { display: grid; gap: 1rem; grid-template-columns: 1fr 1fr; }
@media (max-width: 40rem) { .pair, .bars { grid-template-columns: 1fr; } .bars span:nth-of-type(even) {
  margin-bottom: .6rem; } th, td { padding: .3rem; font-size: .85rem; } }
ol { padding-left: 1.4rem; margin: .3rem 0; } ol li { overflow-wrap: anywhere; margin-bottom: .5rem; }
code { background: var(--tint); padding: 0 .25rem; border-radius: .2rem; overflow-wrap: anywhere; }
"""
_TEXT = 240  # characters shown of a text


def to_html(
    evaluations: Mapping[str, Evaluation],
    losses: Mapping[str, Sequence[Loss]] | None = None,
    *,
    by: str | None = None,
) -> str:
    """Return a page about evaluations of one set of questions.

    Args:
        evaluations: name of the store -> evaluation.
        losses: name of the store -> its questions with the largest losses.
        by: a field of the questions to report by.
    """
    parts = ["<h1>Retrieval evaluation</h1>"]
    for name, evaluation in evaluations.items():
        parts += _store(name, evaluation, by)
        if found := (losses or {}).get(name):
            parts += [f"<h2>Largest losses against {escape(evaluation.baseline)}</h2>", *map(_loss, found)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Retrieval evaluation</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _store(name: str, evaluation: Evaluation, by: str | None) -> list[str]:
    notes = "".join(f"<li>{escape(note)}</li>" for note in evaluation.notes)
    parts = [
        f"<h2>{escape(name)}</h2>",
        f'<p class="soft">{len(evaluation.asked):,} questions, {evaluation.records:,} records, model '
        f"<code>{escape(evaluation.model)}</code>; "
        f"embedding {evaluation.embedding_milliseconds:.1f} ms a question.</p>",
        f"<ul>{notes}</ul>" if notes else "",
        _means(evaluation),
    ]
    others = [way for way in evaluation.ways if way != evaluation.baseline]
    if others:
        measure = escape(evaluation.measures[0])
        baseline = escape(evaluation.baseline)
        parts += [
            f"<h2>{measure} minus that of {baseline}</h2>",
            '<p class="soft">Points: difference of the means; bars: 95% intervals (paired bootstrap over questions). '
            "A bar that touches 0 is not evidence of a difference.</p>",
            _intervals(evaluation, others),
        ]
        best = max(others, key=lambda way: evaluation.ways[way].mean(evaluation.measures[0]))
        parts += [f"<h2>Question by question: {escape(best)} minus {baseline}</h2>", _differences(evaluation, best)]
    return parts + ([_groups(evaluation, by)] if by is not None else [])


def _means(evaluation: Evaluation) -> str:
    best = {m: max(way.mean(m) for way in evaluation.ways.values()) for m in evaluation.measures}
    head = "".join(f"<th>{escape(measure)}</th>" for measure in evaluation.measures)
    rows = ""
    for name, way in evaluation.ways.items():
        cells = "".join(
            f'<td class="{"best" if way.mean(m) == best[m] else ""}">{way.mean(m):.3f}</td>'
            for m in evaluation.measures
        )
        rows += f"<tr><td>{escape(name)}</td>{cells}<td>{way.milliseconds:.1f}</td></tr>"
    return f'<div class="wide"><table><tr><th>Way</th>{head}<th>ms</th></tr>{rows}</table></div>'


def _intervals(evaluation: Evaluation, ways: Sequence[str]) -> str:
    found = {way: evaluation.compare(way) for way in ways}
    most = 1.05 * max(0.01, *(max(abs(c.low), abs(c.high)) for c in found.values()))

    def x(value: float) -> str:
        return f"{50 * (1 + value / most):.2f}%"

    rows = ""
    for way, c in found.items():
        colour = "var(--soft)" if not c.significant else "var(--good)" if c.difference > 0 else "var(--bad)"
        rows += (
            f"<span>{escape(way)}</span>"
            f'<svg height="24" role="img" aria-label="Difference of {escape(way)}">'
            '<line x1="50%" x2="50%" y1="0" y2="24" stroke="var(--line)"/>'
            f'<line x1="{x(c.low)}" x2="{x(c.high)}" y1="12" y2="12" stroke="{colour}" stroke-width="3"/>'
            f'<circle cx="{x(c.difference)}" cy="12" r="5" fill="{colour}"/></svg>'
            f"<span>{c.difference:+.3f} ({c.low:+.3f} to {c.high:+.3f}), {c.p_value}</span>"
        )
    return f'<div class="bars">{rows}</div>'


def _differences(evaluation: Evaluation, way: str) -> str:
    changes = [change for _, change in reversed(evaluation.changes(way))]
    c = evaluation.compare(way)
    height, step = 160, 100 / len(changes)
    bars = "".join(
        f'<rect x="{i * step:.3f}%" y="{height / 2 * (1 - max(change, 0)):.1f}" width="{step:.3f}%" '
        f'height="{height / 2 * abs(change):.1f}" fill="var(--{"good" if change > 0 else "bad"})"/>'
        for i, change in enumerate(changes)
        if change
    )
    return (
        f'<p class="soft">{c.wins} better, {c.losses} worse, {c.ties} tied.</p>'
        f'<svg height="{height}" role="img" aria-label="Differences of single questions">'
        f'<line x1="0" x2="100%" y1="{height / 2}" y2="{height / 2}" stroke="var(--line)"/>{bars}</svg>'
    )


def _groups(evaluation: Evaluation, by: str) -> str:
    measure = evaluation.measures[0]
    head = "".join(f"<th>{escape(way)}</th>" for way in evaluation.ways)
    rows = "".join(
        f"<tr><td>{escape(value)}</td><td>{len(rows)}</td>"
        + "".join(f"<td>{way.scores[measure][rows].mean():.3f}</td>" for way in evaluation.ways.values())
        + "</tr>"
        for value, rows in evaluation.by(by).items()
    )
    return (
        f"<h2>{escape(measure)} by {escape(by)}</h2>"
        f'<div class="wide"><table><tr><th>{escape(by)}</th><th>questions</th>{head}</tr>{rows}</table></div>'
    )


def _loss(loss: Loss) -> str:
    return (
        f'<details><summary><span class="bad">{loss.difference:+.3f}</span> {escape(loss.text)}</summary>'
        f'<p class="soft">Relevant: {", ".join(f"<code>{escape(id)}</code>" for id in loss.relevant)}</p>'
        f'<div class="pair"><div><b>Found</b>{_places(loss.found)}</div>'
        f"<div><b>Baseline</b>{_places(loss.baseline)}</div></div></details>"
    )


def _places(places: Sequence[Place]) -> str:
    items = ""
    for place in places:
        text = " ".join(place.text.split())
        shown = text if len(text) <= _TEXT else text[:_TEXT] + " ..."
        terms = f'<br><span class="soft">{escape(", ".join(place.terms))}</span>' if place.terms else ""
        mark = '<span class="good">relevant</span> ' if place.grade > 0 else ""
        items += f"<li>{mark}<code>{escape(place.document)}</code><br>{escape(shown)}{terms}</li>"
    return f"<ol>{items}</ol>"
