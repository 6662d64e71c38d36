"""Config, folders and command line of MONAI bundles.

- ``config``: the bundle's config, its overrides and checks
- ``overrides``: what overrides mean, and which are refused
- ``folders``: where bundles lie, copying, trust
- ``command``: the call of ``python -m monai.bundle run``
"""
