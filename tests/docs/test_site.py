"""The documentation site: it builds without warnings, all its links resolve, and it needs no network."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest

from megatron_alum.config.fields import options_of
from tests.docs.pages import DOCS, DOCUMENTS, ROOT, name_of, prose
from tests.test_architecture import MACHINE_PATH

from program_options import PROGRAMS, configuration_of  # isort: skip  (found through pages.py)


class Page(HTMLParser):
    """Targets, links and loaded files of one HTML page."""

    def __init__(self, text):
        super().__init__()
        self.anchors, self.links, self.loaded = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.anchors |= {values[name] for name in ("id", "name") if values.get(name)}
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        if tag in ("script", "img", "iframe") and values.get("src"):
            self.loaded.append(values["src"])
        if tag == "link" and values.get("rel") in ("stylesheet", "icon", "preload"):
            self.loaded.append(values["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """{path: Page} of the site, built as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-d", folder / "doctrees"]
    done = subprocess.run([*command, DOCS, folder / "html"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return {path.resolve(): Page(path.read_text()) for path in (folder / "html").rglob("*.html")}


def broken(pages, links_of):
    """Local links of `pages` {path: Page} to a missing file or anchor."""
    found = []
    for path, page in pages.items():
        for link in links_of(page):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists():
                found.append(f"{path.name} -> {link}")
            elif target in pages and parts.fragment and unquote(parts.fragment) not in pages[target].anchors:
                found.append(f"{path.name} -> {link}: no such place")
    return found


def test_links_and_places_exist(site):
    assert len(site) > 20
    assert sum(len(page.links) for page in site.values()) > 1000
    assert not broken(site, lambda page: page.links)


def test_nothing_is_loaded_from_elsewhere(site):
    assert not [name for page in site.values() for name in page.loaded if urlsplit(name).netloc]
    assert not broken(site, lambda page: page.loaded)


def test_no_page_names_a_machine(site):
    assert not [path.name for path in site if MACHINE_PATH.search(path.read_text()) and path.name != "changelog.html"]


def test_a_broken_link_is_seen(tmp_path):
    for name in ("a.html", "there.html"):
        (tmp_path / name).write_text("")
    page = Page('<p id="here"><a href="#here"><a href="#gone"><a href="there.html"><a href="absent.html">')
    assert broken({tmp_path / "a.html": page}, lambda page: page.links) == [
        "a.html -> #gone: no such place",
        "a.html -> absent.html",
    ]


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_flag_has_its_place(site, program):
    """Other pages, and people's bookmarks, link to a flag."""
    anchors = set().union(*(page.anchors for page in site.values()))
    flags = {option.flag for option in options_of(configuration_of(program))}
    if program in ("tools/inspect_shards.py", "tools/estimate_memory.py"):  # whose page refers to that of pre-training
        flags -= {option.flag for option in options_of(configuration_of("pretrain_bert_alum.py"))}
    missing = [flag for flag in flags if f"cmdoption-{re.sub('[/ ]', '-', program)}-{flag.lstrip('-')}" not in anchors]
    assert not missing, sorted(anchor for anchor in anchors if "cmdoption" in anchor)[:5]


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if DOCS not in path.parents], ids=name_of)
def test_links_of_documents_beside_the_site(path):
    """Files that are read in the repository: README, examples, csrc."""
    links = [urlsplit(link) for link in re.findall(r"\]\(([^)\s]+)\)", prose(path.read_text()))]
    local = [(path.parent / link.path if link.path else path, link.fragment) for link in links if not link.scheme]
    assert not [target for target, _ in local if not target.exists()]
    assert not [(target, place) for target, place in local if place and place not in places(target)]


def places(path):
    """What a reader's browser makes of the headings of a Markdown file."""
    headings = re.findall(r"^#+ (.*)$", prose(path.read_text()), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
