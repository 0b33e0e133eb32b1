"""Sphinx configuration: builds offline."""

from __future__ import annotations

import html
import inspect
import sys
from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
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
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
myst_enable_extensions = ["alert", "deflist"]
html_theme = "furo"
html_title = f"mtf {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
exclude_patterns = ["_build"]
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
python_use_unqualified_type_names = True
myst_heading_anchors = 3
# The README's links to files of the repository have no page here.
suppress_warnings = ["myst.xref_missing"]


class InlinePictures(SphinxPostTransform):
    """Puts the pictures of docs/figures into the page itself, where their colours follow its light or dark theme."""

    default_priority = 5
    formats = ("html",)

    def run(self, **_: object) -> None:
        for image in list(self.document.findall(nodes.image)):
            path = Path(self.app.srcdir) / image["uri"]
            if path.suffix == ".svg" and path.parent.name == "figures":
                label = html.escape(image.get("alt", ""), quote=True)
                drawn = path.read_text(encoding="utf-8").replace("<svg ", f'<svg aria-label="{label}" ', 1)
                image.replace_self(nodes.raw("", drawn, format="html"))


class PublicNames(SphinxDirective):
    """One entry per name of `mtf` in the directive's content, in that order."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        lines: list[str] = []
        for name in " ".join(self.content).split():
            value = getattr(mtf, name)
            kind = "class" if inspect.isclass(value) else "function" if inspect.isfunction(value) else "data"
            if isinstance(value, type) and issubclass(value, BaseException):
                kind = "exception"
            lines += [f".. auto{kind}:: mtf.{name}"]
            if kind in ("class", "exception"):
                lines += ["   :members:"]
            if issubclass(type(value), type) and any(base.__module__ == "mtf._core" for base in value.__mro__[1:]):
                lines += ["   :inherited-members: pybind11_object"]  # the native part of the interface
            lines += [""]
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
    app.add_post_transform(InlinePictures)
    app.add_directive("mtf-names", PublicNames)
    app.add_directive("mtf-configuration", ConfigurationReference)
