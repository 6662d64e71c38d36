"""What a run leaves in its folder, without torch.

- ``record``: settings, series and calibration of a run
- ``history``: the scores of each epoch
- ``results``: metrics.json and the tables of results
"""
