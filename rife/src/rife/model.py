r"""RIFE as one configurable network: the paper's model, its v3 predecessors and the v4 line.

Section 3.1: an IFNet estimates :math:`F_{t\to0}, F_{t\to1}` and a mask :math:`M` from coarse to fine;
the frame is (eq. 1)

.. math:: \hat I_t = M \odot \hat I_{t\leftarrow0} + (1 - M) \odot \hat I_{t\leftarrow1}
          (+ \text{ a residual from the context and fusion nets})

and a privileged teacher block, which also sees the true frame, distils its flow into the student
(section 3.3). A release is a :class:`RifeConfig` of presets.py; nothing but its values tells two of them apart.

===============================  ===========================================
paper                            here
===============================  ===========================================
:math:`(F_{t\to0}, F_{t\to1})`   ``flow[:, :2]``, ``flow[:, 2:]``, in pixels
:math:`M`                        ``sigmoid(mask)``; ``mask`` is the logit
:math:`\hat I_{t\leftarrow i}`   ``warped0``, ``warped1``
:math:`I^{GT}`                   ``gt``
===============================  ===========================================
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from papershelf.errors import UserError
from torch import Tensor, nn

from rife import flow_net
from rife.flow_net import FrameEncoder, IFBlock, precise, resize, shrink_planes
from rife.presets import PRESETS, RifeConfig
from rife.refinement import Refinement
from rife.warping import warp, warp_blend

SCALES = (0.125, 0.25, 0.5, 1, 2, 4)  # what `scale` may be: powers of two keep every size whole
WIDE_MOTION = 32  # pixels; v4.0 starts anew at double scales where block1 moves both flows further
TEACHER_MARGIN = 0.01  # section 3.3: the teacher counts where it is better by more than this


@dataclass(frozen=True)
class Prediction:
    """A new frame and where it came from.

    Attributes:
        frame: ``[N, 3, H, W]``, nominally [0, 1].
        flow: ``[N, 4, H, W]`` in pixels: from the new frame to ``img0`` (u, v) and to ``img1`` (u, v).
        mask: ``[N, 1, H, W]`` in [0, 1], the share of ``img0``.
    """

    frame: Tensor
    flow: Tensor
    mask: Tensor


@dataclass(frozen=True)
class TrainingOutput:
    """What the paper's losses need.

    Attributes:
        merged: blended frame ``[N, 3, H, W]`` after each student block, without residual.
        frame: the last of them with the residual, clamped to [0, 1].
        merged_teacher: the teacher's blended frame.
        flows: flow ``[N, 4, H, W]`` after each student block.
        flow_teacher: the teacher's flow ``[N, 4, H, W]``.
        loss_distill: scalar, the leakage distillation loss (before its weight).
    """

    merged: list[Tensor]
    frame: Tensor
    merged_teacher: Tensor
    flows: list[Tensor]
    flow_teacher: Tensor
    loss_distill: Tensor


@dataclass(frozen=True)
class _Step:
    """State after an IFBlock; ``half`` is v3.1's flow at half size, ``change`` what the block added."""

    change: Tensor
    flow: Tensor
    mask: Tensor
    half: Tensor | None
    warped0: Tensor | None
    warped1: Tensor | None


