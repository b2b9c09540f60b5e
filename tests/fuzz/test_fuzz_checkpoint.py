"""The reader of checkpoints on damaged, foreign and strange files: what was saved, or a line that says why not."""

import contextlib
import io
import itertools
import logging
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

from pvt_mm.checkpoint.formats import backbone_weights, convert
from pvt_mm.checkpoint.loading import load_pretrained
from pvt_mm.checkpoint.reader import read_checkpoint
from pvt_mm.checkpoint.writer import save_checkpoint
from pvt_mm.models import PVT, PVTv2
from pvt_mm.utils.errors import CheckpointError
from tests.fuzz import assert_clear, cases
from tests.fuzz.test_fuzz_backbone import archs, every_stage
from tests.test_checkpoint.test_formats import CLASSIFIERS, KINDS, WRAPPINGS

ARCH = dict(embed_dims=(4, 6), depths=(1, 2), num_heads=(1, 2), patch_sizes=(4, 2), sr_ratios=(2, 1), mlp_ratios=(1, 2))
# Those of the formats that are for four stages.
FOUR = dict(
    embed_dims=(4,) * 4, depths=(1,) * 4, num_heads=(1,) * 4, patch_sizes=(4, 2, 2, 2), sr_ratios=(2, 2, 1, 1),
    mlp_ratios=(1,) * 4,
)  # fmt: skip


def as_kind(kind: str, arch: dict) -> dict:
    """The sizes of a PVT for a backbone of another kind."""
    if kind == 'v1':
        return arch
    return {('strides' if key == 'patch_sizes' else key): value for key, value in arch.items()} | {
        'linear': kind == 'linear'
    }


def random_model(arch: dict = ARCH, **settings) -> PVT | PVTv2:
    torch.manual_seed(0)
    if 'strides' in arch:
        model = PVTv2(arch, out_indices=every_stage(arch))
    else:
        model = PVT(arch, **{'out_indices': every_stage(arch), 'pretrain_img_size': 32, **settings})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


