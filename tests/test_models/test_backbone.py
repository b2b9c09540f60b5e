"""What PVT and PVTv2 promise alike: arguments, sizes, freezing, recomputation, precision, compilation and export."""

import ast
import copy
import pickle
import socket
import subprocess
import sys
import warnings

import pytest
import torch
from mmengine.optim import OptimWrapper
from torch import nn

from pvt_mm.apis.launch import leave_process_group
from pvt_mm.models.backbone import PVT, PVTv2
from pvt_mm.models.pvt import DropPath
from tests.conftest import HALF_DTYPES, ROOT, TINY_ARCH, TINY_ARCH_LINEAR, TINY_ARCH_V2, relative_error


@pytest.mark.parametrize('file', ['pvt.py', 'pvt_v2.py'])
def test_the_model_file_is_plain_torch_and_short(file):
    text = (ROOT / 'pvt_mm/models' / file).read_text()
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.Import, ast.ImportFrom))]
    modules = {getattr(node, 'module', None) or node.names[0].name for node in nodes}
    others = {module for module in modules if module.split('.')[0] not in ('torch', 'collections', 'math')}
    assert others <= {'pvt_mm.models.pvt'}
    assert text.count('\n') <= 300


# --------------------------------------------------------------------------------------------------- outputs and sizes


def test_outputs_are_channels_last_maps_at_strides_4_to_32(build_backbone):
    model = build_backbone().eval()
    outputs = model(torch.randn(2, 3, 96, 160))
    for output, stride, channels in zip(outputs, (4, 8, 16, 32), model.arch.embed_dims, strict=True):
        assert output.shape == (2, channels, 96 // stride, 160 // stride)
        assert output.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ('kind', 'arch', 'size', 'maps'),
    [
        (PVT, TINY_ARCH, (33, 63), [(8, 15), (4, 7), (2, 3), (1, 1)]),
        (PVT, TINY_ARCH, (47, 131), [(11, 32), (5, 16), (2, 8), (1, 4)]),
        (PVT, TINY_ARCH, (32, 32), [(8, 8), (4, 4), (2, 2), (1, 1)]),
        (PVTv2, TINY_ARCH_V2, (333, 417), [(84, 105), (42, 53), (21, 27), (11, 14)]),
        (PVTv2, TINY_ARCH_V2, (29, 64), [(8, 16), (4, 8), (2, 4), (1, 2)]),
        (PVTv2, TINY_ARCH_LINEAR, (33, 1), [(9, 1), (5, 1), (3, 1), (2, 1)]),
    ],
)
def test_v1_rounds_sides_down_and_v2_up(kind, arch, size, maps):
    assert [output.shape[2:] for output in kind(arch)(torch.randn(1, 3, *size))] == maps


@pytest.mark.parametrize(
    ('kind', 'arch', 'least'),
    [
        (PVT, TINY_ARCH, 32),
        (PVT, {**TINY_ARCH, 'sr_ratios': (16, 4, 2, 1)}, 64),
        (PVTv2, TINY_ARCH_V2, 29),
        (PVTv2, {**TINY_ARCH_V2, 'sr_ratios': (4, 2, 4, 1)}, 49),
    ],
)
def test_too_small_an_input_says_so(kind, arch, least):
    model = kind(arch)
    model(torch.randn(1, 3, least, least))
    for H, W in [(least - 1, 640), (640, least - 1)]:
        with pytest.raises(ValueError, match=rf'{H} x {W} .* {kind.__name__} needs at least {least} x {least}: resize'):
            model(torch.randn(1, 3, H, W))


@pytest.mark.parametrize('shape', [(3, 64, 64), (1, 4, 64, 64)])
def test_an_input_of_another_shape_says_so(shape, build_backbone):
    with pytest.raises(ValueError, match=r'the input must be \(B, 3, H, W\), got'):
        build_backbone()(torch.randn(shape))


