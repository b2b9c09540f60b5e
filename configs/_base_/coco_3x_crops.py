# The 3x recipe of PVT v2's authors, as variables: DETR's crops, and a weight decay of 0.05 of which parameters with
# `norm` in their names are exempt.
_base_ = './schedule_3x.py'
adamw_3x = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
    paramwise_cfg=dict(custom_keys=dict(norm=dict(decay_mult=0.0))),
)
resize, resize_before_crop = (
    dict(type='RandomChoiceResize', scales=[(1333, side) for side in sides], keep_ratio=True)
    for sides in (range(480, 801, 32), (400, 500, 600))
)
crop = dict(type='RandomCrop', crop_type='absolute_range', crop_size=(384, 600), allow_negative_crop=True)
crops, crops_with_masks = (
    [
        dict(type='LoadImageFromFile'),
        load,
        dict(type='RandomFlip', prob=0.5),
        dict(type='RandomChoice', transforms=[[resize], [resize_before_crop, crop, resize]]),
        dict(type='PackDetInputs'),
    ]
    for load in (
        dict(type='LoadAnnotations', with_bbox=True),
        dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    )
)
