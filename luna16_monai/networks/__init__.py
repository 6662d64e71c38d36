"""Networks, their weights, and other formats.

- ``nodule_net``: the classifier
- ``nodule_detector``: the detector
- ``weights``: reading and loading weights
- ``folding``: batch norms folded into convolutions
- ``precision``: bfloat16 on a CPU, where it is right
- ``bfloat16``: the detector scored in bfloat16
- ``backends``: device, compiled torch, OpenVINO
- ``export``: TorchScript, ONNX, OpenVINO
"""
