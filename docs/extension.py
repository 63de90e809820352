"""What the site does that Sphinx and MyST do not: contents from the links of index pages, and short anchors for rules."""

from __future__ import annotations

import re
from typing import Any

from myst_parser.mdit_to_docutils.base import default_slugify
from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

ENTRY = re.compile(r"^- \[[^]]+\]\(([^):#]+)\.md\)", re.MULTILINE)
FORGE_ANCHOR = re.compile(r'^<a id="[rd]\d+"></a>\n', re.MULTILINE)
RULE = re.compile(r"([RD]\d+): ")


def anchor(title: str) -> str:
    """The anchor of a heading: that which forges give it, and of a rule its number."""
    rule = RULE.match(title)
    return rule[1].lower() if rule else default_slugify(title)


def change_source(_: Sphinx, page: str, source: list[str]) -> None:
    """Make what a forge shows right what Sphinx shows right.

    An index page lists its pages as links; here the list becomes the navigation too. A page may write an anchor for a forge;
    `anchor` has made the same one here.
    """
    source[0] = FORGE_ANCHOR.sub("", source[0])
    if page == "index" or page.endswith("/index"):
        entries = "\n".join(ENTRY.findall(source[0]))
        source[0] += f"\n```{{toctree}}\n:hidden:\n:maxdepth: 2\n\n{entries}\n```\n"


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.add_lexer("mermaid", TextLexer)
    app.connect("source-read", change_source)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
