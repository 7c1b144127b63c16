"""What the renderer writes and training reads: one object under Q lights, in one .npz file.

=============  ==================  ========================================================================
in the file    dtype and shape     meaning
=============  ==================  ========================================================================
images         uint16 [Q, H, W, 3]  linear RGB: radiance / scale * 65535, clipped; zero outside the mask
scale          float32 []          radiance of the value 65535, where a white diffuse surface facing one
                                   light of intensity 1 has radiance 1
normal         float16 [H, W, 3]   unit, x right, y up, z to the viewer; zero outside the mask
depth          float16 [H, W]      height towards the viewer in pixels (so that dz/dx = -n_x / n_z); zero outside
mask           bool [H, W]         where the object is
lights         float32 [Q, 3]      unit vectors towards the lights
intensities    float32 [Q, 3]      of the lights, in RGB
shape          string              what was rendered, such as ``blob`` or ``sphere``
material       string              of what, such as ``sgd:brass``
=============  ==================  ========================================================================
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from papershelf.errors import UserError
from papershelf.files import atomic_path

WHITE = 65535


@dataclass(frozen=True)
class Sample:
    """A rendered object; its fields are the module's table."""

    images: np.ndarray
    scale: np.ndarray
    normal: np.ndarray
    depth: np.ndarray
    mask: np.ndarray
    lights: np.ndarray
    intensities: np.ndarray
    shape: str
    material: str

    def radiance(self) -> np.ndarray:
        """The images as float32 ``[Q, H, W, 3]`` linear RGB; clipped highlights stay clipped."""
        return self.images.astype(np.float32) * (float(self.scale) / WHITE)

    def save(self, path: Path | str) -> None:
        """Write it as .npz; whole or not at all.

        Raises:
            UserError: the path cannot be written to.
        """
        with atomic_path(path) as part, part.open("wb") as file:
            np.savez(file, **{field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def load(cls, path: Path | str) -> Sample:
        """The sample in a file.

        Raises:
            UserError: there is no such file, or it is damaged or something else.
        """
        try:
            with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as data:
                return cls(
                    **{
                        field.name: str(data[field.name]) if field.type == "str" else data[field.name]
                        for field in fields(cls)
                    }
                )
        except KeyError as error:
            raise UserError(f"{path} is no sample of `psfcn render`: it lacks {error}; render it anew") from error
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from error
        except (ValueError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{path}: expected a sample of `psfcn render`, but it is damaged ({error})") from error
