"""Fetching LUNA16: its published archives and tables, checked, unpacked into the layout that all else reads.

Where they lie stands in `SITE` and `RECORDS` and nowhere else. These were taken from public descriptions and never
tried, for want of a way to the site: to be confirmed by whoever has the records at hand. The addresses of the files,
their sizes and their checksums are what a record itself says.

Of what a server sends nothing is believed before it has the length and the checksum that the record told, and an
archive is unpacked member by member under names of our own. The lung masks (seg-lungs-LUNA16.zip) are not fetched,
since nothing here reads them. Rejected: the zip files' own names as they are (a name can lead out of the folder), and
reading members over the network, which no checksum of the record would cover.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

from filelock import FileLock, Timeout
from tqdm import tqdm

from luna16_monai.ct.folders import SUBSETS, subset_folder
from luna16_monai.machine.files import write_json
from luna16_monai.setup.archives import TABLES, in_gb, unpack
from luna16_monai.setup.fetching import (
    Archive,
    Interruption,
    fetch,
    open_address,
    persist,
    read_block,
    require_web,
    size_of,
    skip_on_bar,
)

logger = logging.getLogger(__name__)

SITE = "https://zenodo.org/api"
RECORDS = {
    3723295: (*TABLES, *(f"{subset_folder(number)}.zip" for number in SUBSETS[:7])),
    4121926: tuple(f"{subset_folder(number)}.zip" for number in SUBSETS[7:]),
}
"""The archives of each Zenodo record."""
ASIDE = ".download"
"""Folder below the output for what is not finished, and for what is known of the finished archives."""
EXPANSION = 2
"""How much larger than its archive a subset is taken to be before the archive itself can tell."""
LARGEST_ARCHIVE, LARGEST_RECORD = 40 * 10**9, 10 * 10**6


def download(
    output: Path,
    subsets: Sequence[int] | None = None,
    base_url: str | None = None,
    progress: bool = True,
    keep_archives: bool = False,
) -> dict[str, Any]:
    """Fetch LUNA16's tables and subsets; goes on where it was stopped, and fetches nothing that is there.

    An archive that lies in the output folder under its published name is taken instead of being fetched, if its
    checksum is right.

    Args:
        output: the data folder; made if need be.
        subsets: of 0 to 9; None takes all, and with none only the tables are fetched.
        base_url: a mirror of `SITE`: ``<base_url>/records/<number>`` answers as Zenodo does. Its links to files are
            relative to that address, or whole; whole ones that lead to `SITE` lead to the mirror instead.
        progress: whether to show a bar.
        keep_archives: leave the archives in the output folder after they are unpacked.

    Returns:
        JSON-ready: ``output``, ``subsets``, ``series`` (CTs of these subsets), ``fetched`` and ``there`` (archives),
        ``bytes`` (of those fetched).

    Raises:
        ValueError: a subset or an address that cannot be; a record, an archive or a file in its place that is not what
            it should be.
        RuntimeError: the server fails, a checksum is wrong twice, the disk has too little room, or another download
            works in the same folder.
    """
    numbers = sorted(set(SUBSETS if subsets is None else subsets))
    if wrong := [number for number in numbers if number not in SUBSETS]:
        raise ValueError(f"subset {wrong[0]}: LUNA16 has 0 to 9")
    base = (SITE if base_url is None else base_url).rstrip("/")
    require_web(base)
    keys = {*TABLES, *(f"{subset_folder(number)}.zip" for number in numbers)}
    archives = [archive for record in RECORDS for archive in _published(record, keys, base)]
    aside = output / ASIDE
    aside.mkdir(parents=True, exist_ok=True)
    with _alone(aside):
        todo = [archive for archive in archives if _finished(output, archive) is None]
        for archive in archives:
            _remove_parts(aside, archive, but=archive.md5 if archive in todo else None)
        _require_room(output, todo, keep_archives)
        size, fetched = sum(archive.size for archive in todo), []
        with tqdm(total=size, desc="download", unit="B", unit_scale=True, disable=not progress) as bar:
            for archive in todo:
                bar.set_postfix_str(archive.key)
                if _bring(archive, output, bar, keep_archives):
                    fetched.append(archive)
    finished = [_finished(output, archive) or {} for archive in archives]
    return {
        "output": str(output),
        "subsets": numbers,
        "series": sum(name.endswith(".mhd") for files in finished for name in files),
        "fetched": [archive.key for archive in fetched],
        "there": [archive.key for archive in archives if archive not in fetched],
        "bytes": sum(archive.size for archive in fetched),
    }


# --- records --------------------------------------------------------------------------------------------------------


def _published(record: int, keys: set[str], base: str) -> list[Archive]:
    """Return what a record lists of the wanted archives; nothing is asked where none is wanted of it."""
    wanted = [key for key in RECORDS[record] if key in keys]
    if not wanted:
        return []
    url = f"{base}/records/{record}"
    content = persist(url, lambda: _read_record(url))
    try:
        files = {file["key"]: file for file in json.loads(content)["files"]}
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"{url} does not answer as a Zenodo record does: check --base-url") from error
    if missing := [key for key in wanted if key not in files]:
        raise ValueError(f"{url} lists no {missing[0]}: name a complete mirror with --base-url")
    return [_archive(key, files[key], url, base) for key in wanted]


def _archive(key: str, file: Any, url: str, base: str) -> Archive:
    where = f"{url}, file {key}"
    try:
        size, checksum, link = file["size"], file["checksum"], file["links"]["self"]
    except (LookupError, TypeError) as error:
        raise ValueError(f"{where}: size, checksum or links.self is missing: name another --base-url") from error
    if not isinstance(size, int) or not 0 < size <= LARGEST_ARCHIVE:
        raise ValueError(f"{where}: size {size!r} is no number of bytes up to {in_gb(LARGEST_ARCHIVE)}")
    if not isinstance(checksum, str) or not re.fullmatch(r"md5:[0-9a-f]{32}", checksum):
        raise ValueError(f"{where}: checksum {checksum!r} is no md5, so the file could not be trusted")
    if not isinstance(link, str):
        raise ValueError(f"{where}: links.self {link!r} is no address")
    address = base + link.removeprefix(SITE) if link.startswith(SITE + "/") else urljoin(url, link)
    require_web(address, url)
    return Archive(key, address, size, checksum.removeprefix("md5:"))


def _read_record(url: str) -> bytes:
    with open_address(url) as response:
        announced, content = response.length, read_block(response, LARGEST_RECORD)
        if announced is not None and len(content) < min(announced, LARGEST_RECORD):
            raise Interruption("the connection dropped")
        return content


# --- in the output folder -------------------------------------------------------------------------------------------


@contextmanager
def _alone(aside: Path) -> Iterator[None]:
    """Two downloads into one folder would write into the same files."""
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(FileLock(aside / "lock", timeout=0))
        except Timeout as error:
            raise RuntimeError(f"another luna16 download works in {aside.parent}: wait for its end") from error
        except (OSError, NotImplementedError):
            logger.warning("%s knows no locks: start no second download into it", aside.parent)
        yield


def _part(aside: Path, archive: Archive) -> Path:
    """Where an archive grows. A record with another checksum means another file, which begins anew."""
    return aside / f"{archive.key}.{archive.md5}.part"


def _remove_parts(aside: Path, archive: Archive, but: str | None) -> None:
    for part in aside.glob(f"{archive.key}.*.part"):
        if part.name != f"{archive.key}.{but}.part":
            part.unlink()


def _marker(output: Path, archive: Archive) -> Path:
    return output / ASIDE / f"{archive.key}.json"


def _finished(output: Path, archive: Archive) -> dict[str, int] | None:
    """Return the files of an archive with their sizes, if they are all there; None where it is to be fetched."""
    try:
        marker = json.loads(_marker(output, archive).read_text(encoding="utf-8"))
        files = {str(name): int(size) for name, size in marker["files"].items()}
        same = marker["md5"] == archive.md5 and all(size_of(output / name) == size for name, size in files.items())
    except (FileNotFoundError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return files if same else None


def _require_room(output: Path, todo: Sequence[Archive], keep_archives: bool) -> None:
    there = {archive.key: size_of(output / archive.key) or size_of(_part(output / ASIDE, archive)) for archive in todo}
    sizes = [archive.size for archive in todo]
    archives = sum(sizes) if keep_archives else max(sizes, default=0)
    unpacked = sum(archive.size * (EXPANSION if archive.key.endswith(".zip") else 1) for archive in todo)
    needed = archives + unpacked - sum(min(there[archive.key], archive.size) for archive in todo)
    if (free := shutil.disk_usage(output).free) < needed:
        raise RuntimeError(
            f"{output} has {in_gb(free)} free, but {in_gb(needed)} are needed ({in_gb(archives)} for archives, about "
            f"{in_gb(unpacked)} for what is in them): free some space, name another --output, or fetch a part with "
            "--subset"
        )


def _bring(archive: Archive, output: Path, bar: tqdm[Any], keep_archives: bool) -> bool:
    """Fetch, check and unpack one archive, its marker is written last; false where it lay in the output folder."""
    own, part = output / archive.key, _part(output / ASIDE, archive)
    if lies_there := own.is_file():
        if size_of(own) != archive.size or _md5(own) != archive.md5:
            raise ValueError(
                f"{own} is there, but not as published (md5 {archive.md5}): move it away, or name another --output"
            )
        skip_on_bar(bar, archive.size)
    else:
        _fetch_right(archive, part, bar)
        if keep_archives or not archive.key.endswith(".zip"):
            os.replace(part, own)
    if archive.key.endswith(".zip"):
        try:
            files = unpack(own if own.is_file() else part, archive.key, output)
        except ValueError:
            part.unlink(missing_ok=True)
            raise
    else:
        files = {archive.key: archive.size}
    write_json(_marker(output, archive), {"archive": archive.key, "md5": archive.md5, "files": files})
    part.unlink(missing_ok=True)
    return not lies_there


def _fetch_right(archive: Archive, part: Path, bar: tqdm[Any]) -> None:
    for _ in range(2):
        fetch(archive, part, bar)
        if (found := _md5(part)) == archive.md5:
            return
        part.unlink()
        skip_on_bar(bar, -archive.size)
        logger.warning("%s: its md5 is %s, the record says %s", archive.key, found, archive.md5)
    raise RuntimeError(
        f"{archive.key} from {archive.url} came twice with the wrong md5 ({found}, the record says {archive.md5}): "
        "try later, or name a mirror with --base-url"
    )


def _md5(path: Path) -> str:
    with path.open("rb") as stream:
        # it finds accidents, no forgery, which a machine in FIPS mode wants to be stated
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
