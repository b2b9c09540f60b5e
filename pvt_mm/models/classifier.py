"""The ImageNet classifier that pre-trains PVT (sections 4.1 and 5.1): a class token and a linear head."""

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel, BaseModule
from torch import Tensor, nn

from pvt_mm.registry import MODELS
from pvt_mm.structures import DataSample


@MODELS.register_module()
class ImageClassifier(BaseModel):
    """A classifier of images, as MMPretrain's configs have it.

    Its checkpoint loads into a detector's or segmentor's ``PVT`` by ``init_cfg`` as it is. The training loss is the
    cross entropy with the soft labels that :class:`ClsDataPreprocessor` mixes, smoothed.

    Args:
        backbone: One that returns a (B, C) feature last: a ``PVT`` with ``out_type='cls_token'``.
        head: ``dict(type='pvt_mm.LinearClsHead', num_classes=..., in_channels=...)``.
        data_preprocessor: A :class:`ClsDataPreprocessor`, which gets the head's ``num_classes``.
        init_cfg: ``dict(type='Pretrained', checkpoint=...)`` loads a whole classifier strictly, head and all, from the
            authors' release, Hugging Face's or ours. A backbone alone is its own ``init_cfg``'s.

    Shape:
        - Input: (B, 3, H, W) normalised images.
        - Output: (B, num_classes) scores before the softmax with ``mode='tensor'``, a dict of the loss with ``loss``,
          and with ``predict`` the samples with ``pred_score`` and ``pred_label``.
    """

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

    def init_weights(self) -> None:
        """Initialises the parts, or loads the whole classifier that ``init_cfg`` names.

        Raises:
            CheckpointError: The weights cannot be read, or do not fit.
        """
        from pvt_mm.checkpoint import load_classifier  # it needs the backbone's module

        if (self.init_cfg or {}).get('type') != 'Pretrained':
            super().init_weights()
            return
        load_classifier(
            self.backbone, self.head.fc, **{key: value for key, value in self.init_cfg.items() if key != 'type'}
        )


@MODELS.register_module()
class LinearClsHead(BaseModule):
    """One linear layer from the class token's feature to the scores of the classes.

    Args:
        num_classes: Of the data.
        in_channels: C of the feature, 512 for all of Table 1's.
        label_smoothing: How much of each label is spread over all classes.
        init_cfg: An initialiser of MMEngine.
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
        """Returns the cross entropy of scores (B, num_classes) with ``gt_score``, or unmixed with ``gt_label``."""
        if 'gt_score' in data_samples[0]:
            target = torch.stack([sample.gt_score for sample in data_samples])
        else:
            target = torch.cat([sample.gt_label for sample in data_samples])
        return F.cross_entropy(scores, target.to(scores.device), label_smoothing=self.label_smoothing)

    def predict(self, scores: Tensor, data_samples: list[DataSample] | None = None) -> list[DataSample]:
        """Returns the samples with ``pred_score`` (num_classes,), probabilities, and ``pred_label`` (1,)."""
        samples = data_samples or [DataSample() for _ in scores]
        for sample, probabilities in zip(samples, scores.softmax(-1), strict=True):
            sample.pred_score = probabilities
            sample.pred_label = probabilities.argmax(keepdim=True)
        return samples
