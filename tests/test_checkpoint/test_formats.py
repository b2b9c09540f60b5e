"""Every format in and out, strictly; nothing executed; nothing silently left out."""

import argparse
import functools
import itertools
import pickle
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModule

from pvt_mm.apis.weight_checks import check_resumed, check_start
from pvt_mm.checkpoint import loading
from pvt_mm.checkpoint.formats import backbone_weights, convert
from pvt_mm.checkpoint.loading import load_pretrained
from pvt_mm.checkpoint.names import SEGFORMER, V1, V2, WeightSizes
from pvt_mm.checkpoint.reader import cached_path, read_checkpoint, read_file, safe_reading
from pvt_mm.checkpoint.writer import save_checkpoint
from pvt_mm.models import PVT, PVTv2
from pvt_mm.models.archs import ARCHS, ARCHS_V2
from pvt_mm.utils.errors import CheckpointError
from tests.conftest import TINY_ARCH, TINY_ARCH_LINEAR, TINY_ARCH_V2
from tools import convert_checkpoint


def as_authors_classifier(weights: dict) -> dict:
    """The authors' classification release: theirs plus a token, a norm and a head."""
    state = convert(weights, 'authors')[0]
    dims = state['pos_embed4'].shape[-1]
    return {
        **state,
        'cls_token': torch.randn(1, 1, dims),
        'norm.weight': torch.ones(dims),
        'norm.bias': torch.zeros(dims),
        'head.weight': torch.randn(9, dims),
        'head.bias': torch.zeros(9),
    }


def as_huggingface(weights: dict) -> dict:
    """Hugging Face's classifier, spelt out here by hand."""
    authors = convert(weights, 'authors')[0]
    state = {}
    for name, value in authors.items():
        kind, *rest = name.split('.')
        stage = int(kind[-1]) - 1
        if kind.startswith('pos_embed'):
            state[f'pvt.encoder.patch_embeddings.{stage}.position_embeddings'] = value
        elif kind.startswith('patch_embed'):
            part = {'proj': 'projection', 'norm': 'layer_norm'}[rest[0]]
            state[f'pvt.encoder.patch_embeddings.{stage}.{part}.{rest[1]}'] = value
        else:
            layer, *part, last = rest
            before = f'pvt.encoder.block.{stage}.{layer}.'
            if part == ['attn', 'kv']:
                key, val = value.chunk(2)
                state[f'{before}attention.self.key.{last}'] = key
                state[f'{before}attention.self.value.{last}'] = val
                continue
            part = {
                'norm1': 'layer_norm_1',
                'norm2': 'layer_norm_2',
                'attn.q': 'attention.self.query',
                'attn.sr': 'attention.self.sequence_reduction',
                'attn.norm': 'attention.self.layer_norm',
                'attn.proj': 'attention.output.dense',
                'mlp.fc1': 'mlp.dense1',
                'mlp.fc2': 'mlp.dense2',
            }['.'.join(part)]
            state[f'{before}{part}.{last}'] = value
    dims = authors['pos_embed4'].shape[-1]
    return {
        **state,
        'pvt.encoder.patch_embeddings.3.cls_token': torch.randn(1, 1, dims),
        'pvt.encoder.layer_norm.weight': torch.ones(dims),
        'pvt.encoder.layer_norm.bias': torch.zeros(dims),
        'classifier.weight': torch.randn(9, dims),
        'classifier.bias': torch.zeros(9),
    }


# The names of PVTv2's parameters in each format, spelt out here by hand: what to replace in ours, in this order.
V2_NAMES = {
    'authors': {
        'stages.{s}.patch_embed': 'patch_embed{s1}', 'stages.{s}.norm': 'norm{s1}', 'stages.{s}.layers': 'block{s1}',
        'sr.proj': 'sr', 'sr.norm': 'norm', 'ffn.dwconv': 'mlp.dwconv.dwconv', 'ffn': 'mlp',
    },
    'timm': {
        'stages.0.patch_embed': 'patch_embed', 'stages.{s}.patch_embed': 'stages.{s}.downsample', 'layers': 'blocks',
        'sr.proj': 'sr', 'sr.norm': 'norm', 'ffn': 'mlp',
    },
}  # fmt: skip


def as_v2(layout: str, weights: dict) -> dict:
    """A PVTv2 in a format."""
    if layout == 'huggingface':  # which test_whole_models.py compares with theirs
        return {f'pvt_v2.{name}': value for name, value in convert(weights, layout)[0].items()}
    state = {}
    for name, value in weights.items():
        s = int(name.split('.')[1])
        for ours, theirs in V2_NAMES[layout].items():
            name = name.replace(ours.format(s=s), theirs.format(s=s, s1=s + 1))
        state[name] = value
    return state


