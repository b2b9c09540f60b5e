"""Names and shapes of PVT's weights in every format, and pure functions on state dicts that translate between them.

The formats are told apart by their keys: ours, the authors' releases (classification and detection), MMDetection's
built-in PVT, and Hugging Face's ``PvtModel`` and ``PvtForImageClassification``, each alone or inside a detector or
segmentor. :data:`NAMES` is the dictionary between them: to add a format, add a column.
"""

import math
import re
from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from pvt_mm.utils.errors import CheckpointError
from pvt_mm.utils.text import shorten

# One column a format, one row a parameter. {s} is the stage and {l} the layer counted from 0, {s1} and {l1} from 1, {p}
# is weight or bias. MMDetection stacks q, k and v, Hugging Face keeps them apart, the authors and we stack k and v.
# fmt: off
FORMATS = ('pvt_mm', 'authors', 'mmdet', 'huggingface')
_STAGE_NAMES = (
    ('stages.{s}.pos_embed.table',       'pos_embed{s1}',             'layers.{s}.1.0.pos_embed',    'encoder.patch_embeddings.{s}.position_embeddings'),  # noqa: E501
    ('stages.{s}.patch_embed.proj.{p}',  'patch_embed{s1}.proj.{p}',  'layers.{s}.0.projection.{p}', 'encoder.patch_embeddings.{s}.projection.{p}'),  # noqa: E501
    ('stages.{s}.patch_embed.norm.{p}',  'patch_embed{s1}.norm.{p}',  'layers.{s}.0.norm.{p}',       'encoder.patch_embeddings.{s}.layer_norm.{p}'),  # noqa: E501
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
# The other formats have the class token's position embedding as the first entry of the last stage's table.
_CLASS_TOKEN_NAMES = (
    ('cls_token.token',     'cls_token', None, 'encoder.patch_embeddings.{s}.cls_token'),
    ('cls_token.pos_embed', None,        None, None),
    ('cls_token.norm.{p}',  'norm.{p}',  None, 'encoder.layer_norm.{p}'),
)
# fmt: on
NAMES = (
    *_STAGE_NAMES,
    *(tuple(name and prefix + name for prefix, name in zip(_LAYER_PREFIXES, row, strict=True)) for row in _LAYER_NAMES),
    *_CLASS_TOKEN_NAMES,
)
# The prefixes of the backbone and of the head in a classifier.
CLASSIFIERS = {
    'pvt_mm': ('backbone.', 'head.fc.'),
    'authors': ('', 'head.'),
    'huggingface': ('pvt.', 'classifier.'),
}
_FIRST_KERNEL = 'stages.0.patch_embed.proj.weight'


# ----------------------------------------------------------------------------------------------------- to our format


def find_backbone(state_dict: Mapping[str, Tensor], prefix: str | None = None) -> tuple[str, str]:
    """Returns the format (of :data:`FORMATS`) and the prefix of the one PVT in a state dict.

    Raises:
        CheckpointError: There is none, or more than one; the message names where.
    """
    wanted = '' if not prefix else prefix.rstrip('.') + '.'
    found = []
    for layout in FORMATS:
        marker = _translate(_FIRST_KERNEL, 'pvt_mm', layout) or ''
        for key in state_dict:
            before = key.removesuffix(marker)
            if before != key and (not before or before.endswith('.')) and before.startswith(wanted):
                found.append((layout, before))
    if len(found) == 1:
        return found[0]
    where = f' under the prefix {prefix!r}' if prefix else ''
    if found:
        prefixes = shorten(repr(before) for _, before in found)
        raise CheckpointError(f'it holds more than one PVT{where}, at {prefixes}: choose one with prefix=...')
    raise CheckpointError(f'it holds no PVT{where} in a known format; its keys are {shorten(state_dict)}')


def backbone_weights(
    state_dict: Mapping[str, Tensor],
    prefix: str | None = None,
    pretrain_img_size: int | tuple[int, int] | None = None,
    grids: list[tuple[int, int]] | None = None,
) -> dict[str, Tensor]:
    """Returns the PVT in a state dict, with its class token where it has one, in our format.

    Args:
        state_dict: Parameters by name, of any format.
        prefix: See :func:`~pvt_mm.checkpoint.loading.load_pretrained`.
        pretrain_img_size: See :func:`~pvt_mm.checkpoint.loading.load_pretrained`.
        grids: The (H, W) grids, stage by stage, to assume where the counts of position embeddings are not square.

    Raises:
        CheckpointError: There is no PVT, more than one, or a key that is not a parameter of PVT.
    """
    layout, prefix = find_backbone(state_dict, prefix)
    head = _head_prefix(layout, prefix)
    weights, unknown = {}, []
    for key, value in state_dict.items():
        if not key.startswith(prefix) or (head is not None and key.startswith(head)):
            continue
        name = _translate(key.removeprefix(prefix), layout, 'pvt_mm')
        if name is None:
            unknown.append(key)
        else:
            weights[name] = value
    if unknown:
        raise CheckpointError(f'it has keys that are not parameters of PVT ({layout} format): {shorten(unknown)}')
    if layout == 'pvt_mm':
        return _from_former_format(weights)
    _check_tables_and_kernels(weights)
    weights = _shape_tables(weights, pretrain_img_size, grids)
    # MMDetection has convolutions of one pixel for the linear layers of the FFN.
    weights = {name: value.flatten(1) if _is_ffn_kernel(name, value) else value for name, value in weights.items()}
    return _stack_keys_and_values(weights)


def head_weights(state_dict: Mapping[str, Tensor], prefix: str | None = None) -> dict[str, Tensor]:
    """Returns the head of the classifier in a state dict in our format; an empty dict where it has none."""
    layout, before = find_backbone(state_dict, prefix)
    head = _head_prefix(layout, before)
    names = {f'{head}{kind}': f'head.fc.{kind}' for kind in ('weight', 'bias')} if head is not None else {}
    return {ours: state_dict[key] for key, ours in names.items() if key in state_dict}


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
        if name.endswith(('patch_embed.proj.weight', 'attn.sr.proj.weight')) and value.dim() == 2:
            stage = int(name.split('.')[1])
            before = f'stages.{stage if ".attn." in name else stage - 1}.pos_embed.table'
            if name == _FIRST_KERNEL:  # of 3 channels, or else of 4 x 4 pixels
                channels = 3 if 3 * math.isqrt(value.shape[1] // 3) ** 2 == value.shape[1] else value.shape[1] // 16
            else:
                channels = weights[before].shape[-1] if before in weights else value.shape[1]
            side = math.isqrt(value.shape[1] // max(channels, 1))
            if side**2 * channels != value.shape[1]:
                raise CheckpointError(f'{name} has shape {tuple(value.shape)}, which is no kernel of square patches')
            weights[name] = value.unflatten(1, (side, side, channels)).permute(0, 3, 1, 2).contiguous()
    return weights


def _check_tables_and_kernels(weights: Mapping[str, Tensor]) -> None:
    """Raises a CheckpointError where a table or a kernel of the patch embeddings is missing or misshapen."""
    problems = []
    for stage in range(_num_stages(weights)):
        for name, dims in ((f'stages.{stage}.pos_embed.table', 3), (f'stages.{stage}.patch_embed.proj.weight', 4)):
            if name not in weights:
                problems.append(f'{name} is missing')
            elif weights[name].dim() != dims:
                problems.append(f'{name} has shape {tuple(weights[name].shape)}, not {dims} dimensions')
    if problems:
        raise CheckpointError(f'it does not hold a complete PVT (names in our format): {shorten(problems)}')


def _shape_tables(
    weights: Mapping[str, Tensor],
    pretrain_img_size: int | tuple[int, int] | None,
    grids: list[tuple[int, int]] | None,
) -> dict[str, Tensor]:
    """Returns the weights with tables (1, H, W, C) from flat ones, and the class token's entry on its own."""
    weights, tables = dict(weights), _tables(weights)
    counts = [weights[name].shape[1] for name in tables]
    patch_sizes = [weights[f'stages.{i}.patch_embed.proj.weight'].shape[-1] for i in range(len(tables))]
    for name, (H, W) in zip(tables, _find_grids(counts, patch_sizes, pretrain_img_size, grids), strict=False):
        token, table = weights[name].tensor_split([weights[name].shape[1] - H * W], dim=1)
        weights[name] = table.unflatten(1, (H, W))
        if token.shape[1] and 'cls_token.token' in weights:
            weights['cls_token.pos_embed'] = token
    return weights


def _find_grids(
    counts: list[int],
    patch_sizes: list[int],
    pretrain_img_size: int | tuple[int, int] | None,
    grids: list[tuple[int, int]] | None,
) -> list[tuple[int, int]]:
    """Returns the (H, W) grid of each stage's flat table; the last may have the class token's entry first."""
    last = len(counts) - 1

    def fit(sides: list[tuple[int, int]]) -> bool:
        exact = all(counts[i] == h * w for i, (h, w) in enumerate(sides[:last]))
        return len(sides) > last and exact and counts[last] - math.prod(sides[last]) in (0, 1)

    hint = 'set the size in pixels of the images that they were trained on, pretrain_img_size=(H, W)'
    if pretrain_img_size is not None:
        stated = _grids_of_image(patch_sizes, pretrain_img_size)
        if not fit(stated):
            raise CheckpointError(f'position embeddings of {counts} entries are not for {pretrain_img_size} pixels')
        return stated
    # isqrt floors, so N and N + 1 entries, with the class token's, have the same root.
    square, models = [(math.isqrt(count),) * 2 for count in counts], list(grids or [])[: last + 1]
    fitting = [sides for sides in (square, models) if fit(sides)]
    if len(fitting) == 2 and square != models:
        raise CheckpointError(
            f'its position embeddings have {counts} entries, which fit square images and those of the model alike: '
            f'{hint}'
        )
    if not fitting:
        raise CheckpointError(f'its position embeddings have {counts} entries, which are no square grids: {hint}')
    return fitting[0]


def _grids_of_image(patch_sizes: list[int], size: int | tuple[int, int]) -> list[tuple[int, int]]:
    """Returns the (H, W) grid of tokens of each stage for an image of ``size`` pixels."""
    sides = tuple(size) if isinstance(size, (list, tuple)) else (size,) * 2
    least = math.prod(patch_sizes)
    if len(sides) != 2 or not all(isinstance(side, int) and side >= least for side in sides):
        raise CheckpointError(f'pretrain_img_size must be an int or (H, W) of at least {least}, got {size!r}')
    grids = []
    for patch_size in patch_sizes:
        sides = sides[0] // patch_size, sides[1] // patch_size
        grids.append(sides)
    return grids


def _is_ffn_kernel(name: str, value: Tensor) -> bool:
    return '.ffn.' in name and value.dim() == 4


def _stack_keys_and_values(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    stacked = {}
    for name, value in weights.items():
        if '.attn.qkv.' in name:
            q, kv = value.tensor_split([value.shape[0] // 3])
            stacked[name.replace('.qkv.', '.q.')], stacked[name.replace('.qkv.', '.kv.')] = q, kv
        elif '.attn.k.' in name and name.replace('.k.', '.v.') in weights:
            stacked[name.replace('.k.', '.kv.')] = torch.cat([value, weights[name.replace('.k.', '.v.')]])
        elif '.attn.v.' not in name:
            stacked[name] = value
    return stacked


# ------------------------------------------------------------------------------------------------------- to a model


def fit_weights(weights: dict[str, Tensor], target: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Returns weights with the position embeddings, input channels and stages of ``target``, and what was changed.

    Args:
        weights: In our format.
        target: The state dict of the model.
    """
    weights, notes = dict(weights), []
    unused = [name for name in weights if name not in target and _stage(name) not in range(_num_stages(target))]
    token = [name for name in unused if _stage(name) is None]
    stages = [name for name in unused if name not in token]
    weights = {name: value for name, value in weights.items() if name not in set(unused)}
    if token:
        notes.append(f'dropped the class token, which the model does not have: {shorten(token)}')
    if stages:
        notes.append(f'dropped the stages after the last output: {shorten(stages)}')
    for name in _tables(weights):
        source, size = weights[name].shape[1:3], target[name].shape[1:3] if name in target else None
        if size and weights[name].dim() == 4 and source != size and _holds_floats(weights[name]):
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


def check_weights(weights: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    """Raises a CheckpointError that lists every key that is missing, unknown, or not of ``target``'s shape and kind."""
    missing = [name for name in target if name not in weights]
    unknown = [name for name in weights if name not in target]
    misshapen = [
        f'{name} {tuple(weights[name].shape)}, not {tuple(target[name].shape)}'
        for name in target
        if name in weights and weights[name].shape != target[name].shape
    ]
    mistyped = [
        f'{name} ({weights[name].dtype}, {weights[name].layout}, {weights[name].device})'
        for name in target
        if name in weights and target[name].is_floating_point() and not _holds_floats(weights[name])
    ]
    kinds = {'missing': missing, 'unknown': unknown, 'of another shape': misshapen, 'not plain floats': mistyped}
    problems = [f'{len(names)} {title}: {shorten(names)}' for title, names in kinds.items() if names]
    if problems:
        raise CheckpointError(f'it does not fit the model; {"; ".join(problems)}')


def _holds_floats(value: Tensor) -> bool:
    return value.is_floating_point() and value.layout == torch.strided and not value.is_meta


# ----------------------------------------------------------------------------------------------- to another format


def convert(
    state_dict: Mapping[str, Tensor],
    layout: str,
    prefix: str | None = None,
    pretrain_img_size: int | tuple[int, int] | None = None,
) -> tuple[dict[str, Tensor], list[str]]:
    """Returns a checkpoint's weights with its PVT in the format ``layout``, and the keys that were dropped.

    The other parts of a detector or segmentor are kept as they are, and so is the head of a classifier, except in
    ``mmdet``, which has no class token.

    Args:
        state_dict: Parameters by name, of any format.
        layout: ``pvt_mm``, ``authors`` or ``mmdet``.
        prefix: See :func:`~pvt_mm.checkpoint.loading.load_pretrained`.
        pretrain_img_size: See :func:`~pvt_mm.checkpoint.loading.load_pretrained`.

    Raises:
        CheckpointError: There is no PVT, more than one, or one with missing, unknown or misshapen keys.
    """
    source, before = find_backbone(state_dict, prefix)
    weights, head = backbone_weights(state_dict, prefix, pretrain_img_size), head_weights(state_dict, prefix)
    incomplete = [name for name in weights if _stage(name) is None]
    if len(incomplete) < 4:  # token, position, and the norm's weight and bias
        weights = {name: value for name, value in weights.items() if name not in incomplete}
    check_complete(weights)
    converted = weights if layout == 'pvt_mm' else _to_layout(weights, layout)
    theirs = _head_prefix(source, before) or ''
    if head and 'cls_token.token' in weights and layout in CLASSIFIERS:
        backbone, scores = CLASSIFIERS[layout]
        dropped = [key for key in state_dict if not key.startswith((before, theirs))]
        named = {name.replace('head.fc.', scores): value for name, value in head.items()}
        return {**{f'{backbone}{name}': value for name, value in converted.items()}, **named}, dropped
    dropped = [name for name in weights if _stage(name) is None and layout not in CLASSIFIERS]
    dropped += [name for name in incomplete if name not in weights]
    dropped += [key for key in state_dict if head and key.startswith(theirs)]
    if not before.endswith('backbone.'):
        return converted, dropped + [key for key in state_dict if not key.startswith(before) and key not in dropped]
    outer = before.removesuffix('backbone.')  # DDP's "module.", for one
    others = {
        key.removeprefix(outer): value
        for key, value in state_dict.items()
        if not key.startswith(before) and key not in dropped
    }
    return {**{f'backbone.{name}': value for name, value in converted.items()}, **others}, dropped


def check_complete(weights: Mapping[str, Tensor]) -> None:
    """Raises a CheckpointError that lists the keys that a PVT of these sizes has and ``weights`` (ours) lack."""
    try:
        shapes = _expected_shapes(weights)
    except KeyError as error:
        raise CheckpointError(f'it does not hold a complete PVT; missing: {error.args[0]}') from None
    check_weights(weights, {name: torch.empty(shape, device='meta') for name, shape in shapes.items()})


def _expected_shapes(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every parameter of the PVT whose sizes are those of the given weights (ours)."""
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, out_features: int, *in_features: int) -> None:
        shapes[f'{name}.weight'], shapes[f'{name}.bias'] = (out_features, *in_features), (out_features,)

    channels = weights[_FIRST_KERNEL].shape[1]
    for s in range(_num_stages(weights)):
        stage = f'stages.{s}'
        shapes[f'{stage}.pos_embed.table'] = tuple(weights[f'{stage}.pos_embed.table'].shape)
        C, P = shapes[f'{stage}.pos_embed.table'][-1], weights[f'{stage}.patch_embed.proj.weight'].shape[-1]
        linear(f'{stage}.patch_embed.proj', C, channels, P, P)
        linear(f'{stage}.patch_embed.norm', C)
        first = f'{stage}.layers.0'
        hidden, reduction = weights[f'{first}.ffn.fc1.weight'].shape[0], weights.get(f'{first}.attn.sr.proj.weight')
        for layer in range(len({name.split('.')[3] for name in weights if name.startswith(f'{stage}.layers.')})):
            name = f'{stage}.layers.{layer}'
            linear(f'{name}.norm1', C)
            linear(f'{name}.attn.q', C, C)
            linear(f'{name}.attn.kv', 2 * C, C)
            if reduction is not None:
                linear(f'{name}.attn.sr.proj', C, C, *reduction.shape[2:])
                linear(f'{name}.attn.sr.norm', C)
            linear(f'{name}.attn.proj', C, C)
            linear(f'{name}.norm2', C)
            linear(f'{name}.ffn.fc1', hidden, C)
            linear(f'{name}.ffn.fc2', C, hidden)
        channels = C
    if any(_stage(name) is None for name in weights):
        shapes |= {'cls_token.token': (1, 1, channels), 'cls_token.pos_embed': (1, 1, channels)}
        linear('cls_token.norm', channels)
    return shapes


def _to_layout(weights: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    tables, converted = _tables(weights), {}
    for name, value in _unstacked(weights, layout).items():
        theirs = _translate(name, 'pvt_mm', layout)
        if theirs is None:
            continue  # the class token: MMDetection has none, and the authors its position in the last table
        if name in tables:
            value = value.flatten(1, 2)
            if layout == 'authors' and name == tables[-1]:
                # NOTE: the authors' last table has the class token's entry first; their dense models ignore it.
                first = weights.get('cls_token.pos_embed', value.new_zeros(1, 1, value.shape[-1]))
                value = torch.cat([first, value], dim=1)
        elif layout == 'mmdet' and '.ffn.' in name and name.endswith('.weight'):
            value = value[..., None, None]
        converted[theirs] = value.contiguous()
    return converted


def _unstacked(weights: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    """Reverses :func:`_stack_keys_and_values` for a format that is written."""
    if layout == 'authors':
        return dict(weights)
    unstacked = {}
    for name, value in weights.items():
        if '.attn.q.' in name:
            unstacked[name.replace('.q.', '.qkv.')] = torch.cat([value, weights[name.replace('.q.', '.kv.')]])
        elif '.attn.kv.' not in name:
            unstacked[name] = value
    return unstacked


# ------------------------------------------------------------------------------------------------------------ names


def _pattern(template: str) -> re.Pattern[str]:
    parts = re.split(r'\{(\w+)\}', template)  # text and field names in turn
    for i, field in list(enumerate(parts))[1::2]:
        parts[i] = f'(?P<{field}>{"weight|bias" if field == "p" else "[0-9]+"})'
    return re.compile(''.join(part if i % 2 else re.escape(part) for i, part in enumerate(parts)))


_PATTERNS = {template: _pattern(template) for template in {name for row in NAMES for name in row if name}}


def _translate(key: str, source: str, target: str) -> str | None:
    """Returns the name in ``target`` of a key of ``source``, or None where either format has no such parameter."""
    for row in NAMES:
        theirs, wanted = row[FORMATS.index(source)], row[FORMATS.index(target)]
        if not theirs or not wanted:
            continue
        if found := _PATTERNS[theirs].fullmatch(key):
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


def _tables(weights: Iterable[str]) -> list[str]:
    """Returns the names of the position embeddings, ordered by stage."""
    return sorted((name for name in weights if name.endswith('.pos_embed.table')), key=lambda name: _stage(name) or 0)
