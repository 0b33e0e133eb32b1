"""Sphinx configuration: builds offline."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import nested_parse_with_titles

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))
import configuration_reference

import mtf

project = "mtf"
author = "The mtf authors"
copyright = f"2026, {author}"
release = version = mtf.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"mtf {release}"
exclude_patterns = ["_build"]
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
python_use_unqualified_type_names = True
myst_heading_anchors = 3
# The README's links to files of the repository have no page here.
suppress_warnings = ["myst.xref_missing"]


class PublicNames(SphinxDirective):
    """One entry per name in `mtf.__all__`, in that order."""

    def run(self) -> list[nodes.Node]:
        lines: list[str] = []
        for name in mtf.__all__:
            value = getattr(mtf, name)
            kind = "class" if inspect.isclass(value) else "function" if inspect.isfunction(value) else "data"
            if isinstance(value, type) and issubclass(value, BaseException):
                kind = "exception"
            lines += (
                [f".. auto{kind}:: mtf.{name}"] + (["   :members:"] if kind in ("class", "exception") else []) + [""]
            )
        node = nodes.section()
        node.document = self.state.document
        self.state.nested_parse(StringList(lines, "mtf"), self.content_offset, node)
        return node.children


class ConfigurationReference(SphinxDirective):
    """One section per configuration dataclass, read from the dataclasses themselves."""

    def run(self) -> list[nodes.Node]:
        lines = configuration_reference.page().split("\n")
        node = nodes.section()
        node.document = self.state.document
        nested_parse_with_titles(self.state, StringList(lines, "mtf.config"), node, self.content_offset)
        return node.children


def setup(app: Sphinx) -> None:
    """Register the directives that pages use."""
    app.add_directive("mtf-public-names", PublicNames)
    app.add_directive("mtf-configuration", ConfigurationReference)
