"""Gradients of depth, points, normals and silhouettes against finite differences of the whole march."""

from dataclasses import replace

import pytest
import torch
from distrender import gradients
from distrender.cameras import Camera
from distrender.tracing import MarchOptions, sphere_trace
from papershelf.errors import UserError

EXACT = MarchOptions(steps=300, ratio=1.0, threshold=1e-11, finish="secant")


def ellipsoid(p, centre, radii):
    """No true distance, but smooth, with the sign and about the slope of one."""
    q = p - centre
    return ((q / radii).norm(dim=-1) - 1) * radii.min().detach()


def parameters():
    centre = torch.tensor([0.05, -0.02, 0.1], dtype=torch.float64, requires_grad=True)
    radii = torch.tensor([0.5, 0.4, 0.6], dtype=torch.float64, requires_grad=True)
    return centre, radii


def some_rays(size=8, focal=1.6):
    eye = torch.tensor([0.7, 0.8, 2.2], dtype=torch.float64)
    origins, directions = Camera.look_at(eye, focal=focal * size, size=(size, size)).rays()
    return origins[0], directions[0]


def median_error(function, variable, step=1e-5):
    """Median over all entries of the relative error of autograd against central differences of ``function``."""
    (gradient,) = torch.autograd.grad(function(variable), variable)
    differences = []
    with torch.no_grad():
        for k in range(variable.numel()):
            shift = torch.zeros_like(variable).view(-1)
            shift[k] = step
            shift = shift.view_as(variable)
            differences.append((function(variable + shift) - function(variable - shift)) / (2 * step))
    differences = torch.stack(differences).view_as(variable)
    counted = differences.abs() > 1e-6
    assert counted.any()
    return ((gradient - differences)[counted] / differences[counted]).abs().median().item()


def weights_for(mask):
    """A loss without symmetries."""
    return torch.linspace(0.5, 1.5, mask.numel(), dtype=torch.float64).view_as(mask)


def depth_loss(sdf, origins, directions, kept):
    hit = sphere_trace(sdf, origins, directions, EXACT)
    return (weights_for(kept) * hit.depth)[kept].sum()


@pytest.fixture(scope="module")
def interior():
    """Rays that hit well inside the silhouette, where a small change loses none."""
    centre, radii = (v.detach() for v in parameters())
    origins, directions = some_rays()
    return sphere_trace(lambda p: ellipsoid(p, centre, radii * 0.95), origins, directions, EXACT).mask


@pytest.mark.parametrize("which", ["centre", "radii", "origins", "directions"])
def test_depth_by_shape_and_pose(which, interior):
    values = dict(zip(("centre", "radii"), parameters(), strict=True))
    values["origins"], values["directions"] = some_rays()

    def loss(value):
        now = values | {which: value}
        return depth_loss(
            lambda p: ellipsoid(p, now["centre"], now["radii"]), now["origins"], now["directions"], interior
        )

    variable = values[which].detach()
    if which in ("origins", "directions"):  # one shift for all rays, so that there are three numbers
        base, variable = variable, torch.zeros(3, dtype=torch.float64)
        inner = loss
        loss = lambda shift: inner(base + shift)  # noqa: E731
    assert median_error(loss, variable.requires_grad_()) < 1e-4


def test_depth_by_the_values_of_a_grid(interior):
    ticks = torch.linspace(-1.05, 1.05, 8, dtype=torch.float64)
    z, y, x = torch.meshgrid(ticks, ticks, ticks, indexing="ij")
    centre, radii = parameters()
    values = ellipsoid(torch.stack([x, y, z], -1).view(-1, 3), centre, radii).detach().view(8, 8, 8)
    origins, directions = some_rays()

    def field(grid):
        def trilinear(p):
            q = (p + 1.05) / 2.1 * 7
            low = q.floor().clamp(0, 6)
            weight = q - low
            low = low.long()
            total = 0
            for corner in range(8):
                bits = torch.tensor([corner & 1, corner >> 1 & 1, corner >> 2 & 1])
                at = low + bits
                share = torch.where(bits.bool(), weight, 1 - weight).prod(-1)
                total = total + share * grid[at[:, 2], at[:, 1], at[:, 0]]
            return total

        return trilinear

    kept = interior & sphere_trace(field(values + 0.02), origins, directions, EXACT).mask
    near = torch.zeros_like(values, dtype=torch.bool)
    near[3:6, 4:6, 3:5] = True  # a piece of the surface that faces the camera
    flat = values[near].clone().requires_grad_()

    def loss(some):
        return depth_loss(field(values.index_put((near,), some)), origins, directions, kept)

    assert median_error(loss, flat, 1e-6) < 0.01


