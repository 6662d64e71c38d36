"""What a run leaves in its folder, without torch.

- ``folder``: the names of its files, and the records that they hold
- ``results``: metrics.json and the tables of results
- ``calibrated``: calibration.json, what luna16 calibrate found out
- ``seen``: which series weights were trained on
"""
