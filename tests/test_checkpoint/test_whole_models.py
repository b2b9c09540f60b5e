"""Detectors, segmentors and classifiers of every published format load as they are, whatever loads them."""

import copy
import functools
import json
import math
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner, load_checkpoint
from mmengine.runner import checkpoint as mmengine_checkpoint
from torch import Tensor, nn

from pvt_mm.apis.weight_checks import check_checkpoint, check_resumed
from pvt_mm.checkpoint.formats import convert
from pvt_mm.checkpoint.loading import load_classifier, load_pretrained
from pvt_mm.checkpoint.names import V1, V2
from pvt_mm.models import PVT, PVTv2
from pvt_mm.utils.errors import CheckpointError
from tests.conftest import ROOT, TINY_ARCH, TINY_ARCH_LINEAR, TINY_ARCH_V2, align_hugging_faces_eps, relative_error
from tests.reference import reference, spread
from tests.server import serve
from tests.test_checkpoint.test_formats import KINDS, as_huggingface, as_v2
from tools import test as test_tool
from tools import train as train_tool

# The same sizes as TINY_ARCH and TINY_ARCH_V2, for MMDetection's PVT and PVTv2.
SIZES = dict(embed_dims=8, num_layers=[1, 2, 1, 1], num_heads=[1, 2, 3, 4], mlp_ratios=[2] * 4)
THEIRS = {
    'v1': dict(type='mmdet.PyramidVisionTransformer', **SIZES),
    'v2': dict(type='mmdet.PyramidVisionTransformerV2', **SIZES),
}
OURS = {
    'v1': dict(type='pvt_mm.PVT', arch=TINY_ARCH, drop_path_rate=0.0),
    'v2': dict(type='pvt_mm.PVTv2', arch=TINY_ARCH_V2, drop_path_rate=0.0),
    'linear': dict(type='pvt_mm.PVTv2', arch=TINY_ARCH_LINEAR, drop_path_rate=0.0),
}
NARROW = {'model.neck.in_channels': [8, 16, 24, 32], 'model.neck.out_channels': 32}
CONFIGS = {
    'retinanet': dict(NARROW, **{'model.bbox_head.in_channels': 32, 'model.bbox_head.feat_channels': 16}),
    'mask_rcnn': dict(
        NARROW,
        **{
            'model.rpn_head.in_channels': 32,
            'model.rpn_head.feat_channels': 16,
            'model.roi_head.bbox_roi_extractor.out_channels': 32,
            'model.roi_head.mask_roi_extractor.out_channels': 32,
            'model.roi_head.bbox_head.in_channels': 32,
            'model.roi_head.bbox_head.fc_out_channels': 16,
            'model.roi_head.mask_head.in_channels': 32,
            'model.roi_head.mask_head.conv_out_channels': 16,
        },
    ),
    'semantic_fpn': dict(
        NARROW,
        **{
            'model.decode_head.in_channels': [32] * 4,
            'model.decode_head.channels': 16,
            'model.data_preprocessor.size': (64, 64),
        },
    ),
}


def config_of(folder: str, version: str = 'v1', **more) -> Config:
    config = Config.fromfile(ROOT / f'configs/{folder}/pvt_t_{"80k" if folder == "semantic_fpn" else "1x"}.py')
    config.merge_from_dict({**CONFIGS[folder], **more})
    config.model.backbone = copy.deepcopy(OURS[version])
    init_default_scope(config.default_scope)
    return config


def build(config: Config) -> nn.Module:
    return MODELS.build(copy.deepcopy(config.model)).eval()


def theirs(folder: str, version: str) -> nn.Module:
    """The model with MMDetection's backbone, with the authors' eps, and parameters that hide no mistake."""
    config = config_of(folder)
    config.model.backbone = dict(THEIRS[version])
    model = build(config)
    spread(model.backbone)
    for name, module in model.backbone.named_modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5 if name.endswith(('.0.norm', 'attn.norm')) else 1e-6
    for name, parameter in model.named_parameters():
        if not name.startswith('backbone.') and parameter.dim() == 1:
            nn.init.normal_(parameter, mean=float('bn' in name), std=0.1)
    return model