def as_v2_classifier(layout: str, weights: dict) -> dict:
    head = 'classifier' if layout == 'huggingface' else 'head'
    dims = len(weights['stages.3.norm.weight'])
    return {**as_v2(layout, weights), f'{head}.weight': torch.randn(9, dims), f'{head}.bias': torch.zeros(9)}


def without(prefix: str, state: dict) -> dict:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


SOURCES = {
    'ours': dict,
    'authors, dense': lambda weights: convert(weights, 'authors')[0],
    'authors, classification': as_authors_classifier,
    'mmdet': lambda weights: convert(weights, 'mmdet')[0],
    'huggingface, classification': as_huggingface,
    'huggingface, PvtModel': lambda weights: without('pvt.', as_huggingface(weights)),
}
CLASSIFIERS = ('authors, classification', 'huggingface, classification', 'huggingface, PvtModel')
SOURCES_LINEAR = {
    'ours': dict,
    'authors, dense': functools.partial(as_v2, 'authors'),
    'authors, classification': functools.partial(as_v2_classifier, 'authors'),
    'timm, classification': functools.partial(as_v2_classifier, 'timm'),
    'huggingface, classification': functools.partial(as_v2_classifier, 'huggingface'),
    'huggingface, PvtV2Model': lambda weights: without('pvt_v2.', as_v2('huggingface', weights)),
}
SOURCES_V2 = {**SOURCES_LINEAR, 'mmdet': lambda weights: convert(weights, 'mmdet')[0]}
KINDS = {
    'v1': (PVT, TINY_ARCH, SOURCES, V1.writable),
    'v2': (PVTv2, TINY_ARCH_V2, SOURCES_V2, V2.writable),
    'linear': (PVTv2, TINY_ARCH_LINEAR, SOURCES_LINEAR, [layout for layout in V2.writable if layout != 'mmdet']),
}
WRAPPINGS = {
    'plain': lambda state: state,
    'mmengine': lambda state: {'meta': {'epoch': 3}, 'state_dict': {f'backbone.{k}': v for k, v in state.items()}},
    # as the authors' training writes it
    'model': lambda state: {'model': state, 'epoch': 3, 'args': argparse.Namespace(lr=1e-3)},
    'DDP': lambda state: {'state_dict': {f'module.backbone.{k}': v for k, v in state.items()}},
    'EMA': lambda state: {'ema_state_dict': {'steps': torch.tensor(5), **{f'module.{k}': v for k, v in state.items()}}},
    'mmengine with EMA': lambda state: {
        'ema_state_dict': {f'module.backbone.{k}': v + 1 for k, v in state.items()},
        'state_dict': {f'backbone.{k}': v for k, v in state.items()},
    },
    'mmdet 2 EMA': lambda state: {
        'state_dict': {
            **{f'backbone.{k}': v for k, v in state.items()},
            **{f'ema_backbone_{k.replace(".", "_")}': v + 1 for k, v in state.items()},
            'bbox_head.conv.weight': torch.randn(3),
        }
    },
}


def build(kind: str, **settings) -> PVT | PVTv2:
    """A backbone of random weights, none of which is 0 or 1."""
    model = KINDS[kind][0](KINDS[kind][1], **settings)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


@pytest.fixture
def model() -> PVT:
    return build('v1')


@pytest.fixture
def log_of(monkeypatch):
    def run(function, *arguments) -> str:
        messages = []
        monkeypatch.setattr(loading, 'print_log', lambda message, logger: messages.append(message))
        function(*arguments)
        return ' '.join(messages)

    return run


def assert_equal_weights(loaded: PVT | PVTv2, expected: PVT | PVTv2) -> None:
    for name, value in expected.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


@pytest.mark.parametrize(
    ('kind', 'source', 'wrapping'),
    [
        *(('v1', source, wrapping) for source in SOURCES for wrapping in WRAPPINGS),
        *(('v2', 'timm, classification', wrapping) for wrapping in WRAPPINGS),
        *(('v2', source, 'mmdet 2 EMA') for source in SOURCES_V2),
        *(('linear', source, 'plain') for source in SOURCES_LINEAR),
    ],
)
def test_every_format_loads_by_init_cfg(kind, source, wrapping, tmp_path, log_of):
    path, (kind_of, arch, sources, _) = tmp_path / 'weights.pth', KINDS[kind]
    model = build(kind)
    torch.save(WRAPPINGS[wrapping](sources[source](model.state_dict())), path)
    loaded = kind_of(arch, init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    logged = log_of(loaded.init_weights)
    assert logged.startswith(f'loaded all {len(model.state_dict())} parameters of {kind_of.__name__} from {path}')
    assert_equal_weights(loaded, model)


@pytest.mark.parametrize(
    ('kind', 'source', 'layout'),
    [(kind, source, layout) for kind in KINDS for source in KINDS[kind][2] for layout in KINDS[kind][3]],
)
def test_conversions_come_back_the_same(kind, source, layout):
    kind_of, arch, sources, _ = KINDS[kind]
    model = build(kind)
    converted, _ = convert(sources[source](model.state_dict()), layout)
    back = backbone_weights(converted)
    token = {name: back.pop(name) for name in list(back) if name.startswith('cls_token.')}
    assert bool(token) == (kind == 'v1' and layout != 'mmdet' and source in CLASSIFIERS)
    loaded = kind_of(arch)
    loaded.load_state_dict(back)
    assert_equal_weights(loaded, model)


@pytest.mark.parametrize('kind', ['v2', 'linear'])
@pytest.mark.parametrize('layout', V2_NAMES)
def test_pvt_v2_is_written_as_others_write_it(layout, kind):
    state = as_v2_classifier(layout, build(kind).state_dict())
    ours, _ = convert(state, 'pvt_mm')
    assert {name for name in ours if not name.startswith('backbone.')} == {'head.fc.weight', 'head.fc.bias'}
    converted, dropped = convert(ours, layout)
    assert not dropped
    assert converted.keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in converted.items())


