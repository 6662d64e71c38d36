"""One self-contained HTML page about a run.

- ``page``: the page
- ``gallery``: pictures of examples
- ``charts``: curves as SVG
"""
