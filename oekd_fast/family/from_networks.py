"""Families of networks that a user has as modules: the constructors `from_module` and `from_factory`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Literal

from torch import Tensor, nn

from oekd_fast.models import Width, with_widths

if TYPE_CHECKING:
    from oekd_fast.family.ensemble import StudentEnsemble


class FromNetworks:
    """The constructors of `StudentEnsemble` that take networks instead of an architecture."""

    @classmethod
    def from_module(
        cls: type[StudentEnsemble],
        module: nn.Module,
        example_inputs: Tensor,
        num_students: int | None = None,
        *,
        widths: Sequence[Real] | None = None,
        width_divisor: int = 8,
        base: str | None = None,
        blocks: Sequence[str] | None = None,
        start: Literal["slice", "fresh"] = "slice",
    ) -> StudentEnsemble:
        """Build the family of a network that exists.

        Student 1 is `module` itself: it has the same outputs and the same parameters, so that training the family
        trains `module`. The other students are copies with fewer channels in all hidden layers. All students share the
        part of `module` up to `base`; where the smaller ones carry its map on by an addition, each of them begins with
        a 1x1 convolution that selects its channels.

        The network is followed by torch.fx, and cut where one tensor alone leads on: before the first of the modules
        that it repeats, and after each of them, or after groups of them. `describe` returns the cut. Modules that work
        in place on the map of the base or of a block (``inplace=True``) work out of place from then on.

        Args:
            module: images [B, C_in, H, W] -> logits [B, C]; float32, on one device.
            example_inputs: images that `module` accepts, float32 on its device. Other batches may have another size.
            num_students: N; by default the number of shares in `widths`, or else 5.
            widths, width_divisor: see `StudentEnsemble`.
            base: qualified name of the last module of the shared base, such as "maxpool"; None finds it.
            blocks: qualified names of the modules after which a map is returned, in the order of the forward pass, such
                as ("layer1", "layer2"). None finds them. With an empty sequence, students share no base and return no
                maps, so that they learn from logits alone; the network need not be traceable then.
            start: weights of the smaller students: "slice" takes the most important channels of `module`, "fresh" draws
                new ones.

        Raises:
            TypeError: `module` or `example_inputs` has another type or dtype.
            ValueError: `module` fails on `example_inputs`, or has weights on several devices or on meta; a name of
                `base` or `blocks` is unknown, in another order or at a place where one tensor alone does not lead on
                (`CutError`); the forward of `module` cannot be followed (`CutError`) or its channels cannot be scaled
                (`ScalingError`); `widths` or `width_divisor` are out of range.
        """
        from oekd_fast.models.any_network.architectures import architecture_of_module

        architecture = architecture_of_module(module, example_inputs, base=base, blocks=blocks, start=start)
        architecture = with_widths(architecture, widths, width_divisor)
        family = cls(architecture.sharing(module), num_students, architecture.num_classes, architecture.image_shape[0])
        family.architecture = architecture
        own = set(module.modules())
        for part in family.modules():
            if part not in own:
                part.training = module.training
        return family.to(architecture.device)

    @classmethod
    def from_factory(
        cls: type[StudentEnsemble],
        factory: Callable[[Width], nn.Module],
        example_inputs: Tensor,
        num_students: int | None = None,
        *,
        widths: Sequence[Real] | None = None,
        width_divisor: int = 8,
        base: str | None = None,
        blocks: Sequence[str] | None = None,
    ) -> StudentEnsemble:
        """Build a family whose students a function builds, for networks that cannot be scaled or traced.

        The students share the base of student 1. A student whose own base has fewer channels begins with a 1x1
        convolution, which selects as many of the first ones.

        Args:
            factory: `factory(width)` returns the network of one student. `width(64)` is its share of 64 channels, and
                `width.ratio` the share itself. All networks have the same modules and differ in channels alone; with
                ``blocks=()`` they may differ in all but input and output.
            example_inputs, num_students, widths, width_divisor, base, blocks: see `from_module`.

        Raises:
            TypeError, ValueError: as `from_module`; a network of `factory` has another structure (`CutError`).
        """
        from oekd_fast.models.any_network.architectures import architecture_of_factory

        architecture = architecture_of_factory(factory, example_inputs, base=base, blocks=blocks)
        architecture = with_widths(architecture, widths, width_divisor)
        family = cls(architecture, num_students, architecture.num_classes, architecture.image_shape[0])
        return family.to(architecture.device)

    def describe(self: StudentEnsemble) -> str:
        """Return a table of the base and the blocks as text, with the channels of each student's maps.

        For a family of a module it names the last module of each and the height and width of its map.
        """
        architecture, n = self.architecture, self.num_students
        if hasattr(architecture, "describe"):
            return architecture.describe(n)
        channels = [architecture.map_channels(j, n) for j in range(n)]
        rows = (" ".join(map(str, of_block)) for of_block in zip(*channels, strict=True))
        return "\n".join(f"block {b}: {row} channels" for b, row in enumerate(rows, start=1))
