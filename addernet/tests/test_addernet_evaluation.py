"""Evaluation and prediction: counted by hand, classes matched by name, weights of every kind, errors in one line."""

import json
import math

import numpy as np
import pytest
import torch
from addernet.architectures import build
from addernet.batches import Batch
from addernet.datasets import open_data
from addernet.evaluation import Evaluation, Scores, as_trained, evaluate, images_of, network, score
from addernet.prediction import predict
from addernet_image_sets import COLORS, make_folder, picture
from papershelf.errors import UserError
from papershelf.images import write_image
from papershelf.processes import Place
from torch import nn

from addernet import checkpoints, cifar, quantization

CPU = Place(torch.device("cpu"))
NAMES = json.dumps(list(COLORS))


@pytest.fixture(scope="module")
def colors(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("colors") / "set", train=4, test=2)


def color_blind(path, names=NAMES, classes=3):
    """A file of a LeNet that answers the last class, whatever it sees."""
    torch.manual_seed(0)
    model = build("lenet", classes=classes)
    nn.init.zeros_(model.bn5.weight)
    model.bn5.bias.data = torch.arange(classes).float()
    checkpoints.save(model, path, {"class_names": names} if names else {})
    return path


def test_scores_are_what_a_hand_counts():
    logits = torch.tensor(
        [
            [9.0, 1, 2, 3, 4, 5, 6],  # label 0: first
            [9.0, 1, 2, 3, 4, 5, 6],  # label 4: fourth
            [9.0, 1, 2, 3, 4, 5, 6],  # label 2: sixth
            [9.0, 1, 2, 3, 4, 5, 6],  # label 0: first
            [0.0, 9, 2, 3, 4, 5, 6],  # label 1: first
        ]
    )
    labels = torch.tensor([0, 4, 2, 0, 1])
    batches = [Batch(logits[:3], labels[:3]), Batch(logits[3:], labels[3:])]
    scores = score(lambda x: x, batches, 7, CPU)
    assert (scores.images, scores.top1, scores.top5) == (5, 0.6, 0.8)
    assert scores.seen == (2, 1, 1, 0, 1, 0, 0)
    assert scores.right == (2, 1, 0, 0, 0, 0, 0)
    rows = zip(logits.tolist(), labels.tolist(), strict=True)
    assert scores.loss == pytest.approx(np.mean([math.log(sum(map(math.exp, x))) - x[k] for x, k in rows]), rel=1e-6)


def test_the_table_and_json():
    scores = Scores(3, 0.5, 2 / 3, 1.0, (2, 1, 0), (2, 0, 0))
    result = Evaluation("set", "w.safetensors", "lenet adder", ("ant", "bear", "cat"), scores, 1.5)
    assert result.table().splitlines()[1:] == [
        "top 1 66.67%, top 5 100.00%, loss 0.5000",
        "",
        "ant   100.00%  2 of 2",
        "bear    0.00%  0 of 1",
    ]
    about = result.as_json()
    assert about["classes"] == {"ant": {"images": 2, "top1": 1.0}, "bear": {"images": 1, "top1": 0.0}}
    assert about["images_per_second"] == 2


def test_weights_on_a_data_set(colors, tmp_path):
    result = evaluate(colors, color_blind(tmp_path / "w.safetensors"), CPU)
    assert result.scores.right == (0, 0, 2)
    assert result.scores.top5 == 1
    assert result.about == "lenet adder"
    assert evaluate(colors, tmp_path / "w.safetensors", CPU, limit=3).scores.images == 3


def test_classes_are_matched_by_name(colors, tmp_path):
    file = color_blind(tmp_path / "w.safetensors", json.dumps(["red", "violet", "blue", "green"]), classes=4)
    result = evaluate(colors, file, CPU)  # always says green
    assert result.classes == ("red", "violet", "blue", "green")
    assert result.scores.seen == (2, 0, 2, 2)
    assert result.scores.right == (0, 0, 0, 2)


def test_images_are_normalised_as_the_weights_say(colors, tmp_path):
    data = open_data(colors)
    file = color_blind(tmp_path / "w.safetensors")
    model = network(file)
    assert as_trained(data, model, "w").mean == data.mean
    model.metadata |= {"mean": "[0.1, 0.2, 0.3]", "std": "[1, 2, 3]"}
    assert as_trained(data, model, "w").mean == (0.1, 0.2, 0.3)
    x = images_of(colors, model, 6)
    assert x.shape == (6, 3, 32, 32)
    first = torch.from_numpy(open_data(colors, limit=6).parts["train"].pixels[0]) / 255
    torch.testing.assert_close(x[0].permute(1, 2, 0), (first - torch.tensor([0.1, 0.2, 0.3])) / torch.arange(1, 4))


