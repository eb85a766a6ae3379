"""Families of any network: a module is copied at several widths and cut into a base and blocks.

- `scaling`: `scale_module` returns a copy of a network at a smaller width.
- `following` runs the network and follows its channels through every operation: `calls` describes one that ran,
  `operations` lists the known ones, and `rules`, `combine` and `groups` say what each kind does to channels.
  `channel_sets` and `layouts` hold which channels belong together and which element of a tensor belongs to which.
- `recording` holds the run as `steps`, and the channels that remain, which `selection` chooses. `resizing` removes the
  others, `checking` (with `expectation`, `kept_channels`) runs the copy and compares every operation, and `attention`
  keeps the scale of the `scores` of thinner heads.
- `architectures`: the architecture of a module, or of a function that builds modules. `module_architecture` has the
  networks of `sources` cut and puts base and branches together, with `entry` and `branch`.
- `trace` and `modes` follow a network by torch.fx, `values` finds where one tensor alone leads on, `units` and `cut`
  choose the places of the cut, and `pieces` (with `map_views`) makes the modules. `inspection` runs them for checks.
- `scaling_errors`, `errors`: the errors of a network that cannot be scaled, and of one that cannot be cut.

A new operation is one entry in `operations.RULES`.
"""

from oekd_fast.models.any_network.scaling import scale_module
from oekd_fast.models.any_network.scaling_errors import ScalingError

__all__ = ["ScalingError", "scale_module"]
