"""PS-FCN against a plain forward from the spec's keys, and what the maximum promises: any order, any number."""

import pytest
import torch
import torch.nn.functional as F
from psfcn.networks import GROUP, PSFCN, normalise_images

SHAPES = {
    "extractor.conv1.0": (64, 6, 3, 3),
    "extractor.conv2.0": (128, 64, 3, 3),
    "extractor.conv3.0": (128, 128, 3, 3),
    "extractor.conv4.0": (256, 128, 3, 3),
    "extractor.conv5.0": (256, 256, 3, 3),
    "extractor.conv6.0": (256, 128, 4, 4),
    "extractor.conv7.0": (128, 128, 3, 3),
    "regressor.deconv1.0": (128, 128, 3, 3),
    "regressor.deconv2.0": (128, 128, 3, 3),
    "regressor.deconv3.0": (128, 64, 4, 4),
    "regressor.est_normal.0": (3, 64, 3, 3),
}
NO_BIAS = {"extractor.conv6.0", "regressor.deconv3.0", "regressor.est_normal.0"}


def released_state(in_channels=6, seed=0):
    """A state dictionary written from the spec's keys and shapes alone."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in SHAPES.items():
        if name == "extractor.conv1.0":
            shape = (64, in_channels, 3, 3)
        state[f"{name}.weight"] = torch.randn(shape, generator=generator) * (2 / (shape[1] * 9)) ** 0.5
        if name not in NO_BIAS:
            state[f"{name}.bias"] = 0.1 * torch.randn(shape[0], generator=generator)
    return state


def plain_forward(state, images, lights):
    """Figure 3 written out, one object, one photograph after the other; sides are multiples of 4.

    Returns the normals, and how long they were before they were brought to length 1.
    """

    def conv(x, name, stride=1):
        x = F.conv2d(x, state[f"{name}.0.weight"], state.get(f"{name}.0.bias"), stride, 1)
        return x if name.endswith("est_normal") else F.leaky_relu(x, 0.1)

    def up(x, name):
        return F.leaky_relu(F.conv_transpose2d(x, state[f"{name}.0.weight"], None, 2, 1), 0.1)

    fused = None
    for number, image in enumerate(images):
        x = image[None]
        if lights is not None:
            x = torch.cat([x, lights[number].view(1, 3, 1, 1).expand_as(x)], 1)
        for name, stride in (("conv1", 1), ("conv2", 2), ("conv3", 1), ("conv4", 2), ("conv5", 1)):
            x = conv(x, f"extractor.{name}", stride)
        x = conv(up(x, "extractor.conv6"), "extractor.conv7")
        fused = x if fused is None else torch.max(fused, x)
    x = up(conv(conv(fused, "regressor.deconv1"), "regressor.deconv2"), "regressor.deconv3")
    x = conv(x, "regressor.est_normal")[0]
    length = x.norm(dim=0, keepdim=True)
    return x / length, length


def assert_same_normals(found, expected, length):
    """To 1e-5; a vector that is short beside the others by chance may turn further by what was rounded before."""
    scale = (length / length.median()).clamp(max=1)
    torch.testing.assert_close(found * scale, expected * scale, rtol=0, atol=1e-5)


def scene(count=1, quantity=5, height=16, width=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, quantity, 3, height, width, generator=generator)
    return images, F.normalize(torch.randn(count, quantity, 3, generator=generator), dim=2)


def network(**options):
    torch.manual_seed(0)
    return PSFCN(**options).eval()


def test_it_has_the_papers_parameters_under_the_released_names():
    model = PSFCN()
    assert sum(p.numel() for p in model.parameters()) == 2_210_048
    released = released_state()
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in released.items()}
    assert PSFCN(in_channels=3).state_dict().keys() == released.keys()
    with pytest.raises(ValueError, match=r"in_channels must be 6 .* or 3"):
        PSFCN(in_channels=4)


@pytest.mark.parametrize("in_channels", [6, 3])
def test_it_is_the_plain_forward(in_channels):
    state = released_state(in_channels)
    model = PSFCN(in_channels=in_channels)
    model.load_state_dict(state)
    images, lights = scene(2, 9, 8, 12)
    lights = lights if in_channels == 6 else [None, None]
    with torch.no_grad():
        found = model(images, lights if in_channels == 6 else None)
        for number in range(2):
            assert_same_normals(found[number], *plain_forward(state, images[number], lights[number]))


def test_normalised_images_go_through_the_same_network():
    model = network(normalise=True)
    images, lights = scene()
    images[..., :3] = 0  # a background
    norm = images.double().square().sum((1, 2), keepdim=True).sqrt()
    expected = (images / (norm + 1e-10) * (5 / 32) ** 0.5).float()
    torch.testing.assert_close(normalise_images(images), expected, rtol=1e-6, atol=0)
    with torch.no_grad():
        found = model(images, lights)[0]
        assert_same_normals(found, *plain_forward(model.state_dict(), expected[0], lights[0]))
        brighter = images * torch.rand(1, 1, 1, 16, 20).add(0.1)  # another albedo at each pixel
        torch.testing.assert_close(model(brighter, lights)[0], found, rtol=0, atol=1e-4)


@pytest.mark.parametrize("group", [1, 3, GROUP, None])
@pytest.mark.parametrize(("count", "quantity", "height", "width"), [(1, 9, 13, 18), (2, 11, 8, 20)])
@pytest.mark.parametrize("amp", [False, True], ids=["float32", "bfloat16"])
def test_any_order_gives_the_same_bits(group, count, quantity, height, width, amp):
    model = network(normalise=True)
    images, lights = scene(count, quantity, height, width)
    order = torch.randperm(quantity, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=amp):
        found = model(images, lights, group)
        assert torch.equal(model(images[:, order], lights[:, order], group), found)
        torch.testing.assert_close(model(images, lights), found, rtol=0, atol=0.05 if amp else 1e-4)
    assert found.shape == (count, 3, height, width)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.norm(dim=1), torch.ones(count, height, width))


def test_norms_are_the_same_in_any_order_where_sums_are_not():
    images, _ = scene(1, 96, 8, 8)
    images *= 10.0 ** torch.linspace(-6, 6, 96).view(1, 96, 1, 1, 1)
    order = torch.randperm(96, generator=torch.Generator().manual_seed(2))
    mixed = images[:, order]
    assert not torch.equal(images.square().sum((1, 2)), mixed.square().sum((1, 2)))
    assert torch.equal(normalise_images(images)[:, order], normalise_images(mixed))


def test_a_photograph_given_twice_changes_nothing():
    model = network()
    images, lights = scene()
    twice = [*range(5), 2, 4]
    with torch.no_grad():
        assert torch.equal(model(images[:, twice], lights[:, twice]), model(images, lights))


@pytest.mark.parametrize("side", [1, 2, 3, 5, 7])
def test_other_sides_are_padded_with_background(side):
    model = network()
    images, lights = scene(1, 2, side, side)
    larger = F.pad(images, (0, 8 - side, 0, 8 - side) if side > 4 else (0, 4 - side, 0, 4 - side))
    with torch.no_grad():
        assert torch.equal(model(images, lights), model(larger, lights)[..., :side, :side])


def test_memory_does_not_grow_with_the_photographs():
    model = network()
    largest = []
    hook = model.extractor.conv1.register_forward_hook(lambda _m, _x, y: largest.append(y.numel()))
    with torch.no_grad():
        for quantity in (8, 24):
            images, lights = scene(1, quantity)
            model(images, lights)
    hook.remove()
    assert largest == [GROUP * 64 * 16 * 20] * 4


def test_gradients_are_the_plain_forwards():
    state = {k: v.requires_grad_() for k, v in released_state().items()}
    model = PSFCN()
    model.load_state_dict(state)
    images, lights = scene(1, 4, 8, 8)
    target = F.normalize(torch.randn(3, 8, 8), dim=0)
    (plain_forward(state, images[0], lights[0])[0] * target).sum().backward()
    (model(images, lights, None)[0] * target).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, state[name].grad, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize(
    ("in_channels", "images", "lights", "message"),
    [
        (6, (1, 2, 3, 8, 8), None, "this network needs lights"),
        (3, (1, 2, 3, 8, 8), (1, 2, 3), "this network takes no lights"),
        (6, (1, 2, 3, 8, 8), (1, 3, 3), r"lights must be \[1, 2, 3\], got \[1, 3, 3\]"),
        (6, (2, 3, 8, 8), (1, 2, 3), r"images must be \[N, Q, 3, H, W\] with Q of 1 or more, got \[2, 3, 8, 8\]"),
        (6, (1, 0, 3, 8, 8), (1, 0, 3), "with Q of 1 or more"),
    ],
)
def test_shapes_that_do_not_fit(in_channels, images, lights, message):
    with pytest.raises(ValueError, match=message):
        network(in_channels=in_channels)(torch.zeros(images), None if lights is None else torch.zeros(lights))
