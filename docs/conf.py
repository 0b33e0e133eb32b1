"""Sphinx configuration: builds offline."""

from __future__ import annotations

import html
import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.ext.napoleon.docstring import GoogleDocstring
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import nested_parse_with_titles

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parent / "python"))
import configuration_reference  # noqa: E402

import mtf  # noqa: E402


def repository() -> str | None:
    """Address of the repository: of the public runner that builds the site, or of the clone's origin."""
    if "GITHUB_REPOSITORY" in os.environ:
        return f"{os.environ.get('GITHUB_SERVER_URL', 'https://github.com')}/{os.environ['GITHUB_REPOSITORY']}/"
    command = ["git", "config", "--get", "remote.origin.url"]
    try:
        origin = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return None
    found = re.fullmatch(r"(?:https://|ssh://git@|git@)([\w.-]+\.\w+)[:/](.+?)(?:\.git)?/?", origin)
    return f"https://{found[1]}/{found[2]}/" if found else None


project = "mtf"
author = "The mtf authors"
copyright = f"2026, {author}"
release = version = mtf.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
html_theme = "furo"
html_title = f"mtf {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_theme_options = {"navigation_with_keys": True}
if REPOSITORY := repository():
    html_theme_options |= {
        "source_repository": REPOSITORY,
        "source_branch": "main",
        "source_directory": "docs/",
        "footer_icons": [{"name": "Repository", "url": REPOSITORY, "html": "Repository", "class": "repository"}],
    }
exclude_patterns = ["_build"]
napoleon_use_ivar = True  # attributes that a docstring lists are listed once
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 90
copybutton_selector = "div.highlight-python pre, div.highlight-bash pre, div.highlight-yaml pre, div.highlight-diff pre"
copybutton_exclude = ".linenos, .gd, .gu"  # lines that a diff removes aren't pasted
myst_enable_extensions = ["alert", "deflist"]
myst_heading_anchors = 3
# The README's links to files of the repository have no page here.
suppress_warnings = ["myst.xref_missing"]

# Attributes' docstrings are sentences here: "Why: because" is no type and its meaning.
GoogleDocstring._consume_inline_attribute = lambda self: ("", self._dedent(self._consume_to_end()))


class InlinePictures(SphinxPostTransform):
    """Puts SVG pictures of this folder into the page itself, where their colours follow its light or dark theme."""

    default_priority = 5
    formats = ("html",)

    def run(self, **_: object) -> None:
        for image in list(self.document.findall(nodes.image)):
            path = Path(self.app.srcdir) / image["uri"]
            if path.suffix == ".svg" and path.parent.name == "figures":
                label = html.escape(image.get("alt", ""), quote=True)
                drawn = path.read_text(encoding="utf-8")
                drawn = re.sub(r"^<\?xml.*?(?=<svg )", "", drawn, flags=re.DOTALL)
                drawn = drawn.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
                drawn = f'<div class="figure-scroll" tabindex="0">{drawn}</div>'  # wide ones scroll on a phone
                image.replace_self(nodes.raw("", drawn, format="html"))


def kind_of(value: object) -> str:
    """The autodoc directive of a public name."""
    if isinstance(value, type):
        return "exception" if issubclass(value, BaseException) else "class"
    return "function" if inspect.isroutine(value) else "data"


# Classes whose members lie in several modules, as bases -> the first base that isn't one of these parts.
IN_PARTS = {"Blend": "Source", "MultiLoader": "object", "Trainer": "object"}


