"""ImageNet classification (sections 4.1 and 5.1 of the paper): a backbone and a linear head."""

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel, BaseModule
from torch import Tensor, nn

from pvt_mm.checkpoint.loading import AnyFormat, load_classifier, translate_classifier
from pvt_mm.checkpoint.reader import INIT_CFG_ADVICE, download_advice
from pvt_mm.registry import MODELS
from pvt_mm.structures import DataSample


@MODELS.register_module()
class ImageClassifier(AnyFormat, BaseModel):
    """An image classifier: a backbone and a linear head, configured as in MMPretrain.

    The ``PVT`` or ``PVTv2`` of a detector or segmentor can name its checkpoint in ``init_cfg``; nothing needs to be
    converted.

    Args:
        backbone: A ``PVT`` with ``out_type='cls_token'``, a ``PVTv2`` with ``out_type='avg_featmap'``, or any backbone
            whose last output is a (B, C) feature.
        head: ``dict(type='pvt_mm.LinearClsHead', num_classes=..., in_channels=...)``.
        data_preprocessor: A :class:`ClsDataPreprocessor`. Its ``num_classes`` defaults to the head's.
        init_cfg: ``dict(type='Pretrained', checkpoint=...)`` loads the backbone and the head, strictly, from a
            classifier's checkpoint of ours, the authors', Hugging Face's or (of a PVTv2) timm's. To load the
            backbone alone, set ``backbone.init_cfg``.

    Shape:
        - Input: (B, 3, H, W) normalised images.
        - Output: (B, num_classes) logits with ``mode='tensor'``; ``dict(loss=...)`` with ``mode='loss'``; the samples
          with ``pred_score`` and ``pred_label`` with ``mode='predict'``.
    """

    init_cfg: dict | None

    def __init__(self, backbone: dict, head: dict, data_preprocessor: dict | None = None, init_cfg: dict | None = None):
        if isinstance(data_preprocessor, dict):
            data_preprocessor = {'num_classes': head['num_classes'], **data_preprocessor}
        super().__init__(data_preprocessor, init_cfg)
        self.backbone = MODELS.build(backbone)
        self.head = MODELS.build(head)

    def forward(
        self, inputs: Tensor, data_samples: list[DataSample] | None = None, mode: str = 'tensor'
    ) -> Tensor | dict[str, Tensor] | list[DataSample]:
        scores = self.head(self.backbone(inputs))  # (B, num_classes)
        if mode == 'loss':
            return dict(loss=self.head.loss(scores, data_samples))
        return self.head.predict(scores, data_samples) if mode == 'predict' else scores

    def translate(self, state_dict: dict[str, Tensor], prefix: str) -> None:
        translate_classifier(self.backbone, state_dict, prefix)

    def init_weights(self) -> None:
        """Initialises backbone and head, or loads both from the checkpoint in ``init_cfg``.

        Raises:
            CheckpointError: The checkpoint is unreadable, or does not fit.
        """
        init_cfg = dict(self.init_cfg or {})
        if init_cfg.pop('type', None) == 'Pretrained':
            with download_advice(INIT_CFG_ADVICE.replace('model.backbone.', 'model.')):
                load_classifier(self.backbone, self.head.fc, **init_cfg)
        else:
            super().init_weights()


@MODELS.register_module()
class LinearClsHead(BaseModule):
    """A linear layer from the backbone's feature to the logits, with a cross-entropy loss.

    Args:
        in_channels: Channels C of the feature: the last of ``embed_dims``, 512 for the released models but b0 (256).
        label_smoothing: Share of each label that is spread evenly over all classes, in [0, 1).

    Raises:
        ValueError: ``label_smoothing`` is out of range.
    """

    def __init__(self, num_classes: int, in_channels: int, label_smoothing: float = 0.0, init_cfg: dict | None = None):
        super().__init__(init_cfg)
        if not 0 <= label_smoothing < 1:
            raise ValueError(f'label_smoothing must be at least 0 and less than 1, got {label_smoothing}')
        self.label_smoothing = label_smoothing
        self.fc = nn.Linear(in_channels, num_classes)
        nn.init.trunc_normal_(self.fc.weight, std=0.02)
        nn.init.zeros_(self.fc.bias)

    def forward(self, feats: tuple[Tensor, ...]) -> Tensor:
        return self.fc(feats[-1])

    def loss(self, scores: Tensor, data_samples: list[DataSample]) -> Tensor:
        """Returns the cross entropy of logits (B, num_classes) with ``gt_score`` if it is set, else ``gt_label``."""
        if 'gt_score' in data_samples[0]:
            target = torch.stack([sample.gt_score for sample in data_samples])
        else:
            target = torch.cat([sample.gt_label for sample in data_samples])
        return F.cross_entropy(scores, target.to(scores.device), label_smoothing=self.label_smoothing)

    def predict(self, scores: Tensor, data_samples: list[DataSample] | None = None) -> list[DataSample]:
        """Returns the samples with ``pred_score``, probabilities (num_classes,), and ``pred_label`` (1,)."""
        samples = data_samples or [DataSample() for _ in scores]
        for sample, probabilities in zip(samples, scores.softmax(-1), strict=True):
            sample.pred_score = probabilities
            sample.pred_label = probabilities.argmax(keepdim=True)
        return samples
