"""The training step of a family, eager or captured, and the evaluation of a split.

- `engine`: the step, with its optimizer and schedule; `prepare`: changes to a family before its engine is built.
- `channel_padding`: channels stored as multiples of 8, and their removal.
- `backward`, `distillation`: losses of a batch and the gradients of all parameters; `micro_batches`: the same in parts.
- `evaluation`, `metrics`: results over a split, summed on the device.
- `graph_capture`, `cuda_recorder`: steps as CUDA graphs.
- `batch_source`, `next_batch`: the augmented batches of an epoch, which captured steps prepare one step ahead.
- `numerics`, `weight_casts`, `preprocessing`: precision, and the input of the networks.
- `schedule`, `optimizer`, `weight_average`: parts that a step changes; `stateful`: their protocol.

A new part that a step changes implements `stateful.Stateful` and joins the parts of `Engine`. Capture and checkpoints
then include it.
"""