def test_depth_by_the_latent_of_a_network(interior):
    torch.manual_seed(0)
    centre, radii = (v.detach() for v in parameters())
    first, second = torch.nn.Linear(5, 32).double(), torch.nn.Linear(32, 1).double()
    latent = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)

    def loss(z):
        def network(p):
            wobble = second(torch.tanh(first(torch.cat([z.expand(len(p), 2), p], -1))))[:, 0]
            return ellipsoid(p, centre, radii) + 0.05 * wobble

        return depth_loss(network, *some_rays(), kept)

    kept = interior.clone()
    with torch.no_grad():
        kept &= sphere_trace(lambda p: ellipsoid(p, centre, radii) + 0.05, *some_rays(), EXACT).mask
    assert median_error(loss, latent) < 1e-3


def test_silhouette_by_shape_and_pose():
    """The paper's loss on rays that should hit and do not: the smallest distance on the ray."""
    options = MarchOptions(closest=2)
    origins, directions = some_rays(10, 1.2)
    centre, radii = parameters()
    missing = ~sphere_trace(lambda p: ellipsoid(p, centre, radii * 1.02), origins, directions, options).mask

    def loss(centre, radii, shift):
        hit = sphere_trace(lambda p: ellipsoid(p, centre, radii), origins + shift, directions, options)
        return (weights_for(missing) * hit.min_sdf)[missing].sum()

    shift = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    assert median_error(lambda v: loss(v, radii.detach(), shift.detach()), centre) < 0.01
    assert median_error(lambda v: loss(centre.detach(), v, shift.detach()), radii) < 0.01
    assert median_error(lambda v: loss(centre.detach(), radii.detach(), v), shift) < 0.01


def test_minima_that_lie_in_a_crease_have_their_own_gradient():
    """On a ray past a crease, max(a, b) is smallest where a = b, which moves when either does."""
    leaf = torch.tensor([0.2, 0.3], dtype=torch.float64, requires_grad=True)
    # Along x from the left: a falls with slope 1/2, b rises with slope 1; they cross where both are 0.2 + 0.2 / 3.
    field = lambda p: torch.maximum(leaf[0] - 0.5 * p[:, 0], leaf[1] + p[:, 0])  # noqa: E731
    origin, along = (torch.tensor([[x, 0.0, 0.0]], dtype=torch.float64) for x in (-2.0, 1.0))
    hit = sphere_trace(field, origin, along, MarchOptions(closest=12))
    smallest = (1.0 * 0.2 + 0.5 * 0.3) / 1.5
    assert hit.min_sdf.item() == pytest.approx(smallest, abs=1e-4)
    (gradient,) = torch.autograd.grad(hit.min_sdf.sum(), leaf)
    assert gradient.tolist() == pytest.approx([1 / 1.5, 0.5 / 1.5])


def test_silhouettes_of_networks_with_creases():
    torch.manual_seed(0)
    centre, radii = (v.detach() for v in parameters())
    first, second = torch.nn.Linear(5, 32).double(), torch.nn.Linear(32, 1).double()
    options = MarchOptions(closest=8)
    origins, directions = some_rays(10, 1.2)

    def loss(z, kept):
        def network(p):
            wobble = second(torch.relu(first(torch.cat([z.expand(len(p), 2), 2 * p], -1))))[:, 0]
            return ellipsoid(p, centre, radii) + 0.3 * wobble

        min_sdf = sphere_trace(network, origins, directions, options).min_sdf
        return min_sdf if kept is None else (weights_for(kept) * min_sdf)[kept].sum()

    latent = torch.tensor([0.3, -0.2], dtype=torch.float64)
    around = loss(latent, None)
    assert median_error(lambda z: loss(z, (around > 0.01) & (around < 0.2)), latent.requires_grad_(), 1e-6) < 0.01


def test_normals_and_points_by_shape(interior):
    centre, radii = parameters()
    origins, directions = some_rays()

    def loss(radii, name):
        hit = sphere_trace(lambda p: ellipsoid(p, centre.detach(), radii), origins, directions, EXACT)
        weights = torch.linspace(-1, 1, 3, dtype=torch.float64) * weights_for(interior)[..., None]
        return (weights * getattr(hit, name))[interior].sum()

    assert median_error(lambda v: loss(v, "normal"), radii) < 1e-4
    assert median_error(lambda v: loss(v, "point"), radii) < 1e-4


@pytest.mark.parametrize(("samples", "ratio"), [(1, 1.0), (2, 0.5)])
def test_the_papers_gradient_is_exact_on_a_plane_seen_head_on(samples, ratio):
    """Where grad f . d = -1 and samples times ratio = 1."""
    origins = torch.zeros(4, 3, dtype=torch.float64)
    origins[:, 0] = torch.linspace(-0.3, 0.3, 4)
    origins[:, 2] = -2
    directions = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64).expand(4, 3)
    height = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    options = MarchOptions(ratio=ratio, samples=samples)
    hits = [
        sphere_trace(lambda p: height - p[:, 2], origins, directions, options, gradient=which)
        for which in ("implicit", "paper")
    ]
    exact, paper = (torch.autograd.grad(hit.depth.sum(), height)[0] for hit in hits)
    assert torch.equal(hits[0].depth, hits[1].depth)
    assert exact == pytest.approx(4.0)
    assert paper == pytest.approx(4.0)


