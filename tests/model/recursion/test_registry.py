"""Schemes come in by one door: complete ones are loaded, and nothing outside their files knows them by name."""

import ast
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megamesh.config.load import load_config
from megamesh.config.schemes import BUILT_IN, names, scheme_class
from megamesh.errors import ConfigError
from megamesh.model.recursion.highway import Highway
from megamesh.model.recursion.scheme import Scheme, build_routers, build_scheme, describe
from tests.own_scheme import Momentum
from tests.schemes import OWN, SCHEMES
from tests.test_structure import ROOT, tracked_files

HERE = __name__
MODEL: dict[str, Any] = {
    "num_layers": 4,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "max_position_embeddings": 16,
    "recursion": "1+1R2+1",
    "vocab_size": 60,
}


class Forgetful(Momentum):
    """Forgets what it keeps and what it costs."""

    kept = Scheme.kept
    flops = Scheme.flops


class Boastful(Momentum):
    """Says that it learns more than its modules have."""

    def learned(self, hidden_size: int) -> Any:
        return [*super().learned(hidden_size), *super().learned(hidden_size + 1)]


class Stranger(Momentum):
    """Reads a key that is no key."""

    keys = ("momentum",)


def _refused(**keys: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config([], MODEL | keys, for_training=False)
    return str(caught.value)


@pytest.mark.parametrize(
    ("scheme", "reason"),
    [
        (f"{HERE}:Forgetful", "answers too little: it lacks flops, kept"),
        (f"{HERE}:Stranger", "reads momentum, which is no key"),
        (f"{HERE}:Missing", "has no 'Missing'"),
        (f"{HERE}:MODEL", "is not a scheme; derive the class from megamesh.model.recursion.scheme.Scheme"),
        (f"{HERE}:Path", "is not a scheme"),
        ("no_such_package.schemes:Mine", "No module named 'no_such_package'; put its folder on PYTHONPATH"),
        ("megamesh.no_such_module:Mine", "No module named 'megamesh.no_such_module'; put its folder on PYTHONPATH"),
        (":Mine", "is not module:Class"),
        ("my scheme:Mine", "is not module:Class"),
        ("mash", "'mash' is not a scheme"),
    ],
)
def test_what_is_no_whole_scheme_is_refused_with_the_reason(scheme: str, reason: str) -> None:
    said = _refused(recursion_scheme=scheme)
    assert said.startswith("command line: recursion_scheme=") and scheme in said and reason in said


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"recursion_scheme_params": {"momentun": 0.1}}, "momentun is not known; "),
        ({"recursion_scheme_params": {"momentum": "much"}}, "momentum is wrong: Input should be a valid number"),
        ({"recursion_scheme": "mesh", "recursion_scheme_params": {"momentum": 0.1}}, "mesh has these: none"),
        ({"recursion": None, "recursion_scheme_params": {}}, "has no effect without recursion"),
    ],
)
def test_settings_that_a_scheme_does_not_have_are_refused(keys: dict[str, Any], reason: str) -> None:
    said = _refused(**{"recursion_scheme": OWN} | keys)
    assert "recursion_scheme_params" in said and reason in said


def test_a_scheme_whose_modules_are_not_what_it_says_is_not_built() -> None:
    recursion = load_config([], MODEL | {"recursion_scheme": f"{HERE}:Boastful"}, for_training=False).run.recursion
    with pytest.raises(ConfigError, match=r"its modules have 0\.weight \(1, 32\), and `learned` says \(1, 33\)"):
        build_routers(recursion, 32)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_is_learned_and_kept_is_said_once_and_in_order(scheme: str) -> None:
    recursion = load_config([], MODEL | {"recursion_scheme": scheme}, for_training=False).run.recursion
    described = describe(recursion)
    learned = [parameter.name for parameter in described.learned(32)]
    assert learned == [name for name, _ in build_routers(recursion, 32).named_parameters()]
    for kept in described.kept():
        assert 0 <= kept.kept_in <= kept.first_read <= kept.last_read <= 2
        assert kept.num_current + kept.num_inputs <= 2 * kept.num_states
    assert described.remote_code is not None and described.remote_code.is_file()


