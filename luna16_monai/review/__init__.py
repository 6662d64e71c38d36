"""A local page to decide on candidates.

- ``session``: candidates, pictures, decisions
- ``server``: the HTTP server
- ``decisions``: the table of decisions
"""
