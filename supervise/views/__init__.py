"""Pictures of a tree: as it was declared, and as it stands. A view changes nothing, and knows no decision.

`text` and `mermaid` are pure functions over specs and over `Status`; `live` keeps a picture on a terminal (extra `live`),
and `terminal` runs a tree under one.
"""
