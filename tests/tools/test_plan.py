"""tools/plan.py: text, JSON and picture, and one error for what cannot be planned."""

import json
from pathlib import Path

import pytest

from tools.plan import main

MODEL = """\
num_layers: 10
hidden_size: 64
num_attention_heads: 4
max_position_embeddings: 64
no_weight_tying: true
recursion: 2+2R3+2
vocab_size: 500
train_batch_size: 16
precision: fp32
"""


@pytest.fixture
def model(tmp_path: Path) -> str:
    path = tmp_path / "model.yml"
    path.write_text(MODEL)
    return str(path)


def test_json_holds_what_the_text_shows(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([model, "--gpus", "4", "--json", "--top", "3"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert main([model, "--gpus", "4", "--top", "3"]) == 0
    text = capsys.readouterr().out
    assert len(report["layouts"]) == 3 and report["cluster"]["num_gpus"] == 4
    assert "from FLOPs at 40% of 989 TFLOP/s" in text and f"3 of {report['num_possible']} possible layouts" in text
    for layout in report["layouts"]:
        assert f"{layout['num_micro_batches']} × {layout['micro_batch_size']}" in text
        assert f"{layout['tokens_per_second']:,.0f}" in text


def test_the_first_one_s_keys_are_accepted_by_a_dry_run(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    from tools.train import main as train

    assert main([model, "--gpus", "4", "--layout", "2,2,1"]) == 0
    (keys,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  --set")]
    assert train(["--dry-run", "--world-size", "4", model, *keys.split()]) == 0
    assert "4 = 2 pipeline × 1 data × 2 tensor with sequence_parallel" in capsys.readouterr().out


def test_measured_seconds_decide_the_time(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measured = tmp_path / "measured.json"
    measured.write_text('{"block_forward": 1, "block_backward": 2, "head": 0}')
    for options in (["--measured", str(measured)], ["--layer-seconds", "1,2"]):
        assert main([model, "--gpus", "1", "--json", *options]) == 0
        best = json.loads(capsys.readouterr().out)["layouts"][0]
        assert best["seconds_per_step"] == pytest.approx(16 * 10 * 3, rel=0.1)


def test_a_picture_of_the_fastest_pipeline(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "timeline.png"
    assert main([model, "--gpus", "2", "--layout", "1,2,1", "--plot", str(path)]) == 0
    assert f"drew tp 1 pp 2 dp 1 to {path}" in capsys.readouterr().out
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--gpus", "0"], "'0' is not a number from 1 up"),
        (["--gpus", "4", "--efficiency", "1.5"], "is more than 1"),
        (["--gpus", "4", "--bandwidth-gbps", "3"], "is not two numbers"),
        (["--gpus", "4", "--peak-tflops", "3", "--layer-seconds", "1,2"], "not allowed with argument"),
        (["--gpus", "4", "--layout", "2,2"], "is not tp,pp,dp"),
        (["--gpus", "4", "--layout", "2,4,1"], "--layout 2,4,1 does not take --gpus 4"),
        (["--gpus", "4", "--plot", "x.docx"], "does not end in"),
        (["--gpus", "1", "--plot", "x.png"], "none of the layouts shown has a pipeline"),
        (["--gpus", "4", "--measured", "missing.json"], "--measured missing.json is not a JSON object"),
        (["--gpus", "4", "--set", "train_batch_size=null"], "train_batch_size is not given"),
        (["--gpus", "3", "--gpu-memory-gib", "0.001"], "no layout on 3 GPUs is possible"),
    ],
)
def test_what_cannot_be_planned_is_one_error(
    options: list[str], text: str, model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    try:
        status = main([model, *options])
    except SystemExit as left:
        status = left.code
    assert status != 0 and text in capsys.readouterr().err and not (tmp_path / "x.png").exists()
