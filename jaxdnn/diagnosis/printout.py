"""What a diagnosis says: a few lines, every detail, Markdown, and the short object for programs.

All of it is made from what `Diagnosis.to_dict` holds, so a diagnosis that was kept as JSON can be
printed again. The short text answers four questions in the reader's words: does it learn, what is
wrong and where, what did the repair of that alone do, what to change. Everything else is a detail.

A number that is not defined, such as a factor between two gradients of zero, is printed as `-`.
Names of layers, losses and files are the reader's own and may hold anything: each is made printable
first, and in Markdown nothing of it is markup.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxdnn.diagnosis.answers import Answers
from jaxdnn.diagnosis.folding import Row, folded, folded_by_name
from jaxdnn.diagnosis.trial import TRAINS, Trial, shares
from jaxdnn.names import printable, printable_lines

Content = Mapping[str, Any]
# Raised when a key of the short object changes its meaning or goes.
SCHEMA = 1
MOST_BYTES = 2000
_MOST, _MOST_NOTES = 3, 2
# Lengths to which words are cut, one after the other, until the short object is short enough.
_LENGTHS = (600, 400, 300, 200, 120, 80, 50)
# A patch that is cut is worth nothing: it gets more room than words.
_PATCH = 3
# The smallest normal float32: below it a number has lost its digits.
_LEAST = 1.2e-38
# Outputs that differ by less of their size hardly depend on the inputs.
_ALIKE = 0.01
# A loss within this share of the best constant answer's is no better.
_NO_BETTER = 0.02


def loss_name(loss: Callable[..., Any] | None, targets: Any) -> str:
    """Return what a reader calls a loss.

    Args:
      loss: the reader's own; None for the usual one of such targets.
      targets: an array; what the loss takes besides the outputs.
    """
    if loss is None:
        whole = jnp.issubdtype(jnp.result_type(targets), jnp.integer)
        return "cross-entropy of integer labels" if whole else "mean squared error"
    while isinstance(loss, functools.partial):
        loss = loss.func
    name = getattr(loss, "__name__", type(loss).__name__)
    return "the given loss" if name == "<lambda>" else name


def optimizer_name(optimizer: Any) -> str:
    """Return what a reader calls an optimizer.

    Args:
      optimizer: such as `sgd:0.1`, or an optax transformation, of which the parts are named.
    """
    if isinstance(optimizer, str):
        return optimizer
    parts = dict.fromkeys(_parts_of(optimizer.update))
    return f"optax {' + '.join(parts)}" if parts else "the given optimizer"


# Parts that do nothing of their own, or have no name.
_NAMELESS = {"init_empty_state", "identity", "<lambda>", "chain"}


def _parts_of(update: Callable[..., Any]) -> Iterator[str]:
    """The names of the functions of optax that an update function was made by."""
    inner, numbers = [], []
    for cell in getattr(update, "__closure__", None) or ():
        found = cell.cell_contents
        if isinstance(found, tuple) and found and all(map(callable, found)):
            inner += found
        elif isinstance(found, float):
            numbers.append(found)
    name = getattr(update, "__qualname__", "").partition(".")[0]
    if inner:
        for each in inner:
            yield from _parts_of(each)
    elif name.isidentifier() and name not in _NAMELESS and "optax" in update.__module__:
        yield f"{name}({numbers[0]:.3g})" if name == "scale" and numbers else name


def reason(
    trial: Trial, answers: Answers, *, score: float, horizon: int, finite: bool, alike: float
) -> str:
    """Return in a line what happened in the training, without the names of loss and optimizer.

    Args:
      trial: with arrays on the host.
      answers: how low the loss can come.
      score: of the network, in [0, 1].
      horizon: steps that the training may take.
      finite: whether loss and gradient are, at the start.
      alike: root mean square of the outputs minus their mean over the batch, over their own.
    """
    if not finite:
        return "the loss or its gradient is not finite at the start"
    losses = np.asarray(trial.loss, np.float64)
    if not np.isfinite(losses).all():
        step = int(np.argmin(np.isfinite(losses)))
        return f"the loss is not finite after {step} steps"
    if score >= TRAINS:
        return f"learns to tell the inputs apart within about {_steps(score, horizon)} steps"
    parts = [f"loss {amount(losses[0])} -> {amount(losses[-1])} in {len(losses) - 1} steps"]
    share = shares(trial, answers)
    ignoring = "the best answer that ignores the inputs"
    best = "the loss at its start" if answers.from_start else ignoring
    best = f"{best} ({amount(answers.constant)})"
    if not math.isfinite(share[-1]):
        parts.append("and no answer that ignores the inputs to compare it with")
    elif share[-1] < _NO_BETTER:
        parts.append(f"no better than {best}")
    else:
        parts.append(
            f"{share[-1]:.0%} of the way from {best} to the best that is possible"
            f" ({amount(answers.reachable)})"
        )
    if alike < _ALIKE:
        parts.append(
            "its outputs hardly depend on the inputs"
            if alike
            else "its outputs are the same for every input"
        )
    return ", ".join(parts)


def _steps(score: float, horizon: int) -> int:
    """The steps that a score stands for, to one digit; 10 at least."""
    steps = horizon * (1 - score) / score
    if steps < 10:
        return 10
    unit = 10 ** math.floor(math.log10(steps))
    return round(steps / unit) * unit


def cleaned(content: Any) -> Any:
    """Return nested content with every text made printable: one line, but for code."""
    if isinstance(content, str):
        return printable(content)
    if isinstance(content, Mapping):
        return {
            printable(name): printable_lines(value) if name == "code" else cleaned(value)
            for name, value in content.items()
        }
    return [cleaned(each) for each in content] if isinstance(content, list | tuple) else content


def short_text(content: Content) -> str:
    """Return one line for a network that is well; otherwise what is wrong and what to change."""
    content = cleaned(content)
    causes, changes = content["causes"], content["prescriptions"]
    lines = [headline(content), *_notes(content)]
    if not causes and not changes and content["verdict"] == "trains":
        return "\n".join(lines)
    lines += [
        *(_cause_line(content, cause) for cause in causes[:_MOST]),
        *(_change_line(change) for change in changes[:_MOST]),
        _rest(content),
    ]
    return "\n".join(lines)


def full_text(content: Content, *, fold: bool = True) -> str:
    """Return all findings, all changes and the table of layers.

    Args:
      content: of a diagnosis.
      fold: show blocks that are alike as one row.
    """
    content = cleaned(content)
    layers = content["layers"]
    named = {cause["path"] for cause in content["causes"]}
    rows = folded(layers, named) if fold else [Row(layer["path"], (layer,)) for layer in layers]
    lines = [
        headline(content),
        *_notes(content),
        *(
            _cause_line(content, cause) + _bridged(cause, content["layers"])
            for cause in content["causes"]
        ),
        *map(_change_line, content["prescriptions"]),
        *_rates(content["rates"]),
        *(
            f"through time: {each['path']}: {recurrence_words(each)}"
            for each in content["recurrences"]
        ),
        *attention_words(content),
        *_table(rows),
        *_others(content["parameters"], fold=fold),
    ]
    return "\n".join(lines)


def attention_words(content: Content) -> list[str]:
    """Return what heads look at and how alike tokens are, in two lines at most."""
    lines = []
    if attentions := content["attentions"]:
        entropy = [value for each in attentions for value in each["entropy"]]
        largest = [value for each in attentions for value in each["largest"]]
        lines.append(
            f"attention: entropy of {len(entropy)} heads {_span((min(entropy), max(entropy)))}"
            f" (1 looks at all tokens alike, 0 at one), mean largest weight"
            f" {_span((min(largest), max(largest)))}"
        )
    if streams := content["streams"]:
        norms = sorted({each["norm"] for each in streams})
        first, last = streams[0], streams[-1]
        lines.append(
            f"tokens: mean cosine {amount(first['alike'])} behind {first['path']},"
            f" {amount(last['alike'])} behind {last['path']}; branches are"
            f" {_span(_ends(each['branch'] for each in streams))} of the stream;"
            f" norm {' and '.join(norms)} the branches"
        )
    return lines


def _ends(values: Iterable[float | None]) -> tuple[float | None, float | None]:
    present = [value for value in values if value is not None]
    return (min(present), max(present)) if present else (None, None)


def _rates(rates: Content | None) -> list[str]:
    if rates is None or rates["best"] is None:
        return []
    stable = (
        "rises at every rate"
        if rates["stable"] is None
        else (f"does not rise up to {amount(rates['stable'])} x the learning rate")
    )
    return [
        f"rates: in its first steps the loss {stable}, and falls most at {amount(rates['best'])} x"
    ]


def recurrence_words(recurrence: Content) -> str:
    """Return in a line what a recurrence does to a gradient on its way back."""
    horizon = recurrence["horizon"]
    far = (
        f"it is down to 1/e after {horizon} of {recurrence['length']} time steps"
        if horizon is not None
        else f"more than 1/e is left after all {recurrence['length']} time steps"
    )
    kept = recurrence["kept"]
    gate = "" if kept is None else f"; its gate keeps {amount(kept, '.2g')} of the state a step"
    factor = f"the gradient changes by {amount(recurrence['factor'])} a time step"
    return f"{factor}, {far}{gate}"


def markdown(content: Content) -> str:
    """Return headings, lists and a table."""
    content = cleaned(content)
    layers = content["layers"]
    terms = list(layers[0]["terms"])
    found = [f"- {_escaped(_cause_line(content, cause))}" for cause in content["causes"]]
    changes = [
        f"- try: {_escaped(each['change'])} ({_change(each)}):\n\n{_fenced(each['code'])}"
        for each in content["prescriptions"]
    ]
    head = "| layer | delta RMS | factor | redrawn | " + " | ".join(map(_escaped, terms)) + " |"
    rule = "|---" * (4 + len(terms)) + "|"
    rows = [line for layer in layers for line in _markdown_rows(layer, terms)]
    title = f"# {_escaped(headline(content))}"
    notes = [f"- {_escaped(note)}" for note in _notes(content)]
    times = [
        f"- through time: {_code_span(each['path'])}: {_escaped(recurrence_words(each))}"
        for each in content["recurrences"]
    ]
    return "\n".join([title, "", *notes, *found, *changes, *times, "", head, rule, *rows, ""])


def _markdown_rows(layer: Content, terms: Sequence[str]) -> Iterator[str]:
    """A layer's row, and beneath it one for each of its parts."""
    row = Row(layer["path"], (layer,))
    own = (
        f" ({row.part_names[0]}; {part_words(layer['parts'])})" if len(row.part_names) == 1 else ""
    )
    yield (
        f"| {_code_span(layer['path'])}{own} | {amount(layer['delta_rms'])}"
        f" | {amount(layer['factor'])} | {_span(layer['factor_band'])} | "
        + " | ".join(_signed(layer, name) for name in terms)
        + " |"
    )
    for name, parts in row.parts():
        delta = amount(parts[0]["delta_rms"])
        z = amount(parts[0]["pre_activation_rms"])
        yield f"| &emsp;{name} (z {z}, {part_words(parts)}) | {delta} |" + " |" * (2 + len(terms))


