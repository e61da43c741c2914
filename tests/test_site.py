"""The website: it builds without a warning, its links lead somewhere, it fetches nothing, and a browser shows it.

The browser's pictures of the pages are kept in build/screenshots, for a person to look at.
"""

import ast
import posixpath
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytestmark = pytest.mark.extra
for package in ("sphinx", "myst_nb", "furo"):
    pytest.importorskip(package, reason="the website needs the extra [site]")

ROOT = Path(__file__).resolve().parents[1]
SCREENSHOTS = ROOT / "build" / "screenshots"
REPOSITORY = "https://github.com/someone/tfpar"
PAGES = ["00_why", "01_prepare", "05_replicas", "zh/00_why", "zh/06_workers"]
PAGES = [f"notebooks/{page}" for page in PAGES] + ["README", "tutorial/traps", "tutorial/zh/traps"]
PAGES = ["tutorial/site/index", "tutorial/site/zh/index", "tutorial/site/api", *PAGES]
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"))


class Page(HTMLParser):
    """What a page has and names: anchors, links, what a browser loads for it, and its text."""

    def __init__(self, path):
        super().__init__()
        self.path, self.anchors, self.links, self.loads, self.text = path, {""}, [], [], ""
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors |= {found[name] for name in ("id", "name") if found.get(name)}
        if tag == "a" and "href" in found:
            self.links.append((found.get("class") or "", found["href"]))
        loads = found.get("href") if tag == "link" else found.get("src")
        self.loads += [loads] if loads else []

    def handle_data(self, text):
        self.text += text


def built(place, *options):
    """Build the website; every warning is an error."""
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-c", "tutorial/site", *options]
    done = subprocess.run([*command, ".", str(place)], cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-5000:]
    return {page.path.relative_to(place).as_posix(): page for page in map(Page, place.rglob("*.html"))}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("website") / "private"


@pytest.fixture(scope="module")
def pages(place):
    return built(place, "-d", str(place.parent / "read"))


@pytest.fixture(scope="module")
def public(pages, place):
    return built(place.with_name("public"), "-d", str(place.parent / "read"), "-D", f"repository={REPOSITORY}")


def links_that_fail(page, pages):
    """Return the local links of a page to a file or an anchor that is not there."""
    failed, anchors = [], {each.path: each.anchors for each in pages}
    for link in [*page.loads, *(link for _, link in page.links)]:
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            continue
        target = Path(posixpath.normpath(page.path.parent / unquote(parts.path))) if parts.path else page.path
        if not target.is_file() or (parts.fragment and unquote(parts.fragment) not in anchors.get(target, ())):
            failed.append(link)
    return failed


def test_local_links_and_anchors_lead_somewhere(pages):
    assert len(pages) > 2 * len(NOTEBOOKS)
    assert sum(len(page.links) for page in pages.values()) > 1000
    found = {name: links_that_fail(page, pages.values()) for name, page in pages.items()}
    assert not {name: failed for name, failed in found.items() if failed}


def test_a_link_that_fails_is_found(tmp_path):
    links = "".join(f'<a href="{to}"></a>' for to in ("other.html#there", "other.html#not", "https://example.org"))
    (tmp_path / "other.html").write_text('<p id="there">')
    (tmp_path / "page.html").write_text(f'{links}<img src="none.png">')
    page, other = Page(tmp_path / "page.html"), Page(tmp_path / "other.html")
    assert links_that_fail(page, [page, other]) == ["none.png", "other.html#not"]


def test_nothing_is_loaded_from_elsewhere(pages, place):
    loads = [load for page in pages.values() for load in page.loads]
    assert len(loads) > 200
    assert not [load for load in loads if urlsplit(load).netloc]
    styles = [path.read_text() for path in place.rglob("*.css")]
    assert styles and not [found for style in styles for found in re.findall(r"(?:@import|url\()[^;)]*//[^;)]*", style)]


def test_every_notebook_is_a_page_in_both_languages_in_order(pages):
    for folder in ("notebooks", "notebooks/zh"):
        hrefs = [link for _, link in pages[f"{folder}/{NOTEBOOKS[0]}.html"].links]
        following = [name for link in hrefs for name in NOTEBOOKS if link == f"{name}.html"]
        assert list(dict.fromkeys(following)) == NOTEBOOKS[1:]
    assert (ROOT / "notebooks" / f"{NOTEBOOKS[0]}.ipynb").read_text().count("image/png") > 0


def language_switch(page):
    (link,) = [link for kind, link in page.links if kind == "other-language"]
    return posixpath.normpath(posixpath.join(posixpath.dirname(page.path), link))


def test_each_page_leads_to_itself_in_the_other_language(pages, place):
    pairs = [(f"notebooks/{name}", f"notebooks/zh/{name}") for name in NOTEBOOKS]
    pairs += [(f"tutorial/{name}", f"tutorial/zh/{name}") for name in ("keras", "pytorch", "traps")]
    for english, chinese in [*pairs, ("tutorial/site/index", "tutorial/site/zh/index")]:
        assert language_switch(pages[f"{english}.html"]) == str(place / f"{chinese}.html")
        assert language_switch(pages[f"{chinese}.html"]) == str(place / f"{english}.html")
    assert language_switch(pages["tutorial/site/api.html"]) == str(place / "tutorial/site/zh/index.html")


