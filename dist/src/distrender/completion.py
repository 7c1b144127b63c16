"""Shape completion (DIST, sections 4.2 and 4.3): the code whose rendering agrees with a depth picture and a silhouette.

Every iteration traces the rays that saw something and some of the silhouette's, and moves the code by Adam against

    10 depth + 5 normal + inside + outside + latent,

``depth`` the mean distance between traced and observed depth (of a ray that misses, how far the field stays from zero
on it, ``|min_sdf|``, so that it is pulled all the same), ``normal`` that between the normals, ``inside`` and
``outside`` what the field lacks of zero on the silhouette's rays that miss and should hit, and the reverse, ``latent``
the code's mean square. The text leaves open which norms these are and whether sums or means: here L1 and means.

Points that no camera saw have nothing to be traced: their distances alone say what the code is
(:mod:`distrender.latent_fit`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from papershelf.errors import UserError
from torch import Tensor

from distrender.decoder import CodedSDF, DeepSDFDecoder
from distrender.decoder_files import Experiment
from distrender.latent_fit import LatentFitOptions, ValueSamples, fit_latent
from distrender.observations import Observation
from distrender.pyramid import trace_image
from distrender.tracing import MarchOptions, ball_interval, sphere_trace

STEPS = 100  # queries on a ray: more than the paper's 50, since trained networks are nearly flat in places
CODES_AT_ONCE = 64  # of the training's, when the nearest are looked for
EDGE = 0.03  # of a picture's longer side: as near as that counts as the silhouette's edge
FEWEST_NEIGHBOURS = 8  # codes that can say anything of a distribution
SLACK = 0.02  # of the mean variance: the least that a direction is given
CLEARLY = 0.8  # so many times the other's losses: rays are drawn, and what nothing was seen of makes no difference
LAST = 5  # iterations whose losses tell what came of a start
DEPTHS = 24  # samples on a ray behind the surface
MARCH = MarchOptions(steps=STEPS, ratio=1.0, finish="secant", closest=2)


@dataclass(frozen=True)
class Recipe:
    """How a code is found. The defaults are the paper's.

    Attributes:
        depth: weight of the depth's loss (section 4.2).
        normal: of the normals' (section 4.2), where there are any.
        inside: of the silhouette's rays that should hit (section 4.2).
        outside: of those that should miss (section 4.2).
        latent: of the code's mean square (section 4.2).
        iterations: of Adam (section 4.2).
        rate: of Adam (section 4.2).
        sigma: of the normal distribution that the first code is drawn from (section 4.2).
        values: weight of the field's clamped distances at the points. Not in the paper.
        nearest: begin at so many codes of training shapes that fit the points best. Not in the paper.
        warm: iterations of :func:`distrender.latent_fit.fit_latent` from all starts, of which the best goes on. Not in
            the paper.
        neighbours: move in coordinates in which so many codes of training shapes around the start have mean 0 and
            variance 1 (:class:`Frame`); 0 moves the code itself. Not in the paper.
        spread: weight of the mean square of these coordinates. Not in the paper.
        decay: factor by which the rate has fallen at the end, along a cosine. Not in the paper: 1 keeps it.
        rays: of each kind traced in an iteration (depth, inside, outside), drawn anew. Not in the paper, which traces
            every pixel.
        edge: share of the silhouette's rays that are drawn near its edge, where a shape that is almost right is wrong.
            Not in the paper.
        fit: of ``values``, ``nearest`` and ``warm``: how far before and behind a point its samples lie, and so on.
    """

    depth: float = 10.0
    normal: float = 5.0
    inside: float = 1.0
    outside: float = 1.0
    latent: float = 1.0
    iterations: int = 200
    rate: float = 1e-3
    sigma: float = 0.1
    values: float = 0.0
    nearest: int = 0
    warm: int = 0
    neighbours: int = 0
    spread: float = 0.0
    decay: float = 1.0
    rays: int = 2048
    edge: float = 0.0
    fit: LatentFitOptions = field(default_factory=LatentFitOptions)

    def __post_init__(self) -> None:
        for name in ("depth", "normal", "inside", "outside", "latent", "sigma", "values", "nearest", "warm"):
            if not getattr(self, name) >= 0:
                raise UserError(f"{name} must be 0 or more, got {getattr(self, name)!r}")
        for name in ("rate", "decay", "rays"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} must be above 0, got {getattr(self, name)!r}")
        if self.iterations < 0:
            raise UserError(f"iterations must be 0 or more, got {self.iterations!r}")

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of losses, called as their weights are."""
        return sum(getattr(self, name) * term for name, term in terms.items())


