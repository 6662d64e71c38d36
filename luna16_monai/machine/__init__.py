"""Files, processes and jobs of the machine.

- ``files``: whole files or none
- ``folder_lists``: settings that name several folders
- ``memory``: keep freed memory between training steps
- ``errors``: an error as one line
- ``extras``: whether a package of an extra is installed, and an import that does without some packages
- ``platforms``: what Linux and macOS give, and the line elsewhere
- ``progress``: bars of steps deep inside a computation
- ``claims``: a folder belongs to its settings
- ``processes``: worker processes
- ``serving``: HTTP servers that end when their requests have
- ``cluster``: tasks on a Ray cluster
- ``jobs``: long jobs as commands
"""
