"""Top-k accuracy against NumPy, for any batches and ranks."""

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.evaluator import metric as mmengine_metric

from pvt_mm.evaluation import Accuracy
from pvt_mm.structures import DataSample


def samples(number: int, classes: int) -> list[DataSample]:
    rng = np.random.default_rng(classes)
    return [
        DataSample(
            pred_score=torch.from_numpy(rng.permutation(classes) / classes),
            gt_label=torch.tensor([int(rng.integers(classes) ** 2 / classes)]),
        )
        for _ in range(number)
    ]


def percent_right(given: list[DataSample], k: int) -> float:
    best = [np.argsort(-sample.pred_score.numpy())[:k] for sample in given]
    return 100 * np.mean([sample.gt_label.item() in places for sample, places in zip(given, best, strict=True)])


@pytest.mark.parametrize(
    ('classes', 'topk', 'expected'),
    [(20, (1, 5), {1, 5}), (6, (1, 5), {1, 5}), (5, (1, 5), {1}), (20, (3,), {1, 3}), (2, (7, 1), {1}), (1, (1,), {1})],
)
def test_top_k(classes, topk, expected):
    given = samples(101, classes)
    evaluator = Evaluator(Accuracy(topk=topk))
    for i in range(0, 101, 8):
        evaluator.process(given[i : i + 8])
    metrics = evaluator.evaluate(101)
    assert set(metrics) == {f'accuracy/{name}{k}' for k in expected for name in ('top', 'error')}
    for k in expected:
        assert metrics[f'accuracy/top{k}'] == pytest.approx(percent_right(given, k))
        assert metrics[f'accuracy/error{k}'] == pytest.approx(100 - percent_right(given, k))


def test_samples_that_the_sampler_repeats_to_fill_the_last_batch_are_not_counted(monkeypatch):
    given = samples(9, 10)
    shares = [given[0::2], [*given[1::2], given[0]]]  # 5 each: the first again
    metrics = []
    for share in shares:
        metrics.append(Accuracy())
        metrics[-1].process(None, [sample.to_dict() for sample in share])
        assert len(metrics[-1].results) == 5
    gathered = [result for pair in zip(*(metric.results for metric in metrics), strict=True) for result in pair]
    monkeypatch.setattr(mmengine_metric, 'collect_results', lambda results, size, *args, **kwargs: gathered[:size])
    assert metrics[0].evaluate(9)['accuracy/top5'] == pytest.approx(percent_right(given, 5))


def test_scores_of_half_precision():
    scores = torch.tensor([[0.25, 0.5], [0.5, 0.25]], dtype=torch.bfloat16)
    metric = Accuracy()
    metric.process(None, [dict(pred_score=score, gt_label=torch.tensor([1])) for score in scores])
    assert metric.evaluate(2) == {'accuracy/top1': 50.0, 'accuracy/error1': 50.0}