def test_an_image_that_is_not_normalised_is_refused(build_backbone):
    with pytest.raises(ValueError, match=r'must be normalized, in floating point, got torch\.uint8'):
        build_backbone()(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def test_every_parameter_gets_a_gradient_with_any_outputs(build_backbone):
    for out_indices in [(0, 1, 2, 3), (1, 3), (2,), 0]:
        model = build_backbone(out_indices=out_indices, in_channels=4)
        outputs = model(torch.randn(2, 4, 64, 64))
        sum((output * torch.randn_like(output)).sum() for output in outputs).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
            assert parameter.grad.stride() == parameter.stride(), name  # else DistributedDataParallel warns
            assert parameter.is_contiguous(), name  # else safetensors does not save it


def test_stages_behind_the_last_output_are_not_built(build_backbone):
    full, part = build_backbone().eval(), build_backbone(out_indices=(0, 2)).eval()
    assert len(part.stages) == 3
    part.load_state_dict({k: v for k, v in full.state_dict().items() if not k.startswith('stages.3')})
    image = torch.randn(1, 3, 64, 64)
    outputs = full(image)
    for output, expected in zip(part(image), (outputs[0], outputs[2]), strict=True):
        assert torch.equal(output, expected)


@pytest.mark.parametrize('out_indices', [(0, 1, 2, 3), (1, 2), 3])
def test_a_classifiers_feature_is_the_mean_of_the_last_map(out_indices):
    maps = PVTv2(TINY_ARCH_V2, out_indices=out_indices).eval()
    features = PVTv2(TINY_ARCH_V2, out_indices=out_indices, out_type='avg_featmap').eval()
    features.load_state_dict(maps.state_dict())
    image = torch.randn(2, 3, 64, 96)
    (*expected, last), found = maps(image), features(image)
    for output, other in zip(found, [*expected, last.flatten(2).mean(2)], strict=True):
        assert output.shape == other.shape
        torch.testing.assert_close(output, other)


# ----------------------------------------------------------------------------------------- stochastic depth and dropout


@pytest.mark.parametrize(('kind', 'arch'), [(PVT, 'tiny'), (PVTv2, 'b0')])
def test_drop_path_rises_linearly_over_all_layers_built_or_not(kind, arch):
    rates = [m.drop_prob for m in kind(arch, drop_path_rate=0.7).modules() if isinstance(m, DropPath)]
    assert rates == pytest.approx([0.1 * i for i in range(8)])
    rates = [m.drop_prob for m in kind(arch, drop_path_rate=0.7, out_indices=1).modules() if isinstance(m, DropPath)]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])


@pytest.mark.parametrize('rate', ['drop_rate', 'attn_drop_rate', 'drop_path_rate'])
def test_every_rate_acts_in_training_only(rate, build_backbone):
    model, image = build_backbone(**{'drop_path_rate': 0.0, rate: 0.5}), torch.randn(2, 3, 64, 64)
    first, second = model.train()(image)[-1], model(image)[-1]
    assert not torch.equal(first, second)
    model.eval()
    assert torch.equal(model(image)[-1], model(image)[-1])


def test_dropout_is_where_the_reference_has_it(build_backbone):
    model, calls = build_backbone(drop_rate=0.1), []
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout):
            assert module.p == 0.1
            module.register_forward_hook(lambda *_, name=name: calls.append(name.split('.')[-1]))
    model(torch.randn(1, 3, 64, 64))
    layers, positions = sum(model.arch.depths), 4 * isinstance(model, PVT)
    # after each position embedding, after each attention's projection, after both layers of each FFN
    assert [calls.count(name) for name in ('pos_drop', 'proj_drop', 'drop')] == [positions, layers, 2 * layers]


def test_a_seed_fixes_weights_masks_and_gradients(build_backbone):
    runs = []
    for _ in range(2):
        torch.manual_seed(3)
        model = build_backbone(drop_rate=0.1, attn_drop_rate=0.1, drop_path_rate=0.3)
        output = model(torch.randn(2, 3, 64, 96))[-1]
        output.square().sum().backward()
        runs.append([output, *(parameter.grad for parameter in model.parameters())])
    assert all(torch.equal(*pair) for pair in zip(*runs, strict=True))


# ------------------------------------------------------------------------------------- freezing, recomputing, copying


