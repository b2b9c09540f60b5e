"""Trans2Seg (Xie et al., 2021, arXiv 2101.08461) as a decode head for MMSegmentation (section 5.4, Table 7).

Letters: B images, h x w the last map (N = h * w), H x W the stride-4 map, C the transformer's channels, K classes.
"""

import math

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import Tensor, nn

from pvt_mm.registry import MODELS


@MODELS.register_module()
class Trans2SegHead(BaseDecodeHead):
    """Segments by attention: a transformer encoder over the last map, and a decoder with one learnt query per class.

    What a class's query attends to, its attention map, is the class's shape at the last map's resolution; a small
    convolutional head fuses the maps of all classes with the encoder's output and the stride-4 features. The classes
    are channels of that head from its first layer on: no tensor has the size B x K x C x H x W, as the original's have,
    which runs its head once for each class. Positions are sine encodings, so that images may have any size, where the
    original has learnt tables, and in its ResNet form MLPs over positions, of one size.

    Args:
        in_channels: Channels of the stride-4 map and of the last map.
        channels: Of the map that the class scores come from; 152 is what Table 7's parameters and GFLOPs leave.
        embed_dims: C.
        num_layers: Encoder layers, and decoder layers.
        num_heads: Attention heads.
        mlp_ratio: Width of the feed-forward layers over C.
        dropout: Of the transformer.
        kwargs: Those of MMSegmentation's ``BaseDecodeHead``: ``num_classes``, ``in_index``, ``norm_cfg``, ...
    """

    def __init__(
        self,
        in_channels: tuple[int, int],
        channels: int = 152,
        embed_dims: int = 256,
        num_layers: int = 4,
        num_heads: int = 8,
        mlp_ratio: int = 4,
        dropout: float = 0.1,
        **kwargs,
    ):
        kwargs = dict(in_index=(0, 3), input_transform='multiple_select') | kwargs
        super().__init__(list(in_channels), channels, **kwargs)
        low_channels, high_channels = in_channels
        sizes = dict(
            d_model=embed_dims,
            nhead=num_heads,
            dim_feedforward=mlp_ratio * embed_dims,
            dropout=dropout,
            activation='gelu',
            batch_first=True,
            norm_first=True,
        )
        self.project = nn.Conv2d(high_channels, embed_dims, 1)
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(**sizes), num_layers, nn.LayerNorm(embed_dims), enable_nested_tensor=False
        )
        self.class_queries = nn.Parameter(nn.init.trunc_normal_(torch.empty(self.num_classes, embed_dims), std=0.02))
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(**sizes), num_layers, nn.LayerNorm(embed_dims))
        self.attention_maps = AttentionMaps(embed_dims, num_heads)
        conv = dict(norm_cfg=self.norm_cfg, act_cfg=self.act_cfg)
        self.fuse_attention = ConvModule(num_heads * self.num_classes, embed_dims, 1, **conv)
        self.fuse_memory = ConvModule(embed_dims, embed_dims, 1, **conv)
        self.fuse_low = ConvModule(low_channels, embed_dims, 1, **conv)
        self.fuse = ConvModule(embed_dims, channels, 3, padding=1, **conv)

    def init_weights(self) -> None:
        """Draws the weights after Xavier, as section 5.3 does new layers; MMSegmentation's last layer keeps its own."""
        super().init_weights()
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1 and not name.startswith(('class_queries', 'conv_seg')):
                nn.init.xavier_uniform_(parameter)
            elif name.endswith('bias'):
                nn.init.zeros_(parameter)

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Returns the class scores (B, K, H, W) of the backbone's maps, at the stride of the first selected."""
        low, high = self._transform_inputs(inputs)
        h, w = high.shape[2:]
        tokens = self.project(high).flatten(2).transpose(1, 2)  # (B, N, C)
        positions = sine_positions(h, w, tokens.shape[2], tokens.device).to(tokens.dtype)  # (1, N, C)
        memory = self.encoder(tokens + positions)  # (B, N, C)
        queries = self.decoder(self.class_queries.expand(memory.shape[0], -1, -1), memory)  # (B, K, C)
        attention = self.attention_maps(queries, memory).flatten(1, 2).unflatten(2, (h, w))  # (B, heads * K, h, w)
        memory = memory.transpose(1, 2).unflatten(2, (h, w))  # (B, C, h, w)
        x = self.fuse_attention(attention) + self.fuse_memory(memory)  # (B, C, h, w)
        x = F.interpolate(x, low.shape[2:], mode='bilinear', align_corners=self.align_corners)  # (B, C, H, W)
        return self.cls_seg(self.fuse(x + self.fuse_low(low)))  # (B, K, H, W)


class AttentionMaps(nn.Module):
    """What each query attends to: the softmax of equation 4 on its own, in units of even attention.

    A weight of 1 is what every token would get if all got the same, so that the maps do not fade as images grow.
    """

    def __init__(self, embed_dims: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(embed_dims, embed_dims)
        self.k = nn.Linear(embed_dims, embed_dims, bias=False)  # the softmax would take a bias out

    def forward(self, queries: Tensor, memory: Tensor) -> Tensor:
        """Returns the maps (B, heads, K, N) of queries (B, K, C) over a memory (B, N, C)."""
        q = self.q(queries).unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, K, d)
        k = self.k(memory).unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, N, d)
        scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[3])  # (B, heads, K, N)
        return scores.softmax(3) * k.shape[2]


def sine_positions(h: int, w: int, channels: int, device: torch.device) -> Tensor:
    """Returns DETR's sine encoding (1, h * w, channels) of the positions of an h x w map, row by row.

    Half of the channels encode the row and half the column, each as a fraction of the whole times 2 pi, at wavelengths
    that rise geometrically to 10000 times the first.
    """
    wavelengths = 10000 ** (torch.arange(channels // 4, device=device) * 4 / channels)  # (channels / 4,)
    waves = []
    for size in (h, w):
        fractions = torch.arange(1, size + 1, device=device) / size
        angles = 2 * math.pi * fractions[:, None] / wavelengths  # (size, channels / 4)
        waves.append(torch.cat([angles.sin(), angles.cos()], 1))  # (size, channels / 2)
    rows, columns = waves
    return torch.cat([rows[:, None].expand(-1, w, -1), columns.expand(h, -1, -1)], 2).flatten(0, 1)[None]
