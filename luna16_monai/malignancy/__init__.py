"""Malignancy of nodules: labels and scores.

- ``labels``: classes from the readers' ratings
- ``size_baseline``: malignancy by size alone
- ``scores``: the network beside that baseline
"""
