# Figure 5: RetinaNet with PVT-Small from ImageNet's weights and from random ones, 1x and 3x with multi-scale training.
#   tools/sweep.py configs/sweeps/pretraining.py --executor slurm --gpus 8
title = 'Pre-training, RetinaNet with PVT-Small on COCO val2017 (Figure 5)'
metric = 'coco/bbox_mAP'
configs = {'1x': '../retinanet/pvt_s_1x.py', '3x_ms': '../retinanet/pvt_s_3x_ms.py'}
options = dict(pretrained=[], scratch=['model.backbone.init_cfg=None'])
