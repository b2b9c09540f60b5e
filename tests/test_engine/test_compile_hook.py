"""The hook that compiles a detector's parts: graphs are counted by a backend that runs them as they are."""

import copy
import logging
from types import SimpleNamespace

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.model import BaseTTAModel
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData
from mmengine.utils import digit_version
from torch import nn

from pvt_mm.apis.config import load_config
from pvt_mm.engine import CompileHook
from pvt_mm.models import PVT, PVTv2
from pvt_mm.utils.errors import InputError
from tests.conftest import ROOT

TWO_STAGES = dict(
    embed_dims=(8, 16),
    depths=(1, 1),
    num_heads=(1, 2),
    strides=(4, 2),
    sr_ratios=(1, 1),
    mlp_ratios=(2, 2),
    linear=True,
)
TWO_STAGES_V1 = dict(
    embed_dims=(8, 16), depths=(1, 1), num_heads=(1, 2), patch_sizes=(4, 2), sr_ratios=(2, 1), mlp_ratios=(2, 2)
)
# Ten sizes in H x W, in no order. No side of a map in the first batch is also another side, or a number of channels.
SIZES = [(160, 224), (96, 96), (64, 320), (320, 64), (128, 256), (224, 224), (192, 96), (96, 160), (256, 288), (64, 64)]


@pytest.fixture(autouse=True)
def _forget_graphs():
    torch.compiler.reset()


def runner_of(model: nn.Module) -> SimpleNamespace:
    return SimpleNamespace(model=model, logger=logging.getLogger('compile'))


def tiny_retinanet(**backbone) -> nn.Module:
    config = load_config(str(ROOT / 'configs/retinanet/pvt_t_1x.py')).model
    config.backbone = dict(type='pvt_mm.PVTv2', arch=TWO_STAGES, out_indices=(0, 1), **backbone)
    config.neck.update(in_channels=[8, 16], out_channels=16, num_outs=2)
    config.bbox_head.update(num_classes=3, in_channels=16, feat_channels=16, stacked_convs=1)
    config.bbox_head.anchor_generator.strides = [8, 16]
    with DefaultScope.overwrite_default_scope('mmdet'):
        return MODELS.build(config)


def batch_of(size: tuple[int, int]) -> tuple[torch.Tensor, list[DetDataSample]]:
    """Returns two images with one box each."""
    meta = dict(img_shape=size, pad_shape=size, batch_input_shape=size, ori_shape=size, scale_factor=(1, 1))
    boxes = InstanceData(bboxes=torch.tensor([[4.0, 8.0, 40.0, 50.0]]), labels=torch.tensor([1]))
    return torch.randn(2, 3, *size), [DetDataSample(metainfo=meta, gt_instances=boxes) for _ in range(2)]


def losses_of(model: nn.Module, size: tuple[int, int]) -> torch.Tensor:
    torch.manual_seed(size[0])
    return torch.stack([part for losses in model.loss(*batch_of(size)).values() for part in losses])


@pytest.mark.skipif(torch.__version__ < '2.6', reason='torch 2.1 and 2.4 compile the backbone twice')
def test_each_part_is_one_graph_for_ten_sizes():
    with_cp = digit_version(torch.__version__) >= digit_version('2.4')
    model, graphs = tiny_retinanet(drop_path_rate=0.5, frozen_stages=1, with_cp=with_cp).train(), []
    expected = [losses_of(model, size) for size in SIZES]

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    CompileHook(backend=count).before_run(runner_of(model))
    for size, eager in zip(SIZES, expected, strict=True):
        losses = losses_of(model, size)
        torch.testing.assert_close(losses, eager)
        losses.sum().backward()
        assert len(graphs) == 3  # backbone, neck and bbox_head
    for _ in range(2):  # evaluations between epochs
        model.eval()
        with torch.no_grad():
            for size in SIZES[:4]:
                model.predict(*batch_of(size))
                assert len(graphs) == 6
        model.train()
        losses_of(model, SIZES[-1])
    assert len(graphs) == 6


class Twice(BaseTTAModel):
    def merge_preds(self, data_samples_list):
        return data_samples_list


class Doubled(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(1, 1, bias=False)
        self.neck = None
        self.auxiliary_head = nn.ModuleList([nn.Identity(), nn.Identity()])
        self.roi_head = nn.Sequential(nn.Identity())
        self.test_step = None  # which a TTA model asks for


@pytest.mark.skipif(torch.__version__ < '2.6', reason='not tried with the Inductor of older versions')
@pytest.mark.filterwarnings('ignore:.*:DeprecationWarning')
@pytest.mark.parametrize(
    ('kind', 'arch', 'out_indices'),
    # What Inductor cannot lay out by itself: the map between two stages, and sizes that are rounded up.
    [(PVT, TWO_STAGES_V1, (0, 1)), (PVTv2, TWO_STAGES, 0)],
)
def test_inductor_trains_a_backbone(kind, arch, out_indices):
    model, eager = (kind(arch, out_indices=out_indices, drop_path_rate=0.0) for _ in range(2))
    eager.load_state_dict(model.state_dict())
    hook = CompileHook()
    hook.before_run(runner_of(nn.ModuleDict(dict(backbone=model))))
    images = torch.randn(2, 3, 160, 96)
    for net in (model, eager):
        torch.stack([(output - 1).abs().mean() for output in net(images)]).sum().backward()
    for (name, weight), reference in zip(model.named_parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(weight.grad, reference.grad, rtol=1e-3, atol=1e-6, msg=name)


def test_weights_their_names_and_copies_stay_the_models_own():
    model = Doubled()
    names = [*model.state_dict()]
    hook = CompileHook(backend='eager')
    hook.before_run(runner_of(Twice(model)))
    compiled = [name for name, module in model.named_modules() if 'forward' in vars(module)]
    assert compiled == ['backbone', 'auxiliary_head.0', 'auxiliary_head.1']
    twin = copy.deepcopy(model)
    nn.init.constant_(model.backbone.weight, 2)
    nn.init.constant_(twin.backbone.weight, 3)
    assert model.backbone(torch.ones(1)) == 2
    assert twin.backbone(torch.ones(1)) == 3
    assert [*model.state_dict()] == names
    hook.after_run(runner_of(Twice(model)))
    assert not any('forward' in vars(module) for module in model.modules())


def test_what_cannot_be_compiled_is_refused():
    hook = CompileHook(parts=('roi_head.0', 'nek'), backend='eager')
    with pytest.raises(InputError, match='CompileHook: parts: the Doubled has no nek'):
        hook.before_run(runner_of(Doubled()))
    for arguments in (dict(backend='nope'), dict(mode='nope'), dict(options=dict(nope=1))):
        with pytest.raises(InputError, match=r'CompileHook: torch.compile: .*nope'):
            CompileHook(**arguments)
