"""From CTs and points to probabilities: the same as in validation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ct_files import write_ct

from luna16_monai.bundle.folders import bundle_dir
from luna16_monai.ct.opening import CT
from luna16_monai.dataset.candidates import CandidateList
from luna16_monai.inference.classifier import Classifier, score_in_turn, volumes_of
from luna16_monai.networks.folding import folded_state
from luna16_monai.networks.nodule_net import NoduleNet
from luna16_monai.store.preparation import prepare_volume
from luna16_monai.store.reading import Store
from luna16_monai.tables.luna16 import read_candidates
from luna16_monai.tables.points import PointTable


def test_probabilities_equal_those_of_the_store(
    phantom_dir: Path, store_dir: Path, classifier: Classifier, weights: Path
) -> None:
    table = read_candidates(phantom_dir).select(np.arange(0, 40, 4)[::-1])
    got = classifier.probabilities(table, classifier.volumes([phantom_dir]), views=1, batch_size=3)
    network = NoduleNet(two_scales=True, return_probabilities=True).eval()
    network.load_state_dict(torch.load(weights, weights_only=True))
    store = Store(store_dir)
    for row in range(len(table)):
        cutout = store.volume(table.series_uids[table.series[row]]).cutout(table.points_xyz[row])
        image = torch.from_numpy(cutout).float().clamp(-1000, 1000)[None, None]
        with torch.no_grad():
            assert got[row] == pytest.approx(network(image)[1][0, 1].item(), abs=1e-5)


def test_score_in_turn_prepares_each_ct_once_for_bundles_that_prepare_it_alike(
    phantom_dir: Path, weights: Path, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = read_candidates(phantom_dir)
    rows = np.flatnonzero(table.series < 2)[::-4]
    second = Classifier(bundle_dir("malignancy_classification"), weights=[weights], backend="torch")
    expected = classifier.probabilities(table.select(rows), classifier.volumes([phantom_dir]))
    prepared = []

    def prepare(ct: CT, *rest: Any) -> Any:
        prepared.append(ct.path.stem)
        return prepare_volume(ct, *rest)

    monkeypatch.setattr("luna16_monai.store.in_memory.prepare_volume", prepare)
    both = [classifier, second]
    scored = score_in_turn(both, table.select(rows), volumes_of(both, [phantom_dir]))
    assert sorted(prepared) == sorted(table.series_uids[:2])
    for one in scored:
        np.testing.assert_allclose(one, expected, atol=1e-6)


def record(folder: Path, network: NoduleNet, **settings: Any) -> Path:
    """The weights of a network in a folder, beside what a run records of it."""
    folder.mkdir()
    torch.save(folded_state(network), folder / "model.pt")
    run: dict[str, Any] = {
        "data": {},
        "network_def": network.arguments,
        "settings": {"spacing_zyx": [1.25, 0.7, 0.7], **settings},
    }
    (folder / "run.json").write_text(json.dumps(run), encoding="utf-8")
    return folder / "model.pt"


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_classifier_builds_the_network_that_the_weights_record(tmp_path: Path, backend: str) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino", reason="the extra 'export' brings it")
    torch.manual_seed(3)
    network = NoduleNet((32, 32, 32), channels=(4, 8), norm="BATCH", two_scales=True, return_probabilities=False).eval()
    weights = record(tmp_path / "run", network, spacing_zyx=[2.0, 1.0, 1.0])
    classifier = Classifier(bundle_dir(), weights=[weights], backend=backend)
    images = torch.randn(3, 1, 32, 32, 32) * 300 - 500
    with torch.inference_mode():
        expected = torch.softmax(network(images).double(), 1)[:, 1]
    torch.testing.assert_close(classifier.score(images, views=1), expected, rtol=0, atol=1e-5)
    assert classifier.config["spacing_zyx"] == [2.0, 1.0, 1.0]
    assert classifier.config["shape_zyx"] == [32, 32, 32]


def test_classifier_refuses_to_average_networks_of_different_cutouts(tmp_path: Path) -> None:
    one = record(tmp_path / "a", NoduleNet((32, 32, 32), channels=(4, 8)))
    other = record(tmp_path / "b", NoduleNet((16, 16, 16), channels=(4, 8)))
    with pytest.raises(ValueError, match="belong to different networks or cutouts"):
        Classifier(bundle_dir(), weights=[one, other])


def test_classifier_refuses_a_record_that_is_damaged(tmp_path: Path) -> None:
    weights = record(tmp_path / "a", NoduleNet((16, 16, 16), channels=(4, 8)))
    (tmp_path / "a" / "run.json").write_text('{"network_def": {}}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"run\.json does not say which network its weights belong to"):
        Classifier(bundle_dir(), weights=[weights])


@pytest.mark.parametrize(
    ("slices", "told"),
    [
        # 2 mm apart: 28 mm from the first to the last hold 23 of 1.25 mm; a cutout of 32 is 40 mm long
        (1, "thin.mhd has only 1 voxels along an axis: is this a whole CT?"),
        (3, "thin.mhd has only 3 voxels along an axis: is this a whole CT?"),
        (15, "series thin is shorter than a cutout (28.75 of 40 mm along z), which is air beyond it"),
        (21, None),
    ],
)
def test_a_short_ct_is_scored_with_one_line_by_one_bundle_and_by_two(
    tmp_path: Path,
    weights: Path,
    classifier: Classifier,
    caplog: pytest.LogCaptureFixture,
    slices: int,
    told: str | None,
) -> None:
    hu = np.full((slices, 60, 80), -800, np.int16)
    hu[:, :20] = 40
    path = write_ct(tmp_path / "thin.mhd", hu)
    table = PointTable(
        "list", ("thin",), np.zeros(2, np.int32), np.array([[30, 40, 30.0]] * 2), np.zeros(2), np.arange(2)
    )
    second = Classifier(bundle_dir("malignancy_classification"), weights=[weights], backend="torch")
    for call in (
        lambda: classifier.probabilities(table, classifier.volumes([path]), views=1),
        lambda: score_in_turn([classifier, second], table, volumes_of([classifier, second], [path]), views=1),
    ):
        caplog.clear()
        call()
        assert len(caplog.messages) == (told is not None)
        assert told is None or told in caplog.text


def test_a_batch_costs_its_own_rows_and_not_the_tables(
    phantom_dir: Path, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, made = read_candidates(phantom_dir), []
    volumes = classifier.volumes([phantom_dir])
    rows = np.arange(5)[::-1]

    def made_of(part: PointTable, positives_first: bool) -> CandidateList:
        made.append(len(part))
        return CandidateList(part, positives_first)

    monkeypatch.setattr("luna16_monai.inference.classifier.CandidateList", made_of)
    classifier.score_rows(table, rows, classifier.preprocessing(volumes), views=1, batch_size=2)
    assert made == [2, 2, 1]
    assert len(table) > 5
