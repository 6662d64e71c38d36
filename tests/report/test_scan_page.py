"""The page about one CT: what it shows, says and leaves out, and the page in a real browser."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from browser import MISSING, PROGRAM, Browser

from luna16_monai.geometry.grid import Geometry
from luna16_monai.geometry.volume import Volume
from luna16_monai.report.scan_page import MOST_SHOWN, algorithm_lines, scan_page

pytest.importorskip("jinja2", reason="the report needs the extra 'report'")
UID, HOSTILE = "1.2.3", "<img src=x onerror=alert(1)>"
ABOUT = algorithm_lines("Lung nodule classification", HOSTILE, ["weights sha256 abc", "averaged over 4 views"])
# (x, y, z): in the right lung near its top, in the left one near its bottom, between the two
POINTS = [(-80.0, 0.0, -100.0), (80.0, 0.0, -200.0), (0.0, 0.0, -150.0)]
VOID = {"meta", "link", "img", "br"}


def chest(spacing_z: float = 2.5, slices: int = 60) -> Volume:
    """Two lungs in a body, in air: from z = -220 to -87.5, 25 slices of body below and 2 above them at 2.5 mm."""
    hu = np.full((slices, 100, 140), -1000, np.int16)
    hu[:, 10:90, 10:130] = 40
    hu[5:-2, 25:75, 25:55] = -850
    hu[5:-2, 25:75, 85:115] = -850
    geometry = Geometry.from_axes((140, 100, slices), (2.5, 2.5, spacing_z), (-175, -125, -235), np.eye(3))
    return Volume(hu, geometry, geometry)


def page_of(probability: list[float], threshold: float = 0.5, volume: Volume | None = None, **columns: list[float]):
    points = (POINTS * len(probability))[: len(probability)]
    return scan_page(UID, volume or chest(), points, {"probability": probability, **columns}, threshold, ABOUT)


class Tags(HTMLParser):
    """Fails where an element is closed that is not the last one opened."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def shown(page: str) -> str:
    """The text of the page, spaces made one."""
    return re.sub(r"\s+", " ", re.sub(r"<style.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL))


def test_page_shows_the_candidates_from_the_threshold_on_most_probable_first():
    page, count = page_of([0.6, 0.9, 0.2], diameter_mm=[5.25, np.nan, 7], malignancy=[0.25, 0.75, 0.1])
    Tags(page)
    text = shown(page)
    assert count == 2
    assert page.count("data:image/jpeg") == 6
    assert "2 of 3 candidates have a probability of 0.5 or more and are shown." in text
    first, second = re.findall(r"Candidate \d .*?\(LPS\)", text)
    # 142.5 mm of lungs in the scan, grown by 3 mm: the middle of the right one is at x = -76
    assert "Candidate 1 0.900 probability Diameter not known Malignancy 0.750" in first
    assert "Left lung, lower third" in first
    assert "x 80.0, y 0.0, z -200.0 mm" in first
    assert "Candidate 2 0.600 probability Diameter 5.2 mm Malignancy 0.250" in second
    assert "Right lung, upper third" in second
    # slices lie at z = -235, -232.5, ..., -87.5; that at -100 is the sixth from the head
    assert "Slice from the head 6" in second
    assert "3 0.200 7.0 mm 0.100 outside the lungs" in text


def test_threshold_is_about_the_calibrated_probability_where_there_is_one():
    page, count = page_of([0.9, 0.8, 0.7], calibrated_probability=[0.6, 0.4, 0.3])
    assert count == 1
    assert "1 of 3 candidates has a calibrated probability of 0.5 or more and is shown." in shown(page)
    assert "0.600 calibrated probability Diameter not known Raw probability 0.900" in shown(page)


@pytest.mark.parametrize(
    ("probability", "sentence"),
    [([], "No candidate was found in this CT."), ([0.1], "1 candidate, none with a probability of 0.5 or more.")],
)
def test_page_says_that_nothing_reaches_the_threshold(probability, sentence):
    page, count = page_of(probability)
    Tags(page)
    assert count == 0
    assert sentence in shown(page)
    assert "data:image" not in page


def test_page_says_how_many_are_shown_of_very_many():
    page, count = page_of([0.9] * (MOST_SHOWN + 30))
    assert count == MOST_SHOWN
    assert f"the {MOST_SHOWN} most probable are shown" in shown(page)
    assert "30 without pictures" in shown(page)


def test_page_tells_the_series_and_what_is_odd_about_it():
    text = shown(page_of([0.9])[0])
    assert "Series 1.2.3" in text
    assert "60, 2.50 mm apart" in text
    assert "140 × 100, 2.500 × 2.500 mm each" in text
    assert "350 × 250 × 150 mm" in text
    assert "thick slices" not in text
    assert text.count("or research, not for clinical use") == 2
    thick = shown(page_of([0.9], volume=chest(5.0, 30))[0])
    assert "Slices 5.0 mm apart: thick slices multiply false candidates." in thick
    solid = chest()
    solid.voxels[:] = 40
    assert "No lungs were found in this CT" in shown(page_of([0.9], volume=solid)[0])


def test_page_stands_alone_and_escapes_what_it_is_given():
    page = page_of([0.9])[0]
    assert HOSTILE not in page
    assert "&lt;img src=x" in page
    assert set(re.findall(r'(?:src|href)="([^"]{0,5})', page)) == {"data:"}
    assert "http" not in page.replace("http-equiv", "")
    assert page == page_of([0.9])[0]


@pytest.mark.skipif(PROGRAM is None, reason=MISSING)
class TestInTheBrowser:
    @pytest.fixture(scope="class")
    def file(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        path = tmp_path_factory.mktemp("page") / "r.html"
        path.write_text(page_of([0.6, 0.9, 0.2], diameter_mm=[5, 6, 7])[0], encoding="utf-8")
        return path

    def test_page_shows_its_pictures_without_an_error_or_a_request(self, browser: Browser, file: Path) -> None:
        browser.open(file)
        assert browser.value("[...document.images].every(image => image.naturalWidth === 201)")
        assert browser.errors == []
        assert {address.split(":")[0] for address in browser.requests} <= {"file", "data", "about"}

    def test_page_fits_a_phone_and_follows_the_theme(self, browser: Browser, file: Path) -> None:
        colours = []
        for dark in (False, True):
            browser.open(file, width=360, height=740, dark=dark, mobile=True)
            assert browser.value("document.documentElement.scrollWidth") == 360
            colours.append(browser.value("getComputedStyle(document.body).color"))
        assert colours[0] != colours[1]
