"""An exported classifier's probabilities are those that it predicts, at any size and batch."""

import numpy as np
import pytest
import torch
from torch import nn

from pvt_mm.deploy.classifier import Classifier
from pvt_mm.models.classifier import ImageClassifier
from tests.conftest import TINY_ARCH_V2

onnxruntime = pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')

# Two stages of one layer, since an export takes seconds per layer; R = 3 does not divide the map's sides.
ARCH = dict(
    embed_dims=(8, 16), depths=(1, 1), num_heads=(1, 2), patch_sizes=(4, 2), sr_ratios=(3, 1), mlp_ratios=(2, 2)
)
BACKBONES = [
    dict(type='pvt_mm.PVT', arch=ARCH, out_indices=(1,), out_type='cls_token'),
    dict(type='pvt_mm.PVTv2', arch=TINY_ARCH_V2, out_indices=(3,), out_type='avg_featmap'),
]


def build(backbone: dict) -> ImageClassifier:
    channels = backbone['arch']['embed_dims'][-1]
    model = ImageClassifier(backbone, dict(type='pvt_mm.LinearClsHead', num_classes=5, in_channels=channels)).eval()
    nn.init.normal_(model.head.fc.weight)
    return model


@pytest.mark.parametrize('backbone', BACKBONES, ids=lambda backbone: backbone['type'])
def test_probabilities_are_those_that_are_predicted(backbone):
    model, image = build(backbone), torch.randn(2, 3, 64, 96)
    assert Classifier.fits(model)
    with torch.no_grad():
        expected = torch.stack([sample.pred_score for sample in model(image, mode='predict')])
        assert torch.equal(Classifier(model)(image), expected)
    assert expected.std() > 0.05


def test_exported_probabilities_agree_at_any_size_and_batch():
    from pvt_mm.deploy.to_onnx import to_onnx

    graph = Classifier(build(BACKBONES[0]))
    session = onnxruntime.InferenceSession(to_onnx(graph, 3).SerializeToString())
    for batch, height, width in [(1, 64, 64), (3, 101, 230), (2, 224, 96)]:
        image = torch.randn(batch, 3, height, width)
        (scores,) = session.run(['scores'], {'image': image.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(scores, graph(image).numpy(), rtol=0, atol=1e-5)
