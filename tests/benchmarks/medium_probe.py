"""What the medium model is like before it is edited: what it knows, where and with which settings it can be edited."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from patient import Patient

from reviver.editing.advice import OWN
from reviver.editing.editors import SecondMoment
from reviver.editing.editors.alphaedit import AlphaEditSettings
from reviver.editing.fitness import WEIGHTS
from reviver.editing.keys import SubjectStates
from reviver.evaluation.counterfact import measure_facts
from reviver.facts.fact import Fact, facts_to_jsonl
from reviver.settings import Settings
from reviver.verbs.doctor import doctor

PROBE_FACTS = 200
COSTS = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3)
# Published for models whose states and gradients have other sizes; these are the demo model's own.
OTHERS: dict[str, dict[str, float]] = {"nse": {"alpha": 10.0, "upper": 1000.0}, "ultraedit": {"rate": 1e-3}}


def probe(folder: Path, model: Path, facts: tuple[Fact, ...], given: dict[str, object]) -> dict[str, Any]:
    """Return the blocks and the λ that `reviver doctor` advises.

    Where it finds none fit, they are the preset's blocks and the largest λ at which enough arrives there.
    """
    chosen = random.Random(0).sample(facts, min(PROBE_FACTS, len(facts)))
    path = folder / "probe.jsonl"
    path.write_bytes(facts_to_jsonl(chosen))
    found = doctor(folder, str(model), settings=Settings.load(folder, given), facts=path).model
    assert found is not None
    advice, weight = found.advice, found.advice.weight
    if weight is None:
        columns = zip(*(found.blocks[layer].responses for layer in found.preset_layers), strict=True)
        weight = max((one[0].weight for one in columns if fmean(each.own for each in one) >= OWN), default=WEIGHTS[0])
    return {
        "fit": advice.fit,
        "layers": list(advice.layers or found.preset_layers),
        "weight": weight,
        "reachable": [block.reachable for block in found.blocks],
        "key_cosine": [block.key_cosine for block in found.blocks],
        "write_share": [block.write_share for block in found.blocks],
        "reasons": {str(layer): list(why) for layer, why in advice.reasons.items()},
    }


def null_space_cost(patient: Patient, facts: Sequence[Fact]) -> float:
    """Return AlphaEdit's L2 by the rule that chooses λ: the largest at which enough of what is asked for a key arrives.

    A key has only its part in the null space to write through, `|Pk|²` against the cost.
    """
    states = SubjectStates(patient.model, facts[:PROBE_FACTS], patient.prefixes)
    powers = []
    for layer in patient.model.layers:
        moment_II = patient.preparation.second_moment(patient.model.names[layer])
        share = AlphaEditSettings().share
        directions_IJ = SecondMoment(moment_II, 1.0, device=patient.model.device).null_space(share=share).values()
        key_IN, _ = states.measure(layer)
        powers.append(float((directions_IJ.T @ key_IN.to(directions_IJ)).square().sum(0).median()))
    enough = [cost for cost in COSTS if fmean(power / (cost + power) for power in powers) >= OWN]
    return max(enough, default=COSTS[-1])


def editor_settings(patient: Patient, facts: Sequence[Fact]) -> dict[str, dict[str, float]]:
    """Return by editor the settings that fit the model."""
    return {"alphaedit": {"l2": null_space_cost(patient, facts)}, **OTHERS}


def knowledge(patient: Patient, facts: list[Fact]) -> dict[str, float]:
    """Return which share of the prompts, paraphrases and neighbours of some facts the base answers with the true object."""
    measures = measure_facts(patient.model, facts)
    prompts = [one.rewrite.other.exact for one in measures if one.rewrite.other]
    paraphrases = [each.other.exact for one in measures for each in one.paraphrases if each.other]
    neighbors = [each.wanted.exact for one in measures for each in one.neighbors]
    kinds = {"prompts": prompts, "paraphrases": paraphrases, "neighbors": neighbors}
    return {name: fmean(said) for name, said in kinds.items() if said}
