"""The ``luna16`` command.

- ``main``: collects the verbs, prints errors
- ``console``: what verbs share: exit codes, folders, results
- ``data``: phantom, download, doctor, prepare, verify
- ``scoring``: evaluate, compare, report
- ``prediction``: predict, review
- ``bundles``: export, bundle
- ``experiments``: crossval, tune
- ``demo``: make demo
"""
