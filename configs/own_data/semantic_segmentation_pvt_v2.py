# Label maps of your own: Semantic FPN with PVTv2-B2, from ImageNet's weights.
#   tools/train.py configs/own_data/semantic_segmentation_pvt_v2.py --data FOLDER
# The recipe is semantic_segmentation.py's.
_base_ = ['./semantic_segmentation.py', '../_base_/pvt_v2_b2.py']
model = dict(backbone=_base_.pvt)
