"""Hugging Face to Megatron and back: the same bytes, or one message and nothing left."""

from __future__ import annotations

import io
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_r1.checkpoint.conversion import WeightDtype
from megatron_r1.checkpoint.draft import draft_directory
from megatron_r1.checkpoint.hf_export import export_hf
from megatron_r1.checkpoint.hf_import import import_hf
from megatron_r1.checkpoint.record import read_state, saved_config
from megatron_r1.checkpoint.safetensors_dir import SafetensorsDir
from megatron_r1.checkpoint.sharded_tensors import ChunkFile
from megatron_r1.config.load import load_config
from megatron_r1.errors import CheckpointError
from megatron_r1.weights.hf_config import hf_config
from megatron_r1.weights.names import name_table
from tests.checkpoint.hub import (
    FP8_CONFIG,
    TEMPLATE,
    differences,
    write_like_deepseek,
    write_with_transformers,
)
from tests.models.families import FAMILIES, load_family

ROOT = Path(__file__).parents[2]
IMPORT, EXPORT = "convert_hf_to_megatron.py", "convert_megatron_to_hf.py"


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


def tool(name: str, *arguments: object) -> Done:
    """A command of tools/, in this process: importing torch takes longer than what it does."""
    out, err = io.StringIO(), io.StringIO()
    own = sys.argv
    sys.argv = [name, *map(str, arguments)]
    try:
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "tools" / name), run_name="__main__")
    finally:
        sys.argv = own
    return Done(ended.value.code, out.getvalue(), err.getvalue())


