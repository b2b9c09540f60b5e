"""Accuracy of a classifier."""

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.evaluator import BaseMetric

from pvt_mm.registry import METRICS


@METRICS.register_module()
class Accuracy(BaseMetric):
    """Top-k accuracy and error in percent: ``accuracy/top1``, ``accuracy/error1``, ``accuracy/top5``, ...

    Args:
        topk: The values of k. Top-1 is always included. A k that is not below the number of classes is left out.
        kwargs: Arguments of MMEngine's ``BaseMetric``: ``collect_device``, ``prefix``, ``collect_dir``.
    """

    default_prefix = 'accuracy'

    def __init__(self, topk: Sequence[int] = (1, 5), **kwargs):
        super().__init__(**kwargs)
        self.topk = sorted({1, *topk})

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Stores for each sample whether its ``gt_label`` (1,) is among the top k of its ``pred_score`` (K,)."""
        scores = torch.stack([sample['pred_score'].float() for sample in data_samples])  # B, K
        labels = torch.stack([sample['gt_label'].reshape(1) for sample in data_samples]).to(scores.device)  # B, 1
        topk = [k for k in self.topk if k == 1 or k < scores.shape[1]]
        found = (scores.topk(topk[-1]).indices == labels).cumsum(1)  # B, k: 1 from the label's rank on
        self.results += [dict(zip(topk, row, strict=True)) for row in found[:, [k - 1 for k in topk]].tolist()]

    def compute_metrics(self, results: list[dict[int, int]]) -> dict[str, float]:
        """Returns ``top<k>`` and ``error<k>`` for each k, in percent."""
        right = {k: 100 * sum(result[k] for result in results) / len(results) for k in results[0]}
        return {name: value for k, top in right.items() for name, value in ((f'top{k}', top), (f'error{k}', 100 - top))}