def outputs(model: nn.Module, folder: str) -> list[Tensor]:
    """What all of its parameters have a part in, as a flat list."""
    image = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        if folder != 'mask_rcnn':
            found = model(image)
            return [found] if isinstance(found, Tensor) else [level for levels in found for level in levels]
        maps, boxes = model.extract_feat(image), torch.tensor([[0.0, 10, 20, 90, 80], [0, 40, 5, 120, 60]])
        boxes_found, masks = model.roi_head._bbox_forward(maps, boxes), model.roi_head._mask_forward(maps, boxes)
        levels = [level for levels in model.rpn_head(maps) for level in levels]
        return [*levels, boxes_found['cls_score'], boxes_found['bbox_pred'], masks['mask_preds']]


def assert_close(ours: list[Tensor], expected: list[Tensor]) -> None:
    assert len(ours) == len(expected) > 0
    for one, other in zip(ours, expected, strict=True):
        assert (one - other).abs().max() <= 1e-4 * max(1, other.abs().max())
        assert other.std() > 1e-3  # it depends on the image, or is not constant


def save(model: nn.Module, layout: str, path: Path, prefix: str = '') -> str:
    """Writes a checkpoint of MMDetection 2 or MMSegmentation 0 with the backbone in a format."""
    state = dict(model.state_dict())
    if layout == 'authors':
        backbone = convert({k: v for k, v in state.items() if k.startswith('backbone.')}, 'authors')[0]
        state = {**{k: v for k, v in state.items() if not k.startswith('backbone.')}, **backbone}
    state = {prefix + key: value for key, value in state.items()}
    torch.save({'meta': {'CLASSES': ('a', 'b'), 'PALETTE': [[0, 0, 0], [9, 9, 9]]}, 'state_dict': state}, path)
    return str(path)


@pytest.fixture(scope='module')
def published(tmp_path_factory):
    """Returns the outputs of each task's reference, its checkpoints by layout, and the reference."""
    folder = tmp_path_factory.mktemp('published')

    @functools.cache
    def of(task: str, version: str = 'v1') -> tuple[list[Tensor], dict[str, str], nn.Module]:
        torch.manual_seed(0)
        model = theirs(task, version)
        names = {layout: folder / f'{task}_{version}_{layout}.pth' for layout in ('mmdet', 'authors')}
        return outputs(model, task), {layout: save(model, layout, name) for layout, name in names.items()}, model

    return of


def by_load_checkpoint(config, path, tmp_path):
    model = build(config)
    load_checkpoint(model, path, map_location='cpu', strict=True)
    return model


def by_load_from(config, path, tmp_path):
    """With an average of the weights, which is loaded strictly."""
    hook = EMAHook()
    runner = Runner(build(config), work_dir=str(tmp_path), load_from=path, custom_hooks=[hook], log_level='ERROR')
    runner.call_hook('before_run')
    runner.load_or_resume()
    averaged = hook.ema_model.module.state_dict()
    assert all(torch.equal(value, averaged[name]) for name, value in runner.model.state_dict().items())
    return runner.model


def by_inferencer(config, path, tmp_path):
    if config.default_scope == 'mmdet':
        from mmdet.apis import init_detector

        return init_detector(copy.deepcopy(config), path, device='cpu')
    from mmseg.apis import init_model

    return init_model(copy.deepcopy(config), path, device='cpu')


def by_check(config, path, tmp_path):
    """As tools/demo.py and attention.py do."""
    model = build(config)
    model.load_state_dict(check_checkpoint(model, path, strict=True))
    return model


@pytest.mark.parametrize('load', [by_load_checkpoint, by_load_from, by_inferencer, by_check])
@pytest.mark.parametrize(
    ('task', 'layout', 'version'),
    [
        *((task, layout, 'v1') for task in CONFIGS for layout in ('mmdet', 'authors')),
        *(('retinanet', layout, 'v2') for layout in ('mmdet', 'authors')),
    ],
)
def test_a_published_checkpoint_loads_whole_without_conversion(task, layout, version, load, published, tmp_path):
    expected, paths, _ = published(task, version)
    model = load(config_of(task, version), paths[layout], tmp_path)
    assert isinstance(model.backbone, PVT if version == 'v1' else PVTv2)
    assert_close(outputs(model.eval(), task), expected)


