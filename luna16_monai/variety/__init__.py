"""Recipe 3 of the drawn set: scans as different as those of many hospitals.

- ``settings``: what may be in a scan, and how often
- ``shapes``: the shapes of nodules that it draws from
- ``protocol``: slices, pixels, kernel and dose of a scan
- ``nodules``: large, hollow, spiculated, calcified and faint nodules
- ``disease``: emphysema, fibrosis, consolidation
- ``look_alikes``: what leads the false positives of real CTs
- ``body``: liver, skin, table and arms around a lung
- ``scan``: draw one scan
- ``data_set``: plan and write the data set
"""
