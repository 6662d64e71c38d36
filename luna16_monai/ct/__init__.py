"""CT files to HU and geometry, without MONAI.

- ``opening``: open a CT of any format
- ``folders``: find CTs in a data folder
- ``metaimage``: .mhd and .mha
- ``nifti``: .nii and .nii.gz
- ``nrrd``: .nrrd
- ``dicom``: DICOM series
- ``dicom_slice``: one slice of a DICOM series
- ``dicom_pixels``: its voxels in HU
- ``spots``: bright spots in the lungs
- ``units``: whether voxels are HU
- ``checks``: sizes and voxels checked before they are trusted
- ``lungs``: the lungs in a CT
"""