def part_words(parts: Sequence[Content]) -> str:
    """Return in a line what units of a recurrent cell do.

    Args:
      parts: of one name, one of each layer that is told of.
    """
    band = functools.partial(_band, parts)
    gate = "" if parts[0]["gate"] is None else f"open {band('gate', '.2f')}, "
    mean = band("pre_activation_mean", "+.2g")
    return f"{gate}{band('saturated', '.0%')} saturated, mean of z {mean}"


def _escaped(text: str) -> str:
    """Return text that Markdown shows as it stands: no HTML, no link, no cell, no emphasis."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*|]|__|~~)", r"\\\1", text)
    return text.replace("](", "]\\(")


def _code_span(text: str) -> str:
    """Return a name as code in a cell of a table."""
    ticks = "`" * (1 + _most_ticks(text))
    pad = " " if "`" in text else ""
    return f"{ticks}{pad}{text}{pad}{ticks}".replace("|", "\\|")


def _fenced(code: str) -> str:
    ticks = "`" * max(3, 1 + _most_ticks(code))
    lines = [f"{ticks}python", *code.splitlines(), ticks]
    return "\n".join(f"  {line}" for line in lines)


def _most_ticks(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


def headline(content: Content) -> str:
    """Return verdict, score, why, and which loss and optimizer were judged."""
    return (
        f"{content['verdict']} ({score_words(content['score'])}): {content['reason']}"
        f" (loss: {content['loss_name']}, optimizer: {content['optimizer']})"
    )


def _notes(content: Content) -> list[str]:
    return [f"note: {note}" for note in content["notes"]]


def score_words(score: float | None) -> str:
    """Return a score in [0, 1] in words; None where there is none."""
    return "no score" if score is None else f"score {score:.2f}"


def repaired_words(before: float | None, after: float | None, together: float | None = None) -> str:
    """Return what the repair of one finding alone did; empty where it was not tried.

    Args:
      before: score of the network as it is, in [0, 1]; None where it has none.
      after: score with the repair, in [0, 1]; None where none was tried.
      together: score with another finding repaired as well; None where that was not asked.
    """
    if together is not None:
        alone = f" (alone {after:.2f})" if after is not None else ""
        return f"repaired together with another, the network learns: score {together:.2f}{alone}"
    if after is None:
        return ""
    change = f"{amount(before, '.2f')} -> {after:.2f}"
    if after >= TRAINS:
        return f"repaired alone, the network learns: score {change}"
    if before is not None and after - before < _NO_BETTER:
        return f"repaired alone, nothing changes: score {change}"
    return f"repaired alone, that is not enough: score {change}"


def place(cause: Content) -> str:
    """Return the layer and the source line of a cause, either empty where unknown."""
    line = f" ({cause['line']})" if cause["line"] else ""
    return f"{cause['path']}{line}".strip()


def _cause_line(content: Content, cause: Content) -> str:
    where = place(cause)
    start = f"{where}: " if where else ""
    repaired = repaired_words(content["score"], cause["repaired"], cause["together"])
    end = f"; {repaired}" if repaired else ""
    return f"cause: {start}{cause['evidence']} [{cause['cause']}]{end}"


def _bridged(cause: Content, layers: Sequence[Content]) -> str:
    if cause["recovery"] is None:
        return ""
    return (
        f"; with this layer bridged, {amount(10 ** cause['recovery'])} times the gradient reaches"
        f" {layers[0]['path']}"
    )


def _change(change: Content) -> str:
    return f"score {amount(change['before'], '.2f')} -> {change['after']:.2f}"


def _change_line(change: Content) -> str:
    code = "".join(f"\n     {line}" for line in change["code"].splitlines())
    return f"try: {change['change']} ({_change(change)}){code}"


def _rest(content: Content) -> str:
    """Say what is not shown, and how to see it."""
    hidden = [
        (len(content["causes"]) - _MOST, "more finding"),
        (len(content["prescriptions"]) - _MOST, "more change"),
        (len(content["layers"]), "layer"),
    ]
    shown = [f"{count} {word}{'s' * (count > 1)}" for count, word in hidden if count > 0]
    return f"({', '.join(shown)}: print(diagnosis.details()), or --all in the shell)"


def _table(rows: Sequence[Row]) -> list[str]:
    shown = [line for row in rows for line in _lines(row)]
    names, cells, ends = zip(*shown, strict=True) if shown else ((), (), ())
    width = max([5, *map(len, names)])
    heads = ("delta", "factor", "redrawn", "z", "dead")
    widths = [
        max(len(head), *map(len, column)) for head, *column in zip(heads, *cells, strict=True)
    ]
    lines = [
        f"{name:{width}}  "
        + "  ".join(f"{cell:>{each}}" for cell, each in zip(row, widths, strict=True))
        for name, row in zip(["layer", *names], [heads, *cells], strict=True)
    ]
    return [f"{line}  {end}" for line, end in zip(lines, ["mostly", *ends], strict=True)]


def _lines(row: Row) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """Name, cells and end of a row, and of those for its parts beneath."""
    only = [part for layer in row.layers for part in layer["parts"]]
    own = f"; {part_words(only)}" if len(row.part_names) == 1 else ""
    yield row.title, _cells(row), _mostly(row) + own
    for name, parts in row.parts():
        yield f"  {name}", _cells_of_part(parts), part_words(parts)


def _cells(row: Row) -> tuple[str, ...]:
    band = functools.partial(_band, row.layers)
    bands = [end for each in row.layers for end in each["factor_band"]]
    return (
        band("delta_rms"),
        band("factor"),
        _span(_ends(bands)),
        band("pre_activation_rms"),
        band("dead", ".0%"),
    )


def _cells_of_part(parts: Sequence[Content]) -> tuple[str, ...]:
    band = functools.partial(_band, parts)
    return band("delta_rms"), "", "", band("pre_activation_rms"), band("dead", ".0%")


def _band(items: Sequence[Content], name: str, form: str = ".3g") -> str:
    """The least and the greatest of a number."""
    low, high = (amount(end, form) for end in _ends(each[name] for each in items))
    return low if low == high else f"{low} to {high}"


def _others(parameters: Sequence[Content], *, fold: bool) -> list[str]:
    """The rows of what is trained besides kernels and biases."""
    others = [each for each in parameters if not each["layer"]]
    rows = folded_by_name(others, "role") if fold else [Row(e["path"], (e,)) for e in others]
    if not rows:
        return []
    width = max(9, *(len(row.name) for row in rows))
    sizes, grads = (
        [_span(_ends(each[name] for each in row.layers)) for row in rows]
        for name in ("rms", "grad_rms")
    )
    wide, wider = (max(8, *map(len, column)) for column in (sizes, grads))
    return [
        f"{'parameter':{width}}  {'RMS':>{wide}}  {'gradient':>{wider}}  role",
        *(
            f"{row.name:{width}}  {size:>{wide}}  {grad:>{wider}}  {row.layers[0]['role']}"
            for row, size, grad in zip(rows, sizes, grads, strict=True)
        ),
    ]


def _mostly(row: Row) -> str:
    """The term that makes most of the factor, of a row of several layers in their mean."""
    terms: dict[str, list[float]] = {}
    for layer in row.layers:
        # What makes a gradient of zero is no matter of shares.
        if layer["factor"]:
            for name, value in layer["terms"].items():
                if value is not None:
                    terms.setdefault(name, []).append(value)
    if not terms:
        return "-"
    means = {name: sum(values) / len(values) for name, values in terms.items()}
    term = max(means, key=lambda name: abs(means[name]))
    return f"{term} {means[term]:+.2f}"


def _signed(layer: Content, term: str) -> str:
    return amount(layer["terms"][term], "+.2f") if layer["factor"] else "-"


def _span(band: Sequence[float | None]) -> str:
    low, high = (amount(end) for end in band)
    return low if low == high else f"{low} to {high}"


def amount(value: float | None, form: str = ".3g") -> str:
    """Return a number for people.

    Args:
      value: any number; None or NaN for what is not defined.
      form: as of `format`.
    """
    if value is None or math.isnan(value):
        return "-"
    if 0 < abs(value) < _LEAST:
        return "<1e-38"
    if form == ".3g" and 1e3 <= abs(value) < 1e6:
        return f"{value:.0f}"
    return f"{value:{form}}"


def short_json(content: Content) -> str:
    """Return one object of at most `MOST_BYTES` ASCII characters, on one line.

    Keys and codes stand in `docs/for_assistants.md`. Words that are too long are cut, evidence and
    change first.
    """
    text = ""
    for length in _LENGTHS:
        text = json.dumps(_short(content, length))
        if len(text) <= MOST_BYTES:
            break
    return text


def error_json(message: str) -> str:
    """Return the object in place of a diagnosis that could not be made."""
    return json.dumps({"schema": SCHEMA, "error": _cut(message, MOST_BYTES // 2)})


def _short(content: Content, length: int) -> dict[str, Any]:
    causes, changes = content["causes"], content["prescriptions"]
    name = min(length, _LENGTHS[-2])
    return {
        "schema": SCHEMA,
        "verdict": content["verdict"],
        "score": _rounded(content["score"]),
        "loss": _cut(content["loss_name"], name),
        "optimizer": _cut(content["optimizer"], name),
        "reason": _cut(content["reason"], length),
        "notes": [_cut(note, length) for note in content["notes"][:_MOST_NOTES]],
        "findings": [
            {
                "code": cause["code"],
                "category": cause["category"],
                "layer": _cut_front(cause["path"], name) or None,
                "line": _cut(cause["line"] or "", name) or None,
                "evidence": _cut(cause["evidence"], length),
                "repaired": _rounded(cause["repaired"]),
            }
            for cause in causes[:_MOST]
        ],
        "more_findings": max(len(causes) - _MOST, 0),
        "prescription": next((_prescription(each, length) for each in changes), None),
    }


def _prescription(change: Content, length: int) -> dict[str, Any]:
    return {
        "code": _cut(change["name"], length),
        "change": _cut(change["change"], length),
        "patch": _cut(change["code"], _PATCH * length),
        "before": _rounded(change["before"]),
        "after": _rounded(change["after"]),
    }


def _rounded(score: float | None) -> float | None:
    return None if score is None else round(score, 3)


def _fitting(pieces: Iterator[str], length: int) -> list[str]:
    """The first characters that take no more than `length` in JSON."""
    taken: list[str] = []
    for piece in pieces:
        length -= len(json.dumps(piece)) - 2
        if length < 0:
            break
        taken.append(piece)
    return taken


def _cut(text: str, length: int) -> str:
    """Cut the end of a text that takes more than `length` characters in JSON."""
    if len(json.dumps(text)) - 2 <= length:
        return text
    return "".join(_fitting(iter(text), length - 3)) + "..."


def _cut_front(text: str, length: int) -> str:
    """Cut the start: the end of a path tells most."""
    if len(json.dumps(text)) - 2 <= length:
        return text
    return "..." + "".join(reversed(_fitting(reversed(text), length - 3)))
