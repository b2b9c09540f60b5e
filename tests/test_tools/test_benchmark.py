"""The benchmark: it measures what it says, in every mode, and reports errors. No time is tested."""

import contextlib
import itertools
import json
import os
import platform
import re
import resource
import statistics
import sys
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper

from pvt_mm.analysis.benchmark import attention, gpu, machine, measure, models, onnx_file, prediction
from pvt_mm.analysis.benchmark.contender import Contender, Result
from pvt_mm.analysis.flops import count
from pvt_mm.analysis.latency import plot_scales, plot_times
from pvt_mm.apis.config import load_config
from pvt_mm.apis.launch import build_model
from pvt_mm.models import PVT, PVTv2
from pvt_mm.serving.model import OnnxModel
from pvt_mm.utils.errors import InputError
from tests.conftest import ROOT
from tools import benchmark as tool
from tools import benchmark_gpu as gpu_tool
from tools import benchmark_report as report

RETINANET = str(ROOT / 'configs/retinanet/pvt_t_1x.py')
R18 = str(ROOT / 'configs/retinanet/r18_1x.py')
DEMO = str(ROOT / 'configs/demo/retinanet_shapes.py')


@pytest.fixture(scope='module')
def v2_config(tmp_path_factory):
    """A RetinaNet with a small PVTv2, whose strides and stochastic depth are not the default ones."""
    small = dict(embed_dims=(8, 16, 24, 32), depths=(1, 1, 1, 1), num_heads=(1, 2, 3, 4), strides=(2, 3, 1, 4))
    small |= dict(sr_ratios=(2, 2, 1, 1), mlp_ratios=(2, 2, 3, 1))
    path = tmp_path_factory.mktemp('configs') / 'retinanet_v2.py'
    backbone = f"dict(_delete_=True, type='pvt_mm.PVTv2', arch={small}, drop_path_rate=0.3)"
    path.write_text(
        f'_base_ = {RETINANET!r}\nmodel = dict(backbone={backbone}, neck=dict(in_channels=[8, 16, 24, 32]))\n'
    )
    return str(path)


def result(contender, *seconds, gflops=1.0, peak_memory=1.0):
    return Result(contender, seconds, ({},) * len(seconds), contender.batch, gflops, peak_memory, 'contiguous')


def run(capfd, *argv):
    """Runs the tool with two rounds: its exit code, the JSON of its last line if it has one, and all its output."""
    code = tool.main([*argv, '--rounds', '2', '--threads', '1'])
    printed = capfd.readouterr()
    return code, json.loads(printed.out.strip().split('\n')[-1]) if code == 0 else None, printed.out + printed.err


# --------------------------------------------------------------------------------------------------------- measuring


def test_figures_are_medians_over_the_rounds():
    ours = result(Contender('tiny'), 1.0, 2.0, 4.0, 8.0, gflops=6.0)
    theirs = result(Contender('tiny', peer='mmdet'), 3.0, 2.0, 8.0, 40.0)
    assert ours.median == 3.0
    assert ours.spread == pytest.approx((5.0 - 1.75) / 2 / 3.0)
    assert ours.rate == pytest.approx(2 * 6.0 / 3.0)
    assert ours.ratio(theirs) == statistics.median([3.0, 1.0, 2.0, 5.0])  # and not the ratio of the medians
    assert result(Contender('tiny'), 1.0).spread == 0


def test_contenders_take_turns_and_only_busy_steps_have_a_neighbour(monkeypatch):
    order = []

    class Executor:
        """Answers as a process does: to its first call with the facts, later with the figures of a step."""

        def __init__(self, *_):
            self.answers = iter([dict(images=1, gflops=1.0, memory_format='contiguous')])

        def __enter__(self):
            return self

        def __exit__(self, *_):
            order.append('end')

        def submit(self, function, contender, *args):
            order.append(contender.model)
            future = Future()
            future.set_result(next(self.answers, (float(len(order)), {}, 0.1 * len(order))))
            return future

    class Neighbour:
        def __enter__(self):
            order.append('busy')

        def __exit__(self, *_):
            order.append('quiet')

    monkeypatch.setattr(measure, 'ProcessPoolExecutor', Executor)
    monkeypatch.setattr(measure, 'busy_neighbour', Neighbour)
    tiny, small = Contender('tiny'), Contender('small')
    results = measure.measure([tiny, small, replace(tiny, busy=True)], 2)
    assert order == ['tiny', 'small', *['tiny', 'small', 'busy', 'tiny', 'quiet'] * 2, 'end', 'end']
    assert results[0].seconds == (3.0, 8.0)
    assert results[1].peak_memory == pytest.approx(0.9)  # the greatest
    assert [one.contender.busy for one in results] == [False, False, True]


def test_a_busy_neighbour_takes_a_core():
    with measure.busy_neighbour():
        time.sleep(0.3)
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime  # all of earlier tests too
    with measure.busy_neighbour():
        time.sleep(1)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before > 0.2


def allocate(backbone):
    """Has the first step of a backbone allocate 400 MB for a moment, and the others 200 MB."""
    millions = itertools.chain([100], itertools.repeat(50))
    backbone.register_forward_pre_hook(lambda *_: torch.ones(next(millions) * 10**6).sum().item() and None)


def test_peak_memory_is_that_of_the_steps():
    contender = Contender('tiny', (64, 64), threads=1, memory_format='contiguous', prepare=f'{__name__}:allocate')
    (allocated,) = measure.measure([contender], 2)
    assert 0.2 <= allocated.peak_memory < 0.35


def die(backbone):
    os.abort()


def test_a_process_that_dies_is_one_line():
    with pytest.raises(InputError, match='PVT-Tiny, die: its process died'):
        measure.measure([Contender('tiny', (64, 64), prepare=f'{__name__}:die')], 1)


def test_time_by_kind():
    kinds, training = (measure.time_by_kind(Contender('tiny', (256, 256), mode)) for mode in ('forward', 'train'))
    assert list(kinds) == [*measure.KINDS, 'other']
    assert sum(kinds.values()) == pytest.approx(1)
    assert [kind for kind, share in kinds.items() if share <= 0] == ['depthwise convolutions']
    assert kinds['linear layers'] == max(kinds.values())
    assert training['other'] < 0.25  # the backward pass is not
    assert measure.time_by_kind(Contender('b0', (256, 256), 'train'))['depthwise convolutions'] > 0.02


