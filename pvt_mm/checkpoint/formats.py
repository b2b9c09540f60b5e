"""Pure functions on state dicts that find a PVT or PVTv2 of any format, and translate it.

The names are in :mod:`pvt_mm.checkpoint.names`; here are the shapes.
"""

import itertools
import math
import operator
from collections import Counter
from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from pvt_mm.checkpoint.names import SEGFORMER, V1, V2, VERSIONS, Version, WeightSizes
from pvt_mm.utils.errors import CheckpointError
from pvt_mm.utils.text import shorten

_TABLE, _KERNEL = 'pos_embed.table', 'patch_embed.proj.weight'
_FIRST_KERNEL = f'stages.0.{_KERNEL}'


def find_backbone(
    state_dict: Mapping[str, Tensor], prefix: str | None = None, target: Mapping[str, Tensor] | None = None
) -> tuple[Version, str, str]:
    """Returns the version, the format and the prefix of the one PVT or PVTv2 in a state dict.

    ``target`` is the state dict of the model, whose version it has where its keys do not tell.

    Raises:
        CheckpointError: There is none, or more than one; the message names where.
    """
    wanted = '' if not prefix else prefix.rstrip('.') + '.'
    found = [(*layout, before) for before, layout in locate(state_dict, wanted, target).items()]
    if len(found) == 1:
        return found[0]
    where = f' under the prefix {prefix!r}' if prefix else ''
    if found:
        prefixes = shorten(repr(before) for _, _, before in found)
        raise CheckpointError(f'it holds more than one PVT or PVTv2{where}, at {prefixes}: choose one with prefix=...')
    raise CheckpointError(f'it holds no PVT or PVTv2{where} in a known format; its keys are {shorten(state_dict)}')


def locate(
    state_dict: Iterable[str], prefix: str, target: Iterable[str] | None = None
) -> dict[str, tuple[Version, str]]:
    """Returns the version and format of each PVT or PVTv2 under ``prefix``, which may be incomplete, by its prefix.

    They are those that know most of its keys; of two versions that know as many, that of ``target`` (a model's keys).
    """
    keys = [key for key in state_dict if key.startswith(prefix)]
    wanted = _version(target) if target else None
    candidates: dict[str, list[tuple[Version, str]]] = {}
    for version in sorted(VERSIONS, key=lambda version: version is not wanted):
        for before, layout in version.locate(keys):
            candidates.setdefault(before, []).append((version, layout))
    found = {}
    for before, layouts in candidates.items():
        known = [len(_our_names(keys, version, layout, before)) for version, layout in layouts]
        found[before] = layouts[known.index(max(known))]
    return found


def _version(target: Iterable[str]) -> Version | None:
    """Returns the version of a model with these keys, None of another kind of model."""
    return locate(target, '').get('', (None,))[0]


