"""Every CSV table.

- ``text``: open a CSV file
- ``points``: tables of points
- ``luna16``: LUNA16's tables
- ``lidc``: LIDC-IDRI's patients and ratings
- ``data_sets``: one data folder or several as one
- ``cutouts``: labelled cutouts, voxels and table
- ``hits``: which point lies on which nodule
- ``detected``: a detector's candidates, for a training
"""