@pytest.mark.parametrize(
    ('state', 'layout', 'message'),
    [
        (lambda: build('v1').state_dict(), 'timm', 'it is a PVT, which is not written in timm format: choose pvt_mm, '),
        (
            lambda: build('linear').state_dict(),
            'mmdet',
            "linear SRA, which MMDetection's PVTv2 does not have: choose a",
        ),
    ],
)
def test_what_a_format_does_not_have_is_not_written(state, layout, message):
    with pytest.raises(CheckpointError, match=message):
        convert(state(), layout)


@pytest.mark.parametrize('arch', ['tiny', 'small_wide', 'b0'])
def test_conversion_to_mmdet_runs_there(arch):
    from mmdet.models.backbones.pvt import PyramidVisionTransformer, PyramidVisionTransformerV2

    model, theirs = (PVTv2(arch), PyramidVisionTransformerV2) if arch == 'b0' else (PVT(arch), PyramidVisionTransformer)
    converted, _ = convert(model.state_dict(), 'mmdet')
    theirs = theirs(embed_dims=model.arch.embed_dims[0], num_layers=list(model.arch.depths), num_heads=[1, 2, 5, 8])
    theirs.load_state_dict(converted)


def test_a_detectors_other_parts_come_along(model):
    state = {f'module.backbone.{key}': value for key, value in SOURCES['mmdet'](model.state_dict()).items()}
    converted, _ = convert({**state, 'module.neck.weight': torch.ones(2)}, 'pvt_mm')
    assert set(converted) == {*(f'backbone.{name}' for name in model.state_dict()), 'neck.weight'}


def test_prefix_chooses_among_several(model, tmp_path):
    other = {f'teacher.{name}': value + 1 for name, value in model.state_dict().items()}
    path = str(tmp_path / 'weights.pth')
    torch.save({**other, **{f'student.{name}': value for name, value in model.state_dict().items()}}, path)
    loaded = PVT(TINY_ARCH)
    with pytest.raises(
        CheckpointError, match=r"more than one PVT or PVTv2, at 'teacher.', 'student.': choose one with prefix"
    ):
        load_pretrained(loaded, path)
    for prefix in ('student', 'student.'):
        load_pretrained(loaded, path, prefix=prefix)
        assert_equal_weights(loaded, model)
    with pytest.raises(CheckpointError, match="no PVT or PVTv2 under the prefix 'pupil'"):
        load_pretrained(loaded, path, prefix='pupil')


# ---------------------------------------------------------------------------------------------------------- reshaping


@pytest.mark.parametrize('layout', ['pvt_mm', 'authors', 'mmdet'])
@pytest.mark.parametrize('pixels', [384, (192, 384)])
def test_other_grids_are_resampled_at_load(layout, pixels, tmp_path):
    source = PVT(TINY_ARCH, pretrain_img_size=pixels)
    path = str(tmp_path / 'weights.pth')
    torch.save(convert(source.state_dict(), layout)[0], path)
    loaded = PVT(TINY_ARCH)
    needed = dict(pretrain_img_size=pixels) if pixels != 384 and layout != 'pvt_mm' else {}
    load_pretrained(loaded, path, **needed)
    for stage, (ours, theirs) in enumerate(zip(loaded.stages, source.stages, strict=True)):
        table, side = theirs.pos_embed.table.permute(0, 3, 1, 2), 56 >> stage
        expected = F.interpolate(table, (side, side), mode='bilinear', align_corners=False).permute(0, 2, 3, 1)
        torch.testing.assert_close(ours.pos_embed.table, expected)
    if needed:
        with pytest.raises(CheckpointError, match=r'no square grids: set the size .* pretrain_img_size=\(H, W\)'):
            load_pretrained(loaded, path)
        with pytest.raises(CheckpointError, match='are not for 256 pixels'):
            load_pretrained(loaded, path, pretrain_img_size=256)


