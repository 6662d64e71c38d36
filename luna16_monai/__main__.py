"""``python -m luna16_monai`` is the ``luna16`` command."""

import sys

from luna16_monai.cli.main import main

sys.exit(main())
