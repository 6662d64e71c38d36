"""The report: what the gallery shows, one file that stands alone, and the page in a real browser."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from browser import MISSING, PROGRAM, Browser

from luna16_monai.cli import main as cli
from luna16_monai.evaluation.calibration import Calibration, calibrate, operating_points
from luna16_monai.evaluation.submission import evaluate, validation_reference
from luna16_monai.machine.files import write_json
from luna16_monai.report.gallery import choose_examples
from luna16_monai.report.page import write_report
from luna16_monai.runs.results import read_results, write_results
from luna16_monai.store.reading import Store
from luna16_monai.tables.luna16 import read_candidates
from luna16_monai.tables.points import PointTable

pytest.importorskip("matplotlib", reason="the report needs the extra 'report'")
charts = pytest.importorskip("luna16_monai.report.charts")
pytest.importorskip("jinja2", reason="the report needs the extra 'report'")
HOSTILE = "<img src=x onerror=alert(1)>"


def write_run(folder: Path, data_dir: Path, points: PointTable, labels: np.ndarray, seed: int = 0) -> None:
    """A run with everything, its probabilities drawn: nodules mostly above the rest."""
    random = np.random.default_rng(seed)
    series = sorted({points.series_uids[code] for code in points.series})
    subsets = dict.fromkeys(series, 1)
    truth = validation_reference(data_dir, series, subsets)
    assert truth is not None
    probability = Calibration(1, 0).apply(1 / (1 + np.exp(-random.normal(2.5 * labels - 2, 1.2))))
    scored = evaluate(replace(points, values=probability), truth, draws=50)
    calibrated, calibration = calibrate(probability, labels, points.series)
    metrics = {
        **scored.scores,
        "roc_auc": 0.9,
        "average_precision": 0.8,
        "calibration": calibration,
        "thresholds": operating_points(probability, labels, len(series)),
        "candidates": len(points),
        "positives": int(labels.sum()),
        "series": len(series),
        "epoch": 2,
        "key_metric": "cpm",
        "chosen_on": HOSTILE,
    }
    write_results(folder, metrics, points, probability, scored, labels, calibrated, subsets)
    sizes = {"series": 5, "candidates": 80, "positives": 12}
    record = {
        "settings": {"max_epochs": 2, "dataset_dir": HOSTILE, "ratio": [1, 5], "network_def": {"_target_": "Net"}},
        "versions": {"torch": "2.13.0"},
        "device": "cpu",
        "threads": 1,
        "parameters": 222220,
        "data": {"name": "phantom", "kind": "synthetic", "train": sizes, "validation": sizes, "train_series": []},
    }
    write_json(folder / "run.json", record)
    (folder / "history.csv").write_text(
        "epoch,split,loss,cpm\n1,train,0.5,\n1,validation,0.4,0.3\n2,train,0.3,\n2,validation,0.35,0.5\n"
    )


@pytest.fixture(scope="module")
def run_dir(phantom_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "a run & more"
    table = read_candidates(phantom_dir)
    write_run(folder, phantom_dir, table, table.values.astype(int))
    return folder


@pytest.fixture(scope="module")
def page(run_dir: Path, store_dir: Path) -> Path:
    assert cli.main(["report", "--run", str(run_dir), "--store", str(store_dir), "--quiet"]) == 0
    return run_dir / "report.html"


class TestWriteReport:
    def test_report_stands_alone_and_tells_no_folder(self, page: Path, run_dir: Path) -> None:
        text = page.read_text(encoding="utf-8")
        addresses = set(re.findall(r'(?:src|href)="([^"]{0,5})', text))
        assert {address for address in addresses if not address.startswith(("data:", "#"))} == set()
        assert set(re.findall(r"https?://[^\s\"]+", text)) <= {
            "http://www.w3.org/2000/svg",
            "http://www.w3.org/1999/xlink",
        }
        assert str(run_dir.parent) not in text

    def test_report_escapes_what_it_is_given(self, page: Path) -> None:
        text = page.read_text(encoding="utf-8")
        assert HOSTILE not in text
        assert "&lt;img src=x onerror=alert(1)&gt;" in text
        assert "a run &amp; more" in text

    def test_report_gives_every_chart_ids_of_its_own(self, page: Path) -> None:
        ids = re.findall(r'\bid="([^"]+)"', page.read_text(encoding="utf-8"))
        assert len(ids) == len(set(ids)) > 10

    def test_report_of_5000_candidates_stays_below_15_mb(
        self, phantom_dir: Path, store_dir: Path, tmp_path: Path
    ) -> None:
        table = read_candidates(phantom_dir)
        random = np.random.default_rng(0)
        rows = random.integers(len(table), size=5000)
        points = table.select(rows)
        jittered = replace(points, points_xyz=points.points_xyz + random.uniform(-0.2, 0.2, (5000, 3)))
        write_run(tmp_path, phantom_dir, jittered, points.values.astype(int))
        result = write_report(tmp_path, tmp_path / "report.html", store_dir)
        assert result["megabytes"] < 15
        assert result["pictures"] > 90
        assert (tmp_path / "report.html").stat().st_size == round(result["megabytes"] * 1e6)

    def test_report_of_an_evaluated_submission_without_labels_or_store(self, run_dir: Path, tmp_path: Path) -> None:
        for name in ("metrics.json", "nodules.csv", "seriesuids.csv"):
            shutil.copy(run_dir / name, tmp_path / name)
        kept = ("seriesuid", "coordX", "coordY", "coordZ", "probability", "status", "nodule")
        header, *rows = (
            line.split(",") for line in (run_dir / "candidates.csv").read_text(encoding="utf-8").splitlines()
        )
        places = [header.index(name) for name in kept]
        lines = [",".join(row[place] for place in places) for row in (header, *rows)]
        (tmp_path / "candidates.csv").write_text("\n".join(lines) + "\n")
        known = json.loads((run_dir / "metrics.json").read_text(encoding="utf-8"))
        score_keys = ("calibration", "thresholds", "roc_auc", "average_precision", "epoch", "key_metric", "chosen_on")
        write_json(tmp_path / "metrics.json", {key: known[key] for key in known if key not in score_keys})
        result = write_report(tmp_path, tmp_path / "report.html", tmp_path / "no store")
        text = (tmp_path / "report.html").read_text(encoding="utf-8")
        assert (result["pictures"], "no picture" in text, 'id="calibration"' in text) == (0, True, False)

    def test_report_of_a_detection_run_tells_ranks_diameters_and_what_the_mask_loses(
        self, run_dir: Path, tmp_path: Path
    ) -> None:
        folder = tmp_path / "run"
        shutil.copytree(run_dir, folder)
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        at = {"10": 0.5, "25": 0.625, "50": 0.75, "100": 0.875, "200": 1.0}
        metrics["sensitivity_at_candidates"] = at
        metrics["sensitivity_at_candidates_ci95"] = {number: [value - 0.125, value] for number, value in at.items()}
        metrics["sensitivity_at_candidates_by_diameter_mm"] = {"<5": None, ">=15": at}
        metrics["diameter_error_mm"] = {"median": 0.4, "p90": 1.25, "nodules": 9}
        metrics["lost_to_lung_mask"] = 1
        write_json(folder / "metrics.json", metrics)
        write_report(folder, tmp_path / "report.html")
        text = re.sub(r"\s+", " ", (tmp_path / "report.html").read_text(encoding="utf-8"))
        assert "nodule detection</title>" in text
        assert '<th scope="row">25</th><td>0.625</td><td>0.500 – 0.625</td><td>–</td><td>0.62</td>' in text
        assert f"leaves out 1 of {metrics['nodules']} nodules" in text
        assert "of 9 nodules that were found: median error 0.40 mm, 90th percentile 1.25 mm." in text
        assert "<dt>Sensitivity at 25 candidates</dt><dd>0.625</dd>" in text
        assert "ranks-" in text

    def test_report_of_a_folder_without_a_run_is_wrong_input(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.main(["report", "--run", str(tmp_path)]) == 2
        assert "no metrics.json in" in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []

    def test_report_prints_one_object(
        self, run_dir: Path, store_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        output = tmp_path / "page.html"
        words = ["report", "--run", str(run_dir), "--store", str(store_dir), "--output", str(output), "--json"]
        assert cli.main(words) == 0
        assert json.loads(capsys.readouterr().out)["report"] == str(output)

    def test_report_is_the_same_every_time(self, page: Path, run_dir: Path, store_dir: Path, tmp_path: Path) -> None:
        write_report(run_dir, tmp_path / "again.html", store_dir)
        assert (tmp_path / "again.html").read_bytes() == page.read_bytes()

    def test_report_pictures_need_the_scan_in_the_store(self, run_dir: Path, store_dir: Path) -> None:
        stored = set(Store(store_dir).series_uids)
        chosen = choose_examples(read_results(run_dir))
        assert {example.series_uid for example in chosen} <= stored
        assert {example.kind for example in chosen} == {"false", "missed", "hit"}


@pytest.mark.skipif(PROGRAM is None, reason=MISSING)
class TestInTheBrowser:
    def test_page_renders_without_an_error_or_a_request(self, browser: Browser, page: Path) -> None:
        browser.open(page)
        assert browser.value("document.querySelector('#cpm').textContent").startswith("0.")
        assert browser.value(
            "[...document.querySelectorAll('.chart svg')].every(s => s.getBoundingClientRect().height > 100)"
        )
        assert browser.errors == []
        assert {address.split(":")[0] for address in browser.requests} <= {"file", "data", "about"}

    def test_page_has_methods_to_quote(self, browser: Browser, page: Path) -> None:
        browser.open(page)
        assert browser.value("document.querySelector('nav a[href=\"#methods\"]').textContent") == "Methods"
        told = browser.value("document.querySelector('#methods blockquote').innerText")
        assert "5 for training (80 candidates, 12 of them nodules)" in told
        assert "PyTorch 2.13.0, on CPU with 1 thread." in told

    def test_page_filters_by_kind_and_by_score(self, browser: Browser, page: Path) -> None:
        browser.open(page)
        shown = "[...document.querySelectorAll('.card')].filter(c => c.offsetHeight > 0)"
        cards = browser.value(f"{shown}.map(c => [c.dataset.kind, Number(c.dataset.score)])")
        browser.click("button[data-kind=missed]")
        missed = browser.value(f"{shown}.map(c => c.dataset.kind)")
        assert missed == ["missed"] * sum(kind == "missed" for kind, _ in cards)
        assert browser.value("document.querySelector('#count').textContent") == f"{len(missed)} of {len(cards)}"
        browser.click("button[data-kind='']")
        browser.value("(() => { const low = document.querySelector('#low'); low.value = 0.5;"
                      " low.dispatchEvent(new Event('input')); })()")  # fmt: skip
        above = browser.value(f"{shown}.map(c => Number(c.dataset.score))")
        assert above == [score for _, score in cards if score >= 0.495]
        assert 0 < len(above) < len(cards)

    def test_page_enlarges_an_example_by_mouse_and_by_key(self, browser: Browser, page: Path) -> None:
        browser.open(page)
        small = browser.value("document.querySelector('.card img').getBoundingClientRect().width")
        browser.click(".card button")
        assert browser.value("document.querySelector('dialog').open")
        assert browser.value("document.querySelectorAll('dialog img').length") == 3
        assert browser.value("document.querySelector('dialog img').getBoundingClientRect().width") > 2 * small
        browser.press("ArrowRight")
        assert browser.value("document.querySelector('dialog').innerText.includes('2 of ')")
        browser.press("c")
        assert browser.value("document.body.classList.contains('no-crosshair')")
        browser.press("Escape")
        assert not browser.value("document.querySelector('dialog').open")
        browser.value("document.querySelector('.card button').focus()")
        browser.press("Enter")
        assert browser.value("document.querySelector('dialog').open")
        assert browser.errors == []

    def test_page_fits_a_phone(self, browser: Browser, page: Path) -> None:
        browser.open(page, width=360, height=740, mobile=True)
        assert browser.value("document.documentElement.scrollWidth") == 360
        browser.click(".card button")
        assert browser.value("document.querySelector('dialog').open")
        box = browser.value(
            "(() => { const b = document.querySelector('dialog').getBoundingClientRect();"
            " return [b.left, b.right]; })()"
        )
        assert 0 <= box[0] < box[1] <= 360

    def test_page_follows_the_theme_with_its_charts(self, browser: Browser, page: Path) -> None:
        ink = "getComputedStyle(document.body).color"
        paths = "[...document.querySelectorAll('.chart path')]"
        line = f"getComputedStyle({paths}.find(p => p.style.stroke === 'var(--one)')).stroke"
        seen = []
        for dark in (False, True):
            browser.open(page, dark=dark)
            seen.append((browser.value(ink), browser.value(line)))
        (ink_light, line_light), (ink_dark, line_dark) = seen
        assert ink_light != ink_dark
        assert line_light != line_dark