def backbone_weights(
    state_dict: Mapping[str, Tensor],
    prefix: str | None = None,
    pretrain_img_size: int | tuple[int, int] | None = None,
    target: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Returns the PVT or PVTv2 in a state dict of any format, with a class token where it has one, in our format.

    ``prefix`` and ``pretrain_img_size`` are those of :func:`~pvt_mm.checkpoint.loading.load_pretrained`; ``target`` is
    the model's state dict. Its grids are assumed where the counts of position embeddings are not square.

    Raises:
        CheckpointError: There is none, more than one, one of another version than ``target``, or a key that is not one
            of its parameters.
    """
    version, layout, prefix = find_backbone(state_dict, prefix, target)
    head = _head_prefix(version, layout, prefix)
    names = _our_names(state_dict, version, layout, prefix)
    weights = {name: state_dict[key] for key, name in names.items()}
    unknown = [
        key for key in state_dict if key.startswith(prefix) and key not in names and not (head and key.startswith(head))
    ]
    if unknown:
        raise CheckpointError(
            f'it has keys that are not parameters of {version.name} ({layout} format): {shorten(unknown)}'
        )
    _check_model(weights, version, layout, target)
    if version is V2 and pretrain_img_size is not None:
        raise CheckpointError('pretrain_img_size is for position embeddings, which a PVTv2 does not have: leave it out')
    if version is V1 and layout != 'pvt_mm':
        _check_tables(weights)
    return _in_our_shapes(weights, version, layout, pretrain_img_size, target)


def known_weights(
    state_dict: Mapping[str, Tensor], prefix: str, target: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """Returns the PVT or PVTv2 at ``prefix`` in a state dict, in our format, and the keys that it has there.

    It may be incomplete or absent, and other keys may begin with ``prefix``, too. The keys are also those of its head.

    Raises:
        CheckpointError: It is of another version or (not of our format) of another arch than ``target``, the model's
            state dict; or a parameter cannot be of any PVT with those grids or square ones.
    """
    found = locate(state_dict, prefix, target).get(prefix)
    if found is None:
        return {}, []
    version, layout = found
    names, head = _our_names(state_dict, version, layout, prefix), _head_prefix(version, layout, prefix)
    weights = {name: state_dict[key] for key, name in names.items()}
    _check_model(weights, version, layout, target)
    weights = _in_our_shapes(weights, version, layout, None, target)
    if layout != 'pvt_mm':
        check_sizes(weights, target)
    heads = [f'{head}{kind}' for kind in ('weight', 'bias') if head and layout != 'pvt_mm']
    return weights, [*names, *(key for key in heads if key in state_dict)]


def _our_names(state_dict: Iterable[str], version: Version, layout: str, prefix: str) -> dict[str, str]:
    """Returns our name of each key under ``prefix`` that is a parameter in the format ``layout``."""
    names = {
        key: version.translate(key.removeprefix(prefix), layout, 'pvt_mm')
        for key in state_dict
        if key.startswith(prefix)
    }
    return {key: name for key, name in names.items() if name is not None}


def _in_our_shapes(
    weights: dict[str, Tensor],
    version: Version,
    layout: str,
    pretrain_img_size: int | tuple[int, int] | None,
    target: Mapping[str, Tensor] | None,
) -> dict[str, Tensor]:
    if layout == 'pvt_mm':
        return _from_former_format(weights) if version is V1 else weights
    tables = [value for name, value in (target or {}).items() if name.endswith(_TABLE)]
    grids = [(table.shape[1], table.shape[2]) for table in tables]
    return _stack_keys_and_values(_shape_tables(weights, pretrain_img_size, grids))


def head_weights(state_dict: Mapping[str, Tensor], prefix: str | None = None) -> dict[str, Tensor]:
    """Returns the head of the classifier in a state dict in our format; an empty dict where it has none."""
    head = _head_prefix(*find_backbone(state_dict, prefix))
    names = {f'{head}{kind}': f'head.fc.{kind}' for kind in ('weight', 'bias')} if head else {}
    return {ours: state_dict[key] for key, ours in names.items() if key in state_dict}


def _head_prefix(version: Version, layout: str, before: str) -> str | None:
    """Returns the prefix of a classifier's head; None where the backbone's prefix is not a classifier's."""
    if layout not in version.classifiers:
        return None
    backbone, head = version.classifiers[layout]
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
    weights: Mapping[str, Tensor], pretrain_img_size: int | tuple[int, int] | None, grids: list[tuple[int, int]]
) -> dict[str, Tensor]:
    """Returns the weights with tables (1, H, W, C) from flat ones, and the class token's entry on its own.

    ``pretrain_img_size`` needs the tables and kernels of all stages.
    """
    weights = dict(weights)
    flat = {stage: weights.get(f'stages.{stage}.{_TABLE}') for stage in range(_num_stages(weights))}
    tables = {stage: one for stage, one in flat.items() if one is not None and one.dim() == 3 and _holds_floats(one)}
    if not tables:
        return weights
    counts = [table.shape[1] for table in tables.values()]
    if pretrain_img_size is not None:
        patch_sizes = [weights[f'stages.{stage}.{_KERNEL}'].shape[-1] for stage in tables]
        found = _match_grids(counts, [_grids_of_image(patch_sizes, pretrain_img_size)], pretrain_img_size)
    else:
        # isqrt floors, so N and N + 1 entries, with the class token's, have the same root.
        square = [(math.isqrt(count),) * 2 for count in counts]
        models = [grids[stage] for stage in tables if stage < len(grids)]
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
    """Returns weights with q, and k and v stacked; what cannot be stacked keeps its name, which no model has."""
    stacked = {}
    for name, value in weights.items():
        key, other = name.replace('.attn.v.', '.attn.k.'), name.replace('.attn.k.', '.attn.v.')
        if '.attn.qkv.' in name and value.dim() and _holds_floats(value):
            q, kv = value.tensor_split([value.shape[0] // 3])
            stacked[name.replace('.qkv.', '.q.')], stacked[name.replace('.qkv.', '.kv.')] = q, kv
        elif key != other and _can_stack(weights.get(key), weights.get(other)):
            stacked[key.replace('.k.', '.kv.')] = torch.cat([weights[key], weights[other]])
        else:  # MMDetection has convolutions of one pixel for the linear layers of the FFN
            is_convolution = '.ffn.fc' in name and value.dim() == 4 and _holds_floats(value)
            stacked[name] = value.flatten(1) if is_convolution else value
    return stacked


def _can_stack(key: Tensor | None, value: Tensor | None) -> bool:
    if key is None or value is None or not _holds_floats(key) or not _holds_floats(value):
        return False
    return key.dim() == value.dim() > 0 and key.shape[1:] == value.shape[1:] and key.dtype == value.dtype


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


def _check_model(
    weights: Mapping[str, Tensor], version: Version, layout: str, target: Mapping[str, Tensor] | None
) -> None:
    """Raises a CheckpointError if weights (named as ours) are SegFormer's, or of another version than ``target``."""
    wanted, sizes = _version(target) if target else None, _sizes(weights)
    if not target or not wanted:
        return
    segformer = next((name for name, known in SEGFORMER.items() if known == sizes), None)
    own = wanted is version and _fits(sizes, _sizes(target))
    if version is V2 and layout in ('authors', 'mmdet') and segformer and not own:
        raise CheckpointError(f"it is SegFormer's {segformer}, not a PVTv2: use other weights")
    if version is not wanted:
        arch = _arch(version, sizes)
        of, use = (f' of arch={arch!r}', f', arch={arch!r}') if arch else ('', '')
        raise CheckpointError(
            f"it is a {version.name}{of}, and the model is a {wanted.name}: set type='pvt_mm.{version.name}'{use}, "
            'or use other weights'
        )


def check_sizes(weights: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    """Checks the version and sizes of weights (ours) against those of ``target``, a model's state dict.

    Raises:
        CheckpointError: They differ; the message names both. Of sizes that are not released nothing is said, and
            neither of another kind of model or weights.
    """
    version, layout = locate(weights, '', target).get('', (None, ''))
    if version is None or layout != 'pvt_mm' or not _version(target):
        return
    _check_model(weights, version, 'pvt_mm', target)
    found, wanted = _sizes(weights), _sizes(target)
    arch = _arch(version, found)
    if arch is None or _fits(found, wanted):
        return
    other = f'is arch={_arch(version, wanted)!r}' if _arch(version, wanted) else 'has other sizes'
    raise CheckpointError(f'it is of arch={arch!r}, and the model {other}: set arch={arch!r}, or use other weights')


def _fits(found: WeightSizes, wanted: WeightSizes) -> bool:
    """Whether a model, of all stages or the first ones, has the sizes of weights."""
    return found.first(len(wanted.depths)) == wanted


def _arch(version: Version, sizes: WeightSizes) -> str | None:
    return next((arch for arch, known in version.sizes.items() if known == sizes), None)


def _sizes(weights: Mapping[str, Tensor]) -> WeightSizes:
    def rows(name: str) -> int:
        return len(weights[name]) if name in weights and weights[name].dim() else 0

    depths = Counter(_stage(name) for name in weights if name.endswith('.norm1.weight'))
    stages = range(_num_stages(weights))
    channels = [rows(f'stages.{stage}.{_KERNEL}') for stage in stages]
    hidden = [rows(f'stages.{stage}.layers.0.ffn.fc1.weight') for stage in stages]
    ratios = [E // max(C, 1) for E, C in zip(hidden, channels, strict=True)]
    reductions = [value.shape[2:] for name, value in weights.items() if name.endswith('attn.sr.proj.weight')]
    linear = (1, 1) in reductions if reductions else None
    return WeightSizes(tuple(channels), tuple(depths[stage] for stage in stages), tuple(ratios), linear)


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
    """Returns a checkpoint's weights with its PVT or PVTv2 in the format ``layout``, and the keys that were dropped.

    The other parts of a detector or segmentor are kept as they are, and so is the head of a classifier, except in
    ``mmdet``, which has none. ``layout`` is one of the version's :attr:`~pvt_mm.checkpoint.names.Version.writable`; for
    ``prefix`` and ``pretrain_img_size`` see :func:`~pvt_mm.checkpoint.loading.load_pretrained`.

    Raises:
        CheckpointError: There is no PVT or PVTv2, more than one, one with missing, unknown or misshapen keys, or one
            that the format does not have.
    """
    version, source, before = find_backbone(state_dict, prefix)
    if layout not in version.writable:
        raise CheckpointError(
            f'it is a {version.name}, which is not written in {layout} format: choose {shorten(version.writable)}'
        )
    weights, head = backbone_weights(state_dict, prefix, pretrain_img_size), head_weights(state_dict, prefix)
    token = [name for name in weights if _stage(name) is None]
    complete = version is V2 or len(token) == 4  # token, position, and the norm's weight and bias
    if not complete:
        weights = {name: value for name, value in weights.items() if name not in token}
    _check_complete(weights, version)
    converted = weights if layout == 'pvt_mm' else _to_layout(weights, version, layout)
    heads = [key for key in state_dict if head and key.startswith(_head_prefix(version, source, before) or '')]
    others = [key for key in state_dict if not key.startswith(before) and key not in heads]
    if head and complete and layout in version.classifiers:
        backbone, scores = version.classifiers[layout]
        named = {name.replace('head.fc.', scores): value for name, value in head.items()}
        return {**{f'{backbone}{name}': value for name, value in converted.items()}, **named}, others
    dropped = heads if complete and layout in version.classifiers else token + heads
    if not before.endswith('backbone.'):
        return converted, dropped + others
    outer = before.removesuffix('backbone.')  # DDP's "module.", for one
    kept = {key.removeprefix(outer): state_dict[key] for key in others}
    return {**{f'backbone.{name}': value for name, value in converted.items()}, **kept}, dropped


def _check_complete(weights: Mapping[str, Tensor], version: Version) -> None:
    """Raises a CheckpointError that lists the keys that a model of these sizes has and ``weights`` (ours) lack."""
    try:
        shapes = _expected_shapes(weights, version)
    except KeyError as error:
        raise CheckpointError(
            f'it does not hold a complete {version.name}; missing or misshapen: {error.args[0]}'
        ) from None
    check_weights(weights, {name: torch.empty(shape, device='meta') for name, shape in shapes.items()})


def _expected_shapes(weights: Mapping[str, Tensor], version: Version) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every parameter of the model whose sizes are those of the given weights (ours)."""
    tables: dict[str, tuple[int, ...]] = {}
    modules: dict[str, tuple[int, ...]] = {}
    channels = _length(weights, _FIRST_KERNEL, 1)
    for s in range(_num_stages(weights)):
        stage, first = f'stages.{s}.', f'stages.{s}.layers.0.'
        C, P = _length(weights, stage + _KERNEL), _length(weights, stage + _KERNEL, 3)
        modules |= {f'{stage}patch_embed.proj': (C, channels, P, P), f'{stage}patch_embed.norm': (C,)}
        hidden, reduction = _length(weights, f'{first}ffn.fc1.weight'), weights.get(f'{first}attn.sr.proj.weight')
        layer = {'attn.q': (C, C), 'attn.kv': (2 * C, C), 'attn.proj': (C, C), 'norm1': (C,), 'norm2': (C,)}
        layer |= {'ffn.fc1': (hidden, C), 'ffn.fc2': (C, hidden)}
        if reduction is not None:
            layer |= {'attn.sr.proj': (C, C, *reduction.shape[2:]), 'attn.sr.norm': (C,)}
        if version is V1:
            tables[stage + _TABLE] = (1, *weights[stage + _TABLE].shape[1:3], C)
        else:
            layer['ffn.dwconv'], modules[f'{stage}norm'] = (hidden, 1, 3, 3), (C,)
        depth = len({name.split('.')[3] for name in weights if name.startswith(f'{stage}layers.')})
        modules |= {f'{stage}layers.{i}.{name}': shape for i in range(depth) for name, shape in layer.items()}
        channels = C
    if any(_stage(name) is None for name in weights):
        tables |= {'cls_token.token': (1, 1, channels), 'cls_token.pos_embed': (1, 1, channels)}
        modules['cls_token.norm'] = (channels,)
    kernels = {f'{name}.weight': shape for name, shape in modules.items()}
    return {**tables, **kernels, **{f'{name}.bias': shape[:1] for name, shape in modules.items()}}


def _length(weights: Mapping[str, Tensor], name: str, axis: int = 0) -> int:
    """Returns a length of a parameter, or raises a KeyError where there is none."""
    if weights[name].dim() <= axis:
        raise KeyError(name)
    return weights[name].shape[axis]


def _to_layout(weights: Mapping[str, Tensor], version: Version, layout: str) -> dict[str, Tensor]:
    if layout == 'mmdet' and _sizes(weights).linear:
        raise CheckpointError("it has linear SRA, which MMDetection's PVTv2 does not have: choose another format")
    last, converted = f'stages.{_num_stages(weights) - 1}.{_TABLE}', {}
    for name, value in _restacked(weights, layout).items():
        theirs = version.translate(name, 'pvt_mm', layout)
        if theirs is None:
            continue  # MMDetection has no class token, the authors its position in the last table
        if name.endswith(_TABLE):
            value = value.flatten(1, 2)
            if layout == 'authors' and name == last:
                # NOTE: the authors' last table has the class token's entry first; their dense models ignore it.
                first = weights.get('cls_token.pos_embed', value.new_zeros(1, 1, value.shape[-1]))
                value = torch.cat([first, value], dim=1)
        elif layout == 'mmdet' and '.ffn.fc' in name and name.endswith('.weight'):
            value = value[..., None, None]
        converted[theirs] = value.contiguous()
    return converted


def _restacked(weights: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    """Returns weights (ours) with q, k and v stacked for MMDetection, and k and v apart for Hugging Face."""
    restacked = {}
    for name, value in weights.items():
        if layout == 'mmdet' and '.attn.q.' in name:
            restacked[name.replace('.q.', '.qkv.')] = torch.cat([value, weights[name.replace('.q.', '.kv.')]])
        elif layout == 'huggingface' and '.attn.kv.' in name:
            restacked[name.replace('.kv.', '.k.')], restacked[name.replace('.kv.', '.v.')] = value.chunk(2)
        else:
            restacked[name] = value
    return restacked


def _stage(name: str) -> int | None:
    """Returns the stage that a parameter of ours belongs to, None for the class token's."""
    return int(name.split('.')[1]) if name.startswith('stages.') else None


def _num_stages(weights: Iterable[str]) -> int:
    return 1 + max(stage for stage in map(_stage, weights) if stage is not None)