def test_the_processor_is_named_with_family_and_model(monkeypatch):
    def find(cpuinfo: str) -> machine.Processor:
        monkeypatch.setattr(Path, 'read_text', lambda path: cpuinfo)
        return machine.find_processor('cpu')

    amd = 'processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: {}\nmodel\t\t: {}\nmodel name\t: AMD EPYC\n'
    assert find(amd.format(25, 17)) == ('AMD EPYC, family 25, model 17 (Zen 4)', 'AMD', False)
    assert find(amd.format(25, 1)).name.endswith('(Zen 3)')
    assert find(amd.format(26, 2) + 'flags\t\t: fpu avx512_bf16\n') == (
        'AMD EPYC, family 26, model 2 (Zen 5)', 'AMD', True,
    )  # fmt: skip
    intel = amd.replace('AuthenticAMD', 'GenuineIntel').replace('AMD EPYC', 'Xeon').format(6, 207)
    assert find(f'{intel}flags\t\t: amx_tile amx_bf16\n') == ('Xeon, family 6, model 207 (AMX)', 'Intel', True)
    for flags, name in (('avx2 avx512_vnni amx_int8', 'AMX'), ('avx2 avx_vnni', 'AVX-VNNI'), ('avx avx2', 'AVX2')):
        find(f'{intel}flags\t\t: {flags}\n')
        assert machine.int8_instructions() == name
    arm = find('processor\t: 0\nBogoMIPS\t: 243.75\nFeatures\t: fp asimd bf16\n')
    assert arm == (platform.processor() or platform.machine(), '', True)


# ------------------------------------------------------------------------------------------------------- what is run


