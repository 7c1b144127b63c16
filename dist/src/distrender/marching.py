"""How rays march: the options, what comes out, and the loop in PyTorch, which is the oracle of the kernels.

Not in the paper (DIST, section 3.2): ``finish``. Close to the surface a line through the last two samples finds the
zero in fewer queries, and once a ray has a sample on each side, the next ones stay between them. This makes fields
safe that are no true distances, as trained networks are: steps that jump back and forth across the surface end. Rays
that changed sign and did not converge all the same are counted in ``Hit.missed``.

Nor ``approximate_above``: a field that has a method ``approximate``, cheaper and nearly as good as itself, is asked
that way as long as it is far from its surface, and exactly in the end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from papershelf.errors import UserError
from torch import Tensor

SDF = Callable[[Tensor], Tensor]  # points [N, 3] to signed distances [N], negative inside

MISSED, HIT, CROSSED = 0, 1, 2  # states of a ray: CROSSED saw both signs and did not converge
POINTS_AT_ONCE = 65536  # queried in one call: 134 MB a layer of 512 in float32
STRETCH = 4.0  # a secant step is at most that many times |f|: on rays that graze the surface, lines are flat
HALVE_EVERY = 4  # so that a bracket closes whatever the field does between its ends


@dataclass(frozen=True)
class MarchOptions:
    """How rays march. The defaults are the paper's with all its tricks but coarse to fine.

    Attributes:
        steps: largest number of queries on a ray (section 4.1: 50). A ray that runs out of them misses. Trained
            networks may be nearly flat before their surface, and want 200, which only such rays make use of.
        ratio: length of a step in distances; 1 is plain sphere tracing, 1.5 the paper's aggressive one.
        clamp: largest distance believed, in scene units (section 3.2: 0.1).
        threshold: a ray has converged where |f| is below it (section 4.1: 5e-5).
        bound: radius of the ball around the origin that holds the scene.
        dynamic: query only rays on their way; otherwise every ray that meets the ball, at every step.
        finish: "none", as the paper; "secant" or "bisect" close in on the surface as the module's docstring says.
        finish_below: |f| from which on secant steps are taken before there is a sample on either side.
        samples: how many samples of smallest |f| are kept on each ray, for the gradient "paper".
        closest: rounds of three queries that move ``min_sdf`` of a ray that missed from the best sample to the
            minimum itself, where its gradient is exact; at the best sample it is off by some percent.
        approximate_above: |f| from which on the field's method ``approximate`` is asked instead of the field itself,
            if it has one; 0 for never. Several times the approximation's error: what it says is believed there.
    """

    steps: int = 50
    ratio: float = 1.5
    clamp: float = 0.1
    threshold: float = 5e-5
    bound: float = 1.0
    dynamic: bool = True
    finish: Literal["none", "secant", "bisect"] = "none"
    finish_below: float = 0.03
    samples: int = 1
    closest: int = 0
    approximate_above: float = 0.0

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("samples", 1), ("closest", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise UserError(f"{name} must be a whole number from {least} on, got {value!r}")
        for name in ("ratio", "clamp", "threshold", "bound", "finish_below"):
            value = getattr(self, name)
            if not value > 0:
                raise UserError(f"{name} must be above 0, got {value!r}")
        if not (self.approximate_above == 0 or self.approximate_above > self.threshold):
            raise UserError(
                f"approximate_above must be 0, or above the threshold of {self.threshold}; "
                f"got {self.approximate_above!r}"
            )
        if self.ratio >= 2:
            raise UserError(f"ratio must be below 2, got {self.ratio}: steps would jump back and forth without end")
        if self.finish not in ("none", "secant", "bisect"):
            raise UserError(f"finish must be none, secant or bisect, got {self.finish!r}")


@dataclass
class March:
    """What marching found on each of N rays, without gradients."""

    depth: Tensor  # [N], valid where state is HIT
    min_sdf: Tensor  # [N]
    min_depth: Tensor  # [N], where min_sdf was seen
    state: Tensor  # [N] int8
    queries: int
    within: Tensor | None = None  # [N], so far from min_depth at most lies a minimum that `closest` looked for, else 0
    samples: Tensor | None = None  # [N, K], depths of the K smallest |f|, NaN where there were fewer


def ball_interval(origins: Tensor, directions: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """Depths ``[N]`` at which rays ``[N, 3]`` enter and leave the ball; both the same where they pass it."""
    # Axis by axis, since PyTorch's sums over a last dimension of 3 take three times as long.
    o, d = origins.unbind(-1), directions.unbind(-1)
    middle = -(o[0] * d[0] + o[1] * d[1] + o[2] * d[2])  # depth of the point nearest to the centre
    x, y, z = (torch.addcmul(start, middle, along) for start, along in zip(o, d, strict=True))
    half = (bound * bound - (x * x + y * y + z * z)).clamp(min=0).sqrt()
    return (middle - half).clamp(min=0), (middle + half).clamp(min=0)


def query(sdf: SDF, points: Tensor) -> Tensor:
    """The field at points ``[N, 3]``, some at a time: ``[N]``.

    Raises:
        UserError: the field's result has another shape.
    """
    parts = []
    for some in points.split(POINTS_AT_ONCE):
        values = sdf(some)
        if values.shape != some.shape[:1]:
            raise UserError(f"the field must turn points [{len(some)}, 3] into [{len(some)}], got {list(values.shape)}")
        parts.append(values.to(points.dtype))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def approximation(sdf: SDF, options: MarchOptions) -> SDF | None:
    """What to ask instead of the field where it is large; None if there is nothing, or it is not wanted."""
    return getattr(sdf, "approximate", None) if options.approximate_above else None


def query_mixed(sdf: SDF, points: Tensor, rough: Tensor, options: MarchOptions) -> tuple[Tensor, int]:
    """The field at points ``[N, 3]``, approximate where ``rough`` ``[N]`` and large, and how many queries it took."""
    approximate = approximation(sdf, options)
    if approximate is None:
        return query(sdf, points), len(points)
    values = torch.empty_like(points[:, 0])
    some = rough.nonzero()[:, 0]
    values[some] = query(approximate, points[some])
    exactly = (~rough | ~(values.abs() >= options.approximate_above)).nonzero()[:, 0]  # NaN too
    values[exactly] = query(sdf, points[exactly])
    return values, len(some) + len(exactly)


def march_reference(
    sdf: SDF,
    origins: Tensor,
    directions: Tensor,
    start: Tensor,
    options: MarchOptions,
    slope: Tensor | None = None,
) -> March:
    """The marching loop in PyTorch, for any callable, and the oracle of the kernels.

    Args:
        sdf: points ``[N, 3]`` to signed distances ``[N]``.
        origins: ``[N, 3]``.
        directions: ``[N, 3]``, unit.
        start: ``[N]``, depths of the first queries. A ray that starts beyond the ball (or past it) is never queried:
            its ``min_sdf`` is inf, its ``min_depth`` the ball's rim.
        options: how to march.
        slope: ``[N]``, df/dt to expect at the start, NaN where unknown; secants take their first step by it.
    """
    n = len(start)
    near, far = ball_interval(origins, directions, options.bound)
    result = March(
        depth=torch.full_like(start, torch.inf),
        min_sdf=torch.full_like(start, torch.inf),
        min_depth=near.clone(),
        state=torch.zeros(n, dtype=torch.int8, device=start.device),
        queries=0,
    )
    if options.samples > 1:
        kept = torch.full((n, options.samples, 2), torch.inf, dtype=start.dtype, device=start.device)  # |f|, depth
    rays = (start < far).nonzero()[:, 0]
    all_rays = rays
    everywhere = start.clone()  # [N], depth of a ray's last query
    walk = _Walk(start[rays], options, None if slope is None else slope[rays])
    large = torch.ones_like(all_rays, dtype=torch.bool)  # whether a ray's last value was; so may be the next
    for _ in range(options.steps):
        if len(rays) == 0:
            break
        everywhere[rays] = walk.t
        asked = rays if options.dynamic else all_rays
        points = origins[asked] + everywhere[asked, None] * directions[asked]
        f, queries = query_mixed(sdf, points, large, options)
        result.queries += queries
        if not options.dynamic:
            whole = torch.empty_like(everywhere)
            whole[asked] = f
            f = whole[rays]
        better = f.abs() < result.min_sdf[rays].abs()
        result.min_sdf[rays[better]] = f[better]
        result.min_depth[rays[better]] = walk.t[better]
        if options.samples > 1:
            joined = torch.cat([kept[rays], torch.stack([f.abs(), walk.t], -1)[:, None]], 1)
            best = joined[..., 0].argsort(1)[:, : options.samples, None].expand(-1, -1, 2)
            kept[rays] = joined.gather(1, best)
        converged = f.abs() < options.threshold
        result.depth[rays[converged]] = walk.refined(f)[converged]
        result.state[rays[converged]] = HIT
        walk.step(f)
        crossed = walk.crossed & ~converged
        result.state[rays[crossed]] = CROSSED
        # NaN ends a ray too. A ray that starts inside may go back to the rim, not beyond it.
        on = (walk.t < far[rays]) & (walk.t > near[rays] - options.bound * 1e-6) & ~converged
        rays = rays[on]
        walk.keep(on)
        if options.dynamic:
            large = (f.abs() >= options.approximate_above)[on]
    if options.samples > 1:
        depths = kept[..., 1]
        result.samples = torch.where(depths.isfinite(), depths, torch.nan)
    return result


class _Walk:
    """Rays on their way: where each queries next, and the samples that decide on it; all ``[N]``."""

    def __init__(self, t: Tensor, options: MarchOptions, slope: Tensor | None) -> None:
        self.options = options
        unknown = torch.full_like(t, torch.nan)
        self.expected = unknown if slope is None else slope
        self.t = t  # depth of the next query
        self.last_t, self.last_f = unknown, unknown  # the query before
        self.out_t, self.out_f = unknown, unknown  # the last sample outside
        self.in_t, self.in_f = unknown, unknown  # and inside
        self.tries = torch.zeros_like(t)  # queries since both are known

    @property
    def crossed(self) -> Tensor:
        """Which rays have seen both signs."""
        return ~(self.out_t.isnan() | self.in_t.isnan())

    def keep(self, on: Tensor) -> None:
        """Drop the rays where ``on`` is False."""
        for name in ("t", "expected", "last_t", "last_f", "out_t", "out_f", "in_t", "in_f", "tries"):
            setattr(self, name, getattr(self, name)[on])

    def slope(self, f: Tensor) -> Tensor:
        """df/dt between the last two samples; where there is only one, as expected, or NaN."""
        return torch.where(self.last_t.isnan(), self.expected, (f - self.last_f) / (self.t - self.last_t))

    def refined(self, f: Tensor) -> Tensor:
        """Depths of converged rays: with secants, where the last line meets zero, which costs no query."""
        if self.options.finish != "secant":
            return self.t
        further = -f / self.slope(f)
        return torch.where(further.abs() < STRETCH * (self.t - self.last_t).abs(), self.t + further, self.t)

    def step(self, f: Tensor) -> None:
        """Take the samples ``f`` at ``t`` in, and move on."""
        options = self.options
        forward = options.ratio * f.clamp(-options.clamp, options.clamp)
        if options.finish == "secant":
            slope = self.slope(f)
            line = torch.where(slope < -1 / STRETCH, -f / slope, STRETCH * f)
            forward = torch.where((f.abs() < options.finish_below) & (slope < 0), line, forward)
        following = self.t + forward

        outside = f > 0
        before = self.crossed
        out_f, in_f = self.out_f, self.in_f
        if options.finish == "secant":
            # Illinois: an end that stays a second time counts half, so that the line turns towards it.
            again = before & (outside == (self.last_f > 0))
            in_f = torch.where(again & outside, in_f / 2, in_f)
            out_f = torch.where(again & ~outside, out_f / 2, out_f)
        self.out_t, self.out_f = torch.where(outside, self.t, self.out_t), torch.where(outside, f, out_f)
        self.in_t, self.in_f = torch.where(outside, self.in_t, self.t), torch.where(outside, in_f, f)

        if options.finish != "none":
            between = self.out_t < self.in_t  # False where one is unknown
            middle = (self.out_t + self.in_t) / 2
            if options.finish == "secant":
                share = self.out_f / (self.out_f - self.in_f)
                line = self.out_t + share * (self.in_t - self.out_t)
                middle = torch.where(self.tries % HALVE_EVERY == HALVE_EVERY - 1, middle, line)
            following = torch.where(between, middle, following)
            self.tries = self.tries + between
        self.last_t, self.last_f, self.t = self.t, f, following
