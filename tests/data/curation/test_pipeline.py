"""A file with everything wrong in it: each line is reported by number, and each kind counted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_r1.config.curation import (
    CurationConfig,
    DecontaminationConfig,
    DifficultyConfig,
)
from megatron_r1.config.data import BadLines
from megatron_r1.data.curation.pipeline import curate
from megatron_r1.data.jsonl import read_jsonl
from megatron_r1.errors import ConfigError, DataError

ROOT = Path(__file__).parents[3]
LONG = (
    "A train leaves the station at nine and travels north at sixty miles an hour while another "
    "leaves the next station at ten and travels south at eighty. The stations are five hundred "
    "miles apart, and both trains run on the same straight line without a stop in between. How "
    "many hours after nine do the two trains meet, and how far is that from the first station?"
)
SECRET = "Let a b c d e f g h i j be the digits of the number"
SHARED = "let a b c d e f g h i"


def line(question: str, **keys) -> str:
    return json.dumps({"question": question, "answer": "1", **keys})


@pytest.fixture
def files(tmp_path) -> dict[str, Path]:
    raw, more, evaluation = (tmp_path / name for name in ("raw.jsonl", "more.jsonl", "eval.jsonl"))
    raw.write_text(
        "\n".join(
            [
                line("How many primes are below 100?"),  # 1
                '{"question": "cut off',  # 2: corrupted
                "",  # 3: blank
                line(""),  # 4: empty
                line(LONG),  # 5
                line("How many primes  are below 100?"),  # 6: as 1
                line(LONG.replace("sixty", "fifty")),  # 7: near 5
                line(SECRET),  # 8: contaminated
            ]
        )
    )
    more.write_text(line(LONG.upper()) + "\n" + line("Another one?", dataset="style", level=5))
    evaluation.write_text(json.dumps({"problem": SECRET}))
    return {"raw": raw, "more": more, "eval": evaluation, "out": tmp_path / "out/train.jsonl"}


def config(files, bad_lines=BadLines.set_aside) -> CurationConfig:
    against = DecontaminationConfig(files=[str(files["eval"])])
    return CurationConfig(bad_lines=bad_lines, decontamination=against)


def read(path: Path) -> list[dict]:
    return [json.loads(text) for text in path.read_text().splitlines()]


def test_every_bad_line_is_named_and_every_kind_is_counted(files):
    raw, more, out = str(files["raw"]), str(files["more"]), files["out"]
    report = curate([files["raw"], files["more"]], out, config(files))
    assert [(s.name, s.reached, s.dropped) for s in report.steps] == [
        ("bad line", 9, 2),
        ("contaminated", 7, 1),
        ("exact duplicate", 6, 2),
        ("near duplicate", 4, 1),
    ]
    dropped = read(out.with_suffix(".dropped.jsonl"))
    assert [(d["step"], d["file"], d["line"], d["reason"]) for d in dropped] == [
        ("exact duplicate", raw, 6, f"same text as {raw}:1"),
        ("near duplicate", raw, 7, dropped[1]["reason"]),
        ("contaminated", raw, 8, f"shares {SHARED!r} with {files['eval']}:1"),
        ("exact duplicate", more, 1, f"same text as {raw}:5"),
    ]
    # One word of 68: 5 shingles of 5 words differ.
    assert dropped[1]["reason"].endswith(f" like {raw}:5")
    rejected = read(out.with_suffix(".rejected.jsonl"))
    assert [(r["line"], r["error"], r["text"]) for r in rejected] == [
        (2, "not JSON: Unterminated string starting at at column 14", '{"question": "cut off'),
        (4, "'question' is empty", '{"question": "", "answer": "1"}'),
    ]
    assert [(k["id"], k["lineage"]["source"], k["lineage"]["line"]) for k in read(out)] == [
        ("raw/1", raw, 1),
        ("raw/5", raw, 5),
        ("more/2", more, 2),
    ]
    assert read(out)[2]["level"] == 5
    assert [problem.dataset for problem in read_jsonl(out)] == ["", "", "style"]


def test_table_and_manifest_say_the_same(files):
    report = curate([files["raw"], files["more"]], files["out"], config(files))
    text = report.describe()
    assert "| contaminated    |        7 |       1 |    6 |" in text
    assert f"bad line: {files['raw']}:2: not JSON"[:60] in text
    manifest = json.loads(files["out"].with_suffix(".manifest.json").read_text())
    assert (manifest["kept"], manifest["inputs"][0]["lines"]) == (3, 7)
    assert [step["dropped"] for step in manifest["steps"]] == [2, 1, 2, 1]
    statistics = manifest["statistics"]
    assert statistics["style"]["question_words"] == {"mean": 2, "median": 2, "p95": 2, "max": 2}
    assert statistics[""]["languages"] == {"en": 2}
    assert manifest["config"]["bad_lines"] == "set_aside"


def test_keys_of_any_name_and_half_a_character_travel_along(tmp_path):
    """`output` is Alpaca's; half of a surrogate pair is no text that is learned."""
    raw, out = tmp_path / "raw.jsonl", tmp_path / "out.jsonl"
    keys = {"output": "two", "file": 3, "note": "\ud800"}
    lines = [line("What is 1 + 1?", **keys), line("\ud800", **keys), line("What is 1 + 1?", **keys)]
    raw.write_text("\n".join(lines))
    curate([raw], out, CurationConfig(bad_lines=BadLines.set_aside))
    (kept,) = read(out)
    assert {key: kept[key] for key in keys} == keys
    assert [r["line"] for r in read(out.with_suffix(".rejected.jsonl"))] == [2]
    assert [d["line"] for d in read(out.with_suffix(".dropped.jsonl"))] == [3]


