"""The metafiles name the published weights, in the format that MIM reads, and the API gives their URLs."""

import re
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from pvt_mm.apis.config import load_config
from pvt_mm.apis.published import first_download, initial_weights, list_published, paper_results, published_in
from pvt_mm.checkpoint.download import published_digest
from tests.conftest import ROOT

MODELS = {
    model['Config']: model
    for metafile in sorted(ROOT.glob('configs/*/metafile.yml'))
    for model in yaml.safe_load(metafile.read_text())['Models']
}


def test_the_detectors_of_mmdetections_model_zoo_are_its_own():
    theirs = yaml.safe_load((files('mmdet') / '.mim/configs/pvt/metafile.yml').read_text())['Models']
    checked = 0
    for model in theirs:
        size = re.fullmatch(r'retinanet_pvt(-[tsm]|v2-b\d)_fpn_1x_coco', model['Name'])
        if size:
            config = f'configs/retinanet/pvt_{size[1].lstrip("-").replace("-", "_")}_1x.py'
            (ours,) = [one for one in list_published(str(ROOT / config)) if one.source == 'MMDetection']
            assert ours.url == model['Weights']
            assert ours.metrics == model['Results'][0]['Metrics']
            assert ours.url.endswith(f'{published_digest(ours.url)}.pth')
            assert first_download(str(ROOT / config)) == model['Weights']
            checked += 1
    assert checked == 3 + 6


def test_every_entry_is_as_mim_reads_it_and_the_papers_figures_stay_apart():
    published_of = {config: published_in(model) for config, model in MODELS.items()}
    assert sum(map(bool, published_of.values())) == 17 + 6 + 7
    for config, model in MODELS.items():
        downloadable = [one.url for one in published_of[config] if one.downloadable]
        assert model.get('Weights') == next(iter(downloadable), None), config
        for one in published_of[config]:
            assert one.source in ('MMDetection', 'authors')
            assert re.fullmatch(r'https://\S+', one.url)
            known = {name for result in paper_results(model) for name in result['Metrics']}
            assert set(one.metrics) <= known, config
        assert all('Weights' in result for result in model.get('Results', ()) if 'Source' in result)
    links = [one.url for found in published_of.values() for one in found]
    assert len(set(links)) == len(links)  # the authors' link for Mask R-CNN with PVT-Large is that of RetinaNet
    assert not published_of['configs/mask_rcnn/pvt_l_1x.py']


@pytest.mark.parametrize(
    'name', ['retinanet/pvt_l_1x', 'mask_rcnn/pvt_s_1x', 'detr/pvt_s_50e', 'semantic_fpn/pvt_t_80k']
)
def test_what_is_on_google_drive_can_only_be_linked(name):
    (one,) = list_published(str(ROOT / f'configs/{name}.py'))
    assert one.source == 'authors'
    assert one.url.startswith('https://drive.google.com/file/d/')
    assert first_download(str(ROOT / f'configs/{name}.py')) is None


def test_configs_that_nobody_published_have_none(tmp_path):
    assert list_published(str(ROOT / 'configs/retinanet/pvt_s_scratch_1x.py')) == []
    assert first_download(str(tmp_path / 'pvt_s_1x.py')) is None
    (tmp_path / 'metafile.yml').write_text('Models: []\n')
    assert first_download(str(tmp_path / 'pvt_s_1x.py')) is None


def test_the_weights_that_a_model_starts_from():
    read = lambda name: initial_weights(load_config(str(ROOT / f'configs/{name}.py')))  # noqa: E731
    release = 'https://github.com/whai362/PVT/releases/download/v2'
    assert read('retinanet/pvt_m_1x') == {'model.backbone': f'{release}/pvt_medium.pth'}
    assert read('retinanet/r50_1x') == {'model.backbone': 'torchvision://resnet50'}
    assert read('retinanet/pvt_s_scratch_1x') == {}
    assert read('classification/pvt_s_300e') == {}


def test_the_readmes_link_what_the_metafiles_name():
    for config in MODELS:
        readme = (ROOT / config).with_name('README.md').read_text()
        row = next(line for line in readme.splitlines() if f']({Path(config).name})' in line)
        for one in published_in(MODELS[config]):
            assert f'[{one.source}]({one.url}) {", ".join(map(str, one.metrics.values()))}' in row
