"""Augmentation of training images.

`settings` holds the options and derives image sizes from them; `transforms` applies them to a batch (`augment`,
`centre`, `normalise`); `resized_crop` is the random resized crop, `alternating` has flips that alternate, and `mixing`
has mixup and CutMix.
"""