def test_the_prefix_of_data_parallel_is_no_obstacle(published, tmp_path):
    expected, _, reference_model = published('retinanet')
    path = save(reference_model, 'mmdet', tmp_path / 'ddp.pth', prefix='module.')
    config = config_of('retinanet')
    assert_close(outputs(by_load_checkpoint(config, path, tmp_path), 'retinanet'), expected)
    assert_close(outputs(by_check(config, path, tmp_path), 'retinanet'), expected)
    torch.distributed.init_process_group('gloo', store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        wrapped = MMDistributedDataParallel(build(config))
        wrapped.load_state_dict(torch.load(path)['state_dict'])
        assert_close(outputs(wrapped.module, 'retinanet'), expected)
        wrapped = MMDistributedDataParallel(build(config))
        load_checkpoint(wrapped, path, strict=True)
        assert_close(outputs(wrapped.module, 'retinanet'), expected)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize('kind', KINDS)
def test_a_backbone_takes_any_formats_state_dict(kind):
    kind_of, arch, sources, layouts = KINDS[kind]
    weights = spread(kind_of(arch)).state_dict()
    states = [sources['authors, classification'](weights), *(convert(weights, layout)[0] for layout in layouts)]
    for state in states:
        before, loaded = dict(state), kind_of(arch)
        loaded.load_state_dict(state)
        assert all(torch.equal(value, weights[name]) for name, value in loaded.state_dict().items())
        assert list(state) == list(before)  # the caller's is left alone


@pytest.mark.parametrize('version', ['v1', 'v2'])
def test_our_own_format_is_left_alone(version):
    model = build(config_of('retinanet', version))
    state = model.state_dict()
    translated = dict(state)
    model.backbone.translate(translated, 'backbone.')
    assert list(translated) == list(state)
    assert all(translated[key] is value for key, value in state.items())
    partial = {key: value for key, value in state.items() if 'stages.3' not in key}
    translated = dict(partial)
    model.backbone.translate(translated, 'backbone.')
    assert all(translated[key] is value for key, value in partial.items())
    assert translated.keys() == partial.keys()


# Of each version, in each format.
LAYOUTS = [(kind, layout) for kind in ('v1', 'v2') for layout in KINDS[kind][3]]


@pytest.mark.parametrize(('version', 'layout'), LAYOUTS)
def test_a_detector_loads_into_other_grids_channels_and_stages(version, layout):
    """As load_pretrained does it for a backbone, whatever the format of the rest."""
    source, grid = build(config_of('retinanet', version)), 'stages.1.pos_embed.table'
    kernel = 'stages.0.patch_embed.proj.weight'
    state = convert(source.state_dict(), layout)[0] if layout != 'pvt_mm' else source.state_dict()
    weights = source.backbone.state_dict()
    options = [dict(in_channels=4), dict(out_indices=(0, 1))]
    options += [dict(pretrain_img_size=(96, 128))] * (version == 'v1')
    kind_of, arch = KINDS[version][:2]
    for loaded, option in [(kind_of(arch, **option), option) for option in options]:
        holder = nn.ModuleDict(dict(backbone=loaded))
        inner = {key: value for key, value in state.items() if key.startswith('backbone.')}
        holder.load_state_dict(inner)
        expected = dict(weights)
        if 'in_channels' in option:
            expected[kernel] = (weights[kernel].mean(1, keepdim=True) * 3 / 4).expand(-1, 4, -1, -1)
        found = loaded.state_dict()
        for name in found:
            if found[name].shape == expected[name].shape:
                assert torch.equal(found[name], expected[name]), name
            else:
                assert name.endswith('pos_embed.table')
                assert 'pretrain_img_size' in option
        if 'pretrain_img_size' in option:
            table = weights[grid].permute(0, 3, 1, 2)
            resampled = F.interpolate(table, (12, 16), mode='bilinear', align_corners=False).permute(0, 2, 3, 1)
            torch.testing.assert_close(found[grid], resampled)


def test_our_former_format_loads_in_a_detector():
    """Kernels were matrices of (P, P, C) patches."""
    source = build(config_of('retinanet'))
    former = {
        name: value.permute(0, 2, 3, 1).flatten(1)
        if name.startswith('backbone.') and name.endswith('weight') and value.dim() == 4
        else value
        for name, value in source.state_dict().items()
    }
    loaded = build(config_of('retinanet'))
    loaded.load_state_dict(former)
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in loaded.state_dict().items())
    few = {name: value for name, value in former.items() if 'pos_embed' not in name}
    found = build(config_of('retinanet')).load_state_dict(few, strict=False)
    assert found.missing_keys == [f'backbone.stages.{stage}.pos_embed.table' for stage in range(4)]
    assert not found.unexpected_keys