def test_multiply_adds_are_those_of_flops():
    at = (128, 160)
    parts = {part.name: part.gflops for part in count(load_config(RETINANET), at)}
    assert models.build(Contender('tiny', at))[1] == pytest.approx(parts['backbone'])
    assert models.build(Contender(RETINANET, at))[1] == pytest.approx(parts['backbone'])
    assert models.build(Contender(RETINANET, at, mode='detector'))[1] == pytest.approx(parts['model'])
    contender = Contender('tiny', at, mode='train', batch=3, memory_format='contiguous', with_cp=True)
    assert models.build(contender)[0].stages[0].with_cp
    assert models.prepare(contender).gflops == pytest.approx(3 * 3 * parts['backbone'])
    N = at[0] * at[1] // 16
    attention = sum(2 * 2 * (N // 4**i) * (N // 64) * C for i, C in enumerate((64, 128, 320))) / 1e9
    attention += 2 * 2 * (N // 64) ** 2 * 512 / 1e9
    assert models.prepare(Contender('tiny', at, mode='attention')).gflops == pytest.approx(attention)


@pytest.mark.parametrize(
    ('model', 'peer'),
    [
        ('tiny', 'mmdet'), ('tiny', 'hf'), ('small_wide', 'mmdet'), (DEMO, 'mmdet'),
        ('b0', 'mmdet'), ('b0', 'hf'), ('b2_li', 'hf'), ('v2_config', 'mmdet'),
    ],
)  # fmt: skip
def test_peers_are_the_same_network(model, peer, v2_config):
    square = Contender(v2_config if model == 'v2_config' else model, (64, 64), memory_format='contiguous')
    ours, theirs = (models.build(replace(square, peer=one)) for one in ('', peer))
    weights, others = (sum(p.numel() for p in model.parameters() if p.dim() in (2, 4)) for model, _ in (ours, theirs))
    tables = sum(p.numel() for name, p in ours[0].named_parameters() if name.endswith('table'))  # 3-D in the others
    assert weights - tables == others
    assert ours[1] == pytest.approx(theirs[1], rel=1e-6)
    image = torch.randn(1, 3, 64, 64)
    sizes = [[output.shape for output in models._tensors(one(image))] for one, _ in (ours, theirs)]
    assert sizes[1] == sizes[0] if peer == 'mmdet' else sizes[1][0].numel() in (sizes[0][-1].numel(), 2 * 2 * 512 + 512)
    rates = [max(getattr(part, 'drop_prob', 0.0) for part in model.modules()) for model, _ in (ours, theirs)]
    assert rates[1] == pytest.approx(rates[0])


def test_ours_is_channels_last_without_a_trial(monkeypatch):
    monkeypatch.setattr(models, '_faster_format', None)
    assert models.prepare(Contender('b0', (64, 96))).memory_format == 'channels_last'


class Recording(torch.nn.Module):
    """Records how it is called, and is slow in one of the memory formats."""

    def __init__(self, slow):
        super().__init__()
        self.conv, self.slow, self.calls = torch.nn.Conv2d(3, 4, 1), slow, []

    def forward(self, image):
        channels_last = image.is_contiguous(memory_format=torch.channels_last)
        time.sleep(0.02 if channels_last == (self.slow == 'channels_last') else 0)
        y = self.conv(image)
        self.calls.append((self.training, torch.is_grad_enabled(), y.dtype, channels_last))
        return y


@pytest.mark.parametrize(('slow', 'faster'), [('contiguous', 'channels_last'), ('channels_last', 'contiguous')])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('mode', ['forward', 'train'])
def test_a_step_is_what_was_asked_for(mode, dtype, slow, faster, monkeypatch):
    model = Recording(slow)
    monkeypatch.setattr(models, 'build', lambda contender: (model, 1.0))
    prepared = models.prepare(Contender('tiny', (8, 8), mode, batch=2, dtype=dtype))
    assert (prepared.images, prepared.memory_format) == (2, faster)
    assert prepared.gflops == (6.0 if mode == 'train' else 2.0)
    assert prepared.step() == {}
    is_training = mode == 'train'
    assert model.calls[-1] == (is_training, is_training, getattr(torch, dtype), faster == 'channels_last')
    assert model.conv.weight.grad is None  # as an optimizer leaves them


@pytest.mark.filterwarnings('ignore::UserWarning')  # they say why no kernel fits
@pytest.mark.skipif(models.sdpa_kernel is None, reason='needs torch 2.3')
def test_a_kernel_that_builds_the_map_is_an_error():
    q = torch.randn(1, 1, 8, 4)
    with models.fused_attention():
        F.scaled_dot_product_attention(q, q, q)
        with pytest.raises(RuntimeError, match='kernel'):
            F.scaled_dot_product_attention(q, q, q, dropout_p=0.5)  # which no fused kernel has on a CPU


def drop_layers(backbone):
    for stage in backbone.stages:
        stage.layers = torch.nn.ModuleList()


def test_prepare_changes_the_backbone():
    for contender in (Contender('tiny', (64, 64)), Contender(RETINANET, (64, 64), 'detector')):
        backbones = []
        for prepare in ('', f'{__name__}:drop_layers'):
            model, _ = models.build(replace(contender, prepare=prepare))
            backbones.append(getattr(model, 'backbone', model))
        assert [len(backbone.stages[0].layers) for backbone in backbones] == [2, 0]


@pytest.mark.parametrize('model', ['retinanet/pvt_t_1x', 'detr/pvt_s_50e', 'semantic_fpn/pvt_t_80k'])
def test_whole_detectors_and_segmentors(model):
    config = str(ROOT / f'configs/{model}.py')
    prepared = models.prepare(Contender(config, (96, 128), 'detector', memory_format='channels_last'))
    parts = prepared.step()
    assert list(parts) == ['backbone', 'neck', 'heads']
    assert min(parts.values()) > 0
    assert prepared.gflops > 1


@pytest.mark.parametrize(
    ('arch', 'dtype', 'layers', 'first', 'last'),
    [  # heads, width of a head, queries and keys
        ('tiny', 'float32', 8, (1, 64, 16 * 24, 2 * 3), (8, 64, 2 * 3, 2 * 3)),
        ('tiny', 'bfloat16', 8, (1, 64, 16 * 24, 2 * 3), (8, 64, 2 * 3, 2 * 3)),
        ('b0', 'float32', 8, (1, 32, 17 * 25, 2 * 3), (8, 32, 3 * 4, 3 * 4)),
        ('b2_li', 'float32', 16, (1, 64, 17 * 25, 49), (8, 64, 3 * 4, 49)),
    ],
)
def test_attention_alone(arch, dtype, layers, first, last, monkeypatch):
    prepared = models.prepare(Contender(arch, (66, 97), 'attention', dtype=dtype, batch=2))
    attention, called = F.scaled_dot_product_attention, []
    monkeypatch.setattr(
        F, 'scaled_dot_product_attention', lambda *qkv: called.append([x.shape for x in qkv]) or attention(*qkv)
    )
    prepared.step()
    assert len(called) == layers
    for shapes, (heads, width, queries, keys) in ((called[0], first), (called[-1], last)):
        assert shapes == [(2, heads, queries, width), (2, heads, keys, width), (2, heads, keys, width)]


def test_compiled(monkeypatch):
    compiled = []
    monkeypatch.setattr(
        torch.nn.Module, 'compile', lambda self, **kwargs: compiled.append((type(self).__name__, kwargs))
    )
    for contender in (Contender('tiny', (64, 64)), Contender(RETINANET, (64, 64), 'detector')):
        models.prepare(replace(contender, compile=True, memory_format='contiguous'))
    assert compiled == [(name, {'dynamic': True}) for name in ('PVT', 'PVT', 'FPN')]


@pytest.mark.parametrize(
    ('contender', 'message'),
    [
        (Contender('tiny', (64, 96), peer='hf'), '--peers hf takes squares only'),
        (Contender('tiny', mode='detector'), '--mode detector takes the path of a config'),
        (Contender('tiny', mode='end2end'), '--mode end2end takes the path of a config'),
        (Contender(RETINANET, mode='attention'), '--mode attention takes one of tiny'),
        (Contender('b2_li', peer='mmdet'), '--peers mmdet: MMDetection has no backbone like that of b2_li'),
        (
            Contender(RETINANET, peer='hf'),
            '--peers hf takes an arch, and not the path of a config',
        ),
        (Contender(RETINANET, mode='end2end', options={'data_root': '/nowhere/'}), '/nowhere/annotations'),
        (Contender(RETINANET, options={'model.backbone.arch': 'big'}), "unknown arch 'big'"),
    ],
)
def test_what_cannot_be_built_says_why(contender, message):
    with pytest.raises(ValueError, match=message):
        models.prepare(contender)


# ---------------------------------------------------------------------------------------------------------- the tool


def test_next_to_peers_with_a_busy_neighbour(tmp_path, capfd):
    out = tmp_path / 'times.svg'
    code, answer, printed = run(
        capfd, '--model', 'tiny', '--peers', 'mmdet', '--shape', '64', '--busy', '--plot', str(out)
    )
    assert code == 0, printed
    names = ['PVT-Tiny, busy neighbour', 'PVT-Tiny, MMDetection, busy neighbour']
    assert [one['name'] for one in answer['results']] == names
    for one in answer['results']:
        assert one['median_s'] > 0
        assert (one['rounds'], one['threads']) == (2, 1)
        assert one['gflop_per_s'] == pytest.approx(2 * one['gflops'] / one['median_s'], rel=0.02)
        assert one['name'] in printed
        assert one['name'] in out.read_text().replace('<!--', '')
    assert set(answer['products_gflop_per_s']) == {'torch.mm', 'torch.conv2d'}
    assert min(answer['products_gflop_per_s'].values()) > 1


def test_images_from_disk(shapes, capfd):
    options = [f'data_root={shapes}/', 'model.test_cfg.score_thr=0.9', 'test_dataloader.batch_size=2']
    code, answer, printed = run(capfd, '--model', DEMO, '--mode', 'end2end', '--cfg-options', *options)
    assert code == 0, printed
    (one,) = answer['results']
    assert one['images_per_s'] == pytest.approx(2 / one['median_s'], rel=0.01)
    assert 0 < one['parts_s']['waiting for data'] < one['median_s']
    assert 'waiting for data ms' in printed


def test_images_from_disk_through_a_peer(shapes):
    options = {
        'data_root': f'{shapes}/',
        'test_dataloader.batch_size': 2,
        'test_dataloader.num_workers': 0,
        'test_dataloader.persistent_workers': False,
        'test_dataloader.dataset.ann_file': 'annotations/instances_val2017.json',
        'test_dataloader.dataset.metainfo.classes': ('circle', 'square', 'triangle'),
        'test_dataloader.dataset.pipeline.1.scale': (64, 64),
        'model.bbox_head.num_classes': 3,
    }
    contender = Contender(RETINANET, mode='end2end', peer='mmdet', options=options)
    prepared = models.prepare(contender)
    assert prepared.images == 2
    assert prepared.step()['waiting for data'] > 0


def test_flags_become_contenders(v2_config):
    argv = ['--model', RETINANET, R18, v2_config, '--labels', 'PVT', 'ResNet', 'V2', '--peers', 'mmdet']
    argv += ['--mode', 'train', '--scales', '64', '96', '--with-cp', '--prepare', 'm:f', '--busy', '--batch', '2']
    argv += ['--memory-format', 'contiguous']
    groups = tool.contenders(tool.parse_args(argv))
    names = ['PVT, with_cp, f, busy neighbour', 'PVT, MMDetection, busy neighbour', 'ResNet, busy neighbour']
    names += ['V2, with_cp, f, busy neighbour', 'V2, MMDetection, busy neighbour']
    assert [[one.name for one in group] for group in groups] == [names] * 2  # the ResNet has no peer
    assert [group[0].shape for group in groups] == [(64, 64), (96, 96)]
    assert {(one.mode, one.batch, one.memory_format) for group in groups for one in group} == {
        ('train', 2, 'contiguous')
    }
    (named,) = tool.contenders(tool.parse_args(['--model', 'small_wide', 'b2_li']))
    assert [one.name for one in named] == ['PVT-Small-Wide', 'PVTv2-B2-Li']


PREDICT = ['--mode', 'predict', '--images', 'SHAPES']


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (['--model', 'smal'], '--model smal: not a file, and none of tiny'),
        (['--model', 'tiny', '--shape', '16'], 'PVT needs at least 32 x 32'),  # found in its process
        (['--model', 'tiny', '--shape', '1', '2', '3'], '--shape takes one or two'),
        (['--model', 'tiny', '--batch', '0'], '--batch must be at least 1'),
        (['--model', 'tiny', '--labels', 'a', 'b'], '--labels takes one name for each --model, got 2 for 1'),
        (['--model', 'tiny', '--plot', 'times.gif'], '--plot times.gif: name a file that ends in'),
        (['--model', DEMO, '--mode', 'end2end', '--scales', '64'], '--mode end2end takes the sizes of its data'),
        (
            ['--model', 'ONNX', '--mode', 'train'],
            'detector.onnx: ONNX files and work directories are of --mode predict',
        ),
        (['--model', 'RUN'], 'shapes_run: ONNX files and work directories are of --mode predict'),
        (['--model', 'tiny', '--profile'], '--profile is of --mode predict'),
        (['--model', 'ONNX', '--mode', 'predict'], '--mode predict needs --images FOLDER'),
        (['--model', 'ONNX', '--mode', 'predict', '--images', 'RUN'], 'shapes_run has no image: no file ends in .jpg'),
        (['--model', 'ONNX', *PREDICT, '--batch', '2'], 'one image at a time on the CPU'),
        (['--model', 'ONNX', *PREDICT, '--peers', 'mmdet'], '--mode predict takes no --peers'),
        (['--model', 'ONNX', *PREDICT, '--dtype', 'bfloat16'], '--dtype bfloat16 is of PyTorch'),
        (['--model', 'SHAPES', *PREDICT], 'has no configs (.py): a work directory of tools/train.py has one'),
        (['--model', 'x.onnx', *PREDICT], '--model x.onnx does not exist'),
        (['--model', 'OTHER', *PREDICT], 'other.onnx has no metadata of pvt_mm'),  # found in its process
    ],
)
def test_wrong_input_is_one_line(argv, message, capfd, onnx_path, work_dir, shapes, tmp_path):
    other = tmp_path / 'other.onnx'
    if 'OTHER' in argv:
        model = onnx.load(onnx_path)
        del model.metadata_props[:]
        onnx.save(model, other)
    names = dict(ONNX=onnx_path, RUN=work_dir, SHAPES=str(shapes), OTHER=str(other))
    argv = [names.get(one, one) for one in argv]
    code, _, printed = run(capfd, *argv)
    assert code == 2
    assert message in ' '.join(printed.split())
    assert 'Traceback' not in printed


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_no_gpu_is_one_line(capfd):
    code, _, printed = run(capfd, '--model', 'tiny', '--device', 'cuda')
    assert code == 2
    assert '--device cuda: PyTorch finds no GPU here' in printed


def test_the_plots_have_what_was_measured():
    sides = (64, 96)
    ours = [result(Contender('small', (side, side)), side / 100, side / 50, gflops=side) for side in sides]
    theirs = [
        result(Contender('small', (side, side), peer='mmdet'), side / 10, side / 5, gflops=side) for side in sides
    ]
    times, arithmetic = plot_scales([*ours, *theirs], 'a machine').axes
    assert [line.get_label() for line in times.lines] == ['PVT-Small', 'PVT-Small, MMDetection']
    assert list(times.lines[0].get_ydata()) == pytest.approx([0.96, 1.44])
    assert list(arithmetic.lines[1].get_ydata()) == [64, 96]
    assert [line.get_linestyle() for line in arithmetic.lines] == ['-', '--']  # they coincide
    (axes,) = plot_times([ours[0], theirs[0]], 'a machine').axes
    assert [patch.get_width() for patch in axes.patches] == pytest.approx([0.96, 9.6])
    assert any('10.00 x' in text.get_text() for text in axes.texts)


# -------------------------------------------------------------------------------------------------------- predictions


@pytest.fixture(scope='module')
def onnx_path(tmp_path_factory):
    """A detector of one box, computed by a convolution and a matrix product, with the metadata of an export."""
    node, random = helper.make_node, np.random.default_rng(0).random
    nodes = [
        node('Conv', ['image', 'kernel'], ['map']),
        node('GlobalAveragePool', ['map'], ['mean']),
        node('Flatten', ['mean'], ['row']),
        node('MatMul', ['row', 'weight'], ['box']),
        node('Unsqueeze', ['box', 'axis'], ['boxes']),
        node('ReduceMax', ['box', 'axis'], ['best']),
        node('Sigmoid', ['best'], ['scores']),
        node('Floor', ['scores'], ['floor']),
        node('Cast', ['floor'], ['labels'], to=TensorProto.INT64),
    ]
    weights = [numpy_helper.from_array(random(shape, np.float32), name) for name, shape in
               (('kernel', (4, 3, 3, 3)), ('weight', (4, 4)))]  # fmt: skip
    weights.append(numpy_helper.from_array(np.array([1]), 'axis'))
    tensor = helper.make_tensor_value_info
    inputs = [tensor('image', TensorProto.FLOAT, ['B', 3, 'H', 'W'])]
    inputs += [tensor(name, TensorProto.INT64, ['B', 2]) for name in ('img_shape', 'ori_shape')]
    outputs = [tensor('boxes', TensorProto.FLOAT, ['B', 'N', 4]), tensor('scores', TensorProto.FLOAT, ['B', 'N'])]
    outputs.append(tensor('labels', TensorProto.INT64, ['B', 'N']))
    graph = helper.make_graph(nodes, 'detector', inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 20)], ir_version=10)
    steps = dict(channels=3, steps=[], order='RGB', mean=None, std=None, pad_size=None, pad_divisor=32, pad_value=0)
    metadata = dict(classes=['cat', 'dog'], palette=[[255, 0, 0], [0, 255, 0]], preprocessing=steps)
    metadata = {name: json.dumps(value) for name, value in metadata.items()}
    helper.set_model_props(model, metadata | dict(task='detection'))
    path = tmp_path_factory.mktemp('onnx') / 'detector.onnx'
    onnx.save(model, path)
    return str(path)


