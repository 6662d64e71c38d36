"""The command line of ``python -m monai.bundle run``."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


def command(run_id: str, configs: Sequence[Path], settings: Mapping[str, str], processes: int = 1) -> tuple[str, ...]:
    """Return a call of ``monai.bundle run`` as a user would type it; of several processes, through torchrun."""
    files = str(configs[0]) if len(configs) == 1 else "[" + ",".join(f"'{path}'" for path in configs) + "]"
    words = [sys.executable, "-W", "ignore"]
    if processes > 1:
        words += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    words += ["-m", "monai.bundle", "run", run_id, "--config_file", files]
    return (*words, *(word for key, value in settings.items() for word in (f"--{key}", value)))
