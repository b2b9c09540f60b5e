# Masks on your own data: Mask R-CNN with PVT-Small, from ImageNet's weights. (The authors' detector is on Google Drive:
# configs/mask_rcnn/README.md links it; download it with a browser, and add --weights PATH.)
#   tools/train.py configs/own_data/instance_segmentation.py --data FOLDER
# 24 epochs with shorter sides of 640 to 800 pixels. The average of the weights (EMA) is evaluated after each epoch; the
# best is kept, and training stops after 8 epochs without a better one. Smaller machines: --batch 1, --size 480.
_base_ = ['../mask_rcnn/pvt_s_3x_ms.py', '../_base_/own_data.py']
train_cfg = _base_.epochs
param_scheduler = _base_.cosine
default_hooks = dict(checkpoint=dict(save_best='coco/segm_mAP', max_keep_ckpts=1))
stop = dict(type='pvt_mm.EarlyStoppingHook', monitor='coco/segm_mAP', patience=8, min_delta=0.001)
custom_hooks = [_base_.ema, stop]
