# ADE20K with random crops of 512 x 512 for training. Test images have a shorter side of 512 (section 5.3), and both
# sides are rounded up to multiples of 32, as in the authors' release. Test-time augmentation scales (2048, 512), where
# MMSegmentation scales the raw image.
data_root = 'data/ade/ADEChallengeData2016'
load, labels = dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')  # ADE20KDataset sets reduce_zero_label
resize = dict(type='Resize', scale=(2048, 512), keep_ratio=True)
multiple = dict(type='ResizeToMultiple', size_divisor=32)
train_pipeline = [
    load,
    labels,
    dict(type='RandomResize', scale=(2048, 512), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(512, 512), cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [load, resize, multiple, labels, dict(type='PackSegInputs')]  # labels keep the original size
scales = [(2048 * quarters // 4, 512 * quarters // 4) for quarters in (2, 3, 4, 5, 6, 7)]
tta_pipeline = [
    load,
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Resize', scale=scale, keep_ratio=True) for scale in scales],
            [multiple],
            [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)],
            [labels],
            [dict(type='PackSegInputs')],
        ],
    ),
]
tta_model = dict(type='SegTTAModel')

train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='ADE20KDataset',
        data_root=data_root,
        data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='ADE20KDataset',
        data_root=data_root,
        data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