@pytest.fixture(scope='module')
def work_dir(tmp_path_factory):
    """The work directory of a run with random weights."""
    folder = tmp_path_factory.mktemp('runs') / 'shapes_run'
    folder.mkdir()
    (folder / 'retinanet_shapes.py').write_text(f'_base_ = {DEMO!r}\n')
    config = load_config(DEMO)
    torch.save({'state_dict': build_model(config).state_dict()}, folder / 'epoch_1.pth')
    (folder / 'last_checkpoint').write_text(str(folder / 'epoch_1.pth'))
    return str(folder)


def test_predictions_of_an_onnx_file(onnx_path, shapes, capfd, monkeypatch):
    running = ModuleType('__main__')  # as if the tool was run: a new process would import it
    running.__file__ = tool.__file__
    monkeypatch.setitem(sys.modules, '__main__', running)
    argv = ['--model', onnx_path, '--mode', 'predict', '--images', f'{shapes}/val2017', '--profile']
    code, answer, printed = run(capfd, *argv)
    assert code == 0, printed
    (one,) = answer['results']
    assert one['name'] == 'detector.onnx'
    assert list(one['parts_s']) == ['input', 'model', 'output']
    assert sum(one['parts_s'].values()) == pytest.approx(one['median_s'], rel=0.3)  # of two rounds
    assert one['images_per_s'] == pytest.approx(1 / one['median_s'], rel=0.01)
    assert one['p95_s'] >= one['median_s']
    assert 0 <= one['peak_memory_gb'] < one['total_memory_gb'] < 0.25  # PyTorch alone is more
    assert one['load_s'] > 0
    assert one['file_mb'] == pytest.approx(os.path.getsize(onnx_path) / 1e6, abs=0.006)
    assert {'convolutions', 'linear layers'} <= set(one['operators_s'])
    assert re.search(r'- detector.onnx: .*Conv \d+%', printed)


