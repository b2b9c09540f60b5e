# The 3x schedule of 36 epochs, and images with a shorter side from 640 to 800 (section 5.2), as variables.
schedule_3x = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=36, milestones=[27, 33], gamma=0.1),
]
multi_scale, multi_scale_with_masks = (
    [
        dict(type='LoadImageFromFile'),
        load,
        dict(type='RandomResize', scale=[(1333, 640), (1333, 800)], keep_ratio=True),
        dict(type='RandomFlip', prob=0.5),
        dict(type='PackDetInputs'),
    ]
    for load in (
        dict(type='LoadAnnotations', with_bbox=True),
        dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    )
)
