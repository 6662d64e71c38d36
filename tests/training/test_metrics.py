"""The epoch's scores: numbers by hand, each candidate once, and the same on every rank."""

from __future__ import annotations

import math
from pathlib import Path

import ignite.distributed as idist
import numpy as np
import pytest
import torch
from monai.metrics import compute_roc_auc
from point_tables import point_table

from luna16_monai.dataset.candidates import CandidateList
from luna16_monai.evaluation.submission import ReferenceStandard
from luna16_monai.training.metrics import CandidateScores, classification_scores, is_better, key_metric, lower_is_better

# two scans; a nodule of 6 mm at the origin of scan 1.1, with two candidates on it
CANDIDATES = [("1.1", 0.0, 0, 0, 1), ("1.1", 1.0, 0, 0, 1), ("1.1", 60.0, 0, 0, 0), ("1.2", 0.0, 0, 0, 0)]
TRUTH = ReferenceStandard(("1.1", "1.2"), point_table([("1.1", 0.0, 0, 0, 6.0)]), None)
# of the list above: 0.3 and 0.9 on the nodule, 0.95 and 0.2 beside it
PROBABILITIES = [0.3, 0.9, 0.95, 0.2]


def logits(probabilities: list[float]) -> torch.Tensor:
    p = torch.tensor(probabilities)
    return torch.stack((torch.zeros_like(p), torch.log(p / (1 - p))), dim=1)


def candidate_list() -> CandidateList:
    return CandidateList(point_table(CANDIDATES))


def scores_on_two_ranks(rank: int, folder: str) -> None:
    metric = CandidateScores(TRUTH, candidate_list())
    metric.reset()
    # as DistributedSampler shares five places among four candidates: the first comes twice
    mine = torch.tensor([[0, 2, 0], [1, 3, 0]][rank][: 3 - rank])
    metric.update((logits(PROBABILITIES)[mine], torch.tensor([1, 1, 0, 0])[mine], mine))
    result = metric.compute()
    torch.save((result, metric.candidates, metric.probabilities), f"{folder}/{rank}.pt")


class TestClassificationScores:
    def test_classification_scores_are_those_worked_out_by_hand(self) -> None:
        # nodules at 0.8 and 0.4, others at 0.6 and 0.1: one each of tp, fn, fp, tn
        scores = classification_scores(logits([0.8, 0.4, 0.6, 0.1]), torch.tensor([1, 1, 0, 0]))
        expected = {
            "loss_positive": -(math.log(0.8) + math.log(0.4)) / 2,
            "loss_negative": -(math.log(0.4) + math.log(0.9)) / 2,
            **dict.fromkeys(("accuracy", "precision", "recall", "specificity", "f1"), 0.5),
            "roc_auc": 0.75,
            "average_precision": (1 + 2 / 3) / 2,
        }
        expected["loss"] = (expected["loss_positive"] + expected["loss_negative"]) / 2
        assert scores == pytest.approx(expected, rel=1e-6)

    def test_classification_scores_of_one_class_are_not_defined(self) -> None:
        scores = classification_scores(logits([0.8, 0.4]), torch.tensor([1, 1]))
        undefined = {name for name, value in scores.items() if math.isnan(value)}
        assert undefined == {"loss_negative", "specificity", "roc_auc", "average_precision"}

    def test_classification_scores_rank_beyond_the_precision_of_a_probability(self) -> None:
        # both probabilities are 1 in float32
        sure = torch.tensor([[0.0, 40.0], [0.0, 30.0]])
        assert classification_scores(sure, torch.tensor([1, 0]))["roc_auc"] == 1.0
        tied = torch.softmax(sure, dim=1)[:, 1]
        assert float(compute_roc_auc(tied, torch.tensor([1, 0]))) == 0.5


