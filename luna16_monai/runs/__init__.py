"""What a run leaves in its folder, without torch.

- ``folder``: the names of its files, and the records that they hold
- ``results``: metrics.json and the tables of results
- ``seen``: which series weights were trained on
"""
