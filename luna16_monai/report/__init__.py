"""Self-contained HTML pages: about a run, and about one CT.

- ``page``: the page about a run
- ``scan_page``: the page about one CT
- ``places``: where points lie in the lungs
- ``gallery``: pictures of examples
- ``charts``: curves as SVG
"""
