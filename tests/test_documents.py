"""What README and the documentation say is so: examples run, commands and links exist."""

import contextlib
import doctest
import importlib
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(path for path in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in path.parts),
]
MODULES_WITH_EXAMPLES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "jaxdnn").rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)
# They compile for seconds; README's example is fast.
_SLOW = {"jaxdnn.diagnosis.diagnose", "jaxdnn.propagation.gradient_flow"}
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
_SCORE = re.compile(r"score ([\d.]+)")


def test_readme_prints_what_it_shows():
    text = PAGES[0].read_text(encoding="utf-8")
    [(code, shown)] = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", text, re.S)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {})
    # Words to the letter; numbers may differ in their last digits from one version of JAX to
    # another, but a score not by much.
    assert _words(printed.getvalue()) == _words(shown)
    for ours, theirs in zip(_SCORE.findall(printed.getvalue()), _SCORE.findall(shown), strict=True):
        assert abs(float(ours) - float(theirs)) <= 0.05


def test_readme_is_short():
    assert len(PAGES[0].read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in _SLOW else [])
        for name in MODULES_WITH_EXAMPLES
    ],
)
def test_docstring_examples(name: str):
    result = doctest.testmod(
        importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    )
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_commands_exist(page: Path):
    text = page.read_text(encoding="utf-8")
    links = [
        link
        for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text)
        if not link.startswith(("http", "mailto"))
    ]
    missing = [link for link in links if not (page.parent / link).exists()]
    scripts = re.findall(r"(?<![\w/])((?:experiments|jaxdnn|tests|docs|\.ci)/[\w./-]*\w)", text)
    # What a build or a run makes is not in a fresh clone.
    missing += [path for path in scripts if "_build" not in path and not (ROOT / path).exists()]
    assert missing == []


def _words(text: str) -> list[str]:
    return _NUMBER.sub("#", text).split()
