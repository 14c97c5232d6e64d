"""How the documentation is built: `sphinx-build -W docs docs/_build/html`."""

from __future__ import annotations

import importlib.metadata
import re
import warnings
from typing import Any

from sphinx.application import Sphinx

project = "jaxdnn"
author = "The jaxdnn authors"
copyright = f"2026, {author}"
try:
    release = importlib.metadata.version("jaxdnn")
except importlib.metadata.PackageNotFoundError:  # Read from a checkout that is not installed.
    release = ""

# sphinx-autodoc-typehints 3.6 calls what Sphinx 10 will drop, once for every docstring.
warnings.filterwarnings("ignore", message=".*set_application.*")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_autodoc_typehints",
]
exclude_patterns = ["_build"]
myst_heading_anchors = 3

# The notebook has no stored outputs: every build runs it, and an error in it stops the build.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_output_stderr = "remove"

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
typehints_document_rtype = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
# What a named tuple or dataclass holds is what it is made of.
napoleon_custom_sections = [("Attributes", "Args")]
# An indented block is a formula, a table or a command more often than Python.
highlight_language = "none"
# Docstrings put code in single backticks.
default_role = "literal"
add_module_names = False
typehints_use_signature = True
typehints_use_signature_return = True
suppress_warnings = ["sphinx_autodoc_typehints"]

html_theme = "pydata_sphinx_theme"
html_title = "jaxdnn"
html_theme_options = {
    "header_links_before_dropdown": 10,
    "navbar_align": "left",
    "navigation_with_keys": False,
    "show_prev_next": False,
}
html_sidebars = {"*": []}
html_static_path = ["_static"]
html_css_files = ["page.css"]
html_show_sourcelink = False
html_copy_source = False

_LITERAL = re.compile(r"(``.*?``|`.*?`)")
# What reStructuredText reads as a substitution, emphasis or a reference, and a docstring means.
_SPECIAL = re.compile(r"(?<!\*)\*(?!\*)|\||(?<=\w)_(?!\w)")


def literal_blocks(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Mark formulas, tables and code, which docstrings only indent, as literal blocks."""
    del app, what, name, obj, options
    marked: list[str] = []
    block: int | None = None
    references: int | None = None
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if block is not None and line.strip() and indent < block:
            block = None
        if references is not None and line.strip():
            if indent > references:
                line = _reference(line.strip(), references + 2, marked[-1])
                marked.append(_escaped(line))
                continue
            references = None
        if line.strip() == "References:":
            references = indent
        if block is None and line.strip():
            deeper = len(marked) > 1 and not marked[-1] and indent > _indent_above(marked)
            if deeper and not line.lstrip().startswith(">>>"):
                block = indent
                marked += [" " * _indent_above(marked) + "::", ""]
            elif not line.lstrip().startswith((">>>", "...")):
                line = _escaped(line)
        marked.append(line)
    lines[:] = marked


def _escaped(line: str) -> str:
    pieces = _LITERAL.split(line)
    pieces[::2] = [_SPECIAL.sub(r"\\\g<0>", piece) for piece in pieces[::2]]
    return "".join(pieces)


def _reference(text: str, indent: int, above: str) -> str:
    """Begin an item of a list where the reference above has ended."""
    begins = above.rstrip().endswith((".", ":"))
    return " " * indent + ("- " if begins else "  ") + text


def _indent_above(lines: list[str]) -> int:
    last = next((line for line in reversed(lines) if line.strip()), "")
    return len(last) - len(last.lstrip())


def skip_fields(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool:
    """Leave out the fields of named tuples: the class's docstring tells what they hold."""
    del app, what, name, options
    return skip or type(obj).__name__ == "_tuplegetter"


def setup(app: Sphinx) -> None:
    """Connect what reads docstrings, before napoleon does."""
    app.connect("autodoc-process-docstring", literal_blocks, priority=100)
    app.connect("autodoc-skip-member", skip_fields)
