"""Networks, their weights, and other formats.

- ``nodule_net``: the classifier
- ``nodule_detector``: the detector
- ``weights``: reading and loading weights
- ``folding``: batch norms folded into convolutions
- ``precision``: bfloat16 on a CPU, where it is right
- ``backends``: device, compiled torch, OpenVINO
- ``bfloat16``: whether training in it is right and faster here
- ``export``: TorchScript, ONNX, OpenVINO
"""
