"""What the bundles' YAML attaches to MONAI's engines.

- ``start``: claim the output folder
- ``metrics``: scores of an epoch
- ``detection``: scores, best epoch and gradients of the detector
- ``results``: what a run writes
- ``handlers``: progress, losses, profile
- ``checkpoints``: exact resume
- ``distributed``: several processes
- ``seeds``: seeds of an epoch
- ``tracking``: MLflow
"""
