"""Self-contained HTML pages: about a run, and about one CT.

- ``page``: the page about a run (resources/report.html.j2)
- ``scan_page``: the page about one CT (resources/scan.html.j2)
- ``places``: where points lie in the lungs
- ``gallery``: pictures of examples
- ``charts``: curves as SVG
- ``methods``: what a run did, in sentences to be quoted
"""
