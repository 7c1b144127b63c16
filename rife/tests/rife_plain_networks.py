"""An oracle: each release of RIFE written out plainly, on dictionaries with the official parameter names.

Nothing here is shared with the package: no configuration, no modules, one straight function per family.
"""

import torch
import torch.nn.functional as F


class Weights(dict):
    """Random float64 parameters under official names, made as a release lists them."""

    def __init__(self, seed):
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def _random(self, *shape, gain=1.0):
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64) * gain

    def conv(self, name, inputs, outputs, prelu=None, k=3, transposed=False, gain=1.0):
        shape = (inputs, outputs, k, k) if transposed else (outputs, inputs, k, k)
        self[name + ".weight"] = self._random(*shape, gain=gain * (2 / inputs) ** 0.5 / k)
        self[name + ".bias"] = self._random(outputs, gain=0.1)
        if prelu:
            self[prelu + ".weight"] = 0.25 + self._random(outputs, gain=0.1)


def paper_block(w, name, inputs, c, outputs=5):
    w.conv(f"{name}.conv0.0.0", inputs, c // 2, f"{name}.conv0.0.1")
    w.conv(f"{name}.conv0.1.0", c // 2, c, f"{name}.conv0.1.1")
    for i in range(8):
        w.conv(f"{name}.convblock.{i}.0", c, c, f"{name}.convblock.{i}.1")
    w.conv(f"{name}.lastconv", c, outputs, k=4, transposed=True)


def residual_block(w, name, inputs, c, outputs=6):
    w.conv(f"{name}.conv0.0.0", inputs, c // 2)
    w.conv(f"{name}.conv0.1.0", c // 2, c)
    for i in range(8):
        w.conv(f"{name}.convblock.{i}.conv", c, c, gain=0.5)
        w[f"{name}.convblock.{i}.beta"] = 1 + w._random(1, c, 1, 1, gain=0.3)
    w.conv(f"{name}.lastconv.0", c, 4 * outputs, k=4, transposed=True)


def pairs_block(w, name, inputs, c, pairs, version):
    w.conv(f"{name}.conv0.0.0", inputs, c // 2, f"{name}.conv0.0.1")
    w.conv(f"{name}.conv0.1.0", c // 2, c, f"{name}.conv0.1.1")
    for i in range(pairs):
        for j in range(2):
            w.conv(f"{name}.convblock{i}.{j}.0", c, c, f"{name}.convblock{i}.{j}.1", gain=0.5)
    if version == "v3.1":
        w.conv(f"{name}.conv1", c, 4, k=4, transposed=True, gain=0.3)
    elif version == "v3.5":
        w.conv(f"{name}.conv1.0", c, 4, k=4, transposed=True, gain=0.3)
        w.conv(f"{name}.conv2", c, 1, k=4, transposed=True)
    else:
        for head, outputs in (("conv1", 4), ("conv2", 1)):
            w.conv(f"{name}.{head}.0", c, c // 2, f"{name}.{head}.1", k=4, transposed=True)
            w.conv(f"{name}.{head}.2", c // 2, outputs, k=4, transposed=True)


def refinement(w, c=16, stem=False):
    def pair(name, inputs, outputs):
        w.conv(f"{name}.conv1.0", inputs, outputs, f"{name}.conv1.1")
        w.conv(f"{name}.conv2.0", outputs, outputs, f"{name}.conv2.1")

    if stem:
        pair("contextnet.conv0", 3, c)
        pair("unet.conv0", 10, c)
    for i, (inputs, outputs) in enumerate([(c if stem else 3, c), (c, 2 * c), (2 * c, 4 * c), (4 * c, 8 * c)]):
        pair(f"contextnet.conv{i + 1}", inputs, outputs)
    first = c if stem else 17
    for i, (inputs, outputs) in enumerate([(first, 2 * c), (4 * c, 4 * c), (8 * c, 8 * c), (16 * c, 16 * c)]):
        pair(f"unet.down{i}", inputs, outputs)
    for i, (inputs, outputs) in enumerate([(32 * c, 8 * c), (16 * c, 4 * c), (8 * c, 2 * c), (4 * c, c)]):
        w.conv(f"unet.up{i}.0", inputs, outputs, f"unet.up{i}.1", k=4, transposed=True)
    if stem:
        w.conv("unet.conv", c, 4, k=4, transposed=True)
    else:
        w.conv("unet.conv", c, 3)


def official_weights(release, widths, seed=0):
    """Names and shapes of a release as its file has them (without ``module.``), at any widths."""
    w = Weights(seed)
    if release in ("paper", "rifem"):
        t = 1 if release == "rifem" else 0
        for i, c in enumerate(widths):
            paper_block(w, f"block{i}", 17 + t if i else 6 + t, c)
        paper_block(w, "block_tea", 20 + t, widths[-1])
        refinement(w)
    elif release == "v4.0":
        for i, c in enumerate(widths):
            paper_block(w, f"block{i}", 12 if i else 7, c)
        paper_block(w, "block_tea", 21, widths[-1])
        refinement(w)
    elif release == "v4.6":
        for i, c in enumerate(widths):
            residual_block(w, f"block{i}", 12 if i else 7, c)
    elif release == "v4.7":
        w.conv("encode.0", 3, 16)
        w.conv("encode.1", 16, 4, k=4, transposed=True)
        for i, c in enumerate(widths):
            residual_block(w, f"block{i}", 20 if i else 15, c)
    elif release == "v4.10":
        for i in range(3):
            w.conv(f"encode.cnn{i}", 32 if i else 3, 32)
        w.conv("encode.cnn3", 32, 8, k=4, transposed=True)
        for i, c in enumerate(widths):
            residual_block(w, f"block{i}", 28 if i else 23, c)
    elif release == "v4.25":
        for i in range(3):
            w.conv(f"encode.cnn{i}", 16 if i else 3, 16)
        w.conv("encode.cnn3", 16, 4, k=4, transposed=True)
        for i, c in enumerate(widths):
            residual_block(w, f"block{i}", 28 if i else 15, c, outputs=13)
    elif release == "v3.1":
        for i, c in enumerate(widths):
            pairs_block(w, f"block{i}", 10 if i else 6, c, 3, release)
        refinement(w, 32, stem=True)
    else:
        for i, c in enumerate(widths):
            pairs_block(w, f"block{i}", 11, c, 4, release)
        pairs_block(w, "block_tea", 14, widths[-1], 4, release)
    return dict(w)


def up(x, factor):
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


def warp(image, flow):
    n, _, h, w = image.shape
    x = torch.linspace(-1, 1, w, dtype=flow.dtype).view(1, 1, w).expand(n, h, w) + flow[:, 0] / ((w - 1) / 2)
    y = torch.linspace(-1, 1, h, dtype=flow.dtype).view(1, h, 1).expand(n, h, w) + flow[:, 1] / ((h - 1) / 2)
    return F.grid_sample(image, torch.stack([x, y], 3), "bilinear", "border", align_corners=True)


def warp_both(img0, img1, flow):
    return warp(img0, flow[:, :2]), warp(img1, flow[:, 2:4])


def swap(flow):
    return torch.cat([flow[:, 2:4], flow[:, :2]], 1)


def conv(w, name, x, stride=1, prelu=None):
    x = F.conv2d(x, w[name + ".weight"], w[name + ".bias"], stride, 1)
    return F.prelu(x, w[prelu + ".weight"]) if prelu else x


def transposed(w, name, x, prelu=None):
    x = F.conv_transpose2d(x, w[name + ".weight"], w[name + ".bias"], 2, 1)
    return F.prelu(x, w[prelu + ".weight"]) if prelu else x


def run_paper_block(w, name, x, flow, scale, first_stride=2):
    x = up(x, 1 / scale)
    if flow is not None:
        x = torch.cat([x, up(flow, 1 / scale) * (1 / scale)], 1)
    x = conv(w, f"{name}.conv0.0.0", x, first_stride, f"{name}.conv0.0.1")
    x = conv(w, f"{name}.conv0.1.0", x, 2, f"{name}.conv0.1.1")
    y = x
    for i in range(8):
        y = conv(w, f"{name}.convblock.{i}.0", y, 1, f"{name}.convblock.{i}.1")
    out = up(transposed(w, f"{name}.lastconv", x + y), first_stride * scale)
    return out[:, :4] * first_stride * scale, out[:, 4:5]


def run_residual_block(w, name, x, flow, scale):
    x = up(x, 1 / scale)
    if flow is not None:
        x = torch.cat([x, up(flow, 1 / scale) / scale], 1)
    for i in range(2):
        x = F.leaky_relu(conv(w, f"{name}.conv0.{i}.0", x, 2), 0.2)
    for i in range(8):
        part = f"{name}.convblock.{i}"
        x = F.leaky_relu(conv(w, part + ".conv", x) * w[part + ".beta"] + x, 0.2)
    out = up(F.pixel_shuffle(transposed(w, f"{name}.lastconv.0", x), 2), scale)
    return out[:, :4] * scale, out[:, 4:5], out[:, 5:]


def run_pairs(w, name, x, pairs):
    for i in range(2):
        x = conv(w, f"{name}.conv0.{i}.0", x, 2, f"{name}.conv0.{i}.1")
    for i in range(pairs):
        y = conv(w, f"{name}.convblock{i}.0.0", x, 1, f"{name}.convblock{i}.0.1")
        x = x + conv(w, f"{name}.convblock{i}.1.0", y, 1, f"{name}.convblock{i}.1.1")
    return x


def pair_of_convs(w, name, x, stride=2):
    x = conv(w, f"{name}.conv1.0", x, stride, f"{name}.conv1.1")
    return conv(w, f"{name}.conv2.0", x, 1, f"{name}.conv2.1")


def context(w, frame, flow, large=False):
    x, levels = frame, []
    for i in range(4):
        x = pair_of_convs(w, f"contextnet.conv{i + 1}", x, 1 if large and i == 0 else 2)
        if not (large and i == 0):
            flow = up(flow, 0.5) * 0.5
        levels.append(warp(x, flow))
    return levels


def decode(w, x, levels, c0, c1):
    """The U-Net from its first halving on; ``levels`` are the strides of its pairs."""
    skips = []
    for i, stride in enumerate(levels):
        x = pair_of_convs(w, f"unet.down{i}", x, stride)
        skips.append(x)
        x = torch.cat([x, c0[i], c1[i]], 1)
    x = transposed(w, "unet.up0.0", x, "unet.up0.1")
    x = transposed(w, "unet.up1.0", torch.cat([x, skips[2]], 1), "unet.up1.1")
    x = transposed(w, "unet.up2.0", torch.cat([x, skips[1]], 1), "unet.up2.1")
    return transposed(w, "unet.up3.0", torch.cat([x, skips[0]], 1), "unet.up3.1")


def refined(w, img0, img1, flow, mask, large=False):
    w0, w1 = warp_both(img0, img1, flow)
    c0, c1 = context(w, img0, flow[:, :2], large), context(w, img1, flow[:, 2:], large)
    x = torch.cat([img0, img1, w0, w1, mask, flow], 1)
    x = decode(w, x, [1 if large else 2, 2, 2, 2], c0, c1)
    residual = 2 * torch.sigmoid(conv(w, "unet.conv", x, 2 if large else 1)) - 1
    m = torch.sigmoid(mask)
    return w0 * m + w1 * (1 - m) + residual


def plane(t, like):
    return torch.full_like(like[:, :1], t) if isinstance(t, float) else t.to(like) + 0 * like[:, :1]


def blended(img0, img1, flow, mask):
    w0, w1 = warp_both(img0, img1, flow)
    m = torch.sigmoid(mask)
    return w0 * m + w1 * (1 - m)


def paper(w, img0, img1, t=None, scale=1.0, large=False, gt=None):
    """Paper and RIFEm (with ``t``). With ``gt``: student flows, frames, and the teacher's."""
    stride = 1 if large else 2
    time = [] if t is None else [plane(t, img0)]
    flows, masks = [], []
    for i, s in enumerate((4, 2, 1)):
        if i == 0:
            flow, mask = run_paper_block(w, "block0", torch.cat([img0, img1, *time], 1), None, s / scale, stride)
        else:
            x = torch.cat([img0, img1, *time, *warp_both(img0, img1, flow), mask], 1)
            more = run_paper_block(w, f"block{i}", x, flow, s / scale, stride)
            flow, mask = flow + more[0], mask + more[1]
        flows.append(flow)
        masks.append(mask)
    frame = refined(w, img0, img1, flow, mask, large)
    if gt is None:
        return frame, flow, torch.sigmoid(mask)
    x = torch.cat([img0, img1, *time, *warp_both(img0, img1, flow), mask, gt], 1)
    more = run_paper_block(w, "block_tea", x, flow, 1, stride)
    merged = [blended(img0, img1, f, m) for f, m in zip(flows, masks, strict=True)]
    return merged, frame, blended(img0, img1, flow + more[0], mask + more[1]), flows, flow + more[0]


def v4(w, img0, img1, t, scale=1.0, ensemble=False, refine=False, doubled=False):
    """v4.0 (``refine``) and v4.6; ``doubled`` as v4.0 does for wide motion."""
    run = run_paper_block if refine else run_residual_block
    time = plane(t, img0)
    for i, s in enumerate((8, 4, 2, 1)):
        s = s / scale * (2 if doubled else 1)
        if i == 0:
            flow, mask = run(w, "block0", torch.cat([img0, img1, time], 1), None, s)[:2]
            if ensemble:
                flow_b, mask_b = run(w, "block0", torch.cat([img1, img0, 1 - time], 1), None, s)[:2]
                flow, mask = (flow + swap(flow_b)) / 2, (mask - mask_b) / 2
            continue
        w0, w1 = warp_both(img0, img1, flow)
        more, mask_more = run(w, f"block{i}", torch.cat([w0, w1, time, mask], 1), flow, s)[:2]
        if ensemble:
            x = torch.cat([w1, w0, 1 - time, -mask], 1)
            more_b, mask_b = run(w, f"block{i}", x, swap(flow), s)[:2]
            more, mask_more = (more + swap(more_b)) / 2, (mask_more - mask_b) / 2
        flow, mask = flow + more, mask + mask_more
    frame = refined(w, img0, img1, flow, mask) if refine else blended(img0, img1, flow, mask)
    return frame, flow, torch.sigmoid(mask)


def v4_encoded(w, img0, img1, t, scale=1.0, carried=False):
    """v4.7, v4.10 and v4.25 (``carried``)."""

    def encode(x):
        if "encode.0.weight" in w:
            return transposed(w, "encode.1", conv(w, "encode.0", x, 2))
        for i in range(3):
            x = F.leaky_relu(conv(w, f"encode.cnn{i}", x, 1 if i else 2), 0.2)
        return transposed(w, "encode.cnn3", x)

    e0, e1, time = encode(img0), encode(img1), plane(t, img0)
    for i, s in enumerate((16, 8, 4, 2, 1) if carried else (8, 4, 2, 1)):
        if i == 0:
            x = torch.cat([img0, img1, e0, e1, time], 1)
            flow, mask, features = run_residual_block(w, "block0", x, None, s / scale)
            continue
        parts = [*warp_both(img0, img1, flow), *warp_both(e0, e1, flow), time, mask]
        parts += [features] if carried else []
        more, mask, features = run_residual_block(w, f"block{i}", torch.cat(parts, 1), flow, s / scale)
        flow = flow + more
    return blended(img0, img1, flow, mask), flow, torch.sigmoid(mask)


def v3_1(w, img0, img1, scale=1.0):
    """Flow at half size; context and fusion net behind a first halving; the mask comes from the fusion net."""
    half = 0
    for i, s in enumerate((4, 2, 1)):
        s = s / scale
        if i == 0:
            x = up(torch.cat([img0, img1], 1), 1 / s)
        else:
            flow = up(half, 2) * 2
            x = torch.cat([up(torch.cat(warp_both(img0, img1, flow), 1), 1 / s), up(flow, 1 / s) / s], 1)
        half = half + up(transposed(w, f"block{i}.conv1", run_pairs(w, f"block{i}", x, 3)), s) * s
    flow = up(half, 2) * 2
    c0, c1 = (
        context(w, pair_of_convs(w, "contextnet.conv0", frame), part)
        for frame, part in ((img0, half[:, :2]), (img1, half[:, 2:]))
    )
    w0, w1 = warp_both(img0, img1, flow)
    x = pair_of_convs(w, "unet.conv0", torch.cat([w0, w1, flow], 1))
    out = transposed(w, "unet.conv", decode(w, x, [2, 2, 2, 2], c0, c1))
    m = torch.sigmoid(out[:, 3:])
    return w0 * m + w1 * (1 - m) + 2 * torch.sigmoid(out[:, :3]) - 1, flow, m


def v3_symmetric(w, img0, img1, scale=1.0, version="v3.8"):
    """v3.5 and v3.8: every block in both directions, from a flow of zero."""

    def run(name, a, b, mask, flow, s):
        x = torch.cat([up(torch.cat([a, b, mask], 1), 1 / s), up(flow, 1 / s) / s], 1)
        x = run_pairs(w, name, x, 4)
        if version == "v3.5":
            return up(transposed(w, name + ".conv1.0", x), 2 * s) * 2 * s, up(transposed(w, name + ".conv2", x), 2 * s)
        flow, mask = (
            transposed(w, f"{name}.{h}.2", transposed(w, f"{name}.{h}.0", x, f"{name}.{h}.1"))
            for h in ("conv1", "conv2")
        )
        return up(flow, s) * s, up(mask, s)

    flow, mask = torch.zeros_like(torch.cat([img0, img0[:, :1]], 1)), torch.zeros_like(img0[:, :1])
    for i, s in enumerate((4, 2, 1)):
        w0, w1 = warp_both(img0, img1, flow)
        f0, m0 = run(f"block{i}", w0, w1, mask, flow, s / scale)
        f1, m1 = run(f"block{i}", w1, w0, -mask, swap(flow), s / scale)
        flow, mask = flow + (f0 + swap(f1)) / 2, mask + (m0 - m1) / 2
    return blended(img0, img1, flow, mask), flow, torch.sigmoid(mask)
