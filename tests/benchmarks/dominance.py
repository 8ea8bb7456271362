"""Which directions carry a model's language: noise of equal norm, in one band of the spectrum after the other.

The diagnosis under REVIVE (arXiv 2601.11042) is that an update hurts by its part in the dominant singular directions of the
pretrained matrix. `python tests/benchmarks/dominance.py [--model DIR --text FILE]` asks a model whether that holds for it:
to every edited matrix it adds Gaussian noise that lies in one tenth of the singular directions on both sides, or in input
directions that the matrix does not read at all, or anywhere, scaled to the same share of the matrix's norm, and measures the
perplexity of held-out text. It also tells which share of what the matrix reads (its second moment) lies in each band, and which
share of an unfiltered MEMIT update does.

Legend: O output features, I input features, B directions of a band.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from patient import FACTS, MODEL, Patient, draw, held_out_texts, machine
from torch import Tensor

from reviver.evaluation.perplexity import perplexity
from reviver.settings import parse_layers

BANDS = 10
UNREAD, ANYWHERE = "unread", "anywhere"


@dataclass(frozen=True)
class Spectrum:
    """One edited matrix and its singular directions: `output_OB`, `input_IB` in descending order, and the rest of the inputs."""

    weight_OI: Tensor
    output_OB: Tensor
    input_IB: Tensor
    rest_IB: Tensor

    @classmethod
    def of(cls, weight_OI: Tensor) -> Spectrum:
        output_OB, _, input_BI = torch.linalg.svd(weight_OI.double(), full_matrices=True)
        count = min(weight_OI.shape)
        return cls(weight_OI, output_OB[:, :count], input_BI[:count].T, input_BI[count:].T)

    def band(self, name: str) -> tuple[Tensor, Tensor]:
        """Return the output and the input directions of a band."""
        if name == ANYWHERE:
            outputs, inputs = self.weight_OI.shape
            return torch.eye(outputs, dtype=torch.float64), torch.eye(inputs, dtype=torch.float64)
        if name == UNREAD:
            return self.output_OB, self.rest_IB
        number, count = int(name), self.output_OB.shape[1]
        part = slice(count * (number - 1) // BANDS, count * number // BANDS)
        return self.output_OB[:, part], self.input_IB[:, part]

    def noise(self, name: str, share: float, generator: torch.Generator) -> Tensor:
        """Return noise of a band `[O, I]` whose norm is some share of the matrix's."""
        output_OB, input_IB = self.band(name)
        core = torch.randn(output_OB.shape[1], input_IB.shape[1], generator=generator, dtype=torch.float64)
        noise_OI = output_OB @ core @ input_IB.T
        return noise_OI * (share * self.weight_OI.double().norm() / noise_OI.norm())


def shares_read(spectra: Sequence[Spectrum], moments: Sequence[Tensor], names: Sequence[str]) -> dict[str, float]:
    """Return which share of the squared inputs lies in the input directions of each band, mean over the matrices."""
    return {
        name: statistics.fmean(
            float(torch.trace(spectrum.band(name)[1].T @ moment_II @ spectrum.band(name)[1]) / torch.trace(moment_II))
            for spectrum, moment_II in zip(spectra, moments, strict=True)
        )
        for name in names
    }


def shares_written(
    spectra: Sequence[Spectrum], updates: Sequence[Tensor], names: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Return which share of the squared updates `[O, I]` lies in each band's output and input directions."""
    found: dict[str, dict[str, float]] = {}
    for name in names:
        sides: dict[str, list[float]] = {"output": [], "input": []}
        for spectrum, update_OI in zip(spectra, updates, strict=True):
            output_OB, input_IB = spectrum.band(name)
            sides["output"].append(float((output_OB.T @ update_OI).norm() / update_OI.norm()) ** 2)
            sides["input"].append(float((update_OI @ input_IB).norm() / update_OI.norm()) ** 2)
        found[name] = {side: statistics.fmean(values) for side, values in sides.items()}
    return found


def perplexities(
    patient: Patient, spectra: Mapping[int, Spectrum], name: str, share: float, seeds: int, texts: Sequence[str]
) -> list[float]:
    """Return the perplexity under a band's noise in all edited matrices at once, for every seed."""
    found = []
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        for layer, spectrum in spectra.items():
            changed_OI = (spectrum.weight_OI.double() + spectrum.noise(name, share, generator)).float()
            patient.model.put_weight(layer, changed_OI.T if patient.model.family.transposed else changed_OI)
        found.append(perplexity(patient.model, texts))
    patient.rewind()
    return found


def main() -> None:
    """Disturb each band, and print and keep what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--facts", type=Path, default=FACTS)
    parser.add_argument("--text", type=Path, help="held-out text, a document a line; the packaged model's by default")
    parser.add_argument("--blocks", type=parse_layers, help="instead of the preset's")
    parser.add_argument("--shares", type=float, nargs="*", default=[0.5, 1.0], help="norms of the noise")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    texts = held_out_texts()[::2]
    if arguments.text:
        texts = [line for line in arguments.text.read_text(encoding="utf-8").splitlines() if line.strip()]
    given = {"model.layers": arguments.blocks} if arguments.blocks else {}
    with tempfile.TemporaryDirectory() as folder:
        patient = Patient(Path(folder), arguments.model, {"apply.device": "cpu", **given})
        layers = patient.edit(draw(arguments.facts, 100, 0), filter_name="none")
        spectra = {edited.layer: Spectrum.of(edited.oriented(edited.base_DE).float()) for edited in layers}
        updates = [edited.oriented(edited.live_DE - edited.base_DE.float()).double() for edited in layers]
        moments = [patient.preparation.second_moment(edited.name).double() for edited in layers]
        patient.rewind()
        names = [*map(str, range(1, BANDS + 1)), UNREAD]
        record = machine() | {
            "model": arguments.model.name,
            "perplexity": perplexity(patient.model, texts),
            "read": shares_read(list(spectra.values()), moments, names),
            "memit": shares_written(list(spectra.values()), updates, names),
            "noise": {},
        }
        print(f"perplexity {record['perplexity']:.3f}; read {record['read']}; written by MEMIT {record['memit']}")
        for name in [*names, ANYWHERE]:
            record["noise"][name] = {
                str(share): perplexities(patient, spectra, name, share, arguments.seeds, texts)
                for share in arguments.shares
            }
            means = {share: round(statistics.fmean(found), 3) for share, found in record["noise"][name].items()}
            print(f"{name:9} {means}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
