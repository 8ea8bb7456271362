"""How fast the package is: each part against its plain formulation in the same run, with the results compared.

    python tests/benchmarks/speed.py --json speed.json                      # the packaged model on the CPU
    python tests/benchmarks/speed.py --shape tiny targets keys rounds       # some parts, in small
    python tests/benchmarks/speed.py --shape 8b --device cuda --json gpu.json --seconds 540

Parts: `targets`, `keys`, `moments`, `solve`, `bases`, `rewrite` (ours against the plain way), `ceiling` and `rounds` (whole
rounds by phase, facts a second, memory, share of what a matrix product reaches), `growth` (what a later round or a longer
history costs), `ranks` (two processes against one), `startup`. Every row is printed and saved as soon as it is known. `--cpu-time`
counts the processor's time instead of the wall's, for a busy machine; use one thread. `--seconds` ends the rounds in time.
`--memory GIB` fills the GPU but for so much, to see whether a smaller one would do.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import bases
import growth
import pace
import ranks
import rewrite
import solve
import startup
import torch
from common import Record, relative, timed
from plain import plain_keys, plain_moment, plain_target
from shapes import Subject, Texts, make_subject

from reviver.editing.keys import SubjectStates
from reviver.editing.moments import MomentSums, add_moments
from reviver.editing.targets import find_targets

PARTS = (
    "targets", "keys", "moments", "solve", "bases", "rewrite", "ceiling", "rounds", "growth", "ranks", "startup"
)  # fmt: skip


class Bench:
    """One run over the chosen parts."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.device: str = arguments.device
        self.clock: Callable[[], float] = time.process_time if arguments.cpu_time else time.perf_counter
        self.started = time.perf_counter()
        about = {
            "benchmark": "speed",
            "shape": arguments.shape,
            "device": arguments.device,
            "dtype": arguments.dtype,
            "clock": "processor" if arguments.cpu_time else "wall",
        }
        self.record = Record(arguments.json, about)
        self._subject: Subject | None = None

    @property
    def subject(self) -> Subject:
        """The model, made when it is first needed."""
        if self._subject is None:
            took, self._subject = timed(
                lambda: make_subject(self.arguments.shape, self.device, self.arguments.dtype), self.device
            )
            self.record.add("model", {"seconds": took})
        return self._subject

    @property
    def tolerance(self) -> float:
        """What rounding may do to results in this dtype, over all steps of a search."""
        return 2e-3 if self.subject.model.weight(self.subject.model.layers[0]).dtype == torch.float32 else 0.1

    def targets(self) -> None:
        """All facts at once, against a fact at a time through the whole model."""
        subject, model = self.subject, self.subject.model
        facts = subject.facts(self.arguments.facts)
        sample = facts[:: max(1, len(facts) // self.arguments.sample)][: self.arguments.sample]
        find_targets(model, facts[:2], subject.prefixes, subject.settings)
        repeat = self.arguments.repeat
        ours, found = timed(
            lambda: find_targets(model, facts, subject.prefixes, subject.settings),
            self.device,
            repeat,
            clock=self.clock,
        )
        other = model
        if self.arguments.plain_dtype is not None:
            dtype = getattr(torch, self.arguments.plain_dtype)
            other = replace(model, network=copy.deepcopy(model.network).to(dtype))
        plain_target(other, facts[0], subject.prefixes, subject.settings)
        plain, wanted = timed(
            lambda: [plain_target(other, fact, subject.prefixes, subject.settings) for fact in sample],
            self.device,
            repeat,
            clock=self.clock,
        )
        place = [facts.index(fact) for fact in sample]
        losses = torch.tensor([loss for _, _, loss in wanted])
        loss_error = float(((found.loss_N[place].cpu() - losses).abs() / losses).max())
        target_error = relative(found.target_NO[place].T, torch.stack([target for target, _, _ in wanted]).T)
        # A model of random weights has gradients of nearly zero, of which Adam's first step takes the sign alone: rounding then
        # decides the way, and what can be compared is how far it led.
        trained = subject.trained
        self.record.compare(
            "targets",
            "a fact",
            ours / len(facts),
            plain / len(sample),
            error=target_error if trained else loss_error,
            tolerance=self.tolerance,
            compared="targets" if trained else "losses",
            target_error=target_error,
            loss_error=loss_error,
            facts=len(facts),
            sample=len(sample),
            mean_steps=float(found.steps_N.float().mean()),
            same_steps=sum(
                int(found.steps_N[index]) == steps for index, (_, steps, _) in zip(place, wanted, strict=True)
            ),
        )

    def keys(self) -> None:
        """Keys and states of all layers, against whole forward passes of every context for every layer."""
        subject, model = self.subject, self.subject.model
        facts = subject.facts(self.arguments.facts)
        sample = facts[: max(2, self.arguments.sample // 2)]

        def measured() -> list[tuple[torch.Tensor, torch.Tensor]]:
            states = SubjectStates(model, facts, subject.prefixes)
            return [states.measure(layer) for layer in model.layers]

        measured()
        ours, found = timed(measured, self.device, clock=self.clock)
        plain, wanted = timed(
            lambda: [[plain_keys(model, fact, subject.prefixes, layer) for fact in sample] for layer in model.layers],
            self.device,
            clock=self.clock,
        )
        errors = [
            relative(ours_IN[:, : len(sample)], torch.stack([pair[index] for pair in pairs], 1))
            for (key_IN, state_ON), pairs in zip(found, wanted, strict=True)
            for index, ours_IN in enumerate((key_IN, state_ON))
        ]
        self.record.compare(
            "keys",
            "a fact, all layers",
            ours / len(facts),
            plain / len(sample),
            error=max(errors),
            tolerance=1e-4 if self.tolerance < 0.01 else 0.05,
            layers=len(model.layers),
        )

    def moments(self) -> None:
        """One pass for all layers up to the last edited one, against a whole pass for each layer."""
        subject, model = self.subject, self.subject.model
        texts = subject.texts(self.arguments.tokens)
        few = Texts(texts.kept[: max(1, len(texts.kept) // 8)])

        def summed(of: Texts) -> MomentSums:
            return add_moments(model, of, MomentSums.empty(model, model.layers), tokens=of.tokens)

        summed(few)
        ours, _ = timed(lambda: summed(texts), self.device, clock=self.clock)
        last = model.layers[-1]
        plain, moment = timed(lambda: plain_moment(model, few.kept, last), self.device, clock=self.clock)
        self.record.compare(
            "moments",
            f"{texts.tokens} tokens, {len(model.layers)} layers",
            ours,
            plain * len(model.layers) * texts.tokens / few.tokens,
            error=relative(summed(few).second_moment(last), moment),
            tolerance=1e-3 if self.tolerance < 0.01 else 0.02,
            tokens_a_second=texts.tokens / ours,
            plain_is=f"one layer's pass over {few.tokens} tokens, times layers and text",
        )

    def solve(self) -> None:
        """N × N solves with a kept factor, against I × I solves; at two conditions."""
        outputs, inputs = self._sides()
        for condition in ("1e6", "1e2"):
            given = ["--outputs", str(outputs), "--inputs", str(inputs), "--device", self.device]
            given += ["--cpu-time"] if self.arguments.cpu_time else []
            figures = solve.measure(solve.parse([*given, "--condition", condition, "--rounds", "3"]))["results"]
            self.record.compare(
                "solve",
                f"a layer and round, {outputs} × {inputs}, condition {condition}",
                figures["solve"]["seconds"],
                figures["plain I × I solve"]["seconds"],
                error=figures["solve"]["relative_error"],
                tolerance=1e-4,
                filter_s=figures["filter"]["seconds"],
                constrained_s=figures["constrained solve"]["seconds"],
                factor_once_s=figures["factor λC, once a base"]["seconds"],
            )
        if self.device == "cpu":
            self.record.add("solve", solve.kept_factor(inputs, self.clock))

    def bases(self) -> None:
        """The leading directions of one matrix, against a full SVD."""
        outputs, inputs = self._sides()
        given = ["--rows", str(outputs), "--columns", str(inputs), "--device", self.device]
        given += ["--cpu-time"] if self.arguments.cpu_time else []
        # A full SVD of such a matrix takes minutes on a GPU; what counts there is the time itself, and the residual.
        given += ["--no-svd"] if self.device != "cpu" else []
        figures = bases.measure(bases.parse(given))["results"]
        for name in ("leading vectors", "all values"):
            row = figures[name]
            if self.device != "cpu":
                self.record.add("bases", {"what": f"k = 64, {name}, {outputs} × {inputs}", **row})
                continue
            for precision in ("float64", "float32"):
                self.record.compare(
                    "bases",
                    f"k = 64, {name}, against a {precision} SVD",
                    row["seconds"],
                    figures[f"torch.linalg.svd {precision}"]["seconds"],
                    error=max(row["left_angle"], row["right_angle"]),
                    tolerance=1e-8,
                    backward_error=row["backward_error"],
                )

    def _sides(self) -> tuple[int, int]:
        if self.arguments.sides:
            outputs, inputs = self.arguments.sides
            return outputs, inputs
        return (4096, 14336) if self.arguments.shape == "8b" else (1024, 3584)

    def rewrite(self) -> None:
        """A changed shard, against `cp` and `sha256sum`, and against loading and saving it whole."""
        with tempfile.TemporaryDirectory(prefix="reviver-benchmark-") as folder:
            figures = rewrite.measure(Path(folder), rewrite.parse(["--layers", "1"]))
        self.record.add(
            "rewrite",
            {
                name: figures[name]
                for name in (
                    "shard_bytes", "rewrite_seconds", "plain_seconds", "ratio", "save_seconds", "times_faster_than_saving",
                    "rss_peak", "save_rss_peak", "largest_tensor",
                )
            },
        )  # fmt: skip

    def ceiling(self) -> None:
        """What a large matrix product reaches on this device, in the model's dtype."""
        self.record.add("ceiling", pace.ceiling(self.subject))

    def rounds(self) -> None:
        """Whole rounds, until the time is used: by phase, with the memory at its peak."""
        left = self.arguments.seconds - (time.perf_counter() - self.started)
        pace.run(self.subject, self.record, self.arguments, left)

    def growth(self) -> None:
        """What a late round and a long history cost against the first."""
        growth.rounds(self.record, self.arguments)
        growth.facts(self.record, self.subject, self.clock)
        growth.history(self.record)

    def ranks(self) -> None:
        """`apply` with two processes of one thread each, against one process of one thread."""
        self.record.add("ranks", ranks.two_against_one(self.arguments.facts))

    def startup(self) -> None:
        """The start of commands, against a bare Typer program."""
        with tempfile.TemporaryDirectory() as folder:
            rows = startup.figures(Path(folder), versions=200, rounds=7)
        for name, row in rows.items():
            self.record.add("startup", {"what": name, **row})


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--shape", choices=("demo", "tiny", "8b"), default="demo")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--facts", type=int, default=100, help="facts of a batch")
    parser.add_argument("--sample", type=int, default=8, help="facts that the plain way is timed on")
    parser.add_argument(
        "--repeat", type=int, default=1, help="runs of both ways of `targets`; the fastest of each counts"
    )
    parser.add_argument("--tokens", type=int, default=4096, help="tokens of the second moments")
    parser.add_argument("--sides", type=int, nargs=2, help="outputs and inputs of the matrix for `solve` and `bases`")
    parser.add_argument("--seconds", type=float, default=540.0, help="when the rounds end, from the start")
    parser.add_argument("--rounds", type=int, default=200, help="rounds at most")
    parser.add_argument("--plain-dtype", help="the plain way of `targets` in another dtype (published code: float32)")
    parser.add_argument("--late", action="store_true", help="`rounds` as after thousands of facts, with dense sums")
    parser.add_argument("--memory", type=float, help="GiB of GPU memory to leave free")
    parser.add_argument("--threads", type=int, default=0, help="threads of torch on the CPU; 0: as many as it likes")
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--json", type=Path, help="keep the figures here")
    arguments = parser.parse_args()
    if unknown := [part for part in arguments.parts if part not in PARTS]:
        parser.error(f"no such part: {', '.join(unknown)}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU")
    return arguments


def main() -> None:
    """Run the chosen parts; one that fails is noted and ends none of the others."""
    arguments = parse()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    bench = Bench(arguments)
    for part in arguments.parts or PARTS:
        try:
            getattr(bench, part)()
        except Exception as error:
            bench.record.add(part, {"failed": f"{type(error).__name__}: {str(error)[:300]}"})


if __name__ == "__main__":
    main()
