"""Export checkpoints in a process of its own, and print as JSON what the last took: python -m tests.hf.exporting.measured_export …

Arguments: CHECK FOLDER …. The ones before it have everything imported, so that only weights can add to the peak.
"""

import json
import sys
from pathlib import Path

from megamesh.checkpoint.inference import open_checkpoint
from megamesh.hf.exporting.export import export_model
from megamesh.hf.exporting.source import checkpoint_source

if __name__ == "__main__":
    check, *folders = sys.argv[1:]
    for folder in map(Path, folders):
        opened = open_checkpoint(folder)
        report = export_model(
            checkpoint_source(opened),
            opened.tokenizer,
            folder.with_name(f"{folder.name}-hf"),
            dtype="bfloat16",
            check=check,
        )
    rise = report.peak_bytes - report.peak_before_bytes
    sys.stdout.write(json.dumps({"bound": report.bound_bytes, "rise": rise, "weights": report.weight_bytes}) + "\n")
