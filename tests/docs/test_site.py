"""The site and the report in a real browser: no script error, no broken figure or link, readable on a phone.

Needs Chromium (Debian's `chromium`), playwright's client and what `make docs` needs; elsewhere the tests are skipped.
"""

from __future__ import annotations

import functools
import http.server
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urlparse

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MISSING = [
    name
    for name in ("playwright", "sphinx", "furo", "myst_parser", "sphinx_copybutton")
    if not importlib.util.find_spec(name)
]
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium"),
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (pip install -e '.[docs]')"),
    pytest.mark.timeout(600),
]
_OFFLINE = re.compile(r"file:|data:|blob:|about:|http://127\.0\.0\.1:")
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
MIN_TEXT_PX = 9
CHECKS = """
() => {
  const shown = e => e.checkVisibility({visibilityProperty: true}) && e.getBoundingClientRect().width > 0;
  const small = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const parent = walker.currentNode.parentElement, text = walker.currentNode.textContent.trim();
    if (!text || !parent || parent.closest("script, style, title, desc") || !shown(parent)) continue;
    let size = parseFloat(getComputedStyle(parent).fontSize);
    const matrix = parent.ownerSVGElement && parent.getScreenCTM && parent.getScreenCTM();
    if (matrix) size *= Math.hypot(matrix.a, matrix.b);
    if (size < LEAST) small.push(size.toFixed(1) + " px: " + text.slice(0, 40));
  }
  const loaded = image => image.complete && image.naturalWidth > 0;
  const images = [...document.images].filter(i => i.getAttribute("src") && !loaded(i)).map(i => i.src);
  const figures = [...document.querySelectorAll("article svg, main svg")].filter(
    s => shown(s.parentElement) && s.getBoundingClientRect().height < 1 && !s.closest("[hidden]")).length;
  const ids = [...document.querySelectorAll("[id]")].map(e => e.id);
  return {
    small: small.slice(0, 5), images, figures, ids,
    links: [...document.querySelectorAll("a[href]")].map(a => a.href),
    too_wide: document.documentElement.scrollWidth - innerWidth,
  };
}
""".replace("LEAST", str(MIN_TEXT_PX))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` does."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", str(ROOT / "docs"), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu"] if os.geteuid() == 0 else ["--disable-gpu"]
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield started
        started.close()


class Visit:
    """Pages opened in one window; collects what goes wrong."""

    def __init__(self, browser: Any, size: dict[str, int], scheme: str) -> None:
        self.context = browser.new_context(viewport=size, color_scheme=scheme)
        self.page = self.context.new_page()
        self.problems: list[str] = []
        self.page.on("pageerror", lambda error: self.problems.append(f"script error: {error}"))
        self.page.on("requestfailed", self._failed)
        self.page.on(
            "request",
            lambda request: _OFFLINE.match(request.url) or self.problems.append(f"needs a network: {request.url}"),
        )

    def _failed(self, request: Any) -> None:
        if request.failure != "net::ERR_ABORTED":  # what a click away has cancelled
            self.problems.append(f"not found: {request.url}")

    def look(self, path: Path) -> dict[str, Any]:
        self.page.goto(path.as_uri())
        seen: dict[str, Any] = self.page.evaluate(CHECKS)
        name = path.name
        self.problems += [f"{name}: {text}" for text in seen["small"]]
        self.problems += [f"{name}: broken image {source}" for source in seen["images"]]
        if seen["figures"]:
            self.problems.append(f"{name}: {seen['figures']} figures without height")
        if seen["too_wide"] > 0:
            self.problems.append(f"{name}: {seen['too_wide']} px wider than the window")
        return seen

    def close(self) -> list[str]:
        self.context.close()
        return self.problems


def pages_of(site: Path) -> list[Path]:
    return sorted(
        page for page in site.rglob("*.html") if page.name not in ("genindex.html", "search.html", "py-modindex.html")
    )


@pytest.mark.parametrize(
    ("size", "scheme"),
    [(DESKTOP, "light"), (DESKTOP, "dark"), (PHONE, "light"), (PHONE, "dark")],
    ids=["desktop light", "desktop dark", "phone light", "phone dark"],
)
def test_every_page_can_be_read(site: Path, browser: Any, size: dict[str, int], scheme: str) -> None:
    visit = Visit(browser, size, scheme)
    pages = pages_of(site)
    assert len(pages) > 30
    for page in pages:
        visit.look(page)
    assert visit.close() == []


def test_every_link_leads_somewhere(site: Path, browser: Any) -> None:
    visit = Visit(browser, DESKTOP, "light")
    seen = {page: visit.look(page) for page in pages_of(site)}
    ids = {page: set(found["ids"]) for page, found in seen.items()}
    broken = []
    for page, found in seen.items():
        for link in found["links"]:
            address, fragment = urldefrag(link)
            if not address.startswith("file:"):
                continue
            target = Path(unquote(urlparse(address).path))
            if not target.exists():
                broken.append(f"{page.name}: {link}")
            elif fragment and target in ids and unquote(fragment) not in ids[target]:
                broken.append(f"{page.name}: no #{fragment} in {target.name}")
    visit.close()
    assert broken == []


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    """The site served on loopback: a browser allows neither search nor the clipboard on files."""
    handler = functools.partial(QuietHandler, directory=str(site))
    with QuietServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class QuietServer(http.server.ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """A browser that leaves a page closes its connections."""


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """No line per request."""


def test_a_reader_can_click_through(address: str, browser: Any) -> None:
    """From the start page by the menu of a phone, search, a fold-out, a copy button and the theme's button."""
    visit = Visit(browser, PHONE, "light")
    page = visit.page
    visit.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto(f"{address}/index.html")
    page.locator("label[for=__navigation]:visible").first.click()
    page.locator(".sidebar-tree a", has_text="Recipes").click()
    page.wait_for_url("**/recipes.html")

    page.locator("summary").first.click()
    block = page.locator("details .highlight-python").first
    assert block.is_visible()
    block.hover()
    block.locator("button.copybtn").click()
    page.wait_for_selector("button.copybtn.success")
    assert page.evaluate("navigator.clipboard.readText()").startswith("from pathlib import Path")

    before = page.evaluate("document.body.dataset.theme")
    page.locator(".theme-toggle:visible").first.click()
    assert page.evaluate("document.body.dataset.theme") != before

    page.goto(f"{address}/search.html?q=MultiLoader")
    page.wait_for_selector("#search-results li", timeout=20_000)
    page.locator("#search-results li a").first.click()
    assert "MultiLoader" in page.content()
    assert visit.close() == []


def test_the_report_of_a_run_can_be_read(browser: Any, tmp_path: Path) -> None:
    """The page that `mtf report` writes: one offline file, on a desktop and a phone, light and dark."""
    pytest.importorskip("torch")
    pytest.importorskip("matplotlib")
    page = write_report(tmp_path)
    for size in (DESKTOP, PHONE):
        for scheme in ("light", "dark"):
            visit = Visit(browser, size, scheme)
            seen = visit.look(page)
            for summary in visit.page.locator("summary:visible").all():
                summary.click()
            assert not [link for link in seen["links"] if not link.startswith(("file:", "#"))]
            assert visit.close() == []


def write_report(folder: Path) -> Path:
    import torch

    import mtf
    import mtf.report

    model = torch.nn.Linear(2, 1)
    logging = mtf.LoggingConfig(
        logger_type="jsonl", log_dir=str(folder), log_scalars_every_n_steps=2, progress_bar=False
    )
    config = mtf.TrainerConfig(experiment_name="run", logging=logging)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = mtf.Trainer(config, model, optimizer, training_step=lambda t, b, *_: t.model(b).square().mean())
    rows = {"a": torch.ones(24, 2), "b": torch.rand(8, 2)}
    loaders = {name: mtf.ArrayLoader(data, 4) for name, data in rows.items()}
    trainer.fit(loaders, val_loaders=loaders, max_epochs=3)
    mtf.report.read_run(folder).save(folder / "report.html")
    return folder / "report.html"


def test_what_the_checks_look_for_is_found(browser: Any, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<body><main><p style='font-size:8px'>tiny</p><img src='gone.png'><div style='width:3000px'>wide</div>"
        "<svg viewBox='0 0 4000 100' width='300' height='30'><text x='1' y='50' font-size='20'>shrunk</text></svg>"
        "</main><script>missing()</script></body>",
        encoding="utf-8",
    )
    visit = Visit(browser, PHONE, "light")
    visit.look(bad)
    found = "\n".join(visit.close())
    for expected in ("8.0 px: tiny", "1.5 px: shrunk", "broken image", "wider than the window", "script error"):
        assert re.search(re.escape(expected), found), found
