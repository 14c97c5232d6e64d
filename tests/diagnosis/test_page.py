"""The page of a diagnosis: whole, self-contained, and with a word for every cause."""

import xml.etree.ElementTree as ElementTree
from html import escape
from html.parser import HTMLParser

import chex
import pytest

from jaxdnn.diagnosis import CAUSES
from jaxdnn.diagnosis.cause_table import QUANTITIES

from . import made

VOID = {"meta"}


class Tags(HTMLParser):
    """Checks that every tag is closed, and gathers what the page would load."""

    def __init__(self):
        super().__init__()
        self.open, self.loaded = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID and tag != "br":
            self.open.append(tag)
        self.loaded += [
            value
            for name, value in attrs
            if name in ("src", "href", "xlink:href") and not (value or "").startswith("#")
        ]

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_every_cause_has_a_law_in_words_and_a_picture():
    layers = made.diagnosis().to_dict()["layers"]
    for name, kind in CAUSES.items():
        assert kind.name == name
        assert kind.formula
        assert kind.words.endswith(".")
        label, value_of = QUANTITIES[kind.quantity]
        assert label
        chex.assert_tree_all_finite([value_of(each) for each in layers])


# One is drawn by the other tests.
@pytest.mark.slow
@pytest.mark.parametrize("name", CAUSES)
def test_every_cause_is_shown(name):
    html = made.diagnosis(causes=(made.cause(name),)).to_html()
    assert html.count("<svg") == 2
    for text in (name, CAUSES[name].category, escape(CAUSES[name].words[:20])):
        assert text in html


def test_a_cause_without_a_layer_is_told_without_picture_and_colon():
    cause = made.cause("loss without lower bound", "", "the loss falls without end", repaired=0.9)
    html = made.diagnosis(causes=(cause,)).to_html()
    assert "<h2>loss without lower bound <small class='category'>loss</small></h2>" in html
    assert CAUSES[cause.cause].words in html
    assert "score 0.01 -&gt; 0.90" in html
    assert html.count("<svg") == 1


def test_gradients_of_zero_are_no_numbers_to_take_apart():
    layers = (made.without_gradient("layers/0"), made.without_gradient("head"))
    html = made.diagnosis(layers=layers, causes=(made.cause("dead layer"),)).to_html()
    table = html[html.index("<h2>Every layer") :]
    assert "<td>0</td><td>-</td>" in table
    assert "105" not in table


def test_page_is_whole_and_loads_nothing():
    tags = Tags()
    tags.feed(made.diagnosis().to_html())
    assert tags.open == []
    assert tags.loaded == []


def test_paths_of_a_model_cannot_break_the_page():
    path = "<script>x</script>"
    found = made.diagnosis(layers=(made.layer(path, 0.0),), causes=(made.cause(path=path),))
    html = found.to_html()
    assert "<script" not in html
    assert "&lt;script&gt;x&lt;/script&gt;" in html


def test_pictures_are_well_formed():
    html = made.diagnosis()._repr_html_()
    start, end = html.index("<svg"), html.index("</svg>") + len("</svg>")
    assert ElementTree.fromstring(html[start:end]).tag.endswith("svg")