def test_a_non_square_table_of_the_models_own_grid_needs_no_hint(tmp_path):
    source = PVT(TINY_ARCH, pretrain_img_size=(192, 384))
    torch.save(convert(source.state_dict(), 'authors')[0], tmp_path / 'weights.pth')
    loaded = PVT(TINY_ARCH, pretrain_img_size=(192, 384))
    load_pretrained(loaded, str(tmp_path / 'weights.pth'))
    assert_equal_weights(loaded, source)


def test_tables_that_fit_two_grids_need_the_hint(tmp_path):
    source = PVT(TINY_ARCH, pretrain_img_size=(128, 512))  # as many entries as 256 x 256 has
    path = str(tmp_path / 'weights.pth')
    torch.save(convert(source.state_dict(), 'authors', pretrain_img_size=(128, 512))[0], path)
    loaded = PVT(TINY_ARCH, pretrain_img_size=(128, 512))
    with pytest.raises(CheckpointError, match=r'fit square images and those of the model alike.*pretrain_img_size'):
        load_pretrained(loaded, path)
    load_pretrained(loaded, path, pretrain_img_size=(128, 512))
    assert_equal_weights(loaded, source)


def test_another_first_patch_size_is_kept():
    arch = {**TINY_ARCH, 'patch_sizes': (8, 2, 2, 2)}
    converted, _ = convert(PVT(arch).state_dict(), 'mmdet')
    assert converted['layers.0.0.projection.weight'].shape == (8, 3, 8, 8)


@pytest.mark.parametrize(('in_channels', 'patch_size'), [(3, 4), (1, 4), (4, 4), (6, 4), (3, 8)])
def test_our_former_format_is_read(in_channels, patch_size, tmp_path):
    """Kernels were matrices of (P, P, C) patches."""
    arch = {**TINY_ARCH, 'patch_sizes': (patch_size, 2, 2, 2)}
    source, loaded = PVT(arch, in_channels=in_channels), PVT(arch, in_channels=in_channels)
    former = {
        name: value.permute(0, 2, 3, 1).flatten(1) if value.dim() == 4 and name.endswith('weight') else value
        for name, value in source.state_dict().items()
    }
    assert former['stages.0.layers.0.attn.sr.proj.weight'].shape == (8, 64 * 8)
    torch.save(former, tmp_path / 'former.pth')
    load_pretrained(loaded, str(tmp_path / 'former.pth'))
    assert_equal_weights(loaded, source)
    former['stages.1.patch_embed.proj.weight'] = torch.zeros(16, 50)
    with pytest.raises(
        CheckpointError, match=r'stages.1.patch_embed.proj.weight has shape \(16, 50\), which is no kernel'
    ):
        convert(former, 'mmdet')


@pytest.mark.parametrize('channels', [1, 4])
@pytest.mark.parametrize('kind', ['v1', 'v2'])
def test_three_channels_are_averaged_into_any_number(kind, channels, tmp_path, log_of):
    model, path = build(kind), str(tmp_path / 'weights.pth')
    torch.save(convert(model.state_dict(), 'authors')[0], path)
    loaded = build(kind, in_channels=channels).eval()
    messages = log_of(load_pretrained, loaded, path)
    assert f'averaged the 3 input channels of stages.0.patch_embed.proj.weight for {channels}' in messages
    gray = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        found, expected = (
            one.stages[0].patch_embed.proj(gray.expand(-1, number, -1, -1))
            for one, number in ((loaded, channels), (model, 3))
        )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize('kind', ['v1', 'v2'])
def test_what_is_dropped_is_logged(kind, tmp_path, log_of):
    model = build(kind)
    torch.save(KINDS[kind][2]['authors, classification'](model.state_dict()), tmp_path / 'weights.pth')
    loaded = build(kind, out_indices=1)
    messages = log_of(load_pretrained, loaded, str(tmp_path / 'weights.pth'))
    token = 'dropped the class token, which the model does not have: cls_token.token, cls_token.norm.weight'
    assert (token in messages) == (kind == 'v1')
    assert 'dropped the stages after the last output: stages.2.' in messages
    assert torch.equal(loaded.stages[1].layers[1].ffn.fc2.weight, model.stages[1].layers[1].ffn.fc2.weight)


# ------------------------------------------------------------------------------------------------------ strict loading


def broken(change):
    def state(weights: dict) -> dict:
        weights = dict(weights)
        change(weights)
        return weights

    return state


