"""tools/train.py, killed with SIGKILL at a moment that the first argument names.

    step:13                 all ranks, after step 13
    micro-batch:13:2        rank 2, in step 13, before its second micro-batch
    save:20:before-rename   in the save of step 20

Run by the launcher in place of tools/train.py; nothing of this is in the product.
"""

import os
import signal
import sys

import torch.distributed as dist

from megamesh.checkpoint import folder as folders
from megamesh.config.load import load_config
from megamesh.log import configure_logging
from megamesh.training.hooks.progress import ProgressHook
from megamesh.training.run import run
from megamesh.training.trainer import Trainer


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arrange_death(moment: str) -> None:
    kind, step, *detail = moment.split(":")
    if kind == "step":
        after_step = ProgressHook.after_step

        def dying_after_step(hook, trainer, result) -> None:
            after_step(hook, trainer, result)
            if trainer.state.step == int(step):
                die()

        ProgressHook.after_step = dying_after_step
        return
    if kind == "micro-batch":
        rank, micro_batches = int(detail[0]), Trainer._micro_batches

        def dying_inside_a_step(trainer):
            for number, inputs in enumerate(micro_batches(trainer), 1):
                if (dist.get_rank(), trainer.state.step + 1, number) == (rank, int(step), 2):
                    die()
                yield inputs

        Trainer._micro_batches = dying_inside_a_step
        return
    name = {"before-rename": "publish", "before-latest": "replace_text"}[detail[0]]
    original = getattr(folders, name)

    def dying(*args):
        if f"global_step{step}" in str(args):
            die()
        return original(*args)

    setattr(folders, name, dying)


if __name__ == "__main__":
    arguments = [argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")]
    configure_logging()
    arrange_death(arguments[0])
    run(load_config(arguments[1:]))
