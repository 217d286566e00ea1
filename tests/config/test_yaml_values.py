"""Words of YAML: which are numbers, which are text, and what one line says of those that are neither."""

import shlex
from pathlib import Path

import pytest
import yaml

from megamesh.config.load import load_config
from megamesh.config.yaml_files import parse_override, read_files, yaml_text
from megamesh.config.yaml_values import read_value
from megamesh.errors import ConfigError

from .conftest import VALID

TEXT = [
    "0.95,0.05,0", "98.5,1.5,0", "1.4b-mesh", "10.0.0.1", "2024.01.05", "1e3/data", "1.2.3", ".5e", "1.5e5x", "1e5b", "08", "0o17", "e5",
    "1e", "..5", "_1", "1-2", "2024-01-05", "2024-13-45", "2001-12-14t21:59:43", "=", "<<", "0x_", "0b_", "1:30.5", "4+8R2+4",
]  # fmt: skip
NUMBERS = {
    "1e-5": 1e-5, "1E5": 1e5, "1e5": 1e5, ".5e3": 500.0, ".5": 0.5, "1.": 1.0, "1.e2": 100.0, "1_000.5": 1000.5, "+1.5": 1.5,
    "-2.5e-3": -2.5e-3, "-.inf": -float("inf"), "12:30:00": 45000, "0x1F": 31, "010": 8, "1_000": 1000, "-3": -3, "0": 0,
}  # fmt: skip
TEXT_KEYS = ("save", "data_path", "data_cache_path", "tensorboard_dir", "load")


