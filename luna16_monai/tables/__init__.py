"""Every CSV table.

- ``text``: open a CSV file
- ``points``: tables of points
- ``luna16``: LUNA16's tables
- ``lidc``: LIDC-IDRI's patients and ratings
- ``drawn``: what the scans of a drawn data set were drawn from
- ``hits``: which point lies on which nodule
"""
