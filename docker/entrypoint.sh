#!/bin/sh
# luna16 ...    the command
# training ...  MONAI's bundle run with the nodule bundle; the rest are overrides: training --max_epochs 10
# challenge ... luna16 challenge with /input and /output: one case, or with --serve a server
# anything else is run as it stands: tensorboard --logdir /runs
set -eu

# A read-only root and a user without a home leave nothing to write to but the temporary folder.
if [ ! -d "${HOME:-}" ] || [ ! -w "$HOME" ]; then
    HOME=$(mktemp -d "${TMPDIR:-/tmp}/luna16.XXXXXX")
    export HOME
fi
# Where they look for a home in the user database, which does not know every user.
export XDG_CACHE_HOME="${XDG_CACHE_HOME:-$HOME/.cache}"
export MPLCONFIGDIR="${MPLCONFIGDIR:-$XDG_CACHE_HOME/matplotlib}"
export TORCHINDUCTOR_CACHE_DIR="${TORCHINDUCTOR_CACHE_DIR:-$XDG_CACHE_HOME/torchinductor}"
export TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-$XDG_CACHE_HOME/triton}"
export NUMBA_CACHE_DIR="${NUMBA_CACHE_DIR:-$XDG_CACHE_HOME/numba}"

if [ $# -eq 0 ]; then
    set -- luna16 --help
elif [ "$1" = training ]; then
    shift
    package=$(python -c 'import luna16_monai; print(luna16_monai.__path__[0])')
    # as bundle_dir() in luna16_monai/bundle/folders.py, which takes seconds to import
    config=$package/bundles/nodule_classification/configs/train.yaml
    if [ ! -f "$config" ]; then
        config=${package%/*}/bundles/nodule_classification/configs/train.yaml
    fi
    set -- python -m monai.bundle run training --config_file "$config" "$@"
elif [ "$1" = challenge ]; then
    set -- luna16 "$@"
fi
exec "$@"