def test_the_papers_gradient_adds_the_samples_of_smallest_distance():
    """On a tilted plane it is K * ratio, where the exact one is 1 / cosine."""
    origins = torch.tensor([[0.0, 0.0, -2.0]], dtype=torch.float64)
    directions = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
    height = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    slope = torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64)
    field = lambda p: height - p @ slope  # noqa: E731
    options = MarchOptions(ratio=1.2, samples=3)
    exact = sphere_trace(field, origins, directions, options)
    paper = sphere_trace(field, origins, directions, options, gradient="paper")
    assert torch.autograd.grad(exact.depth.sum(), height)[0] == pytest.approx(1 / 0.8)
    assert torch.autograd.grad(paper.depth.sum(), height)[0] == pytest.approx(3 * 1.2)


def test_chunks_change_nothing_but_the_memory():
    origins, directions = some_rays()
    largest, gradients_of = [], []
    for chunk in (5, 10_000):
        # Between the leaf and the field lies a graph that all chunks share.
        leaf = torch.tensor([0.5, 0.4, 0.6], dtype=torch.float64, requires_grad=True)
        centre = torch.zeros(3, dtype=torch.float64)
        radii = leaf.exp().log()
        asked = []

        def field(p, radii=radii, asked=asked, centre=centre):
            if torch.is_grad_enabled():
                asked.append(len(p))
            return ellipsoid(p, centre, radii)

        hit = sphere_trace(field, origins, directions, EXACT, chunk=chunk)
        (hit.depth[hit.mask].sum() + hit.min_sdf.square().sum() + hit.normal[..., 0].sum() + radii.sum()).backward()
        largest.append(max(asked))
        gradients_of.append(leaf.grad)
    assert largest[0] == 5
    assert largest[1] > 5
    torch.testing.assert_close(*gradients_of)


def test_module_parameters_get_gradients_and_unused_ones_do_not():
    torch.manual_seed(1)
    layer = torch.nn.Linear(3, 8)
    unused = torch.nn.Linear(3, 1)
    origins, directions = (v.float() for v in some_rays())
    field = lambda p: p.norm(dim=-1) - 0.5 + 0.01 * layer(p).sum(-1)  # noqa: E731
    hit = sphere_trace(field, origins, directions)
    hit.depth[hit.mask].sum().backward()
    assert layer.weight.grad.abs().sum() > 0
    assert layer.bias.grad.abs().sum() > 0
    assert unused.weight.grad is None


def test_frozen_parameters_and_no_grad_record_nothing():
    origins, directions = some_rays()
    centre, radii = parameters()
    frozen = sphere_trace(lambda p: ellipsoid(p, centre.detach(), radii.detach()), origins, directions)
    assert not frozen.depth.requires_grad
    field = lambda p: ellipsoid(p, centre, radii)  # noqa: E731
    hit = sphere_trace(field, origins.clone().requires_grad_(), directions, gradient="none")
    assert not any(t.requires_grad for t in (hit.depth, hit.point, hit.normal, hit.min_sdf, hit.min_point))
    with torch.no_grad():
        hit = sphere_trace(field, origins, directions)
        assert not hit.depth.requires_grad
        assert not hit.normal.requires_grad
    assert sphere_trace(field, origins, directions).depth.requires_grad


def test_grazing_rays_have_bounded_gradients():
    origins = torch.tensor([[0.0, 0.49998, -2.0]], dtype=torch.float64)
    directions = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
    radius = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    hit = sphere_trace(lambda p: p.norm(dim=-1) - radius, origins, directions, replace(EXACT, steps=2000))
    assert hit.mask.all()
    gradient = torch.autograd.grad(hit.depth.sum(), radius)[0]
    assert gradient == pytest.approx(-1 / gradients.GRAZING)


def test_a_field_without_gradient_is_told():
    origins, directions = some_rays()
    hit = sphere_trace(lambda p: (p.norm(dim=-1) - 0.5).detach(), origins, directions)
    with pytest.raises(UserError, match="cannot be differentiated"):
        _ = hit.normal


def test_leaves_of_a_field():
    a = torch.ones(2, requires_grad=True)
    b = torch.ones(2, requires_grad=True)
    c = (a * 2).sum()
    leaves = gradients.leaves_of(lambda p: p.sum(-1) * c + c, torch.zeros(1, 3))
    assert len(leaves) == 1
    assert leaves[0] is a
    assert gradients.leaves_of(lambda p: p.sum(-1), b) == []
