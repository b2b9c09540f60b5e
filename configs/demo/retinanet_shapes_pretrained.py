# retinanet_shapes_scratch.py with the weights of the classifier of shapes: the other half of `make demo-pretraining`.
#   tools/train.py configs/demo/retinanet_shapes_pretrained.py --work-dir work_dirs/demo_pretraining/pretrained
_base_ = './retinanet_shapes_scratch.py'
weights = 'work_dirs/demo_pretraining/classifier/epoch_30.pth'
model = dict(backbone=dict(init_cfg=dict(_delete_=True, type='Pretrained', checkpoint=weights)))
