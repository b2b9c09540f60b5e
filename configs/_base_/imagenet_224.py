# ImageNet in torchvision's layout, data_root/{train,val}/<class>/*.jpg (section 5.1). Training uses random crops and
# flips; an epoch has a third of the images, three times each, as in the authors' release. Testing uses the central
# 224 x 224 pixels of a shorter side of 256. RandAugment, erasing, mixup and CutMix are in the data preprocessor.
data_root = 'data/imagenet/'
bicubic = dict(interpolation='bicubic', backend='pillow')
load = dict(type='LoadImageFromFile', imdecode_backend='pillow')  # OpenCV decodes truncated files
train_pipeline = [
    load,
    dict(type='pvt_mm.RandomResizedCrop', scale=224, crop_ratio_range=(0.08, 1.0), **bicubic),
    dict(type='RandomFlip', prob=0.5),
    dict(type='pvt_mm.PackInputs'),
]
test_pipeline = [
    load,
    dict(type='Resize', scale=(65536, 256), keep_ratio=True, **bicubic),
    dict(type='CenterCrop', crop_size=224),
    dict(type='pvt_mm.PackInputs'),
]
train_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    drop_last=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='pvt_mm.RepeatAugSampler', num_repeats=3),
    dataset=dict(type='pvt_mm.ImageFolder', data_root=data_root, data_prefix='train', pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='pvt_mm.ImageFolder', data_root=data_root, data_prefix='val', pipeline=test_pipeline, test_mode=True
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='pvt_mm.Accuracy', topk=(1, 5))
test_evaluator = val_evaluator
