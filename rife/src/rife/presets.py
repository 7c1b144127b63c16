"""The published releases of RIFE as data: what :class:`rife.model.Rife` is built from.

The paper (table 1 and appendix) describes ``paper`` and ``rifem``; the v3 and v4 releases are known from
their weights, v4.7 and later from their description alone (no file of theirs was at hand to test with).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from rife import flow_net
from rife.flow_net import BlockStyle
from rife.refinement import RefinementConfig


@dataclass(frozen=True)
class RifeConfig:
    """One release of the network. Planes are named; their order is that of the trained channels.

    Attributes:
        name: what a user calls it.
        widths: channels of each IFBlock.
        scales: 1/size at which each block works.
        style: how the blocks are built.
        first, later: inputs of block 0 and of the others: ``img0 img1 warped0 warped1`` (3 channels
            each), ``t`` and ``mask`` (1), ``flow`` (4, at the end), ``encoded0 encoded1`` (features of
            the frames; warped in later blocks), ``carried`` (features handed from block to block).
        teacher: inputs of the privileged block, with ``gt``; empty without one.
        refinement: context and fusion nets; None without them.
        padding: sides of the frames must be multiples of this.
        timestep: False where only t = 0.5 was trained.
        symmetric: always runs each block in both directions (``ensemble``).
        replace_mask: each block gives the mask anew instead of adding to it.
        wide_motion: v4.0's rule of doubled scales.
        encoder: (hidden, outputs, convolutions) of the :class:`FrameEncoder`; None without.
        carried: channels of ``carried``.
    """

    name: str
    widths: tuple[int, ...]
    scales: tuple[float, ...]
    style: BlockStyle
    first: tuple[str, ...]
    later: tuple[str, ...]
    teacher: tuple[str, ...] = ()
    refinement: RefinementConfig | None = None
    padding: int = 32
    timestep: bool = True
    symmetric: bool = False
    replace_mask: bool = False
    wide_motion: bool = False
    encoder: tuple[int, int, int] | None = None
    carried: int = 0


PAPER = RifeConfig(
    name="paper",
    widths=(240, 150, 90),
    scales=(4, 2, 1),
    style=flow_net.PAPER,
    first=("img0", "img1"),
    later=("img0", "img1", "warped0", "warped1", "mask", "flow"),
    teacher=("img0", "img1", "warped0", "warped1", "mask", "gt", "flow"),
    refinement=RefinementConfig(),
    timestep=False,
)
RIFEM = replace(
    PAPER,
    name="rifem",
    first=("img0", "img1", "t"),
    later=("img0", "img1", "t", "warped0", "warped1", "mask", "flow"),
    teacher=("img0", "img1", "t", "warped0", "warped1", "mask", "gt", "flow"),
    timestep=True,
)
# RIFE-Large: twice the resolution inside, the same parameters.
LARGE = {"style": flow_net.PAPER_LARGE, "refinement": RefinementConfig(stride=1)}
PAPER_LARGE = replace(PAPER, name="paper-large", **LARGE)
RIFEM_LARGE = replace(RIFEM, name="rifem-large", **LARGE)

V3_1 = RifeConfig(
    name="v3.1",
    widths=(160, 160, 160),
    scales=(4, 2, 1),
    style=flow_net.PAIRS_3_1,
    first=("img0", "img1"),
    later=("warped0", "warped1", "flow"),
    refinement=RefinementConfig(width=32, stem=True),
    timestep=False,
)
V3_5 = RifeConfig(
    name="v3.5",
    widths=(90, 90, 90),
    scales=(4, 2, 1),
    style=flow_net.PAIRS_3_5,
    first=("warped0", "warped1", "mask", "flow"),
    later=("warped0", "warped1", "mask", "flow"),
    teacher=("warped0", "warped1", "mask", "gt", "flow"),
    timestep=False,
    symmetric=True,
)
V3_8 = replace(V3_5, name="v3.8", style=flow_net.PAIRS_3_8)

V4_0 = RifeConfig(
    name="v4.0",
    widths=(192, 128, 96, 64),
    scales=(8, 4, 2, 1),
    style=flow_net.PAPER,
    first=("img0", "img1", "t"),
    later=("warped0", "warped1", "t", "mask", "flow"),
    teacher=RIFEM.teacher,
    refinement=RefinementConfig(),
    padding=128,
    wide_motion=True,
)
V4_6 = replace(V4_0, name="v4.6", style=flow_net.RESIDUAL, teacher=(), refinement=None, padding=32, wide_motion=False)
V4_7 = replace(
    V4_6,
    name="v4.7",
    first=("img0", "img1", "encoded0", "encoded1", "t"),
    later=("warped0", "warped1", "encoded0", "encoded1", "t", "mask", "flow"),
    encoder=(16, 4, 2),
    replace_mask=True,
)
V4_10 = replace(V4_7, name="v4.10", encoder=(32, 8, 4))
V4_25 = replace(
    V4_7,
    name="v4.25",
    widths=(192, 128, 96, 64, 32),
    scales=(16, 8, 4, 2, 1),
    later=("warped0", "warped1", "encoded0", "encoded1", "t", "mask", "carried", "flow"),
    encoder=(16, 4, 4),
    carried=8,
    padding=64,
)
PRESETS = {
    config.name: config
    for config in (PAPER, RIFEM, PAPER_LARGE, RIFEM_LARGE, V3_1, V3_5, V3_8, V4_0, V4_6, V4_7, V4_10, V4_25)
}
