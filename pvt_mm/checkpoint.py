"""Weights of any origin to ours and back: pure functions on state dicts, the safe reader, and the strict loader.

The formats are told apart by their keys: ours, the authors' releases (classification and detection), MMDetection's
built-in PVT, and Hugging Face's ``PvtModel`` and ``PvtForImageClassification``, each alone or inside a detector or
segmentor. :data:`NAMES` is the dictionary between them.
"""

import argparse
import contextlib
import functools
import logging
import math
import os
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import torch
from mmengine import fileio
from mmengine.dist import barrier
from mmengine.logging import HistoryBuffer, print_log
from mmengine.optim import OneCycleParamScheduler
from mmengine.runner.checkpoint import get_external_models, get_torchvision_models
from torch import Tensor, nn

from pvt_mm.errors import CheckpointError
from pvt_mm.files import whole_file
from pvt_mm.integrity import sign, verify_once
from pvt_mm.models.pvt import PVT, Arch, pretrain_grids, resample_grid

# The dictionary: one column a format, one row a parameter. {s} is the stage and {l} the layer counted from 0, {s1} and
# {l1} from 1, {p} is weight or bias. MMDetection stacks q, k and v, Hugging Face keeps them apart, the authors and we
# stack k and v.
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
# The others have the class token's position embedding in front of the last stage's.
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
# Where the formats have the backbone and the head of a classifier.
CLASSIFIERS = {
    'pvt_mm': ('backbone.', 'head.fc.'),
    'authors': ('', 'head.'),
    'huggingface': ('pvt.', 'classifier.'),
}
WRAPPERS = ('state_dict', 'model', 'ema_state_dict', 'state_dict_ema', 'model_ema', 'module')


# ----------------------------------------------------------------------------------------------------------- loading


def load_pretrained(
    model: PVT,
    checkpoint: str,
    prefix: str | None = None,
    pretrain_img_size: int | tuple[int, int] | None = None,
    map_location: str = 'cpu',
) -> None:
    """Loads the PVT in a checkpoint into ``model``, every parameter of it, or fails.

    Position embeddings of another grid are resampled bilinearly, and where ``model`` takes another number of channels
    than 3 its patch embedding gets the mean of the three, scaled by 3 / channels so that a grey image gives what it
    gave. A classifier's head, the class token where ``model`` has none, and the stages that it does not build are
    dropped; the log says so.

    Args:
        model: The backbone.
        checkpoint: A path or URL, of any format that this module knows.
        prefix: What the keys of the backbone begin with, where the file holds more than one; found where it does not.
        pretrain_img_size: Size in pixels of the images that the position embeddings were trained on, a side or (H, W).
            Needed only where they are neither square nor of the grid of ``model``, or could be both.
        map_location: The device to read to.

    Raises:
        CheckpointError: The file cannot be read, or a key is missing, unknown or of another shape; they are listed.
    """
    state_dict = read_checkpoint(checkpoint, map_location)
    try:
        weights, notes = _weights_for(model, state_dict, prefix, pretrain_img_size)
    except CheckpointError as error:
        raise CheckpointError(f'{checkpoint}: {error}') from None
    model.load_state_dict(weights)
    print_log('; '.join([f'loaded all {len(weights)} parameters of PVT from {checkpoint}', *notes]), logger='current')


def load_classifier(backbone: PVT, head: nn.Linear, checkpoint: str, map_location: str = 'cpu') -> None:
    """Loads the classifier in a checkpoint, of any format that this module knows, into its parts, or fails.

    Args:
        backbone: A PVT with a class token.
        head: The layer from the token's feature to the scores.
        checkpoint: See :func:`load_pretrained`.
        map_location: See :func:`load_pretrained`.

    Raises:
        CheckpointError: The file cannot be read, has no head, or a key is missing, unknown or of another shape.
    """
    state_dict = read_checkpoint(checkpoint, map_location)
    try:
        scores = head_weights(state_dict)
        check_weights(scores, {f'head.fc.{name}': value for name, value in head.state_dict().items()})
        weights, notes = _weights_for(backbone, state_dict)
    except CheckpointError as error:
        raise CheckpointError(f'{checkpoint}: {error}') from None
    backbone.load_state_dict(weights)
    head.load_state_dict({name.removeprefix('head.fc.'): value for name, value in scores.items()})
    print_log('; '.join([f'loaded the whole classifier from {checkpoint}', *notes]), logger='current')