@pytest.mark.parametrize(('version', 'layout'), LAYOUTS)
def test_a_part_of_a_state_dict_loads_and_pytorch_reports_the_rest(version, layout):
    config = config_of('retinanet', version)
    source, names = build(config), {'v1': V1, 'v2': V2}[version]

    def in_layout(name: str) -> str:
        return f'backbone.{names.translate(name, "pvt_mm", layout)}'

    state = convert(source.state_dict(), layout)[0] if layout != 'pvt_mm' else source.state_dict()
    first = next(key for key in state if key.startswith('backbone.'))
    extra = f'{first.rpartition(".")[0]}.extra'
    absent = [f'stages.{stage}.{"pos_embed.table" if version == "v1" else "norm.bias"}' for stage in range(4)]
    missing = [f'backbone.{name}' for name in absent]
    part = {**{key: value for key, value in state.items() if key not in map(in_layout, absent)}, extra: torch.ones(1)}
    loaded = build(config)
    found = loaded.load_state_dict(part, strict=False)
    assert (found.missing_keys, found.unexpected_keys) == (missing, [extra])
    assert all(
        torch.equal(value, source.state_dict()[name]) or name in missing for name, value in loaded.state_dict().items()
    )
    with pytest.raises(RuntimeError, match=rf'Missing key.*{absent[0]}'):
        loaded.load_state_dict(part)
    del part[extra]
    messages = []
    loaded = build(config)
    with mock.patch.object(mmengine_checkpoint, 'print_log', lambda text, **_: messages.append(text)):
        mmengine_checkpoint.load_state_dict(loaded, part, strict=False)
    assert messages == [
        'The model and loaded state dict do not match exactly\n\n'
        f'missing keys in source state_dict: {", ".join(missing)}\n'
    ]
    for name in ('stages.0.patch_embed.proj.weight', 'stages.0.layers.0.ffn.fc1.bias'):
        left = {key: value for key, value in state.items() if key != in_layout(name)}
        found = build(config).load_state_dict(left, strict=False)
        assert (found.missing_keys, found.unexpected_keys) == ([f'backbone.{name}'], [])


@pytest.mark.parametrize('kind', KINDS)
def test_a_part_of_a_classifier_loads(kind):
    source = classifier(kind)
    for layout in FOREIGN[kind]:
        state = as_published_classifier(source, kind, layout)
        head = next(key for key in state if key.endswith(('head.bias', 'classifier.bias')))
        del state[head]
        found = classifier(kind).load_state_dict({**state, 'extra': torch.ones(1)}, strict=False)
        assert (found.missing_keys, found.unexpected_keys) == (['head.fc.bias'], ['extra'])


def test_a_run_is_not_resumed_from_weights_that_had_to_be_resampled(tmp_path):
    """The state of its optimizer would have other shapes."""
    model, path = nn.ModuleDict(dict(backbone=PVT(TINY_ARCH))), str(tmp_path / 'a.pth')
    torch.save({'state_dict': model.state_dict()}, path)
    check_resumed(model, path)
    other = nn.ModuleDict(dict(backbone=PVT(TINY_ARCH, pretrain_img_size=96)))
    check_checkpoint(other, path, strict=True)
    with pytest.raises(CheckpointError, match=r'does not match the model: backbone.stages.0.pos_embed: \(1, 56, 56, 8'):
        check_resumed(other, path)


# The classifiers' formats other than ours.
FOREIGN = dict.fromkeys(KINDS, ('authors', 'timm', 'huggingface')) | {'v1': ('authors', 'huggingface')}


