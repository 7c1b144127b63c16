"""Fitting: hulls, grids in bands, what images say of depth, and the command from files to files."""

import json

import numpy as np
import pytest
import torch
import trimesh
from click.testing import CliRunner
from distrender import banded_grid, camera_files, fit_run, mending, photometric, visual_hull
from distrender.analytic import AnalyticSDF, Box, Sphere
from distrender.cameras import Camera
from distrender.chamfer import chamfer, surface_samples
from distrender.cli import main
from distrender.decoder import DecoderConfig, DeepSDFDecoder
from distrender.evidence import Evidence
from distrender.fit_plan import FitConfig, stages
from distrender.fitted_shapes import EXACT, GridShape
from distrender.fitting import Fitter
from distrender.grid import GridSDF
from distrender.meshing import mesh, sample
from distrender.posed_images import PosedImages
from distrender.tracing import sphere_trace
from papershelf.errors import UserError
from papershelf.images import read_image, write_image

SMALL = FitConfig(resolution=32, coarsest=16, steps=6, image_steps=0, rays=512, surface_rays=256)


def ring(views: int, size: int = 48) -> Camera:
    azimuth = torch.arange(views) * (2 * torch.pi / views)
    height = torch.where(torch.arange(views) % 2 == 0, 0.6, -0.3)
    eye = 2.5 * torch.stack([height.cos() * azimuth.sin(), height.sin(), height.cos() * azimuth.cos()], -1)
    return Camera.look_at(eye, size=(size, size))


def colours(points: torch.Tensor) -> torch.Tensor:
    """A solid texture ``[..., 3]``."""
    waves = [
        0.5 + 0.25 * (torch.sin(w * points[..., k]) + torch.sin(w * points[..., (k + 1) % 3] + 1))
        for k, w in enumerate((11.0, 13.0, 17.0))
    ]
    return torch.stack(waves, -1)


def scene(shape: torch.nn.Module, camera: Camera) -> PosedImages:
    hit = sphere_trace(shape, *camera.rays(), EXACT, gradient="none")
    images = (colours(hit.point) * hit.mask[..., None]).permute(0, 3, 1, 2)
    return PosedImages(camera, hit.mask, images.detach())


def distances(shape: torch.nn.Module, size: int) -> GridSDF:
    return GridSDF(sample(shape, size, visual_hull.HALF), -visual_hull.HALF, visual_hull.HALF)


def test_pixel_distances_vanish_between_pixels_and_ignore_the_rim():
    mask = torch.zeros(1, 5, 8, dtype=torch.bool)
    mask[:, :, :3] = True
    found = visual_hull.pixel_distances(mask)[0]
    assert torch.equal(found, (torch.arange(8) - 2.5).expand(5, 8))
    assert (visual_hull.pixel_distances(torch.ones_like(mask)) < -5).all()


def test_the_hull_of_a_sphere_holds_it_and_little_more():
    views = scene(AnalyticSDF(Sphere(0.6)), ring(8))
    hull = visual_hull.hull_grid(views.cameras, visual_hull.pixel_distances(views.masks), 32).values
    radius = distances(AnalyticSDF(Sphere(0.6)), 32).values + 0.6
    pixel = 2.5 * visual_hull.pixel_sizes(views.cameras)[0]
    assert (hull[radius < 0.6 - pixel] < 0).all()
    assert (hull[radius > 0.75] > 0).all()
    near = (radius - 0.6).abs() < 0.1
    assert (hull - (radius - 0.6))[near].max() < pixel  # a lower bound of the distance, to a pixel


def test_the_ball_is_found_in_the_world():
    ball = AnalyticSDF(Sphere(0.9))
    views = scene(ball, ring(12))
    # The same pictures of a world twice as large and moved.
    centre = torch.tensor([3.0, -1.0, 2.0])
    camera = views.cameras
    world = Camera(camera.intrinsics, camera.rotation, 2 * camera.translation - camera.rotation @ centre, camera.size)
    found, radius = visual_hull.find_ball(world, views.masks)
    away = (found - centre).norm().item()
    assert away + 1.8 < radius < 2.7  # it holds the shape, and not much more than the hull


