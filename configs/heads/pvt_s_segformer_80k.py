# SegFormer's head with PVT-Small, 80k iterations: MMSegmentation's head with section 5.3's recipe. 4 GPUs, 4 images
# each:
#   tools/dist_train.sh configs/heads/pvt_s_segformer_80k.py 4
_base_ = '../semantic_fpn/pvt_s_80k.py'
shared = dict(num_classes=150, norm_cfg=dict(type='SyncBN', requires_grad=True), align_corners=False)
pyramid = dict(type='SegformerHead', in_channels=[64, 128, 320, 512], in_index=[0, 1, 2, 3], channels=256, **shared)
model = dict(neck=None, decode_head=dict(_delete_=True, **pyramid))
