"""Points and boxes in other programs' formats.

- ``formats``: all formats; which one a file has, and points read and written in any
- ``points``: points as every format gives them
- ``files``: what a format is; JSON read strictly
- ``scans``: the CTs that points belong to
- ``luna16``: our own tables
- ``grand_challenge``: grand-challenge's points
- ``monai_boxes``: the data list of MONAI's detection bundle
- ``slicer``: 3D Slicer's markups
- ``luna25``: LUNA25's cases and its training table
- ``lidc``: LIDC-IDRI's outlines into nodules
- ``lidc_xml``: LIDC-IDRI's readers' XML
- ``data_folders``: data folders from LIDC-IDRI and from LUNA25
"""
