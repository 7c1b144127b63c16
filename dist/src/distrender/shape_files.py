"""What the command line takes as a SHAPE: a mesh, a grid, a trained decoder with a code, or an expression."""

from __future__ import annotations

from pathlib import Path

from papershelf.errors import UserError
from torch import nn

from distrender import decoder_files
from distrender.analytic import AnalyticSDF
from distrender.expression import parse
from distrender.grid import GridSDF

MESHES = (".obj", ".ply", ".stl", ".off", ".glb", ".gltf")
RESOLUTION = 160  # of a mesh's grid


def open_shape(text: str, code: str = "0", resolution: int = RESOLUTION, epoch: str = "latest") -> nn.Module:
    """The signed distance function that a text names.

    Args:
        text: path of a mesh (turned into a :class:`GridSDF`), of a grid (``.npz``), of a decoder (``.safetensors``,
            ``.pth``, a DeepSDF experiment's folder, or the word ``procedural``, our own); or an expression such as
            ``torus(0.5, 0.2)``.
        code: number or name of a decoder's shape, or the ``.npy`` of a code.
        resolution: samples along each axis of a mesh's grid.
        epoch: of a DeepSDF experiment.

    Raises:
        UserError: there is no such file, it cannot be read, or the text is no expression either.
    """
    path = Path(text)
    ours = text == decoder_files.PROCEDURAL
    if ours or path.is_dir() or path.suffix in decoder_files.SUFFIXES:
        experiment = decoder_files.load_experiment(text if ours else _existing(path), epoch)
        if not len(experiment.codes) and not code.endswith(decoder_files.CODE):
            raise UserError(f"{path} holds a decoder without codes of shapes; name the experiment's folder instead")
        return experiment.decoder.with_code(experiment.code(code))
    if path.suffix == ".npz":
        return GridSDF.load(_existing(path))
    if path.suffix.lower() in MESHES:
        return GridSDF.from_mesh(_existing(path), resolution)
    if "(" not in text:
        raise UserError(
            f"{text}: neither a mesh ({', '.join(MESHES)}), a grid (.npz), a decoder "
            f"({', '.join(decoder_files.SUFFIXES)}, a folder, or procedural), nor an expression: 'torus(0.5, 0.2)'"
        )
    return AnalyticSDF(parse(text))


def _existing(path: Path) -> Path:
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    return path
