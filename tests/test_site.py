"""The site and the report as a browser sees them: no error in the console, no link that leads nowhere, no request to the network, every picture there."""
import re, shutil, subprocess, sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from mser.core import InputError, project_root, write_json
from mser.page import notebook_page, write_report
from mser.report import save_figure, save_table, style
from mser.site import build_site, page_names, reading_order

ROOT = project_root()
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PAGES = sorted(page_names(ROOT/"nbs").values())
SAMPLE = ["index", "attention", "losses", "corpora.emodb", "stats", "experiments/in_domain", "cli", "api/index", "api/mser.model", "search", "genindex", "files/CHANGELOG"]


class Page(HTMLParser):
    "What a page points to, and what it can be pointed at."
    def __init__(self, path):
        super().__init__()
        self.links, self.anchors, self.loads = [], set(), []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.anchors.update(attributes[key] for key in ("id", "name") if attributes.get(key))
        if tag == "a" and "href" in attributes: self.links.append(attributes["href"])
        if tag in ("img", "script", "source", "iframe", "audio"): self.loads.append(attributes.get("src"))
        if tag == "link" and attributes.get("rel") in ("stylesheet", "icon", "preload"): self.loads.append(attributes.get("href"))


def broken_links(folder):
    "Every link and every loaded file below a folder of pages that is not there, anchors included."
    pages = {path: Page(path) for path in folder.rglob("*.html")}
    for path, page in pages.items():
        for link in filter(None, page.links + page.loads):
            if re.match(r"[a-z]+:", link): continue
            target, anchor = urldefrag(link)
            place = (path.parent/unquote(target.split("?")[0])).resolve() if target else path
            if place.is_dir() or not place.exists(): yield f"{path.relative_to(folder)} -> {link}"
            elif anchor and place in pages and unquote(anchor) not in pages[place].anchors: yield f"{path.relative_to(folder)} -> {link} (no such anchor)"


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None: pytest.skip(f"no browser here: none of {', '.join(BROWSERS)}")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        yield browser
        browser.close()


PICTURES = "() => [...document.images].filter(i => !(i.complete && i.naturalWidth > 0)).map(i => i.src.slice(0, 200))"
TOO_WIDE = "() => document.documentElement.scrollWidth - window.innerWidth"


