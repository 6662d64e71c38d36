"""The ``luna16`` command.

- ``main``: collects the verbs, runs one, prints errors
- ``console``: what verbs share: options, folders, trust in a bundle, results
- ``data``: phantom, download, doctor, prepare, verify
- ``scoring``: evaluate, compare, benchmark, report
- ``detection``: detect
- ``prediction``: predict
- ``pages``: the page of ``predict --report``
- ``reviewing``: review
- ``exchange``: convert, challenge
- ``bundles``: export, bundle
- ``experiments``: crossval, tune
- ``demo``: demo
"""