def test_a_second_example_of_one_id_is_a_bad_line(tmp_path):
    """Its pass rate would be that of both."""
    raw, out = tmp_path / "raw.jsonl", tmp_path / "out.jsonl"
    raw.write_text("\n".join([line("one?", id="a"), line("two?", id="b"), line("three?", id="a")]))
    with pytest.raises(DataError, match=r"raw\.jsonl:3: id 'a' is that of line 1, too"):
        curate([raw], out, CurationConfig())
    report = curate([raw], out, CurationConfig(bad_lines=BadLines.set_aside))
    assert (report.kept, report.steps[0].dropped) == (2, 1)
    assert [r["line"] for r in read(out.with_suffix(".rejected.jsonl"))] == [3]


def test_the_same_inputs_give_the_same_bytes(files, tmp_path):
    outputs = [tmp_path / "one/t.jsonl", tmp_path / "two/t.jsonl"]
    for output in outputs:
        curate([files["raw"], files["more"]], output, config(files))
    for suffix in (".jsonl", ".dropped.jsonl", ".rejected.jsonl"):
        first, second = (output.with_suffix(suffix).read_bytes() for output in outputs)
        assert first == second
    manifests = [json.loads(o.with_suffix(".manifest.json").read_text()) for o in outputs]
    assert manifests[0]["output"]["sha256"] == manifests[1]["output"]["sha256"]


def test_a_bad_line_stops_and_leaves_the_earlier_output_alone(files):
    curate([files["more"]], files["out"], config(files, BadLines.stop))
    before = {path.name: path.read_bytes() for path in files["out"].parent.iterdir()}
    with pytest.raises(DataError, match=r"raw\.jsonl:2: not JSON.*set bad lines aside"):
        curate([files["more"], files["raw"]], files["out"], config(files, BadLines.stop))
    after = {path.name: path.read_bytes() for path in files["out"].parent.iterdir()}
    assert after == before


def test_files_without_examples(files, tmp_path):
    empty, bad = tmp_path / "empty.jsonl", tmp_path / "bad.jsonl"
    empty.write_text("\n")
    bad.write_text("[]\n3\n")
    with pytest.raises(DataError, match=r"empty\.jsonl is empty"):
        curate([files["more"], empty], files["out"], config(files))
    with pytest.raises(DataError, match="holds no example: all of its 2 lines are bad"):
        curate([bad], files["out"], config(files))
    with pytest.raises(DataError, match=r"nothing is kept.*\n(.*\n)*.*contaminated"):
        curate([files["eval"].rename(tmp_path / "e.jsonl")], files["out"], only_secret(tmp_path))
    with pytest.raises(ConfigError, match="is one of the inputs"):
        curate([files["more"]], files["more"], config(files))


def only_secret(tmp_path) -> CurationConfig:
    """Against the very file that is curated."""
    path = tmp_path / "e.jsonl"
    path.write_text(line(SECRET))
    return CurationConfig(decontamination=DecontaminationConfig(files=[str(path)]))


def test_what_another_step_drops_is_no_twin(files, tmp_path):
    """raw/1 is too easy, so its duplicate on line 6 stays."""
    rollouts = tmp_path / "step_1.jsonl"
    samples = [("raw/1", 1), ("raw/1", 1), ("raw/6", 1), ("raw/6", 0)]
    rollouts.write_text(
        "\n".join(json.dumps({"prompt_id": p, "parts": {"accuracy": a}}) for p, a in samples)
    )
    difficulty = DifficultyConfig(rollouts=[str(rollouts)])
    settings = CurationConfig(bad_lines=BadLines.set_aside, difficulty=difficulty)
    curate([files["raw"]], files["out"], settings)
    (kept,) = read(files["out"])
    assert (kept["id"], kept["lineage"]["verdicts"]) == ("raw/6", {"pass_rate": 0.5})


def test_the_command(files):
    command = [sys.executable, "tools/curate.py", str(files["raw"]), "--output", str(files["out"])]
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert (refused.returncode, files["out"].exists()) == (2, False)
    assert refused.stderr.startswith(f"DataError: {files['raw']}:2: not JSON")
    command += ["--bad-lines", "set_aside", "--against", str(files["eval"]), "--signs"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"{files['out']}: 2 examples\n")
    manifest = json.loads(files["out"].with_suffix(".manifest.json").read_text())
    assert manifest["config"]["decontamination"]["signs"] is True


def test_lines_without_an_id_are_called_the_same_in_curation_and_in_training(tmp_path):
    """So that the pass rates of a run's rollouts find them; two files of one name cannot."""
    paths = [tmp_path / folder / "math.v2.jsonl" for folder in ("a", "b")]
    for path in paths:
        path.parent.mkdir()
        path.write_text(f'{{"question": "of {path.parent.name}", "answer": "2"}}\n')
    curate(paths[:1], tmp_path / "out.jsonl", CurationConfig())
    (kept,) = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert kept["id"] == read_jsonl(paths[0])[0].id == "math.v2/1"
    with pytest.raises(DataError, match=r"a/math\.v2\.jsonl:1 has no id, and would be called math"):
        curate(paths, tmp_path / "out.jsonl", CurationConfig())
    for path in paths:
        line = {"question": f"of {path.parent.name}", "answer": "2", "id": str(path)}
        path.write_text(json.dumps(line))
    assert curate(paths, tmp_path / "out.jsonl", CurationConfig()).kept == 2
