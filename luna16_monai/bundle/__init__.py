"""Config, folders and command line of MONAI bundles.

- ``bases``: the files that a config builds on, configs laid over each other
- ``config``: the running config, its overrides and checks
- ``overrides``: what overrides mean, and which are refused
- ``folders``: where bundles lie, copying, trust
- ``command``: the call of ``python -m monai.bundle run``
- ``moved``: names of before the package had packages
"""