@pytest.mark.parametrize(
    ('kind', 'layout'),
    [*(('v1', layout) for layout in V1.writable), ('v2', 'pvt_mm'), ('v2', 'timm'), ('linear', 'huggingface')],
)
def test_any_missing_key_is_an_error(kind, layout, monkeypatch):
    loaded = build(kind)
    whole = convert(loaded.state_dict(), layout)[0]
    before = {name: value.clone() for name, value in loaded.state_dict().items()}
    for key in whole:
        partial = {name: value for name, value in whole.items() if name != key}
        monkeypatch.setattr(loading, 'read_checkpoint', lambda *_, partial=partial: partial)
        with pytest.raises(CheckpointError):
            load_pretrained(loaded, 'partial.pth')
        assert all(torch.equal(value, before[name]) for name, value in loaded.state_dict().items())
        with pytest.raises(CheckpointError):
            convert(partial, 'pvt_mm')


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda w: w.update({'stages.0.extra': torch.ones(1)}), r'not parameters of PVT .*: stages.0.extra'),
        (lambda w: w.pop('stages.1.layers.0.attn.kv.bias'), '1 missing: stages.1.layers.0.attn.kv.bias'),
        (
            lambda w: w.update({'stages.0.layers.1.norm1.bias': torch.ones(8)}),
            '1 unknown: stages.0.layers.1.norm1.bias',
        ),
        (lambda w: w.update({'stages.2.layers.0.norm2.bias': torch.ones(5)}), r'norm2.bias \(5,\), not \(24,\)'),
    ],
)
def test_errors_list_the_keys_and_name_the_file(change, message, model, tmp_path):
    path = str(tmp_path / 'weights.pth')
    torch.save(broken(change)(model.state_dict()), path)
    with pytest.raises(CheckpointError, match=message) as error:
        load_pretrained(PVT(TINY_ARCH), path)
    assert str(error.value).startswith(path)
    assert '\n' not in str(error.value)


def test_depthwise_kernels_of_another_size_are_refused():
    state = build('v2').state_dict()
    wide = {name: F.pad(value, (1, 1, 1, 1)) for name, value in state.items() if name.endswith('dwconv.weight')}
    with pytest.raises(
        CheckpointError, match=r'5 of another shape: .*dwconv.weight \(16, 1, 5, 5\), not \(16, 1, 3, 3'
    ):
        convert({**state, **wide}, 'authors')


def test_another_models_weights_are_an_error(tmp_path):
    torch.save({'layer1.0.conv1.weight': torch.ones(2)}, tmp_path / 'resnet.pth')
    with pytest.raises(CheckpointError, match=r'holds no PVT .* its keys are layer1.0.conv1.weight'):
        load_pretrained(PVT(TINY_ARCH), str(tmp_path / 'resnet.pth'))
    torch.save(PVT({**TINY_ARCH, 'depths': (1, 1, 1, 1)}).state_dict(), tmp_path / 'shallow.pth')
    with pytest.raises(CheckpointError, match=r'does not fit the model; \d+ missing: stages.1.layers.1.norm1.weight'):
        load_pretrained(PVT(TINY_ARCH), str(tmp_path / 'shallow.pth'))


@pytest.mark.parametrize(
    'change',
    [
        lambda value: value.to(torch.int8),
        lambda value: torch.complex(value, value),
        lambda value: value.to('meta'),
        lambda value: value.to_sparse(),
    ],
    ids=['int8', 'complex', 'meta', 'sparse'],
)
@pytest.mark.parametrize('name', ['stages.1.layers.0.norm1.bias', 'stages.0.pos_embed.table'])
def test_weights_that_are_no_plain_floats_are_refused(name, change, model, tmp_path):
    path = str(tmp_path / 'weights.pth')
    torch.save({**model.state_dict(), name: change(model.state_dict()[name])}, path)
    with pytest.raises(CheckpointError, match=f'1 not plain floats: {name} '):
        load_pretrained(PVT(TINY_ARCH), path)


def test_an_error_is_a_line_of_a_few_names_however_long_and_many_they_are(model, tmp_path):
    path = str(tmp_path / 'weights.pth')
    more = {f'stages.0.\n{"x" * 900}{i}': torch.ones(1) for i in range(20)}
    torch.save({**model.state_dict(), **more}, path)
    with pytest.raises(CheckpointError) as error:
        load_pretrained(PVT(TINY_ARCH), path)
    assert '\n' not in str(error.value)
    assert len(str(error.value)) < 1300


def test_a_size_that_is_none_is_refused(model):
    with pytest.raises(CheckpointError, match='pretrain_img_size must be an int'):
        convert(convert(model.state_dict(), 'authors')[0], 'pvt_mm', pretrain_img_size=0)
    with pytest.raises(CheckpointError, match='for position embeddings, which a PVTv2 does not have: leave it out'):
        convert(build('v2').state_dict(), 'pvt_mm', pretrain_img_size=224)


# -------------------------------------------------------------------------------------------------- versions and archs


