"""From tables and store to batches.

- ``candidates``: the lazy list of candidates
- ``splits``: training, validation and test by series
- ``sampler``: positives and negatives at a ratio
- ``cache``: the cached dataset
- ``cutouts``: the transform that reads a cutout
- ``augmentation``: all random transforms in one step
- ``seeds``: seeds by counter
"""