def test_cones_that_do_not_meet_are_told():
    camera = ring(2)
    masks = torch.zeros(2, 48, 48, dtype=torch.bool)
    masks[0, :4, :4] = masks[1, -4:, :4] = True
    with pytest.raises(UserError, match="do not meet"):
        visual_hull.hull_grid(camera, visual_hull.pixel_distances(masks), 16)


def test_a_picture_that_cuts_the_shape_off_says_nothing_past_itself():
    camera = Camera.orbit(1, elevation=0, first=0, size=(20, 20))
    whole, cut = torch.zeros(2, 1, 20, 20, dtype=torch.bool)
    whole[:, 5:15, 5:15] = True
    cut[:, 5:15, 5:] = True
    aside = torch.tensor([[5.0, 0.0, 0.0]])
    found = visual_hull.hull_values(aside, camera, visual_hull.pixel_distances(whole))
    # The cone's side lies at 5 pixels of 2.5 / 21.9 units from the axis; along a line of sight that is aslant.
    assert found.item() == pytest.approx(5 - 5 * 2.5 * 137 / 150 / 20, rel=0.02)
    assert torch.isinf(visual_hull.hull_values(aside, camera, visual_hull.pixel_distances(cut))).all()


def test_a_part_that_one_view_lost_is_put_back(monkeypatch):
    monkeypatch.setattr(mending, "SAMPLES", 48)
    shape = AnalyticSDF(Box(0.7, 0.25, 0.25))
    views = scene(shape, ring(7, 64))
    masks = views.masks.clone()
    left, dark = (views.cameras.project(torch.tensor([[side, 0.0, 0.0]]))[0][0, 0] for side in (-0.55, 0.55))
    away = (views.cameras.pixels() - dark).norm(dim=-1)
    masks[0] &= away > 8  # one end of the box lies in the dark
    unknown = mending.unknown_pixels(views.cameras, masks, 1)
    lost = views.masks[0] & ~masks[0]
    assert (unknown[0] & lost).sum() > 0.7 * lost.sum()
    assert unknown[0].sum() < 3 * lost.sum()
    assert not unknown[0][(views.cameras.pixels() - left).norm(dim=-1) < 8].any()
    assert unknown[1:].sum() < lost.sum()  # in six views together
    assert not mending.unknown_pixels(views.cameras, views.masks, 1).any()
    assert not mending.unknown_pixels(views.cameras, masks, 0).any()


def test_a_banded_grid_is_the_grid_and_its_gradients_reach_the_numbers():
    shape = distances(AnalyticSDF(Box(0.5, 0.3, 0.4)), 20)
    banded = banded_grid.BandedGrid(GridSDF(shape.values, shape.low, shape.high), 3)
    points = torch.rand(300, 3, generator=torch.Generator().manual_seed(0)) * 2.6 - 1.3
    torch.testing.assert_close(banded(points), shape(points), atol=1e-6, rtol=0)
    banded(points).sum().backward()
    shape(points).sum().backward()
    torch.testing.assert_close(banded.numbers.grad, shape.values.grad.view(-1)[banded.band])
    with torch.no_grad():
        banded.numbers += 1
    banded.write()
    assert torch.equal(banded.grid.values.view(-1)[banded.band], banded.numbers)


def test_regularisers_are_those_of_a_sphere():
    shape = distances(AnalyticSDF(Sphere(0.6)), 41)
    banded = banded_grid.BandedGrid(GridSDF(shape.values, shape.low, shape.high), 3)
    eikonal, laplacian, area = banded.regularisers(torch.arange(len(banded.inner)))
    assert eikonal < 1e-4
    curvature = 2 / 0.6 * banded.step  # the Laplacian of a distance is the sum of both curvatures
    assert laplacian.sqrt().item() == pytest.approx(curvature, rel=0.05)
    # The hat has an area of two steps, and the samples counted lie within so many on either side.
    share = banded.numbers[banded.inner].abs().max() / banded.step
    assert area.item() == pytest.approx(1 / share.item(), rel=0.1)


def test_redistancing_restores_distances():
    truth = distances(AnalyticSDF(Sphere(0.6)), 32)
    crooked = GridSDF(truth.values * (1 + 3 * truth.values.abs()), truth.low, truth.high)
    again = banded_grid.redistanced(crooked, 5).values
    near = truth.values.abs() < 0.25
    assert (again - truth.values)[near].abs().max() < 0.01
    with pytest.raises(UserError, match="nothing is left"):
        banded_grid.redistanced(GridSDF(truth.values.abs() + 1, truth.low, truth.high), 5)


