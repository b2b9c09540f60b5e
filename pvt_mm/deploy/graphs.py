"""The exportable module of a built model: from a normalised image to what the model's task is about.

A module has ``task`` and ``outputs``, the names of what it returns, and takes

- ``image``, float32 (B, C, H, W): normalised images, padded below and on the right;
- ``img_shape``, int64 (B, 2): height and width of each image without padding;
- ``ori_shape``, int64 (B, 2): those of the original image, in whose pixels the results are.

A segmentor's shapes are (2,), of all images. A classifier takes ``image`` alone.
"""

from torch import nn

from pvt_mm.deploy.classifier import Classifier
from pvt_mm.deploy.dense import OneStage
from pvt_mm.deploy.detr import Detr
from pvt_mm.deploy.segmentor import Segmentor
from pvt_mm.deploy.two_stage import TwoStage
from pvt_mm.utils.errors import InputError


def build_graph(model: nn.Module) -> nn.Module:
    """Returns the exportable module of a model, which it shares.

    Raises:
        InputError: The model is of a kind that is not supported.
    """
    for kind in (Classifier, Segmentor, TwoStage, Detr, OneStage):
        if kind.fits(model):
            return kind(model)
    raise InputError(
        f'a {type(model).__name__} cannot be exported whole, as one-stage detectors, Faster, Mask and Cascade R-CNN, '
        'DETR, segmentors and classifiers can: use --part backbone'
    )