class TestCandidateScores:
    def test_candidate_scores_add_the_cpm(self) -> None:
        metric = CandidateScores(TRUTH, candidate_list())
        metric.reset()
        order = torch.tensor([3, 1, 0, 2])
        metric.update((logits(PROBABILITIES)[order], torch.tensor([1, 1, 0, 0])[order], order))
        result = metric.compute()
        # one false positive on two scans lies above the hit: the curve is 0 up to 1/2 a scan and there goes to 1
        assert result["cpm"] == pytest.approx(5 / 7)
        assert tuple(result) == metric.names
        assert metric.candidates.tolist() == [0, 1, 2, 3]
        assert metric.probabilities.tolist() == pytest.approx(PROBABILITIES)

    def test_candidate_scores_count_each_candidate_once_with_a_list_and_as_drawn_without(self) -> None:
        once, listed = CandidateScores(TRUTH, candidate_list()), CandidateScores(None, candidate_list())
        drawn = CandidateScores()
        for metric in (once, listed, drawn):
            metric.reset()
            for rows in ([0, 1, 2, 3], [0, 2]):
                metric.update((logits(PROBABILITIES)[rows], torch.tensor([1, 1, 0, 0])[rows], torch.tensor(rows)))
        assert once.compute()["cpm"] == pytest.approx(5 / 7)
        assert "cpm" not in drawn.compute() | listed.compute()
        assert listed.candidates.tolist() == [0, 1, 2, 3]
        assert (once.candidates.tolist(), drawn.candidates.tolist()) == ([0, 1, 2, 3], [0, 0, 1, 2, 2, 3])

    def test_candidate_scores_of_kinds_add_the_auc_without_kind_0(self) -> None:
        # malignant at 0.3 and 0.9, benign at 0.5, a non-nodule at 0.95: half of the pairs of nodules are right
        rows = [("1.1", 0.0, 0, 0, 1), ("1.1", 1.0, 0, 0, 1), ("1.1", 60.0, 0, 0, 2), ("1.2", 0.0, 0, 0, 0)]
        candidates = CandidateList(point_table(rows), positives_first=False)
        assert candidates.labels.tolist() == [1, 1, 0, 0]
        metric = CandidateScores(None, candidates)
        metric.reset()
        metric.update((logits([0.3, 0.9, 0.5, 0.95]), torch.tensor([1, 1, 0, 0]), torch.arange(4)))
        result = metric.compute()
        assert (result["roc_auc_nodules"], result["roc_auc"]) == (0.5, 0.25)
        assert tuple(result) == metric.names

    def test_candidate_scores_go_on_in_mid_epoch(self) -> None:
        whole, first, second = CandidateScores(), CandidateScores(), CandidateScores()
        parts = [(logits([0.8, 0.1]), torch.tensor([1, 0]), torch.tensor([0, 1])),
                 (logits([0.3, 0.6]), torch.tensor([1, 0]), torch.tensor([2, 3]))]  # fmt: skip
        for metric, seen in ((whole, parts), (first, parts[:1])):
            metric.reset()
            for part in seen:
                metric.update(part)
        second.load_state_dict(first.state_dict())
        second.update(parts[1])
        assert second.compute() == whole.compute()

    def test_candidate_scores_of_nothing_are_an_error(self) -> None:
        metric = CandidateScores()
        metric.reset()
        with pytest.raises(ValueError, match="no prediction was made"):
            metric.compute()

    def test_candidate_scores_want_candidates_with_a_truth(self) -> None:
        with pytest.raises(ValueError, match="a truth without candidates"):
            CandidateScores(TRUTH)

    def test_candidate_scores_are_the_same_on_two_ranks(self, tmp_path: Path) -> None:
        idist.spawn("gloo", scores_on_two_ranks, (str(tmp_path),), nproc_per_node=2)
        (one, candidates, probabilities), (other, *_) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
        assert one == other
        assert one["cpm"] == pytest.approx(5 / 7)
        assert candidates.tolist() == [0, 1, 2, 3]
        assert np.allclose(probabilities, PROBABILITIES)


class TestKeyMetric:
    def test_key_metric_names_any_score(self) -> None:
        metric = CandidateScores(TRUTH, candidate_list())
        assert key_metric("cpm", metric) == {"cpm": metric}

    def test_key_metric_refuses_a_score_that_is_not_computed(self) -> None:
        with pytest.raises(ValueError, match=r"key_metric cpm is none of the scores.*the log says why"):
            key_metric("cpm", CandidateScores())

    def test_is_better_takes_the_lowest_loss_and_the_highest_of_the_rest(self) -> None:
        assert (lower_is_better("loss_positive"), lower_is_better("cpm")) == (True, False)
        assert is_better("loss")(0.1, 0.2)
        assert not is_better("cpm")(0.1, 0.2)
        assert is_better("cpm")(0.1, math.nan)
        assert not is_better("cpm")(math.nan, 0.1)
