# Mask R-CNN with ResNet-50 and global context blocks, 1x schedule. Paper: mask AP 36.2 (Table 10), 8 V100:
#   tools/dist_train.sh configs/mask_rcnn/r50_gc_r4_1x.py 8
# The recipe is MMDetection's, with SyncBN; the authors of GCNet published 36.2 for it.
_base_ = ['mmdet::gcnet/mask-rcnn_r50-syncbn-gcb-r4-c3-c5_fpn_1x_coco.py', '../_base_/mask_rcnn_tta.py']
train_cfg = dict(type='pvt_mm.EpochBasedTrainLoop', max_broken_images=10)
default_hooks = dict(checkpoint=dict(type='pvt_mm.CheckpointHook'), finite=dict(type='pvt_mm.FiniteHook'))
