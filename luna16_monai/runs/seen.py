"""Which series weights were trained on: the record that lies beside them and goes with every copy.

``model.pt.seen.json`` lies beside ``model.pt``, ``net.onnx.seen.json`` beside ``net.onnx``, and
``predictions.csv.seen.json`` beside a table that ``luna16 predict`` wrote. It holds a salted hash of
each training series, since an identifier can point at a patient: who has a series can ask whether the weights have seen
it, and nobody can read the series off. A drawn scan is no patient's: of it the record says what it was drawn from. The
record of weights that were trained from others holds all that those had seen, over any number of generations.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luna16_monai.machine.files import write_json
from luna16_monai.phantom.drawn import Drawn
from luna16_monai.runs.folder import RunFolder
from luna16_monai.tables.points import read_points

SUFFIX = ".seen.json"
FORMAT = 1


@dataclass(frozen=True)
class Seen:
    """What weights were trained on.

    Attributes:
        series: (salt, hash) of each training series; those of one training have one salt.
        drawn: what those of them that were drawn were drawn from.
    """

    series: frozenset[tuple[str, str]]
    drawn: frozenset[Drawn]

    @classmethod
    def of(cls, series_uids: Iterable[str], drawn: Mapping[str, Drawn], *before: Seen | None) -> Seen:
        """Return the record of a training.

        Args:
            series_uids: that were trained on.
            drawn: what series were drawn from, see `phantom.drawn.read_drawn`.
            before: the records of the weights that it went on from.
        """
        salt, uids = secrets.token_hex(16), list(series_uids)
        older = [one for one in before if one is not None]
        known = cls(frozenset().union(*(one.series for one in older)), frozenset().union(*(one.drawn for one in older)))
        fresh = {(salt, _hash(salt, uid)) for uid in uids if not known.has(uid)}
        return cls(known.series | fresh, known.drawn | {drawn[uid] for uid in uids if uid in drawn})

    def has(self, uid: str) -> bool:
        """Return whether this very series was trained on."""
        return any((salt, _hash(salt, uid)) in self.series for salt in {salt for salt, _ in self.series})

    def among(self, series_uids: Iterable[str], drawn: Mapping[str, Drawn]) -> list[str]:
        """Return the series that were trained on: by their identifier, or by the anatomy of a drawn scan.

        Args:
            series_uids: to look at.
            drawn: what those of them that were drawn were drawn from.
        """
        anatomies = {one.anatomy for one in self.drawn}
        return [uid for uid in series_uids if self.has(uid) or (uid in drawn and drawn[uid].anatomy in anatomies)]

    def sharing_shapes(self, series_uids: Iterable[str], drawn: Mapping[str, Drawn]) -> list[str]:
        """Return the drawn series whose nodules may have the shapes of patients that the training drew from too."""
        patients = {patient for one in self.drawn for patient in one.patients}
        return [uid for uid in series_uids if uid in drawn and not patients.isdisjoint(drawn[uid].patients)]

    def as_json(self) -> dict[str, Any]:
        """Return the content of the file."""
        salts = sorted({salt for salt, _ in self.series})
        return {
            "format": FORMAT,
            "trained_on": [
                {"salt": salt, "series_sha256": sorted(hashed for one, hashed in self.series if one == salt)}
                for salt in salts
            ],
            "drawn": [one.as_json() for one in sorted(self.drawn)],
        }


def seen_file(weights: Path) -> Path:
    """Return where the record of a weights file lies."""
    return weights.with_name(weights.name + SUFFIX)


def write_seen(weights: Path, seen: Seen) -> None:
    """Write the record beside weights."""
    write_json(seen_file(weights), seen.as_json())


def read_seen(weights: Path | str | None) -> Seen | None:
    """Return what weights were trained on, by the record beside them and, of a run's model.pt, its run.json.

    Returns:
        None where neither lies there: what the weights have seen is not known.

    Raises:
        ValueError: one of the two is damaged.
    """
    if weights is None:
        return None
    weights = Path(weights)
    path = seen_file(weights)
    seen = _read(path) if path.is_file() else None
    folder = RunFolder(weights.parent)
    if weights.name == folder.weights.name and (trained := folder.seen_series()):
        # a run of before the record, or one whose record was lost
        seen = Seen.of(trained, {}, seen)
    return seen


def copy_seen(weights: Path, output: Path) -> None:
    """Copy the record beside weights to a copy of them; without one, remove what lies beside an older copy."""
    seen = read_seen(weights)
    if seen is None:
        seen_file(output).unlink(missing_ok=True)
    else:
        write_seen(output, seen)


def write_seen_by_all(table: Path, records: Sequence[Seen | None]) -> None:
    """Write beside a table of probabilities what the weights that gave them were trained on.

    Where one of them has no record there is nothing to write, and what lies beside an older table is removed.
    """
    if all(one is not None for one in records):
        write_seen(table, Seen.of((), {}, *records))
    else:
        seen_file(table).unlink(missing_ok=True)


def seen_beside(table: Path) -> Seen | None:
    """Return what the weights that gave a table of probabilities were trained on.

    By the record of the table itself, as ``luna16 predict`` writes it; else by that of the weights in its folder.

    Returns:
        None where there is neither.

    Raises:
        ValueError: the record is damaged.
    """
    path = seen_file(table)
    return _read(path) if path.is_file() else read_seen(RunFolder(table.parent).weights)


def refuse_seen(what: str, seen: Seen | None, drawn: Mapping[str, Drawn], **splits: Sequence[str]) -> None:
    """Check that weights were trained on no series of some splits.

    Args:
        what: they are, for the message.
        seen: their record; None checks nothing.
        drawn: what series were drawn from.
        splits: the series of each, by its name.

    Raises:
        ValueError: names the first such series, its split, and how many there are.
    """
    for name, series_uids in splits.items():
        if seen is not None and (known := seen.among(series_uids, drawn)):
            saw = "it" if seen.has(known[0]) else "a scan that was drawn with the same anatomy"
            raise ValueError(
                f"series {known[0]} is in {name}, and {what} saw {saw} in training ({len(known)} of "
                f"{len(series_uids)} series of {name}): hold out series that were not trained on, or name other weights"
            )


def refuse_in_fold(tables: Sequence[Path], series_uids: Sequence[str], drawn: Mapping[str, Drawn]) -> list[Seen]:
    """Check that tables of candidates are out-of-fold: that no weights proposed candidates of what they had seen.

    Args:
        tables: of candidates, each with its record beside it, or a run's ``submission.csv`` beside its weights.
        series_uids: whose candidates are to be used; rows of other series do not matter.
        drawn: what series were drawn from.

    Returns:
        The record of each table.

    Raises:
        ValueError: a table has no record, or names a series that its weights were trained on.
    """
    records, wanted = [], set(series_uids)
    for table in tables:
        own = seen_file(table).is_file() or table.name == RunFolder(table.parent).submission_file.name
        if (seen := seen_beside(table) if own else None) is None:
            raise ValueError(
                f"candidates {table}: no {seen_file(table).name} beside it says what the weights that proposed them "
                "were trained on: take the table and its record as luna16 detect wrote them, by weights that have one"
            )
        used = [uid for uid in read_points(table, None).series_uids if uid in wanted]
        if known := seen.among(used, drawn):
            raise ValueError(
                f"candidates {table}: series {known[0]} is one that the weights which proposed its candidates were "
                f"trained on ({len(known)} of {len(used)} series that are used): such candidates are better than those "
                "of a new CT; take weights that left these series out, as those of luna16 crossval's other folds"
            )
        records.append(seen)
    return records


def tell_seen(
    seen: Sequence[Seen | None], series_uids: Sequence[str], drawn: Mapping[str, Drawn], what: str = "CTs at hand"
) -> str:
    """Return one line: how many of the CTs some weights have seen.

    Args:
        seen: the record of each file of weights, None where it has none.
        series_uids: of the CTs.
        drawn: what series were drawn from.
        what: the CTs are.
    """
    known = [one for one in seen if one is not None]
    unknown = f"{len(seen) - len(known)} of {len(seen)} weights have no record of what they were trained on"
    if not known:
        return f"whether the weights have seen the {what} is not known: {unknown}"
    found = {uid for one in known for uid in one.among(series_uids, drawn)}
    shapes = {uid for one in known for uid in one.sharing_shapes(series_uids, drawn)} - found
    line = f"the weights have seen {len(found)} of the {len(series_uids)} {what} in training"
    if shapes:
        line += f"; {len(shapes)} more may hold nodules in shapes that they have seen"
    return line if len(known) == len(seen) else f"{line}; {unknown}"


def _hash(salt: str, uid: str) -> str:
    return hashlib.sha256(f"{salt}{uid}".encode()).hexdigest()[:32]


def _read(path: Path) -> Seen:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}, not {FORMAT}")
        series = {(str(one["salt"]), str(uid)) for one in content["trained_on"] for uid in one["series_sha256"]}
        return Seen(frozenset(series), frozenset(Drawn.parse(one) for one in content["drawn"]))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} does not say what the weights were trained on ({error}): copy it again with its weights"
        ) from error
