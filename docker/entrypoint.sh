#!/bin/sh
# luna16 ...    the command
# training ...  MONAI's bundle run with the nodule bundle; the rest are overrides
# anything else is run as it stands
set -eu
if [ "${1:-}" = training ]; then
    shift
    config=$(python -c 'from luna16_monai.bundle import bundle_dir; print(bundle_dir() / "configs" / "train.yaml")')
    exec python -m monai.bundle run training --config_file "$config" "$@"
fi
exec "$@"