@pytest.mark.parametrize('frozen_stages', [-1, 0, 1, 3, 4])
def test_frozen_stages_hold_from_the_constructor_through_train(frozen_stages, build_backbone):
    model = build_backbone(frozen_stages=frozen_stages, drop_path_rate=0.5)

    def is_frozen(name: str) -> bool:
        first = name.startswith(('stages.0.patch_embed', 'stages.0.pos_embed'))
        return (frozen_stages >= 0 and first) or int(name.split('.')[1]) < frozen_stages

    for _ in range(2):
        for name, parameter in model.named_parameters():
            assert parameter.requires_grad != is_frozen(name), name
        for i, stage in enumerate(model.stages):
            assert stage.training != (i < frozen_stages)
        assert model.stages[0].patch_embed.training != (frozen_stages >= 0)
        model.eval()
        model.train()


def test_frozen_stages_get_no_gradient_and_the_others_do(build_backbone):
    model = build_backbone(frozen_stages=2)
    sum(output.sum() for output in model(torch.randn(1, 3, 64, 64))).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith(('stages.0', 'stages.1')), name


@pytest.mark.parametrize('settings', [dict(drop_path_rate=0.3), dict(drop_path_rate=0.0, frozen_stages=0)])
def test_checkpointing_gives_the_same_gradients_and_keeps_less(settings, build_backbone):
    """Also where no gradient goes beyond the first layer, whose embedding is frozen."""
    plain, recomputing = build_backbone(**settings), build_backbone(**settings, with_cp=True)
    recomputing.load_state_dict(plain.state_dict())
    image, kept = torch.randn(4, 3, 96, 64), {}
    for model in (plain, recomputing):
        torch.manual_seed(1)
        saved = kept.setdefault(model, [])
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t.numel()) or t, lambda t: t):
            loss = sum((output * torch.randn_like(output)).sum() for output in model(image))
        loss.backward()
    for a, b in zip(plain.parameters(), recomputing.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    assert sum(kept[recomputing]) < 0.4 * sum(kept[plain])


def test_copies_and_pickles_are_independent(build_backbone):
    model = build_backbone().eval()
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = model(image)[-1]
        copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
        model.stages[0].patch_embed.proj.bias.add_(torch.randn(8))
        for one in copies:
            assert torch.equal(one(image)[-1], expected)
        assert not torch.equal(model(image)[-1], expected)


# ------------------------------------------------------------------------------------------ precision, compile, export


@pytest.mark.parametrize('dtype', HALF_DTYPES)
def test_mixed_precision_is_near_and_trains(dtype, build_backbone):
    model, image = build_backbone(drop_path_rate=0.0), torch.randn(2, 3, 96, 64)
    expected = model(image)[-1]
    with torch.autocast('cpu', dtype=dtype):
        outputs = model(image)
        sum(output.float().square().mean() for output in outputs).backward()
    assert relative_error(outputs[-1], expected) < 0.05
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    half = copy.deepcopy(model).to(dtype).eval()
    assert relative_error(half(image.to(dtype))[-1].float(), model.eval()(image)[-1]) < 0.05


def test_compiled_equals_eager_in_one_graph(build_backbone):
    model = build_backbone(drop_path_rate=0.0, out_indices=(0, 1))
    compiled = torch.compile(model, dynamic=True, fullgraph=True, backend='aot_eager')
    for size in [(64, 96), (97, 70)]:
        image = torch.randn(2, 3, *size)
        for output, expected in zip(compiled(image), model(image), strict=True):
            torch.testing.assert_close(output, expected)
    sum(output.square().sum() for output in compiled(image)).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.skipif(torch.__version__ < '2.6', reason='its dynamic sizes need torch 2.6')
def test_export_with_dynamic_height_and_width(build_backbone):
    model = build_backbone().eval()
    sides = {2: torch.export.Dim('height', min=64, max=2048), 3: torch.export.Dim('width', min=64, max=2048)}
    program = torch.export.export(model, (torch.randn(1, 3, 96, 128),), dynamic_shapes=(sides,)).module()
    for size in [(224, 224), (101, 230), (64, 333)]:
        image = torch.randn(1, 3, *size)
        with torch.no_grad():
            for output, expected in zip(program(image), model(image), strict=True):
                torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)