class PublicNames(SphinxDirective):
    """One entry per name of `mtf` in the directive's content, in that order."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        lines: list[str] = []
        for name in " ".join(self.content).split():
            value = getattr(mtf, name)
            kind = kind_of(value)
            lines += [f".. auto{kind}:: mtf.{name}"]
            if kind in ("class", "exception"):
                lines += ["   :members:"]
            if issubclass(type(value), type) and any(base.__module__ == "mtf._core" for base in value.__mro__[1:]):
                lines += ["   :inherited-members: pybind11_object"]  # the native part of the interface
            elif name in IN_PARTS:
                lines += [f"   :inherited-members: {IN_PARTS[name]}"]
            lines += [""]
        node = nodes.section()
        node.document = self.state.document
        self.state.nested_parse(StringList(lines, "mtf"), self.content_offset, node)
        return node.children


class Summary(SphinxDirective):
    """A table per page of docs/api: each name with a link and the first sentence of its docstring."""

    def run(self) -> list[nodes.Node]:
        lines: list[str] = []
        for page in self.env.found_docs and sorted((HERE / "api").glob("*.md"), key=self._place):
            names = " ".join(re.findall(r"\.\. mtf-names::\n((?:   .+\n)+)", page.read_text(encoding="utf-8"))).split()
            if not names:
                continue
            title = page.read_text(encoding="utf-8").split("\n", 1)[0].removeprefix("# ")
            lines += [title, "-" * len(title), "", ".. list-table::", "   :widths: 30 70", ""]
            for name in names:
                value = getattr(mtf, name)
                role = {"function": "func", "exception": "exc", "class": "class"}.get(kind_of(value), "data")
                doc = inspect.getdoc(value) if role != "data" else "version of this package"
                first = re.split(r"(?<=[.!?])\s|\n\n|:\n", doc or "")[0].replace("\n", " ")
                lines += [f"   * - :py:{role}:`~mtf.{name}`", f"     - {first}"]
            lines += [""]
        node = nodes.section()
        node.document = self.state.document
        nested_parse_with_titles(self.state, StringList(lines, "mtf"), node, self.content_offset)
        return node.children

    @staticmethod
    def _place(page: Path) -> int:
        return (HERE / "api.md").read_text(encoding="utf-8").find(f"api/{page.stem}\n")


class ConfigurationReference(SphinxDirective):
    """One section per configuration dataclass, read from the dataclasses themselves."""

    def run(self) -> list[nodes.Node]:
        lines = configuration_reference.page().split("\n")
        node = nodes.section()
        node.document = self.state.document
        nested_parse_with_titles(self.state, StringList(lines, "mtf.config"), node, self.content_offset)
        return node.children


def plain_types(app: Sphinx, what: str, name: str, obj: object, options: object, signature: str, returns: str):
    """Signatures of native functions as users write them: `int` where pybind11 also takes what converts to it."""
    if not isinstance(signature, str):
        return None
    for native, plain in (
        (r"^\(self(?:: [\w.]+)?(?:, )?", "("),
        (r"(?:typing\.)?SupportsInt \| (?:typing\.)?SupportsIndex", "int"),
        (r"(?:typing\.)?SupportsFloat \| (?:typing\.)?SupportsIndex", "float"),
        (r"collections\.abc\.", ""),
        (r"mtf\._core\.", ""),
        (r"typing\.Annotated\[numpy\.typing\.ArrayLike, numpy\.\w+\]", "ArrayLike"),
        (r"numpy\.typing\.(?:NDArray|ArrayLike)\[numpy\.(\w+)\]", r"numpy.ndarray[\1]"),
    ):
        signature = re.sub(native, plain, signature)
        returns = re.sub(native, plain, returns) if returns else returns
    return signature, returns


def copy_pictures_of_readme(app: Sphinx, error: Exception | None) -> None:
    """The README names its pictures by their place in the repository, in HTML that Sphinx doesn't read."""
    if error is None and app.builder.format == "html":
        place = Path(app.outdir) / "docs" / "report"
        place.mkdir(parents=True, exist_ok=True)
        for picture in (HERE / "report").glob("overview-*.png"):
            shutil.copy(picture, place)


def setup(app: Sphinx) -> None:
    """Register the directives that pages use."""
    app.add_post_transform(InlinePictures)
    app.add_directive("mtf-names", PublicNames)
    app.add_directive("mtf-summary", Summary)
    app.add_directive("mtf-configuration", ConfigurationReference)
    app.connect("autodoc-process-signature", plain_types)
    app.connect("build-finished", copy_pictures_of_readme)
