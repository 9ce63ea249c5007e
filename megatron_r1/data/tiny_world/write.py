"""Every file of the tiny world, in one folder, from a seed.

    corpus.jsonl              prompt, response: what the base model learns from
    reasoning.jsonl           question, answer, language, dataset: RL and rejection sampling on sums
    scenarios.jsonl           the same, with requests of the data sets helpfulness and harmlessness
    general_sft.jsonl         prompt, response, reference: stage 3's samples that are no sums
    pairs.jsonl labelled.jsonl                    reward models
    pairs_heldout.jsonl labelled_heldout.jsonl    and what they are measured on
    heldout_reasoning.jsonl   question, answer, language
    heldout_general.jsonl     question, answer: a reference for the judge
    heldout_helpfulness.jsonl question, baseline: right, and without an offer
    heldout_safety.jsonl      question, answer: a refusal
    world.json                settings, lines and SHA-256 of each file

Corpus, training and measurement share no sum and no request, in either language.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_r1.config.tiny_world import TinyWorldConfig
from megatron_r1.data.tiny_world.corpus import draw_request, habitual_answer, write_documents
from megatron_r1.data.tiny_world.parts import Part
from megatron_r1.data.tiny_world.preferences import write_labelled, write_pairs
from megatron_r1.data.tiny_world.requests import Request, all_requests
from megatron_r1.data.tiny_world.sums import Sum, all_sums, response
from megatron_r1.telemetry.files import replace_file, write_json

HELPFULNESS, HARMLESSNESS = "helpfulness", "harmlessness"
"""Data sets of requests; `conf/reward/r1_stage4.yaml` has a mix for each."""
WORLD = "world.json"
Records = Sequence[Mapping[str, Any]]


def write_world(directory: Path, config: TinyWorldConfig) -> dict[str, Any]:
    """Write the folder, or leave it as it is where it holds this world. Returns its manifest."""
    manifest_path = directory / WORLD
    settings = dataclasses.asdict(config)
    if manifest_path.is_file():
        known = json.loads(manifest_path.read_text())
        if known["settings"] == settings and _files_are_whole(directory, known["files"]):
            return known
    directory.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, records_of in _FILES.items():
        records = records_of(config)
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        with replace_file(directory / name) as draft:
            draft.write_text(text, encoding="utf-8")
        digest = hashlib.sha256(text.encode()).hexdigest()
        files[name] = {"lines": len(records), "sha256": digest}
    manifest = {"settings": settings, "files": files}
    write_json(manifest_path, manifest)
    return manifest


def sums_of(part: Part) -> list[Sum]:
    return [asked for asked in all_sums() if asked.part is part]


def requests_of(part: Part) -> list[Request]:
    return [request for request in all_requests() if request.part is part]


def _corpus(config: TinyWorldConfig) -> Records:
    documents = write_documents(sums_of(Part.corpus), requests_of(Part.corpus), config)
    return [dataclasses.asdict(document) for document in documents]


def _reasoning(config: TinyWorldConfig) -> Records:
    return [_sum_record(asked) for asked in _shuffled(sums_of(Part.train), config, "reasoning")]


def _scenarios(config: TinyWorldConfig) -> Records:
    """Sums and requests by turns."""
    requests = _in_turn(requests_of(Part.train), config, "scenarios")[: config.num_requests]
    pairs = zip(_reasoning(config), map(_request_record, requests), strict=False)
    return [record for pair in pairs for record in pair]


def _general_sft(config: TinyWorldConfig) -> Records:
    rng = random.Random(f"{config.seed}/general_sft")
    requests = requests_of(Part.train)
    records = []
    for _ in range(config.num_general):
        asked = draw_request(requests, rng)
        answer = habitual_answer(
            asked,
            requests,
            rng,
            wrong_frac=config.general_wrong_frac,
            comply_frac=config.general_comply_frac,
            offer_frac=config.general_offer_frac,
        )
        records.append(
            {
                "prompt": asked.question,
                "response": response(asked.thought, answer),
                "reference": asked.reference,
                "kind": asked.kind,
            }
        )
    return records


def _pairs(config: TinyWorldConfig) -> Records:
    pairs = write_pairs(requests_of(Part.train), config.num_pairs, f"{config.seed}")
    return [dataclasses.asdict(pair) for pair in pairs]


def _pairs_heldout(config: TinyWorldConfig) -> Records:
    count = max(1, config.num_pairs // 10)
    pairs = write_pairs(requests_of(Part.heldout), count, f"{config.seed}/heldout")
    return [dataclasses.asdict(pair) for pair in pairs]


def _labelled(config: TinyWorldConfig) -> Records:
    cases = write_labelled(requests_of(Part.train), config.num_labelled, f"{config.seed}")
    return [dataclasses.asdict(case) for case in cases]


def _labelled_heldout(config: TinyWorldConfig) -> Records:
    count = max(1, config.num_labelled // 10)
    cases = write_labelled(requests_of(Part.heldout), count, f"{config.seed}/heldout")
    return [dataclasses.asdict(case) for case in cases]


def _heldout_reasoning(config: TinyWorldConfig) -> Records:
    sums = _shuffled(sums_of(Part.heldout), config, "heldout")
    return [_sum_record(asked) for asked in sums[: config.num_heldout]]


def _heldout_general(config: TinyWorldConfig) -> Records:
    return [
        {"question": asked.question, "answer": asked.reference, "language": asked.tongue.code}
        for asked in _heldout_requests(config, is_harmful=False)
    ]


def _heldout_helpfulness(config: TinyWorldConfig) -> Records:
    return [
        {"question": asked.question, "baseline": asked.reference, "language": asked.tongue.code}
        for asked in _heldout_requests(config, is_harmful=False)
    ]


def _heldout_safety(config: TinyWorldConfig) -> Records:
    return [
        {"question": asked.question, "answer": asked.reference, "language": asked.tongue.code}
        for asked in _heldout_requests(config, is_harmful=True)
    ]


_FILES: dict[str, Callable[[TinyWorldConfig], Records]] = {
    "corpus.jsonl": _corpus,
    "reasoning.jsonl": _reasoning,
    "scenarios.jsonl": _scenarios,
    "general_sft.jsonl": _general_sft,
    "pairs.jsonl": _pairs,
    "pairs_heldout.jsonl": _pairs_heldout,
    "labelled.jsonl": _labelled,
    "labelled_heldout.jsonl": _labelled_heldout,
    "heldout_reasoning.jsonl": _heldout_reasoning,
    "heldout_general.jsonl": _heldout_general,
    "heldout_helpfulness.jsonl": _heldout_helpfulness,
    "heldout_safety.jsonl": _heldout_safety,
}


def _sum_record(asked: Sum) -> dict[str, Any]:
    return {
        "id": f"sum/{asked.tongue.code}/{asked.expression}",
        "question": asked.question,
        "answer": str(asked.total),
        "grader": "math",
        "language": asked.tongue.code,
        "dataset": "reasoning",
    }


def _request_record(asked: Request) -> dict[str, Any]:
    """No rule judges it, so its data set has no accuracy in its mix."""
    return {
        "id": f"{asked.content}/{asked.tongue.code}",
        "question": asked.question,
        "answer": asked.reference,
        "grader": "exact",
        "language": asked.tongue.code,
        "dataset": HARMLESSNESS if asked.is_harmful else HELPFULNESS,
    }


def _heldout_requests(config: TinyWorldConfig, *, is_harmful: bool) -> list[Request]:
    wanted = [r for r in requests_of(Part.heldout) if r.is_harmful is is_harmful]
    return _in_turn(wanted, config, "heldout")[: config.num_heldout]


def _in_turn(requests: Sequence[Request], config: TinyWorldConfig, purpose: str) -> list[Request]:
    """In an order of the seed's own, one of each kind after another while there are any."""
    groups: dict[tuple[str, bool], list[Request]] = {}
    for request in _shuffled(requests, config, purpose):
        groups.setdefault((request.kind, request.is_harmful), []).append(request)
    rounds = itertools.zip_longest(*groups.values())
    return [request for turn in rounds for request in turn if request is not None]


def _shuffled(items: Sequence[Any], config: TinyWorldConfig, purpose: str) -> list[Any]:
    return random.Random(f"{config.seed}/{purpose}").sample(items, len(items))


def _files_are_whole(directory: Path, files: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the files are those that were written."""
    if files.keys() != _FILES.keys():
        return False
    for name, known in files.items():
        path = directory / name
        if not path.is_file():
            return False
        if hashlib.sha256(path.read_bytes()).hexdigest() != known["sha256"]:
            return False
    return True
