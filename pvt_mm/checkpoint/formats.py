"""Names and shapes of PVT's weights in every format, and pure functions on state dicts that translate between them.

The formats are recognized by their keys: ours, the authors' releases (classification and detection), MMDetection's
built-in PVT, and Hugging Face's ``PvtModel`` and ``PvtForImageClassification``, each alone or inside a detector or
segmentor. :data:`NAMES` is the dictionary between them: to add a format, add a column.
"""

import functools
import itertools
import math
import operator
import re
from collections import Counter
from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from pvt_mm.utils.errors import CheckpointError
from pvt_mm.utils.text import shorten

# One column a format, one row a parameter. {s} is the stage and {l} the layer counted from 0, {s1} and {l1} from 1, {p}
# is weight or bias. MMDetection stacks q, k and v, Hugging Face keeps them apart, the authors and we stack k and v. The
# other formats have the class token's position embedding as the first entry of the last stage's table.
# fmt: off
FORMATS = ('pvt_mm', 'authors', 'mmdet', 'huggingface')
_OUTER_NAMES = (
    ('stages.{s}.pos_embed.table',       'pos_embed{s1}',             'layers.{s}.1.0.pos_embed',    'encoder.patch_embeddings.{s}.position_embeddings'),  # noqa: E501
    ('stages.{s}.patch_embed.proj.{p}',  'patch_embed{s1}.proj.{p}',  'layers.{s}.0.projection.{p}', 'encoder.patch_embeddings.{s}.projection.{p}'),  # noqa: E501
    ('stages.{s}.patch_embed.norm.{p}',  'patch_embed{s1}.norm.{p}',  'layers.{s}.0.norm.{p}',       'encoder.patch_embeddings.{s}.layer_norm.{p}'),  # noqa: E501
    ('cls_token.token',                  'cls_token',                 None,                         'encoder.patch_embeddings.{s}.cls_token'),  # noqa: E501
    ('cls_token.pos_embed',              None,                        None,                         None),
    ('cls_token.norm.{p}',               'norm.{p}',                  None,                         'encoder.layer_norm.{p}'),  # noqa: E501
)
_LAYER_PREFIXES = ('stages.{s}.layers.{l}.', 'block{s1}.{l}.', 'layers.{s}.1.{l1}.', 'encoder.block.{s}.{l}.')
_LAYER_NAMES = (
    ('norm1.{p}',        'norm1.{p}',      'norm1.{p}',              'layer_norm_1.{p}'),
    ('attn.q.{p}',       'attn.q.{p}',     None,                     'attention.self.query.{p}'),
    ('attn.kv.{p}',      'attn.kv.{p}',    None,                     None),
    ('attn.k.{p}',       None,             None,                     'attention.self.key.{p}'),
    ('attn.v.{p}',       None,             None,                     'attention.self.value.{p}'),
    ('attn.qkv.{p}',     None,             'attn.attn.in_proj_{p}',  None),
    ('attn.sr.proj.{p}', 'attn.sr.{p}',    'attn.sr.{p}',            'attention.self.sequence_reduction.{p}'),
    ('attn.sr.norm.{p}', 'attn.norm.{p}',  'attn.norm.{p}',          'attention.self.layer_norm.{p}'),
    ('attn.proj.{p}',    'attn.proj.{p}',  'attn.attn.out_proj.{p}', 'attention.output.dense.{p}'),
    ('norm2.{p}',        'norm2.{p}',      'norm2.{p}',              'layer_norm_2.{p}'),
    ('ffn.fc1.{p}',      'mlp.fc1.{p}',    'ffn.layers.0.{p}',       'mlp.dense1.{p}'),
    ('ffn.fc2.{p}',      'mlp.fc2.{p}',    'ffn.layers.3.{p}',       'mlp.dense2.{p}'),
)
# fmt: on
NAMES = (
    *_OUTER_NAMES,
    *(tuple(name and prefix + name for prefix, name in zip(_LAYER_PREFIXES, row, strict=True)) for row in _LAYER_NAMES),
)
# The prefixes of the backbone and of the head in a classifier.
CLASSIFIERS = {
    'pvt_mm': ('backbone.', 'head.fc.'),
    'authors': ('', 'head.'),
    'huggingface': ('pvt.', 'classifier.'),
}
_TABLE, _KERNEL = 'pos_embed.table', 'patch_embed.proj.weight'
_FIRST_KERNEL = f'stages.0.{_KERNEL}'
# Channels and layers of the stages of the released models; the key is the ``arch`` of a PVT, and the size of a PVTv2.
_CHANNELS = (64, 128, 320, 512)
SIZES = {
    'tiny': (_CHANNELS, (2, 2, 2, 2)),
    'small': (_CHANNELS, (3, 4, 6, 3)),
    'medium': (_CHANNELS, (3, 4, 18, 3)),
    'large': (_CHANNELS, (3, 8, 27, 3)),
    'small_wide': ((89, 178, 445, 712), (3, 4, 6, 3)),
}
VERSION_2_SIZES = {
    'B0': (32, (2, 2, 2, 2)),
    'B1': (64, (2, 2, 2, 2)),
    'B2': (64, (3, 4, 6, 3)),
    'B3': (64, (3, 4, 18, 3)),
    'B4': (64, (3, 8, 27, 3)),
    'B5': (64, (3, 6, 40, 3)),
}
# The depth-wise convolution in each layer of a PVTv2, as the authors, MMDetection, timm and Hugging Face name it. The
# groups are what the names of the layer's parameters begin with, and the stage.
_VERSION_2_LAYER = re.compile(
    r'((?:.*\.)?(?:block|layers\.|stages\.)(\d+)(?:\.1)?\.(?:blocks\.)?\d+\.)'
    r'(?:mlp\.dwconv(?:\.dwconv)?|ffn\.layers\.1)\.weight'
)