@pytest.mark.parametrize("name", [IMPORT, EXPORT, "inspect_checkpoint.py"])
def test_commands_explain_themselves_in_a_clone_that_is_not_installed(name):
    done = subprocess.run(
        [sys.executable, "-S", str(ROOT / "tools" / name), "--help"],  # -S: the interpreter alone
        cwd="/",
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert f"python tools/{name} " in done.stdout and "\n  -h, --help" in done.stdout


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Path:
    """A tiny DeepSeek-V3 in bfloat16, in five files."""
    config = load_family("deepseek_v3").model
    directory = tmp_path_factory.mktemp("hub") / "model"
    return write_with_transformers(directory, config, dtype=torch.bfloat16)


@pytest.fixture
def spoiled(hub, tmp_path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(hub, tmp_path / "spoiled")


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_transformers_wrote_comes_back_byte_for_byte(family, dtype, tmp_path):
    source = write_with_transformers(tmp_path / "hub", load_family(family).model, dtype=dtype)
    import_hf(source, tmp_path / "megatron", file_bytes=300_000, show_progress=False)
    assert len(list((tmp_path / "megatron/policy").glob("*.distcp"))) > 1
    export_hf(tmp_path / "megatron", tmp_path / "back", shard_bytes=300_000, show_progress=False)
    assert differences(source, tmp_path / "back") == []


def test_everything_beside_the_weights_goes_along(hub, tmp_path):
    import_hf(hub, tmp_path / "megatron", show_progress=False)
    export_hf(tmp_path / "megatron", tmp_path / "back", show_progress=False)
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    back = tmp_path / "back"
    assert (back / "model.safetensors").is_file()  # one file, as it fits, and so no index
    assert not (back / "model.safetensors.index.json").exists()
    assert AutoTokenizer.from_pretrained(back).chat_template == TEMPLATE
    assert GenerationConfig.from_pretrained(back).temperature == 0.6
    old, new = (json.loads((d / "config.json").read_text()) for d in (hub, back))
    assert new.pop("torch_dtype") == old.pop("dtype") == "bfloat16"
    old["num_nextn_predict_layers"] = 0  # transformers counts it and does not write it
    assert new == old
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        first, second = (
            AutoModelForCausalLM.from_pretrained(d)(tokens).logits for d in (hub, back)
        )
    assert torch.equal(first, second)


def test_converted_dtypes(hub, tmp_path):
    import_hf(hub, tmp_path / "megatron", dtype=WeightDtype.float32, show_progress=False)
    export_hf(tmp_path / "megatron", tmp_path / "f32", show_progress=False)
    half = WeightDtype.bfloat16
    export_hf(tmp_path / "megatron", tmp_path / "half", dtype=half, show_progress=False)
    assert {e.dtype for e in SafetensorsDir(tmp_path / "f32").entries.values()} == {"F32"}
    assert differences(hub, tmp_path / "half") == []  # bias in float32, the rest in bfloat16


def test_fp8_and_the_prediction_layer_come_back_byte_for_byte(tmp_path):
    config = load_config(
        ["model=tiny_v3", "model.num_mtp_layers=1", "model.hidden_size=192", "model.vocab_size=509"]
    ).model
    source = write_like_deepseek(tmp_path / "hub", config)
    assert "model.layers.4.eh_proj.weight" in SafetensorsDir(source).entries
    import_hf(source, tmp_path / "megatron", show_progress=False)
    plain = export_hf(tmp_path / "megatron", tmp_path / "plain", show_progress=False)
    fp8 = WeightDtype.fp8
    export_hf(tmp_path / "megatron", tmp_path / "back", dtype=fp8, show_progress=False)
    assert differences(source, tmp_path / "back") == []
    import_hf(source, tmp_path / "f32", dtype=WeightDtype.float32, show_progress=False)
    export_hf(tmp_path / "f32", tmp_path / "back32", dtype=fp8, show_progress=False)
    assert differences(source, tmp_path / "back32") == []
    entries = SafetensorsDir(tmp_path / "plain").entries
    assert plain.num_tensors == len(entries)
    assert {e.dtype for n, e in entries.items() if "e_score" not in n} == {"BF16"}
    written = json.loads((tmp_path / "back/config.json").read_text())
    assert written["quantization_config"] == FP8_CONFIG
    assert "quantization_config" not in json.loads((tmp_path / "plain/config.json").read_text())


@pytest.mark.megatron
@pytest.mark.parametrize("begun_from", ["hub", "megatron"])
def test_what_training_has_left_alone_comes_back_in_fp8_byte_for_byte(
    begun_from, one_rank, tmp_path, capsys
):
    """One number is trained: its block gets a new scale, and every other one keeps its own.

    In training sequences may be longer than those the source was made for; that is said.
    """
    from megatron_r1.checkpoint.store import CheckpointStore, LoopState
    from megatron_r1.config.optimizer import OptimizerConfig
    from megatron_r1.stages.session import Session
    from megatron_r1.trainers.job import Job
    from megatron_r1.trainers.megatron_step import MegatronStep

    config = load_config(["model=tiny_v3", "model.num_mtp_layers=1", "model.hidden_size=192"])
    source = write_like_deepseek(tmp_path / "hub", config.model)
    import_hf(source, tmp_path / "megatron", show_progress=False)
    assert config.model.max_positions == 512
    config.model.max_positions = 1024
    step = MegatronStep(one_rank.policy(config), OptimizerConfig(lr=1e-3))
    session = Session(config, one_rank.host, step.policy.layout, tmp_path, Job(one_rank.host))
    stores = [CheckpointStore(tmp_path / run, keep=1, tokenizer_dir=None) for run in ("a", "b")]
    session.begin(stores[0], step, tmp_path / begun_from)
    note = f"note: {tmp_path / begun_from} was made for sequences of 512 tokens, and "
    assert note + "model.max_positions = 1024" in capsys.readouterr().out
    first = stores[0].save(LoopState(step=1), step.policy, step.optimizer)
    session.begin(stores[1], step, first)  # another stage
    assert "note" not in capsys.readouterr().out
    name = "decoder.layers.1.mlp.shared_experts.linear_fc2.weight"
    with torch.no_grad():
        dict(step.policy.named_parameters())[name][130, 3] = 0.7
    last = stores[1].save(LoopState(step=2), step.policy, step.optimizer)

    fp8 = WeightDtype.fp8
    for checkpoint, target in ((first, "untrained"), (last, "trained")):
        export_hf(checkpoint, tmp_path / target, dtype=fp8, show_progress=False)
    assert differences(source, tmp_path / "untrained") == []
    exported = json.loads((tmp_path / "untrained/config.json").read_text())
    assert exported["max_position_embeddings"] == 1024
    matrix = "model.layers.1.mlp.shared_experts.down_proj.weight"
    assert differences(source, tmp_path / "trained") == [matrix, matrix + "_scale_inv"]
    hubs = (SafetensorsDir(directory) for directory in (source, tmp_path / "trained"))
    old, new = (hub.tensor(matrix + "_scale_inv") for hub in hubs)
    assert (old != new).tolist() == [[False], [True]]  # rows 128 to 191


def test_prediction_layers_that_are_counted_and_missing_are_told(hub, spoiled, tmp_path):
    config = json.loads((spoiled / "config.json").read_text()) | {"num_nextn_predict_layers": 1}
    (spoiled / "config.json").write_text(json.dumps(config))
    note = (
        f"note: {spoiled / 'config.json'} counts 1 prediction layer(s) (num_nextn_predict_layers), "
        "and no file holds model.layers.4.*: taken as a model without"
    )
    config["num_nextn_predict_layers"] = 0
    (hub / "config.json").write_text(json.dumps(config))
    for arguments in ((IMPORT, "--dry-run"), (IMPORT,), ("inspect_checkpoint.py",)):
        target = [] if arguments[0] == "inspect_checkpoint.py" else [tmp_path / "out"]
        done = tool(arguments[0], spoiled, *target, *arguments[1:])
        assert done.returncode == 0 and note in done.stdout, done.stdout + done.stderr
    done = tool(IMPORT, hub, tmp_path / "none", "--dry-run")
    assert done.returncode == 0 and "note" not in done.stdout


def test_fp8_from_weights_that_never_were(hub, tmp_path):
    """The error of each weight is at most half a step of its block's code, 2^-4 of it or less."""
    import_hf(hub, tmp_path / "megatron", show_progress=False)
    export_hf(tmp_path / "megatron", tmp_path / "fp8", dtype=WeightDtype.fp8, show_progress=False)
    import_hf(tmp_path / "fp8", tmp_path / "again", show_progress=False)
    export_hf(tmp_path / "again", tmp_path / "back", show_progress=False)
    old, new = SafetensorsDir(hub), SafetensorsDir(tmp_path / "back")
    fp8 = SafetensorsDir(tmp_path / "fp8")
    name = "model.layers.1.mlp.experts.3.down_proj.weight"
    assert fp8.entries[name].dtype == "F8_E4M3"
    for kept in ("model.embed_tokens.weight", "model.layers.1.mlp.gate.weight"):
        assert fp8.entries[kept].dtype == "BF16"
    weight, again = old.tensor(name).float(), new.tensor(name).float()
    smallest = fp8.tensor(name + "_scale_inv").max() * 2.0**-9
    assert ((weight - again).abs() <= (weight.abs() * 2.0**-4 * 1.1).clamp(min=smallest)).all()


@pytest.mark.megatron
@pytest.mark.parametrize(
    ("family", "num_mtp_layers"),
    [*((family, 0) for family in sorted(FAMILIES)), ("deepseek_v3", 2), ("moonlight", 1)],
)
def test_keys_and_shapes_are_those_of_a_policy(family, num_mtp_layers, one_rank):
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories

    from megatron_r1.checkpoint.sharded_keys import sharded_specs

    policy = one_rank.policy(load_family(family, f"model.num_mtp_layers={num_mtp_layers}"))
    sharded = policy.sharded_state_dict()
    apply_factories(sharded)
    theirs = {
        tensor.key: tensor.global_shape
        for tensor in nested_values(sharded)
        if isinstance(tensor, ShardedTensor)
    }
    ours = sharded_specs(policy.config, name_table(policy.config), lambda _: torch.float32)
    missing, extra = theirs.keys() - ours.keys(), ours.keys() - theirs.keys()
    assert not missing and not extra, f"the table misses {missing} and has {extra} beyond"
    assert {key: spec.shape for key, spec in ours.items()} == theirs


@pytest.mark.megatron
@pytest.mark.parametrize("family", ["deepseek_v3", "qwen2.5"])
def test_check_compares_with_transformers(family, tmp_path):
    config = load_family(family).model
    source = write_with_transformers(tmp_path / "hub", config, dtype=torch.bfloat16)
    done = tool(IMPORT, source, tmp_path / "megatron", "--check")
    assert done.returncode == 0, done.stderr
    assert "logits of 32 tokens differ by" in done.stdout and "100% of them" in done.stdout
    assert "peak memory" in done.stdout
    # FP8 moves weights by up to 1 / 16, and the check sees it.
    message = refused(tmp_path / "megatron", tmp_path, EXPORT, "--dtype", "fp8", "--check")
    assert "differ" in message and "not kept" in message
    # bfloat16 has 8 bits of the 24.
    single = write_with_transformers(tmp_path / "single", config, dtype=torch.float32)
    message = refused(single, tmp_path, IMPORT, "--dtype", "bfloat16", "--check")
    assert "differ" in message and "not kept" in message


DOWN_PROJ = "model.layers.1.mlp.experts.3.down_proj.weight"


def rewrite(directory: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> str:
    """Change the tensors of the file that holds DOWN_PROJ; the file's name."""
    file = directory / json.loads(index_of(directory).read_text())["weight_map"][DOWN_PROJ]
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return file.name


def index_of(directory: Path) -> Path:
    return directory / "model.safetensors.index.json"


def refused(
    source: Path,
    tmp_path: Path,
    name: str = IMPORT,
    *options: str,
    destination: Path | None = None,
) -> str:
    """The one message of a conversion that must end with exit code 2 and leave nothing."""
    before = set(tmp_path.iterdir())
    done = tool(name, source, destination or tmp_path / "out", *options)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    messages = [line for line in done.stderr.splitlines() if "Error: " in line]
    assert len(messages) == 1, done.stderr
    assert set(tmp_path.iterdir()) == before
    return messages[0]


def test_missing_tensor(spoiled, tmp_path):
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    index = json.loads(index_of(spoiled).read_text())
    file = spoiled / index["weight_map"].pop(name)
    tensors = load_file(file)
    del tensors[name]
    save_file(tensors, file)
    index_of(spoiled).write_text(json.dumps(index))
    message = refused(spoiled, tmp_path)
    assert f"1 missing: {name}" in message and str(spoiled) in message


def test_tensor_that_only_the_index_has(spoiled, tmp_path):
    names = []
    file = rewrite(spoiled, lambda tensors: names.append(tensors.popitem()[0]))
    message = refused(spoiled, tmp_path)
    assert f"{file} does not hold {names[0]}" in message


def test_extra_tensor(spoiled, tmp_path):
    name = "model.layers.1.mlp.experts.99.up_proj.weight"
    file = rewrite(spoiled, lambda tensors: tensors.update({name: torch.zeros(2, 2)}))
    index = json.loads(index_of(spoiled).read_text())
    index["weight_map"][name] = file
    index_of(spoiled).write_text(json.dumps(index))
    assert f"1 unexpected: {name} in {file}" in refused(spoiled, tmp_path)


def test_misshapen_tensor(spoiled, tmp_path):
    def transpose(tensors):
        tensors[DOWN_PROJ] = tensors[DOWN_PROJ].T.contiguous()

    file = rewrite(spoiled, transpose)
    message = refused(spoiled, tmp_path)
    assert f"1 misshapen: {DOWN_PROJ} in {file}: [64, 128] instead of [128, 64]" in message


def test_nan(spoiled, tmp_path):
    def spoil(tensors):
        tensors[DOWN_PROJ][5, 7] = float("nan")
        tensors[DOWN_PROJ][9, 9] = float("-inf")

    file = rewrite(spoiled, spoil)
    message = refused(spoiled, tmp_path)
    assert f"{file}: 2 of 8192 numbers of {DOWN_PROJ} are NaN or infinite" in message


def test_truncated_file(spoiled, tmp_path):
    file = sorted(spoiled.glob("model-*.safetensors"))[2]
    os.truncate(file, file.stat().st_size - 1)
    message = refused(spoiled, tmp_path)
    assert f"{file} is cut short" in message and " ends at " in message
    os.truncate(file, 4)
    assert f"{file} is cut short" in refused(spoiled, tmp_path)


def test_missing_file(spoiled, tmp_path):
    file = sorted(spoiled.glob("model-*.safetensors"))[2]
    file.unlink()
    message = refused(spoiled, tmp_path)
    assert f"{file} is missing" in message and "model." in message


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "architectures = ['GPT2LMHeadModel']"),
        ({"num_hidden_layers": 5}, "missing: model.layers.4."),
        ({"kv_lora_rank": 48}, "kv_a_proj_with_mqa.weight in model-"),
        ({"vocab_size": 0}, "config.json: model.vocab_size must be > 0, got 0"),
        ({"scoring_func": "softmax"}, "scoring_func"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers = '2' is no int"),
        ({"rms_norm_eps": "1e-6"}, "rms_norm_eps = '1e-6' is no float"),
        ({"rope_parameters": "yarn"}, "rope_parameters = 'yarn' is no JSON object"),
        ({"architectures": 5}, "architectures = 5 is no list"),
        ({"model_type": "llama"}, "model_type"),
    ],
)
def test_wrong_config(spoiled, tmp_path, change, expected):
    config = json.loads((spoiled / "config.json").read_text())
    (spoiled / "config.json").write_text(json.dumps(config | change))
    assert expected in refused(spoiled, tmp_path)


def test_damaged_config_and_no_model_at_all(spoiled, tmp_path):
    (spoiled / "config.json").write_text("{")
    assert f"{spoiled / 'config.json'} cannot be read" in refused(spoiled, tmp_path)
    (spoiled / "config.json").unlink()
    assert f"{spoiled} is no Hugging Face model" in refused(spoiled, tmp_path)


@pytest.fixture
def imported(hub, tmp_path) -> Path:
    import_hf(hub, tmp_path / "megatron", file_bytes=500_000, show_progress=False)
    return tmp_path / "megatron"


def test_damaged_checkpoints_are_not_exported(imported, tmp_path):
    file = sorted((imported / "policy").glob("*.distcp"))[1]
    content = file.read_bytes()
    os.truncate(file, len(content) // 2)
    assert file.name in refused(imported, tmp_path, EXPORT)
    # A bfloat16 NaN in place of a number, somewhere in the middle of a tensor.
    middle = len(content) // 2 & ~1
    file.write_bytes(content[:middle] + b"\xff\xff" + content[middle + 2 :])
    message = refused(imported, tmp_path, EXPORT)
    assert f"{file}: 1 of " in message and "are NaN" in message and " decoder." in message
    file.unlink()
    assert file.name in refused(imported, tmp_path, EXPORT)


def test_a_checkpoint_of_another_shape_is_not_exported(imported, tmp_path):
    record = json.loads((imported / "state.json").read_text())
    record["model"]["hidden_size"] = 256
    (imported / "state.json").write_text(json.dumps(record))
    message = refused(imported, tmp_path, EXPORT)
    assert "has shape [512, 128]" in message and "[512, 256]" in message


def altered(record: dict, path: str, value: object) -> dict:
    """A copy with the value at a path such as model.rope.theta; None takes it out."""
    copy = json.loads(json.dumps(record))
    *parents, last = path.split(".")
    place = copy
    for key in parents:
        place = place[key]
    place[last] = value
    if value is None:
        del place[last]
    return copy


DAMAGES = [
    ("files", ["policy/common.pt"], "files is damaged: ['policy/common.pt'] instead of an object"),
    ("files", {"policy/common.pt": "10"}, "files['policy/common.pt'] is damaged: '10' instead of"),
    ("model", [1], "model is damaged: [1] instead of an object"),
    ("model", None, "is damaged: it lacks model"),
    ("model.num_layers", "4", "model.num_layers is damaged: '4' instead of a whole number"),
    ("model.num_layers", True, "model.num_layers is damaged: True instead of a whole number"),
    ("model.num_layers", -4, "model is damaged: model.num_layers must be > 0"),
    ("model.num_layers", None, "describes a model that this version does not know"),
    ("model.rope", [], "model.rope is damaged: [] instead of an object"),
    ("model.rope.theta", "big", "model.rope.theta is damaged: 'big' instead of a number"),
    ("model.rope.scaling", "ntk", "model.rope.scaling is damaged: 'ntk' is none of none, yarn"),
    ("model.rope.scaling", {}, "model.rope.scaling is damaged: {} is none of none, yarn"),
    ("model.rope.extra", 1, "model.rope is damaged: nothing is called extra"),
    ("loop", 3, "loop is damaged: 3 instead of an object"),
    ("layout", None, "is damaged: it lacks layout"),
    ("head", "two", "is damaged: head is 'two', none of vocabulary, scalar"),
    ("head", [], "is damaged: head is [], none of vocabulary, scalar"),
    ("format", [], "was not written by this program"),
]


def test_a_damaged_record_is_one_message(imported, tmp_path):
    state_file = imported / "state.json"
    record = json.loads(state_file.read_text())
    for path, value, expected in DAMAGES:
        state_file.write_text(json.dumps(altered(record, path, value)))
        assert expected in refused(imported, tmp_path, EXPORT), path
        done = tool("inspect_checkpoint.py", imported)
        assert done.returncode == 2 and expected in done.stderr, (path, done.stderr)
        assert len(done.stderr.splitlines()) == 1 and str(imported) in done.stderr, done.stderr


def test_a_record_that_contradicts_the_tensors(imported, tmp_path):
    """Five layers lack tensors, three have some over; four are there."""
    state_file = imported / "state.json"
    record = json.loads(state_file.read_text())
    for layers, expected in ((5, " lacks decoder.layers.4."), (3, " holds decoder.layers.3.")):
        state_file.write_text(json.dumps(altered(record, "model.num_layers", layers)))
        assert expected in refused(imported, tmp_path, EXPORT)
        done = tool("inspect_checkpoint.py", imported)
        assert done.returncode == 2 and expected in done.stderr, done.stdout


def test_a_destination_that_exists_is_left_alone(hub, imported, tmp_path):
    for name, source in ((IMPORT, hub), (EXPORT, imported)):
        done = tool(name, source, imported)
        assert done.returncode == 2 and "exists already" in done.stderr
    assert read_state(imported)


def test_killed_conversions_go_on_where_they_were(tmp_path):
    """Killed when the first file is whole: the next start keeps it and writes the others."""
    config = load_config(
        ["model=tiny_v3", "model.num_experts=64", "model.moe_ffn_hidden_size=512"]
    ).model
    hub = write_like_deepseek(tmp_path / "hub", config)
    sizes = {IMPORT: ("--file-gb", 0.004), EXPORT: ("--shard-gb", 0.004)}
    runs = ((IMPORT, hub, "megatron", "policy/*.distcp"), (EXPORT, None, "back", "*.safetensors"))
    for name, source, target, pattern in runs:
        source = source or tmp_path / "megatron"
        extra = ("--dtype", "fp8") if name == EXPORT else ()
        command = [sys.executable, ROOT / "tools" / name, source, tmp_path / target]
        command += [*sizes[name], *extra]
        process = subprocess.Popen([str(c) for c in command], stderr=subprocess.DEVNULL)
        partial = tmp_path / f".partial_{target}"
        deadline = time.monotonic() + 200
        while not list(partial.glob(pattern)):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (tmp_path / target).exists()
        finished = {p.name: p.stat().st_mtime_ns for p in partial.glob(pattern)}
        done = tool(name, source, tmp_path / target, *sizes[name], *extra)
        assert done.returncode == 0, done.stderr
        assert not partial.exists()
        written = {p.name: p.stat().st_mtime_ns for p in (tmp_path / target).glob(pattern)}
        assert len(written) > len(finished) and finished.items() <= written.items()
    assert differences(hub, tmp_path / "back") == []


def test_another_source_does_not_go_on_with_a_killed_one(hub, tmp_path):
    from megatron_r1.checkpoint.draft import draft_directory

    with pytest.raises(KeyboardInterrupt), draft_directory(tmp_path / "out", {"from": 1}) as draft:
        (draft / "file").touch()
        raise KeyboardInterrupt
    with draft_directory(tmp_path / "out", {"from": 2}) as draft:
        assert not list(draft.iterdir())
    assert (tmp_path / "out").is_dir()


def test_dry_run_of_671b_needs_config_and_index_alone(tmp_path):
    """DeepSeek-R1's index has 91,991 entries (huggingface.co/deepseek-ai/DeepSeek-R1)."""
    config = load_config(["model=deepseek_v3", "model.num_mtp_layers=1"]).model
    names = []
    for mapping in name_table(config):
        names += [*mapping.hf, *mapping.copies]
        for name, shape in zip(mapping.hf, mapping.shapes, strict=True):
            if len(shape) == 2 and (".self_attn." in name or ".mlp." in name):
                if "mlp.gate." not in name:
                    names.append(name + "_scale_inv")
    assert len(names) == 91_991
    (tmp_path / "config.json").write_text(json.dumps(hf_config(config)))
    weight_map = dict.fromkeys(names, "model-00001-of-000163.safetensors")
    index_of(tmp_path).write_text(json.dumps({"weight_map": weight_map}))
    started = time.monotonic()
    done = tool(IMPORT, tmp_path, tmp_path / "out", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started < 30
    assert "every tensor is covered" in done.stdout
    assert "[2048, 7168]" in done.stdout and "model.layers.*.mlp.experts.*.up_proj" in done.stdout
    lost = "model.layers.61.shared_head.norm.weight"
    del weight_map[lost]
    index_of(tmp_path).write_text(json.dumps({"weight_map": weight_map}))
    done = tool(IMPORT, tmp_path, tmp_path / "out", "--dry-run")
    assert done.returncode == 2 and f"1 missing: {lost}" in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_model_of_a_checkpoint_is_read_back(imported):
    config = saved_config(imported, read_state(imported))
    assert config.kv_lora_rank == 32 and config.rope.factor == 4.0
    assert config.num_mtp_layers == 0  # transformers writes none


def test_a_model_that_went_on_with_longer_sequences_keeps_the_rest_of_its_config(
    imported, tmp_path
):
    state_file = imported / "state.json"
    record = altered(json.loads(state_file.read_text()), "model.max_positions", 2048)
    state_file.write_text(json.dumps(record))
    export_hf(imported, tmp_path / "back", show_progress=False)
    old = json.loads((imported / "tokenizer/config.json").read_text())
    new = json.loads((tmp_path / "back/config.json").read_text())
    assert "use_cache" in old and old["max_position_embeddings"] == 512  # of no use to us
    changed = {key for key in old | new if old.get(key) != new.get(key)}
    assert changed == {"max_position_embeddings", "dtype", "torch_dtype"}
    assert new["max_position_embeddings"] == 2048


def test_a_destination_that_is_filled_meanwhile_keeps_what_it_has(hub, tmp_path):
    final = tmp_path / "out"
    with pytest.raises(CheckpointError, match="exists already"):
        with draft_directory(final, {}) as draft:
            (draft / "work").write_text("done")
            final.mkdir()
            (final / "precious.txt").write_text("mine")
    assert (final / "precious.txt").read_text() == "mine"
    (final / "precious.txt").unlink()
    with draft_directory(final, {}) as draft:  # the finished work is still there
        assert (draft / "work").exists()
    assert (final / "work").read_text() == "done"


def test_destinations_that_cannot_be(hub, tmp_path):
    (tmp_path / "file").touch()
    for target in (tmp_path / "file" / "out", tmp_path / ("x" * 250), Path("/proc/x/out")):
        assert "cannot be written to" in refused(hub, tmp_path, destination=target)
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    assert tool(IMPORT, hub, tmp_path / "link").returncode == 0
    assert read_state(tmp_path / "empty")


def test_a_number_that_the_new_type_cannot_hold(spoiled, tmp_path):
    def enlarge(tensors):
        tensors[DOWN_PROJ][0, 0] = 1e6

    rewrite(spoiled, enlarge)
    message = refused(spoiled, tmp_path, IMPORT, "--dtype", "float16")
    assert f"{DOWN_PROJ} holds 9.994e+05, which float16 does not" in message  # as bfloat16


def test_a_full_disk_is_what_a_chunk_says_of_it(tmp_path):
    with (
        open("/dev/full", "wb", buffering=0) as full,
        pytest.raises(OSError, match="No space left") as failed,
        draft_directory(tmp_path / "out", {}),
    ):
        ChunkFile("full", full).write("key", (0,), (4096,), torch.zeros(4096))
    partial = tmp_path / ".partial_out"  # to go on with
    assert failed.value.filename == str(partial) and partial.is_dir()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("shift", [-64, 64, 0.5])
def test_tensors_in_places_that_are_not_theirs(spoiled, tmp_path, shift):
    file = next(spoiled.glob("*.safetensors"))
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    last = max(header, key=lambda name: header[name].get("data_offsets", [0])[0])
    header[last]["data_offsets"] = [place + shift for place in header[last]["data_offsets"]]
    changed = json.dumps(header).encode()
    file.write_bytes(len(changed).to_bytes(8, "little") + changed + content[8 + length :])
    message = refused(spoiled, tmp_path)
    assert file.name in message and last in message


def test_bytes_behind_the_last_tensor(spoiled, tmp_path):
    file = next(spoiled.glob("*.safetensors"))
    file.write_bytes(file.read_bytes() + bytes(1000))
    assert f"{file.name} has 1000 bytes behind its last tensor" in refused(spoiled, tmp_path)
