"""The page in a real browser: no request, no complaint, nothing wider than the window, text that can be read."""

import re

import pytest

import reports
from browser import browser, find_browser
from hgsp.report import compare, page
from hgsp.report.sources import read_sources

pytestmark = pytest.mark.skipif(
    find_browser() is None, reason="no Chromium: install it (apt-get install chromium), or set HGSP_BROWSER"
)
SIZES = {"laptop": (1280, 800), "phone": (390, 844)}
#: Contrast of every text with the page, by the formula of WCAG 2.
CONTRASTS = """(() => {
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const light = text => rgb(text).slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = element => {
    for (let e = element; e; e = e.parentElement) {
      const color = rgb(getComputedStyle(e).backgroundColor);
      if (color.length < 4 || color[3] > 0) return getComputedStyle(e).backgroundColor;
    }
    return "rgb(255, 255, 255)";
  };
  return [...document.querySelectorAll("p, td, th, li, dt, dd, span, h1, h2, h3, a, pre, summary, svg text")].map(e => {
    const style = getComputedStyle(e);
    const [a, b] = [light(e instanceof SVGElement ? style.fill : style.color), light(behind(e))];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  });
})()"""
#: Texts of a chart that leave it.
OUTSIDE = """[...document.querySelectorAll("svg text")].filter(text => {
  const [box, frame] = [text.getBoundingClientRect(), text.ownerSVGElement.getBoundingClientRect()];
  return box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1
    || box.bottom > frame.bottom + 1;
}).map(text => text.textContent)"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with browser(find_browser(), tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The pages of a result with everything, and of a comparison."""
    folder, both = tmp_path_factory.mktemp("result"), tmp_path_factory.mktemp("both")
    recovery = reports.recovery()
    content = reports.pruning(recovery=recovery, verdict={"name": "needs recovery", "reason": "perplexity x1.50"})
    reports.write_files(folder, losses=True, pruning=content, recovery=recovery, evaluation=reports.evaluation())
    page.write_report(folder)
    page.write_page(compare.comparison_of([read_sources(folder)] * 3), both)
    return {"result": folder / "report.html", "comparison": both / "report.html"}


@pytest.mark.parametrize("name", ["result", "comparison"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_page_asks_for_nothing_and_fits_its_window(tab, pages, name, size, dark):
    url = pages[name].as_uri()
    tab.open(url, *SIZES[size], dark=dark)
    assert tab.requests() == [url]
    assert tab.complaints() == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]
    assert tab.evaluate(OUTSIDE) == []
    contrasts = tab.evaluate(CONTRASTS)
    assert len(contrasts) > 100
    assert min(contrasts) >= 4.5  # WCAG 2, level AA


def test_print_opens_no_menu_and_cuts_no_chart(tab, pages):
    tab.open(pages["result"].as_uri(), 794, 1123, media="print")  # A4 at 96 dots per inch
    assert tab.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    widths = tab.evaluate("[...document.querySelectorAll('svg')].map(e => e.getBoundingClientRect().right)")
    assert widths
    assert max(widths) <= 794


def test_a_request_and_a_complaint_would_be_seen(tab, tmp_path):
    """The checks above hold because nothing is asked for, not because nothing is recorded."""
    document = "<img src='missing.png'><script>console.log('something')</script>"
    (tmp_path / "loud.html").write_text(document)
    tab.open((tmp_path / "loud.html").as_uri(), 800, 600)
    assert any(re.search(r"missing\.png$", url) for url in tab.requests())
    assert tab.complaints()