def test_weights_that_do_not_fit(colors, tmp_path, caplog):
    with pytest.raises(UserError, match=r"w\.safetensors tells 5 classes apart, set has 3; give weights or data"):
        evaluate(colors, color_blind(tmp_path / "w.safetensors", None, classes=5), CPU)
    with pytest.raises(UserError, match=r"nothing\.safetensors"):
        evaluate(colors, tmp_path / "nothing.safetensors", CPU)
    evaluate(colors, color_blind(tmp_path / "other.safetensors", '["a", "b", "c"]'), CPU)
    assert "name the classes differently: the same order is assumed" in caplog.text
    small = make_folder(tmp_path / "small", train=1, test=1, size=(28, 28))
    with pytest.raises(UserError, match="takes images of 32 pixels; those of small have 28"):
        evaluate(small, tmp_path / "other.safetensors", CPU)
    checkpoints.save(build("lenet", classes=3, in_channels=1), tmp_path / "grey.safetensors")
    with pytest.raises(UserError, match="takes images of 1 channels"):
        evaluate(colors, tmp_path / "grey.safetensors", CPU)


def test_files_of_bytes_are_read_too(colors, tmp_path):
    model = build("resnet20", classes=3).eval()
    model.metadata = {"class_names": NAMES}
    path = tmp_path / "int8.safetensors"
    quantization.save(quantization.quantize(model, images_of(colors, model, 4)), path)
    result = evaluate(colors, path, CPU)
    assert result.about == "resnet20 adder int8"
    assert result.classes == tuple(COLORS)
    assert result.scores.images == 6


def test_predictions(tmp_path):
    write_image(tmp_path / "a.png", picture(0, COLORS["red"], 100, 50))
    write_image(tmp_path / "b.jpg", picture(1, COLORS["blue"])[..., :1])
    paths = [tmp_path / "a.png", tmp_path / "b.jpg"]
    found = list(predict(paths, color_blind(tmp_path / "w.safetensors"), CPU.device))
    assert [p.path for p in found] == list(map(str, paths))
    assert found[0].classes == ("red", "green", "blue")
    assert found[0].probabilities == pytest.approx([0.6652, 0.2447, 0.0900], abs=1e-4)  # softmax of 2, 1, 0
    nameless = color_blind(tmp_path / "n.safetensors", None)
    assert next(predict([tmp_path / "a.png"], nameless, CPU.device, top=1)).classes == ("2",)


def test_predictions_see_what_evaluation_sees(colors, tmp_path):
    """An image of the data set gets the same answer from its file as from the data set."""
    torch.manual_seed(1)
    data = open_data(colors)
    model = build("lenet", op="conv", classes=3).eval()
    about = {"class_names": NAMES, "mean": json.dumps(data.mean), "std": json.dumps(data.std)}
    checkpoints.save(model, tmp_path / "w.safetensors", about)
    paths = sorted((colors / "test").rglob("*.png"))
    found = list(predict(paths, tmp_path / "w.safetensors", CPU.device, top=3))
    right = sum(p.classes[0] == path.parent.name for p, path in zip(found, paths, strict=True))
    assert right == sum(evaluate(colors, tmp_path / "w.safetensors", CPU).scores.right)
    assert all(sum(p.probabilities) == pytest.approx(1) for p in found)


def test_released_weights_get_cifars_mean(tmp_path):
    """They say nothing of themselves: the released code's constants are taken."""
    checkpoints.save(build("resnet20"), tmp_path / "released.pth")
    image = picture(3, (120, 60, 200))
    write_image(tmp_path / "a.png", image)
    found = next(predict([tmp_path / "a.png"], tmp_path / "released.pth", CPU.device, top=10))
    x = (image / 255 - np.array(cifar.MEAN)) / np.array(cifar.STD)
    with torch.no_grad():
        logits = network(tmp_path / "released.pth")(torch.from_numpy(x).float().permute(2, 0, 1)[None])
    shares = dict(zip(found.classes, found.probabilities, strict=True))
    assert [shares[str(k)] for k in range(10)] == pytest.approx(logits.softmax(1)[0].tolist(), rel=1e-3)
