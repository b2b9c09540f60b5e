"""PVT works where MMDetection, MMSegmentation or kornia cannot be imported, and what needs them says why."""

import subprocess
import sys

from tests.conftest import ROOT

SCRIPT = """
import torch
from mmengine.registry import MODELS

from pvt_mm.utils.errors import InputError

model = MODELS.build(dict(type='pvt_mm.PVT', arch='tiny'))
print(len(model(torch.zeros(1, 3, 32, 32))))
normalise = dict(type='pvt_mm.ClsDataPreprocessor', num_classes=2, mean=[0, 0, 0], std=[1, 1, 1])
MODELS.build(normalise)
for config in (dict(type='pvt_mm.InstanceTTAModel'), dict(type='pvt_mm.Trans2SegHead'), dict(normalise, mixup=0.8)):
    try:
        MODELS.build(config)
    except (ImportError, InputError) as error:
        print(error)
"""


def test_a_broken_package_takes_nothing_else_down(tmp_path):
    broken = dict(mmdet='raise AssertionError("MMCV==2.2.0 is used")', mmseg='import not_installed', kornia='1 / 0')
    for name, text in broken.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / '__init__.py').write_text(text)
    environment = {'PYTHONPATH': f'{tmp_path}:{ROOT}', 'PATH': '/usr/bin'}
    done = subprocess.run([sys.executable, '-c', SCRIPT], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    feature_maps, detection, segmentation, classification = done.stdout.splitlines()
    assert feature_maps == '4'
    why = 'AssertionError: MMCV==2.2.0 is used'
    assert detection == (f'InstanceTTAModel needs MMDetection, which cannot be imported ({why}): see tools/doctor.py')
    assert 'MMSegmentation' in segmentation
    assert "No module named 'not_installed'" in segmentation
    assert 'augmentations need kornia' in classification
    assert 'ZeroDivisionError' in classification
    assert 'pip install' in classification
