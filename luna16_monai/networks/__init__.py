"""Networks, their weights, and other formats.

- ``nodule_net``: the classifier
- ``nodule_detector``: the detector
- ``weights``: reading and loading weights
- ``folding``: batch norms folded into convolutions
- ``backends``: device, compiled torch, OpenVINO
- ``export``: TorchScript, ONNX, OpenVINO
"""
