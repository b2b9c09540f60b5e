"""PVT of any sizes on any input: what the paper's equations give, or a line that says what is wrong."""

import math

import pytest
import torch
from hypothesis import example
from hypothesis import strategies as st
from torch import Tensor

from pvt_mm.models import PVT, chunked_ffn
from pvt_mm.models.archs import ARCHS, resolve_arch
from tests.fuzz import assert_clear, cases
from tests.reference import reference, spread

# How far outputs may be from those in float64, relative to their norm.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
SMALL, LARGE = 2_000_000, 40_000_000  # scores of attention, N * M * heads over the layers


# ------------------------------------------------------------------------------------------------------ what is tried


@st.composite
def archs(draw, least_width: int = 1, first_patches: tuple[int, ...] = (1, 2, 3, 4, 7), deep: bool = True) -> dict:
    """Sizes of one to four stages that take images of 96 pixels and less."""
    stages, stride = draw(st.integers(1, 4)), 1
    arch = {key: [] for key in ('embed_dims', 'depths', 'num_heads', 'patch_sizes', 'sr_ratios', 'mlp_ratios')}
    for i in range(stages):
        heads = draw(st.integers(1, 3))
        width = draw(st.integers(-(-least_width // heads), 8))
        patch = draw(st.sampled_from(first_patches if i == 0 else [P for P in (1, 2, 2, 3) if stride * P <= 96]))
        stride *= patch
        arch['patch_sizes'].append(patch)
        arch['sr_ratios'].append(draw(st.sampled_from([R for R in (1, 2, 3, 4, 8) if stride * R <= 96])))
        arch['num_heads'].append(heads)
        arch['embed_dims'].append(heads * width)
        arch['depths'].append(draw(st.integers(1, 2 if deep else 1)))
        arch['mlp_ratios'].append(draw(st.integers(1, 4)))
    return {key: draw(st.sampled_from((tuple, list)))(column) for key, column in arch.items()}


def scores(arch: dict, H: int, W: int) -> int:
    """Returns how many scores the attention of an image of H x W has, and at least how many values its maps."""
    total = H * W
    for P, R, heads, depth in zip(
        *(arch[key] for key in ('patch_sizes', 'sr_ratios', 'num_heads', 'depths')), strict=True
    ):
        H, W = H // P, W // P
        total += depth * heads * (H * W * (H // R) * (W // R) + 16 * H * W)
    return total


@st.composite
def sizes(draw, arch: dict, budget: int = SMALL) -> tuple[int, int]:
    """(H, W) that the backbone takes, up to 1100 a side as far as ``budget`` goes."""
    least = resolve_arch(arch, ARCHS).min_size
    first = draw(st.one_of(st.integers(least, 1100), st.integers(least, least + 64)))
    most = max(least, max(side for side in (least, 40, 64, 100, 200, 400, 700, 1100) if side <= least or
                          scores(arch, first, side) <= budget))  # fmt: skip
    first = first if scores(arch, first, most) <= budget else least
    second = draw(st.integers(least, most))
    return draw(st.sampled_from([(first, second), (second, first)]))


@st.composite
def settings_of(draw, arch: dict) -> dict:
    """Arguments of PVT that fit an arch."""
    stages, least = len(arch['depths']), math.prod(arch['patch_sizes'])
    out_indices = draw(st.one_of(st.integers(0, stages - 1), st.sets(st.integers(0, stages - 1), min_size=1)))
    sides = st.integers(least, least + 70)
    return dict(
        arch=arch,
        in_channels=draw(st.integers(1, 5)),
        out_indices=out_indices if isinstance(out_indices, int) else tuple(sorted(out_indices)),
        pretrain_img_size=draw(st.one_of(sides, st.tuples(sides, sides))),
        frozen_stages=draw(st.integers(-1, stages)),
        with_cp=draw(st.booleans()),
        drop_path_rate=0.0,
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


def build(seed: int, **settings) -> PVT:
    """A PVT none of whose parameters is at a value that would hide a mistake."""
    torch.manual_seed(seed)
    return spread(PVT(**settings))


def doubled(model: PVT) -> dict[str, Tensor]:
    return {name: value.detach().double().requires_grad_() for name, value in model.named_parameters()}


def stages_of(model: PVT) -> tuple[int, ...]:
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
    strides = [math.prod(settings['arch']['patch_sizes'][: i + 1]) for i in stages_of(model)]
    widths = [settings['arch']['embed_dims'][i] for i in stages_of(model)]
    assert [output.dtype for output in outputs] == [dtype] * len(outputs)
    for output, stride, width in zip(outputs, strides, widths, strict=True):
        assert output.shape == (batch, width, size[0] // stride, size[1] // stride)
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
    """Images of up to 1100 x 1100 pixels, for a PVT of a few channels."""
    arch = dict(
        embed_dims=(4, 8, 8, 8), depths=(1,) * 4, num_heads=(1, 1, 2, 2), patch_sizes=(4, 2, 2, 2),
        sr_ratios=(16, 8, 4, draw(st.sampled_from((1, 2)))), mlp_ratios=(2, 1, 1, 1),
    )  # fmt: skip
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


def gradients(model: PVT, image: Tensor, seed: int) -> dict[str, Tensor | None]:
    torch.manual_seed(seed)
    loss(model(image)).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def is_frozen(name: str, frozen_stages: int) -> bool:
    stage = int(name.split('.')[1])
    return stage < frozen_stages or (frozen_stages == 0 and stage == 0 and '.layers.' not in name)


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
    for name, parameter in model.named_parameters():
        if name not in frozen:
            distance = (parameter.grad.double() - weights[name].grad).norm().item()
            assert distance <= 10 * TOLERANCE[dtype] * max(weights[name].grad.norm().item(), 0.01 * whole), name
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
    least = resolve_arch(arch, ARCHS).min_size
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
    model = PVT(arch, out_indices=every_stage(arch)).eval()
    least = resolve_arch(arch, ARCHS).min_size
    fits = len(shape) == 4 and shape[1] == 3 and min(shape[2:]) >= least and dtype == torch.float32
    image = torch.zeros(shape if len(shape) != 4 else [shape[0] % 3, *shape[1:]], dtype=dtype)
    if fits:
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
    arch = {key: list(column) for key, column in draw(archs()).items()}
    key, kind = draw(st.sampled_from(list(arch))), draw(st.integers(0, 6))
    stage = draw(st.integers(0, len(arch[key]) - 1))
    if kind == 0:
        del arch[key]
    elif kind == 1:
        arch[draw(st.one_of(st.text(max_size=9), st.integers(), st.none()))] = (1,) * len(arch[key])
    elif kind == 2:
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
    with pytest.raises(ValueError, match=r'arch|embed_dims') as refused:
        PVT(arch)
    assert_clear(str(refused.value))


@cases('backbone', 200)(
    st.sampled_from(
        ('arch', 'in_channels', 'out_indices', 'pretrain_img_size', 'drop_rate', 'attn_drop_rate', 'drop_path_rate',
         'frozen_stages', 'out_type', 'init_cfg')
    ),
    JUNK,
)  # fmt: skip
def test_any_argument_is_taken_or_refused_in_a_line(name, value):
    if name in ('in_channels', 'pretrain_img_size') and isinstance(value, int):
        value %= 300  # they would be taken, and memory too
    arch = dict(embed_dims=(4,), depths=(1,), num_heads=(2,), patch_sizes=(4,), sr_ratios=(2,), mlp_ratios=(1,))
    try:
        model = PVT(**{'arch': arch, 'out_indices': 0, 'pretrain_img_size': 16, name: value})
    except ValueError as refused:
        assert_clear(str(refused))
        return
    with torch.no_grad():
        (output,) = model.eval()(torch.randn(1, model.in_channels, 9, 21))
    assert output.shape == (1, 4, 2, 5)
    assert output.isfinite().all()
