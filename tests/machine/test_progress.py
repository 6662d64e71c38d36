"""Bars of long steps: shown where a verb says so, and only where the step is long."""

from __future__ import annotations

import pytest

from luna16_monai.machine import progress


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bars come up without a delay."""
    monkeypatch.setattr(progress, "DELAY_S", 0.0)


def test_bar_is_shown_inside_the_block_alone(at_once, capsys):
    for shown in (True, False):
        with progress.showing(shown), progress.bar(4, "bootstrap", "draw") as bar:
            bar.update(4)
        told = capsys.readouterr().err
        assert ("bootstrap: 100%" in told, "4/4" in told) == (shown, shown)
    with progress.bar(4, "bootstrap", "draw") as bar:
        bar.update(4)
    assert capsys.readouterr().err == ""


def test_bar_of_a_short_step_stays_away(capsys):
    with progress.showing(True), progress.bar(4, "bootstrap", "draw") as bar:
        bar.update(4)
    assert "bootstrap" not in capsys.readouterr().err


def test_counted_yields_all_and_counts_them(at_once, capsys):
    with progress.showing(True):
        assert list(progress.counted(["a", "b"], "read", "CT")) == ["a", "b"]
    assert "2/2" in capsys.readouterr().err


def test_showing_ends_with_its_block_after_an_error(at_once, capsys):
    with pytest.raises(ZeroDivisionError), progress.showing(True):
        raise ZeroDivisionError
    with progress.bar(1, "read", "CT") as bar:
        bar.update()
    assert capsys.readouterr().err == ""