PAPER = Recipe()
# Not in the paper: what did best on shapes of other seeds than the table's. A fit by values from several training
# codes, then a few long steps, within what shapes alike have in common, by losses in which the silhouette's edge
# counts.
OURS = Recipe(
    inside=30.0,
    outside=30.0,
    latent=0.0,
    iterations=40,
    rate=0.1,
    values=5.0,
    nearest=4,
    warm=100,
    neighbours=64,
    spread=0.05,
    decay=0.05,
    rays=128,
    edge=0.75,
    fit=LatentFitOptions(iterations=100, rate=1e-2, prior=2e-2, free=2),
)


@dataclass(frozen=True, eq=False)
class Completion:
    """What :func:`complete` found.

    Attributes:
        path: ``[iterations + 1, L]``, the code where it began and after each iteration.
        history: the losses of each iteration by name, unweighted, and their weighted sum as ``total``.
        queries: points that the field was asked for by tracing.
    """

    path: Tensor
    history: list[dict[str, float]]
    queries: int

    @property
    def code(self) -> Tensor:
        """``[L]``, the last one."""
        return self.path[-1]

    @property
    def loss(self) -> float:
        """The mean total of the last iterations, since the rays of each are drawn; NaN where there were none."""
        last = [losses["total"] for losses in self.history[-LAST:]]
        return sum(last) / len(last) if last else math.nan


def complete(
    experiment: Experiment,
    observation: Observation,
    recipe: Recipe = PAPER,
    *,
    seed: int = 0,
    starts: Tensor | None = None,
    after: Callable[[int, int], None] | None = None,
) -> Completion:
    """Find the code of a decoder whose shape agrees with what was seen.

    Args:
        experiment: the decoder, whose parameters stay as they are, and the codes it was trained with.
        observation: what was seen, in the decoder's frame, on the decoder's device.
        recipe: how.
        seed: of the first code and of the rays that are drawn.
        starts: codes ``[S, L]`` to begin at, the likeliest first, in place of those that the recipe would find.
        after: told after each iteration how many are done and how many there are, over all starts that are tried.
    """
    decoder = experiment.decoder.requires_grad_(False)
    if starts is None:
        starts = starting_codes(experiment, observation, recipe, seed)
        if recipe.warm:
            options = replace(recipe.fit, iterations=recipe.warm)
            fitted, losses = fit_latent(decoder, starts, observation, options)
            starts = fitted[losses.argsort()]
    views = _Views(observation, recipe, seed)
    tries = _worth_trying(decoder, starts, views)
    found = []
    for number, start in enumerate(tries):
        frame = Frame.around(start, experiment.codes, recipe.neighbours)
        begun, whole = number * recipe.iterations, len(tries) * recipe.iterations

        def told(done: int, begun: int = begun, whole: int = whole) -> None:
            if after:
                after(begun + done, whole)

        found.append(_refined(decoder, frame, views, told))
    first, *others = found
    return next((other for other in others if other.loss < CLEARLY * first.loss), first)


def _refined(decoder: DeepSDFDecoder, frame: Frame, views: _Views, after: Callable[[int], None]) -> Completion:
    """The recipe's iterations from where a frame begins."""
    recipe = views.recipe
    at = torch.zeros_like(frame.start).requires_grad_()  # a leaf: the renderer's gradients arrive there
    adam = torch.optim.Adam([at], recipe.rate)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(
        adam, max(recipe.iterations, 1), eta_min=recipe.decay * recipe.rate
    )
    path, history, before = [frame.start], [], views.queries
    for _ in range(recipe.iterations):
        terms = views.losses(decoder.with_code(frame.code(at)))
        if recipe.neighbours:
            terms["spread"] = at.square().mean()
        total = recipe.total(terms)
        adam.zero_grad()
        total.backward()
        adam.step()
        cosine.step()
        path.append(frame.code(at).detach())
        history.append({name: term.item() for name, term in {**terms, "total": total}.items()})
        after(len(history))
    return Completion(torch.stack(path), history, views.queries - before)