def test_a_run_predicts_as_the_demo_does(work_dir, shapes, monkeypatch):
    images = prediction.find_images(f'{shapes}/val2017')
    contender = Contender(work_dir, mode='predict', images=images[:2])
    prepared = models.prepare(contender)
    assert prepared.loaded.megabytes == pytest.approx(os.path.getsize(f'{work_dir}/epoch_1.pth') / 1e6)
    assert prepared.loaded.load_seconds > 0
    taken, predict = [], prediction.Predictor.__call__
    monkeypatch.setattr(prediction.Predictor, '__call__', lambda self, path: taken.append(path) or predict(self, path))
    parts = [prepared.step(i) for i in range(3)]
    assert taken == [images[0], images[1], images[0]]
    assert all(min(one.values()) > 0 for one in parts)
    assert [*parts[0]] == ['input', 'model', 'output']
    monkeypatch.setattr(measure, '_prepared', [prepared])
    profiled = measure._profile(contender, 2)
    assert profiled['linear layers']['aten::addmm'] > 0
    assert profiled['NMS, sorting']['NMSop'] > 0
    random = models.prepare(replace(contender, model=DEMO))  # a config has random weights, and no file
    assert random.loaded.megabytes is None
    assert random.step()['model'] > 0


def test_all_predict_on_the_same_images(onnx_path, work_dir, shapes, monkeypatch):
    taken = {prediction.Predictor: [], OnnxModel: []}
    for kind, paths in taken.items():
        monkeypatch.setattr(
            kind, '__call__', lambda self, path, call=kind.__call__, paths=paths: paths.append(path) or call(self, path)
        )

    class Here(contextlib.ExitStack):
        """Calls functions in this process."""

        def submit(self, function, *args):
            future = Future()
            future.set_result(function(*args))
            return future

    monkeypatch.setattr(measure, 'ProcessPoolExecutor', lambda *_: Here())
    monkeypatch.setattr(measure, 'busy_neighbour', contextlib.nullcontext)
    monkeypatch.setattr(measure, '_prepared', [])
    monkeypatch.setattr(onnx_file, '_loaded', [])
    threads = []
    monkeypatch.setattr(torch, 'set_num_threads', threads.append)
    monkeypatch.setattr(cv2, 'setNumThreads', threads.append)
    images = prediction.find_images(f'{shapes}/val2017')[:2]
    quiet = [Contender(model, mode='predict', images=images, threads=2) for model in (work_dir, onnx_path)]
    measure.measure([*quiet, *(replace(one, busy=True) for one in quiet)], 3, profiled=True)
    first, second = images
    for paths in taken.values():
        assert paths[:7] == [first, *[first] * 2, *[second] * 2, *[first] * 2]  # to warm up, then quiet and busy
        assert paths[-3:] == [first, second, first]  # profiled
    assert threads == [2, 2]


def test_threads_of_predictions_are_the_cores(onnx_path, work_dir, shapes):
    argv = ['--mode', 'predict', '--images', f'{shapes}/val2017', '--model', work_dir, onnx_path]
    (found,) = tool.contenders(tool.parse_args(argv))
    assert [one.threads for one in found] == [len(os.sched_getaffinity(0))] * 2


