"""Many trainings: cross-validation and search.

- ``folds``: the plan of a cross-validation
- ``crossval``: run and pool the folds
- ``search``: the plan of a search
- ``tune``: run the trials
- ``detection_demo``: what the demo scores of the detector
"""
