"""The files of the page: complete, and only what its security policy allows."""

import re

from supervise.operate.page import HEADERS, page

FILES = {path: content.decode() for path, (_, content) in page().items()}


def test_every_file_that_another_one_names_is_served_and_no_other():
    """`index.html` names scripts and styles relative to `/`, a script its modules relative to itself."""
    named = {"index.html", *re.findall(r'(?:href|src)="page/([^"]+)"', FILES["index.html"])}
    for name, text in FILES.items():
        if name.endswith(".js"):
            named |= set(re.findall(r'from "\./([^"]+)"', text))
    assert named == FILES.keys()


def test_their_media_types():
    """A browser refuses a module with another one, since it must not guess."""
    types = {path.rpartition(".")[2]: media for path, (media, _) in page().items()}
    assert types == {
        "html": "text/html; charset=utf-8",
        "js": "text/javascript; charset=utf-8",
        "css": "text/css; charset=utf-8",
    }
    assert HEADERS["X-Content-Type-Options"] == "nosniff"


def test_nothing_comes_from_elsewhere_and_no_text_becomes_markup():
    """The policy forbids inline code, foreign addresses and markup from strings; the files do without, so that nothing breaks."""
    assert "'unsafe" not in HEADERS["Content-Security-Policy"]
    foreign = r"https?://(?!www\.w3\.org/2000/svg)"  # the name of SVG's namespace is no address
    markup = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function"
    for path, text in FILES.items():
        assert not re.search(foreign, text), path
        assert not re.search(markup, text), path
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]* src=)", FILES["index.html"])


def test_what_must_not_outlive_the_tab_is_not_stored():
    """The token stays in memory: no script knows of a place where it could be kept."""
    for path, text in FILES.items():
        assert not re.search(r"localStorage|sessionStorage|indexedDB|cookie", text), path