def test_contenders_of_predictions(onnx_path, work_dir, shapes):
    argv = ['--mode', 'predict', '--images', f'{shapes}/val2017', '--threads', '1', '--busy']
    argv += ['--model', work_dir, onnx_path, DEMO]
    ((run_, file, config),) = tool.contenders(tool.parse_args([*argv, '--dtype', 'bfloat16', '--compile']))
    assert [one.name for one in (run_, file, config)] == [
        'shapes_run, bfloat16, compiled, busy neighbour',
        'detector.onnx, busy neighbour',  # whose type is in the file
        'demo/retinanet_shapes, bfloat16, compiled, busy neighbour',
    ]
    assert run_.images == file.images == config.images
    assert [Path(path).suffix for path in file.images] == ['.jpg'] * 6


@pytest.mark.parametrize(
    ('operator', 'shapes', 'kind'),
    [
        ('MatMul', [[1, 100, 64]], 'linear layers'),  # its weight is packed
        ('MatMul', [[1, 100, 64], [64, 64]], 'linear layers'),
        ('FusedMatMul', [[1, 2, 100, 32], [1, 2, 32, 49]], 'attention'),
        ('Conv', [[1, 64, 8, 8], [64, 1, 3, 3], [64]], 'depthwise convolutions'),
        ('Conv', [[1, 64, 8, 8], [64, 64, 3, 3]], 'convolutions'),
        ('Einsum', [[2]], 'other'),
    ],
)
def test_kinds_of_onnxs_operators(operator, shapes, kind):
    assert onnx_file._kind(operator, {'input_type_shape': [{'float': shape} for shape in shapes]}) == kind


# -------------------------------------------------------------------------------------------------------- the report

ZEN = '## Zen, family 26, model 2'
EARLIER = f'# Benchmarks\n\nHead.\n\n## Another\n\nTwo cores.\n\n### Forward\n\n| a |\n\n{ZEN}\n\nAn earlier run.\n'


def seconds(contender):
    """A time for each contender of the report that no other in its group has."""
    if contender.mode == 'product':
        return {'torch.mm': 2.0, 'torch.conv2d': 1.0}[contender.model]
    if contender.mode == 'detector':
        return 2.0 if 'r50' in contender.model else {800: 2.2, 640: 1.3}[contender.shape[0]]
    theirs = {'small': 8.0, 'b2': 3.0}[contender.model]
    time = (theirs if contender.peer else 2.0) * (0.5 if contender.prepare else 1)
    time *= (0.75 if contender.compile else 1) * (0.5 if contender.dtype == 'bfloat16' else 1)
    time *= (4 if contender.busy else 1) * (1.5 if contender.with_cp else 1)
    return time * {'forward': 1, 'train': 3}[contender.mode]


@pytest.fixture
def measured(monkeypatch):
    """Replaces measuring by times and memory of our choice; the groups and rounds that were asked for."""
    asked = []

    def fake(contenders, rounds):
        asked.append((contenders, rounds))
        memory = [2.0 if one.peer else 0.25 if one.with_cp else 0.7 for one in contenders]
        return [
            result(one, *[seconds(one)] * rounds, peak_memory=peak)
            for one, peak in zip(contenders, memory, strict=True)
        ]

    monkeypatch.setattr(report, 'measure', fake)
    monkeypatch.setattr(report, 'time_by_kind', lambda one: {'linear layers': 0.75, 'other': 0.25})
    monkeypatch.setattr(
        report, 'find_processor', lambda device: machine.Processor('Zen, family 26, model 2', 'AMD', True)
    )
    return asked


def test_the_report_says_what_was_measured_and_what_holds(measured, tmp_path, capsys):
    out, readme = tmp_path / 'docs/benchmarks.md', tmp_path / 'README.md'
    out.parent.mkdir()
    out.write_text(EARLIER)
    readme.write_text((ROOT / 'README.md').read_text())
    assert report.main(['--rounds', '4', '--out', str(out.parent), '--prepare', 'm:swap']) == 0
    answer = json.loads(capsys.readouterr().out.strip().split('\n')[-1])
    found = [(one['what'], one['value'], one['bound'], one['holds']) for one in answer['reaches']]
    assert found == [
        ('PVT-Small, forward: MMDetection / ours', 4.0, 2.4, True),
        ('PVT-Small, forward, busy neighbour: MMDetection / ours', 4.0, 1.0, True),
        ('PVT-Small, forward, ours: busy neighbour / quiet', 4.0, 3.0, False),
        ('PVT-Small, training: MMDetection / ours', 4.0, 1.6, True),
        ('PVT-Small, training, ours: busy neighbour / quiet', 4.0, None, None),
        ('PVT-Small, peak memory of training: ours / MMDetection', 0.35, 0.3, False),
        ('PVT-Small, peak memory of training with_cp: ours / MMDetection', 0.125, 0.2, True),
        ('PVT-Small, forward, both compiled: MMDetection / ours', 4.0, None, None),
        ('PVT-Small, forward: MMDetection in float32 / ours in bfloat16', 8.0, 8.0, True),
        ('PVTv2-B2, forward: MMDetection / ours', 1.5, 2.0, False),
        ('PVTv2-B2, forward, busy neighbour: MMDetection / ours', 1.5, None, None),
        ('PVTv2-B2, forward, ours: busy neighbour / quiet', 4.0, None, None),
        ('PVTv2-B2, training: MMDetection / ours', 1.5, 1.8, False),
        ('PVTv2-B2, training, ours: busy neighbour / quiet', 4.0, None, None),
        ('PVTv2-B2, peak memory of training: ours / MMDetection', 0.35, 0.5, True),
        ('RetinaNet: PVT-S at 640 / ResNet-50 at 800 (paper 0.92)', 0.65, 0.75, True),
        ('RetinaNet: PVT-S / ResNet-50, both at 800 (paper 1.38)', 1.1, None, None),
        ('RetinaNet: PVT-S at 640 prepared / ResNet-50 at 800', 0.65, 0.75, True),
        *((f'PVT-Small, {mode}: ours / ours prepared', 2.0, None, None) for mode in
          ('forward', 'forward busy', 'training', 'training busy')),
    ]  # fmt: skip
    before, own = out.read_text().split(f'\n{ZEN}\n')
    assert before == EARLIER.split(f'\n{ZEN}\n')[0]  # as it was
    assert 'An earlier run' not in own
    rows = [re.sub(' +', ' ', line) for line in own.split('\n')]
    assert '| PVT-Small, forward: MMDetection / ours | >= 2.40 | 4.00 | holds |' in rows
    assert '| PVT-Small, forward, ours: busy neighbour / quiet | <= 3.00 | 4.00 | missed |' in rows
    assert '| PVT-Small, forward, both compiled: MMDetection / ours | | 4.00 | |' in rows
    assert '| PVTv2-B2, training: MMDetection / ours | >= 1.80 | 1.50 | missed |' in rows
    assert [row for row in rows if '75%' in row] == [
        f'| {name}, {mode} | 75% | 25% |' for name in ('PVT-Small', 'PVTv2-B2') for mode in ('forward', 'train')
    ]
    assert '| PVT-Small, with_cp | 800 x 1344 | 9000 | 0.0% | 1.50 | 0.11 | 0.25 | 1.0 | 0 | contiguous |' in rows
    assert {rounds for _, rounds in measured} == {4}
    assert {one.shape for group, _ in measured for one in group} == {(800, 1344), (640, 1088), (0, 0)}
    was = (ROOT / 'README.md').read_text()
    (now,) = report.PARAGRAPH.findall(readme.read_text())
    assert readme.read_text() == report.PARAGRAPH.sub(now, was) != was
    assert max(map(len, now.split('\n'))) <= 128
    assert ' '.join(now.split()) == (
        f"**Fast.** On Zen with {os.cpu_count()} cores, at 800 x 1344 in float32 and next to MMDetection's: "
        "PVT-Small's forward pass is 4.0 times as fast, a training step 4.0 times, with 0.35 of the memory; "
        "PVTv2-B2's forward pass is 1.5 times as fast, a training step 1.5 times, with 0.35 of the memory. "
        '[docs/benchmarks.md](docs/benchmarks.md) has all figures, and the bounds that are missed; '
        '`make bench` measures them.'
    )


