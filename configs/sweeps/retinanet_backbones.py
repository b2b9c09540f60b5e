# Table 3: RetinaNet on COCO with nine backbones, 1x and 3x with multi-scale training, 18 trials of 8 GPUs.
#   tools/sweep.py configs/sweeps/retinanet_backbones.py --executor slurm --gpus 8
title = 'RetinaNet on COCO val2017 (Table 3)'
metric = 'coco/bbox_mAP'
backbones = ['r18', 'pvt_t', 'r50', 'pvt_s', 'r101', 'x101_32x4d', 'pvt_m', 'x101_64x4d', 'pvt_l']
configs = [f'../retinanet/{name}_{schedule}.py' for schedule in ('1x', '3x_ms') for name in backbones]
