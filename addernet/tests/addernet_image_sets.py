"""Small data sets that tests write: noise of three colours, which a network soon tells apart."""

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
from papershelf.images import write_image

COLORS = {"blue": (40, 40, 200), "green": (40, 200, 40), "red": (200, 40, 40)}


def picture(number: int, color: tuple[int, int, int], height: int = 32, width: int = 32) -> np.ndarray:
    """``[H, W, 3]`` uint8: a color with noise of its own."""
    noise = np.random.default_rng(number).integers(-40, 41, (height, width, 3))
    return (np.array(color) + noise).clip(0, 255).astype(np.uint8)


def make_folder(root: Path, train: int = 8, test: int = 4, test_name: str = "test", size=(32, 32)) -> Path:
    """``root/train/COLOR/000.png`` and so on, ``train`` and ``test`` of each color."""
    for split, count in (("train", train), (test_name, test)):
        for place, (name, color) in enumerate(COLORS.items()):
            (root / split / name).mkdir(parents=True)
            for k in range(count):
                image = picture(1000 * place + k + 500 * (split != "train"), color, *size)
                write_image(root / split / name / f"{k:03d}.png", image)
    return root


def make_tar(path: Path, folder: Path, prefix: str = "") -> Path:
    """The same images in an archive, compressed as its name says."""
    with tarfile.open(path, f"w:{path.suffix[1:]}") as tar:
        for file in sorted(folder.rglob("*")):
            tar.add(file, prefix + str(file.relative_to(folder)), recursive=False)
        about = tarfile.TarInfo(prefix + "train/README.txt")
        tar.addfile(about, io.BytesIO())
    return path


def make_cifar(root: Path, each: int = 6, classes: int = 10, binary: bool = False) -> tuple[Path, dict]:
    """A folder as CIFAR's authors lay it out, ``each`` images in every file; and what is in it.

    Returns:
        The folder, and by file name the pixels ``[N, 32, 32, 3]`` and the labels.
    """
    root.mkdir()
    small = classes == 10
    names = [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"] if small else ["train", "test"]
    held = {}
    for seed, name in enumerate(names):
        rng = np.random.default_rng(seed)
        pixels = rng.integers(0, 256, (each, 32, 32, 3)).astype(np.uint8)
        labels = rng.integers(0, classes, each)
        held[name] = (pixels, labels)
        planes = pixels.transpose(0, 3, 1, 2).reshape(each, -1)
        if binary:
            coarse = [] if small else [np.zeros(each, np.uint8)[:, None]]
            rows = np.concatenate([*coarse, labels.astype(np.uint8)[:, None], planes], axis=1)
            (root / f"{name}.bin").write_bytes(rows.tobytes())
        else:
            key = b"labels" if small else b"fine_labels"
            content = {b"data": np.ascontiguousarray(planes), key: labels.tolist(), b"filenames": [b"x.png"] * each}
            (root / name).write_bytes(pickle.dumps(content, protocol=2))
    titles = [f"kind {k}".replace(" ", "_") for k in range(classes)]
    if binary:
        (root / ("batches.meta.txt" if small else "fine_label_names.txt")).write_text("\n".join(titles) + "\n\n")
    else:
        key = b"label_names" if small else b"fine_label_names"
        meta = pickle.dumps({key: [title.encode() for title in titles]}, protocol=2)
        (root / ("batches.meta" if small else "meta")).write_bytes(meta)
    return root, held
