"""The page of a diagnosis: whole, self-contained, and with a word for every cause."""

import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import chex
import pytest

from jaxdnn.diagnosis import CAUSES, Cause, Diagnosis, Prescription
from jaxdnn.diagnosis.causes import QUANTITIES
from jaxdnn.diagnosis.profile import LayerProfile

VOID = {"meta"}


def layer(path, delta):
    return LayerProfile(
        path=path,
        kind="dense",
        fan_in=4.0,
        fan_out=4.0,
        pre_activation_mean=0.0,
        pre_activation_rms=1.0,
        correlation=0.0,
        delta_rms=delta,
        delta_rms_by_example=(delta, delta),
        delta_band=(0.5 * delta, 2 * delta),
        factor=0.5,
        factor_band=(0.4, 0.6),
        terms={"weights": -1.0, "activation": 0.3},
        dead=0.0,
        saturated=0.1,
        kernel_rms=0.5,
        kernel_grad_rms=0.1,
        kernel_grad_ratio=0.2,
    )


def diagnosis(cause="dead units", path="a<b>"):
    return Diagnosis(
        verdict="will not train",
        score=0.01,
        reason="delta < 1 & falling",
        layers=(layer(path, 0.0), layer("head", 1.0)),
        causes=(Cause(path, cause, "90 % are dead", 5.0, 2.0),),
        prescriptions=(Prescription("He", "kernel_init=he_normal()", 0.01, 0.9),),
        loss=2.3,
        optimizer="sgd:0.1",
    )


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
    layers = diagnosis().to_dict()["layers"]
    for name, kind in CAUSES.items():
        assert kind.name == name
        assert kind.formula
        assert kind.words.endswith(".")
        label, value_of = QUANTITIES[kind.quantity]
        assert label
        chex.assert_tree_all_finite([value_of(each) for each in layers])


# One is drawn by the other tests.
@pytest.mark.slow
@pytest.mark.parametrize("cause", CAUSES)
def test_every_cause_is_shown(cause):
    html = diagnosis(cause).to_html()
    assert html.count("<svg") == 2
    assert cause in html
    assert CAUSES[cause].words[:20] in html


def test_page_is_whole_and_loads_nothing():
    tags = Tags()
    tags.feed(diagnosis().to_html())
    assert tags.open == []
    assert tags.loaded == []


def test_paths_of_a_model_cannot_break_the_page():
    html = diagnosis(path="<script>x</script>").to_html()
    assert "<script" not in html
    assert "&lt;script&gt;x&lt;/script&gt;" in html


def test_pictures_are_well_formed():
    html = diagnosis()._repr_html_()
    start, end = html.index("<svg"), html.index("</svg>") + len("</svg>")
    assert ElementTree.fromstring(html[start:end]).tag.endswith("svg")
