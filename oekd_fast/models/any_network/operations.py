"""The operations that a network may consist of, by kind."""

from __future__ import annotations

import torch

from oekd_fast.models.any_network import rules
from oekd_fast.models.any_network.calls import Call, Outcome, Unsupported
from oekd_fast.models.any_network.channel_sets import FIXED, ChannelSets
from oekd_fast.models.any_network.layouts import Layout

# Results whose elements depend on their size alone.
FILLED = frozenset(
    "zeros ones full empty rand randn zeros_like ones_like full_like empty_like rand_like randn_like new_zeros new_ones"
    " new_full new_empty new_empty_strided empty_strided empty_permuted bernoulli".split()
)
# Computed from each element alone, or along a dimension that stays, of the first tensor.
SAME_SHAPE = frozenset(
    "clone _to_copy detach alias contiguous lift_fresh dropout native_dropout bernoulli_ _softmax _safe_softmax"
    " _log_softmax triu tril fill fill_ zero_ hardswish hardswish_ log_sigmoid_forward".split()
)
# Computed element by element from several tensors, and not marked as such by PyTorch.
ELEMENTWISE = frozenset(["prelu", "_prelu_kernel", "rsub"])
# Made of the elements of the first tensor, moved.
MOVEMENT = frozenset(
    "view _unsafe_view reshape _reshape_alias permute transpose transpose_ t t_ slice select split split_with_sizes"
    " unsafe_split unsafe_split_with_sizes unbind unsqueeze unsqueeze_ squeeze squeeze_ expand repeat index"
    " index_select roll flip unfold pixel_shuffle pixel_unshuffle channel_shuffle diagonal".split()
)
CONCATENATION = frozenset(["cat", "stack"])
REDUCTIONS = frozenset("mean sum amax amin var std var_mean std_mean linalg_vector_norm norm prod logsumexp".split())
BATCH_NORMS = frozenset(
    "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm"
    " miopen_batch_norm _batch_norm_with_update _batch_norm_no_update".split()
)
# Computed over the last dimensions of [B, C, ...], by the number of these dimensions.
OVER_POSITIONS = {
    1: "max_pool1d_with_indices avg_pool1d _adaptive_avg_pool1d adaptive_max_pool1d upsample_nearest1d"
    " upsample_linear1d _upsample_nearest_exact1d reflection_pad1d replication_pad1d",
    2: "max_pool2d_with_indices max_pool2d avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d upsample_nearest2d"
    " upsample_bilinear2d upsample_bicubic2d _upsample_nearest_exact2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa"
    " reflection_pad2d replication_pad2d",
    3: "max_pool3d_with_indices avg_pool3d _adaptive_avg_pool3d adaptive_max_pool3d upsample_nearest3d"
    " upsample_trilinear3d replication_pad3d",
}
RULES = {
    **dict.fromkeys(SAME_SHAPE, rules.same_shape),
    **dict.fromkeys(ELEMENTWISE, rules.elementwise),
    **dict.fromkeys(MOVEMENT, rules.move),
    **dict.fromkeys(CONCATENATION, rules.concatenate),
    **dict.fromkeys(REDUCTIONS, rules.reduce),
    **dict.fromkeys(BATCH_NORMS, rules.batch_norm),
    **{name: rules.over_positions(count) for count, names in OVER_POSITIONS.items() for name in names.split()},
    "as_strided": rules.same_memory,
    "as_strided_": rules.same_memory,
    "mm": rules.matrix_product,
    "bmm": rules.matrix_product,
    "addmm": rules.added_matrix_product,
    "baddbmm": rules.added_matrix_product,
    "mv": rules.matrix_vector_product,
    "convolution": rules.convolution,
    "native_layer_norm": rules.layer_norm,
    "_fused_rms_norm": rules.layer_norm,
    "native_group_norm": rules.group_norm,
    "_weight_norm_interface": rules.weight_norm,
    "constant_pad_nd": rules.pad,
    "embedding": rules.embedding,
    "glu": rules.gated,
    "copy_": rules.copied,
}


# Copies in memory, which PyTorch makes or leaves out depending on sizes.
COPIES = frozenset("clone alias detach contiguous lift_fresh as_strided as_strided_ _to_copy".split())
VIEWS = frozenset("view _unsafe_view reshape _reshape_alias".split())


def is_copy(name: str) -> bool:
    """Return whether an operation that its rule accepts returns all elements of a tensor in the same places."""
    return name in COPIES


def same_operation(a: str, b: str) -> bool:
    """Return whether two names stand for the same operation."""
    return a == b or (a in VIEWS and b in VIEWS)


def is_movement(name: str) -> bool:
    """Return whether an operation only moves elements, so that its arguments decide which channel is where."""
    return name in MOVEMENT or name in CONCATENATION


def apply(sets: ChannelSets, call: Call) -> Outcome:
    """Join the channels that an operation combines, and return the layouts of its outputs.

    Raises:
        Unsupported: there is no rule for the operation, and it reads channels.
    """
    if call.name in FILLED:
        return call.everywhere(Layout(filled=True))
    if not any(operand.layout.factors for operand in call.tensors()):
        filled = bool(call.operands) and all(operand.layout.filled for operand in call.tensors())
        return call.everywhere(Layout(filled=filled))
    rule = RULES.get(call.name)
    if rule is None and torch.Tag.pointwise in call.function.tags:
        rule = rules.elementwise
    if rule is not None:
        return rule(sets, call)
    for operand in call.tensors():
        for factor in operand.layout.factors:
            if bool((sets.find(factor) != FIXED).any()):
                raise Unsupported("no rule says what this operation does to channels")
    return call.everywhere(Layout())
