"""The synthetic data set in LUNA16's layout.

- ``data_set``: plan and write the data set
- ``scan``: draw one scan
- ``anatomy``: the chest
- ``trees``: vessels and bronchi
- ``lesions``: shapes of nodules
- ``nodules``: put nodules into the chest
- ``mimics``: put look-alikes into the chest
- ``candidates``: the candidate list
- ``scanner``: blur, noise and artefacts
- ``drawn``: what each scan is drawn from
- ``background``: nodules in a real CT
- ``estimates``: blur and noise of a real CT
"""