def classifier(kind: str = 'v1', **settings) -> nn.Module:
    out_type = 'cls_token' if kind == 'v1' else 'avg_featmap'
    head = dict(type='pvt_mm.LinearClsHead', num_classes=7, in_channels=32)
    init_default_scope('mmengine')
    backbone = dict(OURS[kind], out_type=out_type, **settings)
    model = MODELS.build(dict(type='pvt_mm.ImageClassifier', backbone=backbone, head=head)).eval()
    spread(model.backbone)
    nn.init.normal_(model.head.fc.bias)
    return model


def as_published_classifier(model: nn.Module, kind: str, layout: str) -> dict[str, Tensor]:
    weights = {key.removeprefix('backbone.'): value for key, value in model.state_dict().items() if 'stages' in key}
    head = {key.removeprefix('head.fc.'): value for key, value in model.state_dict().items() if 'head' in key}
    theirs = {f'{"classifier" if layout == "huggingface" else "head"}.{kind}': value for kind, value in head.items()}
    if kind != 'v1':
        return as_v2(layout, weights) | theirs
    state = convert(model.state_dict(), 'authors')[0]
    if layout == 'authors':
        return state
    others = dict(cls_token='patch_embeddings.3.cls_token', pos_embed4='patch_embeddings.3.position_embeddings')
    others |= {f'norm.{kind}': f'layer_norm.{kind}' for kind in ('weight', 'bias')}
    whole = as_huggingface(weights) | {f'pvt.encoder.{name}': state[authors] for authors, name in others.items()}
    return whole | theirs


@pytest.mark.parametrize(('kind', 'layout'), [(kind, layout) for kind in KINDS for layout in FOREIGN[kind]])
def test_a_classifier_loads_whole(kind, layout, tmp_path):
    source, image = classifier(kind), torch.randn(1, 3, 64, 96)
    state, path = as_published_classifier(source, kind, layout), str(tmp_path / 'a.pth')
    torch.save({'model': state}, path)
    torch.save({'state_dict': state}, tmp_path / 'mmengine.pth')
    loaded = classifier(kind), classifier(kind), classifier(kind), classifier(kind)
    loaded[0].load_state_dict(check_checkpoint(loaded[0], path, strict=True))
    loaded[1].load_state_dict(state)
    load_checkpoint(loaded[2], str(tmp_path / 'mmengine.pth'), strict=True)
    loaded[3].init_cfg = dict(type='Pretrained', checkpoint=path)
    loaded[3].init_weights()
    for model in loaded:
        torch.testing.assert_close(model(image), source(image))
    other = classifier('v2' if kind == 'v1' else 'v1')
    with pytest.raises(CheckpointError, match='the backbone in it does not fit: it is a PVT'):
        other.load_state_dict(state, strict=False)
    with pytest.raises(CheckpointError, match=r'a\.pth: it is a PVT'):
        load_classifier(other.backbone, other.head.fc, path)
    if kind == 'v1':
        smaller = classifier(pretrain_img_size=96)
        smaller.load_state_dict(state)
        assert smaller.backbone.stages[0].pos_embed.table.shape[1:3] == (24, 24)  # resampled
        assert torch.equal(smaller.head.fc.bias, source.head.fc.bias)


@pytest.mark.parametrize('kind', ['v2', 'linear'])
def test_scores_equal_those_of_hugging_faces_pvt_v2_both_ways(kind):
    from transformers import PvtV2Config, PvtV2ForImageClassification

    sizes = dict(
        hidden_sizes=[8, 16, 24, 32], depths=[1, 2, 1, 1], num_attention_heads=[1, 2, 3, 4], mlp_ratios=[2] * 4
    )
    config = PvtV2Config(**sizes, linear_attention=kind == 'linear', num_labels=7)
    theirs, fresh = (PvtV2ForImageClassification(config).double().eval() for _ in range(2))
    for model in (theirs, fresh):
        align_hugging_faces_eps(model)
    spread(theirs)
    ours, backbone = classifier(kind).double(), PVTv2(OURS[kind]['arch']).double()
    ours.load_state_dict(theirs.state_dict())
    backbone.load_state_dict(theirs.pvt_v2.state_dict())
    assert all(torch.equal(value, ours.backbone.state_dict()[name]) for name, value in backbone.state_dict().items())
    image = torch.randn(2, 3, 96, 128).double()
    with torch.no_grad():
        assert relative_error(ours(image), theirs(image).logits) < 1e-10
        fresh.load_state_dict(convert(ours.state_dict(), 'huggingface')[0])
        assert torch.equal(fresh(image).logits, theirs(image).logits)


