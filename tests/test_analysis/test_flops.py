"""Multiply-adds agree with the papers' and with the formulas of the layers."""

import json

import pytest

from pvt_mm.analysis.flops import count, default_shape
from pvt_mm.apis.config import load_config
from pvt_mm.models import ARCHS, ARCHS_V2
from tests.conftest import ROOT
from tools import flops

RETINANET = str(ROOT / 'configs/retinanet/pvt_s_1x.py')
RETINANET_V2 = str(ROOT / 'configs/retinanet/pvt_v2_b2_1x.py')


@pytest.mark.parametrize(('shape', 'gflops'), [((800, 1280), 285.8), ((640, 960), 157.2)])
def test_retinanets_are_table_11s(shape, gflops):
    assert count(load_config(RETINANET), shape)[0].gflops == pytest.approx(gflops, rel=2e-3)


def test_mask_rcnns_are_table_10s():
    config = load_config(RETINANET.replace('retinanet', 'mask_rcnn'))
    parts = {part.name: part for part in count(config, (800, 1280))}
    assert parts['model'].gflops == pytest.approx(304.4, rel=2e-3)
    assert sum(parts[name].gflops for name in ('backbone', 'neck', 'rpn_head', 'roi_head')) == parts['model'].gflops


@pytest.mark.parametrize('arch', ['small', 'b2', 'b2_li'])
def test_a_stages_parts_are_the_formulas_of_section_3(arch):
    v2, linear, (H, W) = arch in ARCHS_V2, arch == 'b2_li', (256, 384)
    config = load_config(RETINANET_V2 if v2 else RETINANET, {'model.backbone.arch': arch})
    parts = {part.name: part for part in count(config, (H, W))}
    in_channels, side = 3, 1
    for i, (C, L, _, P, R, E) in enumerate(zip(*(ARCHS_V2 if v2 else ARCHS)[arch][:6], strict=True)):
        side *= P
        N = (H // side) * (W // side)
        kept = 49 if linear else N // R**2
        reduction = 49 * C * C if linear else N * C * C if R > 1 else 0
        attention = 2 * N * C * C + reduction + 2 * kept * C * C + 2 * N * kept * C
        expected = {
            'embedding': N * (2 * P - 1 if v2 else P) ** 2 * in_channels * C,
            'attention': L * attention,
            'ffn': L * (2 * N * C * E * C + (9 * N * E * C if v2 else 0)),
        }
        for kind, multiply_adds in expected.items():
            assert parts[f'backbone.stages.{i}.{kind}'].gflops == pytest.approx(multiply_adds / 1e9), (i, kind)
        in_channels = C


@pytest.mark.parametrize('config', [RETINANET, RETINANET_V2])
def test_parts_add_up(config):
    parts = {part.name: part for part in count(load_config(config), (128, 160))}
    for field in ('params_m', 'gflops'):

        def total(*names, field=field):
            return sum(getattr(parts[name], field) for name in names)

        assert total('backbone', 'neck', 'bbox_head') == pytest.approx(total('model'))
        assert total(*(f'backbone.stages.{i}' for i in range(4))) == pytest.approx(total('backbone'))
        kinds = [f'backbone.stages.2.{kind}' for kind in ('embedding', 'attention', 'ffn')]
        assert total(*kinds) == pytest.approx(total('backbone.stages.2'), rel=1e-3)  # v2's have a norm, too


def test_shapes_follow_the_configs():
    assert default_shape(load_config(RETINANET)) == (800, 1280)
    assert default_shape(load_config(RETINANET.replace('pvt_s_1x', 'pvt_s_640_1x'))) == (640, 1024)
    assert default_shape(load_config(str(ROOT / 'configs/demo/retinanet_shapes.py'))) == (160, 160)


def test_the_tool_prints_json_last(capsys, tmp_path, monkeypatch):
    assert flops.main([RETINANET, '--shape', '64', '96']) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result['shape'] == [64, 96]
    assert result['parts']['model']['params_m'] == pytest.approx(34.22, abs=0.01)
    for name in ('retinanet', 'mask_rcnn'):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'pvt_t.py').write_text(f"_base_ = '{ROOT}/configs/{name}/pvt_t_1x.py'\n")
    assert sorted(flops.CONFIGS.rglob('*.py')) == sorted((ROOT / 'configs').rglob('*.py'))
    monkeypatch.setattr(flops, 'CONFIGS', tmp_path)
    assert flops.main(['--all', '--shape', '64']) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {name: row['params_m'] for name, row in result.items()} == {
        'mask_rcnn/pvt_t': pytest.approx(32.9, abs=0.05),
        'retinanet/pvt_t': pytest.approx(23.0, abs=0.05),
    }


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['gone.py'], 'the config gone.py does not exist'),
        ([RETINANET, '--shape', '31'], '--shape 31 31: the input is 31 x 31 pixels'),
        ([RETINANET, '--shape', '0'], '--shape takes one or two positive numbers, got 0'),
        ([RETINANET, '--cfg-options', 'model.neck.type=Neck'], 'the model cannot be built: KeyError'),
        ([RETINANET, '--cfg-options', 'model.neck.in_channels=[1,2,3,4]'], 'set model.neck.in_channels=[64, 128, 320'),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(arguments, message, capsys):
    assert flops.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count('\n') == 1