def test_without_bf16_units_it_is_not_measured(measured, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, 'find_processor', lambda device: machine.Processor('Arm', '', False))
    readme, out = tmp_path / 'README.md', tmp_path / 'docs'
    readme.write_text('Of another project.')
    out.mkdir()
    assert report.main(['--rounds', '1', '--prepare', '', '--out', str(out)]) == 0
    assert f'written to {readme}' not in capsys.readouterr().out  # it has no marks
    assert readme.read_text() == 'Of another project.'
    text = re.sub(' +', ' ', (out / 'benchmarks.md').read_text())
    assert 'ours in bfloat16 (not multiplied here) | >= 8.00 | not measured |' in text
    assert '| PVT-Small, forward: MMDetection / ours | | 4.00 | |' in text  # no bound for an unknown vendor
    assert all(one.dtype == 'float32' and not one.prepare for group, _ in measured for one in group)


@pytest.mark.parametrize(
    ('argv', 'message'),
    [(['--rounds', '0'], '--rounds must be'), (['--out', '/dev/null/docs'], 'not a folder that can be')],
)
def test_a_report_that_cannot_be_written_is_one_line(argv, message, capfd):
    assert report.main(argv) == 2
    assert message in capfd.readouterr().err


# ------------------------------------------------------------------------------------------------------------ a GPU

SMALL = ['--device', 'cpu', '--shape', '224', '96', '--batches', '1', '3', '--rounds', '2']


def test_measured_here_after_steps_to_warm_up(monkeypatch):
    taken = []
    prepared = models.Prepared(lambda: taken.append(1) or {}, 1e9, 2, 3.0, 'contiguous')
    monkeypatch.setattr(measure, 'prepare', lambda contender: prepared)
    monkeypatch.setattr(measure, 'used_memory', lambda device: taken.append('reset'))
    monkeypatch.setattr(measure, 'peak_memory', lambda device: 1e9 + 1e8 * len(taken))
    measured = measure.measure_here(Contender('tiny', batch=2), 2)
    assert taken == [1, 1, 1, 'reset', 1, 1]
    assert (len(measured.seconds), measured.images, measured.gflops) == (2, 2, 3.0)
    assert measured.peak_memory == pytest.approx(0.6)


def test_a_detectors_training_step():
    contender = Contender(RETINANET, (64, 96), 'detector_train', batch=2, dtype='bfloat16', memory_format='contiguous')
    model, gflops = models.build(contender)
    loss = model.train()(torch.randn(2, 3, 64, 96))
    assert loss.requires_grad
    assert torch.equal(loss, model(torch.zeros(2, 3, 64, 96))) is False
    prepared = models.prepare(contender)
    assert prepared.step() == {}
    assert prepared.gflops == pytest.approx(3 * 2 * gflops)


def test_tf32_is_a_precision_of_float32_products():
    found = []
    for dtype in ('tf32', 'float32'):
        with models.precision(Contender('tiny', dtype=dtype)):
            found.append(torch.get_float32_matmul_precision())
    assert found == ['high', 'highest']
    assert torch.get_float32_matmul_precision() == 'highest'


def test_attention_kernels_of_each_stage():
    contender = Contender('tiny', (70, 90), 'train', batch=2, dtype='bfloat16')
    for build, arch in ((PVT, 'tiny'), (PVTv2, 'b0'), (PVTv2, 'b2_li')):
        kernels = attention.attention_kernels(build(arch), contender)
        assert [kernel.backend for kernel in kernels] == ['flash'] * 4
    kernels = attention.attention_kernels(PVT('tiny', attn_drop_rate=0.1), contender)
    assert [kernel.backend for kernel in kernels] == ['math'] * 4  # on a CPU


