# Three learning rates of the demo's RetinaNet on generated shapes, two seeds each, for two epochs of 400 images: about
# 5 minutes on two CPU cores.
#   tools/make_shapes.py data/shapes
#   tools/sweep.py configs/sweeps/demo.py --jobs 2
title = 'Learning rate, RetinaNet with a small PVT on generated shapes'
metric = 'coco/bbox_mAP'
configs = dict(shapes='../demo/retinanet_shapes.py')
short = ['train_cfg.max_epochs=2', 'train_cfg.val_interval=1', 'param_scheduler.1.end=2']
short += ['train_dataloader.dataset.indices=400']
options = {f'lr{rate}': [*short, f'optim_wrapper.optimizer.lr={rate}'] for rate in ('1e-4', '5e-4', '2e-3')}
seeds = (0, 1)
