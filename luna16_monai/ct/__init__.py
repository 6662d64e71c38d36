"""CT files to HU and geometry, without MONAI.

- ``opening``: open a CT of any format
- ``folders``: find CTs in a data folder
- ``metaimage``: .mhd and .mha
- ``nifti``: .nii and .nii.gz
- ``dicom``: DICOM series
- ``checks``: sizes and voxels checked before they are trusted
- ``lungs``: the lungs in a CT
"""
