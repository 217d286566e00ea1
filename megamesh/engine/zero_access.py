"""Where DeepSpeed keeps what MegaMesh must reach: fp32 masters, Adam moments, reduced gradients. The one file with its privates.

    wrapper in DeepSpeed 0.19            used for                   a rank holds                        class here
    none (torch's own optimizer)         fp32, stage 0              everything                          WholeAccess
    BF16_Optimizer                       bf16, stages 0 and 1       one flat range of each group        FlatRangeAccess
    DeepSpeedZeroOptimizer               fp32 1 and 2, bf16 2,      one flat range of each group        FlatRangeAccess
                                         fp16 0, 1 and 2
    DeepSpeedZeroOptimizer_Stage3        stage 3                    one flat range of each parameter    ParameterRangeAccess

A `Fragment` is what a rank holds of one parameter: a flat, writable view, and where it starts in the flattened parameter.
Fragments of different data-parallel ranks never overlap, except where `replicated` says that every rank holds everything.
tests/engine/test_zero_access.py fails when upstream moves any of this.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

StateKey = Literal["fp32", "exp_avg", "exp_avg_sq"]
STATE_KEYS: tuple[StateKey, ...] = ("fp32", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Fragment:
    """A rank's part of one parameter: elements start … start + values.numel() of it, flattened."""

    start: int
    values: Tensor


class ZeroAccess(ABC):
    """One view of every DeepSpeed optimizer. `wrapper` is what DeepSpeed calls the optimizer, `adam` the torch one inside."""

    replicated = False

    def __init__(self, wrapper: Any, adam: torch.optim.Optimizer):
        self.wrapper, self.adam = wrapper, adam

    @abstractmethod
    def masters(self) -> list[Tensor]:
        """The tensors that the torch optimizer steps: its state is keyed by them."""

    @abstractmethod
    def fragment(self, parameter: nn.Parameter, key: StateKey) -> Fragment | None:
        """This rank's part of the parameter's fp32 master or moment; None where it has none. Needs `prepare_state` before."""

    @abstractmethod
    def gradient(self, parameter: nn.Parameter) -> Tensor | None:
        """This rank's part of the averaged gradient, flat and writable, between the last backward and the step."""

    @abstractmethod
    def publish_weights(self) -> None:
        """Bring the model's own weights, on all ranks, in line with the masters. A collective."""

    def local_shape(self, parameter: nn.Parameter) -> tuple[int, ...]:
        """The shape of the parameter when whole."""
        return tuple(parameter.shape)

    def prepare_state(self, step: int | None = None) -> None:
        """Create the moments where no step has created them yet; set the step count of Adam's bias correction if given."""
        for group, master in self._grouped_masters():
            state = self.adam.state[master]
            if "exp_avg" not in state:
                device = master.device if group.get("fused") or group.get("capturable") else torch.device("cpu")
                state["step"] = torch.zeros((), dtype=torch.float32, device=device)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(master.data), torch.zeros_like(master.data)
            if step is not None:
                state["step"].fill_(float(step))

    def step_count(self) -> int:
        """Adam steps taken: skipped ones do not count."""
        counts = {int(self.adam.state[master]["step"]) for master in self.masters() if self.adam.state[master]}
        assert len(counts) <= 1, f"groups disagree on the step count: {sorted(counts)}"
        return counts.pop() if counts else 0

    def _grouped_masters(self) -> Iterator[tuple[dict[str, Any], Tensor]]:
        for group in self.adam.param_groups:
            for master in group["params"]:
                yield group, master


class WholeAccess(ZeroAccess):
    """No wrapper: the parameters are their own masters, the same on every data-parallel rank."""

    replicated = True

    def masters(self) -> list[Tensor]:
        return [master for _, master in self._grouped_masters()]

    def fragment(self, parameter: nn.Parameter, key: StateKey) -> Fragment | None:
        values = parameter if key == "fp32" else self.adam.state[parameter][key]
        return Fragment(0, values.detach().view(-1))

    def gradient(self, parameter: nn.Parameter) -> Tensor | None:
        return None if parameter.grad is None else parameter.grad.view(-1)

    def publish_weights(self) -> None:
        pass