@pytest.mark.parametrize(("kind", "radius"), [("ncc", 2), ("l1", 0)])
def test_views_agree_at_the_surface_and_the_gradient_leads_there(kind, radius):
    ball, camera = AnalyticSDF(Sphere(0.7)), Camera.orbit(12, size=(96, 96))
    views = scene(ball, camera)
    hit = sphere_trace(ball, *(part[0].reshape(-1, 3) for part in camera.rays()), EXACT, gradient="none")
    rows = (hit.mask & ((hit.normal * camera.rays()[1][0].reshape(-1, 3)).sum(-1) < -0.7)).nonzero()[::7, 0]
    pixels = camera.pixels().reshape(-1, 2)[rows]

    def loss(shift):
        depth = (hit.depth[rows] + shift).requires_grad_()
        surface = photometric.SeenSurface(camera[0], pixels, depth, hit.normal[rows].detach())
        found, usable = photometric.disagreement(surface, views.images[0], camera[1], views.images[1], radius, kind)
        assert usable.float().mean() > 0.9
        total = found[usable].mean()
        return total.item(), torch.autograd.grad(total, depth)[0].sum()

    at, before, behind = loss(0.0), loss(-0.03), loss(0.03)
    assert at[0] < 0.5 * min(before[0], behind[0])
    assert before[1] < 0 < behind[1]


def test_a_view_does_not_see_what_is_hidden():
    ball, camera = AnalyticSDF(Sphere(0.5)), Camera.orbit(1, elevation=0, first=0)
    points = 0.5 * torch.eye(3)[[2, 2, 0]] * torch.tensor([[1.0], [-1.0], [1.0]])  # front, back, side
    seen = photometric.visible(ball, points, points / 0.5, camera, 0.01, EXACT)
    assert seen.tolist() == [True, False, False]


def test_neighbours_of_a_ring_are_beside():
    assert [sorted(two) for two in photometric.neighbours(Camera.orbit(8), 2)] == [
        sorted([(k - 1) % 8, (k + 1) % 8]) for k in range(8)
    ]


def fitted(views: PosedImages, config: FitConfig) -> tuple[GridSDF, list[dict]]:
    fitter = Fitter(views, views.cameras, config)
    figures = [fitter.update() for _ in range(fitter.total)]
    return fitter.shape.sdf, figures


def off(grid: GridSDF, truth: np.ndarray) -> float:
    return 1000 * chamfer(surface_samples(mesh(grid, len(grid.values), visual_hull.HALF), 8000), truth)


def test_silhouettes_give_more_than_their_hull():
    shape = AnalyticSDF(Sphere(0.7))
    views = scene(shape, ring(4, 64))
    truth = surface_samples(shape, 8000, seed=1)
    config = FitConfig(resolution=32, coarsest=16, steps=40, image_steps=0, rays=1024)
    grid, figures = fitted(views, config)
    hull = visual_hull.hull_grid(views.cameras, visual_hull.pixel_distances(views.masks), 32)
    assert off(grid, truth) < 0.8 * off(hull, truth)
    assert figures[-1]["silhouette"] < 0.1


def test_images_find_the_depth_that_silhouettes_leave_open():
    """Without silhouettes: a ball too large by a fifteenth shrinks, since neighbours disagree about it."""
    shape = AnalyticSDF(Sphere(0.6))
    views = scene(shape, Camera.orbit(6, elevation=25, size=(64, 64)))
    views = PosedImages(views.cameras, torch.ones_like(views.masks), views.images)  # no silhouettes at all
    grid = GridSDF(distances(AnalyticSDF(Sphere(0.64)), 32).values, -visual_hull.HALF, visual_hull.HALF)
    config = FitConfig(resolution=32, rays=64, surface_rays=1024, compare="l1", area=0.0)
    evidence = Evidence(views, views.cameras, config)
    evidence.inner = [inner[::3] for inner in evidence.inner]
    one = GridShape(grid, config)
    adam, generator = torch.optim.Adam([one.leaf], one.rate), torch.Generator().manual_seed(0)
    for _ in range(25):
        adam.zero_grad()
        (5 * evidence.photometric_loss(one, 0, generator) + one.regulariser(generator, 1.0)).backward()
        adam.step()
        one.moved()
    top = torch.tensor([[0.0, 0.0, 0.62], [0.6, 0.0, 0.2], [0.3, 0.4, 0.4]])
    before = top.norm(dim=-1) - 0.64
    with torch.no_grad():
        assert (one.sdf(top) > before).all()  # from 0.64 towards 0.6


