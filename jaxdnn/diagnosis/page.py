"""A diagnosis as one HTML file with everything in it, from what `Diagnosis.to_dict` holds."""

from __future__ import annotations

import html
import io
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxdnn.diagnosis.cause_table import CAUSES, QUANTITIES
from jaxdnn.diagnosis.folding import Row, folded
from jaxdnn.diagnosis.printout import (
    amount,
    attention_words,
    cleaned,
    part_words,
    place,
    recurrence_words,
    repaired_words,
    score_words,
)
from jaxdnn.report import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    YELLOW,
    new_figure,
    tidy,
)

Content = Mapping[str, Any]
_VERDICT_COLOURS = {"trains": GREEN, "at risk": ORANGE, "will not train": VERMILION}
_TERM_COLOURS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, YELLOW, GREY)
# Below this nothing is drawn: float32 holds nothing there.
_LEAST = 1e-45
_LEGEND_COLUMNS = 5
_MOST_LETTERS = 30  # Of a layer's name below a picture.
# A category is of a finding; the colour tells that it is no part of the name.
_CATEGORY = "<small class='category'>{}</small>"


def page(content: Content) -> str:
    """Return the whole page; it needs nothing from elsewhere."""
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{_text(content['verdict'])}</title><style>{_STYLE}</style></head>"
        f"<body>{fragment(content)}</body></html>\n"
    )


def fragment(content: Content) -> str:
    """Return what a notebook shows: the page without its frame."""
    content = cleaned(content)
    parts = [
        _headline(content),
        _svg(_draw_layers(content["layers"])),
        *(_finding(content, cause) for cause in content["causes"]),
        _prescriptions(content["prescriptions"]),
        _through_time(content["recurrences"]),
        _attention(content),
        _tables(content),
    ]
    return f"<div class='jaxdnn'>{_index(parts)}" + "\n".join(parts) + "</div>"


# A page with so many headings has an index.
_MANY = 5
_HEADING = re.compile(r"<h2>(.*?)</h2>", re.DOTALL)


def _index(parts: list[str]) -> str:
    """Give every heading of a long page a name; return links to them."""
    titles = [title for part in parts for title in _HEADING.findall(part)]
    if len(titles) < _MANY:
        return ""
    numbers = itertools.count()
    parts[:] = [
        _HEADING.sub(lambda m: f"<h2 id='part-{next(numbers)}'>{m[1]}</h2>", part) for part in parts
    ]
    links = "".join(
        f"<li><a href='#part-{number}'>{re.sub('<small.*', '', title)}</a></li>"
        for number, title in enumerate(titles)
    )
    return f"<nav><ol>{links}</ol></nav>"


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 66rem; margin: 2rem auto;
  padding: 0 1rem }
