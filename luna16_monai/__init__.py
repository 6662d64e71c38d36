"""Train, evaluate and ship a lung-nodule classifier on LUNA16, with MONAI."""

__version__ = "0.2.0"
