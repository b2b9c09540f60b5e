"""The names of PVT's and PVTv2's weights in every format, and the sizes of the released models.

The formats are ours, the authors' releases (classification and detection), and those of MMDetection, timm and Hugging
Face (``PvtModel``, ``PvtV2Model``, and what contains them). Each version has a table: to add a format, add a column.
"""
# ruff: noqa: E501

import functools
import re
from collections.abc import Iterable
from typing import NamedTuple


class Sizes(NamedTuple):
    """What of an arch the shapes of its weights tell, one entry a stage: channels, layers, expansion of the FFN."""

    embed_dims: tuple[int, ...]
    depths: tuple[int, ...]
    mlp_ratios: tuple[int, ...]
    linear: bool = False  # linear SRA

    def first_stages(self, count: int) -> 'Sizes':
        return Sizes(self.embed_dims[:count], self.depths[:count], self.mlp_ratios[:count], self.linear)


class Version(NamedTuple):
    """PVT or PVTv2.

    Attributes:
        name: The class in :mod:`pvt_mm.models`.
        formats: What each column of ``names`` is called. Ours is the first.
        writable: The formats that the weights can be converted to.
        names: One row a parameter; None where a format does not have it.
        marker: Our name of a parameter that tells the version.
        classifiers: The prefixes of the backbone and of the head in a classifier, by format.
        sizes: Those of the released models, by ``arch``.
    """

    name: str
    formats: tuple[str, ...]
    writable: tuple[str, ...]
    names: tuple[tuple[str | None, ...], ...]
    marker: str
    classifiers: dict[str, tuple[str, str]]
    sizes: dict[str, Sizes]

    def translate(self, key: str, source: str, target: str) -> str | None:
        """Returns the name in ``target`` of a key of ``source``, or None where either has no such parameter."""
        for row in self.names:
            theirs, wanted = row[self.formats.index(source)], row[self.formats.index(target)]
            if theirs and wanted and (found := _pattern(theirs).fullmatch(key)):
                fields = found.groupdict()
                stage = int(fields['s']) if 's' in fields else int(fields.get('s1', 1)) - 1
                layer = int(fields['l']) if 'l' in fields else int(fields.get('l1', 1)) - 1
                return wanted.format(s=stage, s1=stage + 1, l=layer, l1=layer + 1, p=fields.get('p'))
        return None

    def locate(self, keys: Iterable[str]) -> dict[str, str]:
        """Returns the format of each model of this version among keys, by the prefix of its keys."""
        row = next(row for row in self.names if row[0] == self.marker)
        patterns = [(layout, _pattern(f'{{before}}{name}')) for layout, name in zip(self.formats, row, strict=True)]
        found = ((layout, pattern.fullmatch(key)) for key in keys for layout, pattern in patterns)
        return {match['before']: layout for layout, match in found if match}


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
    marker='stages.{s}.patch_embed.proj.{p}',
    classifiers={
        'pvt_mm': ('backbone.', 'head.fc.'),
        'authors': ('', 'head.'),
        'huggingface': ('pvt.', 'classifier.'),
    },
    sizes={
        'tiny':       Sizes(_CHANNELS, (2, 2,  2, 2), _RATIOS),
        'small':      Sizes(_CHANNELS, (3, 4,  6, 3), _RATIOS),
        'medium':     Sizes(_CHANNELS, (3, 4, 18, 3), _RATIOS),
        'large':      Sizes(_CHANNELS, (3, 8, 27, 3), _RATIOS),
        'small_wide': Sizes((89, 178, 445, 712), (3, 4, 6, 3), _RATIOS),
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
    marker='stages.{s}.layers.{l}.ffn.dwconv.{p}',
    classifiers={
        'pvt_mm': ('backbone.', 'head.fc.'),
        'authors': ('', 'head.'),
        'timm': ('', 'head.'),
        'huggingface': ('pvt_v2.', 'classifier.'),
    },
    sizes={
        'b0':    Sizes((32, 64, 160, 256), (2, 2, 2, 2), _RATIOS),
        'b1':    Sizes(_CHANNELS, (2, 2,  2, 2), _RATIOS),
        'b2':    Sizes(_CHANNELS, (3, 4,  6, 3), _RATIOS),
        'b2_li': Sizes(_CHANNELS, (3, 4,  6, 3), _RATIOS, linear=True),
        'b3':    Sizes(_CHANNELS, (3, 4, 18, 3), _RATIOS),
        'b4':    Sizes(_CHANNELS, (3, 8, 27, 3), _RATIOS),
        'b5':    Sizes(_CHANNELS, (3, 6, 40, 3), (4, 4, 4, 4)),
    },
)
# fmt: on
VERSIONS = (V1, V2)  # the markers of the first are also in the second
# SegFormer's encoders have the names of a PVTv2, the authors' and MMDetection's, and expand by 4 in all stages. MiT-B5 is
# left out: it is the same model as b5.
_ENCODERS = ('b0', 'b1', 'b2', 'b3', 'b4')
SEGFORMER = {f'MiT-{arch.upper()}': V2.sizes[arch]._replace(mlp_ratios=(4, 4, 4, 4)) for arch in _ENCODERS}
