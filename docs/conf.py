"""How Sphinx makes the site from the Markdown pages of this folder: `poe site`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project = "trio-supervise"
author = "the authors of trio-supervise"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "extension"]
exclude_patterns: list[str] = []
nitpicky = True
# The names of other libraries lead nowhere, since the build is offline.
nitpick_ignore_regex = [(r"py:.*", r"(?!supervise|runners).*")]
# Type variables, and types of which a program uses only what the text of the signature says.
nitpick_ignore = [
    ("py:class", name)
    for name in (
        "runners.diagnosis.nvml.Nvml",
        "runners.hosts.Host",
        "supervise.operate.history.Entry",
        "supervise.sinks.prometheus.MoreMetrics",
        "supervise.sinks.prometheus._Tree",
        "supervise.sinks.systemd._Tree",
        "supervise.testing.faults.S",
        "supervise.testing.virtual.T",
    )
]

myst_heading_anchors = 4
myst_heading_slug_func = "extension.anchor"
myst_enable_extensions = ["deflist"]

default_role = "code"  # the docstrings have the single backticks of Markdown
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
maximum_signature_line_length = 70
python_display_short_literal_types = True
add_module_names = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = "trio-supervise"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
