"""What grows: the cost of a late round against the first, of more facts in a batch, and of a longer history."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from common import Record
from pace import Phases, open_by_hand
from shapes import Subject, make_subject

from reviver.editing.base import version_tensor
from reviver.editing.editors import get_editor
from reviver.editing.rounds import RoundSettings, run_round
from reviver.editing.targets import find_targets
from reviver.history.chain import chain_deltas
from reviver.history.workspace import Workspace

EDITORS = ("memit", "memit with memory", "rect", "prune", "alphaedit", "nse")
"""Those that seek targets; UltraEdit's rounds have neither targets nor second moments."""


def rounds(record: Record, arguments: argparse.Namespace, facts: int = 5) -> None:
    """Run many small rounds of every editor on a tiny model: the first ones against the last, and the part that grew most."""
    count = arguments.rounds
    for name in EDITORS:
        subject = make_subject("tiny", "cpu", "float32")
        layers = open_by_hand(subject, None, rank=8, tokens=4096)
        editor = get_editor(name.split()[0])
        chosen = editor.settings({"memory": "keys"} if name.endswith("memory") else {})
        for edited in layers:
            outputs, inputs = edited.oriented(edited.base_DE).shape
            edited.memory = editor.begin(chosen, outputs, inputs)
            if editor.start_from is not None:
                edited.memory = editor.start_from(edited.oriented(edited.base_DE))
        settings = RoundSettings(
            editor=editor,
            editor_settings=chosen,
            filter="revive",
            targets=subject.settings,
            maximum_relative_norm=float("inf"),
        )
        taken: list[float] = []
        parts: list[dict[str, float]] = []
        for number in range(count):
            phases = Phases(subject.model, time.process_time)
            counted = replace(settings, editor=phases.editor(editor))
            start = time.process_time()
            with phases.watching():
                run_round(subject.model, layers, subject.facts(facts, seed=number), subject.prefixes, counted)
            taken.append(time.process_time() - start)
            parts.append({**phases.seconds, "rest": taken[-1] - sum(phases.seconds.values())})
            for edited in layers:
                edited.fresh.clear()
        few = max(1, count // 20)
        # The very first round loads libraries.
        early, late = slice(1, 1 + few), slice(count - few, count)
        grown = {
            part: statistics.median(one[part] for one in parts[late])
            - statistics.median(one[part] for one in parts[early])
            for part in parts[0]
        }
        record.add(
            "growth",
            {
                "what": f"{name}, round {count} against round 1",
                "early_s": statistics.median(taken[early]),
                "late_s": statistics.median(taken[late]),
                "ratio": statistics.median(taken[late]) / statistics.median(taken[early]),
                "grew_most": max(grown, key=lambda part: grown[part]),
                "facts_a_round": facts,
            },
        )


def facts(record: Record, subject: Subject, clock: Callable[[], float]) -> None:
    """Seek targets for more and more facts at once."""
    for count in (1, 10, 30, 100):
        batch = subject.facts(count)
        start = clock()
        find_targets(subject.model, batch, subject.prefixes, subject.settings)
        record.add("growth", {"what": f"targets of {count} facts at once", "seconds_a_fact": (clock() - start) / count})


def history(record: Record) -> None:
    """Read chains of more and more versions and rebuild a tensor of the last."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "history"))
    import torch
    import workspaces
    from startup import make_history

    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace.open(make_history(Path(folder), 200))
        from reviver.editing.base import open_base

        pin = workspace.pin()
        base = open_base(pin)
        for version in (1, 10, 100, 200):
            best = float("inf")
            for _ in range(3):
                start = time.process_time()
                deltas = chain_deltas(workspace.chain(f"v{version}"), pin)
                version_tensor(base, workspaces.FIRST, deltas[workspaces.FIRST], torch.device("cpu"))
                best = min(best, time.process_time() - start)
            record.add("growth", {"what": f"reading v{version} and rebuilding a tensor", "seconds": best})
