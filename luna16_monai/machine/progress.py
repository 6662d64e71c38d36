"""Progress bars of long steps deep inside a computation; a verb says once whether they are shown.

A bar comes up only where its step takes longer than `DELAY_S`, so that short ones print nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from tqdm import tqdm

DELAY_S = 3.0
Item = TypeVar("Item")
_SHOWN: ContextVar[bool] = ContextVar("progress is shown", default=False)


@contextmanager
def showing(shown: bool) -> Iterator[None]:
    """Let the bars of this block be shown, or not; outside of any such block none is."""
    before = _SHOWN.set(shown)
    try:
        yield
    finally:
        _SHOWN.reset(before)


def bar(total: int, name: str, unit: str) -> tqdm[Any]:
    """Return a bar with the time that is left, to be closed by a ``with`` block.

    Args:
        total: how many there are.
        name: of the step.
        unit: of what is counted.
    """
    from tqdm import tqdm

    return tqdm(total=total, desc=name, unit=unit, disable=not _SHOWN.get(), delay=DELAY_S)


def counted(items: Sequence[Item], name: str, unit: str) -> Iterator[Item]:
    """Yield items, beside a bar that counts them; see `bar`."""
    with bar(len(items), name, unit) as shown:
        for item in items:
            yield item
            shown.update()