@pytest.mark.skipif(models.sdpa_kernel is None, reason='needs torch 2.3')
def test_steps_at_new_sizes(monkeypatch):
    model, sizes = Recording('contiguous'), []
    model.register_forward_pre_hook(lambda module, args: sizes.append(tuple(args[0].shape[2:])))
    monkeypatch.setattr(attention, 'build', lambda contender: (model, 1.0))
    steps = iter([0, 9, 0, 9, 0, 5, 0, 3, 0, 7, 0, 1])  # start and end of each
    monkeypatch.setattr(attention.time, 'perf_counter', lambda: next(steps))
    contender = Contender('tiny', (128, 64), 'train', memory_format='contiguous')
    assert attention.time_new_sizes(contender, 'FLASH_ATTENTION', 2) == (6, 2)  # without the first size
    assert sizes == [(128, 64)] * 2 + [(96, 64)] * 2 + [(64, 64)] * 2
    with pytest.raises(InputError, match='cannot choose NEURAL_ATTENTION'):
        attention.time_new_sizes(contender, 'NEURAL_ATTENTION')


@pytest.fixture
def gpu_measured(monkeypatch):
    """Replaces what is measured; the large batch of MMDetection's PVT-Small does not fit."""
    asked = []

    def fake(contender, rounds):
        asked.append(contender)
        if contender.peer and contender.batch == 3 and (contender.model, contender.mode) == ('small', 'train'):
            raise InputError(f'{contender.name}: OutOfMemoryError: CUDA out of memory. Tried to allocate 9 GiB.')
        time = contender.batch * (3.0 if contender.peer else 2.0 if 'r50' in contender.model else 1.0)
        time *= 2.0 if contender.with_cp or contender.dtype == 'float32' else 0.5 if contender.compile else 1.0
        return result(contender, *[time] * rounds, peak_memory=4.0 if contender.peer else 1.0)

    def kernels(model, contender):
        return [attention.AttentionKernel('flash', ('flash_fwd',))] * 4

    def sizes(contender, backend):
        if backend.startswith('CUDNN'):
            raise RuntimeError('No available kernel. Aborting execution.')
        return attention.NewSize(0.5, 0.2)

    monkeypatch.setattr(gpu, 'build', lambda contender: (None, 1.0))
    monkeypatch.setattr(gpu, 'measure_here', fake)
    monkeypatch.setattr(gpu, 'attention_kernels', kernels)
    monkeypatch.setattr(gpu, 'time_new_sizes', sizes)
    return asked


def test_the_report_of_a_gpu(gpu_measured, tmp_path, capsys):
    out = tmp_path / 'benchmarks_gpu.md'
    for _ in range(2):
        gpu_measured.clear()
        assert gpu_tool.main([*SMALL, '--out', str(out)]) == 0
    answer = json.loads(capsys.readouterr().out.strip().split('\n')[-1])
    figures = answer['figures']
    assert figures['training, batch 1: MMDetection / ours'] == 3.0
    assert figures['training, batch 1, ours: with_cp / without'] == 2.0
    assert figures['training, batch 1, ours: eager / compiled'] == 2.0
    assert figures['training, batch 1, ours: float32 / bfloat16'] == 2.0
    assert figures['peak memory, batch 1: ours / MMDetection'] == 0.25
    assert figures['training, batch 3: MMDetection / ours'] is None
    assert figures['PVTv2-B2, training, batch 3: MMDetection / ours'] == 3.0
    assert figures['PVTv2-B2, peak memory, batch 3: ours / MMDetection'] == 0.25
    assert figures['training, batch 3, ours: ms'] == 3000
    assert figures['RetinaNet, training, batch 1: PVT-S / ResNet-50'] == 0.5
    assert answer['not_run']['Training, batch 3: PVT-Small, MMDetection, bfloat16'] == 'out of memory'
    assert answer['not_run']['new sizes, cuDNN'] == 'No available kernel. Aborting execution.'
    text = re.sub(' +', ' ', out.read_text())
    assert text.count('\n## ') == 1  # the second run's is in the place of the first's
    assert '| training, batch 1: MMDetection / ours | | 3.00 |' in text
    assert '| training, batch 3: MMDetection / ours | | not measured |' in text
    assert '| PVT-Small-Wide, float16 | flash | flash | flash | flash |' in text
    assert '| flash | 500.0 | 200.0 | 300.0 |' in text
    assert '- out of memory: Training, batch 3: PVT-Small, MMDetection, bfloat16; Training, compiled' in text
    assert '| PVTv2-B2-Li, float16 | flash | flash | flash | flash |' in text
    compiled = [one.compile for one in gpu_measured if one.mode == 'train']
    assert compiled == sorted(compiled)  # last


def test_what_was_expected_is_next_to_what_was_measured(gpu_measured):
    benchmark = gpu.Benchmark('cuda', (800, 1344), (2, 16), 1, 280, gpu_tool.RETINANET, lambda line: None)
    assert set(gpu.EXPECTED) <= set(benchmark.figures())
    text = re.sub(' +', ' ', benchmark.report())
    assert '| peak memory, batch 16: ours / MMDetection | 0.23 | not measured |' in text


def test_a_gpus_benchmark_ends_in_time(gpu_measured, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(gpu.time, 'monotonic', lambda: now[0])
    told = []
    benchmark = gpu.Benchmark('cuda', (224, 96), (1, 3), 1, 100, gpu_tool.RETINANET, told.append, begin=0.0)
    now[0] = 21.0
    benchmark.run()
    compiled = {what for what in benchmark.not_run if 'compiled' in what}
    assert {benchmark.not_run[what] for what in compiled} == {'no time left of 100 s'}
    assert len(compiled) == 4  # each takes 80 s, and 79 are left
    assert len(benchmark.results['Training, batch 1']) == 3
    assert any('compiled: not run: no time left' in line for line in told)


def test_what_does_not_end_is_stopped(gpu_measured, monkeypatch):
    monkeypatch.setattr(gpu, 'measure_here', lambda contender, rounds: time.sleep(60))
    benchmark = gpu.Benchmark('cuda', (224, 96), (1, 3), 1, 1.2, gpu_tool.RETINANET, lambda line: None)
    benchmark._attempt('compiling', 1.0, gpu.measure_here, None, 1)
    assert benchmark.not_run == {'compiling': 'not finished after 1 s'}


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (['--rounds', '0'], '--batches and --rounds must be'),
        (['--shape', '192', '96'], '--shape must be at least 224 96'),
        (['--out', '/dev/null/gpu.md'], 'not a file that can be written'),
    ],
)
def test_a_gpus_report_that_cannot_be_made_is_one_line(argv, message, capfd):
    assert gpu_tool.main([*SMALL, *argv]) == 2
    assert message in capfd.readouterr().err
