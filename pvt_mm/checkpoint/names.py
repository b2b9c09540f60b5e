"""The names of PVT's and PVTv2's weights in every format, and the sizes of the released models.

The formats are ours, the authors' releases (classification and detection), and those of MMDetection, timm and Hugging
Face (``PvtModel``, ``PvtV2Model``, and what contains them). Each version has a table: to add a format, add a column.
"""
# ruff: noqa: E501

import functools
import re
from collections.abc import Iterable
from typing import NamedTuple


class WeightSizes(NamedTuple):
    """What of an arch the shapes of its weights tell, one entry a stage: channels, layers, expansion of the FFN."""

    embed_dims: tuple[int, ...]
    depths: tuple[int, ...]
    mlp_ratios: tuple[int, ...]
    linear: bool | None = False  # linear SRA; None where no weights of a spatial reduction tell

    def first(self, count: int) -> 'WeightSizes':
        return WeightSizes(self.embed_dims[:count], self.depths[:count], self.mlp_ratios[:count], self.linear)


class Version(NamedTuple):
    """PVT or PVTv2.

    Attributes:
        name: The class in :mod:`pvt_mm.models`.
        formats: What each column of ``names`` is called. Ours is the first.
        writable: The formats that the weights can be converted to.
        names: One row a parameter; None where a format does not have it.
        markers: Our names of the parameters that tell where a model is; every format has them.
        classifiers: The prefixes of the backbone and of the head in a classifier, by format.
        sizes: Those of the released models, by ``arch``.
    """

    name: str
    formats: tuple[str, ...]
    writable: tuple[str, ...]
    names: tuple[tuple[str | None, ...], ...]
    markers: tuple[str, ...]
    classifiers: dict[str, tuple[str, str]]
    sizes: dict[str, WeightSizes]

    def translate(self, key: str, source: str, target: str) -> str | None:
        """Returns the name in ``target`` of a key of ``source``, or None where either has no such parameter."""
        column, wanted = self.formats.index(source), self.formats.index(target)
        for row in _rows_by_shape(self.names, column).get(_NUMBER.sub('#', key), ()):
            theirs, name = row[column], row[wanted]
            if theirs and name and (found := _pattern(theirs).fullmatch(key)):
                fields = found.groupdict()
                stage = int(fields['s']) if 's' in fields else int(fields.get('s1', 1)) - 1
                layer = int(fields['l']) if 'l' in fields else int(fields.get('l1', 1)) - 1
                if min(stage, layer) >= 0:
                    return name.format(s=stage, s1=stage + 1, l=layer, l1=layer + 1, p=fields.get('p'))
        return None

    def locate(self, keys: Iterable[str]) -> list[tuple[str, str]]:
        """Returns the prefix and format of each of what may be models of this version among keys."""
        columns = zip(
            self.formats, zip(*(row for row in self.names if row[0] in self.markers), strict=True), strict=True
        )
        patterns = [(layout, _pattern(f'{{before}}{name}')) for layout, names in columns for name in names]
        found = ((pattern.fullmatch(key), layout) for key in keys for layout, pattern in patterns)
        return list(dict.fromkeys((match['before'], layout) for match, layout in found if match))


_NUMBER = re.compile('[0-9]+')


@functools.cache
def _rows_by_shape(names: tuple[tuple[str | None, ...], ...], column: int) -> dict[str, list[tuple[str | None, ...]]]:
    """Returns the rows by their names in a column, with # for every number."""
    rows: dict[str, list[tuple[str | None, ...]]] = {}
    for row in names:
        name = row[column] or ''
        for part in ('weight', 'bias') if '{p}' in name else ('',):
            rows.setdefault(re.sub(r'\{\w+\}|[0-9]+', '#', name.replace('{p}', part)), []).append(row)
    return rows


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    kinds = {'before': r'(?s:.*\.|)', 'p': 'weight|bias'}
    fields = re.sub(r'\\{(\w+)\\}', lambda name: f'(?P<{name[1]}>{kinds.get(name[1], "[0-9]+")})', re.escape(template))
    return re.compile(fields)


