"""Grids, boxes and planes in a volume.

- ``grid``: index and world coordinates
- ``volume``: a volume and its cutouts
- ``slices``: planes as pictures
"""
