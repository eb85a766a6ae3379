"""Splits as batches on a device.

`base` defines the interface `Batches` and `DeviceBatches`, whose images are on the device. `prefetch` has
`HostBatches`, which gathers batches in a thread and copies them through `transfer`. `placement` chooses between them.
"""