def troubles(browser, path, width=1280, colours="light"):
    "What goes wrong when a page is opened."
    with browser.new_context(viewport={"width": width, "height": 900}, color_scheme=colours) as context:
        page, found = context.new_page(), []
        page.on("console", lambda message: message.type in ("error", "warning") and found.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: found.append(f"script: {error}"))
        page.on("request", lambda request: request.url.startswith(("file:", "data:", "blob:")) or found.append(f"network: {request.url}"))
        page.on("requestfailed", lambda request: found.append(f"missing: {request.url[:200]}"))
        page.goto(path.as_uri())
        page.evaluate("() => { for (const i of document.images) i.loading = 'eager' }")
        page.evaluate("() => Promise.all([...document.images].map(i => i.decode().catch(() => {})))")
        found += [f"picture: {source}" for source in page.evaluate(PICTURES)]
        if (wide := page.evaluate(TOO_WIDE)) > 0: found.append(f"{wide} pixels wider than a window of {width}")
        return found


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "The site, built once, in a process of its own, as `make docs` does."
    pytest.importorskip("sphinx", reason="Sphinx is not installed")
    out = tmp_path_factory.mktemp("site")/"_docs"
    done = subprocess.run([sys.executable, "-c", "import sys; from mser.site import build_site; build_site(out=sys.argv[1])", out], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    "A small report with a table, a figure and an executed notebook."
    out = tmp_path_factory.mktemp("report")
    numbers = pd.DataFrame({"row": ["linear probe", "full model"], "UA": [.626, .7]})
    save_table(out/"tables", "scores", numbers, numbers, "Scores of two rows.", "mser reproduce", "In domain")
    style()
    figure, axes = plt.subplots(figsize=(4, 2))
    axes.plot([0, 1])
    save_figure(figure, out/"figures", "line", "A line.", "A line that rises from 0 to 1", "mser reproduce", "In domain")
    plt.close(figure)
    (out/"notebooks").mkdir()
    shutil.copy(ROOT/"nbs"/"10_attention.ipynb", out/"notebooks")
    notebook_page(out/"notebooks"/"10_attention.ipynb")
    write_json(out/"report.json", REPORT)
    return write_report(out)


REPORT = {"title": "Small report", "profile": "smoke", "preset": "tuned", "mode": "pooled", "command": "mser reproduce", "simulated": "Corpora", "failures": [],
          "groups": ["In domain"], "notebooks": [{"name": "10_attention", "seconds": 1, "computed": 0}], "skipped": [], "provenance": {"python": "3"}}


def test_every_notebook_and_module_has_a_page(site):
    assert not [name for name in PAGES if not (site/f"{name}.html").exists()]
    modules = [p.relative_to(ROOT/"mser").with_suffix("").as_posix().replace("/", ".") for p in (ROOT/"mser").rglob("*.py") if p.name[0] != "_"]
    assert not [name for name in modules if not (site/"api"/f"mser.{name}.html").exists()]


def test_no_link_of_the_site_is_broken(site): assert not list(broken_links(site))


def test_pages_load_nothing_from_elsewhere(site):
    loaded = [load for path in site.rglob("*.html") for load in Page(path).loads if load]
    assert loaded and not [load for load in loaded if re.match(r"(https?:)?//", load)]


def test_directives_and_hidden_cells_are_not_shown(site):
    text = (site/"attention.html").read_text(encoding="utf-8")
    assert "#|" not in re.sub(r"<[^>]+>", "", text.split("<article")[1])
    assert "<math" in text and "$$" not in text


def test_search_finds_notebooks_and_definitions(browser, site):
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(f"{(site/'search.html').as_uri()}?q=vad_distance")
        page.wait_for_selector("#search-results li a")
        links = page.eval_on_selector_all("#search-results li a", "found => found.map(a => a.getAttribute('href'))")
    assert any(link.startswith("api/mser.attention.html") for link in links) and any(link.startswith("attention.html") for link in links)


@pytest.mark.parametrize("width, colours", [(1280, "light"), (390, "dark")])
def test_site_opens_without_trouble(browser, site, width, colours):
    found = {name: troubles(browser, site/f"{name}.html", width, colours) for name in SAMPLE}
    assert not {name: trouble for name, trouble in found.items() if trouble}


@pytest.mark.parametrize("width, colours", [(1280, "light"), (390, "dark")])
def test_report_opens_without_trouble(browser, report, width, colours): assert not troubles(browser, report, width, colours)


def test_no_link_of_the_report_is_broken(report): assert not list(broken_links(report.parent))


def test_notebook_of_the_report_opens_without_trouble(browser, report): assert not troubles(browser, report.parent/"notebooks"/"10_attention.html")


def test_a_page_that_is_broken_is_found(browser, tmp_path):
    (tmp_path/"a.html").write_text("<a href='b.html'>b</a><a href='#x'>x</a><img src='c.png'><script>undefined_name()</script><div style='width: 2000px'>wide</div>")
    assert len(list(broken_links(tmp_path))) == 3
    found = troubles(browser, tmp_path/"a.html")
    assert {t.split(":")[0] for t in found if ":" in t} >= {"script", "picture", "missing"} and any("wider" in t for t in found)


def test_index_lists_every_notebook(): assert "not in the index" not in reading_order((ROOT/"README.md").read_text(encoding="utf-8").replace("(nbs/", "("), page_names(ROOT/"nbs"))


def test_two_notebooks_of_one_name_are_refused(tmp_path):
    for name in ("1_a.ipynb", "2_a.ipynb"): shutil.copy(ROOT/"nbs"/"27_cluster.ipynb", tmp_path/name)
    with pytest.raises(InputError, match="two notebooks would be the page 'a'"): page_names(tmp_path)


def test_link_that_leads_nowhere_stops_the_build(tmp_path):
    pytest.importorskip("sphinx", reason="Sphinx is not installed")
    (tmp_path/"nbs").mkdir()
    shutil.copy(ROOT/"nbs"/"index.ipynb", tmp_path/"nbs")
    with pytest.raises(InputError, match="the site was not built"): build_site(tmp_path)
    assert not (tmp_path/"_docs").exists()
