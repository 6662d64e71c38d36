"""The volume store: prepared CTs.

- ``index``: the store's index
- ``source``: the files that a volume was made of
- ``reading``: read cutouts, verify
- ``preparation``: how a CT becomes a volume
- ``prepare``: prepare a data folder
- ``reader``: CTs for MONAI's LoadImage
- ``resampling``: spacing of a volume
- ``in_memory``: the same without files
"""