class Rife(nn.Module):
    """The network of a :class:`RifeConfig`.

    Convolutions run in their weights' dtype, the blend in the frames'; flow, mask and time stay float32
    (float64 for float64 frames), so ``model.to(torch.bfloat16)`` does not touch coordinates.
    """

    def __init__(self, config: RifeConfig) -> None:
        super().__init__()
        self.config = config
        outputs = flow_net.FLOW + (0 if config.style.half_flow else flow_net.MASK)
        if config.style.shuffle:
            outputs += config.carried or 1  # v4.6 to v4.20 give a channel that nothing reads
        names = [config.first] + [config.later] * (len(config.widths) - 1)
        self.blocks = nn.ModuleList(
            IFBlock(_channels(config, inputs), width, config.style, outputs)
            for inputs, width in zip(names, config.widths, strict=True)
        )
        if config.teacher:
            self.teacher = IFBlock(_channels(config, config.teacher), config.widths[-1], config.style, outputs)
        if config.refinement:
            self.refinement = Refinement(config.refinement)
        if config.encoder:
            self.encoder = FrameEncoder(*config.encoder)

    def padding_multiple(self, scale: float = 1.0) -> int:
        """Sides given to :meth:`forward` must be multiples of this."""
        return max(self.config.padding, int(self.config.padding / scale))

    def forward(
        self,
        img0: Tensor,
        img1: Tensor,
        t: float | Tensor = 0.5,
        *,
        scale: float = 1.0,
        ensemble: bool = False,
        clamp: bool = True,
    ) -> Prediction:
        """The frame at ``t`` between ``img0`` (t = 0) and ``img1`` (t = 1).

        Args:
            img0: ``[N, 3, H, W]`` RGB, nominally [0, 1]; H and W multiples of :meth:`padding_multiple`.
            img1: likewise.
            t: one time for all, or ``[N, 1, 1, 1]``: several times of one pair go in one batch.
            scale: resolution of the flow search relative to the trained one: 0.5 for 4K; of ``SCALES``.
            ensemble: run each block in both directions and average: about twice the time.
            clamp: limit the frame to [0, 1] as the paper does.

        Raises:
            UserError: shapes or scale do not fit, or the release knows only t = 0.5.
        """
        self._check(img0, img1, scale)
        t = self._time(t, img0)
        scales = [s / scale for s in self.config.scales]
        if ensemble and self.config.carried:
            raise UserError(
                f"{self.config.name} has no ensemble: its blocks hand on features that belong to one direction"
            )
        step = self._estimate(img0, img1, t, scales, ensemble or self.config.symmetric)
        mask = step.mask
        if self.config.refinement:
            frame, mask = self._refine(img0, img1, step)
        else:
            frame = warp_blend(img0, img1, step.flow, mask)
        return Prediction(frame.clamp(0, 1) if clamp else frame, step.flow, torch.sigmoid(mask))

    def forward_train(self, img0: Tensor, img1: Tensor, gt: Tensor, t: float | Tensor = 0.5) -> TrainingOutput:
        """Student and privileged teacher together (figure 3), with the leakage distillation loss.

        Args:
            img0: ``[N, 3, H, W]`` in [0, 1].
            img1: likewise.
            gt: the true frame at ``t``; only the teacher sees it.
            t: one time, or ``[N, 1, 1, 1]``.

        Raises:
            UserError: the release has no teacher or no refinement, or shapes do not fit.
        """
        if not (self.config.teacher and self.config.refinement):
            known = ", ".join(name for name, c in PRESETS.items() if c.teacher and c.refinement)
            raise UserError(
                f"{self.config.name} cannot be trained: it has no teacher or no refinement; use one of {known}"
            )
        self._check(img0, img1, 1.0)
        t = self._time(t, img0)
        steps = list(self._steps(img0, img1, t, self.config.scales, self.config.symmetric, True))
        merged = [_blend(step.warped0, step.warped1, step.mask) for step in steps]
        last = steps[-1]
        frame, _ = self._refine(img0, img1, last)

        planes = {"img0": img0, "img1": img1, "warped0": last.warped0, "warped1": last.warped1}
        planes |= {"t": t, "mask": last.mask, "gt": gt, "flow": last.flow}
        change = self.teacher(_join(shrink_planes(planes, self.config.teacher, 1)), 1)
        flow_teacher = last.flow + change[:, :4]
        mask_teacher = last.mask + change[:, 4:5]
        merged_teacher = _blend(warp(img0, flow_teacher[:, :2]), warp(img1, flow_teacher[:, 2:]), mask_teacher)
        flows = [step.flow for step in steps]
        loss = leakage_distillation(flows, merged, flow_teacher, merged_teacher, gt)
        return TrainingOutput(merged, frame.clamp(0, 1), merged_teacher, flows, flow_teacher, loss)

    def _estimate(self, img0: Tensor, img1: Tensor, t: Tensor, scales: Sequence[float], ensemble: bool) -> _Step:
        """The last step of the coarse-to-fine search, under v4.0's rule for wide motion."""
        for i, step in enumerate(self._steps(img0, img1, t, scales, ensemble, self.config.refinement is not None)):
            if i == 1 and self.config.wide_motion:
                moved = step.change.unflatten(1, (2, 2)).abs().amax((2, 3, 4))  # [N, 2]: towards img0, towards img1
                wide = (moved > WIDE_MOTION).all(1).tolist()
                if all(wide):
                    doubled = [2 * s for s in scales]
                    anew = self._steps(img0, img1, t, doubled, ensemble, self.config.refinement is not None)
                    return deque(anew, maxlen=1).pop()  # keeps no step but the last
                if any(wide):  # each pair gets what it would get alone
                    parts = zip(img0.split(1), img1.split(1), t.split(1), strict=True)
                    return _joined([self._estimate(*part, scales, ensemble) for part in parts])
        return step

    def _steps(
        self, img0: Tensor, img1: Tensor, t: Tensor, scales: Sequence[float], ensemble: bool, warp_last: bool
    ) -> Iterator[_Step]:
        """The IFBlocks in turn: warp with the flow so far, look at 1/scale, correct."""
        config = self.config
        source0 = torch.cat([img0, self.encoder(img0)], 1) if config.encoder else img0
        source1 = torch.cat([img1, self.encoder(img1)], 1) if config.encoder else img1
        warped0, warped1 = source0, source1
        n, _, h, w = img0.shape
        flow = img0.new_zeros(n, 4, h, w, dtype=t.dtype)
        mask = img0.new_zeros(n, 1, h, w, dtype=t.dtype)
        half = carried = None
        for i, (block, scale) in enumerate(zip(self.blocks, scales, strict=True)):
            planes = {"img0": img0, "img1": img1, "t": t, "mask": mask, "flow": flow, "carried": carried}
            planes |= {"warped0": warped0[:, :3], "encoded0": warped0[:, 3:]}
            planes |= {"warped1": warped1[:, :3], "encoded1": warped1[:, 3:]}
            small = shrink_planes(planes, config.later if i else config.first, scale)
            if ensemble:
                ahead, back = block(torch.cat([_join(small), _join(_swapped(small))]), scale).chunk(2)
                out = (ahead + torch.cat([back[:, 2:4], back[:, :2], -back[:, 4:]], 1)) / 2
            else:
                out = block(_join(small), scale)
            change, carried = out[:, :4], out[:, 5:]
            if config.style.half_flow:
                half = change if half is None else half + change
                flow = resize(half, 2) * 2
            else:
                flow = flow + change
                mask = out[:, 4:5] if config.replace_mask else mask + out[:, 4:5]
            last = i == len(self.blocks) - 1
            if last and not warp_last:
                warped0 = warped1 = None
            else:
                warped0, warped1 = warp(source0, flow[:, :2]), warp(source1, flow[:, 2:])
            yield _Step(change, flow, mask, half, warped0, warped1)

    def _refine(self, img0: Tensor, img1: Tensor, step: _Step) -> tuple[Tensor, Tensor]:
        """The blend plus its residual, and the logit of the mask."""
        residual, mask = self.refinement(img0, img1, step.warped0, step.warped1, step.mask, step.flow, step.half)
        return _blend(step.warped0, step.warped1, mask) + residual, mask

    def _time(self, t: float | Tensor, img0: Tensor) -> Tensor:
        if not isinstance(t, Tensor):
            t = img0.new_full((img0.shape[0], 1, 1, 1), t, dtype=precise(img0.dtype))
        elif t.shape != (img0.shape[0], 1, 1, 1):
            raise UserError(f"t must be a number or {[img0.shape[0], 1, 1, 1]}, got {list(t.shape)}")
        if not self.config.timestep and not (t == 0.5).all():
            times = ", ".join(f"{time:g}" for time in t.flatten().tolist())
            raise UserError(f"{self.config.name} knows only the middle, t = 0.5; got {times}: use a v4 release")
        return t.to(img0.device, precise(img0.dtype))

    def _check(self, img0: Tensor, img1: Tensor, scale: float) -> None:
        if scale not in SCALES:
            raise UserError(f"scale must be one of {', '.join(map(str, SCALES))}, got {scale}")
        if img0.ndim != 4 or img0.shape[1] != 3 or img0.shape != img1.shape:
            raise UserError(f"frames must both be [N, 3, H, W], got {list(img0.shape)} and {list(img1.shape)}")
        multiple = self.padding_multiple(scale)
        if img0.shape[2] % multiple or img0.shape[3] % multiple:
            raise UserError(
                f"{self.config.name} at scale {scale} needs sides that are multiples of {multiple}, "
                f"got {img0.shape[3]}x{img0.shape[2]}: pad with zeros right and bottom"
            )