def released(version, arch) -> dict[str, torch.Tensor]:
    """The parameters of a released model, or of a dict of sizes, without values."""
    with torch.device('meta'):
        return (PVT if version is V1 else PVTv2)(arch).state_dict()


def named_in(version, layout: str, weights: dict) -> dict[str, torch.Tensor]:
    """The parameters that have a counterpart in a format."""
    names = {name: version.translate(name, 'pvt_mm', layout) for name in weights}
    flat = {name: value.flatten(1, 2) for name, value in weights.items() if 'table' in name and layout != 'pvt_mm'}
    return {theirs: (weights | flat)[ours] for ours, theirs in names.items() if theirs}


EVERY = [(version, arch) for version in (V1, V2) for arch in version.sizes]


@pytest.mark.parametrize(('version', 'arch'), EVERY, ids=[arch for _, arch in EVERY])
def test_the_other_version_is_named_with_its_arch(version, arch, tmp_path):
    model, weights, path = build('v2' if version is V1 else 'v1'), released(version, arch), str(tmp_path / 'a.pth')
    message = f"it is a {version.name} of arch='{arch}', and the model is a {type(model).__name__}: set "
    message += f"type='pvt_mm.{version.name}', arch='{arch}', or use other weights$"
    torch.save(weights, path)
    with pytest.raises(CheckpointError, match=f'^{path}: {message}'):
        load_pretrained(model, path)
    for layout in version.formats:
        with pytest.raises(CheckpointError, match=f'^the backbone in it does not fit: {message}'):
            model.load_state_dict(named_in(version, layout, weights), strict=False)


def part_of(name: str) -> str:
    """The part of a model that a parameter of ours belongs to."""
    return re.search('patch_embed|pos_embed|norm1|attn|norm2|fc|dwconv|norm', name)[0]


@pytest.mark.parametrize(('kind', 'layout'), [(kind, layout) for kind in KINDS for layout in KINDS[kind][3]])
def test_every_subset_of_the_parts_is_translated(kind, layout):
    """Of a format other than ours, with what tells where a model is."""
    model, version = build(kind), V1 if kind == 'v1' else V2
    weights, marks = model.state_dict(), {'patch_embed', 'dwconv'} if kind != 'v1' else {'patch_embed'}
    whole = convert(weights, layout)[0]
    parts = {key: part_of(version.translate(key, layout, 'pvt_mm')) for key in whole}
    every = sorted(set(parts.values()))
    for kept in (set(itertools.compress(every, chosen)) for chosen in itertools.product((0, 1), repeat=len(every))):
        if layout == 'pvt_mm' or kept & marks:
            state = {key: value for key, value in whole.items() if parts[key] in kept}
            model.translate(state, '')
            assert state.keys() == {name for name in weights if part_of(name) in kept}, kept
            assert all(torch.equal(value, weights[name]) for name, value in state.items())


@pytest.mark.parametrize('kind', KINDS)
def test_any_parameter_alone_loads(kind):
    model = build(kind)
    for name, value in model.state_dict().items():
        found = model.load_state_dict({name: value}, strict=False)
        assert (name in found.missing_keys, found.unexpected_keys) == (False, [])


def test_a_part_without_spatial_reductions_is_not_taken_for_another_arch():
    with torch.device('meta'):
        model = PVTv2('b2_li')
    state = named_in(V2, 'authors', {name: one for name, one in model.state_dict().items() if '.sr.' not in name})
    assert all('.sr.' in name for name in model.load_state_dict(state, strict=False).missing_keys)


def test_the_sizes_are_those_of_the_archs():
    for version, archs in ((V1, ARCHS), (V2, ARCHS_V2)):
        known = {
            name: WeightSizes(arch.embed_dims, arch.depths, arch.mlp_ratios, getattr(arch, 'linear', False))
            for name, arch in archs.items()
        }
        assert version.sizes == known


@pytest.mark.parametrize(
    ('version', 'found', 'wanted'), [(V1, 'tiny', 'small'), (V2, 'b2_li', 'b2'), (V2, 'b2', 'b2_li'), (V2, 'b0', 'b1')]
)
def test_the_arch_of_the_weights_is_named(version, found, wanted, tmp_path):
    weights, kind_of = released(version, found), PVT if version is V1 else PVTv2
    message = f"it is of arch='{found}', and the model is arch='{wanted}': set arch='{found}', or use other weights$"
    with torch.device('meta'):
        model, first = kind_of(wanted), kind_of(wanted, out_indices=0)
    for layout in version.formats:
        state = named_in(version, layout, weights)
        torch.save(state, tmp_path / 'a.pth')
        with pytest.raises(CheckpointError, match=f'a.pth: {message}'):
            load_pretrained(model, str(tmp_path / 'a.pth'))
        if layout != 'pvt_mm':  # which PyTorch reports
            with pytest.raises(CheckpointError, match=f'the backbone in it does not fit: {message}'):
                model.load_state_dict(state, strict=False)
            with pytest.raises(CheckpointError, match=f"it is of arch='{found}', and the model has other sizes: set"):
                first.load_state_dict(state)


