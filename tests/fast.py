"""What `bash tests/run.sh --fast` leaves out: files that take more than five seconds, but for a run of each axis.

A new file belongs to the fast run until it is named here.
"""

from pathlib import Path

import pytest

TESTS = Path(__file__).parent
SLOW = [
    "benchmark/test_benchmark.py",
    "benchmark/test_data.py",
    "checkpoint/test_background.py",
    "checkpoint/test_inspection.py",
    "checkpoint/test_kill.py",
    "checkpoint/test_memory.py",
    "checkpoint/test_round_trip.py",
    "checkpoint/test_save_load.py",
    "checkpoint/test_tensor_parallel.py",
    "data/preprocessing/test_run.py",
    "engine/test_engine.py",
    "engine/test_fp16.py",
    "engine/test_liveness.py",
    "engine/test_mpu.py",
    "engine/test_pipeline.py",
    "engine/test_quiet_deepspeed.py",
    "engine/test_tensor_parallel.py",
    "engine/test_zero_access.py",
    "evaluation/test_likelihood.py",
    "evaluation/test_lm_eval.py",
    "examples/test_quickstart.py",
    "examples/test_readme_commands.py",
    "generation/test_tensor_parallel.py",
    "hf/exporting/test_checks.py",
    "hf/exporting/test_export_memory.py",
    "hf/importing/test_import_memory.py",
    "hf/importing/test_importing.py",
    "hf/remote/test_modeling_megamesh.py",
    "model/test_compile.py",
    "model/test_parallel_dropout.py",
    "model/test_tensor_parallel.py",
    "pipeline/test_ring.py",
    "test_distributed.py",
    "tokenizer/test_engines.py",
    "tokenizer/test_tokenizer.py",
    "tools/test_evaluate.py",
    "tools/test_generate.py",
    "tools/test_train.py",
    "training/test_async_save.py",
    "training/test_blended_run.py",
    "training/test_chain.py",
    "training/test_kill.py",
    "training/test_layouts.py",
    "training/test_lost_rank.py",
    "training/test_run.py",
    "training/test_token_weights.py",
    "training/test_vocabulary.py",
    "upcycling/test_upcycle.py",
]
AXES = {
    "tensor": "training/test_layouts.py::test_a_divided_run_is_that_of_one_process[split]",
    "pipeline": "training/test_layouts.py::test_a_divided_run_is_that_of_one_process[ring]",
    "data": "engine/test_engine.py::test_two_processes_at_every_stage_follow_plain_torch[2-1]",
    "ZeRO 3": "engine/test_engine.py::test_two_processes_at_every_stage_follow_plain_torch[2-3]",
    "checkpoints": "training/test_run.py::test_a_checkpoint_continues_on_another_number_of_processes_and_zero_stage",
    "exports": "hf/remote/test_modeling_megamesh.py::test_every_scheme_gives_our_logits[mesh]",
}


def keeps(item: pytest.Item) -> bool:
    """Whether a test is part of the fast run."""
    file, _, test = item.nodeid.removeprefix("tests/").partition("::")
    return file not in SLOW or f"{file}::{test}" in AXES.values()


def needs(path: Path) -> bool:
    """Whether any test of a file is."""
    file = str(path.relative_to(TESTS))
    return file not in SLOW or any(test.startswith(f"{file}::") for test in AXES.values())
