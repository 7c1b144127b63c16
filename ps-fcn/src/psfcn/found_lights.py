"""Training samples under the lights that LCNet finds in them, in place of the true ones (the uncalibrated chain).

There PS-FCN is trained on LCNet's lights, on images divided by LCNet's intensities. LCNet looks at whole objects, which
costs far more than a crop does, so it looks at each once, before the training: under all of its lights, each of a
random intensity as in LCNet's own training. What it finds is kept in the run's folder, a file a sample, and a run that
was stopped goes on with the samples that lack one.

A file is float32 ``[Q, 8]``, a row a light:

=======  ===============================================================================
columns  meaning
=======  ===============================================================================
0 to 2   the direction that LCNet found
3        the intensity that it found
4        the intensity that it was shown
5 to 7   the sample's own light, by which a file of another sample is told from this one's
=======  ===============================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from papershelf.errors import UserError
from papershelf.files import atomic_path
from papershelf.processes import Place
from tqdm import tqdm

from psfcn import checkpoints
from psfcn.crops import Samples
from psfcn.lcnet import LCNet, decode
from psfcn.lcnet_training import angles, intensity_error, lit
from psfcn.samples import Sample

FOLDER = "lights"  # in the run's
HELD_OUT_SEED = 0  # held-out samples are the same in every run


class FoundSamples(Samples):
    """A folder's samples under the lights that LCNet found.

    Args:
        folder: of samples.
        found: folder of what LCNet found.
        seed: of the intensities that LCNet is shown.
    """

    def __init__(self, folder: Path, found: Path, seed: int) -> None:
        super().__init__(folder)
        self.found, self.seed, self.lights_by = found, seed, found.parent.name

    def load(self, number: int) -> Sample:
        """The sample in a file, its lights and intensities replaced.

        Raises:
            UserError: it is damaged, or its lights were found in another sample.
        """
        sample, found = super().load(number), self.row(number)
        if not np.array_equal(found[:, 5:], sample.lights):
            raise UserError(
                f"{self.file(number)} is not of {self.files[number]}, which is another sample by now; remove "
                f"{self.found} and give the same command again"
            )
        # The image under an intensity of found[:, 4] is divided by found[:, 3].
        intensities = sample.intensities * (found[:, 3] / found[:, 4])[:, None]
        return replace(sample, lights=np.ascontiguousarray(found[:, :3]), intensities=intensities)

    def file(self, number: int) -> Path:
        """Where the lights of a sample are."""
        return self.found / f"{self.files[number].stem}.npy"

    def row(self, number: int) -> np.ndarray:
        """What was found, and what was shown: the module's table.

        Raises:
            UserError: the file is missing or damaged.
        """
        try:
            return np.load(self.file(number), allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{self.file(number)} cannot be read ({error}); remove it and go on") from error

    def find(self, number: int, network: LCNet, device: torch.device) -> None:
        """Let LCNet look at a sample, unless it has."""
        if self.file(number).exists():
            return
        sample = Samples.load(self, number)
        shown = lit(sample, np.random.default_rng([self.seed, number]), np.arange(len(sample.lights)))
        with torch.inference_mode():
            scores = network(shown.images[None].to(device), shown.mask[None].to(device))
            directions, intensities = (x[0].cpu().numpy() for x in decode(scores))
        table = np.column_stack([directions, intensities, shown.intensities, sample.lights]).astype(np.float32)
        with atomic_path(self.file(number)) as part:
            np.save(part, table)

    def errors(self) -> tuple[float, float]:
        """How far off the lights are: mean angle in degrees, and the intensities' relative error (eq. (9))."""
        tables = [torch.from_numpy(self.row(number)) for number in range(len(self))]
        direction = np.mean([angles(x[:, :3], x[:, 5:]).mean().item() for x in tables])
        return float(direction), float(np.mean([intensity_error(x[:, 3], x[:, 4]).item() for x in tables]))


def sets(weights: Path, data: Path, validation: Path, run: Path, seed: int) -> tuple[FoundSamples, FoundSamples]:
    """The samples to train on and those to test on, whose lights :func:`prepare` is still to find.

    Args:
        weights: of LCNet.
        data: folder of samples to train on.
        validation: folder of held-out samples.
        run: the run's folder, where the lights are kept.
        seed: of the intensities that LCNet is shown in the samples to train on.

    Raises:
        UserError: the weights are not LCNet's, or a folder holds no samples.
    """
    checkpoints.load(weights, "lcnet")
    own = run / FOLDER / f"lcnet-{sha256(weights.read_bytes()).hexdigest()[:12]}-seed-{seed}"
    return FoundSamples(data, own / "train", seed), FoundSamples(validation, own / "held-out", HELD_OUT_SEED)


def prepare(samples: tuple[FoundSamples, ...], weights: Path, place: Place, stop_asked: Callable[[], bool]) -> None:
    """Find the lights of all samples that lack them.

    Args:
        samples: from :func:`sets`.
        weights: of LCNet, the same.
        place: of this process; each takes its share of the samples.
        stop_asked: asked after each sample.

    Raises:
        KeyboardInterrupt: it was asked to stop; what was found by then is kept.
    """
    network = checkpoints.load(weights, "lcnet").to(place.device, memory_format=torch.channels_last)
    for folder in samples:
        folder.found.mkdir(parents=True, exist_ok=True)
    todo = [(folder, number) for folder in samples for number in range(len(folder))]
    for folder, number in tqdm(
        todo[place.rank :: place.world], desc="lights", unit="sample", disable=bool(place.rank) or None
    ):
        folder.find(number, network, place.device)
        if stop_asked():
            break
    if place.any(stop_asked()):  # which also waits for the others' shares
        there = sum(folder.file(number).exists() for folder, number in todo)
        raise KeyboardInterrupt(f"Stopped with the lights of {there} of {len(todo)} samples; the same command goes on")
