"""The page of the operating app: its files, and the headers that a browser must get with them."""

from __future__ import annotations

from importlib.resources import files
from pathlib import PurePath
from typing import Final

HEADERS: Final = {
    # The page has its own scripts, styles and requests, and nothing else: no inline code, no frame around it, and no
    # way by which a text could become markup (trusted types).
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
"""The headers of every file of the page."""

_TYPES: Final = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}


def page() -> dict[str, tuple[str, bytes]]:
    """The files of the page by their names: the media type and the bytes of each.

    The app serves `index.html` at `/` and all below `/page/`. Every address in them is relative, so that a proxy may serve the app
    below a path of its own that ends with a slash.
    """
    found: dict[str, tuple[str, bytes]] = {}
    for file in files(__name__).iterdir():
        media = _TYPES.get(PurePath(file.name).suffix)
        if media is not None:
            found[file.name] = f"{media}; charset=utf-8", file.read_bytes()
    return found