def find_backbone(state_dict: Mapping[str, Tensor], prefix: str | None = None) -> tuple[str, str]:
    """Returns the format (of :data:`FORMATS`) and the prefix of the one PVT in a state dict.

    Raises:
        CheckpointError: There is none, or more than one; the message names where. Or it is a PVTv2.
    """
    wanted = '' if not prefix else prefix.rstrip('.') + '.'
    _refuse_version_2(state_dict, wanted)
    markers = {layout: _translate(_FIRST_KERNEL, 'pvt_mm', layout) or '' for layout in FORMATS}
    found = [
        (layout, key.removesuffix(marker))
        for layout, marker in markers.items()
        for key in state_dict
        if f'.{key}'.endswith(f'.{marker}') and key.removesuffix(marker).startswith(wanted)
    ]
    if len(found) == 1:
        return found[0]
    where = f' under the prefix {prefix!r}' if prefix else ''
    if found:
        prefixes = shorten(repr(before) for _, before in found)
        raise CheckpointError(f'it holds more than one PVT{where}, at {prefixes}: choose one with prefix=...')
    raise CheckpointError(f'it holds no PVT{where} in a known format; its keys are {shorten(state_dict)}')


def layout_at(state_dict: Mapping[str, Tensor], prefix: str) -> str | None:
    """Returns the format of the PVT whose keys begin with ``prefix`` and nothing else; None without one.

    It need not be complete: some leave out the first kernel, for images of other channels.
    """
    parts = itertools.product((_FIRST_KERNEL, 'stages.0.layers.0.norm1.weight'), FORMATS)
    names = ((layout, _translate(part, 'pvt_mm', layout)) for part, layout in parts)
    return next((layout for layout, name in names if f'{prefix}{name}' in state_dict), None)


def backbone_weights(
    state_dict: Mapping[str, Tensor],
    prefix: str | None = None,
    pretrain_img_size: int | tuple[int, int] | None = None,
    grids: list[tuple[int, int]] | None = None,
) -> dict[str, Tensor]:
    """Returns the PVT in a state dict of any format, with its class token where it has one, in our format.

    ``prefix`` and ``pretrain_img_size`` are those of :func:`~pvt_mm.checkpoint.loading.load_pretrained`; ``grids`` are
    the (H, W) grids, stage by stage, to assume where the counts of position embeddings are not square.

    Raises:
        CheckpointError: There is no PVT, more than one, or a key that is not a parameter of PVT.
    """
    layout, prefix = find_backbone(state_dict, prefix)
    head = _head_prefix(layout, prefix)
    names = _our_names(state_dict, layout, prefix)
    unknown = [
        key for key in state_dict if key.startswith(prefix) and key not in names and not (head and key.startswith(head))
    ]
    if unknown:
        raise CheckpointError(f'it has keys that are not parameters of PVT ({layout} format): {shorten(unknown)}')
    weights = {name: state_dict[key] for key, name in names.items()}
    if layout != 'pvt_mm':
        _check_tables(weights)
    return _in_our_shapes(weights, layout, pretrain_img_size, grids)


