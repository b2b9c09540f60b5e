# RetinaNet with ViT-Small/4, 1x schedule. Paper: out of memory (Table 8), 8 V100 GPUs of 32 GB, 2 images each:
#   tools/dist_train.sh configs/retinanet/vit_s_p4_1x.py 8
_base_ = './vit_s_p32_1x.py'
model = dict(
    backbone=dict(patch_size=4, init_cfg=dict(checkpoint='checkpoints/vit_small_p4.pth')),
    neck=[dict(type='pvt_mm.InterpolatedPyramid', scales=(1, 1 / 2, 1 / 4, 1 / 8)), {{_base_.fpn}}],
)
