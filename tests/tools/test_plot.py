"""tools/plot.py: pictures of runs, and one error for what cannot be drawn."""

import json
from pathlib import Path

import pytest

from tools.plot import main


@pytest.fixture
def save(tmp_path: Path):
    rows = [{"kind": kind, "step": 1, "consumed_tokens": 64, "loss": 3.0} for kind in ("train", "valid")]
    rows.append({"kind": "valid", "step": 1, "loss": 2.0})  # of a user's hook
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
def test_a_loss_curve_is_drawn(suffix: str, save) -> None:
    picture = save / f"loss{suffix}"
    assert main(["loss", "--run", f"mesh={save}", "--line", "unigram=6.8", "--output", str(picture)]) == 0
    assert picture.stat().st_size > 1000


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("loss", "--run", "{save}", "--output", "x.png"), "has no '='"),
        (("loss", "--run", "a={save}", "--line", "u=low", "--output", "x.png"), "'low' is not a number"),
        (("loss", "--run", "a={save}", "--output", "x.docx"), "does not end in .png, .pdf, .svg"),
        (("loss", "--run", "a={save}", "--output", "/dev/null/x.png"), "nothing can be made in '/dev/null'"),
        (("loss", "--run", "a={save}/none", "--output", "x.png"), "a={save}/none is not a run's save folder"),
        (("loss", "--run", "a={save}", "--run", "a={save}", "--output", "x.png"), "is a second run of that name"),
        (("routers", "--checkpoint", "{save}", "--samples", "0", "--output", "x.png"), "'0' is not a number from 1 up"),
        (("routers", "--checkpoint", "{save}", "--output", "x.png"), "{save}"),
    ],
)
def test_bad_input_is_one_error_and_no_picture(
    options, text: str, save, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(save)
    try:
        status = main([option.format(save=save) for option in options])
    except SystemExit as left:
        status = left.code
    assert status != 0 and not (save / "x.png").exists()
    assert text.format(save=save) in capsys.readouterr().err


def test_a_run_without_losses_is_refused(save, capsys: pytest.CaptureFixture[str]) -> None:
    (save / "metrics.jsonl").write_text("")
    assert main(["loss", "--run", f"a={save}", "--output", str(save / "x.png")]) == 1
    assert "has logged no loss yet" in capsys.readouterr().err
