"""Pictures of a tree, as declared or as it runs. A view changes nothing, and makes no decision.

`text` and `mermaid` are pure functions over specs and over `Status`; `live` keeps a picture on a terminal (extra `live`),
and `terminal` runs a tree with it. `timeline` makes lanes of events as data: `lanes` and `svg_timeline` draw them, and
`durations` prints tables of them.
"""