def test_the_search_of_a_chinese_page_is_chinese(pages, place):
    for name in ("notebooks/zh/00_why.html", "tutorial/site/zh/index.html", "tutorial/site/zh/search.html"):
        (form,) = re.findall(r'<form [^>]*action="([^"]*)"', (place / name).read_text())
        found = posixpath.normpath(posixpath.join(posixpath.dirname(name), form)) if form != "#" else name
        assert found == "tutorial/site/zh/search.html"
    assert 'action="../search.html"' in (place / "notebooks/00_why.html").read_text()
    assert any(load.split("?")[0].endswith("_static/sphinx.js") for load in pages["tutorial/site/zh/search.html"].loads)


def test_the_api_has_every_name_of_the_faces(pages):
    wanted = set()
    for path in (ROOT / "tfpar").rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                wanted |= {f"{module}.{name}" for name in ast.literal_eval(node.value)}
    anchors = pages["tutorial/site/api.html"].anchors
    assert len(wanted) > 15
    # Constants are described where they are used: autodoc leaves out what has no docstring.
    assert not {name for name in wanted if not ({name, f"module-{name}"} & anchors or name.split(".")[-1].isupper())}


def test_front_pages_begin_as_the_readme(pages):
    readme = (ROOT / "README.md").read_text()
    commands = re.findall(r"^python3 -m venv .*$", readme, re.M)
    english, chinese = (pages[f"tutorial/site/{name}index.html"].text for name in ("", "zh/"))
    assert len(commands) == 2
    assert all(command in text for command in commands for text in (english, chinese))
    settings = re.search(r"`tfpar train photos (.*)`", readme)[1]  # the first, whose result the README tells
    assert all(f"tfpar train data/photos {settings}\n" in text for text in (english, chinese))
    assert "with the same bits on any number of replicas" in english.split(commands[0])[0]


def test_links_to_the_repository_need_the_setting(pages, public):
    private = [link for page in pages.values() for _, link in page.links]
    assert not [link for link in private if REPOSITORY in link or "colab" in link or "/edit/" in link]
    links = [link for page in public.values() for _, link in page.links]
    named = {re.sub(r"#.*", "", link) for link in links if link.startswith(REPOSITORY + "/")}
    files = {link.removeprefix(REPOSITORY).split("/main/")[1] for link in named}
    assert not [name for name in files if not (ROOT / name).is_file()]
    assert {"tutorial/en/00_why.md", "tutorial/zh/00_why.md", "tutorial/traps.md", "tfpar/models/decay.py"} <= files
    for name in ("tutorial/site/index", "notebooks/00_why"):
        assert REPOSITORY in [link for _, link in public[f"{name}.html"].links]
    colab = "https://colab.research.google.com/github/someone/tfpar/blob/main/notebooks/zh/00_why.ipynb"
    assert colab in [link for _, link in public["notebooks/zh/00_why.html"].links]


# ---- in a browser


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver", reason="the browser needs the extra [site]")
    from selenium.webdriver.chrome.service import Service

    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (program and driver):
        pytest.skip("needs Chromium: apt-get install chromium chromium-driver fonts-noto-cjk")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for option in ("--headless=new", "--no-sandbox", "--hide-scrollbars", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(option)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    with webdriver.Chrome(options=options, service=Service(driver)) as found:
        yield found


def show(browser, url, *, width, dark=False):
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(url)


# Boxes for missing glyphs all look the same.
GLYPHS = """
const canvas = document.createElement("canvas"), pen = canvas.getContext("2d", {willReadFrequently: true});
return new Set(Array.from("副本训练分片", character => {
  pen.clearRect(0, 0, 99, 99);
  pen.font = "40px " + getComputedStyle(document.querySelector("article")).fontFamily;
  pen.fillText(character, 9, 60);
  return pen.getImageData(0, 0, 99, 99).data.join();
})).size
"""


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", PAGES)
def test_a_browser_shows_the_page(browser, pages, place, name, width):
    for dark in (True, False):
        show(browser, (place / f"{name}.html").as_uri(), width=width, dark=dark)
        picture = f"{name.replace('/', '_')}_{width}{'_dark' * dark}.png"
        assert browser.save_screenshot(str(SCREENSHOTS / picture))
        # Pictures follow the system's dark mode: so must the page.
        paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", paper)[:3])) < 3 * 128) == dark
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert not browser.get_log("browser")
    pictures = "Array.from(document.images)"
    count = browser.execute_script(f"return {pictures}.length")
    assert (
        browser.execute_script(f"return {pictures}.filter(one => one.complete && one.naturalWidth > 0).length") == count
    )
    assert count or not name.startswith("notebooks")
    assert browser.execute_script("return document.documentElement.lang") == ("zh-CN" if "/zh/" in name else "en")
    assert browser.execute_script(GLYPHS) == 6


@pytest.mark.parametrize(
    "words, wanted",
    [
        ("ordered sum of gradients", "notebooks/05_replicas.html"),
        ("steps.install", "tutorial/site/api.html"),
        ("全归约", "notebooks/zh/00_why.html"),
        ("杀掉一个工作进程", "notebooks/zh/06_workers.html"),
    ],
)
def test_the_search_works_without_a_server(browser, pages, place, words, wanted):
    chinese = "/zh/" in wanted
    page = place / ("tutorial/site/zh/search.html" if chinese else "search.html")
    show(browser, f"{page.as_uri()}?q={words}", width=1280)
    heading = "return document.querySelector('#search-results h2').innerText"
    assert browser.execute_script(heading) in (
        ("正在搜索中", "搜索结果") if chinese else ("Searching", "Search Results")
    )
    script = "return Array.from(document.querySelectorAll('#search-results li a'), link => link.href)"
    found = []
    for _ in range(50):
        found = browser.execute_script(script)
        if any(wanted in link for link in found):
            return
        browser.execute_async_script("setTimeout(arguments[0], 100)")
    pytest.fail(f"{wanted} is not among {found}")
