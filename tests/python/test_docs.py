"""Every Python example in the README and in docs/ runs; pages added later are covered as they come.

The blocks of a page run in order and share their names, in an empty folder. Two comments in a page's source steer this:
`<!-- setup` ... `-->` holds code that runs but isn't shown; `<!-- not run: reason -->` before a block leaves it out.
A `yaml` block whose first line is `# file: NAME` is written to that file first.
"""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch")

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])

_PART = re.compile(
    r"<!-- setup\n(?P<setup>.*?)-->"
    r"|(?P<skip><!-- not run: [^>]+-->\s*)?^```(?P<language>python|yaml)[^\n]*\n(?P<code>.*?)^```",
    re.DOTALL | re.MULTILINE,
)


def parts(text: str) -> Iterator[tuple[str, str, int]]:
    """Yields (language, code, line number of the first line of code)."""
    for found in _PART.finditer(text):
        if found["setup"] is not None:
            yield "python", found["setup"], text.count("\n", 0, found.start("setup")) + 1
        elif found["skip"] is None:
            yield found["language"], found["code"], text.count("\n", 0, found.start("code")) + 1


def pages_with_code() -> list[Path]:
    return [page for page in PAGES if "_build" not in page.parts and any(parts(page.read_text(encoding="utf-8")))]


@pytest.mark.parametrize("page", pages_with_code(), ids=lambda page: str(page.relative_to(ROOT)))
def test_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # A module of its own, so that classes in examples can be found by worker processes and dataclasses.
    module = types.ModuleType("docs_example")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for language, code, line in parts(page.read_text(encoding="utf-8")):
        if language == "yaml":
            named = re.match(r"# file: (\S+)\n", code)
            if named:
                Path(named[1]).write_text(code, encoding="utf-8")
            continue
        # Blank lines before the code give tracebacks the page's own line numbers.
        exec(compile("\n" * (line - 1) + code, str(page), "exec", dont_inherit=True), module.__dict__)


def test_parts_are_found() -> None:
    text = (
        "<!-- setup\nhidden = 1\n-->\n```python\nshown = 2\n```\n"
        "<!-- not run: needs two machines -->\n```python\nboom\n```\n"
        "```yaml\n# file: a.yaml\nx: 1\n```\n```bash\nls\n```\n"
    )
    assert list(parts(text)) == [
        ("python", "hidden = 1\n", 2),
        ("python", "shown = 2\n", 5),
        ("yaml", "# file: a.yaml\nx: 1\n", 12),
    ]


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        if "_build" in page.parts:
            continue
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"