svg { max-width: 100%; height: auto }
table { border-collapse: collapse; font-size: 13px }
td, th { padding: .15rem .45rem; text-align: right; border-bottom: 1px solid #ddd }
td:first-child, th:first-child { text-align: left }
code, .formula { font-family: ui-monospace, monospace }
.formula { background: #f4f4f4; padding: .4rem .8rem; display: block; margin: .5rem 0 }
.category { font-size: 14px; font-weight: normal; color: #555; border: 1px solid #bbb;
  border-radius: .8rem; padding: .1rem .6rem; white-space: nowrap }
pre { background: #f4f4f4; padding: .4rem .8rem; margin: .3rem 0; white-space: pre-wrap;
  text-align: left }
nav { font-size: 14px }
.scroll { overflow-x: auto }
.scroll td { white-space: nowrap }
.part td { color: #555 }
.part td:first-child { padding-left: 2rem }
.part td:last-child { text-align: left }
"""


def _headline(content: Content) -> str:
    colour = _VERDICT_COLOURS[content["verdict"]]
    return (
        f"<h1 style='color:{colour}'>{_text(content['verdict'])}</h1>"
        f"<p>{_sentence(content['reason'])}</p>"
        f"<p>{_sentence(score_words(content['score']))} Judged with the loss "
        f"<code>{_text(content['loss_name'])}</code> and the optimizer "
        f"<code>{_text(content['optimizer'])}</code>.</p>"
        + "".join(f"<p>{_sentence(note)}</p>" for note in content["notes"])
    )


def _finding(content: Content, cause: Content) -> str:
    kind, layers = CAUSES[cause["cause"]], content["layers"]
    where = f"<code>{_text(place(cause))}</code>: " if place(cause) else ""
    repaired = repaired_words(content["score"], cause["repaired"], cause["together"])
    return (
        f"<h2>{where}{_text(cause['cause'])} {_CATEGORY.format(_text(cause['category']))}</h2>"
        f"<p>Here: {_text(cause['evidence'])}.</p>"
        f"<p>{_text(kind.words)}</p><span class='formula'>{_text(kind.formula)}</span>"
        + (f"<p>{_sentence(repaired)}</p>" if repaired else "")
        + _bridged(cause)
        + _picture(layers, kind.quantity, cause["path"])
    )


def _bridged(cause: Content) -> str:
    if cause["recovery"] is None:
        return ""
    return (
        "<p>Counterfactual: with the Jacobian of this layer replaced by the identity, δ of "
        f"the first layer is 10<sup>{cause['recovery']:+.1f}</sup> times as large.</p>"
    )


def _picture(layers: Sequence[Content], quantity: str, path: str) -> str:
    """Draw a quantity where the finding is about a layer, and there is anything to see."""
    value_of = QUANTITIES[quantity][1]
    if not path or not any(_finite(value_of(layer)) for layer in layers):
        return ""
    return _svg(_draw_quantity(layers, quantity, path))


def _prescriptions(prescriptions: Sequence[Content]) -> str:
    if not prescriptions:
        return ""
    rows = "".join(
        f"<tr><td>{_text(each['change'])}<pre><code>{_text(each['code'])}</code></pre></td>"
        f"<td>{amount(each['before'], '.2f')}</td><td>{each['after']:.2f}</td></tr>"
        for each in prescriptions
    )
    return (
        "<h2>What to change</h2><p>Each was tried on a copy and measured again.</p>"
        f"<table><tr><th>change</th><th>score before</th><th>after</th></tr>{rows}</table>"
    )


def _through_time(recurrences: Sequence[Content]) -> str:
    if not recurrences:
        return ""
    words = "".join(
        f"<p><code>{_text(each['path'])}</code>: {_text(recurrence_words(each))}.</p>"
        for each in recurrences
    )
    return f"<h2>Back through time</h2>{words}{_svg(_draw_time(recurrences))}"


def _draw_time(recurrences: Sequence[Content]) -> Figure:
    """Draw what is left of a gradient against the time steps that it has come back."""
    figure = new_figure(9.0, 3.4)
    axes = figure.subplots()
    for index, each in enumerate(recurrences):
        passed = np.array([_finite(value) for value in each["passed"]])
        steps = np.arange(1, len(passed) + 1)
        colour = _TERM_COLOURS[index % len(_TERM_COLOURS)]
        label = _end(each["path"])
        logs = np.ma.log10(np.ma.masked_less(passed, _LEAST))
        axes.plot(steps, logs, color=colour, label=label)
    axes.axhline(-math.log10(math.e), color=GREY, linewidth=1, linestyle="--")
    axes.text(
        1.0,
        -math.log10(math.e),
        " 1/e",
        color=GREY,
        va="center",
        transform=axes.get_yaxis_transform(),
    )
    legend = axes.legend(fontsize=10, frameon=False, loc="center left", bbox_to_anchor=(1.04, 0.5))
    for text in legend.get_texts():
        text.set_parse_math(False)
    tidy(axes, title="What is left of the gradient of the state: log₁₀", x="time steps back")
    return figure


def _attention(content: Content) -> str:
    attentions, streams = content["attentions"], content["streams"]
    if not attentions and not streams:
        return ""
    words = "".join(f"<p>{_sentence(line)}</p>" for line in attention_words(content))
    return f"<h2>Attention and tokens</h2>{words}{_svg(_draw_attention(attentions, streams))}"


def _draw_attention(attentions: Sequence[Content], streams: Sequence[Content]) -> Figure:
    """Draw the entropy of every head, and below how alike tokens are, both over the depth."""
    figure = new_figure(9.0, 4.8)
    above, below = figure.subplots(2, 1)
    for x, each in enumerate(attentions):
        heads = [_finite(value) for value in each["entropy"]]
        above.plot([x] * len(heads), heads, "o", color=BLUE, markersize=4, alpha=0.7)
    above.set_ylim(-0.03, 1.03)
    tidy(above, title="Entropy of each head: 1 looks at all tokens alike, 0 at one")
    _name_layers(above, attentions)
    places = range(len(streams))
    below.plot(places, [_finite(each["alike"]) for each in streams], "o-", color=VERMILION)
    below.set_ylim(min(0.0, *(_finite(each["alike"]) for each in streams), 0.0) - 0.03, 1.03)
    tidy(below, title="Mean cosine of the tokens behind each branch: 1 is all the same")
    _name_layers(below, streams)
    return figure


def _tables(content: Content) -> str:
    """The table of layers, with blocks that are alike as one row, and all of them behind it."""
    layers = content["layers"]
    rows = folded(layers, {cause["path"] for cause in content["causes"]})
    whole = [Row(layer["path"], (layer,)) for layer in layers]
    terms = [name for name in layers[0]["terms"] if _matters(name, layers)]
    text = (
        "<h2>Every layer</h2><p>The logarithm of a layer's factor is the sum of the terms to its "
        f"right.</p>{_table(rows, terms)}"
    )
    if len(rows) == len(layers):
        return text
    return (
        f"{text}<details><summary>All {len(layers)} layers, one by one</summary>"
        f"{_table(whole, terms)}</details>"
    )


def _table(rows: Sequence[Row], terms: Sequence[str]) -> str:
    head = "".join(f"<th>{_text(name)}</th>" for name in ("layer", "δ RMS", "factor", *terms))
    body = "".join(
        f"<tr><td><code>{_text(row.name)}</code>{_only_part(row)}</td>"
        f"<td>{_band(row.layers, 'delta_rms')}</td><td>{_band(row.layers, 'factor')}</td>"
        + "".join(f"<td>{_term_words(row, name)}</td>" for name in terms)
        + f"</tr>{_part_rows(row, len(terms))}"
        for row in rows
    )
    return f"<div class='scroll'><table><tr>{head}</tr>{body}</table></div>"


def _only_part(row: Row) -> str:
    """What all units of a recurrent cell's layer do."""
    if len(row.part_names) != 1:
        return ""
    words = part_words([part for layer in row.layers for part in layer["parts"]])
    return f" {_text(row.part_names[0])}<br><small>{_text(words)}</small>"


def _part_rows(row: Row, num_terms: int) -> str:
    return "".join(
        f"<tr class='part'><td>{_text(name)}</td><td>{_band(parts, 'delta_rms')}</td><td></td>"
        + (f"<td colspan='{num_terms}'>" if num_terms else "<td>")
        + f"{_text(part_words(parts))}</td></tr>"
        for name, parts in row.parts()
    )


def _band(items: Sequence[Content], name: str) -> str:
    values = [each[name] for each in items if each[name] is not None]
    low, high = (amount(end) for end in (min(values, default=None), max(values, default=None)))
    return low if low == high else f"{low} to {high}"


def _draw_layers(layers: Sequence[Content]) -> Figure:
    """Draw delta over the layers, and below the terms that its factors are made of."""
    figure = new_figure(9.0, 5.5)
    above, below = figure.subplots(2, 1, sharex=True)
    places = np.arange(len(layers))
    _draw_delta(above, layers)
    bottom = np.zeros((2, len(layers)))
    for index, name in enumerate(layers[0]["terms"]):
        if not _matters(name, layers):
            continue
        values = np.array([_term(layer, name) for layer in layers])
        side = (values < 0).astype(int)
        colour = _TERM_COLOURS[index % len(_TERM_COLOURS)]
        below.bar(places, values, bottom=bottom[side, places], color=colour, label=name)
        bottom[side, places] += values
    below.axhline(0, color=GREY, linewidth=1)
    if below.containers:
        # A row of the legend takes a sixth of the picture.
        rows = math.ceil(len(below.containers) / _LEGEND_COLUMNS)
        low, high = below.get_ylim()
        below.set_ylim(low, high + 0.2 * (1 + rows) * (high - low))
        below.legend(fontsize=10, frameon=False, ncols=_LEGEND_COLUMNS, loc="upper left")
    tidy(below, title="Why: log of the factor, term by term")
    _name_layers(below, layers)
    return figure


def _draw_delta(axes: Any, layers: Sequence[Content]) -> None:
    """Draw delta and its band; a layer whose delta is zero or not finite has no point."""
    places = np.arange(len(layers))
    delta = np.array([_finite(layer["delta_rms"]) for layer in layers])
    bands = np.array([[_finite(end) for end in layer["delta_band"]] for layer in layers])
    low, high = (np.ma.masked_less(ends, _LEAST) for ends in bands.T)
    label = "random weights of the same scale"
    axes.fill_between(
        places, np.ma.log10(low), np.ma.log10(high), color=GREY, alpha=0.3, label=label, linewidth=0
    )
    logs = np.ma.log10(np.ma.masked_less(delta, _LEAST))
    axes.plot(places, logs, "o-", color=BLUE, markersize=4)
    if lost := int(logs.mask.sum()):
        text = f"δ is 0 or not finite in {lost} of {len(layers)} layers"
        axes.text(0.98, 0.06, text, transform=axes.transAxes, ha="right", color=VERMILION)
    else:
        axes.legend(fontsize=10, frameon=False)
    tidy(axes, title="Gradient by layer: log₁₀ RMS of δ = ∂L/∂z")


def _matters(term: str, layers: Sequence[Content]) -> bool:
    return max(abs(_term(layer, term)) for layer in layers) >= 0.01


def _draw_quantity(layers: Sequence[Content], quantity: str, path: str) -> Figure:
    """Draw one quantity over the layers, the layer in question in another colour."""
    label, value_of = QUANTITIES[quantity]
    figure = new_figure(9.0, 2.6)
    axes = figure.subplots()
    colours = [VERMILION if layer["path"] == path else BLUE for layer in layers]
    heights = [_finite(value_of(layer)) for layer in layers]
    axes.bar(range(len(layers)), heights, color=colours)
    positive = [height for height in heights if height > 0]
    if positive and max(positive) > 30 * min(positive):
        axes.set_yscale("log")
    tidy(axes, y=label)
    _name_layers(axes, layers)
    return figure


def _name_layers(axes: Any, layers: Sequence[Content]) -> None:
    step = math.ceil(len(layers) / 25)
    places = range(0, len(layers), step)
    names = [_end(layers[place]["path"]) for place in places]
    axes.set_xticks(list(places), names, rotation=60, ha="right", fontsize=9, parse_math=False)


def _end(path: str) -> str:
    """The end of a long name: it tells most, and the picture needs room."""
    return path if len(path) <= _MOST_LETTERS else "…" + path[-_MOST_LETTERS:]


def _svg(figure: Figure) -> str:
    """Return the figure as an SVG element."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", facecolor="white")
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _finite(value: float | None) -> float:
    return 0.0 if value is None else value


def _term(layer: Content, name: str) -> float:
    # What makes a gradient of zero is no matter of shares.
    return _finite(layer["terms"][name]) if layer["factor"] else 0.0


def _term_words(row: Row, name: str) -> str:
    terms = [layer["terms"][name] for layer in row.layers if layer["factor"]]
    present = [term for term in terms if term is not None]
    return amount(sum(present) / len(present), ".2f") if present else "-"


def _sentence(text: str) -> str:
    return f"{_text(text[:1].upper() + text[1:])}."


def _text(value: str) -> str:
    return html.escape(str(value))
