# PVT-Small on ImageNet, 300 epochs (section 5.1). Paper: top-1 error 20.2 % (Table 2), 8 V100 GPUs, 128 images each:
#   tools/dist_train.sh configs/classification/pvt_s_300e.py 8
# To turn an augmentation off, set it to None: --cfg-options model.data_preprocessor.mixup=None (cutmix, rand_augment,
# erasing). The others are off with model.head.label_smoothing=0 and train_dataloader.sampler.num_repeats=1.
_base_ = ['../_base_/imagenet_224.py', '../_base_/schedule_300e.py', '../_base_/classification_runtime.py']
model = dict(
    type='pvt_mm.ImageClassifier',
    data_preprocessor=dict(
        type='pvt_mm.ClsDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        rand_augment=dict(num_ops=2, magnitude=9, magnitude_std=0.5),
        erasing=0.25,
        mixup=0.8,
        cutmix=1.0,
        switch_prob=0.5,
    ),
    backbone=dict(type='pvt_mm.PVT', arch='small', drop_path_rate=0.1, out_type='cls_token'),
    head=dict(type='pvt_mm.LinearClsHead', num_classes=1000, in_channels=512, label_smoothing=0.1),
)