# ------------------------------------------------------------------------------------------------ DETR of MMDetection 2


class Attention(nn.Module):
    def __init__(self, dims: int):
        super().__init__()
        self.attn = nn.MultiheadAttention(dims, 8, batch_first=True)

    def forward(self, x, keys, values, mask):
        return x[0] + self.attn(x[0] + x[1], keys, values, key_padding_mask=mask)[0]


class FeedForward(nn.Module):
    def __init__(self, dims: int, hidden: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Sequential(nn.Linear(dims, hidden), nn.ReLU()), nn.Linear(hidden, dims))


class Layer(nn.Module):
    def __init__(self, dims: int, hidden: int, attentions: int):
        super().__init__()
        self.attentions = nn.ModuleList(Attention(dims) for _ in range(attentions))
        self.ffns = nn.ModuleList([FeedForward(dims, hidden)])
        self.norms = nn.ModuleList(nn.LayerNorm(dims) for _ in range(attentions + 1))

    def forward(self, x, pos, mask=None, memory=None, memory_pos=None):
        x = self.norms[0](self.attentions[0]((x, pos), x + pos, x, None if memory is not None else mask))
        if memory is not None:
            x = self.norms[1](self.attentions[1]((x, pos), memory + memory_pos, memory, mask))
        return self.norms[-1](x + self.ffns[0].layers(x))


class Layers(nn.Module):
    def __init__(self, count: int, attentions: int):
        super().__init__()
        self.layers = nn.ModuleList(Layer(256, 2048, attentions) for _ in range(count))
        if attentions == 2:
            self.post_norm = nn.LayerNorm(256)


