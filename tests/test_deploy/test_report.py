"""The report of exported models: what it measures, and what it writes between the marks of a page."""

import json
import re
from types import SimpleNamespace

import pytest
import torch

from pvt_mm.analysis.benchmark.contender import Result
from pvt_mm.deploy import report
from tests.conftest import ROOT
from tools import deploy_report as tool

PAGE = '# Deployment\n\nHead.\n\n<!-- figures -->\nAn earlier run.\n<!-- /figures -->\n\nTail.\n'
SECONDS = {'PyTorch': 0.2, 'float32': 0.3, 'float16': 0.3, 'int8, static': 0.1}


class Agreement(SimpleNamespace):
    """What an export returns on how far its predictions are from PyTorch's."""

    def summary(self):
        return vars(self)


@pytest.fixture
def runs(tmp_path):
    """The folder of images and of two work directories."""
    for name in ('first', 'second'):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'config.py').write_text(f'_base_ = {str(ROOT / "configs/demo/retinanet_shapes.py")!r}\n')
        (tmp_path / name / 'epoch_1.pth').write_bytes(b'weights')
        (tmp_path / name / 'last_checkpoint').write_text(str(tmp_path / name / 'epoch_1.pth'))
    (tmp_path / 'images').mkdir()
    (tmp_path / 'images/1.jpg').write_bytes(b'pixels')
    (tmp_path / 'deploy.md').write_text(PAGE)
    return tmp_path


@pytest.fixture
def measured(monkeypatch):
    """Replaces exporting and measuring; int8 with dynamic ranges fails. What was asked for."""
    asked = []

    def export_model(model, config, path, settings, about, verified):
        if settings.int8 == 'dynamic':
            raise ValueError('no weight\nis large enough')
        assert settings.preprocess
        path.write_bytes(b'onnx')
        points = dict(pytorch=40.0, onnxruntime=38.5 if settings.int8 else 40.0)
        agreement = Agreement(
            objects=98.0, missing=1.0, extra=2.0, box_px=0.004, score=2e-6, mask_iou=0.9991, pixels=1.0
        )
        metrics = {'coco/bbox_mAP': points, 'images': dict(pytorch=9, onnxruntime=9)}
        return dict(agreement=agreement, metrics=metrics, megabytes=12.5, task='instance_segmentation')

    def measure(contenders, rounds, profiled):
        asked.append((contenders, rounds, profiled))
        results = []
        for one in contenders:
            parts = dict(input=0.01, model=SECONDS[one.label] - 0.02, output=0.01)
            operators = {'linear layers': {'MatMul' if one.is_onnx else 'aten::addmm': parts['model']}}
            memory = 0.1 if one.is_onnx else 0.6
            figures = dict(loaded_memory=memory, load_seconds=1.5, megabytes=12.5, operators=operators)
            results.append(Result(one, (SECONDS[one.label],) * rounds, (parts,) * rounds, 1, None, 0.2, '', **figures))
        return results

    monkeypatch.setattr(report, 'load_model', lambda config, checkpoint: torch.nn.Identity())
    monkeypatch.setattr(report.export, 'with_images', lambda settings, *args: settings)
    monkeypatch.setattr(report.export, 'export_model', export_model)
    monkeypatch.setattr(report, 'measure', measure)
    return asked


def test_the_figures_go_between_the_marks(runs, measured, capsys, monkeypatch):
    out = runs / 'deploy.md'
    monkeypatch.chdir(runs)
    monkeypatch.setattr(report, 'int8_instructions', lambda: 'AMX')
    argv = ['first', './second', '--images', './images', '--out', str(out), '--val-images', '7']
    assert tool.main([*argv, '--rounds', '3', '--threads', '1']) == 0
    printed = capsys.readouterr()
    text = out.read_text()
    head, tail = (PAGE.split('An earlier run.\n')[i] for i in (0, 1))
    assert text.startswith(head)
    assert text.endswith(tail)
    rows = [re.sub(' +', ' ', line) for line in text.split('\n')]
    assert rows.count('| first | 98 | 1 | 2 | 0.004 px | 2e-06 | IoU 0.9991 |') == 1
    for row in (
        '| | PyTorch | float32 | float16 | int8, static |',
        '| box AP | 40.0 | 40.0 | 40.0 | 38.5 |',
        '| file, MB | 12.5 | 12.5 | 12.5 | 12.5 |',
        '| median, ms | 200.0 | 300.0 | 300.0 | 100.0 |',
        "| times PyTorch's time | 1.00 | 1.50 | 1.50 | 0.50 |",
        '| images/s | 5.0 | 3.3 | 3.3 | 10.0 |',
        '| model, ms | 180.0 | 280.0 | 280.0 | 80.0 |',
        '| peak memory above the model, MB | 200 | 200 | 200 | 200 |',
        '| memory of the process, MB | 800 | 300 | 300 | 300 |',
        '| loading, s | 1.5 | 1.5 | 1.5 | 1.5 |',
        '| linear layers | 180.0 | 280.0 |',  # float32 is slower than PyTorch
        'Not exported as int8, dynamic: ValueError: no weight is large enough.',
    ):
        assert rows.count(row) == 2, row
    assert ' tools/deploy_report.py first ./second --images ./images --rounds 3 --val-images 7 --threads 1' in rows
    assert ', int8 by AMX. ' in ' '.join(rows)
    assert ' with 1 threads of PyTorch, OpenCV or onnxruntime: 3 rounds ' in ' '.join(rows)
    assert max(len(line) for line in rows) <= 128
    assert 'first: not exported as int8, dynamic' in printed.err
    answer = json.loads(printed.out.strip().split('\n')[-1])
    assert [one['model'] for one in answer['models']] == ['first', 'second']
    assert answer['models'][0]['measured']['int8, static']['median_s'] == 0.1
    assert [([one.label for one in group], rounds) for group, rounds, _ in measured] == [([*SECONDS], 3)] * 2
    assert {(one.images, one.threads) for group, *_ in measured for one in group} == {(('images/1.jpg',), 1)}


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (['first', '--rounds', '0'], '--rounds must be at least 1, got 0'),
        (['first', '--images', 'first'], 'has no image: no file ends in .jpg'),
        (['first', 'images'], 'images has no configs (.py)'),
        (['first', '--out', 'none.md'], 'none.md is not a file: name a page with the marks'),
        (['first', '--out', 'first/config.py'], 'config.py has no <!-- figures --> and <!-- /figures -->'),
    ],
)
def test_wrong_input_is_one_line(argv, message, runs, measured, capsys, monkeypatch):
    monkeypatch.chdir(runs)
    assert tool.main(['--images', 'images', '--out', 'deploy.md', *argv]) == 2
    (line,) = capsys.readouterr().err.strip().split('\n')
    assert message in line
    assert (runs / 'deploy.md').read_text() == PAGE
    assert not measured