class _Recorder(Highway):
    """Notes of every state that is kept the pass, and the last pass that recalls it; one state under two names is one."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.kept: dict[int, tuple[int, Tensor]] = {}
        self.last: dict[int, int] = {}

    def keep(self, name: str, state: Tensor) -> Tensor:
        self.kept.setdefault(id(state), (self.now, state))
        return super().keep(name, state)

    def recall(self, name: str) -> Tensor:
        state = super().recall(name)
        self.last[id(state)] = self.now
        return state


@pytest.mark.parametrize("scheme", [*SCHEMES, OWN])
def test_states_are_read_as_long_as_is_said(scheme: str) -> None:
    """By the passes that keep them and read them last: so many values per token, of states and of weights."""
    keys = {"recursion": "1+1R4+1", "num_layers": 6, "recursion_scheme": scheme}
    recursion = load_config([], MODEL | keys, for_training=False).run.recursion
    routers, highway = build_routers(recursion, 32), _Recorder()
    for parameter in routers.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    acting = build_scheme(recursion, routers)
    acting.enter(highway, torch.randn(3, 32), torch.randn(3, 32))
    for t in range(4):
        highway.now = t + 1
        acting.advance(highway, t, torch.randn(3, 32))
    found, said = Counter[tuple[int, int]](), Counter[tuple[int, int]]()
    for key, (kept_in, state) in highway.kept.items():
        found[kept_in, highway.last.get(key, kept_in)] += state.shape[-1]
    for kept in acting.kept():
        said[kept.kept_in, kept.last_read] += kept.num_states * 32 + kept.num_weights
    later = [{span: count for span, count in counts.items() if span[1] > span[0] and count} for counts in (found, said)]
    assert later[0] == later[1]


def test_a_plain_model_and_a_dry_run_load_no_torch() -> None:
    """The descriptions of the built-in schemes import it when they are built."""
    for path in {scheme_class(name).__module__ for name in names()} | {Scheme.__module__, "megamesh.config.schemes"}:
        tree = ast.parse((ROOT / path.replace(".", "/")).with_suffix(".py").read_text())
        at_load = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        modules = {node.module or "" for node in at_load if isinstance(node, ast.ImportFrom)}
        modules |= {alias.name for node in at_load if isinstance(node, ast.Import) for alias in node.names}
        assert not {name for name in modules if name.startswith(("torch", "megamesh.kernels"))}, path


def test_nothing_else_knows_a_scheme_by_name() -> None:
    """No comparison, table, membership or import outside the registry, the schemes' own files and the code that travels with exports."""
    known = set(BUILT_IN) - {"residual"}  # a word of other subjects too
    for path in tracked_files():
        if path.suffix != ".py" or path.parts[0] not in ("megamesh", "tools") or _may_know(path):
            continue
        text = (ROOT / path).read_text()
        assert "megamesh.model.recursion.schemes" not in text, path
        if not any(f'"{name}"' in text for name in known):
            continue
        for node in ast.walk(ast.parse(text)):
            asked = (
                [node.left, *node.comparators]
                if isinstance(node, ast.Compare)
                else [key for key in node.keys if key is not None]
                if isinstance(node, ast.Dict)
                else []
            )
            found = {
                constant.value for part in asked for constant in ast.walk(part) if isinstance(constant, ast.Constant)
            }
            assert not known & found, f"{path}:{node.lineno}"  # type: ignore[attr-defined]


def _may_know(path: Path) -> bool:
    folder = path.parent.as_posix()
    return path == Path("megamesh/config/schemes.py") or folder in (
        "megamesh/model/recursion/schemes", "megamesh/hf/remote",
    )  # fmt: skip
