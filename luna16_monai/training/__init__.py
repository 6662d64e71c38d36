"""What the bundles' YAML attaches to MONAI's engines.

- ``start``: what a training, a scoring or a prediction begins with
- ``metrics``: scores of an epoch
- ``detection``: scores, best epoch and gradients of the detector
- ``mining``: false positives of the detector on its training scans
- ``results``: what a run writes: model.pt of the best epoch, scores, history, run.json
- ``handlers``: progress, losses, profile
- ``checkpoints``: exact resume
- ``changes``: what may differ between a run and the call that goes on with it
- ``comparison``: whether a run goes on with the config that it began with
- ``distributed``: several processes
- ``seeds``: seeds of an epoch
- ``tracking``: MLflow
"""