# ----------------------------------------------------------------------------------------------------- bad arguments

WRONG = [
    (dict(arch='huge'), "unknown arch 'huge': choose from "),
    (dict(arch={'depths': (1, 1, 1, 1)}), 'a dict with the keys embed_dims, depths'),
    (dict(arch=3), 'arch must be a name or a dict'),
    (dict(out_indices=(0, 4)), 'from 0 to 3, got'),
    (dict(out_indices=-1), 'from 0 to 3, got -1'),
    (dict(out_indices=()), 'from 0 to 3'),
    (dict(out_indices=None), 'from 0 to 3, got None'),
    (dict(out_indices=(2, 1)), 'must ascend'),
    (dict(frozen_stages=5), r'from -1 \(none\) to 4 \(all\), got 5'),
    (dict(frozen_stages=1.5), r'from -1 \(none\) to 4 \(all\), got 1.5'),
    (dict(frozen_stages='1\n'), r"got '1\\n'"),
    (dict(drop_path_rate=1.0), 'drop_path_rate must be at least 0 and less than 1'),
    (dict(drop_rate='0.1'), "drop_rate must be at least 0 and less than 1, got '0.1'"),
    (dict(in_channels=0), 'in_channels must be a positive integer'),
    (dict(out_type='token'), "out_type must be 'featmap' or '.*', got 'token'"),
    (dict(init_cfg='weights.pth'), "init_cfg must be a dict .* got 'weights.pth'"),
    (dict(init_cfg=[dict(type='Pretrained', checkpoint='a'), dict(type='Constant')]), 'must be one dict'),
    (dict(weights='a.pth', init_cfg=dict(type='Constant')), 'give one of them'),
    (dict(weights=3), "weights must be 'imagenet', a path, a URL or hf://owner/name, got 3"),
    (dict(weights='imagenet'), 'there are no published ImageNet weights of arch'),
]
WRONG_SIZES = [
    (dict(extra=1), 'a dict with the keys'),
    ({1: (4,)}, 'a dict with the keys'),
    (dict(depths=(1, 1)), 'one number a stage'),
    (dict(depths=2), 'a list or tuple of one number a stage'),
    (dict(depths=(1, 0, 1, 1)), 'positive integer; got depths'),
    (dict(depths=(1, True, 1, 1)), 'positive integer; got depths'),
    (dict(num_heads=(3, 2, 3, 4)), 'divisible by num_heads; got 8 and 3'),
]


@pytest.mark.parametrize(('arguments', 'message'), WRONG)
def test_wrong_arguments_say_what_is_allowed(arguments, message, build_backbone):
    with pytest.raises(ValueError, match=message) as refused:
        build_backbone(**arguments).init_weights()
    assert '\n' not in str(refused.value)


@pytest.mark.parametrize(('sizes', 'message'), WRONG_SIZES)
def test_wrong_sizes_say_what_is_allowed(sizes, message, build_backbone):
    with pytest.raises(ValueError, match=message):
        build_backbone(arch={**build_backbone.keywords['arch'], **sizes})