def keys(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.yml"
    path.write_text("".join(f"{key}: {yaml_text(value)}\n" for key, value in VALID.items() if key not in text) + text)
    return path


@pytest.mark.parametrize("word", TEXT)
def test_a_word_that_only_begins_like_a_number_is_text(word: str) -> None:
    assert read_value(word)[0] == word


@pytest.mark.parametrize("word", NUMBERS)
def test_numbers_stay_numbers(word: str) -> None:
    value = read_value(word)[0]
    assert value == NUMBERS[word] and type(value) is type(NUMBERS[word])


def test_plain_yaml_is_read_as_pyyaml_reads_it() -> None:
    for word in [
        *TEXT,
        *NUMBERS,
        "on",
        "off",
        "yes",
        "No",
        "y",
        "~",
        "null",
        "true",
        "'1.5'",
        '"1e5"',
        ".nan.",
        "a b",
        "1 2",
    ]:
        try:
            theirs = yaml.safe_load(word)
        except (yaml.YAMLError, ValueError):
            continue  # =, <<, 0x_ and impossible dates
        ours = read_value(word)[0]
        if type(theirs).__name__ in ("date", "datetime") or (isinstance(ours, float) and isinstance(theirs, str)):
            continue  # the two differences that are meant
        assert ours == theirs or word == "1:30.5", word


def test_a_date_and_an_exponent_are_what_the_reference_says() -> None:
    assert read_value("2024-01-05")[0] == "2024-01-05" and read_value("1e-5")[0] == 1e-5


@pytest.mark.parametrize(
    "word", ["1.50", "2024", "007", "0x1F", "12:30:00", "1e3", "1_000", "-1", ".inf", "2024-01-05", "1.4b-mesh"]
)
def test_a_key_of_text_takes_a_number_as_it_is_spelled(tmp_path: Path, word: str) -> None:
    path = keys(tmp_path, "".join(f"{key}: {word}\n" for key in TEXT_KEYS))
    run = load_config([path]).run
    found = {
        run.checkpoint.save,
        run.checkpoint.load,
        run.data.data_path,
        run.data.data_cache_path,
        run.log.tensorboard_dir,
    }
    assert found == {word}
    loaded = load_config([path], dict([parse_override(f"save={word}")]))
    assert loaded.run.checkpoint.save == word
    # What a checkpoint keeps of the command line reads as the same.
    (tmp_path / "overrides.yml").write_text(loaded.sources["overrides.yml"])
    path.write_text(path.read_text().replace(f"save: {word}\n", ""))
    assert load_config([path, tmp_path / "overrides.yml"]).run.checkpoint.save == word


def test_a_list_of_texts_takes_numbers_as_they_are_spelled(tmp_path: Path) -> None:
    text = "data_path: null\ntrain_data_paths: [2024, c4, 1.50, '007', 2024-01-05]\nvalid_data_paths:\n- 010\n"
    data = load_config([keys(tmp_path, text)]).run.data
    assert data.train_data_paths == ["2024", "c4", "1.50", "007", "2024-01-05"] and data.valid_data_paths == ["010"]


@pytest.mark.parametrize("setting", ["split=0.95,0.05,0", "split='0.95,0.05,0'", 'split="0.95,0.05,0"'])
def test_shares_of_a_split_need_no_quotes(tmp_path: Path, setting: str) -> None:
    run = load_config([keys(tmp_path, "")], dict([parse_override(setting)])).run
    assert run.data.split_shares == pytest.approx((0.95, 0.05, 0))
    assert load_config([keys(tmp_path, "split: 0.95,0.05,0\n")]).run.data == run.data


BROKEN = {
    "seed: !!int abc": "seed is not valid YAML: 'abc' cannot be read as int; write text in quotes",
    "save: !!timestamp 2024-13-45": "'2024-13-45' cannot be read as timestamp",
    "save: !!timestamp x": "'x' cannot be read as timestamp",
    "compile: !!bool maybe": "'maybe' cannot be read as bool",
    "save: !!python/object/apply:os.getcwd []": "could not determine a constructor for the tag",
    "save: !mine x": "could not determine a constructor for the tag '!mine'",
    "save: !!binary é": "failed to convert base64 data",
    "extra_save_iters: &x [*x]": "found unconstructable recursive node",
    "optimizer: &x {type: *x}": "found unconstructable recursive node",
    "optimizer: {[1]: 2}": "found unhashable key",
    "seed: &a 1\nsave: &a x": "found duplicate anchor 'a'",
    "seed: *a": "found undefined alias 'a'",
    "save:\n\t- a": "cannot start any token",
    'save: "\\UFFFFFFFF"': "writes a character by a number that none has",
    "save: a\n---\nseed: 1": "found another document",
}


@pytest.mark.parametrize("text", BROKEN)
def test_whatever_cannot_be_read_is_one_line_with_file_and_line(tmp_path: Path, text: str) -> None:
    path = keys(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config([path])
    (problem,) = caught.value.problems
    first = path.read_text().count("\n", 0, -len(text) or None) + 1
    assert BROKEN[text] in problem and "\n" not in problem
    assert problem.startswith(tuple(f"{path}:{line}: " for line in (first, first + 1)))


def test_one_bad_value_does_not_hide_the_next(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config([keys(tmp_path, "seed: !!int abc\nlog_interval: !!int x\neval_iters: -1\n")])
    assert [problem.split(": ")[1].split(" ")[0].split("=")[0] for problem in caught.value.problems] == [
        "seed",
        "log_interval",
        "eval_iters",
    ]


def test_what_is_not_utf8_says_where(tmp_path: Path) -> None:
    path = tmp_path / "a.yml"
    path.write_bytes(b"seed: 1\nsave: \xff\n")
    with pytest.raises(ConfigError, match=r"a.yml:2: cannot be read: it is not UTF-8 text \(byte 0xff\)"):
        load_config([path])


@pytest.mark.parametrize(
    ("setting", "said"),
    [("save=@x", "save: '@x' is not valid YAML"), ("train-iters=[1", "train-iters: '[1' is not valid YAML")],
)
def test_a_setting_that_is_not_yaml_names_its_key_and_the_quotes(setting: str, said: str) -> None:
    with pytest.raises(ValueError, match="quotes: ") as caught:
        parse_override(setting)
    assert said in str(caught.value)
    mend = str(caught.value).rsplit("quotes: ", 1)[1]
    assert (
        parse_override(mend.replace("='", "=").removesuffix("'"))[1].value == setting.partition("=")[2]
    )  # as a shell passes it on


def test_aliases_of_aliases_are_read_once(tmp_path: Path) -> None:
    lines = ["a0: &a0 {x: 1}"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60)]
    path = tmp_path / "a.yml"
    path.write_text("\n".join(lines))
    flat = read_files([path])  # 2^60 visits would not end
    assert len(flat.values) == 60 and not flat.problems


@pytest.mark.parametrize("text", ["@a\\b", '"\\x"', "{it's", "%é\u2028", "[\U0001f642", "@\x07"])
def test_the_quotes_that_a_message_offers_hold_the_same_text(text: str) -> None:
    with pytest.raises(ValueError, match="write text in YAML's quotes: save=") as refused:
        parse_override(f"save={text}")
    (mended,) = shlex.split(str(refused.value).rpartition("quotes: ")[2])
    assert parse_override(mended)[1].value == text.strip("\"'")


def test_a_switch_in_a_key_of_text_is_offered_as_it_is_spelled(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'save=true is not text \(YAML reads a switch; write it in quotes: "yes"\)'):
        load_config([keys(tmp_path, "save: yes\n")])
