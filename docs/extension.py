"""What the site does that Sphinx and MyST do not do by themselves.

- The list of links on an index page is also the navigation of the site.
- A rule has its number as its anchor.
- The directive `api` documents public names, each with all its parameters, from the docstrings.
- A rule in a docstring leads to its text.
- A picture of Mermaid, which forges draw, is a list: drawing it would need its 3 MB of JavaScript.
- A class that a signature names leads to its public name, wherever its file is.
"""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from typing import Any, ClassVar, get_type_hints

import attrs
from docutils import nodes
from docutils.parsers.rst import directives
from myst_parser.mdit_to_docutils.base import default_slugify
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective

ENTRY = re.compile(r"^- \[[^]]+\]\(([^):#]+)\.md\)", re.MULTILINE)
FORGE_ANCHOR = re.compile(r'^<a id="([rd]\d+)"></a>$', re.MULTILINE)
MERMAID = re.compile(r"^```mermaid\nflowchart TD\n(.*?)^```$", re.DOTALL | re.MULTILINE)
RULE = re.compile(r"\b[RD]\d+\b")


def anchor(title: str) -> str:
    """The anchor of a heading: that which forges give it, and of a rule its number."""
    rule = RULE.match(title)
    return rule[0].lower() if rule else default_slugify(title)


def change_source(_: Sphinx, page: str, source: list[str]) -> None:
    """Give an index page its navigation, and make the anchors that a page has for forges those of the site."""
    source[0] = FORGE_ANCHOR.sub(r"(\1)=", source[0])
    source[0] = MERMAID.sub(lambda picture: as_list(picture[1]), source[0])
    if page == "index" or page.endswith("/index"):
        entries = "\n".join(ENTRY.findall(source[0]))
        source[0] += f"\n```{{toctree}}\n:hidden:\n:maxdepth: 2\n\n{entries}\n```\n"


def as_list(flowchart: str) -> str:
    """The arrows of a flowchart: an item for each box, with those that its arrows lead to."""
    labels = dict(re.findall(r"^ *(\w+)\[(.+)\]$", flowchart, re.MULTILINE))
    below: dict[str, list[str]] = {}
    for upper, lower in re.findall(r"^ *(\w+) --> (\w+)$", flowchart, re.MULTILINE):
        below.setdefault(labels[upper], []).append(f"`{labels[lower]}`")
    return "\n".join(f"- `{upper}` → {', '.join(lower)}" for upper, lower in below.items())


class Api(SphinxDirective):
    """Documents public names of one module, in this order.

        ```{api} supervise
        Child
        Tree: root status subscribe
        ```

    A line has a name, and for a class its public methods and properties. With `:given:` the classes are shown without their
    constructors, because the library makes their instances.
    """

    has_content = True
    required_arguments = 1
    option_spec: ClassVar[dict[str, Any]] = {"given": directives.flag}

    def run(self) -> list[nodes.Node]:
        """The nodes of all names."""
        module = self.arguments[0]
        lines: list[str] = []
        for line in self.content:
            name, _, members = line.partition(":")
            lines += self._documented(module, name.strip(), members.split())
        return self.parse_text_to_nodes("\n".join(["````{eval-rst}", *lines, "````"]))

    def _documented(self, module: str, name: str, members: list[str]) -> list[str]:
        found = getattr(import_module(module), name)
        path = f"{module}.{name}"
        public_names(self.env)[f"{getattr(found, '__module__', '')}.{name}"] = path
        if inspect.isclass(found):
            show_types(found)
            if "given" in self.options:
                given(self.env).add(path)
            chosen = [f"   :members: {', '.join(members)}"] if members else []
            return [f".. autoclass:: {path}", *chosen, ""]
        if inspect.isroutine(found):
            return [f".. autofunction:: {path}", ""]
        return [
            f".. py:data:: {name}",
            f"   :module: {module}",
            "",
            *indented(as_rest(explanation(module, name))),
            "",
        ]


def show_types(cls: type[Any]) -> None:
    """Let a constructor that converts its arguments from anything name the types that it accepts."""
    if attrs.has(cls):
        types = get_type_hints(cls)
        wanted = {field.alias: types[field.name] for field in attrs.fields(cls) if field.init}
        shown = cls.__init__.__annotations__
        shown.update(
            {name: kind for name, kind in wanted.items() if shown.get(name) in ("object", "Any", object, Any)}
        )


def indented(text: str) -> list[str]:
    """The lines of a text within a directive."""
    return [f"   {line}" for line in text.splitlines()]


def explanation(module: str, name: str) -> str:
    """The string below the assignment of a constant, or below the member of an enumeration which it is."""
    value = getattr(import_module(module), name)
    homes = getattr(import_module(module), "_HOMES", {})
    home = next((f"{module}.{home}" for home, names in homes.items() if name in names), module)
    explained = ModuleAnalyzer.for_module(home).find_attr_docs()
    text = explained.get(("", name)) or explained[type(value).__name__, name]
    return "\n".join(text)


def public_names(env: BuildEnvironment) -> dict[str, str]:
    """The public path of each documented class or function, by the path of its file."""
    names: dict[str, str] = vars(env).setdefault("public_names", {})
    return names


def given(env: BuildEnvironment) -> set[str]:
    """The classes that are shown without a constructor."""
    classes: set[str] = vars(env).setdefault("given_classes", set())
    return classes


def change_signature(
    app: Sphinx, what: str, name: str, _: object, __: object, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Leave out the constructors of given classes, and the parameters that are for this library itself."""
    if what == "class":
        if name in given(app.env):
            return "", None
        if signature is not None:
            signature = re.sub(r", (origin|_node): [^,)]*", "", signature).replace(" -> None", "")
    return signature, returns


def as_rest(text: str) -> str:
    """A docstring's line as reStructuredText: a plural may follow a name, and the number of a rule leads to its text."""
    return RULE.sub(lambda rule: f":ref:`{rule[0]} <{rule[0].lower()}>`", text.replace("`s", r"`\ s"))


def before_napoleon(_: Sphinx, what: str, __: str, ___: object, ____: object, lines: list[str]) -> None:
    """Begin the text of a property with an empty line: Napoleon would take the words before a colon for its type."""
    lines[:] = [*([""] if what in ("attribute", "property") else []), *map(as_rest, lines)]


def after_napoleon(_: Sphinx, __: str, ___: str, ____: object, _____: object, lines: list[str]) -> None:
    """Let `StartFailed` in a list of errors lead to the error: an event has that name too."""
    lines[:] = [line.replace(":raises StartFailed:", ":raises ~supervise.StartFailed:") for line in lines]


def find_public(app: Sphinx, env: BuildEnvironment, node: Any, text: nodes.Node) -> nodes.Node | None:
    """Let a private path in a signature lead to the public name."""
    path = public_names(env).get(node.get("reftarget", ""))
    if path is None or node.get("refdomain") != "py":
        return None
    domain = env.get_domain("py")
    return domain.resolve_xref(env, node["refdoc"], app.builder, node["reftype"], path, node, text)


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.add_directive("api", Api)
    app.connect("source-read", change_source)
    app.connect("autodoc-process-signature", change_signature)
    app.connect("autodoc-process-docstring", before_napoleon, priority=400)
    app.connect("autodoc-process-docstring", after_napoleon, priority=600)
    app.connect("missing-reference", find_public)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