@dataclass(frozen=True, eq=False)
class Frame:
    """Coordinates of codes: ``code = start + at @ axes``.

    Attributes:
        start: ``[L]``.
        axes: ``[L, L]``, rows.
    """

    start: Tensor
    axes: Tensor

    @classmethod
    def around(cls, start: Tensor, codes: Tensor, neighbours: int) -> Frame:
        """That in which the training's codes nearest to ``start`` have a covariance of one.

        The codes' own axes where none are asked for, or there are too few to tell. Not in the paper: steps are as long
        as alike shapes differ, and in what nothing was seen of the shape stays as it began.
        """
        count = min(neighbours, len(codes))
        if count < FEWEST_NEIGHBOURS:
            return cls(start, torch.eye(len(start), dtype=start.dtype, device=start.device))
        near = codes[(codes - start).norm(dim=-1).argsort()[:count]]
        variance, axes = torch.linalg.eigh(torch.cov(near.T))
        # So few codes say nothing of the directions in which they do not differ; some freedom is left there.
        deviation = variance.clamp(min=SLACK * float(variance.mean())).sqrt()
        return cls(start, deviation[:, None] * axes.T)

    def code(self, at: Tensor) -> Tensor:
        """``[L]`` to ``[L]``."""
        return self.start + at @ self.axes


def starting_codes(experiment: Experiment, observation: Observation, recipe: Recipe, seed: int) -> Tensor:
    """Codes ``[S, L]`` to begin at: those ``nearest`` of the decoder's training, nearest first, or else one drawn."""
    codes = experiment.codes
    if not recipe.nearest or not len(codes):
        drawn = torch.randn(1, experiment.decoder.config.latent, generator=torch.Generator().manual_seed(seed))
        return (recipe.sigma * drawn).to(observation.points.device)
    with torch.no_grad():
        parts = [
            experiment.decoder(some[:, None], observation.points.expand(len(some), -1, -1))
            for some in codes.split(CODES_AT_ONCE)
        ]
    off = torch.cat(parts).abs().clamp(max=recipe.fit.clamp).mean(-1)
    return codes[off.argsort()[: recipe.nearest]]


@torch.no_grad()
def _worth_trying(decoder: DeepSDFDecoder, codes: Tensor, views: _Views) -> list[Tensor]:
    """Of codes ``[S, L]`` the first, and the one whose losses weigh least if that is another."""
    if len(codes) == 1:
        return [codes[0]]
    totals = torch.stack([views.recipe.total(views.losses(decoder.with_code(code))) for code in codes])
    return [codes[number] for number in dict.fromkeys([0, int(totals.argmin())])]


@torch.no_grad()
def agreement(sdf: CodedSDF, observation: Observation) -> dict[str, float]:
    """How well a shape agrees with what was seen.

    Returns:
        ``distance``: mean magnitude of the field at the points, scene units. Where a camera saw them also ``hit``, the
        share of their rays that hit, and ``depth``, the median error of the depth on those. Where there is a silhouette
        ``iou``, what the two have in common over what either covers.
    """
    report = {"distance": float(sdf(observation.points).abs().mean())}
    if observation.origins is not None:
        origins, directions, depth = observation.rays
        hit = sphere_trace(sdf, origins, directions, MARCH, gradient="none")
        report["hit"] = float(hit.mask.float().mean())
        report["depth"] = float((hit.depth - depth)[hit.mask].abs().median())
    if observation.mask is not None:
        rendered = trace_image(sdf, observation.camera, MARCH, steps=(3, 3, STEPS), gradient="none").mask[0]
        union = (rendered | observation.mask).sum()
        report["iou"] = float((rendered & observation.mask).sum() / union)
    return report


def _edge(mask: Tensor) -> Tensor:
    """``[H, W]`` bool: pixels near which the silhouette begins or ends."""
    reach = max(1, round(EDGE * max(mask.shape)))
    levels = mask.float()[None]
    grown, shrunk = (sign * F.max_pool2d(sign * levels, 2 * reach + 1, 1, reach) for sign in (1, -1))
    return (grown != shrunk)[0]