@pytest.mark.parametrize('layout', ['authors', 'mmdet'])
def test_segformer_is_not_taken_for_a_pvt_v2(layout, tmp_path):
    """It has the same names; MiT-B5 is the same model as b5."""
    for name, sizes in SEGFORMER.items():
        arch = ARCHS_V2[name.removeprefix('MiT-').lower()]._replace(mlp_ratios=sizes.mlp_ratios)
        state = named_in(V2, layout, released(V2, arch._asdict()))
        torch.save(state, tmp_path / 'a.pth')
        for model in (build('v1'), build('v2')):
            with pytest.raises(CheckpointError, match=f"a.pth: it is SegFormer's {name}, not a PVTv2: use other"):
                load_pretrained(model, str(tmp_path / 'a.pth'))
            with pytest.raises(CheckpointError, match=f"it is SegFormer's {name}, not"):
                model.load_state_dict(state, strict=False)


@pytest.mark.parametrize('layout', ['authors', 'mmdet'])
def test_a_pvt_v2_of_segformers_sizes_loads_where_the_model_has_them(layout, tmp_path):
    arch = ARCHS_V2['b0']._replace(mlp_ratios=(4, 4, 4, 4))._asdict()
    model = PVTv2(arch)
    state, path = convert(model.state_dict(), layout)[0], str(tmp_path / 'a.pth')
    torch.save(state, path)
    loaded = [PVTv2(arch), PVTv2(arch), PVTv2(arch, out_indices=1)]
    loaded[0].load_state_dict(state)
    for one in loaded[1:]:
        load_pretrained(one, path)
    for one in loaded:
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in one.state_dict().items())
    assert convert(state, 'pvt_mm')[0].keys() == model.state_dict().keys()


def test_a_file_from_before_zip_archives_that_is_truncated_anywhere_is_refused(model, tmp_path):
    torch.save({'a': torch.ones(3)}, tmp_path / 'old.pth', _use_new_zipfile_serialization=False)
    whole = (tmp_path / 'old.pth').read_bytes()
    for length in range(0, len(whole), 3):
        path = tmp_path / f'{length}.pth'
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            read_checkpoint(path)


# -------------------------------------------------------------------------------------------------------- safe reading


