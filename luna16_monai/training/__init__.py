"""What the bundles' YAML attaches to MONAI's engines.

- ``start``: claim the output folder
- ``metrics``: scores of an epoch
- ``detection``: scores, best epoch and gradients of the detector
- ``results``: what a run writes
- ``handlers``: progress, losses, profile
- ``checkpoints``: exact resume
- ``changes``: what may differ between a run and the call that goes on with it
- ``distributed``: several processes
- ``seeds``: seeds of an epoch
- ``tracking``: MLflow
"""
