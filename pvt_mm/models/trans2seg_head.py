"""Trans2Seg (Xie et al., 2021, arXiv 2101.08461) as a decode head for MMSegmentation (section 5.4, Table 7).

Shapes: B images; h x w the last feature map, N = h * w; H x W the stride-4 map; C the transformer's width; K classes.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import Tensor, nn

from pvt_mm.registry import MODELS


@MODELS.register_module()
class Trans2SegHead(BaseDecodeHead):
    """Segments by attention: a transformer encoder on the last feature map, and a decoder with a query per class.

    The attention map of a class's query is the class's shape at the resolution of the last feature map. A small
    convolutional head fuses the attention maps with the encoder's output and the stride-4 features. It differs from the
    original in two ways:

    - The classes are channels of the convolutional head. The original runs its head once for each class, on tensors of
      B x K x C x H x W.
    - Positions are sine encodings, so that images may have any size. The original has position tables, and with a
      ResNet also MLPs over positions, of one size.

    Args:
        in_channels: Channels of the stride-4 map and of the last map.
        channels: Channels of the last convolution. 152 fits the parameters and GFLOPs of Table 7.
        embed_dims: C.
        num_layers: Number of encoder layers, and of decoder layers.
        mlp_ratio: Hidden width of the feed-forward layers as a multiple of C.
        kwargs: Arguments of MMSegmentation's ``BaseDecodeHead``: ``num_classes``, ``in_index``, ``norm_cfg``, ...
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
        sizes: dict[str, Any] = dict(
            d_model=embed_dims,
            nhead=num_heads,
            dim_feedforward=mlp_ratio * embed_dims,
            dropout=dropout,
            activation='gelu',
            batch_first=True,
            norm_first=True,
        )
        self.project = nn.Conv2d(in_channels[1], embed_dims, 1)
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(**sizes), num_layers, nn.LayerNorm(embed_dims), enable_nested_tensor=False
        )
        self.class_queries = nn.Parameter(nn.init.trunc_normal_(torch.empty(self.num_classes, embed_dims), std=0.02))
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(**sizes), num_layers, nn.LayerNorm(embed_dims))
        self.attention_maps = AttentionMaps(embed_dims, num_heads)
        conv = dict(norm_cfg=self.norm_cfg, act_cfg=self.act_cfg)
        self.fuse_attention = ConvModule(num_heads * self.num_classes, embed_dims, 1, **conv)
        self.fuse_memory = ConvModule(embed_dims, embed_dims, 1, **conv)
        self.fuse_low = ConvModule(in_channels[0], embed_dims, 1, **conv)
        self.fuse = ConvModule(embed_dims, channels, 3, padding=1, **conv)

    def init_weights(self) -> None:
        """Initialises weights by Xavier (section 5.3), except the class queries and MMSegmentation's last layer."""
        super().init_weights()
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1 and not name.startswith(('class_queries', 'conv_seg')):
                nn.init.xavier_uniform_(parameter)
            elif name.endswith('bias'):
                nn.init.zeros_(parameter)

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Returns class logits (B, K, H, W), at the stride of the first selected map, from the backbone's maps."""
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
    """Multi-head attention weights of queries over a memory, times the number of tokens N.

    With uniform attention every weight is 1, so that the maps do not fade as images grow.
    """

    def __init__(self, embed_dims: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(embed_dims, embed_dims)
        self.k = nn.Linear(embed_dims, embed_dims, bias=False)  # a bias would cancel in the softmax

    def forward(self, queries: Tensor, memory: Tensor) -> Tensor:
        """Returns the maps (B, heads, K, N) of queries (B, K, C) over a memory (B, N, C)."""
        q = self.q(queries).unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, K, d)
        k = self.k(memory).unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, N, d)
        scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[3])  # (B, heads, K, N)
        return scores.softmax(3) * k.shape[2]


def sine_positions(h: int, w: int, channels: int, device: torch.device) -> Tensor:
    """Returns DETR's sine encoding (1, h * w, channels) of the positions of an h x w map, in row-major order.

    Half of the channels encode the row and half the column, each as a fraction of the map's side times 2 pi,
    divided by wavelengths that rise geometrically from 1 towards 10000.
    """
    wavelengths = 10000 ** (torch.arange(channels // 4, device=device) * 4 / channels)  # (channels / 4,)
    y, x = (2 * math.pi * (torch.arange(1, size + 1, device=device) / size) for size in (h, w))
    positions = torch.stack(torch.meshgrid(y, x, indexing='ij'), 2).flatten(0, 1)  # (N, 2)
    angles = positions[:, :, None] / wavelengths  # (N, 2, channels / 4)
    return torch.cat([angles.sin(), angles.cos()], 2).flatten(1)[None]
