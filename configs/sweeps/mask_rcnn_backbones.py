# Table 4: Mask R-CNN on COCO with nine backbones, 1x and 3x with multi-scale training, 18 trials of 8 GPUs.
#   tools/sweep.py configs/sweeps/mask_rcnn_backbones.py --executor slurm --gpus 8
title = 'Mask R-CNN on COCO val2017 (Table 4)'
metric = 'coco/segm_mAP'
backbones = ['r18', 'pvt_t', 'r50', 'pvt_s', 'r101', 'x101_32x4d', 'pvt_m', 'x101_64x4d', 'pvt_l']
configs = [f'../mask_rcnn/{name}_{schedule}.py' for schedule in ('1x', '3x_ms') for name in backbones]
