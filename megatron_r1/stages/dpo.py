"""Direct preference optimisation (arXiv:2305.18290) on a file of pairs."""

from __future__ import annotations

from pathlib import Path

from megatron_r1.checkpoint.record import REFERENCE
from megatron_r1.config.stage import DpoStageConfig
from megatron_r1.data.examples import Example, response_row
from megatron_r1.data.preferences import PreferencePair, read_preferences
from megatron_r1.data.templates import render
from megatron_r1.data.tokenizer import Tokenizer
from megatron_r1.models.weight_bank import WeightBank
from megatron_r1.parallel.exchange import on_main_rank
from megatron_r1.stages.example_files import read_examples
from megatron_r1.stages.session import Session, check_not_past
from megatron_r1.telemetry.files import write_json
from megatron_r1.trainers.megatron_step import MegatronStep
from megatron_r1.trainers.preference import DpoLoopConfig, share_ordered_right, train_dpo
from megatron_r1.trainers.supervised import SupervisedParts


def run_dpo(
    session: Session, stage: DpoStageConfig, run_dir: Path, init_from: Path
) -> MegatronStep:
    """Train, or go on training, in `run_dir`. Returns the policy as it ended."""
    config = session.config
    tokenizer = session.tokenizer(init_from)
    pairs = read_pairs(session, stage, stage.examples, tokenizer)
    heldout = [] if stage.heldout is None else read_pairs(session, stage, stage.heldout, tokenizer)
    num_steps = stage.num_steps(len(pairs))
    megatron_step = session.megatron_step(tokenizer, config.optimizer, mtp_loss=0.0)
    bank = WeightBank(megatron_step.policy)
    store = session.store(run_dir, stage, tokenizer)
    state = session.begin(store, megatron_step, init_from, bank)
    check_not_past(state.step, num_steps, run_dir)
    if REFERENCE not in bank:
        bank.store(REFERENCE)
    with session.recorder(run_dir, "dpo", first_step=state.step, num_steps=num_steps) as recorder:
        parts = SupervisedParts(
            megatron_step=megatron_step,
            store=store,
            recorder=recorder,
            job=session.job,
            bank=bank,
        )
        settings = DpoLoopConfig(
            stage=stage, algo=config.algo, optimizer=config.optimizer, seed=config.run.seed
        )
        train_dpo(parts, settings, pairs, state)
    if heldout:
        share = share_ordered_right(heldout, megatron_step.policy, bank)
        session.say(f"dpo: {share:.3f} of {len(heldout)} held-out pairs are ordered right")
        result = {"step": num_steps, "pairs": len(heldout), "ordered_right": share}
        on_main_rank(lambda: write_json(run_dir / "eval/pairs.json", result))
    return megatron_step


def read_pairs(
    session: Session, stage: DpoStageConfig, path: str, tokenizer: Tokenizer
) -> list[Example]:
    """A file's pairs as rows, chosen and rejected; the same on every rank."""
    template = session.config.data.template
    found = read_examples(session, read_preferences, path)
    pairs = [pair_rows(pair, template, tokenizer) for pair in found]
    return session.without_long(pairs, path, max_tokens=stage.max_tokens)


def pair_rows(pair: PreferencePair, template: str, tokenizer: Tokenizer) -> Example:
    prompt = render(template, pair.prompt)
    return tuple(response_row(prompt, text, tokenizer) for text in (pair.chosen, pair.rejected))