MODEL = random_model()
WEIGHTS = {name: value.clone() for name, value in MODEL.state_dict().items()}


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same values, NaN included."""
    return one.shape == other.shape and torch.equal(one.isnan(), other.isnan()) and torch.equal(
        one.nan_to_num(), other.nan_to_num()
    )  # fmt: skip


def load(path: Path, kind: str = 'v1', **settings) -> dict[str, Tensor] | None:
    """Loads a file into a model; None where it is refused, in a line, leaving the model as it was."""
    model = random_model(as_kind(kind, ARCH))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        load_pretrained(model, str(path), **settings)
    except CheckpointError as refused:
        assert_clear(str(refused))
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        return None
    return model.state_dict()


def assert_refused_or_exact(path: Path, expected: dict[str, Tensor] = WEIGHTS) -> bool:
    """Returns whether the file was read."""
    found = load(path)
    if found is not None:
        assert set(found) == set(expected)
        for name, value in expected.items():
            assert same(found[name], value.to(found[name].dtype)), name
    return found is not None


FRESH = itertools.count()


def fresh(folder: Path, name: str) -> Path:
    """Returns the path of a file that no case before has written: one that is verified is not verified again."""
    for old in folder.glob(f'[0-9]*{name}'):
        old.unlink()
    return folder / f'{next(FRESH)}{name}'


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp('fuzz')


@pytest.fixture(autouse=True, scope='module')
def _quiet():
    logging.disable(logging.INFO)
    yield
    logging.disable(logging.NOTSET)


# ----------------------------------------------------------------------------------------------------------- damage


def written(write: Callable[[Path], None], suffix: str, folder: Path) -> bytes:
    path = folder / f'whole{suffix}'
    if not path.exists():
        write(path)
    return path.read_bytes()


FILES = {
    'ours': (lambda path: save_checkpoint(WEIGHTS, path), '.pth'),
    'foreign': (lambda path: torch.save({'meta': {'epoch': 3}, 'state_dict': WEIGHTS}, path), '.foreign.pth'),
    'safetensors': (lambda path: save_checkpoint(WEIGHTS, path), '.safetensors'),
    'before zip': (lambda path: torch.save(WEIGHTS, path, _use_new_zipfile_serialization=False), '.old.pth'),
}


@cases('checkpoint reader', 250, quick=10)(st.sampled_from(list(FILES)), st.data())
def test_a_file_cut_off_anywhere_is_refused(folder, kind, data):
    whole = written(*FILES[kind], folder)
    path = fresh(folder, f'cut{FILES[kind][1]}')
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1), label='length')])
    assert load(path) is None


# What is in a file of tensors without a sum of its bytes cannot be told from what was there: where a change is looked
# for in safetensors, it is in the header.
@cases('checkpoint reader', 300, quick=10)(st.sampled_from(['ours', 'foreign', 'safetensors']), st.data())
def test_a_flipped_bit_is_refused_or_harmless(folder, kind, data):
    whole = bytearray(written(*FILES[kind], folder))
    end = 8 + int.from_bytes(whole[:8], 'little') if kind == 'safetensors' else len(whole)
    place = data.draw(st.integers(0, end - 1), label='byte')
    whole[place] ^= 1 << data.draw(st.integers(0, 7), label='bit')
    path = fresh(folder, f'flipped{FILES[kind][1]}')
    path.write_bytes(whole)
    assert_refused_or_exact(path)


@cases('checkpoint reader', 300, quick=10)(
    st.sampled_from(['ours', 'foreign', 'safetensors']), st.binary(min_size=1, max_size=40), st.booleans(), st.data()
)
def test_overwritten_and_inserted_bytes_are_refused_or_harmless(folder, kind, noise, inserted, data):
    whole = written(*FILES[kind], folder)
    end = 8 + int.from_bytes(whole[:8], 'little') - len(noise) if kind == 'safetensors' else len(whole)
    place = data.draw(st.integers(0, end - 1), label='byte')
    path = fresh(folder, f'overwritten{FILES[kind][1]}')
    path.write_bytes(whole[:place] + noise + whole[place + (0 if inserted else len(noise)) :])
    assert_refused_or_exact(path)


@cases('checkpoint reader', 60)(st.sampled_from(list(FILES)), st.sampled_from(list(FILES)), st.data())
def test_two_files_that_were_mixed_are_refused_or_one_of_them(folder, kind, other, data):
    first, second = written(*FILES[kind], folder), written(*FILES[other], folder)
    block = data.draw(st.sampled_from((512, 4096)), label='block')
    place = block * data.draw(st.integers(0, len(first) // block), label='blocks')
    path = fresh(folder, f'mixed{FILES[kind][1]}')
    path.write_bytes(first[:place] + second[place:])
    assert_refused_or_exact(path)


ANYTHING = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6), st.binary(max_size=6),
        st.sampled_from([np.float64(2), np.arange(3), torch.float32, torch.Size([2]), range(3), set(), complex(1, 2)]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(
            st.one_of(st.text(max_size=4), st.integers(), st.sampled_from(['state_dict', 'model', 'module'])),
            inner,
            max_size=3,
        ),
    ),
    max_leaves=8,
)  # fmt: skip


def zipped(value: object) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as file:
        file.writestr('archive/data.pkl', pickle.dumps(value))
        file.writestr('archive/version', '3')
    return buffer.getvalue()


def torch_saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@cases('checkpoint reader', 200, quick=10)(
    st.one_of(
        st.builds(pickle.dumps, ANYTHING, protocol=st.integers(0, 5)),
        st.builds(torch_saved, ANYTHING),
        st.builds(zipped, ANYTHING),
        st.binary(max_size=200),
        st.builds(lambda text: text.encode(), st.text(max_size=200)),
        # the beginnings of what can be read
        st.builds(lambda start, rest: start + rest, st.sampled_from([b'PK\x03\x04', b'\x80\x02', b'\x80\x04\x95']),
                  st.binary(max_size=60)),
    ),
    st.sampled_from(['.pth', '.safetensors', '']),
)  # fmt: skip
def test_what_is_no_checkpoint_is_refused(folder, content, suffix):
    path = fresh(folder, f'anything{suffix}')
    path.write_bytes(content)
    assert load(path) is None
    with pytest.raises(CheckpointError) as refused:
        read_checkpoint(path)
    assert_clear(str(refused.value))


# ------------------------------------------------------------------------------------------------- strange contents


NAMES = st.sampled_from(list(WEIGHTS))
# What a key can hold in place of its tensor. The values are to be kept, or the file refused.
CHANGES = {
    'no tensor': lambda value: 3.5,
    'an array': lambda value: value.numpy(),
    'a list': lambda value: value.tolist(),
    'None': lambda value: None,
    'double': lambda value: value.double() + 1e-12,
    'half': lambda value: value.half(),
    'bfloat16': lambda value: value.bfloat16(),
    'float8': lambda value: value.to(torch.float8_e4m3fn),
    'int8': lambda value: value.to(torch.int8),
    'int64': lambda value: value.long(),
    'bool': lambda value: value > 0,
    'complex': lambda value: torch.complex(value, value + 1),
    'NaN': lambda value: torch.full_like(value, float('nan')),
    'infinite': lambda value: value / 0,
    'transposed': lambda value: value.mT if value.dim() > 1 else value.flip(0),
    'a row less': lambda value: value[:-1],
    'a row more': lambda value: torch.cat([value, value[:1]]),
    'another dimension': lambda value: value[None],
    'flat': lambda value: value.flatten(),
    'one number': lambda value: value.sum(),
    'empty': lambda value: value[:0],
    'a view': lambda value: torch.stack([value, value], -1)[..., 1],
    'one number everywhere': lambda value: value.flatten()[:1].expand(value.numel()).view_as(value),
    'a parameter': lambda value: torch.nn.Parameter(value),
    'sparse': lambda value: value.to_sparse(),
    'meta': lambda value: value.to('meta'),
    'quantised': lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8),
}

if torch.__version__ < '2.2':  # cannot save it
    del CHANGES['float8']


def wanted(value: object) -> Tensor | None:
    """Returns the values of what a key holds where they are those of weights."""
    if not isinstance(value, Tensor) or value.is_meta or not value.is_floating_point() or value.is_quantized:
        return None
    return value.detach().to_dense() if value.is_sparse else value.detach()


@cases('checkpoint reader', 350, quick=25)(
    NAMES, st.sampled_from(list(CHANGES)), st.sampled_from(['plain', 'mmengine', 'model', 'DDP', 'EMA'])
)
@pytest.mark.filterwarnings('ignore')  # of sparse and quantised tensors
def test_strange_tensors_are_refused_or_exact(folder, name, change, wrapping):
    weights = {**WEIGHTS, name: CHANGES[change](WEIGHTS[name])}
    path = fresh(folder, 'strange.pth')
    torch.save(WRAPPINGS[wrapping](weights), path)
    read = load(path)
    value = wanted(weights[name])
    if read is not None:
        assert value is not None, f'{change} was read as weights'
        if name.endswith('table') and change in ('a row less', 'a row more'):
            return  # a table of another grid, which is resampled
        for key, was in weights.items():
            assert same(read[key], (value if key == name else was).to(read[key].dtype)), key
    else:
        fits = value is not None and value.shape == WEIGHTS[name].shape
        assert not (fits and change in ('double', 'half', 'bfloat16', 'a view', 'a parameter'))


@cases('checkpoint reader', 350, quick=25)(
    st.sampled_from([(kind, layout) for kind in KINDS for layout in KINDS[kind][3]]),
    st.sampled_from(list(CHANGES)),
    st.data(),
)
@pytest.mark.filterwarnings('ignore')  # of sparse and quantised tensors
def test_strange_tensors_of_any_format_are_refused_or_weights(folder, of, change, data):
    (kind, layout), path = of, fresh(folder, 'strange.pth')
    weights, _ = convert(random_model(as_kind(kind, ARCH)).state_dict(), layout)
    name = data.draw(st.sampled_from(list(weights)), label='name')
    strange = {**weights, name: CHANGES[change](weights[name])}
    torch.save(strange, path)
    assert load(path, kind) is None or wanted(strange[name]) is not None
    with contextlib.suppress(CheckpointError):
        convert(read_checkpoint(path), 'pvt_mm')


KEYS = st.one_of(
    st.text(max_size=20), st.integers(-1, 9), st.text(min_size=300, max_size=900), st.just('a\nb'),
    NAMES.map(lambda name: f'{name}.weight'), NAMES.map(lambda name: name.replace('stages.0', 'stages.7')),
    NAMES.map(lambda name: name.replace('layers.0', 'layers.99999999999')), NAMES.map(str.upper), NAMES,
    NAMES.map(lambda name: f'teacher.{name}'), NAMES.map(lambda name: f'module.{name}'),
    NAMES.map(lambda name: f'.{name}'),
)  # fmt: skip


@cases('checkpoint reader', 300, quick=15)(
    st.sets(NAMES, max_size=3), st.dictionaries(KEYS, st.integers(0, 3), max_size=12), st.sampled_from(list(WRAPPINGS))
)
def test_missing_unknown_and_renamed_keys_are_refused_or_exact(folder, missing, more, wrapping):
    weights = {name: value for name, value in WEIGHTS.items() if name not in missing}
    extra = {key: torch.ones([2] * dims) for key, dims in more.items() if key not in weights}
    if wrapping not in ('plain', 'model') and any(isinstance(key, int) for key in extra):
        wrapping = 'plain'  # the others write keys into texts
    path = fresh(folder, 'keys.pth')
    torch.save(WRAPPINGS[wrapping]({**weights, **extra}), path)
    read = load(path)
    assert read is None or not missing - set(extra)
    for name in (read or {}).keys() - set(extra):
        assert same(read[name], WEIGHTS[name])
    if not missing and not extra:
        assert read is not None


@cases('checkpoint reader', 100)(
    st.lists(st.sampled_from(['state_dict', 'model', 'module', 'model_ema']), max_size=5),
    st.dictionaries(st.sampled_from(['meta', 'epoch', 'optimizer', 'state_dict']), ANYTHING),
)
def test_wrappers_in_wrappers_are_opened(folder, wrappers, beside):  # fmt: skip
    content = WEIGHTS
    for wrapper in wrappers:
        content = {**{key: value for key, value in beside.items() if key != 'state_dict'}, wrapper: content}
    path = fresh(folder, 'wrapped.pth')
    torch.save(content, path)
    try:
        torch.load(path, weights_only=True)
    except pickle.UnpicklingError:  # what is beside the weights is more than weights
        assert_refused_or_exact(path)
        return
    assert assert_refused_or_exact(path)


# ----------------------------------------------------------------------------------------------- formats and tables


@cases('checkpoint reader', 150)(
    st.sampled_from(
        [(kind, source, layout) for kind in KINDS for source in KINDS[kind][2] for layout in KINDS[kind][3]]
    ),
    st.sampled_from(['.pth', '.safetensors']),
    st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
    st.sampled_from(list(WRAPPINGS)),
)
def test_every_format_comes_back_the_same(folder, of, suffix, dtype, wrapping):
    kind, source, layout = of
    sources, model = KINDS[kind][2], random_model(as_kind(kind, FOUR), pretrain_img_size=64)
    weights = {name: value.to(dtype) for name, value in model.state_dict().items()}
    path = fresh(folder, f'format{suffix}')
    source_path = fresh(folder, 'source.pth')
    torch.save(WRAPPINGS[wrapping](sources[source](weights)), source_path)
    converted, _ = convert(read_checkpoint(source_path), layout)
    save_checkpoint(converted, path)
    read = read_checkpoint(path)
    assert set(read) == set(converted)
    back = backbone_weights(read)
    token = {name for name in back if name.startswith('cls_token.')}
    assert bool(token) == (kind == 'v1' and layout != 'mmdet' and source in CLASSIFIERS)
    for name in weights:
        assert back[name].dtype == dtype
        assert torch.equal(back[name], weights[name]), name


@cases('checkpoint reader', 200)(archs(first_patches=(1, 2, 4)), st.data())
def test_any_sizes_come_back_the_same(arch, data):
    kind, settings = 'linear' if arch.get('linear') else 'v2' if 'strides' in arch else 'v1', {}
    if kind == 'v1':
        arch = {**arch, 'patch_sizes': (4, *arch['patch_sizes'][1:])}
        least = int(np.prod(arch['patch_sizes']))
        sides = st.integers(least, least + 90)
        settings = {'pretrain_img_size': data.draw(st.one_of(sides, st.tuples(sides, sides)), label='size')}
    weights = random_model(arch, **settings).state_dict()
    layout = data.draw(st.sampled_from(KINDS[kind][3]), label='layout')
    back, _ = convert(convert(weights, layout)[0], 'pvt_mm', **settings)
    assert set(back) == set(weights)
    assert all(torch.equal(back[name], value) for name, value in weights.items())


@cases('checkpoint reader', 150)(
    st.one_of(st.just((384, 384)), st.tuples(st.integers(8, 420), st.integers(8, 420))),
    st.tuples(st.integers(8, 420), st.integers(8, 420)),
    st.sampled_from(['pvt_mm', 'mmdet', 'authors']),
    st.booleans(),
)
def test_tables_of_any_grid_are_resampled_exactly(folder, theirs, ours, layout, hint):
    source = random_model(pretrain_img_size=theirs)
    path, model = fresh(folder, 'tables.pth'), random_model(pretrain_img_size=ours)
    torch.save(convert(source.state_dict(), layout)[0], path)
    grids = [[tuple(stage.pos_embed.table.shape[1:3]) for stage in one.stages] for one in (source, model)]
    counts = [[height * width for height, width in sides] for sides in grids]
    square, fits_ours = all(height == width for height, width in grids[0]), counts[0] == counts[1]
    if layout != 'pvt_mm' and not hint and fits_ours and not square and grids[0] != grids[1]:
        return  # nothing tells them apart: they are taken for those of the model
    try:
        load_pretrained(model, str(path), pretrain_img_size=theirs if hint else None)
    except CheckpointError as refused:
        assert not hint
        assert layout != 'pvt_mm'
        assert not square or fits_ours
        assert_clear(str(refused))
        return
    for one, other in zip(model.stages, source.stages, strict=True):
        table, grid = other.pos_embed.table.permute(0, 3, 1, 2), one.pos_embed.table.shape[1:3]
        if grid != table.shape[2:]:
            table = F.interpolate(table, grid, mode='bilinear', align_corners=False)
        assert torch.equal(one.pos_embed.table, table.permute(0, 2, 3, 1))
    for name, value in source.state_dict().items():
        assert name.endswith('table') or torch.equal(model.state_dict()[name], value)


@cases('checkpoint reader', 60)(st.integers(0, 400), st.integers(0, 400), st.sampled_from(['mmdet', 'authors']))
def test_a_size_that_the_tables_are_not_for_is_refused(folder, H, W, layout):
    path = fresh(folder, 'hint.pth')
    torch.save(convert(WEIGHTS, layout)[0], path)
    read = load(path, pretrain_img_size=(H, W))
    assert (read is not None) == ((H // 4) * (W // 4) == 64 and (H // 8) * (W // 8) == 16)
    if read is not None and (H // 4, W // 4) == (8, 8):
        assert all(torch.equal(read[name], value) for name, value in WEIGHTS.items())


@cases('checkpoint reader', 40)(st.dictionaries(st.text(max_size=30), st.integers(0, 2), min_size=1, max_size=4))
def test_safetensors_of_another_kind_are_refused(folder, content):
    path = fresh(folder, 'other.safetensors')
    path.write_bytes(safetensors.torch.save({key: torch.ones([2] * dims) for key, dims in content.items()}))
    assert load(path) is None