@pytest.mark.parametrize(
    ('kind', 'arguments', 'message'),
    [
        (PVT, dict(arch='huge'), "unknown arch 'huge': choose from tiny, small"),
        (PVT, dict(arch='b2_li'), r"unknown arch 'b2_li' \(it is one of type='pvt_mm.PVTv2'\): choose from tiny"),
        (PVT, dict(arch=TINY_ARCH_V2), 'a dict with the keys embed_dims, depths, num_heads, patch_sizes'),
        (PVT, dict(pretrain_img_size=16), 'at least 32, got 16'),
        (PVT, dict(pretrain_img_size=224.0), 'at least 32, got 224.0'),
        (PVT, dict(out_type='avg_featmap'), "out_type must be 'featmap' or 'cls_token', got 'avg_featmap'"),
        (PVT, dict(arch=TINY_ARCH, out_type='cls_token', out_indices=2), 'needs the last stage among out_indices'),
        (
            PVT,
            dict(arch={**TINY_ARCH, 'sr_ratios': (8, 4, 2, 2)}, out_type='cls_token'),
            'no spatial reduction there',
        ),
        (PVTv2, dict(arch='huge'), "unknown arch 'huge': choose from b0, b1, b2, b2_li, b3"),
        (PVTv2, dict(arch='tiny'), r"unknown arch 'tiny' \(it is one of type='pvt_mm.PVT'\): choose from b0"),
        (PVTv2, dict(arch=TINY_ARCH), 'a dict with the keys embed_dims, depths, num_heads, strides'),
        (PVTv2, dict(arch={**TINY_ARCH_V2, 'linear': 1}), 'linear must be True or False; got'),
        (PVTv2, dict(out_type='cls_token'), "out_type must be 'featmap' or 'avg_featmap', got 'cls_token'"),
    ],
)
def test_wrong_arguments_of_one_version_say_what_is_allowed(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(**arguments)


# ---------------------------------------------------------------------------------------------------- in the ecosystem


def test_imports_without_mmcv_mmdet_and_mmseg():
    code = (
        'import sys\n'
        'for name in ("mmcv", "mmdet", "mmseg", "torchvision"): sys.modules[name] = None\n'
        'from mmengine.registry import MODELS\n'
        'import torch\n'
        'for settings in (dict(type="pvt_mm.PVT", arch="tiny"), dict(type="pvt_mm.PVTv2", arch="b0")):\n'
        '    print(len(MODELS.build(settings)(torch.randn(1, 3, 64, 64))))'
    )
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.stdout.split() == ['4', '4'], result.stderr


def test_resolves_from_the_registries_with_nothing_imported_first():
    code = (
        'from mmdet.registry import MODELS as DETECTORS\n'
        'from mmseg.registry import MODELS as SEGMENTORS\n'
        'settings = dict(type="pvt_mm.PVT", arch="tiny", out_indices=0), dict(type="pvt_mm.PVTv2", arch="b0")\n'
        'for registry, one in zip((DETECTORS, SEGMENTORS), settings):\n'
        '    print(type(registry.build(one)).__module__)'
    )
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.stdout.split() == ['pvt_mm.models.backbone'] * 2, result.stderr


def _step(rank: int, processes: int, port: int, images: torch.Tensor, folder: str) -> None:
    """Two steps of each backbone by one of ``processes`` on its share of the images; the first writes the weights."""
    warnings.simplefilter('error')  # DistributedDataParallel warns of gradients that it must copy
    if processes > 1:
        address = f'tcp://127.0.0.1:{port}'
        torch.distributed.init_process_group('gloo', init_method=address, rank=rank, world_size=processes)
    weights = []
    for kind, arch in ((PVT, TINY_ARCH), (PVTv2, TINY_ARCH_LINEAR)):
        torch.manual_seed(0)
        model = kind(arch, drop_path_rate=0.0, out_indices=(1, 2))  # no parameter may be left unused
        trained = nn.parallel.DistributedDataParallel(model) if processes > 1 else model
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            optimiser.zero_grad()
            sum((output - 1).square().mean() for output in trained(images.chunk(processes)[rank])).backward()
            optimiser.step()
        weights.append(model.state_dict())
    if rank == 0:
        torch.save(weights, f'{folder}/{processes}.pth')
    if processes > 1:
        leave_process_group()


def test_two_processes_equal_one_with_the_joined_batch(tmp_path):
    images = torch.randn(4, 3, 64, 96)
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    with warnings.catch_warnings():
        _step(0, 1, port, images, str(tmp_path))
    torch.multiprocessing.spawn(_step, (2, port, images, str(tmp_path)), nprocs=2)
    one, two = (torch.load(tmp_path / f'{processes}.pth') for processes in (1, 2))
    for found, expected in zip(two, one, strict=True):
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_an_optimiser_step_lowers_the_loss(build_backbone):
    model = build_backbone(drop_path_rate=0.0)
    optimiser = OptimWrapper(torch.optim.AdamW(model.parameters(), lr=2e-2))
    image, losses = torch.randn(2, 3, 64, 64), []
    for _ in range(5):
        loss = (model(image)[-1] - 1).square().mean()
        losses.append(loss.item())
        optimiser.update_params(loss)
    assert losses[-1] < 0.9 * losses[0]