class Malicious:
    """A pickle that runs a command when it is read in full."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), 'w')


def test_a_pickle_that_runs_code_is_refused_and_runs_nothing(tmp_path):
    path, harm = tmp_path / 'bad.pth', tmp_path / 'harm'
    torch.save({'state_dict': {}, 'x': Malicious(harm)}, path)
    with pytest.raises(CheckpointError, match=r'bad.pth is refused: it asks to run \w*\.?open'):
        read_checkpoint(path)
    path.write_bytes(pickle.dumps(Malicious(harm)))
    with pytest.raises(CheckpointError):
        read_checkpoint(path)
    assert not harm.exists()


class GetAttribute:
    """A pickle that only looks something up; from the right object that leads to everything."""

    def __init__(self, owner, name):
        self.of = owner, name

    def __reduce__(self):
        return getattr, self.of


def test_getattr_is_refused_on_all_but_the_history_of_values(tmp_path):
    for owner, name in ((torch._utils._rebuild_tensor_v2, '__globals__'), (HistoryBuffer, '__init__')):
        torch.save({'state_dict': {'a': torch.ones(1)}, 'x': GetAttribute(owner, name)}, tmp_path / 'bad.pth')
        with pytest.raises(CheckpointError, match=r'bad.pth is refused: it asks to run builtins.getattr'):
            read_checkpoint(tmp_path / 'bad.pth')
    torch.save({'state_dict': {'a': torch.ones(1)}, 'x': HistoryBuffer([1], [1])}, tmp_path / 'good.pth')
    assert read_file(tmp_path / 'good.pth')['x'].mean() == 1


@pytest.mark.skipif(not hasattr(torch.serialization, 'get_safe_globals'), reason='needs torch 2.4')
def test_reading_leaves_torchs_own_allow_list_as_it_was(tmp_path, model):
    torch.save(model.state_dict(), tmp_path / 'weights.pth')
    before = set(torch.serialization.get_safe_globals())
    read_checkpoint(tmp_path / 'weights.pth')
    assert set(torch.serialization.get_safe_globals()) == before


def test_a_write_that_fails_leaves_the_old_file(tmp_path, model, monkeypatch):
    path = tmp_path / 'weights.pth'
    save_checkpoint(model.state_dict(), path)
    whole = path.read_bytes()

    def fail(_, file):
        file.write_bytes(b'half')
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(torch, 'save', fail)
    with pytest.raises(CheckpointError, match='No space'):
        save_checkpoint(model.state_dict(), path)
    assert path.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_read_says_so(tmp_path, model):
    whole = tmp_path / 'whole.pth'
    torch.save(model.state_dict(), whole)
    (tmp_path / 'cut.pth').write_bytes(whole.read_bytes()[:-1000])
    (tmp_path / 'empty.pth').touch()
    (tmp_path / 'text.pth').write_text('not a checkpoint')
    (tmp_path / 'text.safetensors').write_text('not a checkpoint')
    torch.save([1, 2], tmp_path / 'list.pth')
    torch.save({'meta': {}, 'epoch': 3}, tmp_path / 'nothing.pth')
    for name in ('cut.pth', 'empty.pth', 'text.pth', 'text.safetensors', 'list.pth', 'nothing.pth', 'absent.pth', '.'):
        with pytest.raises(CheckpointError) as error:
            read_checkpoint(tmp_path / name)
        assert '\n' not in str(error.value)
        assert len(str(error.value)) < 400
        assert name.rstrip('.') in str(error.value)


def test_a_url_that_cannot_be_reached_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    url = 'http://127.0.0.1:9/pvt_small.pth'
    found = rf'^{url} cannot be downloaded \(.*\): run tools/download.py .* put the file at \S*pvt_small.pth'
    start = dict(type='Pretrained', checkpoint=url)
    other = 'set another file with --cfg-options model.backbone.init_cfg.checkpoint=PATH, or start from random weights'
    with pytest.raises(CheckpointError, match=f'{found}$'):
        read_checkpoint(url)
    with pytest.raises(CheckpointError, match=f'{found}, or {other} with model.backbone.init_cfg=None$'):
        PVT(TINY_ARCH, init_cfg=start).init_weights()
    with pytest.raises(CheckpointError, match=f'{found}, or give weights=PATH$'):
        PVT(TINY_ARCH, weights=url)
    with safe_reading(), pytest.raises(CheckpointError, match=f'{found}, or {other}'):
        BaseModule(start).init_weights()
    with pytest.raises(CheckpointError, match=f'{found}, or give a file with --weights PATH or .* load_from=PATH, or'):
        check_start(PVT(TINY_ARCH), url)
    with pytest.raises(CheckpointError, match=f'{found}$'):
        check_resumed(PVT(TINY_ARCH), url)
    assert not list(tmp_path.rglob('*.pth'))


def test_a_url_in_a_process_group_is_read_from_the_cache(model, monkeypatch, tmp_path):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    url = 'https://example.com/pvt.pth'
    Path(cached_path(url)).parent.mkdir(parents=True)
    torch.save(model.state_dict(), cached_path(url))
    assert cached_path('https://example.com/other/pvt.pth') != cached_path(url)
    torch.distributed.init_process_group('gloo', store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        loaded = PVT(TINY_ARCH)
        load_pretrained(loaded, url)
        with pytest.raises(CheckpointError, match='cannot be downloaded'):
            read_checkpoint('http://127.0.0.1:9/absent.pth')
    finally:
        torch.distributed.destroy_process_group()
    assert_equal_weights(loaded, model)


# ------------------------------------------------------------------------------------------------------------ the tool


def test_tool_round_trip(tmp_path, capsys, model):
    source = tmp_path / 'theirs.pth'
    torch.save(SOURCES['authors, classification'](model.state_dict()), source)
    assert convert_checkpoint.main([str(source), str(tmp_path / 'ours.safetensors')]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"{source}: PVT in authors format, prefix ''"
    assert '"dropped": 0' in printed[-1]
    assert convert_checkpoint.main([str(tmp_path / 'ours.safetensors'), str(tmp_path / 'a.pth'), '--to', 'mmdet']) == 0
    assert '"dropped": 6' in capsys.readouterr().out.splitlines()[-1]
    loaded = PVT(TINY_ARCH)
    load_pretrained(loaded, str(tmp_path / 'a.pth'))
    assert_equal_weights(loaded, model)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['absent.pth', 'out.pth'], 'absent.pth does not exist'),
        (['text.pth', 'out.pth'], 'is not a checkpoint, or is damaged'),
        (['ours.pth', 'text.pth/out.pth'], 'cannot be written'),
        (['ours.pth', './ours.pth'], 'is the file to convert and would be overwritten'),
        (['ours.pth', 'out.txt'], 'ends in .pth or .safetensors'),
        (['ours.pth', 'out.pth', '--prefix', 'neck'], "no PVT or PVTv2 under the prefix 'neck'"),
    ],
)
def test_tool_answers_bad_input_with_one_line(arguments, message, tmp_path, monkeypatch, capsys, model):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'text.pth').write_text('text')
    torch.save(model.state_dict(), 'ours.pth')
    assert convert_checkpoint.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count('\n') == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ['ours.pth', 'text.pth']