class FlatRangeAccess(ZeroAccess):
    """BF16_Optimizer and ZeRO 1 and 2: each group is flattened and cut into one range per data-parallel rank."""

    def masters(self) -> list[Tensor]:
        return [master for _, master in self._grouped_masters()]

    def prepare_state(self, step: int | None = None) -> None:
        super().prepare_state(step)
        # DeepSpeed links the parameters to the moments once, after the first group's step: groups after it stay unlinked.
        self.wrapper._hp_optimizer_states_linked = False
        self.wrapper._lazy_init_hp_params_optimizer_state()

    def fragment(self, parameter: nn.Parameter, key: StateKey) -> Fragment | None:
        mapping: Any = parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:
            return None
        values = mapping.get_hp_fragment(None if key == "fp32" else key)
        return Fragment(mapping.lp_fragment_address.start, values.detach().view(-1))

    def gradient(self, parameter: nn.Parameter) -> Tensor | None:
        mapping: Any = parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:
            return None
        address = mapping.lp_fragment_address
        gradient: Tensor = mapping.get_lp_grad_fragment(parameter._index_in_param_group).view(-1)  # type: ignore[attr-defined]
        # BF16_Optimizer accumulates the whole gradient on every rank, and steps with this rank's range of it.
        return gradient if gradient.numel() == address.numel else gradient.narrow(0, address.start, address.numel)

    def publish_weights(self) -> None:
        self.wrapper.update_lp_params()


class ParameterRangeAccess(ZeroAccess):
    """ZeRO 3: each parameter is cut into equal ranges, the last one padded."""

    def masters(self) -> list[Tensor]:
        return list(self.wrapper.fp32_partitioned_groups_flat)

    def _grouped_masters(self) -> Iterator[tuple[dict[str, Any], Tensor]]:
        for index, master in enumerate(self.masters()):  # a group's "params" are empty between steps
            yield self.adam.param_groups[self.wrapper.sub_group_to_group_id[index]], master

    def local_shape(self, parameter: nn.Parameter) -> tuple[int, ...]:
        return tuple(parameter.ds_shape)  # type: ignore[attr-defined]

    def fragment(self, parameter: nn.Parameter, key: StateKey) -> Fragment | None:
        values, _ = self.wrapper._get_fp32_opt_state_partition(
            parameter, release_swap_buffers=True, optim_state_key=None if key == "fp32" else key
        )
        return self._unpadded(parameter, values.detach())

    def gradient(self, parameter: nn.Parameter) -> Tensor | None:
        values, _ = self.wrapper._get_fp32_grad_state_partition(parameter, release_swap_buffers=True)
        fragment = self._unpadded(parameter, values)
        return None if fragment is None else fragment.values

    def publish_weights(self) -> None:
        self.wrapper.checkpoint_event_prologue()
        with torch.no_grad():
            for sub_group in range(len(self.wrapper.fp16_groups)):
                self.wrapper._reassign_or_swap_out_partitioned_parameters(sub_group)
        self.wrapper.checkpoint_event_epilogue()

    def _unpadded(self, parameter: nn.Parameter, values: Tensor) -> Fragment | None:
        start = values.numel() * self.wrapper._get_param_partition_rank(parameter)
        length = min(values.numel(), parameter.ds_numel - start)  # type: ignore[attr-defined]
        return Fragment(start, values.view(-1).narrow(0, 0, length)) if length > 0 else None


ACCESS: dict[str, type[ZeroAccess]] = {
    "BF16_Optimizer": FlatRangeAccess,
    "DeepSpeedZeroOptimizer": FlatRangeAccess,
    "DeepSpeedZeroOptimizer_Stage3": ParameterRangeAccess,
}


def open_access(wrapper: Any) -> ZeroAccess:
    """The view of a DeepSpeed engine's `optimizer`."""
    if isinstance(wrapper, torch.optim.AdamW):
        return WholeAccess(wrapper, wrapper)
    kind = ACCESS.get(type(wrapper).__name__)
    assert kind is not None, f"DeepSpeed chose {type(wrapper).__name__}, which zero_access.py does not know"
    return kind(wrapper, wrapper.optimizer)
