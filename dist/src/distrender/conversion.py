"""From one file format to another: decoders, grids, samples and cameras.

What goes into what is decided by what the input is and by the output's ending:

=====================================  ===========================================================================
decoder                                ``.safetensors`` (ours, with codes), ``.pth``, or a folder (DeepSDF's experiment)
mesh                                   ``.npz``: a grid, or DeepSDF's samples with their normalisation
expression, decoder with a code        ``.npz``: a grid
cameras                                ``.json``, ``.npz`` (IDR), ``*_par.txt`` (Middlebury), a folder (COLMAP)
=====================================  ===========================================================================

Surfaces of anything are what ``dist-render mesh`` makes.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from papershelf.errors import UserError

from distrender import camera_files, decoder_files, deepsdf_files, meshing, sampling
from distrender.grid import GridSDF
from distrender.shape_files import MESHES, open_shape

BOUND = 1.05  # half the side of a grid's cube


@dataclass(frozen=True)
class ConvertOptions:
    """What an ending leaves open.

    Attributes:
        to: "grid" or "samples", of a mesh that becomes an ``.npz``; None where that does not arise.
        dialect: of a ``.pth``, see :mod:`distrender.deepsdf_files`.
        code: number, name or file of a decoder's code.
        epoch: of a DeepSDF experiment.
        resolution: samples along each axis of a grid.
        count: samples of a mesh, as DeepSDF takes them.
        seed: of where they lie.
        size: (height, width) of the pictures, where a file of cameras does not tell.
    """

    to: str | None = None
    dialect: str = "deepsdf"
    code: str = "0"
    epoch: str = "latest"
    resolution: int = 160
    count: int = sampling.SamplingOptions.count
    seed: int = 0
    size: tuple[int, int] | None = None


def kind_of(source: str) -> str:
    """What a path or text is: "decoder", "mesh", "cameras", "grid", "samples" or "expression".

    Raises:
        UserError: it is none of these.
    """
    path = Path(source)
    suffix = path.suffix.lower()
    if source == decoder_files.PROCEDURAL or suffix in decoder_files.SUFFIXES:
        return "decoder"
    if path.is_dir():
        return "cameras" if (path / "images.txt").is_file() else "decoder"
    if suffix in MESHES:
        return "mesh"
    if suffix in (".json", ".txt"):
        return "cameras"
    if suffix == ".npz":
        return _kind_of_npz(path)
    if "(" in source:
        return "expression"
    raise UserError(
        f"{source}: neither a decoder ({', '.join(decoder_files.SUFFIXES)} or a folder), a mesh ({', '.join(MESHES)}), "
        "an .npz, cameras (.json, .txt, COLMAP's folder), nor an expression such as 'torus(0.5, 0.2)'"
    )


def _kind_of_npz(path: Path) -> str:
    try:
        with np.load(path, allow_pickle=False) as content:
            keys = set(content.files)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, AttributeError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"cannot read {path}: an .npz with a grid, samples or cameras was expected") from error
    for key, kind in (("world_mat_0", "cameras"), ("values", "grid"), ("pos", "samples")):
        if key in keys:
            return kind
    raise UserError(f"{path}: holds {', '.join(sorted(keys)[:4]) or 'nothing'}; expected a grid, samples or cameras")


def convert(source: str, output: Path, options: ConvertOptions = ConvertOptions()) -> str:
    """Convert a file, and say in a line what was written.

    Args:
        source: path of a file or folder, the word ``procedural``, or an expression.
        output: its ending says what to make.
        options: what that leaves open.

    Raises:
        UserError: this cannot become that, more needs to be said, or files cannot be read or written.
    """
    kind = kind_of(source)
    if output.suffix.lower() in meshing.WRITTEN:
        raise UserError(f"{output}: surfaces are what `dist-render mesh {source} -o {output}` makes")
    if kind == "cameras":
        return _cameras(source, output, options)
    if output.suffix == ".npz":
        return _numbers(kind, source, output, options)
    if options.to:
        raise UserError(f"{output}: --to {options.to} makes an .npz; choose that ending")
    if kind == "decoder":
        return _decoder(source, output, options)
    raise UserError(
        f"{source}: is a {kind}, which cannot become {output.suffix or 'a folder'}; "
        + ("it becomes .npz" if kind in ("mesh", "expression") else "its surface: dist-render mesh")
    )


def _cameras(source: str, output: Path, options: ConvertOptions) -> str:
    found = camera_files.read_named(source, options.size)
    camera_files.write(output, found.cameras, found.names)
    height, width = found.cameras.size
    told = output.suffix == ".json" or not output.suffix or output.name == "images.txt"
    return f"{output}: {len(found.cameras)} cameras" + ("" if told else f" (of {width}x{height}, which it cannot tell)")


def _decoder(source: str, output: Path, options: ConvertOptions) -> str:
    experiment = decoder_files.load_experiment(source, options.epoch)
    count = len(experiment.codes)
    if output.suffix == ".safetensors":
        decoder_files.save(output, experiment.decoder, experiment.codes, experiment.names, _about(experiment, source))
        return f"{output}: a decoder with {count} codes"
    if output.suffix in decoder_files.PICKLED:
        deepsdf_files.write_weights(output, experiment.decoder, options.dialect)
        left = f"; its {count} codes are not in it: name a folder to keep them" if count else ""
        return f"{output}: a decoder{left}"
    if output.suffix:
        raise UserError(f"{output}: decoders are written as .safetensors, .pth, or a folder (no ending)")
    deepsdf_files.write_experiment(output, experiment, options.dialect)
    return f"{output}: a DeepSDF experiment with {count} codes"


def _about(experiment: decoder_files.Experiment, source: str) -> dict[str, str]:
    return {"source": Path(source).name} | dict(experiment.metadata)


def _numbers(kind: str, source: str, output: Path, options: ConvertOptions) -> str:
    if kind == "mesh" and options.to is None:
        raise UserError(f"{output}: a mesh becomes a grid or training samples; add --to grid or --to samples")
    if options.to == "samples":
        return _samples(kind, source, output, options)
    if kind in ("grid", "samples"):
        raise UserError(f"{source}: is a {kind} already; its surface is what `dist-render mesh` makes of a grid")
    shape = open_shape(source, options.code, options.resolution, options.epoch)
    if not isinstance(shape, GridSDF):
        shape = GridSDF(meshing.sample(shape, options.resolution, BOUND), -BOUND, BOUND)
    shape.save(output)
    return f"{output}: a grid of {options.resolution}^3 from -{BOUND} to {BOUND}"


def _samples(kind: str, source: str, output: Path, options: ConvertOptions) -> str:
    wanted = sampling.SamplingOptions(count=options.count)
    if kind != "mesh":
        if kind == "samples":
            raise UserError(f"{source}: holds samples already")
        shape = open_shape(source, options.code, options.resolution, options.epoch)
        samples = sampling.sample_sdf(shape, wanted, options.seed)
        samples.save(output)
        return f"{output}: {len(samples.pos)} samples outside, {len(samples.neg)} inside"
    samples, normalization = sampling.sample_mesh(source, wanted, options.seed)
    beside = normalization_path(output)
    try:
        beside.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {beside.parent}: {error.strerror}; choose another place") from error
    samples.save(output)
    normalization.save(beside)
    return f"{output}: {len(samples.pos)} samples outside, {len(samples.neg)} inside; {beside}: their normalisation"


def normalization_path(samples: Path) -> Path:
    """Where DeepSDF looks for it: in a tree beside ``SdfSamples``; else beside the samples under a longer name."""
    parts = list(samples.parts)
    if "SdfSamples" in parts:
        at = len(parts) - 1 - parts[::-1].index("SdfSamples")
        return Path(*parts[:at], "NormalizationParameters", *parts[at + 1 :])
    return samples.with_stem(f"{samples.stem}_normalization")
