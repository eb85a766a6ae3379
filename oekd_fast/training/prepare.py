"""Changes to a family that make its training faster, applied before its engine is built."""

from __future__ import annotations

from oekd_fast.config.train_config import TrainConfig
from oekd_fast.distributed.norms import use_global_norms
from oekd_fast.distributed.world import ALONE, World
from oekd_fast.family.ensemble import StudentEnsemble
from oekd_fast.layers.fast_module import use_direct_convs, use_fused_norms, use_winograd_convs
from oekd_fast.training.channel_padding import pad_channels, pads_channels
from oekd_fast.training.compile_blocks import compile_blocks
from oekd_fast.training.weight_casts import cast_weights_together


def prepare_family(ensemble: StudentEnsemble, config: TrainConfig, world: World = ALONE) -> StudentEnsemble:
    """Change `ensemble` in place for training with `config`, and return it.

    Fused normalisation, direct convolutions and Winograd's are enabled where a layer supports them, the base is frozen
    with `config.freeze_base`, and blocks are compiled with `config.compile_blocks`. On CUDA, the weights of a network
    are cast together. Names, state dicts and results stay the same up to rounding; parameters are replaced where
    channels are padded. With ``config.norms="global"``, the statistics of BatchNorm are those of all ranks of `world`.

    Raises:
        ValueError: ``config.pad_channels`` is "on", and the channels of the network cannot be padded.
    """
    if world.size > 1 and config.norms == "global":
        use_global_norms(ensemble, world)
    if pads_channels(config, ensemble):
        pad_channels(ensemble)
    use_fused_norms(ensemble)
    use_direct_convs(ensemble)
    use_winograd_convs(ensemble)
    if config.freeze_base:
        ensemble.base.requires_grad_(False)
    if config.compile_blocks:
        compile_blocks(ensemble, ensemble.architecture.block_type)
    if next(ensemble.parameters()).is_cuda:  # it saves launches, which a CPU does not have
        cast_weights_together(ensemble)
    return ensemble