def _weights_for(
    model: PVT,
    state_dict: Mapping[str, Tensor],
    prefix: str | None = None,
    pretrain_img_size: int | tuple[int, int] | None = None,
) -> tuple[dict[str, Tensor], list[str]]:
    """Returns the parameters of ``model`` that a state dict has, all of them, and what was done to them."""
    grids = [tuple(stage.pos_embed.table.shape[1:3]) for stage in model.stages]
    weights, notes = fit_weights(backbone_weights(state_dict, prefix, pretrain_img_size, grids), model)
    check_weights(weights, model.state_dict())
    return weights, notes


def backbone_weights(
    state_dict: Mapping[str, Tensor],
    prefix: str | None = None,
    pretrain_img_size: int | tuple[int, int] | None = None,
    grids: list[tuple[int, int]] | None = None,
) -> dict[str, Tensor]:
    """Returns the PVT in a state dict, with its class token where it has one, under our names and in our shapes.

    Args:
        state_dict: Parameters by name, of any format.
        prefix: See :func:`load_pretrained`.
        pretrain_img_size: See :func:`load_pretrained`.
        grids: The (H, W) grids, stage by stage, to assume where the counts of position embeddings are not square.

    Raises:
        CheckpointError: There is no PVT, more than one, or a key that is no parameter of PVT.
    """
    layout, prefix = find_backbone(state_dict, prefix)
    part = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
    head = _head_prefix(layout, prefix)
    weights, unknown = {}, []
    for key, value in part.items():
        ours = _translate(key, layout, 'pvt_mm')
        if ours is not None:
            weights[ours] = value
        elif head is None or not (prefix + key).startswith(head):
            unknown.append(prefix + key)
    if unknown:
        raise CheckpointError(f'it has keys that are no parameter of PVT ({layout} format): {_listed(unknown)}')
    if layout == 'pvt_mm':
        return weights
    _check_shapes_of_source(weights)
    counts = {stage: weights[name].shape[1] for stage, name in _tables(weights).items()}
    sides = _grids_of(counts, _patch_sizes(weights), pretrain_img_size, grids)
    for stage, name in _tables(weights).items():
        height, width = sides[stage]
        before, table = weights[name].tensor_split([weights[name].shape[1] - height * width], dim=1)
        weights[name] = table.unflatten(1, (height, width))
        if before.shape[1] and 'cls_token.token' in weights:
            weights['cls_token.pos_embed'] = before
    weights = {name: _as_linear(value) if name.endswith('.weight') else value for name, value in weights.items()}
    return _stack_keys_and_values(weights)


def head_weights(state_dict: Mapping[str, Tensor], prefix: str | None = None) -> dict[str, Tensor]:
    """Returns the head of the classifier in a state dict under our names, or nothing where it has none."""
    layout, before = find_backbone(state_dict, prefix)
    head = _head_prefix(layout, before)
    names = {f'{head}{kind}': f'head.fc.{kind}' for kind in ('weight', 'bias')} if head is not None else {}
    return {ours: state_dict[key] for key, ours in names.items() if key in state_dict}


def _head_prefix(layout: str, before: str) -> str | None:
    """Returns what the keys of a classifier's head begin with, None where the backbone's prefix is no classifier's."""
    backbone, head = CLASSIFIERS.get(layout, (None, None))
    return before.removesuffix(backbone) + head if backbone is not None and before.endswith(backbone) else None


