# RetinaNet with PVT-Small at a shorter side of 640 pixels. Paper: AP 38.7 (Table 11), 8 V100:
#   tools/dist_train.sh configs/retinanet/pvt_s_640_1x.py 8
_base_ = './pvt_s_1x.py'
resize = dict(type='Resize', scale=(1333, 640), keep_ratio=True)
meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
pack = dict(type='PackDetInputs', meta_keys=meta_keys)
load, boxes = dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)
train_pipeline = [load, boxes, resize, dict(type='RandomFlip', prob=0.5), dict(type='PackDetInputs')]
test_pipeline = [load, resize, boxes, pack]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
scales = [dict(type='Resize', scale=scale, keep_ratio=True) for scale in ((1333, 640), (666, 320), (2000, 960))]
flips = [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)]
pack_flipped = dict(type='PackDetInputs', meta_keys=(*meta_keys, 'flip', 'flip_direction'))
tta_pipeline = [load, dict(type='TestTimeAug', transforms=[scales, flips, [boxes], [pack_flipped]])]
