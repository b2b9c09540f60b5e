"""The classifier against Hugging Face's, and loading its weights into other models."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pvt_mm.checkpoint.formats import convert
from pvt_mm.checkpoint.loading import load_classifier
from pvt_mm.checkpoint.reader import read_checkpoint
from pvt_mm.models import PVT
from pvt_mm.models.classifier import ImageClassifier, LinearClsHead
from pvt_mm.structures import DataSample
from pvt_mm.utils.errors import CheckpointError
from tests.conftest import TINY_ARCH, TINY_ARCH_V2, align_hugging_faces_eps, relative_error
from tests.reference import reference, spread

CLASSES = 7


def classifier(arch='tiny', size: int = 224, **kwargs) -> ImageClassifier:
    """Returns a classifier with random biases, norms, tokens and positions, so that none is 0 or 1."""
    backbone = dict(
        type='pvt_mm.PVT', arch=arch, out_type='cls_token', pretrain_img_size=size, drop_path_rate=0.0, **kwargs
    )
    width = 512 if arch == 'tiny' else 32
    model = ImageClassifier(backbone, dict(type='pvt_mm.LinearClsHead', num_classes=CLASSES, in_channels=width))
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, mean=float('norm.weight' in name), std=0.2)
        elif 'token' in name or 'pos_embed' in name:
            nn.init.normal_(parameter, std=0.5)
    return model


def hugging_faces() -> nn.Module:
    """Returns Hugging Face's PVT-Tiny classifier, with the reference's eps."""
    transformers = pytest.importorskip('transformers')
    config = transformers.PvtConfig(depths=[2, 2, 2, 2], drop_path_rate=0.0, num_labels=CLASSES)
    model = transformers.PvtForImageClassification(config).eval()
    align_hugging_faces_eps(model)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, mean=float('norm' in name and 'weight' in name), std=0.2)
        elif 'token' in name or 'position' in name:
            nn.init.normal_(parameter, std=0.5)
    return model


def test_scores_and_gradients_equal_hugging_faces(tmp_path):
    theirs, ours = hugging_faces(), classifier().eval()
    torch.save(theirs.state_dict(), tmp_path / 'theirs.pth')
    load_classifier(ours.backbone, ours.head.fc, str(tmp_path / 'theirs.pth'))
    images, labels = torch.randn(2, 3, 224, 224), torch.tensor([3, 5])
    scores, expected = ours(images), theirs(images).logits
    assert scores.shape == (2, CLASSES)
    assert relative_error(scores, expected) < 1e-5
    F.cross_entropy(scores, labels).backward()
    F.cross_entropy(expected, labels).backward()
    gradients, _ = convert({name: parameter.grad for name, parameter in theirs.named_parameters()}, 'pvt_mm')
    for name, parameter in ours.named_parameters():
        assert relative_error(parameter.grad, gradients[name]) < 2e-4, name


def test_the_scores_of_v2_are_those_of_the_mean_token():
    model = ImageClassifier(
        dict(type='pvt_mm.PVTv2', arch=TINY_ARCH_V2, out_type='avg_featmap', drop_path_rate=0.0),
        dict(type='pvt_mm.LinearClsHead', num_classes=CLASSES, in_channels=32),
    )
    spread(model)
    images, labels = torch.randn(2, 3, 64, 96), torch.tensor([3, 5])
    weights = dict(model.backbone.named_parameters())
    (last,) = reference(weights, TINY_ARCH_V2, images, (3,))
    expected = last.mean((2, 3)) @ model.head.fc.weight.T + model.head.fc.bias
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)
    loss = model(images, [DataSample(gt_label=label[None]) for label in labels], mode='loss')['loss']
    gradients = torch.autograd.grad(loss, list(weights.values()))
    theirs = torch.autograd.grad(F.cross_entropy(expected, labels), list(weights.values()))
    for name, one, other in zip(weights, gradients, theirs, strict=True):
        assert relative_error(one, other) < 2e-4, name


def test_the_class_token_at_another_size_has_its_own_position():
    """Only the position embeddings of the grid are resampled."""
    model = classifier(TINY_ARCH, size=64).eval()
    with torch.no_grad():
        assert model(torch.randn(2, 3, 96, 160)).shape == (2, CLASSES)
        model.backbone.stages[3].pos_embed.table.zero_()
        tokens = []
        model.backbone.stages[3].layers[0].register_forward_pre_hook(lambda _, inputs: tokens.append(inputs[0]))
        model(torch.randn(1, 3, 96, 160))
    token = model.backbone.cls_token
    assert torch.equal(tokens[0][:, :1], token.token + token.pos_embed)
    assert tokens[0].shape[1] == 1 + 3 * 5


def test_it_compiles_without_graph_breaks():
    model = classifier(TINY_ARCH, size=64).eval()
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        compiled = torch.compile(model, backend='eager', fullgraph=True)
        assert torch.allclose(compiled(images), model(images), atol=1e-5)


def as_written(layout: str, model: ImageClassifier) -> dict:
    state = model.state_dict()
    if layout == 'pvt_mm':
        return {'meta': {'epoch': 3}, 'state_dict': state}
    if layout == 'authors':
        return convert(state, 'authors')[0]
    theirs = hugging_faces()
    return theirs.state_dict()


@pytest.mark.parametrize('layout', ['pvt_mm', 'authors', 'huggingface'])
def test_a_dense_backbone_loads_a_classifiers_checkpoint(layout, tmp_path):
    path = str(tmp_path / 'classifier.pth')
    torch.save(as_written(layout, classifier()), path)
    expected = convert(read_checkpoint(path), 'pvt_mm')[0]
    backbone = PVT('tiny', init_cfg=dict(type='Pretrained', checkpoint=path))
    backbone.init_weights()
    dense = backbone.state_dict()
    assert {f'backbone.{key}' for key in dense} == {key for key in expected if key.startswith('backbone.stages.')}
    for key, value in dense.items():
        assert torch.equal(value, expected[f'backbone.{key}']), key


@pytest.mark.parametrize('layout', ['pvt_mm', 'authors'])
def test_a_classifier_loads_strictly(layout, tmp_path):
    path, model = str(tmp_path / 'weights.pth'), classifier(TINY_ARCH, size=64)
    weights = convert(model.state_dict(), layout)[0]
    torch.save(weights, path)
    loaded = classifier(TINY_ARCH, size=64)
    loaded.init_cfg = dict(type='Pretrained', checkpoint=path)
    loaded.init_weights()
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    before = {name: value.clone() for name, value in loaded.state_dict().items()}
    nn.init.normal_(model.head.fc.weight)
    for key in [key for key in weights if 'head' in key or 'token' in key or 'norm1' in key]:
        torch.save({name: value for name, value in weights.items() if name != key}, path)
        with pytest.raises(CheckpointError):
            load_classifier(loaded.backbone, loaded.head.fc, path)
    torch.save({**weights, next(key for key in weights if 'head' in key and 'weight' in key): torch.ones(3, 32)}, path)
    with pytest.raises(CheckpointError, match=r'head.fc.weight \(3, 32\), not \(7, 32\)'):
        load_classifier(loaded.backbone, loaded.head.fc, path)
    assert all(torch.equal(value, before[name]) for name, value in loaded.state_dict().items())


def test_a_dense_checkpoint_is_refused(tmp_path):
    path, model = str(tmp_path / 'dense.pth'), classifier(TINY_ARCH, size=64)
    torch.save(PVT(TINY_ARCH, pretrain_img_size=64).state_dict(), path)
    with pytest.raises(CheckpointError, match=r'2 missing: head\.fc\.weight, head\.fc\.bias'):
        load_classifier(model.backbone, model.head.fc, path)
    model.backbone.init_cfg = dict(type='Pretrained', checkpoint=path)
    with pytest.raises(CheckpointError, match=r'4 missing: cls_token\.token'):
        model.backbone.init_weights()


def test_the_loss_is_the_smoothed_cross_entropy_of_soft_labels():
    head = LinearClsHead(4, 32, label_smoothing=0.1)
    scores = torch.randn(2, 4)
    shares = torch.tensor([[0.3, 0.7, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    hard = [DataSample(gt_label=torch.tensor([1])), DataSample(gt_label=torch.tensor([3]))]
    soft = [DataSample(gt_score=share) for share in shares]
    log = scores.log_softmax(1)
    smoothed = 0.9 * shares + 0.1 / 4
    assert head.loss(scores, soft).item() == pytest.approx(-(smoothed * log).sum(1).mean().item())
    smoothed = 0.9 * F.one_hot(torch.tensor([1, 3]), 4) + 0.1 / 4
    assert head.loss(scores, hard).item() == pytest.approx(-(smoothed * log).sum(1).mean().item())


def test_predictions_are_probabilities_and_their_argmax():
    model = classifier(TINY_ARCH, size=64).eval()
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        samples = model(images, [DataSample() for _ in images], mode='predict')
        expected = model(images).softmax(1)
    for sample, probabilities in zip(samples, expected, strict=True):
        assert torch.allclose(sample.pred_score, probabilities)
        assert sample.pred_label.tolist() == [probabilities.argmax().item()]


def test_initialisation_and_eps_are_the_references():
    backbone = PVT('tiny', out_type='cls_token')
    token = backbone.cls_token
    head = LinearClsHead(1000, 512)
    assert token.norm.eps == 1e-6
    for weights in (token.token, token.pos_embed, head.fc.weight):
        assert weights.std().item() == pytest.approx(0.02, rel=0.15)
        assert weights.abs().max() < 2
    assert not head.fc.bias.any()


def test_a_frozen_backbone_leaves_the_head_trainable():
    model = classifier(TINY_ARCH, size=64, frozen_stages=4)
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == {
        'head.fc.weight',
        'head.fc.bias',
    }
    model.train()
    assert not model.backbone.cls_token.training
