"""The code that travels with an export of our own architecture.

megamesh/hf/remote/        ──▶ configuration_, blocks_ and modeling_megamesh.py
the scheme's remote_code   ──▶ recursion_megamesh.py
"""

import hashlib
import shutil
from pathlib import Path

from megamesh.config.keys import RecursionConfig
from megamesh.errors import CheckpointError
from megamesh.hf import remote
from megamesh.model.recursion.scheme import OUR_REMOTE_CODE, describe

REMOTE_FOLDER = Path(remote.__path__[0])
CONFIGURATION, RECURSION = "configuration_megamesh.py", "recursion_megamesh.py"
SHARED = (CONFIGURATION, "blocks_megamesh.py", "modeling_megamesh.py")


def recursion_code(recursion: RecursionConfig) -> Path:
    """The file that computes the scheme in an export. CheckpointError where the scheme brings none, or none that is there."""
    if recursion.layout is None:
        return OUR_REMOTE_CODE
    scheme, named = describe(recursion), f"recursion_scheme={recursion.recursion_scheme}"
    if scheme.remote_code is None:
        raise CheckpointError(
            f"{named} brings no remote code, without which transformers cannot compute it: write a file with build_routers and "
            f"build_recursion, as {OUR_REMOTE_CODE.name} has them, and let the scheme's remote_code name it"
        )
    if not scheme.remote_code.is_file():
        raise CheckpointError(f"{named}: its remote_code, {scheme.remote_code}, is not a file that is there")
    return scheme.remote_code


def copy_remote_code(recursion: RecursionConfig, folder: Path) -> None:
    """Put the code into an export."""
    code = recursion_code(recursion)
    for file in SHARED:
        shutil.copyfile(REMOTE_FOLDER / file, folder / file)
    shutil.copyfile(code, folder / RECURSION)
    if code != OUR_REMOTE_CODE:
        # transformers knows a model class by its configuration's class, and that by its source: within one process two exports with
        # other recursions and the same configuration file would both be the one that was loaded first.
        with (folder / CONFIGURATION).open("a", encoding="utf-8") as configuration:
            configuration.write(
                f"# of the model whose {RECURSION} is {hashlib.sha256(code.read_bytes()).hexdigest()}\n"
            )