def find_backbone(state_dict: Mapping[str, Tensor], prefix: str | None = None) -> tuple[str, str]:
    """Returns the format (of :data:`FORMATS`) and the prefix of the one PVT in a state dict.

    Raises:
        CheckpointError: There is none, or more than one; the message names where.
    """
    wanted = '' if not prefix else prefix.rstrip('.') + '.'
    found = []
    for layout in FORMATS:
        marker = _name('stages.0.patch_embed.proj.weight', 'pvt_mm', layout)
        for key in state_dict:
            before = key.removesuffix(marker)
            if before != key and (not before or before.endswith('.')) and before.startswith(wanted):
                found.append((layout, before))
    if len(found) == 1:
        return found[0]
    where = f' under the prefix {prefix!r}' if prefix else ''
    if found:
        prefixes = _listed(repr(before) for _, before in found)
        raise CheckpointError(f'it holds more than one PVT{where}, at {prefixes}: say which by prefix=...')
    raise CheckpointError(f'it holds no PVT{where} in a format known here; its keys are {_listed(state_dict)}')


def fit_weights(weights: dict[str, Tensor], model: PVT) -> tuple[dict[str, Tensor], list[str]]:
    """Returns the weights with the position embeddings, input channels and stages of ``model``, and what was done."""
    target = model.state_dict()
    weights, notes = dict(weights), []
    behind = [name for name in weights if name not in target and _stage(name) not in range(len(model.stages))]
    token = [name for name in behind if _stage(name) is None]
    weights = {name: value for name, value in weights.items() if name not in set(behind)}
    if token:
        notes.append(f'dropped what a dense backbone has no use for: {_listed(token)}')
    if len(behind) > len(token):
        stages = [name for name in behind if name not in token]
        notes.append(f'dropped the stages behind the last output: {_listed(stages)}')
    for name in _tables(weights).values():
        if (
            name in target
            and weights[name].dim() == 4
            and weights[name].shape[1:3] != target[name].shape[1:3]
            and _holds_floats(weights[name])
        ):
            source, size = weights[name].shape[1:3], target[name].shape[1:3]
            weights[name] = resample_grid(weights[name].float(), tuple(size))
            notes.append(f'resampled {name} from {source[0]} x {source[1]} to {size[0]} x {size[1]}')
    name, taps = 'stages.0.patch_embed.proj.weight', model.stages[0].patch_embed.patch_size ** 2
    channels = target[name].shape[1] // taps
    if channels != 3 and name in weights and weights[name].shape[1] == 3 * taps:
        kernel = weights[name].unflatten(1, (taps, 3)).mean(2, keepdim=True) * 3 / channels
        weights[name] = kernel.expand(-1, -1, channels).flatten(1)
        notes.append(f'averaged the 3 input channels of {name} for {channels}')
    return weights, notes


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
    kinds = {'missing': missing, 'unknown': unknown, 'of another shape': misshapen, 'no plain floats': mistyped}
    found = {title: names for title, names in kinds.items() if names}
    if found:
        problems = [f'{len(names)} {title}: {_listed(names, 400 // len(found))}' for title, names in found.items()]
        raise CheckpointError(f'it does not fit the model; {"; ".join(problems)}')


def _holds_floats(value: Tensor) -> bool:
    return value.is_floating_point() and value.layout == torch.strided and not value.is_meta


# -------------------------------------------------------------------------------------------------------- converting