def known_weights(
    state_dict: Mapping[str, Tensor], layout: str, prefix: str, grids: list[tuple[int, int]]
) -> tuple[dict[str, Tensor], list[str]]:
    """Returns the PVT of a format at ``prefix`` in a state dict, in our format, and the keys that it has there.

    It may be incomplete, and other keys may begin with ``prefix``, too. The keys are also those of its head.

    Raises:
        CheckpointError: It is a PVTv2, or a parameter cannot be of any PVT with those grids or square ones.
    """
    _refuse_version_2(state_dict, prefix)
    names, head = _our_names(state_dict, layout, prefix), _head_prefix(layout, prefix)
    weights = {name: state_dict[key] for key, name in names.items()}
    heads = [f'{head}{kind}' for kind in ('weight', 'bias') if head and layout != 'pvt_mm']
    return _in_our_shapes(weights, layout, None, grids), [*names, *(key for key in heads if key in state_dict)]


def _our_names(state_dict: Mapping[str, Tensor], layout: str, prefix: str) -> dict[str, str]:
    """Returns our name of each key under ``prefix`` that is a parameter of PVT in the format ``layout``."""
    names = {
        key: _translate(key.removeprefix(prefix), layout, 'pvt_mm') for key in state_dict if key.startswith(prefix)
    }
    return {key: name for key, name in names.items() if name is not None}


def _in_our_shapes(
    weights: dict[str, Tensor],
    layout: str,
    pretrain_img_size: int | tuple[int, int] | None,
    grids: list[tuple[int, int]] | None,
) -> dict[str, Tensor]:
    if layout == 'pvt_mm':
        return _from_former_format(weights)
    return _stack_keys_and_values(_shape_tables(weights, pretrain_img_size, grids))


def head_weights(state_dict: Mapping[str, Tensor], prefix: str | None = None) -> dict[str, Tensor]:
    """Returns the head of the classifier in a state dict in our format; an empty dict where it has none."""
    head = _head_prefix(*find_backbone(state_dict, prefix))
    names = {f'{head}{kind}': f'head.fc.{kind}' for kind in ('weight', 'bias')} if head else {}
    return {ours: state_dict[key] for key, ours in names.items() if key in state_dict}


def _refuse_version_2(state_dict: Mapping[str, Tensor], prefix: str) -> None:
    layers = [_VERSION_2_LAYER.fullmatch(key) for key in state_dict if key.startswith(prefix)]
    depths: Counter[int] = Counter(int(layer[2]) for layer in layers if layer)
    first = next((layer for layer in layers if layer), None)
    if first is None:
        return

    def parameter(*names: str) -> Tensor | None:
        return next((state_dict[first[1] + name] for name in names if first[1] + name in state_dict), None)

    norm = parameter('norm1.weight', 'layer_norm_1.weight')
    if norm is None or state_dict[first[0]].shape[0] != 8 * norm.numel():
        return  # another model with such layers, for example SegFormer
    sizes = norm.numel(), tuple(depths[stage] for stage in sorted(depths))
    name = next((f'-{name}' for name, known in VERSION_2_SIZES.items() if known == sizes), '')
    reduction = parameter('attn.sr.weight', 'attention.spatial_reduction.weight')
    if reduction is not None and reduction.shape[-1] == 1:
        name += '-Li'
    raise CheckpointError(
        f'it is a PVTv2{name}, and pvt_mm.PVT is version 1: use weights of a PVT, or the model of MMDetection, '
        'PyramidVisionTransformerV2'
    )


def _head_prefix(layout: str, before: str) -> str | None:
    """Returns the prefix of a classifier's head; None where the backbone's prefix is not a classifier's."""
    if layout not in CLASSIFIERS:
        return None
    backbone, head = CLASSIFIERS[layout]
    return before.removesuffix(backbone) + head if before.endswith(backbone) else None


