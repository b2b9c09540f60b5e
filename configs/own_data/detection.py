# Boxes on your own data: RetinaNet with PVT-Small from the detector that MMDetection trained on COCO (40.4 AP there).
#   tools/train.py configs/own_data/detection.py --data FOLDER
# 24 epochs with shorter sides of 640 to 800 pixels. The average of the weights (EMA) is evaluated after each epoch; the
# best is kept, and training stops after 8 epochs without a better one. Smaller machines: --batch 1, --size 480.
_base_ = ['../retinanet/pvt_s_3x_ms.py', '../_base_/own_data.py']
load_from = (
    'https://download.openmmlab.com/mmdetection/v2.0/pvt/retinanet_pvt-s_fpn_1x_coco/'
    'retinanet_pvt-s_fpn_1x_coco_20210906_142921-b6c94a5b.pth'
)
model = dict(backbone=dict(init_cfg=None))
train_cfg = _base_.epochs
param_scheduler = _base_.cosine
default_hooks = dict(checkpoint=dict(save_best='coco/bbox_mAP', max_keep_ckpts=1))
stop = dict(type='pvt_mm.EarlyStoppingHook', monitor='coco/bbox_mAP', patience=8, min_delta=0.001)
custom_hooks = [_base_.ema, stop]
