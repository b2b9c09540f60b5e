"""MMDetection's DETR, which takes checkpoints of MMDetection 2 as well."""

import re

from mmdet.models import detectors
from torch import Tensor

from pvt_mm.checkpoint.loading import AnyFormat
from pvt_mm.registry import MODELS

# MMDetection 2 has the transformer in the head, and lists of a layer's attentions and FFNs.
NAMES = {
    r'bbox_head\.input_proj\.': 'neck.convs.0.conv.',
    r'bbox_head\.query_embedding\.': 'query_embedding.',
    r'bbox_head\.transformer\.((?:encoder|decoder)\.layers\.\d+\.)attentions\.0\.': r'\1self_attn.',
    r'bbox_head\.transformer\.(decoder\.layers\.\d+\.)attentions\.1\.': r'\1cross_attn.',
    r'bbox_head\.transformer\.((?:encoder|decoder)\.layers\.\d+\.)ffns\.0\.': r'\1ffn.',
    r'bbox_head\.transformer\.': '',
}


@MODELS.register_module()
class DETR(AnyFormat, detectors.DETR):
    """MMDetection's DETR, with its arguments. The authors' DETR with PVT-Small is a checkpoint of MMDetection 2."""

    def translate(self, state_dict: dict[str, Tensor], prefix: str) -> None:
        for key in [key for key in state_dict if key.startswith(f'{prefix}bbox_head.')]:
            name = key.removeprefix(prefix)
            for theirs, ours in NAMES.items():
                if found := re.match(theirs, name):
                    state_dict[prefix + found.expand(ours) + name[found.end() :]] = state_dict.pop(key)
                    break
