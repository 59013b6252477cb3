"""A browser shows the report as it is meant: all figures, no errors, nothing wider than a phone."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest

from hil.report import write_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs chromium, chromium-browser or google-chrome")

ASK = """<script>addEventListener("load", () => {
  const page = document.documentElement, images = [...document.images].map(i => i.complete && i.naturalWidth);
  page.dataset.found = JSON.stringify({images, page: page.scrollWidth, window: innerWidth});
});</script>"""


@pytest.fixture(scope="module")
def page(digits_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "report.html"
    write_report([digits_run.path], out)
    return out


def browse(page: Path, folder: Path, width: int, *options: str) -> tuple[str, list[str]]:
    """What a browser of this width prints, and the messages of the page's console."""
    command = [str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"]
    command += [f"--user-data-dir={folder / 'profile'}", f"--window-size={width},2000", *options, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.parametrize("width", [400, 1200])
def test_all_figures_are_decoded_and_nothing_is_wider_than_the_window(page: Path, width: int, tmp_path: Path) -> None:
    asking = tmp_path / "asking.html"
    source = page.read_text(encoding="utf-8").replace(
        "default-src 'none'", "default-src 'none'; script-src 'unsafe-inline'"
    )
    asking.write_text(source + ASK, encoding="utf-8")
    document, _ = browse(asking, tmp_path, width, "--dump-dom")
    found = json.loads(html.unescape(re.findall(r'data-found="([^"]+)"', document)[0]))
    assert len(found["images"]) == source.count("<figure>") > 0
    assert all(found["images"])
    assert found["page"] <= found["window"]


def test_the_page_is_drawn_without_a_word_on_the_console(page: Path, tmp_path: Path) -> None:
    picture = tmp_path / "page.png"
    _, console = browse(page, tmp_path, 1200, f"--screenshot={picture}")
    assert console == []
    pixels = matplotlib.image.imread(picture)
    assert pixels.shape[1] == 1200
    assert pixels[..., :3].std() > 0.05


def test_a_page_that_loads_something_would_be_found(page: Path, tmp_path: Path) -> None:
    loading = tmp_path / "loading.html"
    source = page.read_text(encoding="utf-8")
    loading.write_text(source.replace("<main>", '<main><img src="http://127.0.0.1:9/x.png">'), encoding="utf-8")
    _, console = browse(loading, tmp_path, 1200, f"--screenshot={tmp_path / 'page.png'}")
    assert [line for line in console if "Content Security Policy" in line]
