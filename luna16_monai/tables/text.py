"""Open a CSV file and check its lines, before it is known which table it is."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO

# a file without line ends must not fill the memory before it is found to be no table
LONGEST_LINE = 1 << 20


@contextmanager
def open_table(path: Path | zipfile.Path) -> Iterator[Iterator[str]]:
    """Open a table; gives its lines, whatever their ends; a byte-order mark is dropped.

    Raises:
        ValueError: it is no text in UTF-8, a line is longer than a million characters, or its zip is damaged.
    """
    with named_errors(path), path.open("rb") as raw, io.TextIOWrapper(raw, "utf-8-sig", newline="") as stream:
        yield _lines(stream, path)


def require_columns(
    header: Sequence[str] | None, columns: Sequence[str], path: Path | zipfile.Path, cure: str | None = None
) -> list[int]:
    """Return the position of each column in a header; each has to stand there once.

    Args:
        header: the names in the file's first line; None of an empty file.
        columns: those that are wanted.
        path: of the table, for the message.
        cure: what the message advises; default: the columns to name.

    Raises:
        ValueError: names file and column.
    """
    names = list(header or ())
    _require_commas(names, columns, path)
    for column in columns:
        if names.count(column) != 1:
            what = "is missing" if column not in names else "stands there twice"
            raise ValueError(
                f"{path}, line 1: column {column} {what} (found: {', '.join(names)[:200]!r}): "
                f"{cure or 'the header must name ' + ', '.join(columns)}"
            )
    return [names.index(column) for column in columns]


def _require_commas(names: Sequence[str], columns: Sequence[str], path: Path | zipfile.Path) -> None:
    """Refuse a header whose columns are parted by something else, as spreadsheets of many languages write it."""
    for sign, what in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
        parts = {part.strip().strip('"') for name in names for part in name.split(sign)}
        if any(sign in name for name in names) and set(columns) & parts:
            raise ValueError(
                f"{path}, line 1: the columns are parted by {what}: save the table with commas between the columns, "
                "and points in the numbers"
            )


def _lines(stream: IO[str], path: Path | zipfile.Path) -> Iterator[str]:
    for number, line in enumerate(iter(partial(stream.readline, LONGEST_LINE + 1), ""), start=1):
        if len(line) > LONGEST_LINE:
            raise ValueError(f"{path}, line {number} has more than {LONGEST_LINE} characters: is this a CSV table?")
        yield line


@contextmanager
def named_errors(path: Path | zipfile.Path) -> Iterator[None]:
    """Tell which file could not be read as text, or unpacked."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error.reason}): save the table as CSV in UTF-8") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise ValueError(f"{path} is damaged, or no zip that can be read ({error}): fetch it again") from error


def is_series_uid(uid: str) -> bool:
    """Return whether this may become part of a file's name."""
    return 0 < len(uid) <= 200 and uid[0] != "." and uid.isprintable() and not set(uid) & set("/\\")


def no_series_uid(uid: str, where: str) -> str:
    """Return the message about a text that is no series identifier."""
    return f"{uid[:40]!r} ({where}) is no series identifier: a plain name without slashes was expected"