class _Views:
    """The losses of one observation, by rays drawn anew each time."""

    def __init__(self, observation: Observation, recipe: Recipe, seed: int) -> None:
        self.recipe = recipe
        self.generator = torch.Generator().manual_seed(seed)
        self.samples = ValueSamples.of(observation, recipe.fit.eta, recipe.fit.free, oblique=False)
        self.normals = observation.normals
        self.queries = 0
        nothing = (observation.points[:0], observation.points[:0])
        self.seen, self.depth, self.inside, self.outside = nothing, observation.points[:0, 0], nothing, nothing
        self.edges: list[Tensor | None] = [None, None]
        if observation.origins is not None:
            *self.seen, self.depth = observation.rays
        if observation.mask is not None:
            origins, directions = (rays[0].reshape(-1, 3) for rays in observation.camera.rays())
            near, far = ball_interval(origins, directions, MARCH.bound)
            mask, edge = observation.mask.reshape(-1), _edge(observation.mask).reshape(-1)
            both = (mask, ~mask & (near < far))
            self.inside, self.outside = ((origins[at], directions[at]) for at in both)
            self.edges = [edge[at].nonzero()[:, 0] for at in both]

    def losses(self, sdf: CodedSDF) -> dict[str, Tensor]:
        """Of the code and of what was observed, by the names of the recipe's weights."""
        terms = {"latent": sdf.latent.square().mean()}
        if self.recipe.values:
            terms["values"] = self.samples.loss(sdf.decoder, sdf.latent[None], self.recipe.fit.clamp)[0]
        every = (self.seen, self.inside, self.outside)
        drawn = [self._drawn(rays, edge) for rays, edge in zip(every, (None, *self.edges), strict=True)]
        counts = [len(at) for at in drawn]
        if not sum(counts):
            return terms
        rays = zip(every, drawn, strict=True)
        origins, directions = (torch.cat(parts) for parts in zip(*((o[at], d[at]) for (o, d), at in rays), strict=True))
        hit = sphere_trace(sdf, origins, directions, MARCH)
        self.queries += hit.queries
        depth, mask, min_sdf = (found.split(counts) for found in (hit.depth, hit.mask, hit.min_sdf))
        if counts[0]:
            off = torch.where(mask[0], (depth[0] - self.depth[drawn[0]]).abs(), min_sdf[0].abs())
            terms["depth"] = off.mean()
            normals = self.normals[drawn[0]]
            usable = mask[0] & (normals.square().sum(-1) > 0)
            if usable.any() and self.recipe.normal:
                terms["normal"] = (hit.normal[: counts[0]] - normals)[usable].abs().sum(-1).mean()
        if counts[1]:
            terms["inside"] = torch.where(mask[1], 0, min_sdf[1].abs()).mean()
        if counts[2]:
            o, d = origins[-counts[2] :][mask[2]], directions[-counts[2] :][mask[2]]
            terms["outside"] = self._depth_inside(sdf, o, d, depth[2][mask[2]].detach()).sum() / counts[2]
        return terms

    def _drawn(self, rays: tuple[Tensor, Tensor], edge: Tensor | None) -> Tensor:
        """Numbers of the rays that are traced this time, some of them of those near the edge."""
        count, wanted = len(rays[0]), self.recipe.rays
        device = rays[0].device
        if count <= wanted:
            return torch.arange(count, device=device)
        near = round(self.recipe.edge * wanted) if edge is not None and len(edge) else 0
        drawn = torch.randint(count, (wanted - near,), generator=self.generator).to(device)
        if near:
            drawn = torch.cat([drawn, edge[torch.randint(len(edge), (near,), generator=self.generator).to(device)]])
        return drawn

    def _depth_inside(self, sdf: CodedSDF, origins: Tensor, directions: Tensor, first: Tensor) -> Tensor:
        """How deep rays ``[N, 3]`` that should miss pass beneath the surface that they meet at ``first`` ``[N]``.

        ``min_sdf`` is zero there. The deepest of a few samples behind it is what is to come out.
        """
        last = ball_interval(origins, directions, MARCH.bound)[1]
        share = torch.arange(DEPTHS, device=first.device) / DEPTHS
        at = first[:, None] + share * (last - first)[:, None]
        points = origins[:, None] + at[..., None] * directions[:, None]
        with torch.no_grad():
            deepest = sdf(points).argmin(1)
        chosen = points[torch.arange(len(points), device=points.device), deepest]
        return -sdf(chosen)
