# RetinaNet with the wide PVT-Small, hidden dimensions x 1.4 (section 5.5). Paper: AP 40.8 (Table 9), 8 V100:
#   tools/dist_train.sh configs/retinanet/pvt_s_wide_1x.py 8
# Nobody published weights of this model: pre-train it on ImageNet and put the checkpoint at `weights`, or train from
# random weights with --cfg-options model.backbone.init_cfg=None
_base_ = './pvt_s_1x.py'
weights = 'checkpoints/pvt_small_wide.pth'
model = dict(
    backbone=dict(arch='small_wide', init_cfg=dict(checkpoint=weights)), neck=dict(in_channels=[89, 178, 445, 712])
)
