"""A network on anybody's CT.

- ``challenge``: cases of a challenge, one by one or by HTTP
- ``classifier``: a bundle's network, points to probabilities
- ``benchmark``: weights on labelled cutouts
- ``views``: test-time flips and turns
- ``detect``: candidates of bare CTs, the work of ``luna16 detect``
- ``detect_many``: the same on a data folder, in several processes, on where it was stopped
- ``predict``: the work of ``luna16 predict``
- ``combination``: the probability of both stages together
- ``two_stages``: ``luna16 predict`` without a list: candidates detected and classified, CT by CT
- ``occlusion``: which voxels a probability depends on
- ``structured_report``: predictions as a DICOM structured report
- ``writer``: the table that ``run inference`` writes
"""