class OldHead(nn.Module):
    """The head of DETR with the names of MMDetection 2.13, in which the authors' checkpoint is."""

    def __init__(self, channels: int, layers: int):
        super().__init__()
        self.input_proj = nn.Conv2d(channels, 256, 1)
        self.query_embedding = nn.Embedding(100, 256)
        self.transformer = nn.ModuleDict(dict(encoder=Layers(layers, 1), decoder=Layers(layers, 2)))
        self.fc_cls, self.fc_reg = nn.Linear(256, 81), nn.Linear(256, 4)
        self.reg_ffn = FeedForward(256, 256)

    def forward(self, feature: Tensor, shapes: list[tuple[int, int]], size: tuple[int, int]):
        mask = torch.ones(len(shapes), *size)
        for one, (H, W) in zip(mask, shapes, strict=True):
            one[:H, :W] = 0
        mask = F.interpolate(mask[None], feature.shape[-2:])[0].bool()  # (B, h, w), True where there is no image
        y, x = (~mask).float().cumsum(1), (~mask).float().cumsum(2)
        places = [2 * math.pi * y / (y[:, -1:] + 1e-6), 2 * math.pi * x / (x[:, :, -1:] + 1e-6)]
        wave = 10000 ** (2 * (torch.arange(128) // 2) / 128)
        angles = [place[..., None] / wave for place in places]
        halves = [torch.stack([a[..., 0::2].sin(), a[..., 1::2].cos()], -1).flatten(-2) for a in angles]
        pos, mask = torch.cat(halves, -1).flatten(1, 2), mask.flatten(1)
        memory = self.input_proj(feature).flatten(2).mT  # (B, h * w, 256)
        for layer in self.transformer['encoder'].layers:
            memory = layer(memory, pos, mask)
        queries = self.query_embedding.weight.expand(len(shapes), -1, -1)
        x, found = torch.zeros_like(queries), []
        for layer in self.transformer['decoder'].layers:
            x = layer(x, queries, mask, memory, pos)
            found.append(self.transformer['decoder'].post_norm(x))
        hidden = torch.stack(found)
        return self.fc_cls(hidden), self.fc_reg(self.reg_ffn.layers(hidden).relu()).sigmoid()


@pytest.fixture(scope='module')
def detr(tmp_path_factory):
    """The config of a small DETR, a checkpoint of MMDetection 2 for it, its inputs and its outputs."""
    from mmdet.structures import DetDataSample

    torch.manual_seed(0)
    config = Config.fromfile(ROOT / 'configs/detr/pvt_s_50e.py')
    config.merge_from_dict({'model.backbone.init_cfg': None, 'model.neck.in_channels': [32]})
    config.merge_from_dict({'model.encoder.num_layers': 2, 'model.decoder.num_layers': 2})
    config.model.backbone.arch = TINY_ARCH
    backbone, head = spread(PVT(TINY_ARCH)), OldHead(32, 2).eval()
    for parameter in head.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, mean=0.5, std=0.2)
    state = {f'backbone.{key}': value for key, value in convert(backbone.state_dict(), 'authors')[0].items()}
    state |= {f'bbox_head.{key}': value for key, value in head.state_dict().items()}
    path = tmp_path_factory.mktemp('detr') / 'detr.pth'
    torch.save({'meta': {'CLASSES': ('a', 'b')}, 'state_dict': state}, path)
    images, shapes = torch.randn(2, 3, 96, 160), [(96, 160), (64, 128)]
    samples = [DetDataSample(metainfo=dict(img_shape=shape, batch_input_shape=(96, 160))) for shape in shapes]
    with torch.no_grad():
        feature = reference(backbone.state_dict(), TINY_ARCH, images, (3,))[0]
        expected = head(feature, shapes, (96, 160))
    return config, str(path), (images, samples), expected


@pytest.mark.parametrize('load', [by_load_checkpoint, by_inferencer, by_check])
def test_detr_of_mmdetection_2_loads_whole(load, detr, tmp_path):
    config, path, inputs, expected = detr
    init_default_scope('mmdet')
    model = load(config, path, tmp_path).eval()
    with torch.no_grad():
        assert_close(list(model(*inputs)), list(expected))


# ------------------------------------------------------------------------------------------------- what does not fit


@pytest.mark.parametrize(
    ('task', 'changes', 'message'),
    [
        (
            'retinanet',
            {'model.bbox_head.num_classes': 3},
            'does not match the model: backbone and neck fit; bbox_head.retina_cls: 80 classes, the model has 3$',
        ),
        (
            'mask_rcnn',
            {'model.roi_head.bbox_head.num_classes': 1, 'model.roi_head.mask_head.num_classes': 1},
            'backbone, neck and rpn_head fit; roi_head.bbox_head.fc_cls: 80 classes, the model has 1, '
            'roi_head.bbox_head.fc_reg: 80 classes, the model has 1, roi_head.mask_head.conv_logits: 80 classes, the',
        ),
        (
            'semantic_fpn',
            {'model.decode_head.num_classes': 19},
            'backbone and neck fit; decode_head.conv_seg: 150 classes, the model has 19$',
        ),
        (
            'retinanet',
            {'model.bbox_head.feat_channels': 24},
            r'backbone and neck fit; .*cls_convs.0.conv: \(16, 32, 3, 3\), not \(24, 32, 3, 3\), .* more$',
        ),
    ],
)
def test_what_does_not_fit_is_said_by_parts(task, changes, message, published):
    for path in published(task)[1].values():
        with pytest.raises(CheckpointError, match=message):
            check_checkpoint(build(config_of(task, **changes)), path, strict=True)
        weights = check_checkpoint(build(config_of(task, **changes)), path, strict=False)
        assert any(key.startswith('backbone.stages.0.') for key in weights)


def test_another_kind_of_model_is_named(published, tmp_path):
    model, path = build(config_of('retinanet')), published('mask_rcnn')[1]['mmdet']
    with pytest.raises(
        CheckpointError, match=r'does not match the model: backbone fits; bbox_head: absent, neck.lateral_convs.0'
    ):
        check_checkpoint(model, path, strict=True)
    other = {key: value for key, value in model.state_dict().items() if not key.startswith('backbone.')}
    torch.save(
        {**other, 'backbone.conv1.weight': torch.ones(1), 'backbone.bn1.weight': torch.ones(1)}, tmp_path / 'r.pth'
    )
    message = 'neck and bbox_head fit; backbone: of another kind, with backbone.conv1.weight, backbone.bn1.weight$'
    with pytest.raises(CheckpointError, match=message):
        check_checkpoint(model, str(tmp_path / 'r.pth'), strict=True)


@pytest.mark.parametrize(('theirs', 'ours'), [('v1', 'v2'), ('v2', 'v1')])
def test_a_detector_of_the_other_version_is_a_line(theirs, ours, published, tmp_path):
    model, state = build(config_of('retinanet', ours)), build(config_of('retinanet', theirs)).state_dict()
    torch.save({'state_dict': state}, tmp_path / 'ours.pth')
    kinds = {'v1': 'PVT', 'v2': 'PVTv2'}
    message = f'it is a {kinds[theirs]}, and the model is a {kinds[ours]}: set type=.pvt_mm.{kinds[theirs]}., or use'
    for path in (str(tmp_path / 'ours.pth'), *published('retinanet', theirs)[1].values()):
        for strict in (True, False):
            with pytest.raises(CheckpointError, match=f'^{path}: the backbone in it does not fit: {message}'):
                check_checkpoint(model, path, strict=strict)
        with pytest.raises(CheckpointError, match=f'^the backbone in it does not fit: {message}'):
            load_checkpoint(model, path)
        with pytest.raises(CheckpointError, match=f'^{path}: {message}'):
            load_pretrained(model.backbone, path, prefix='backbone')
    with pytest.raises(CheckpointError, match=f'ours.pth does not match the model: .*backbone: {message}'):
        check_resumed(model, str(tmp_path / 'ours.pth'))


# --------------------------------------------------------------------------------------------------------- the tools


DETECTOR = """
_base_ = '{root}/configs/demo/retinanet_shapes.py'
backbone = dict(arch=dict(_delete_=True, **{arch}), drop_path_rate=0.0)
model = dict(backbone=backbone, neck=dict(in_channels=[8, 16, 24, 32]), test_cfg=dict(score_thr=0.0))
loading = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(batch_size=12, **loading)
val_dataloader = loading
test_dataloader = loading
train_cfg = dict(max_epochs=1)
"""


@pytest.fixture
def detector(tmp_path, monkeypatch):
    """Writes detector.py, and a checkpoint of it in our format and in MMDetection's, ours.pth and theirs.pth."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    Path('detector.py').write_text(DETECTOR.format(root=ROOT, arch=TINY_ARCH))
    init_default_scope('mmdet')
    model = MODELS.build(Config.fromfile('detector.py').model)
    torch.save({'state_dict': model.state_dict()}, 'ours.pth')
    torch.save({'state_dict': convert(model.state_dict(), 'mmdet')[0]}, 'theirs.pth')


def test_the_test_is_the_same_in_any_format(detector, shapes, capsys):
    found = []
    for name in ('ours', 'theirs'):
        assert test_tool.main(['detector.py', f'{name}.pth', '--cfg-options', f'data_root={shapes}']) == 0
        found.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    assert found[0] == found[1]


def test_another_models_checkpoint_is_a_line_before_anything_is_built(detector, shapes, capsys, published):
    path = published('retinanet')[1]['mmdet']
    assert test_tool.main(['detector.py', path, '--cfg-options', f'data_root={shapes}']) == 2
    printed = capsys.readouterr()
    assert 'does not match the model: backbone fits; neck.lateral_convs.0.conv: ' in printed.err
    assert len((printed.out + printed.err).splitlines()) < 10
    assert not Path('work_dirs').exists()


def test_training_starts_from_a_url_which_is_checked_before_it(detector, shapes, capsys):
    with serve() as server:
        server.files['/theirs.pth'] = Path('theirs.pth').read_bytes()
        start = ['detector.py', '--no-validate', '--cfg-options', f'data_root={shapes}']
        assert train_tool.main([*start, f'load_from={server.url("/absent.pth")}']) == 2
        assert '/absent.pth cannot be downloaded (the server answers 404 Not Found)' in capsys.readouterr().err
        assert not list(Path('work_dirs').rglob('*.pth'))
        slow = ['optim_wrapper.optimizer.lr=0.0', 'optim_wrapper.optimizer.weight_decay=0.0']
        assert train_tool.main([*start, f'load_from={server.url("/theirs.pth")}', *slow]) == 0
        assert server.requests == ['/absent.pth', '/theirs.pth']
    trained = torch.load('work_dirs/detector/epoch_1.pth', weights_only=False)['state_dict']
    start = torch.load('ours.pth')['state_dict']
    assert all(torch.equal(trained[name], value) for name, value in start.items())
