"""What a mode consists of, and the mean over its networks."""

import torch
from rife.interpolator import Interpolator, Member, members
from rife.model import Rife
from rife.presets import PRESETS


def test_best_takes_a_network_for_the_middle_in_where_it_is_cached(monkeypatch):
    monkeypatch.setattr("rife.weights.cached", lambda name: True)
    assert [member.weights for member in members("best")] == ["v4.0", "v4.6", "v3.1"]
    assert [member.weights for member in members("balanced")] == ["v4.0"]
    monkeypatch.setattr("rife.weights.cached", lambda name: False)
    assert [member.weights for member in members("best")] == ["v4.0", "v4.6"]


def test_a_network_for_the_middle_answers_there_only():
    torch.manual_seed(0)
    any_time, middle = (Rife(PRESETS[name]).eval() for name in ("v4.6", "v3.1"))
    a, b = torch.rand(2, 3, 64, 64).unbind()
    options = {"device": "cpu", "precision": "float32"}
    both = Interpolator([(any_time, Member("a")), (middle, Member("m"))], **options)
    alone = [Interpolator([(model, Member("x"))], **options) for model in (any_time, middle)]
    quarter, half = both.between(a, b, [0.25, 0.5])
    torch.testing.assert_close(quarter, alone[0].between(a, b, [0.25])[0])
    torch.testing.assert_close(half, (alone[0].between(a, b, [0.5])[0] + alone[1].between(a, b, [0.5])[0]) / 2)
