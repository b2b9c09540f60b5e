"""PVT and PVTv2 of any sizes on any input: what the papers' equations give, or a line that says what is wrong."""

import math

import pytest
import torch
from hypothesis import assume, example
from hypothesis import strategies as st
from torch import Tensor

from pvt_mm.models import PVT, PVTv2, chunked_ffn
from pvt_mm.models.archs import ARCHS, ARCHS_V2, resolve_arch
from tests.fuzz import assert_clear, cases
from tests.reference import reference, spread

# How far outputs may be from those in float64, relative to their norm.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
SMALL, LARGE = 2_000_000, 40_000_000  # scores of attention, N * M * heads over the layers


# ------------------------------------------------------------------------------------------------------ what is tried


@st.composite
def archs(draw, least_width: int = 1, first_patches: tuple[int, ...] = (1, 2, 3, 4, 7), deep: bool = True) -> dict:
    """Sizes of one to four stages of a PVT or a PVTv2 that take images of 96 pixels and less."""
    stages, stride, strides = draw(st.integers(1, 4)), 1, draw(st.sampled_from(('patch_sizes', 'strides')))
    arch = {key: [] for key in ('embed_dims', 'depths', 'num_heads', strides, 'sr_ratios', 'mlp_ratios')}
    for i in range(stages):
        heads = draw(st.integers(1, 3))
        width = draw(st.integers(-(-least_width // heads), 8))
        patch = draw(st.sampled_from(first_patches if i == 0 else [P for P in (1, 2, 2, 3) if stride * P <= 96]))
        stride *= patch
        arch[strides].append(patch)
        arch['sr_ratios'].append(draw(st.sampled_from([R for R in (1, 2, 3, 4, 8) if stride * R <= 96])))
        arch['num_heads'].append(heads)
        arch['embed_dims'].append(heads * width)
        arch['depths'].append(draw(st.integers(1, 2 if deep else 1)))
        arch['mlp_ratios'].append(draw(st.integers(1, 4)))
    arch = {key: draw(st.sampled_from((tuple, list)))(column) for key, column in arch.items()}
    return {**arch, 'linear': draw(st.booleans())} if is_v2(arch) else arch


def is_v2(arch: dict) -> bool:
    return 'strides' in arch


def backbone(arch: dict, **settings) -> PVT | PVTv2:
    return (PVTv2 if is_v2(arch) else PVT)(arch, **settings)


def min_size(arch: dict) -> int:
    return resolve_arch(arch, ARCHS_V2 if is_v2(arch) else ARCHS).min_size


def maps(arch: dict, H: int, W: int) -> list[tuple[int, int]]:
    """Returns the sides of each stage's map: v1 drops what does not fill a patch, v2 does not."""
    found = []
    for stride in arch['strides' if is_v2(arch) else 'patch_sizes']:
        H, W = (-(-side // stride) if is_v2(arch) else side // stride for side in (H, W))
        found.append((H, W))
    return found


def scores(arch: dict, H: int, W: int) -> int:
    """Returns how many scores the attention of an image of H x W has, and at least how many values its maps."""
    total = H * W
    columns = [arch[key] for key in ('sr_ratios', 'num_heads', 'depths')]
    for (rows, width), R, heads, depth in zip(maps(arch, H, W), *columns, strict=True):
        keys = 49 if arch.get('linear') else (rows // R) * (width // R)
        total += depth * heads * rows * width * (keys + 16)
    return total


@st.composite
def sizes(draw, arch: dict, budget: int = SMALL) -> tuple[int, int]:
    """(H, W) that the backbone takes, up to 1100 a side as far as ``budget`` goes."""
    least = min_size(arch)
    first = draw(st.one_of(st.integers(least, 1100), st.integers(least, least + 64)))
    most = max(least, max(side for side in (least, 40, 64, 100, 200, 400, 700, 1100) if side <= least or
                          scores(arch, first, side) <= budget))  # fmt: skip
    first = first if scores(arch, first, most) <= budget else least
    second = draw(st.integers(least, most))
    return draw(st.sampled_from([(first, second), (second, first)]))


@st.composite
def settings_of(draw, arch: dict) -> dict:
    """Arguments of a backbone that fit an arch."""
    stages, own = len(arch['depths']), {}
    out_indices = draw(st.one_of(st.integers(0, stages - 1), st.sets(st.integers(0, stages - 1), min_size=1)))
    if not is_v2(arch):
        least = math.prod(arch['patch_sizes'])
        sides = st.integers(least, least + 70)
        own['pretrain_img_size'] = draw(st.one_of(sides, st.tuples(sides, sides)))
    return dict(
        arch=arch,
        in_channels=draw(st.integers(1, 5)),
        out_indices=out_indices if isinstance(out_indices, int) else tuple(sorted(out_indices)),
        frozen_stages=draw(st.integers(-1, stages)),
        with_cp=draw(st.booleans()),
        drop_path_rate=0.0,
        **own,
    )


SEEDS = st.integers(0, 2**31)
LAYOUTS = {
    'contiguous': lambda image: image,
    'channels last': lambda image: image.contiguous(memory_format=torch.channels_last),
    'every other row': lambda image: image.repeat_interleave(2, dim=2)[:, :, ::2],
    'rows last': lambda image: image.mT.contiguous().mT,
}


def every_stage(arch: dict) -> tuple[int, ...]:
    return tuple(range(len(arch['depths'])))


def build(seed: int, **settings) -> PVT | PVTv2:
    """A backbone none of whose parameters is at a value that would hide a mistake."""
    torch.manual_seed(seed)
    return spread(backbone(**settings))


def doubled(model: PVT | PVTv2) -> dict[str, Tensor]:
    return {name: value.detach().double().requires_grad_() for name, value in model.named_parameters()}


def stages_of(model: PVT | PVTv2) -> tuple[int, ...]:
    return tuple(model.out_indices)


def error(found: list[Tensor], expected: list[Tensor]) -> float:
    """Returns the greatest distance of any of the tensors from what is expected, relative to its norm."""
    pairs = zip(found, expected, strict=True)
    return max(((one.double() - other).norm() / other.norm().clamp(min=1e-6)).item() for one, other in pairs)


# ------------------------------------------------------------------------------------------------------- properties


@st.composite
def runs(draw, least_width: int, budget: int = SMALL, **arch) -> tuple[dict, tuple[int, int]]:
    sizes_of_stages = draw(archs(least_width, **arch))
    return draw(settings_of(sizes_of_stages)), draw(sizes(sizes_of_stages, budget))


def compare(run: tuple, dtype: torch.dtype, layout: str, batch: int, training: bool, seed: int) -> None:
    settings, size = run
    model = build(seed, **settings).to(dtype).train(training)
    image = torch.randn(batch, settings['in_channels'], *size).to(dtype)
    with torch.no_grad():
        outputs = model(LAYOUTS[layout](image))
        expected = reference(doubled(model), settings['arch'], image.double(), stages_of(model))
    shapes = list(zip(settings['arch']['embed_dims'], maps(settings['arch'], *size), strict=True))
    assert [output.dtype for output in outputs] == [dtype] * len(outputs)
    assert [output.shape for output in outputs] == [(batch, shapes[i][0], *shapes[i][1]) for i in stages_of(model)]
    assert error(outputs, expected) < TOLERANCE[dtype]


@cases('backbone', 250)(runs(1), st.sampled_from(list(LAYOUTS)), st.integers(1, 2), st.booleans(), SEEDS)
def test_float64_is_the_papers(run, layout, batch, training, seed):
    compare(run, torch.float64, layout, batch, training, seed)


# Narrower norms than 4 channels make of float32's rounding what they like.
@cases('backbone', 250)(
    runs(4),
    st.sampled_from(list(LAYOUTS)),
    st.integers(1, 2),
    st.booleans(),
    SEEDS,
    st.sampled_from((2**11, 3 * 2**18)),
)
def test_float32_is_the_papers(run, layout, batch, training, seed, chunk):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunked_ffn, 'CHUNK_BYTES', chunk)  # that small images have several
        compare(run, torch.float32, layout, batch, training, seed)


@cases('backbone', 120)(
    runs(8, deep=False),
    st.sampled_from((torch.bfloat16, torch.float16) if torch.__version__ >= '2.3' else (torch.bfloat16,)),
    st.sampled_from(list(LAYOUTS)),
    st.integers(1, 2),
    SEEDS,
)
def test_half_precision_is_the_papers(run, dtype, layout, batch, seed):
    compare(run, dtype, layout, batch, False, seed)


@st.composite
def large(draw) -> tuple[dict, tuple[int, int]]:
    """Images of up to 1100 x 1100 pixels, for a backbone of a few channels."""
    arch = dict(
        embed_dims=(4, 8, 8, 8), depths=(1,) * 4, num_heads=(1, 1, 2, 2),
        sr_ratios=(16, 8, 4, draw(st.sampled_from((1, 2)))), mlp_ratios=(2, 1, 1, 1),
    )  # fmt: skip
    arch[draw(st.sampled_from(('patch_sizes', 'strides')))] = (4, 2, 2, 2)
    if is_v2(arch):
        arch['linear'] = draw(st.booleans())
    settings = draw(settings_of(arch))
    sides = st.one_of(st.integers(64, 1100), st.sampled_from((1099, 1100)))
    return settings, (draw(sides), draw(sides))


@cases('backbone', 60, quick=2)(large(), SEEDS)
def test_large_images(run, seed):
    compare(run, torch.float32, 'contiguous', 1, False, seed)


@cases('backbone', 120)(runs(4), SEEDS)
def test_two_images_are_each_alone(run, seed):
    settings, size = run
    model = build(seed, **settings).eval()
    images = torch.randn(2, settings['in_channels'], *size)
    with torch.no_grad():
        together, apart = model(images), [model(image[None]) for image in images]
    assert error(together, [torch.cat(pair).double() for pair in zip(*apart, strict=True)]) < 1e-4


def loss(outputs: list[Tensor]) -> Tensor:
    torch.manual_seed(0)
    return sum((output.double() * torch.randn(output.shape, dtype=torch.float64)).sum() for output in outputs)


def gradients(model: PVT | PVTv2, image: Tensor, seed: int) -> dict[str, Tensor | None]:
    torch.manual_seed(seed)
    loss(model(image)).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def is_frozen(name: str, frozen_stages: int) -> bool:
    first = name.startswith(('stages.0.patch_embed', 'stages.0.pos_embed'))
    return int(name.split('.')[1]) < frozen_stages or (frozen_stages == 0 and first)


@cases('backbone', 200)(
    runs(4), st.sampled_from((torch.float32, torch.float64)), SEEDS, st.sampled_from((2**11, 2**18))
)
def test_gradients_are_the_papers_and_frozen_stages_have_none(run, dtype, seed, chunk):
    settings, size = run
    model = build(seed, **settings).to(dtype)
    image = torch.randn(2, settings['in_channels'], *size, dtype=dtype)
    weights = doubled(model)
    loss(reference(weights, settings['arch'], image.double(), stages_of(model))).backward()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunked_ffn, 'CHUNK_BYTES', chunk)
        found = loss(model(image))
        if found.requires_grad:
            found.backward()
    frozen = {name for name in weights if is_frozen(name, settings['frozen_stages'])}
    assert found.requires_grad == (frozen != set(weights))
    assert {name for name, parameter in model.named_parameters() if not parameter.requires_grad} == frozen
    assert {name for name, parameter in model.named_parameters() if parameter.grad is None} == frozen
    whole = max(weights[name].grad.norm().item() for name in weights)
    kinks = settings['arch'].get('linear', False) and dtype == torch.float32  # of ReLU, where gradients jump
    tolerance = (100 if kinks else 10) * TOLERANCE[dtype]
    for name, parameter in model.named_parameters():
        if name not in frozen:
            distance = (parameter.grad.double() - weights[name].grad).norm().item()
            assert distance <= tolerance * max(weights[name].grad.norm().item(), 0.01 * whole), name
    assert all(module.training != is_frozen(f'{name}.layers.', settings['frozen_stages'])
               for name, module in model.named_modules() if name.count('.') == 1)  # fmt: skip


@cases('backbone', 100)(runs(4), st.floats(0, 0.9), st.floats(0, 0.9), st.floats(0, 0.9), SEEDS)
def test_with_cp_changes_no_output_and_no_gradient(run, drop_rate, attn_drop_rate, drop_path_rate, seed):
    settings, size = run
    rates = dict(drop_rate=drop_rate, attn_drop_rate=attn_drop_rate, drop_path_rate=drop_path_rate)
    settings = {**settings, **rates, 'frozen_stages': -1}
    image = torch.randn(2, settings['in_channels'], *size)
    plain, recomputed = (gradients(build(seed, **{**settings, 'with_cp': cp}), image, seed) for cp in (False, True))
    for name, value in plain.items():
        torch.testing.assert_close(recomputed[name], value, msg=lambda text, name=name: f'{name}: {text}')


# ---------------------------------------------------------------------------------------------------- what is refused


@cases('backbone', 200)(archs(), st.integers(1, 1100), st.integers(1, 1100), st.integers(0, 1100), SEEDS)
def test_any_side_is_taken_or_refused_in_a_line(arch, H, W, below, seed):
    model = build(seed, arch=arch, out_indices=every_stage(arch)).eval()
    least = min_size(arch)
    H = max(1, least - below) if below < 64 else H  # around the least often
    H, W = (H, W) if scores(arch, H, W) <= SMALL else (H % 80 + 1, W % 80 + 1)
    with torch.no_grad():
        if min(H, W) >= least:
            assert all(output.isfinite().all() for output in model(torch.randn(1, 3, H, W)))
            return
        with pytest.raises(ValueError, match=f'the input is {H} x {W} pixels') as refused:
            model(torch.randn(1, 3, H, W))
    assert_clear(str(refused.value))


@cases('backbone', 60)(
    archs(),
    st.lists(st.integers(0, 120), max_size=5),
    st.sampled_from((torch.float32, torch.uint8, torch.int64, torch.bool, torch.complex64)),
)
def test_any_tensor_is_taken_or_refused_in_a_line(arch, shape, dtype):
    model = backbone(arch, out_indices=every_stage(arch)).eval()
    least = min_size(arch)
    fits = len(shape) == 4 and shape[1] == 3 and min(shape[2:]) >= least and dtype == torch.float32
    image = torch.zeros(shape if len(shape) != 4 else [shape[0] % 3, *shape[1:]], dtype=dtype)
    if fits:
        assume(scores(arch, *shape[2:]) <= SMALL)
        assert [len(output) for output in model(image)] == [len(image)] * len(arch['depths'])
        return
    with pytest.raises(ValueError, match='the input') as refused:
        model(image)
    assert_clear(str(refused.value))


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.lists(st.integers(-2, 5), max_size=5),
    st.dictionaries(st.one_of(st.text(max_size=3), st.integers()), st.integers(-1, 3), max_size=3),
    st.tuples(st.integers(-1, 9), st.floats()),
)  # fmt: skip


@st.composite
def broken(draw) -> dict:
    """An arch with one thing wrong in it."""
    arch = {key: list(column) for key, column in draw(archs()).items() if key != 'linear'}
    key, kind = draw(st.sampled_from(list(arch))), draw(st.integers(0, 6))
    stage = draw(st.integers(0, len(arch[key]) - 1))
    if kind == 0:
        del arch[key]
    elif kind == 1:
        arch[draw(st.one_of(st.text(max_size=9), st.integers(), st.none()))] = (1,) * len(arch[key])
    elif kind == 2:
        key = draw(st.sampled_from((key, 'linear')))
        arch[key] = draw(st.one_of(st.none(), st.integers(), st.text(max_size=5), st.floats()))
    elif kind == 3:
        wrong = st.one_of(
            st.integers(max_value=0), st.floats(), st.text(max_size=3), st.none(), st.lists(st.integers())
        )
        arch[key][stage] = draw(wrong)
    elif kind == 4:
        arch[key].append(1)
    elif kind == 5:
        arch['num_heads'][stage] = arch['embed_dims'][stage] + draw(st.integers(1, 5))
    else:
        arch = dict.fromkeys(arch, ())
    return arch


@cases('backbone', 150)(broken())
@example({'embed_dims': (4,), 1: (4,)})
def test_a_broken_arch_is_refused_in_a_line(arch):
    with pytest.raises(ValueError, match=r'arch|embed_dims|linear') as refused:
        backbone(arch)
    assert_clear(str(refused.value))


@cases('backbone', 200)(
    st.sampled_from(
        ('arch', 'in_channels', 'out_indices', 'pretrain_img_size', 'drop_rate', 'attn_drop_rate', 'drop_path_rate',
         'frozen_stages', 'out_type', 'init_cfg')
    ),
    JUNK,
    st.booleans(),
)  # fmt: skip
def test_any_argument_is_taken_or_refused_in_a_line(name, value, second):
    if name in ('in_channels', 'pretrain_img_size') and isinstance(value, int):
        value %= 300  # they would be taken, and memory too
    arch = dict(embed_dims=(4,), depths=(1,), num_heads=(2,), sr_ratios=(2,), mlp_ratios=(1,))
    arch['strides' if second else 'patch_sizes'] = (4,)
    settings = {'arch': arch, 'out_indices': 0, 'pretrain_img_size': 16, name: value}
    if second:
        del settings['pretrain_img_size']
    try:
        model = (PVTv2 if second else PVT)(**settings)
    except ValueError as refused:
        assert_clear(str(refused))
        return
    with torch.no_grad():
        (output,) = model.eval()(torch.randn(1, model.in_channels, 9, 21))
    assert output.shape == ((1, 4, 3, 6) if second else (1, 4, 2, 5))
    assert output.isfinite().all()
