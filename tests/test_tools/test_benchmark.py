"""The benchmark: that it measures what it says, in every mode, and says what is wrong. No time is tested."""

import json
import platform
import statistics
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from pvt_mm.analysis import benchmark
from pvt_mm.analysis.benchmark import Contender, Result
from pvt_mm.analysis.flops import count
from pvt_mm.analysis.latency import plot_scales, plot_times
from pvt_mm.engine.run import load_config
from pvt_mm.errors import InputError
from tests.conftest import ROOT
from tools import benchmark as tool
from tools import benchmark_report as report

RETINANET = str(ROOT / 'configs/retinanet/pvt_t_1x.py')
R18 = str(ROOT / 'configs/retinanet/r18_1x.py')
DEMO = str(ROOT / 'configs/demo/retinanet_shapes.py')
SMALL = ['--rounds', '2', '--threads', '1']


def result(contender, *seconds, waited=None, gflops=1.0, peak_memory=1.0):
    waited = waited or (0.0,) * len(seconds)
    return Result(contender, seconds, waited, contender.batch, gflops, peak_memory, 'contiguous')


def run(capfd, *argv):
    """Runs the tool: its exit code, the JSON of its last line if it has one, and all that it printed."""
    code = tool.main([*argv])
    printed = capfd.readouterr()
    lines = printed.out.strip().split('\n')
    return code, json.loads(lines[-1]) if code == 0 else None, printed.out + printed.err


# ----------------------------------------------------------------------------------------------------- the figures


def test_figures_are_medians_over_the_rounds():
    ours = result(Contender('tiny'), 1.0, 2.0, 4.0, 8.0, gflops=6.0)
    theirs = result(Contender('tiny', peer='mmdet'), 3.0, 2.0, 8.0, 40.0)
    assert ours.median == 3.0
    assert ours.spread == pytest.approx((5.0 - 1.75) / 2 / 3.0)
    assert ours.rate == pytest.approx(2 * 6.0 / 3.0)
    assert ours.ratio(theirs) == statistics.median([3.0, 1.0, 2.0, 5.0])  # and not the ratio of the medians
    assert result(Contender('tiny'), 1.0).spread == 0


def test_contenders_take_turns(monkeypatch):
    order, reported = [], []

    class Worker:
        def __init__(self, contender):
            self.contender, self.facts = contender, dict(images=1, gflops=1.0, memory_format='contiguous')

        def __enter__(self):
            return self

        def __exit__(self, *_):
            order.append('end')

        def forget_peak(self):
            pass

        def step(self):
            order.append(self.contender.model)
            return float(len(order)), 0.0, 0.1 * len(order)

    monkeypatch.setattr(benchmark, '_worker', Worker)
    results = benchmark.measure([Contender('tiny'), Contender('small')], 3, reported.append)
    assert order == ['tiny'] * 2 + ['small'] * 2 + ['tiny', 'small'] * 3 + ['end'] * 2
    assert results[0].seconds == (5.0, 7.0, 9.0)
    assert reported == ['PVT-Tiny', 'PVT-Small'] * 4
    assert results[1].peak_memory == pytest.approx(1.0)