def _from_former_format(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns weights of ours with kernels (out, in, P, P), which used to be matrices (out, P * P * in)."""
    weights = dict(weights)
    for name, value in weights.items():
        if value.dim() != 2 or not name.endswith((_KERNEL, 'attn.sr.proj.weight')):
            continue
        stage, size = int(name.split('.')[1]), value.shape[1]
        norm = weights.get(f'stages.{stage if ".attn." in name else stage - 1}.patch_embed.norm.weight')
        if name == _FIRST_KERNEL:  # of 3 channels, or else of 4 x 4 pixels
            channels = 3 if 3 * math.isqrt(size // 3) ** 2 == size else size // 16
        elif norm is not None:
            channels = norm.numel()
        else:
            continue
        side = math.isqrt(size // max(channels, 1))
        if side**2 * channels != size:
            raise CheckpointError(f'{name} has shape {tuple(value.shape)}, which is no kernel of square patches')
        weights[name] = value.unflatten(1, (side, side, channels)).permute(0, 3, 1, 2).contiguous()
    return weights


def _shape_tables(
    weights: Mapping[str, Tensor], pretrain_img_size: int | tuple[int, int] | None, grids: list[tuple[int, int]] | None
) -> dict[str, Tensor]:
    """Returns the weights with tables (1, H, W, C) from flat ones, and the class token's entry on its own.

    ``pretrain_img_size`` needs the tables and kernels of all stages.
    """
    weights = dict(weights)
    flat = {stage: weights.get(f'stages.{stage}.{_TABLE}') for stage in range(_num_stages(weights))}
    tables = {stage: table for stage, table in flat.items() if table is not None and table.dim() == 3}
    if not tables:
        return weights
    counts = [table.shape[1] for table in tables.values()]
    if pretrain_img_size is not None:
        patch_sizes = [weights[f'stages.{stage}.{_KERNEL}'].shape[-1] for stage in tables]
        found = _match_grids(counts, [_grids_of_image(patch_sizes, pretrain_img_size)], pretrain_img_size)
    else:
        # isqrt floors, so N and N + 1 entries, with the class token's, have the same root.
        square = [(math.isqrt(count),) * 2 for count in counts]
        models = [(grids or [])[stage] for stage in tables if stage < len(grids or [])]
        found = _match_grids(counts, [square, models] if models != square else [square], None)
    for (stage, table), (H, W) in zip(tables.items(), found, strict=True):
        token, table = table.tensor_split([table.shape[1] - H * W], dim=1)
        weights[f'stages.{stage}.{_TABLE}'] = table.unflatten(1, (H, W))
        if token.shape[1] and 'cls_token.token' in weights:
            weights['cls_token.pos_embed'] = token
    return weights


def _check_tables(weights: Mapping[str, Tensor]) -> None:
    """Raises a CheckpointError if a stage has no flat table of position embeddings, or no kernel of patches."""
    problems = []
    for stage, (part, dims) in itertools.product(range(_num_stages(weights)), ((_TABLE, 3), (_KERNEL, 4))):
        name = f'stages.{stage}.{part}'
        if name not in weights:
            problems.append(f'{name} is missing')
        elif weights[name].dim() != dims:
            problems.append(f'{name} has shape {tuple(weights[name].shape)}, not {dims} dimensions')
    if problems:
        raise CheckpointError(f'it does not hold a complete PVT (names in our format): {shorten(problems)}')


def _match_grids(
    counts: list[int], candidates: list[list[tuple[int, int]]], pretrain_img_size: int | tuple[int, int] | None
) -> list[tuple[int, int]]:
    """Returns the candidate whose (H, W) grids have as many entries as the flat tables of the stages.

    The last table may have the class token's entry first.
    """
    areas = counts, [*counts[:-1], counts[-1] - 1]
    fitting = [sides for sides in candidates if [H * W for H, W in sides] in areas]
    if len(fitting) == 1:
        return fitting[0]
    if pretrain_img_size is not None:
        raise CheckpointError(f'position embeddings of {counts} entries are not for {pretrain_img_size} pixels')
    reason = 'fit square images and those of the model alike' if fitting else 'are no square grids'
    raise CheckpointError(
        f'its position embeddings have {counts} entries, which {reason}: set the size in pixels of the images that '
        'they were trained on, pretrain_img_size=(H, W)'
    )


def _grids_of_image(patch_sizes: list[int], size: int | tuple[int, int]) -> list[tuple[int, int]]:
    """Returns the (H, W) grid of tokens of each stage for an image of ``size`` pixels."""
    sides = tuple(size) if isinstance(size, (list, tuple)) else (size,) * 2
    strides = list(itertools.accumulate(patch_sizes, operator.mul))
    if len(sides) != 2 or not all(isinstance(side, int) and side >= strides[-1] for side in sides):
        raise CheckpointError(f'pretrain_img_size must be an int or (H, W) of at least {strides[-1]}, got {size!r}')
    return [(sides[0] // stride, sides[1] // stride) for stride in strides]


def _stack_keys_and_values(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    stacked = {}
    for name, value in weights.items():
        if '.attn.qkv.' in name:
            q, kv = value.tensor_split([value.shape[0] // 3])
            stacked[name.replace('.qkv.', '.q.')], stacked[name.replace('.qkv.', '.kv.')] = q, kv
        elif '.attn.k.' in name and name.replace('.k.', '.v.') in weights:
            stacked[name.replace('.k.', '.kv.')] = torch.cat([value, weights[name.replace('.k.', '.v.')]])
        elif (
            '.attn.v.' not in name or name.replace('.v.', '.k.') not in weights
        ):  # MMDetection has convolutions of one pixel for the linear layers of the FFN
            stacked[name] = value.flatten(1) if '.ffn.' in name and value.dim() == 4 else value
    return stacked


def fit_weights(weights: dict[str, Tensor], target: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Returns weights (ours) with the tables, input channels and stages of a state dict, and what was changed."""
    depth = _num_stages(target)
    unused = {
        'the class token, which the model does not have': [n for n in weights if _stage(n) is None and n not in target],
        'the stages after the last output': [name for name in weights if (_stage(name) or 0) >= depth],
    }
    notes = [f'dropped {what}: {shorten(names)}' for what, names in unused.items() if names]
    dropped = {name for names in unused.values() for name in names}
    weights = {name: value for name, value in weights.items() if name not in dropped}
    for name in (name for name in weights if name.endswith(_TABLE) and name in target):
        source, size = weights[name].shape[1:3], target[name].shape[1:3]
        if weights[name].dim() == 4 and source != size and _holds_floats(weights[name]):
            weights[name] = resample_table(weights[name].float(), (size[0], size[1]))
            notes.append(f'resampled {name} from {source[0]} x {source[1]} to {size[0]} x {size[1]}')
    kernel, channels = weights.get(_FIRST_KERNEL), target[_FIRST_KERNEL].shape[1]
    if kernel is not None and kernel.dim() == 4 and kernel.shape[1] == 3 != channels:
        weights[_FIRST_KERNEL] = (kernel.mean(1, keepdim=True) * 3 / channels).expand(-1, channels, -1, -1)
        notes.append(f'averaged the 3 input channels of {_FIRST_KERNEL} for {channels}')
    return weights, notes


def resample_table(table: Tensor, size: tuple[int, int]) -> Tensor:
    """Resamples position embeddings (1, H, W, C) to (1, *size, C) as the model does (section 4.2)."""
    table = F.interpolate(table.permute(0, 3, 1, 2), size=size, mode='bilinear', align_corners=False)
    return table.permute(0, 2, 3, 1)


def check_sizes(weights: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    """Checks the sizes of weights (ours) of a released PVT against those of the model's, ``target``.

    Raises:
        CheckpointError: They differ; the message has both names. Of weights of other sizes nothing is said.
    """
    found, wanted = _sizes(weights), _sizes(target)
    depth = len(wanted[0])
    arch = next((arch for arch, sizes in SIZES.items() if sizes == found), None)
    if arch is None or (found[0][:depth], found[1][:depth]) == wanted:
        return
    other = next((f"is arch='{arch}'" for arch, sizes in SIZES.items() if sizes == wanted), 'has other sizes')
    raise CheckpointError(f"it is of arch='{arch}', and the model {other}: set arch='{arch}', or use other weights")


def _sizes(weights: Mapping[str, Tensor]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the channels and the number of layers of each stage."""
    depths: Counter[int] = Counter()
    for name in weights:
        if name.endswith('.norm1.weight'):
            depths[int(name.split('.')[1])] += 1
    stages = range(_num_stages(weights))
    kernels = [weights.get(f'stages.{stage}.{_KERNEL}') for stage in stages]
    return tuple(0 if one is None else one.shape[0] for one in kernels), tuple(depths[stage] for stage in stages)


def check_weights(weights: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    """Raises a CheckpointError that lists every key that is missing, unknown, or not of ``target``'s shape and kind."""
    missing = [name for name in target if name not in weights]
    unknown = [name for name in weights if name not in target]
    misshapen, mistyped = [], []
    for name, value in weights.items():
        if name in target and value.shape != target[name].shape:
            misshapen.append(f'{name} {tuple(value.shape)}, not {tuple(target[name].shape)}')
        if name in target and target[name].is_floating_point() and not _holds_floats(value):
            mistyped.append(f'{name} ({value.dtype}, {value.layout}, {value.device})')
    kinds = {'missing': missing, 'unknown': unknown, 'of another shape': misshapen, 'not plain floats': mistyped}
    problems = [f'{len(names)} {title}: {shorten(names)}' for title, names in kinds.items() if names]
    if problems:
        raise CheckpointError(f'it does not fit the model; {"; ".join(problems)}')


def _holds_floats(value: Tensor) -> bool:
    return value.is_floating_point() and value.layout == torch.strided and not value.is_meta


def convert(
    state_dict: Mapping[str, Tensor],
    layout: str,
    prefix: str | None = None,
    pretrain_img_size: int | tuple[int, int] | None = None,
) -> tuple[dict[str, Tensor], list[str]]:
    """Returns a checkpoint's weights with its PVT in the format ``layout``, and the keys that were dropped.

    The other parts of a detector or segmentor are kept as they are, and so is the head of a classifier, except in
    ``mmdet``, which has no class token. ``layout`` is ``pvt_mm``, ``authors`` or ``mmdet``; for ``prefix`` and
    ``pretrain_img_size`` see :func:`~pvt_mm.checkpoint.loading.load_pretrained`.

    Raises:
        CheckpointError: There is no PVT, more than one, or one with missing, unknown or misshapen keys.
    """
    source, before = find_backbone(state_dict, prefix)
    weights, head = backbone_weights(state_dict, prefix, pretrain_img_size), head_weights(state_dict, prefix)
    token = [name for name in weights if _stage(name) is None]
    complete = len(token) == 4  # token, position, and the norm's weight and bias
    if not complete:
        weights = {name: value for name, value in weights.items() if name not in token}
    _check_complete(weights)
    converted = weights if layout == 'pvt_mm' else _to_layout(weights, layout)
    heads = [key for key in state_dict if head and key.startswith(_head_prefix(source, before) or '')]
    others = [key for key in state_dict if not key.startswith(before) and key not in heads]
    if head and complete and layout in CLASSIFIERS:
        backbone, scores = CLASSIFIERS[layout]
        named = {name.replace('head.fc.', scores): value for name, value in head.items()}
        return {**{f'{backbone}{name}': value for name, value in converted.items()}, **named}, others
    dropped = heads if complete and layout in CLASSIFIERS else token + heads
    if not before.endswith('backbone.'):
        return converted, dropped + others
    outer = before.removesuffix('backbone.')  # DDP's "module.", for one
    kept = {key.removeprefix(outer): state_dict[key] for key in others}
    return {**{f'backbone.{name}': value for name, value in converted.items()}, **kept}, dropped


def _check_complete(weights: Mapping[str, Tensor]) -> None:
    """Raises a CheckpointError that lists the keys that a PVT of these sizes has and ``weights`` (ours) lack."""
    try:
        shapes = _expected_shapes(weights)
    except KeyError as error:
        raise CheckpointError(f'it does not hold a complete PVT; missing: {error.args[0]}') from None
    check_weights(weights, {name: torch.empty(shape, device='meta') for name, shape in shapes.items()})


def _expected_shapes(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every parameter of the PVT whose sizes are those of the given weights (ours)."""
    tables: dict[str, tuple[int, ...]] = {}
    modules: dict[str, tuple[int, ...]] = {}
    channels = weights[_FIRST_KERNEL].shape[1]
    for s in range(_num_stages(weights)):
        stage, first = f'stages.{s}.', f'stages.{s}.layers.0.'
        tables[stage + _TABLE] = tuple(weights[stage + _TABLE].shape)
        C, P = tables[stage + _TABLE][-1], weights[stage + _KERNEL].shape[-1]
        modules |= {f'{stage}patch_embed.proj': (C, channels, P, P), f'{stage}patch_embed.norm': (C,)}
        hidden, reduction = weights[f'{first}ffn.fc1.weight'].shape[0], weights.get(f'{first}attn.sr.proj.weight')
        layer = {'attn.q': (C, C), 'attn.kv': (2 * C, C), 'attn.proj': (C, C), 'norm1': (C,), 'norm2': (C,)}
        layer |= {'ffn.fc1': (hidden, C), 'ffn.fc2': (C, hidden)}
        if reduction is not None:
            layer |= {'attn.sr.proj': (C, C, *reduction.shape[2:]), 'attn.sr.norm': (C,)}
        depth = len({name.split('.')[3] for name in weights if name.startswith(f'{stage}layers.')})
        modules |= {f'{stage}layers.{i}.{name}': shape for i in range(depth) for name, shape in layer.items()}
        channels = C
    if any(_stage(name) is None for name in weights):
        tables |= {'cls_token.token': (1, 1, channels), 'cls_token.pos_embed': (1, 1, channels)}
        modules['cls_token.norm'] = (channels,)
    kernels = {f'{name}.weight': shape for name, shape in modules.items()}
    return {**tables, **kernels, **{f'{name}.bias': shape[:1] for name, shape in modules.items()}}


def _to_layout(weights: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    last, converted = f'stages.{_num_stages(weights) - 1}.{_TABLE}', {}
    for name, value in weights.items():
        if layout == 'mmdet' and '.attn.q.' in name:
            value = torch.cat([value, weights[name.replace('.q.', '.kv.')]])
            name = name.replace('.q.', '.qkv.')
        theirs = _translate(name, 'pvt_mm', layout)
        if theirs is None:
            continue  # MMDetection has no class token, the authors its position in the last table
        if name.endswith(_TABLE):
            value = value.flatten(1, 2)
            if layout == 'authors' and name == last:
                # NOTE: the authors' last table has the class token's entry first; their dense models ignore it.
                first = weights.get('cls_token.pos_embed', value.new_zeros(1, 1, value.shape[-1]))
                value = torch.cat([first, value], dim=1)
        elif layout == 'mmdet' and '.ffn.' in name and name.endswith('.weight'):
            value = value[..., None, None]
        converted[theirs] = value.contiguous()
    return converted


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    numbered = re.sub(r'\\{(\w+)\\}', r'(?P<\1>[0-9]+)', re.escape(template))
    return re.compile(numbered.replace('(?P<p>[0-9]+)', '(?P<p>weight|bias)'))


def _translate(key: str, source: str, target: str) -> str | None:
    """Returns the name in ``target`` of a key of ``source``, or None where either format has no such parameter."""
    for row in NAMES:
        theirs, wanted = row[FORMATS.index(source)], row[FORMATS.index(target)]
        if theirs and wanted and (found := _pattern(theirs).fullmatch(key)):
            fields = found.groupdict()
            stage = int(fields['s']) if 's' in fields else int(fields.get('s1', 1)) - 1
            layer = int(fields['l']) if 'l' in fields else int(fields.get('l1', 1)) - 1
            return wanted.format(s=stage, s1=stage + 1, l=layer, l1=layer + 1, p=fields.get('p'))
    return None


def _stage(name: str) -> int | None:
    """Returns the stage that a parameter of ours belongs to, None for the class token's."""
    return int(name.split('.')[1]) if name.startswith('stages.') else None


def _num_stages(weights: Iterable[str]) -> int:
    return 1 + max(stage for stage in map(_stage, weights) if stage is not None)