def test_images_begin_on_a_coarser_grid():
    config = FitConfig(resolution=96, coarsest=16, steps=10, image_steps=30)
    plan = [(stage.resolution, stage.steps, stage.images) for stage in stages(config, code=False, images=True)]
    assert plan == [(16, 10, None), (32, 10, None), (64, 10, None), (64, 20, (0.0, 2 / 3)), (96, 10, (2 / 3, 1.0))]
    silhouettes = stages(config, code=False, images=False)
    assert [stage.resolution for stage in silhouettes] == [16, 24, 48, 96]
    assert [stage.resolution for stage in stages(config, code=True, images=True)] == [0, 0]


def test_two_steps_and_two_after_a_resume_are_four():
    views = scene(AnalyticSDF(Box(0.5, 0.4, 0.3)), ring(4))
    config = FitConfig(resolution=24, coarsest=12, steps=2, image_steps=2, rays=256, surface_rays=128)
    whole = Fitter(views, views.cameras, config)
    for _ in range(whole.total):
        whole.update()
    first = Fitter(views, views.cameras, config)
    for _ in range(whole.total - 2):
        first.update()
    state = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in first.state().items()}
    second = Fitter(views, views.cameras, config)
    second.load(state)
    for _ in range(2):
        second.update()
    assert torch.equal(whole.shape.sdf.values, second.shape.sdf.values)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Renders of a box with their cameras, masks of them, and a tiny decoder."""
    folder = tmp_path_factory.mktemp("fit")
    views = scene(AnalyticSDF(Box(0.6, 0.4, 0.3)), ring(5, 40))
    names = [f"b{number}.png" for number in range(5)]
    camera_files.write(folder / "cameras.json", views.cameras, names)
    for kind in ("images", "masks", "rgba"):
        (folder / kind).mkdir()
    for name, image, mask in zip(names, views.images, views.masks, strict=True):
        rgb = (image.permute(1, 2, 0) * 255).round().byte().numpy()
        alpha = (mask * 255).byte().numpy()[..., None]
        write_image(folder / "images" / name, rgb)
        write_image(folder / "masks" / name, alpha)
        write_image(folder / "rgba" / name, np.concatenate([rgb + (255 - alpha) // 2, alpha], -1))
    return folder


def run(*words: object):
    return CliRunner().invoke(main, ["fit", *(str(word) for word in words)])


QUICK = ("--resolution", 16, "--steps", 3, "--image-steps", 2, "--threads", 1)


def test_pictures_become_a_mesh_in_the_world(files, tmp_path):
    result = run(files / "cameras.json", files / "images", "-o", tmp_path / "run", *QUICK, "--json", "--every", 2)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert "differ from their background" in result.stderr
    assert report["iou"]["shape"]["median"] > 0.85
    assert [view["name"] for view in report["views"]] == [f"b{number}.png" for number in range(5)]
    made = trimesh.load(tmp_path / "run" / "shape.ply")
    hull = trimesh.load(tmp_path / "run" / "hull.ply")
    assert (made.bounds[0] > hull.bounds[0] - 0.15).all()
    assert (made.bounds[1] < hull.bounds[1] + 0.15).all()
    np.testing.assert_allclose(made.bounds[1], [0.6, 0.4, 0.3], atol=0.15)
    assert read_image(tmp_path / "run" / "overlays" / "b3.png").shape == (40, 80, 3)
    ball = GridSDF.load(tmp_path / "run" / "shape.npz")
    assert ball.values.shape == (16, 16, 16)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["config"]["resolution"] == 16
    assert lines[-1]["step"] == 5
    assert {"hull.ply", "curves.png", "state.pt", "report.json"} <= {file.name for file in (tmp_path / "run").iterdir()}
    again = run(files / "cameras.json", files / "images", "-o", tmp_path / "run", *QUICK)
    assert again.exit_code == 1
    assert "holds a run already" in again.output


def test_silhouettes_come_from_masks_alpha_or_the_pictures(files):
    from distrender.posed_images import load

    names = sorted((files / "images").iterdir())
    given = load(files / "cameras.json", [files / "images"], files / "masks")
    alpha = load(files / "cameras.json", sorted((files / "rgba").iterdir()))
    only = load(files / "cameras.json", [files / "masks"])
    some = load(files / "cameras.json", names[3:1:-1], files / "masks")
    assert torch.equal(given.masks, alpha.masks)
    assert torch.equal(given.masks, only.masks)
    assert only.images is None
    assert some.names == ("b3.png", "b2.png")
    assert torch.equal(some.masks, given.masks[[3, 2]])
    assert torch.equal(some.cameras.rotation, given.cameras.rotation[[3, 2]])


def test_a_stopped_run_goes_on(files, tmp_path, monkeypatch):
    words = (files / "cameras.json", files / "masks", *QUICK, "--every", 0)
    whole = run(*words, "-o", tmp_path / "whole", "--json")
    assert whole.exit_code == 0, whole.output
    real, steps = Fitter.update, []

    def update(self):
        steps.append(1)
        return real(self)

    from contextlib import contextmanager

    @contextmanager
    def asked():
        yield lambda: len(steps) == 2

    monkeypatch.setattr(Fitter, "update", update)
    monkeypatch.setattr(fit_run, "stop_requests", asked)
    stopped = run(*words, "-o", tmp_path / "run")
    assert stopped.exit_code == 130
    assert "--resume goes on" in stopped.output
    other = run(*words, "-o", tmp_path / "run", "--resume", "--seed", 5)
    assert other.exit_code == 1
    assert "seed 0 (now 5)" in other.output
    assert run(*words, "-o", tmp_path / "run", "--resume").exit_code == 0
    for name in ("shape.ply",):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_code_is_fitted_and_kept(files, tmp_path, monkeypatch):
    from distrender import decoder_files

    torch.manual_seed(0)
    decoder = DeepSDFDecoder(DecoderConfig(latent=2, hidden=16, layers=3, skip=()))
    with torch.no_grad():  # |first code number + points| in a network: a ball whose radius the code changes
        weight = torch.nn.functional.normalize(torch.randn(16, 3), dim=-1)
        decoder.lin0.weight.zero_()
        decoder.lin0.weight[:, 2:] = weight
        decoder.lin0.bias.zero_()
        for layer in (decoder.lin1, decoder.lin2):
            layer.weight.copy_(torch.eye(16))
            layer.bias.zero_()
        decoder.lin3.weight.fill_(0.25)
        decoder.lin3.bias.fill_(-0.2)
        decoder.lin1.weight[0] = 0
        decoder.lin0.weight[1, 0] = 0.5
    decoder_files.save(tmp_path / "net.safetensors", decoder, torch.zeros(1, 2), ["one"])
    made = run(
        files / "cameras.json",
        files / "masks",
        "--decoder",
        tmp_path / "net.safetensors",
        "-o",
        tmp_path / "run",
        "--resolution",
        24,
        "--steps",
        4,
        "--threads",
        1,
        "--every",
        0,
    )
    assert made.exit_code == 0, made.output
    code = np.load(tmp_path / "run" / "code.npy")
    assert code.shape == (2,)
    assert code[0] < -0.01  # towards a larger ball
    assert not (tmp_path / "run" / "shape.npz").exists()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["none.json", "images"], 1, "no such file"),
        (["cameras.json", "none"], 1, "none"),
        (["cameras.json", "images", "--masks", "none"], 1, "--masks is a folder"),
        (["cameras.json", "images", "--radius", "1"], 1, "both --centre and --radius"),
        (["cameras.json", "images", "--centre", "9", "9", "9", "--radius", "1"], 1, "do not meet"),
        (["cameras.json", "images", "--threshold", "1"], 1, "silhouette is empty"),
        (["cameras.json", "images", "--resolution", "2"], 2, "--resolution"),
        (["cameras.json"], 2, "IMAGES"),
    ],
)
def test_bad_input_gets_one_line(files, tmp_path, monkeypatch, words, code, message):
    monkeypatch.chdir(files)
    result = run(*words, "-o", tmp_path / "run")
    assert result.exit_code == code, result.output
    assert message in result.output
    if code == 1:
        assert [line for line in result.stderr.splitlines() if line][-1].startswith("Error: ")
    assert not (tmp_path / "run").exists()