def _with_layers(
    outer: tuple[tuple[str | None, ...], ...], prefixes: tuple[str, ...], layer: tuple[tuple[str | None, ...], ...]
) -> tuple[tuple[str | None, ...], ...]:
    inner = (tuple(name and before + name for before, name in zip(prefixes, row, strict=True)) for row in layer)
    return (*outer, *inner)


# {s} is the stage and {l} the layer counted from 0, {s1} and {l1} from 1, {p} is weight or bias. MMDetection stacks q, k
# and v, Hugging Face keeps them apart, the others stack k and v.
# fmt: off
_CHANNELS, _RATIOS = (64, 128, 320, 512), (8, 8, 4, 4)
# The other formats have the class token's position embedding as the first entry of the last stage's table.
V1 = Version(
    'PVT',
    formats=('pvt_mm', 'authors', 'mmdet', 'huggingface'),
    # Not huggingface, whose PvtModel always has a class token, and dense models none.
    writable=('pvt_mm', 'authors', 'mmdet'),
    names=_with_layers(
        (
            ('stages.{s}.pos_embed.table',      'pos_embed{s1}',            'layers.{s}.1.0.pos_embed',    'encoder.patch_embeddings.{s}.position_embeddings'),
            ('stages.{s}.patch_embed.proj.{p}', 'patch_embed{s1}.proj.{p}', 'layers.{s}.0.projection.{p}', 'encoder.patch_embeddings.{s}.projection.{p}'),
            ('stages.{s}.patch_embed.norm.{p}', 'patch_embed{s1}.norm.{p}', 'layers.{s}.0.norm.{p}',       'encoder.patch_embeddings.{s}.layer_norm.{p}'),
            ('cls_token.token',                 'cls_token',                None,                          'encoder.patch_embeddings.{s}.cls_token'),
            ('cls_token.pos_embed',             None,                       None,                          None),
            ('cls_token.norm.{p}',              'norm.{p}',                 None,                          'encoder.layer_norm.{p}'),
        ),
        ('stages.{s}.layers.{l}.', 'block{s1}.{l}.', 'layers.{s}.1.{l1}.', 'encoder.block.{s}.{l}.'),
        (
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
        ),
    ),
    markers=('stages.{s}.patch_embed.proj.{p}',),
    classifiers={
        'pvt_mm': ('backbone.', 'head.fc.'),
        'authors': ('', 'head.'),
        'huggingface': ('pvt.', 'classifier.'),
    },
    sizes={
        'tiny':       WeightSizes(_CHANNELS, (2, 2,  2, 2), _RATIOS),
        'small':      WeightSizes(_CHANNELS, (3, 4,  6, 3), _RATIOS),
        'medium':     WeightSizes(_CHANNELS, (3, 4, 18, 3), _RATIOS),
        'large':      WeightSizes(_CHANNELS, (3, 8, 27, 3), _RATIOS),
        'small_wide': WeightSizes((89, 178, 445, 712), (3, 4, 6, 3), _RATIOS),
    },
)
V2 = Version(
    'PVTv2',
    formats=('pvt_mm', 'authors', 'mmdet', 'timm', 'huggingface'),
    writable=('pvt_mm', 'authors', 'mmdet', 'timm', 'huggingface'),
    names=_with_layers(
        (
            # timm's first patch embedding is outside of the stages.
            ('stages.0.patch_embed.proj.{p}',   None,                       None,                          'patch_embed.proj.{p}',           None),
            ('stages.0.patch_embed.norm.{p}',   None,                       None,                          'patch_embed.norm.{p}',           None),
            ('stages.{s}.patch_embed.proj.{p}', 'patch_embed{s1}.proj.{p}', 'layers.{s}.0.projection.{p}', 'stages.{s}.downsample.proj.{p}', 'encoder.layers.{s}.patch_embedding.proj.{p}'),
            ('stages.{s}.patch_embed.norm.{p}', 'patch_embed{s1}.norm.{p}', 'layers.{s}.0.norm.{p}',       'stages.{s}.downsample.norm.{p}', 'encoder.layers.{s}.patch_embedding.layer_norm.{p}'),
            ('stages.{s}.norm.{p}',             'norm{s1}.{p}',             'layers.{s}.2.{p}',            'stages.{s}.norm.{p}',            'encoder.layers.{s}.layer_norm.{p}'),
        ),
        ('stages.{s}.layers.{l}.', 'block{s1}.{l}.', 'layers.{s}.1.{l}.', 'stages.{s}.blocks.{l}.', 'encoder.layers.{s}.blocks.{l}.'),
        (
            ('norm1.{p}',        'norm1.{p}',             'norm1.{p}',              'norm1.{p}',      'layer_norm_1.{p}'),
            ('attn.q.{p}',       'attn.q.{p}',            None,                     'attn.q.{p}',     'attention.query.{p}'),
            ('attn.kv.{p}',      'attn.kv.{p}',           None,                     'attn.kv.{p}',    None),
            ('attn.k.{p}',       None,                    None,                     None,             'attention.key.{p}'),
            ('attn.v.{p}',       None,                    None,                     None,             'attention.value.{p}'),
            ('attn.qkv.{p}',     None,                    'attn.attn.in_proj_{p}',  None,             None),
            ('attn.sr.proj.{p}', 'attn.sr.{p}',           'attn.sr.{p}',            'attn.sr.{p}',    'attention.spatial_reduction.{p}'),
            ('attn.sr.norm.{p}', 'attn.norm.{p}',         'attn.norm.{p}',          'attn.norm.{p}',  'attention.layer_norm.{p}'),
            ('attn.proj.{p}',    'attn.proj.{p}',         'attn.attn.out_proj.{p}', 'attn.proj.{p}',  'attention.proj.{p}'),
            ('norm2.{p}',        'norm2.{p}',             'norm2.{p}',              'norm2.{p}',      'layer_norm_2.{p}'),
            ('ffn.fc1.{p}',      'mlp.fc1.{p}',           'ffn.layers.0.{p}',       'mlp.fc1.{p}',    'mlp.dense1.{p}'),
            ('ffn.dwconv.{p}',   'mlp.dwconv.dwconv.{p}', 'ffn.layers.1.{p}',       'mlp.dwconv.{p}', 'mlp.dwconv.dwconv.{p}'),
            ('ffn.fc2.{p}',      'mlp.fc2.{p}',           'ffn.layers.4.{p}',       'mlp.fc2.{p}',    'mlp.dense2.{p}'),
        ),
    ),
    markers=('stages.{s}.patch_embed.proj.{p}', 'stages.{s}.layers.{l}.ffn.dwconv.{p}'),
    classifiers={
        'pvt_mm': ('backbone.', 'head.fc.'),
        'authors': ('', 'head.'),
        'timm': ('', 'head.'),
        'huggingface': ('pvt_v2.', 'classifier.'),
    },
    sizes={
        'b0':    WeightSizes((32, 64, 160, 256), (2, 2, 2, 2), _RATIOS),
        'b1':    WeightSizes(_CHANNELS, (2, 2,  2, 2), _RATIOS),
        'b2':    WeightSizes(_CHANNELS, (3, 4,  6, 3), _RATIOS),
        'b2_li': WeightSizes(_CHANNELS, (3, 4,  6, 3), _RATIOS, linear=True),
        'b3':    WeightSizes(_CHANNELS, (3, 4, 18, 3), _RATIOS),
        'b4':    WeightSizes(_CHANNELS, (3, 8, 27, 3), _RATIOS),
        'b5':    WeightSizes(_CHANNELS, (3, 6, 40, 3), (4, 4, 4, 4)),
    },
)
# fmt: on
VERSIONS = (V1, V2)
# SegFormer's encoders have the names of a PVTv2, the authors' and MMDetection's, and expand by 4 in all stages. MiT-B5 is
# left out: it is the same model as b5.
_ENCODERS = ('b0', 'b1', 'b2', 'b3', 'b4')
SEGFORMER = {f'MiT-{arch.upper()}': V2.sizes[arch]._replace(mlp_ratios=(4, 4, 4, 4)) for arch in _ENCODERS}