def leakage_distillation(
    flows: Sequence[Tensor], merged: Sequence[Tensor], flow_teacher: Tensor, merged_teacher: Tensor, gt: Tensor
) -> Tensor:
    """Section 3.3: pull each student flow to the teacher's where the teacher is the better one.

    Args:
        flows: ``[N, 4, H, W]`` of each block, in pixels.
        merged: ``[N, 3, H, W]`` of each block.
        flow_teacher: ``[N, 4, H, W]``; no gradient flows into it.
        merged_teacher: ``[N, 3, H, W]``.
        gt: ``[N, 3, H, W]``.

    Returns:
        Scalar: sum over blocks of mean(where better, root mean square flow difference over channels).
    """
    error_teacher = (merged_teacher - gt).abs().mean(1, keepdim=True)
    loss = gt.new_zeros(())
    for flow, frame in zip(flows, merged, strict=True):
        worse = (frame - gt).abs().mean(1, keepdim=True) > error_teacher + TEACHER_MARGIN
        # vector_norm / 2 = sqrt(mean over the 4 channels), with a gradient of 0, not NaN, at 0
        distance = torch.linalg.vector_norm(flow_teacher.detach() - flow, dim=1, keepdim=True) / 2
        loss = loss + (distance * worse).mean()
    return loss


