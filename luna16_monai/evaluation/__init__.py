"""LUNA16's official scores, without torch or MONAI.

- ``by_data_set``: scores of each of several data sets
- ``submission``: evaluate and compare submissions, from their tables to their scores
- ``match``: what becomes of each mark
- ``froc``: FROC and CPM
- ``ranks``: sensitivity by rank, and the error of diameters
- ``lost``: nodules outside a lung mask
- ``roc``: ROC AUC and average precision
- ``benchmark``: AUC and share found of labelled candidates, by size and in difference
- ``false_calls``: a threshold for a wanted number of false calls
- ``bootstrap``: resampling of scans
- ``calibration``: calibrated probabilities, operating points
- ``baselines``: simple classifiers to compare with
"""
