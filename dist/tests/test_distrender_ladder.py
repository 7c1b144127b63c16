"""The ladder of tricks, and the command that shows it."""

import json
import math

import pytest
import torch
from click.testing import CliRunner
from distrender import ladder
from distrender.analytic import AnalyticSDF, Sphere, Torus
from distrender.cameras import Camera
from distrender.cli import main
from papershelf.errors import UserError


@pytest.fixture(scope="module")
def rungs():
    return ladder.climb(AnalyticSDF(Torus(0.55, 0.25)), Camera.orbit(1, size=(64, 64)))


def test_each_row_asks_less_and_finds_as_much(rungs):
    assert [rung.row for rung in rungs] == ["naive", "dynamic", "aggressive", "coarse to fine", "ours"]
    queries = [rung.queries for rung in rungs]
    assert queries == sorted(queries, reverse=True)
    assert queries[-1] < queries[0] / 12
    for rung in rungs:
        assert 0.97 < rung.hit_rate <= 1  # at 64 pixels more rays graze than at 512
        assert rung.mean_depth_error < 2e-4
        assert rung.seconds > 0
    assert rungs[1].mean_depth_error < 1e-6  # the same steps as the reference's


def test_counts_and_rates_are_those_of_the_rows_own_runs():
    sphere, camera = AnalyticSDF(Sphere(0.5)), Camera.orbit(1, size=(24, 24))
    asked = []
    handle = sphere.register_forward_hook(lambda _, points, __: asked.append(len(points[0])))
    naive = ladder.climb(sphere, camera)[0]
    handle.remove()
    origins, directions = camera.rays()
    off_axis = torch.linalg.cross(origins, directions).norm(dim=-1)
    steps, rest = divmod(naive.queries, int((off_axis < 1).sum()))
    assert rest == 0
    assert 20 < steps <= 50  # fewer where none is on its way any more
    assert sum(asked) > naive.queries
    assert naive.hit_rate == pytest.approx(1, abs=0.02)


def test_a_shape_that_no_ray_meets_is_said_so():
    with pytest.raises(UserError, match="no ray meets the surface"):
        ladder.climb(AnalyticSDF(Sphere(1e-3)), Camera.orbit(1, size=(4, 4)))


def test_the_table_has_a_line_a_row(rungs):
    lines = ladder.table(rungs).splitlines()
    assert lines[0].split()[:2] == ["row", "queries"]
    assert [line[:16].strip() for line in lines[1:]] == list(ladder.ROWS)
    assert len({len(line) for line in lines}) == 1
    assert f"{rungs[0].queries:,}" in lines[1]


def run(*words: object):
    return CliRunner().invoke(main, ["bench", *map(str, words)])


def test_the_command_prints_the_table_or_json():
    shown = run("sphere(0.5)", "--size", 24)
    assert shown.exit_code == 0, shown.output
    assert len(shown.stdout.strip().splitlines()) == 6
    report = json.loads(run("sphere(0.5)", "--size", 24, "--rounds", 2, "--threads", 1, "--json").stdout)
    assert (report["shape"], report["size"], report["threads"]) == ("sphere(0.5)", 24, 1)
    assert [row["row"] for row in report["rows"]] == list(ladder.ROWS)
    assert all(math.isfinite(row["mean_depth_error"]) for row in report["rows"])


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["nothing.obj"], 1, "no such file"),
        (["sphere(0.001)", "--size", 4], 1, "no ray meets"),
        (["sphere(0.5)", "--size", 0], 2, "--size"),
        (["sphere(0.5)", "--rounds", 0], 2, "--rounds"),
    ],
)
def test_bad_input_gets_one_line(words, code, message):
    shown = run(*words)
    assert shown.exit_code == code
    assert message in shown.output
    if code == 1:
        assert len(shown.output.strip().splitlines()) == 1