def _channels(config: RifeConfig, names: Sequence[str]) -> int:
    encoded = config.encoder[1] if config.encoder else 0
    size = {"t": 1, "mask": 1, "flow": 4, "encoded0": encoded, "encoded1": encoded, "carried": config.carried}
    return sum(size.get(name, 3) for name in names)


def _join(planes: dict[str, Tensor]) -> Tensor:
    return torch.cat(list(planes.values()), 1)


def _swapped(planes: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same pair seen from the other end: time runs backwards, the frames change places."""
    other = {}
    for name, plane in planes.items():
        if name == "t":
            other[name] = 1 - plane
        elif name == "mask":
            other[name] = -plane
        elif name == "flow":
            other[name] = torch.cat([plane[:, 2:], plane[:, :2]], 1)
        else:
            other[name] = planes[name[:-1] + {"0": "1", "1": "0"}[name[-1]]]
    return other


def _blend(warped0: Tensor, warped1: Tensor, mask: Tensor) -> Tensor:
    """Eq. (1), from the mask's logit."""
    return torch.lerp(warped1, warped0, torch.sigmoid(mask))


def _joined(steps: list[_Step]) -> _Step:
    columns = zip(*(vars(step).values() for step in steps), strict=True)
    return _Step(*(None if column[0] is None else torch.cat(column) for column in columns))
