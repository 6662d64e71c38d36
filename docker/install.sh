#!/bin/sh
# Installs luna16_monai from this source tree into a virtual environment, in the versions of constraints.txt, and makes
# the folders that it works in. What the Dockerfile runs; it works outside a container as well:
#   VENV=/opt/luna16 FOLDERS='/srv/runs' OWNER=1000:1000 docker/install.sh
#
#   VENV     where the environment goes; must be given
#   PYTHON   what makes it (python3)
#   EXTRAS   of pyproject.toml, separated by commas (baselines,dicom,export,report); empty installs none
#   FOLDERS  to make, separated by spaces; none by default
#   OWNER    whom they are given to, as chown has it; default: who runs this
# pip takes its own settings from the environment, such as PIP_INDEX_URL and PIP_CACHE_DIR.
set -eu
: "${VENV:?docker/install.sh: VENV is not set: name the folder of the environment}"
source=$(cd "$(dirname "$0")/.." && pwd)
extras=${EXTRAS-baselines,dicom,export,report}

"${PYTHON:-python3}" -m venv "$VENV"
"$VENV/bin/python" -m pip install --disable-pip-version-check --constraint "$source/constraints.txt" \
    "$source${extras:+[$extras]}"
"$VENV/bin/python" -m pip check

for folder in ${FOLDERS:-}; do
    mkdir -p "$folder"
    if [ -n "${OWNER:-}" ]; then
        chown "$OWNER" "$folder"
    fi
done
"$VENV/bin/luna16" --version