def convert(
    state_dict: Mapping[str, Tensor],
    layout: str,
    prefix: str | None = None,
    pretrain_img_size: int | tuple[int, int] | None = None,
) -> tuple[dict[str, Tensor], list[str]]:
    """Returns a checkpoint's weights with its PVT in the format ``layout``, and the keys that it dropped.

    The other parts of a detector or segmentor come along as they are, and so does the head of a classifier but to
    ``mmdet``, which has no class token.

    Args:
        state_dict: Parameters by name, of any format.
        layout: ``pvt_mm``, ``authors`` or ``mmdet``.
        prefix: See :func:`load_pretrained`.
        pretrain_img_size: See :func:`load_pretrained`.

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
    theirs = _head_prefix(source, before)
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
    outer = before.removesuffix('backbone.')  # DDP's "module.", say
    others = {
        key.removeprefix(outer): value
        for key, value in state_dict.items()
        if not key.startswith(before) and key not in dropped
    }
    return {**{f'backbone.{name}': value for name, value in converted.items()}, **others}, dropped


def check_complete(weights: Mapping[str, Tensor]) -> None:
    """Raises a CheckpointError that lists what a PVT of these sizes has and ``weights`` (in our format) have not."""
    with torch.device('meta'):
        out_type = 'cls_token' if any(_stage(name) is None for name in weights) else 'featmap'
        model = PVT(infer_arch(weights), out_indices=_num_stages(weights) - 1, out_type=out_type)
    target = {**model.state_dict(), **{name: weights[name] for name in _tables(weights).values()}}
    target['stages.0.patch_embed.proj.weight'] = weights['stages.0.patch_embed.proj.weight']  # any input channels
    check_weights(weights, target)


def infer_arch(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Returns the sizes of the PVT that has these weights (in our format), as ``PVT(arch=...)`` takes them.

    Weights do not tell the number of heads, which is 1 here. The first patch size is the one that leaves 3 input
    channels, or else Table 1's 4.
    """
    columns: dict[str, list[int]] = {name: [] for name in Arch._fields}
    try:
        for stage in range(_num_stages(weights)):
            dims = weights[f'stages.{stage}.pos_embed.table'].shape[-1]
            taps = weights[f'stages.{stage}.patch_embed.proj.weight'].shape[1]
            reduction = weights.get(f'stages.{stage}.layers.0.attn.sr.proj.weight')
            layers = {name.split('.')[3] for name in weights if name.startswith(f'stages.{stage}.layers.')}
            patch_size = math.isqrt(taps // columns['embed_dims'][-1]) if stage else _first_patch_size(taps)
            columns['patch_sizes'].append(patch_size)
            columns['embed_dims'].append(dims)
            columns['depths'].append(len(layers))
            columns['num_heads'].append(1)
            columns['sr_ratios'].append(1 if reduction is None else math.isqrt(reduction.shape[1] // dims))
            columns['mlp_ratios'].append(weights[f'stages.{stage}.layers.0.ffn.fc1.weight'].shape[0] // dims)
    except KeyError as error:
        raise CheckpointError(f'it does not hold a whole PVT; missing: {error.args[0]}') from None
    return {name: tuple(column) for name, column in columns.items()}


def _first_patch_size(taps: int) -> int:
    side = math.isqrt(taps // 3)
    if 3 * side**2 == taps:
        return side
    if taps % 16:
        raise CheckpointError(f'the first patch embedding takes {taps} numbers a patch: neither 3 channels nor 4 x 4')
    return 4


def _to_layout(weights: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    arch = infer_arch(weights)
    tables = _tables(weights)
    converted = {}
    for name, value in _unstacked(weights, layout).items():
        stage = _stage(name)
        if _translate(name, 'pvt_mm', layout) is None:
            continue  # the class token: MMDetection has none, and the authors its position in the last table
        if name in tables.values():
            value = value.flatten(1, 2)
            if layout == 'authors' and stage == len(tables) - 1:
                # NOTE: the authors' last table has the class token's entry in front; their dense models ignore it.
                first = weights.get('cls_token.pos_embed', value.new_zeros(1, 1, value.shape[-1]))
                value = torch.cat([first, value], dim=1)
        elif name.endswith('patch_embed.proj.weight'):
            value = _as_kernel(value, arch['patch_sizes'][stage])
        elif name.endswith('attn.sr.proj.weight'):
            value = _as_kernel(value, arch['sr_ratios'][stage])
        elif layout == 'mmdet' and '.ffn.' in name and name.endswith('.weight'):
            value = _as_kernel(value, 1)
        converted[_name(name, 'pvt_mm', layout)] = value.contiguous()
    return converted


# ----------------------------------------------------------------------------------------------------------- reading

_trusted = False


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Adds ``--trust``, which is for :func:`trust_checkpoints`, to a tool that reads checkpoints."""
    parser.add_argument(
        '--trust',
        action='store_true',
        help='read checkpoints without the allow-list: a file may then run any code on this machine; only for files '
        'whose author you trust',
    )


def trust_checkpoints(trust: bool) -> None:
    """Says whether a checkpoint that is refused is from here on read all the same, running what it asks to run."""
    global _trusted
    _trusted = trust
    _warn_of_trust.cache_clear()


def read_checkpoint(path: str | os.PathLike, map_location: str = 'cpu') -> dict[str, Tensor]:
    """Returns the parameters in a file or behind a URL, freed from the wrappers of the tool that wrote it.

    Raises:
        CheckpointError: See :func:`read_file`; or the file holds no parameters.
    """
    return _parameters(read_file(path, map_location), str(path))


def read_file(path: str | os.PathLike, map_location: str = 'cpu') -> Any:
    """Returns what is in a file or behind a URL, with its parameters under ``state_dict``, as MMEngine has them.

    Nothing in the file is executed: pickles are read with ``weights_only=True``, allowing what MMEngine and the
    authors' training write beside the weights, or the file is in safetensors format. :func:`trust_checkpoints` lifts
    that. A file that is damaged is refused (:mod:`pvt_mm.integrity`). Downloads are kept in torch.hub's cache.

    Raises:
        CheckpointError: The file is not there, cannot be read, is damaged, or is refused.
    """
    path = str(path)
    where = _in_catalogue(path)
    if urlparse(where).scheme in ('http', 'https'):
        content = _read_local(_download(where), map_location)
    elif '://' in where:
        with contextlib.ExitStack() as stack:
            try:
                local = stack.enter_context(fileio.get_local_path(where))
            except Exception as error:  # each storage has exceptions of its own
                reason = f'{type(error).__name__}: {_one_line(error)}'
                raise CheckpointError(f'{path} cannot be fetched: {reason}') from error
            content = _read_local(local, map_location)
    else:
        content = _read_local(where, map_location)
    if isinstance(content, Mapping) and 'state_dict' not in content and set(WRAPPERS) & set(content):
        content = {**content, 'state_dict': _parameters(content, path)}
    return content


def save_checkpoint(state_dict: Mapping[str, Tensor], path: str | os.PathLike) -> None:
    """Writes parameters to a ``.pth``, signed, or ``.safetensors`` file, whole or not at all."""
    with whole_file(path) as beside:
        if Path(path).suffix == '.safetensors':
            _safetensors().save_file({name: value.contiguous() for name, value in state_dict.items()}, beside)
        else:
            torch.save(dict(state_dict), beside)
            sign(beside)


def _read_local(path: str, map_location: str) -> Any:
    if not os.path.isfile(path):
        what = 'is a folder, not a checkpoint' if os.path.isdir(path) else 'does not exist'
        raise CheckpointError(f'{path} {what}')
    if path.endswith('.safetensors'):
        try:
            return _safetensors().load_file(path, device=map_location)
        except Exception as error:  # safetensors has an exception type of its own in each version
            raise CheckpointError(f'{path} cannot be read as safetensors: {_one_line(error)}') from None
    try:
        verify_once(path)
    except OSError as error:
        raise CheckpointError(f'{path} cannot be read: {error.strerror or error}') from None
    try:
        with torch.serialization.safe_globals(_allowed_globals()):
            return torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r'GLOBAL ([\w.]+)', str(error))
        asked = [found[1]] if found else _globals_of(path)
    except (RuntimeError, OSError) as error:
        raise CheckpointError(f'{path} is no checkpoint, or a damaged one: {_one_line(error)}') from None
    except Exception:  # what bytes of no pickle lead to: EOFError, struct.error, AssertionError, ...
        asked = []
    if not asked:
        raise CheckpointError(f'{path} is no checkpoint, or a damaged one')
    if not _trusted:
        raise CheckpointError(
            f'{path} is refused: it asks to run {_listed(asked)}, which a file of weights has no need for; use --trust '
            'if you trust who made the file'
        )
    _warn_of_trust(path, _listed(asked))
    try:
        return torch.load(path, map_location=map_location, weights_only=False)
    except Exception as error:  # it runs anything
        raise CheckpointError(f'{path} cannot be read: {type(error).__name__}: {_one_line(error)}') from error


@functools.lru_cache  # once a file
def _warn_of_trust(path: str, asked: str) -> None:
    message = f'{path} is read without the allow-list, as --trust says, and runs what it asks for: {asked}'
    print_log(message, logger='current', level=logging.WARNING)


class _StandIn(dict):
    """Takes the place of whatever a pickle asks for, and does nothing."""

    def __init__(self, *_: Any):
        super().__init__()


def _globals_of(path: str) -> list[str]:
    """Returns what the pickle in a checkpoint asks for, running none of it.

    PyTorch names what it refuses in pickles of protocol 2, its own, and takes no others for pickles at all.
    """
    found = {}

    class Listing(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> type:
            found[f'{module}.{name}'] = None
            return _StandIn

        def persistent_load(self, _: Any) -> None:
            return None

    try:
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(open(path, 'rb'))
            if zipfile.is_zipfile(file):
                archive = stack.enter_context(zipfile.ZipFile(file))
                file = archive.open(next(name for name in archive.namelist() if name.endswith('data.pkl')))
            file.seek(0)
            for _ in range(5):  # as many, one behind the other, as a file had before they were zip archives
                Listing(file).load()
    except Exception:  # behind the last one, or in what is no pickle, anything fails
        pass
    return list(found)


def _in_catalogue(path: str) -> str:
    """Returns the URL of weights that MMEngine has a name for, such as ``torchvision://resnet50``; else the path."""
    scheme, _, name = path.partition('://')
    try:
        if scheme in ('torchvision', 'modelzoo'):
            return get_torchvision_models()[name]
        if scheme in ('open-mmlab', 'openmmlab'):
            return get_external_models()[name]
    except ImportError:
        raise CheckpointError(f'{path} cannot be found without torchvision: pip install it') from None
    except KeyError:
        raise CheckpointError(f'{path}: there are no weights of this name') from None
    return path


def _download(url: str) -> str:
    """Downloads a file once a machine, by its first process; the others wait for it, also where it fails."""
    path = os.path.join(torch.hub.get_dir(), 'checkpoints', os.path.basename(urlparse(url).path))
    reason = 'by the first process of this machine'
    if int(os.environ.get('LOCAL_RANK', 0)) == 0 and not os.path.exists(path):
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            torch.hub.download_url_to_file(url, path)
        except OSError as error:
            reason = _one_line(error)
    barrier()
    if not os.path.exists(path):
        raise CheckpointError(
            f'{url} cannot be downloaded ({reason}): fetch it elsewhere and put it at {path}, or name another file '
            'with --cfg-options model.backbone.init_cfg.checkpoint=PATH, or train from random weights with '
            '--cfg-options model.backbone.init_cfg=None'
        )
    return path


def _parameters(content: Any, path: str) -> dict[str, Tensor]:
    while isinstance(content, Mapping):
        inner = next((content[name] for name in WRAPPERS if isinstance(content.get(name), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping):
        raise CheckpointError(f'{path} holds no parameters but a {type(content).__name__}')
    parameters = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not parameters:
        raise CheckpointError(f'{path} holds no parameters; its entries are {_listed(map(str, content)) or "none"}')
    return parameters


def _allowed_globals() -> list:
    """What checkpoints hold beside tensors, none of which runs code.

    MMEngine's hold the history of the logged values, the state of schedulers, NumPy's scalars and random states, the
    authors' training its command line.
    """
    multiarray = np._core.multiarray if hasattr(np, '_core') else np.core.multiarray
    dtypes = {type(np.dtype(kind)) for kind in ('float64', 'float32', 'int64', 'int32', 'uint32')}
    arrays = [multiarray._reconstruct, multiarray.scalar, np.ndarray, np.dtype, *dtypes]
    owners = [HistoryBuffer, OneCycleParamScheduler]
    return [argparse.Namespace, *owners, (_method_of_mmengine, 'builtins.getattr'), *arrays]


def _method_of_mmengine(owner: Any, name: str) -> Any:
    """The uses that MMEngine's checkpoints have for ``getattr``, which reaches everything if left alone."""
    annealing = owner is OneCycleParamScheduler and name in ('_annealing_cos', '_annealing_linear')
    if not annealing and (owner is not HistoryBuffer or name.startswith('_')):
        raise pickle.UnpicklingError('GLOBAL builtins.getattr')
    return getattr(owner, name)


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError:
        raise CheckpointError('reading and writing safetensors needs `pip install safetensors`') from None
    return safetensors.torch


# ------------------------------------------------------------------------------------------------- names and shapes


def _pattern(template: str) -> re.Pattern:
    parts = re.split(r'\{(\w+)\}', template)  # text and field names in turn
    for i, field in list(enumerate(parts))[1::2]:
        parts[i] = f'(?P<{field}>{"weight|bias" if field == "p" else "[0-9]+"})'
    return re.compile(''.join(part if i % 2 else re.escape(part) for i, part in enumerate(parts)))


_PATTERNS = {template: _pattern(template) for template in {name for row in NAMES for name in row if name}}


def _match(template: str, key: str) -> re.Match | None:
    return _PATTERNS[template].fullmatch(key)


def _translate(key: str, source: str, target: str) -> str | None:
    """Returns the name in ``target`` of a key of ``source``, or None where either format has no such parameter."""
    for row in NAMES:
        theirs, wanted = row[FORMATS.index(source)], row[FORMATS.index(target)]
        found = _match(theirs, key) if theirs and wanted else None
        if found:
            fields = found.groupdict()
            stage = int(fields['s']) if 's' in fields else int(fields.get('s1', 1)) - 1
            layer = int(fields['l']) if 'l' in fields else int(fields.get('l1', 1)) - 1
            return wanted.format(s=stage, s1=stage + 1, l=layer, l1=layer + 1, p=fields.get('p'))
    return None


def _name(key: str, source: str, target: str) -> str:
    name = _translate(key, source, target)
    assert name is not None, f'{key} has no name in the {target} format'
    return name


def _stage(name: str) -> int | None:
    """Returns the stage that a parameter of ours belongs to, None for the class token's."""
    return int(name.split('.')[1]) if name.startswith('stages.') else None


def _num_stages(weights: Iterable[str]) -> int:
    return 1 + max(_stage(name) for name in weights if _stage(name) is not None)


def _tables(weights: Iterable[str]) -> dict[int, str]:
    """Returns the names of the position embeddings by stage."""
    names = [name for name in weights if name.endswith('.pos_embed.table')]
    return dict(sorted((int(name.split('.')[1]), name) for name in names))


def _patch_sizes(weights: Mapping[str, Tensor]) -> list[int]:
    return [weights[f'stages.{stage}.patch_embed.proj.weight'].shape[-1] for stage in _tables(weights)]


def _check_shapes_of_source(weights: Mapping[str, Tensor]) -> None:
    """Raises a CheckpointError where a key that is reshaped on the way to our format is missing or misshapen."""
    problems = []
    for stage in range(_num_stages(weights)):
        for name, dims in ((f'stages.{stage}.pos_embed.table', 3), (f'stages.{stage}.patch_embed.proj.weight', 4)):
            if name not in weights:
                problems.append(f'{name} is missing')
            elif weights[name].dim() != dims:
                problems.append(f'{name} has shape {tuple(weights[name].shape)}, not {dims} dimensions')
    if problems:
        raise CheckpointError(f'it does not hold a whole PVT (names in our format): {_listed(problems)}')


def _grids_of(
    counts: dict[int, int],
    patch_sizes: list[int],
    pretrain_img_size: int | tuple[int, int] | None,
    grids: list[tuple[int, int]] | None,
) -> list[tuple[int, int]]:
    """Returns the (H, W) grid of each stage's flat table; the last may have a class token's entry in front."""
    last = len(counts) - 1

    def fit(sides: list[tuple[int, int]]) -> bool:
        exact = all(counts[i] == h * w for i, (h, w) in enumerate(sides[:last]))
        return len(sides) > last and exact and counts[last] - math.prod(sides[last]) in (0, 1)

    if pretrain_img_size is not None:
        try:
            stated = pretrain_grids(patch_sizes, pretrain_img_size)
        except ValueError as error:
            raise CheckpointError(str(error)) from None
        if not fit(stated):
            found = list(counts.values())
            raise CheckpointError(f'position embeddings of {found} entries are not for {pretrain_img_size} pixels')
        return stated
    # isqrt floors, so N and N + 1 entries, with the class token's, have the same root.
    square, models = [(math.isqrt(count),) * 2 for count in counts.values()], list(grids or [])[: last + 1]
    fitting = [sides for sides in (square, models) if fit(sides)]
    if len(fitting) == 2 and square != models:
        raise CheckpointError(
            f'its position embeddings have {list(counts.values())} entries, which fit square images and those of the '
            'model alike: say the size in pixels of the images they were trained on, pretrain_img_size=(H, W)'
        )
    if fitting:
        return fitting[0]
    raise CheckpointError(
        f'its position embeddings have {list(counts.values())} entries, which are no square grids: say the size in '
        'pixels of the images they were trained on, pretrain_img_size=(H, W)'
    )


def _as_linear(value: Tensor) -> Tensor:
    """A convolution's (out, in, P, P) kernel as the (out, P * P * in) matrix of a projection of patches; else as is."""
    return value if value.dim() != 4 else value.permute(0, 2, 3, 1).flatten(1)


def _as_kernel(value: Tensor, size: int) -> Tensor:
    return value.unflatten(1, (size, size, -1)).permute(0, 3, 1, 2)


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


def _unstacked(weights: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    """The inverse of :func:`_stack_keys_and_values` for a format that we write."""
    if layout == 'authors':
        return dict(weights)
    unstacked = {}
    for name, value in weights.items():
        if '.attn.q.' in name:
            both = [value, weights[name.replace('.q.', '.kv.')]]
            unstacked[name.replace('.q.', '.qkv.')] = torch.cat(both)
        elif '.attn.kv.' not in name:
            unstacked[name] = value
    return unstacked


def _listed(names: Iterable[str], room: int = 400) -> str:
    """Returns a line of the first names, of at most ``room`` characters or so, and how many more there are."""
    names = [' '.join(name[:100].split()) for name in names]
    limit = 8
    while limit > 1 and sum(map(len, names[:limit])) > room:
        limit -= 1
    more = f' and {len(names) - limit} more' if len(names) > limit else ''
    return ', '.join(names[:limit]) + more


def _one_line(error: Exception) -> str:
    return ' '.join(str(error).split())[:200] or type(error).__name__