def test_multiply_adds_are_those_of_flops():
    at = (128, 160)
    parts = {part.name: part.gflops for part in count(load_config(RETINANET), at)}
    assert benchmark._build(Contender('tiny', at))[1] == pytest.approx(parts['backbone'])
    assert benchmark._build(Contender(RETINANET, at))[1] == pytest.approx(parts['backbone'])
    assert benchmark._build(Contender(RETINANET, at, mode='detector'))[1] == pytest.approx(parts['model'])
    _, _, facts = benchmark._prepare(Contender('tiny', at, mode='train', batch=3))
    assert facts['gflops'] == pytest.approx(3 * 3 * parts['backbone'])
    N = at[0] * at[1] // 16
    alone = sum(2 * 2 * (N // 4**i) * (N // 64) * C for i, C in enumerate((64, 128, 320))) / 1e9
    alone += 2 * 2 * (N // 64) ** 2 * 512 / 1e9
    assert benchmark._build(Contender('tiny', at, mode='attention'))[1] == pytest.approx(alone)


@pytest.mark.parametrize('peer', ['mmdet', 'hf'])
def test_peers_are_the_same_network(peer):
    ours, theirs = (benchmark._build(Contender('small', (224, 224), peer=one)) for one in ('', peer))
    weights, others = (
        [p.numel() for p in model.parameters() if p.dim() in dims]
        for (model, _), dims in ((ours, (2,)), (theirs, (2, 4)))
    )
    assert sum(weights) == sum(others)
    assert ours[1] == theirs[1]


class Recording(torch.nn.Module):
    """Notes how it is called, and is slow in one of the memory formats."""

    def __init__(self, slow):
        super().__init__()
        self.conv, self.slow, self.calls = torch.nn.Conv2d(3, 4, 1), slow, []

    def forward(self, image):
        channels_last = image.is_contiguous(memory_format=torch.channels_last)
        time.sleep(0.1 if channels_last == (self.slow == 'channels_last') else 0)
        y = self.conv(image)
        self.calls.append((self.training, torch.is_grad_enabled(), y.dtype, channels_last))
        return y


@pytest.mark.parametrize(('slow', 'faster'), [('contiguous', 'channels_last'), ('channels_last', 'contiguous')])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('mode', ['forward', 'train'])
def test_a_step_is_what_was_asked_for(mode, dtype, slow, faster, monkeypatch):
    model = Recording(slow)
    monkeypatch.setattr(benchmark, '_build', lambda contender: (model, 1.0))
    contender = Contender('tiny', (8, 8), mode, batch=2, dtype=dtype, memory_format='better')
    step, _, facts = benchmark._prepare(contender)
    assert facts == dict(images=2, gflops=6.0 if mode == 'train' else 2.0, memory_format=faster)
    step()
    train = mode == 'train'
    assert model.calls[-1] == (train, train, getattr(torch, dtype), faster == 'channels_last')
    assert model.conv.weight.grad is None  # as an optimizer leaves them


@pytest.mark.filterwarnings('ignore::UserWarning')  # they say why no kernel fits
def test_a_kernel_that_builds_the_map_is_an_error():
    q = torch.randn(1, 1, 8, 4)
    with benchmark.fused_attention():
        F.scaled_dot_product_attention(q, q, q)
        with pytest.raises(RuntimeError, match='kernel'):
            F.scaled_dot_product_attention(q, q, q, dropout_p=0.5)  # which no fused kernel has on a CPU


def test_recomputing_keeps_less_memory():
    kept = [Contender('tiny', (384, 384), 'train', with_cp=with_cp, threads=1) for with_cp in (False, True)]
    plain, recomputed = benchmark.measure(kept, 1, print)
    assert 0 < recomputed.peak_memory < plain.peak_memory < 1
    assert recomputed.gflops == plain.gflops


# -------------------------------------------------------------------------------------------------------- the tool


def test_beside_peers(tmp_path, capfd):
    out = tmp_path / 'times.svg'
    code, answer, printed = run(
        capfd, '--model', 'tiny', '--peers', 'mmdet', 'hf', '--shape', '64', '--plot', str(out), *SMALL
    )
    assert code == 0
    names = ['PVT-Tiny', 'PVT-Tiny, MMDetection', 'PVT-Tiny, Hugging Face']
    assert [one['name'] for one in answer['results']] == names
    for one in answer['results']:
        assert one['median_s'] > 0
        assert one['rounds'] == 2
        assert one['threads'] == 1
        assert one['gflop_per_s'] == pytest.approx(2 * one['gflops'] / one['median_s'], rel=0.02)
        assert one['name'] in printed
        assert one['name'] in out.read_text().replace('<!--', '')
    assert set(answer['products_gflop_per_s']) == {'torch.mm', 'torch.conv2d'}
    assert min(answer['products_gflop_per_s'].values()) > 1


def test_training_whole_configs_at_scales(tmp_path, capfd):
    out = tmp_path / 'scales.png'
    code, answer, _ = run(
        capfd, '--model', RETINANET, R18, '--peers', 'mmdet', '--mode', 'train', '--scales', '64', '96', '--with-cp',
        '--memory-format', 'contiguous', '--batch', '2', '--plot', str(out), *SMALL,
    )  # fmt: skip
    assert code == 0
    assert out.stat().st_size > 10_000
    kinds = [(one['name'], one['shape'][0]) for one in answer['results']]
    names = ['retinanet/pvt_t_1x, with_cp', 'retinanet/pvt_t_1x, MMDetection', 'retinanet/r18_1x']
    assert kinds == [(name, side) for side in (64, 96) for name in names]  # the ResNet has no peer


@pytest.mark.parametrize(
    'model', ['retinanet/pvt_t_1x', 'mask_rcnn/pvt_t_1x', 'detr/pvt_s_50e', 'semantic_fpn/pvt_t_80k']
)
def test_whole_detectors_and_segmentors(model):
    contender = Contender(str(ROOT / f'configs/{model}.py'), (96, 128), 'detector', memory_format='better')
    step, _, facts = benchmark._prepare(contender)
    step()
    assert facts['memory_format'] in benchmark.FORMATS
    assert facts['gflops'] > 1


@pytest.mark.parametrize('peers', [[], ['--peers', 'mmdet']])
def test_images_from_disk(shapes, capfd, peers):
    options = [f'data_root={shapes}/', 'model.test_cfg.score_thr=0.9', 'test_dataloader.batch_size=2']
    model = DEMO if not peers else RETINANET
    if peers:
        options += [
            'test_dataloader.dataset.ann_file=annotations/instances_val2017.json',
            'test_dataloader.dataset.metainfo.classes=circle,square,triangle',
            'model.bbox_head.num_classes=3',
            'test_dataloader.dataset.pipeline.1.scale=(64,64)',
        ]
    code, answer, printed = run(capfd, '--model', model, *peers, '--mode', 'end2end', '--cfg-options', *options, *SMALL)
    assert code == 0, printed
    for one in answer['results']:
        assert one['images_per_s'] == pytest.approx(2 / one['median_s'], rel=0.01)
        assert 0 < one['waited_share'] < 1
    assert 'waited for data' in printed


def test_attention_alone_and_16_bits():
    for dtype in ('float32', 'bfloat16'):
        step, _, _ = benchmark._prepare(Contender('tiny', (64, 64), 'attention', dtype=dtype))
        step()
        step, _, facts = benchmark._prepare(Contender('tiny', (64, 64), 'train', dtype=dtype, batch=2))
        step()
        assert facts['images'] == 2


def test_compiled(monkeypatch):
    monkeypatch.setattr(torch._dynamo.config, 'suppress_errors', False)
    torch._dynamo.reset()
    compiled = []
    monkeypatch.setattr(
        torch.nn.Module, 'compile', lambda self, **kwargs: compiled.append((type(self).__name__, kwargs))
    )
    for contender in (
        Contender('tiny', (64, 64), compile=True),
        Contender(RETINANET, (64, 64), 'detector', compile=True),
    ):
        benchmark._prepare(contender)
    assert compiled == [(name, {'dynamic': True}) for name in ('PVT', 'PVT', 'FPN')]


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (['--model', 'smal'], '--model smal: no file, and none of tiny'),
        (['--model', 'tiny', '--shape', '16', *SMALL], 'PVT needs at least 32 x 32'),  # found in its process
        (['--model', 'tiny', '--shape', '1', '2', '3'], '--shape takes one or two'),
        (['--model', 'tiny', '--batch', '0'], '--batch must be at least 1'),
        (['--model', 'tiny', '--rounds', '0'], '--rounds must be at least 1'),
        (['--model', 'tiny', '--plot', 'times.gif'], '--plot times.gif: name a file that ends in'),
        (['--model', DEMO, '--mode', 'end2end', '--scales', '64'], '--mode end2end takes the sizes of its data'),
    ],
)
def test_what_is_wrong_is_one_line(argv, message, capfd):
    code, _, printed = run(capfd, *argv)
    assert code == 2
    assert message in ' '.join(printed.split())
    assert 'Traceback' not in printed


@pytest.mark.parametrize(
    ('contender', 'message'),
    [
        (Contender('tiny', (64, 96), peer='hf'), '--peers hf takes squares alone'),
        (Contender('tiny', mode='detector'), '--mode detector takes the path of a config'),
        (Contender('tiny', mode='end2end'), '--mode end2end takes the path of a config'),
        (Contender(RETINANET, mode='attention'), '--mode attention takes one of tiny'),
        (Contender(DEMO, peer='mmdet'), '--peers mmdet has no such backbone'),
        (Contender('small_wide', peer='mmdet'), '--peers mmdet has no PVT like small_wide'),
        (Contender(RETINANET, mode='end2end', options={'data_root': '/nowhere/'}), '/nowhere/annotations'),
        (Contender(RETINANET, options={'model.backbone.arch': 'big'}), "unknown arch 'big'"),
    ],
)
def test_what_cannot_be_built_says_why(contender, message):
    with pytest.raises((ValueError, benchmark.InputError), match=message):
        benchmark._prepare(contender)


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_no_gpu_is_one_line(capfd):
    code, _, printed = run(capfd, '--model', 'tiny', '--device', 'cuda')
    assert code == 2
    assert '--device cuda: PyTorch finds no GPU here' in printed


def test_a_process_that_dies_is_one_line():
    with benchmark._worker(Contender('tiny', (64, 64), threads=1)) as worker:
        worker.process.kill()
        with pytest.raises(benchmark.InputError, match='PVT-Tiny: its process died'):
            worker.step()


# -------------------------------------------------------------------------------------------------- pictures, report


def test_the_pictures_have_what_was_measured():
    sides = (64, 96)
    ours = [result(Contender('small', (side, side)), side / 100, side / 50, gflops=side) for side in sides]
    theirs = [
        result(Contender('small', (side, side), peer='mmdet'), side / 10, side / 5, gflops=side) for side in sides
    ]
    figure = plot_scales([*ours, *theirs], 'a machine')
    times, arithmetic = figure.axes
    assert [line.get_label() for line in times.lines] == ['PVT-Small', 'PVT-Small, MMDetection']
    assert list(times.lines[0].get_ydata()) == pytest.approx([0.96, 1.44])
    assert list(arithmetic.lines[1].get_ydata()) == [64, 96]
    assert [line.get_linestyle() for line in arithmetic.lines] == ['-', '--']  # they lie on one another
    (axes,) = plot_times([ours[0], theirs[0]], 'a machine').axes
    assert [patch.get_width() for patch in axes.patches] == pytest.approx([0.96, 9.6])
    assert any('10.00 x' in text.get_text() for text in axes.texts)


def seconds(contender):
    """A time for every contender of the report that no other of its comparison has."""
    if contender.mode == 'product':
        return {'torch.mm': 2.0, 'torch.conv2d': 1.0}[contender.model]
    if contender.mode == 'detector':
        kind = 'r50' if 'r50' in contender.model else contender.peer or contender.shape[0]
        return {'r50': 2.0, 800: 2.2, 640: 1.3, 'mmdet': 5.0}[kind]
    time = 8.0 if contender.peer else 2.0
    time *= 1.25 if contender.compile else 1
    time *= {'forward': 1, 'train': 3, 'attention': 0.5}[contender.mode] * (1.5 if contender.with_cp else 1)
    return time * (5 if contender.shape[0] == 1600 else 1)


@pytest.fixture
def measured(monkeypatch):
    """Has a time and a memory of our choice measured for every contender, and returns the contenders."""
    asked = []

    def measure(contenders, rounds, report):
        asked.extend(contenders)
        results = []
        for one in contenders:
            report(one.name)
            memory = 2.0 if one.peer else 0.25 if one.with_cp else 0.5
            results.append(result(one, *[seconds(one)] * rounds, gflops=one.shape[0] / 100 or 300, peak_memory=memory))
        return results

    monkeypatch.setattr(benchmark, 'measure', measure)
    monkeypatch.setattr(benchmark, 'time_by_kind', lambda one, steps: {'products': 0.75, 'rest': 0.25})
    parts = {'pvt': {'backbone': 1.0, 'neck': 0.25, 'heads': 0.5}, 'r50': {'backbone': 0.5, 'neck': 0.2, 'heads': 0.4}}
    monkeypatch.setattr(
        benchmark, 'time_by_part', lambda ones, rounds: [parts['r50' if 'r50' in one.model else 'pvt'] for one in ones]
    )
    return asked


def test_the_time_by_kind_and_by_part():
    kinds = benchmark.time_by_kind(Contender('tiny', (512, 512)), 1)
    assert list(kinds) == [*benchmark.KINDS, 'rest']
    assert sum(kinds.values()) == pytest.approx(1)
    assert min(kinds.values()) > 0
    assert kinds['products'] == max(kinds.values())
    detectors = [Contender(config, (128, 128), 'detector') for config in (RETINANET, R18)]
    for parts in benchmark.time_by_part(detectors, 1):
        assert list(parts) == ['backbone', 'neck', 'heads']
        assert min(parts.values()) > 0
        assert parts['heads'] > parts['neck']


def test_the_report_is_what_was_measured(measured, tmp_path, capsys):
    assert report.main(['--rounds', '2', '--out', str(tmp_path)]) == 1  # the compiled one is not 3.6 times as fast
    answer = json.loads(capsys.readouterr().out.strip().split('\n')[-1])
    claims = {claim['what']: claim['measured'] for claim in answer['claims']}
    rate = 2 * 8 / 2.5  # compiled: 800 / 100 G multiply-adds
    expected = {
        'forward: mmdet / ours, both eager': 8 / 2,
        'forward: mmdet / ours, ours compiled': 8 / 2.5,
        'forward: mmdet / ours, both compiled': 10 / 2.5,
        "forward, compiled: arithmetic rate / torch.mm's (MKL)": rate / (2 * 300 / 2.0),
        "forward, compiled: arithmetic rate / a convolution's (oneDNN)": rate / (2 * 300 / 1.0),
        'forward + backward: mmdet / ours': 24 / 6,
        'peak memory of forward + backward: ours / mmdet': 0.5 / 2,
        'the same with_cp': 0.25 / 2,
        'RetinaNet: PVT-S / ResNet-50 (paper 1.38)': 2.2 / 2.0,
        'RetinaNet: PVT-S at 640 / ResNet-50 at 800 (paper 0.92)': 1.3 / 2.0,
        'growth of time / growth of arithmetic, 800 to 1600': 5 / 2,
    }
    assert {what: claims[what] for what in expected} == pytest.approx(expected)
    text = (tmp_path / 'benchmarks.md').read_text()
    assert '| forward: mmdet / ours, both eager | >= 3.20 | 4.00 | yes |' in text
    assert '| forward: mmdet / ours, ours compiled | >= 3.60 | 3.20 | no |' in text
    assert '| forward: mmdet / ours, both compiled |  | 4.00 |  |' in text
    assert '| forward | 75% | 25% |' in text
    assert '| retinanet/pvt_s_1x | 1000 | 250 | 500 |\n| retinanet/r50_1x | 500 | 200 | 400 |' in text
    if not torch.cuda.is_available():
        assert '| GPU, bf16, training throughput: ours / mmdet | >= 2.00 | not measured |  |' in text
    assert (tmp_path / 'latency.png').stat().st_size > 10_000
    shapes = {contender.shape for contender in measured}
    assert {(800, 1344), (640, 1088), (1600, 2688), (1120, 1120)} <= shapes
    assert all(contender.memory_format == 'better' for contender in measured if contender.mode != 'product')


def test_the_machine_is_named_with_its_model_where_linux_says_it(monkeypatch):
    def machine(cpuinfo: str) -> str:
        monkeypatch.setattr(Path, 'read_text', lambda path: cpuinfo)
        return benchmark.machine('cpu')

    zen4 = 'processor\t: 0\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n'
    assert machine(zen4).startswith('AMD EPYC (family 25, model 17), ')
    arm = machine('processor\t: 0\nBogoMIPS\t: 243.75\nFeatures\t: fp asimd\n')
    assert arm.startswith(f'{platform.processor() or platform.machine()}, ')


def test_what_a_gpu_cannot_hold_is_not_measured_and_the_rest_is(measured, tmp_path, monkeypatch, capsys):
    def measure(group, rounds, note):
        if group[0].device == 'cuda' and group[0].batch == 16:
            raise InputError('out of memory')
        return measure_all(group, rounds, note)

    measure_all = benchmark.measure
    monkeypatch.setattr(benchmark, 'measure', measure)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(report, 'devices', lambda: ['cpu'])
    assert report.main(['--rounds', '2', '--out', str(tmp_path)]) == 1
    text = (tmp_path / 'benchmarks.md').read_text()
    assert '## GPU, train, bfloat16, batch 2\n' in text
    assert '## GPU, train, bfloat16, batch 16\n' not in text
    assert '| GPU, bf16, training throughput: ours / mmdet | >= 2.00 | not measured |  |' in text
    assert 'GPU, train, bfloat16, batch 16: not measured: out of memory' in capsys.readouterr().err


def test_a_report_whose_figures_reach_their_bounds_is_no_failure(measured, tmp_path, monkeypatch):
    reached = report.Claim('forward', 3.2, True, 3.3)
    monkeypatch.setattr(report, 'claims', lambda measured: [reached, report.Claim('GPU', 2.0, True, None)])
    assert report.main(['--rounds', '1', '--out', str(tmp_path)]) == 0


def test_the_report_of_a_gpu_is_every_way_to_run(measured):
    plans = report.gpu_plans()
    for mode in ('forward', 'train'):
        for dtype in ('float32', 'bfloat16'):
            for batch in (1, 2, 16):
                for extra in ('', ', compiled'):
                    ours, theirs = plans[f'GPU, {mode}, {dtype}, batch {batch}{extra}']
                    assert (ours.peer, theirs.peer) == ('', 'mmdet')
                    assert ours.device == theirs.device == 'cuda'
                    assert (ours.mode, ours.dtype, ours.batch, ours.compile) == (mode, dtype, batch, bool(extra))
    assert [one.mode for one in plans['GPU, attention, bfloat16']] == ['attention', 'product']
    name = 'GPU, train, bfloat16, batch 16'
    speed, memory = report.gpu_claims({name: benchmark.measure(plans[name], 2, len)})
    assert (speed.measured, memory.measured) == (4.0, 0.25)
    assert speed.holds
    assert memory.holds
    assert [claim.holds for claim in report.gpu_claims({})] == [None, None]


@pytest.mark.parametrize(
    ('argv', 'message'),
    [(['--rounds', '0'], '--rounds must be at least 1'), (['--out', '/dev/null/docs'], 'cannot be written')],
)
def test_a_report_that_cannot_be_is_one_line(argv, message, capfd):
    assert report.main(argv) == 2
    assert message in capfd.readouterr().err
