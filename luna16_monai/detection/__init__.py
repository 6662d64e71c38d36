"""From a CT to nodule candidates: what the detector learns from, and how its output is read.

- ``targets``: annotations as maps on the network's grid
- ``crops``: the boxes that are trained on, drawn by counter, and the scans that are validated on
- ``loss``: the focal loss of the heat, and the error of offset and diameter
- ``tiles``: the network over a whole lung box, its memory bounded
- ``peaks``: which cells of the output become candidates
"""
