"""Get the data, and check the machine.

- ``download``: fetch LUNA16
- ``lidc``: fetch LIDC-IDRI's CTs
- ``fetching``: one file over HTTP
- ``archives``: unpack archives safely
- ``data_checks``: what doctor looks at in data and stores
- ``doctor``: check versions, data and store
"""
