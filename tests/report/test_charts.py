"""Curves as SVG."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

# needs the extra report
charts = pytest.importorskip("luna16_monai.report.charts")


class TestHistoryChart:
    def test_standalone_chart_has_the_reports_light_colours_and_a_size(self) -> None:
        look = Path(charts.__file__).parents[1] / "resources" / "look.css"
        before_dark = look.read_text(encoding="utf-8").split("@media", 1)[0]
        assert charts.LIGHT.items() <= dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", before_dark)).items()
        svg = charts.standalone(charts.history_chart({"training": ([1, 2], [0.4, 0.2])}, "loss", "loss"))
        picture = ElementTree.fromstring(svg)
        assert (picture.get("width"), picture.get("height")) == ("5.4in", "3.9in")
        assert "var(" not in svg
        assert charts.LIGHT["one"] in svg
        assert charts.LIGHT["two"] not in svg

    def test_history_of_a_single_epoch_names_that_epoch_alone(self) -> None:
        svg = charts.history_chart({"validation": ([4], [0.3])}, "scores", "score")
        assert re.findall(r"<text[^>]*>([^<]*)", svg)[:2] == ["4", "epoch"]
