"""What makes vLLM fast on a CPU gives what vLLM gives, or, where its LoRA leaks, what a reference row by row gives."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import torch
import vllm.platforms
import zmq
from vllm.distributed.device_communicators import shm_broadcast
from vllm.distributed.device_communicators.shm_broadcast import SpinCondition
from vllm.lora.layers import LoRAMapping
from vllm.lora.model_manager import LoRAModelManager
from vllm.lora.punica_wrapper import get_punica_wrapper
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.platforms.cpu import CpuPlatform
from vllm.platforms.interface import UnspecifiedPlatform
from vllm.utils.network_utils import get_open_zmq_ipc_path
from vllm.v1.sample.ops import topk_topp_sampler

from kto_ray.serve.policy import cpu, cpu_layer, cpu_lora, cpu_sampler
from kto_ray.serve.policy.cpu_layer import RowGroups, group_rows
from kto_ray.serve.policy.cpu_lora import GroupedPunicaWrapper

SLOTS, RANK, WIDE = 4, 8, 48
IDS = [101, 102, 103, None]  # adapter ids by slot; the last slot is free and stays zero, unless a test loads it
LAYOUTS = {
    "mixed": [101, 0, 103, 102, 0, 101, 103, 101],
    "mixed, no base": [103, 101, 101, 102, 103],
    "one adapter": [102] * 7,
    "one adapter and base": [0, 102, 102, 0, 0],
    "base": [0] * 6,
    "one row": [103],
    "one base row": [0],
}
DTYPES = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
SLICES = {"single": (24,), "qkv": (24, 8, 8), "gate_up": (16, 16)}

layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
dtypes = pytest.mark.parametrize(("dtype", "tolerance"), DTYPES.items(), ids=["fp32", "bf16"])


@pytest.fixture(autouse=True)
def time_to_lay_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough in one pass, whatever else runs here; what is done with less has a test of its own."""
    monkeypatch.setattr(cpu_layer, "LAY_OUT_S", 60.0)


@pytest.fixture(autouse=True)
def _seeded_inference() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.inference_mode():  # as in the engine
        yield


def weights(*shape: int, dtype: torch.dtype, free_last: bool = True) -> torch.Tensor:
    with torch.inference_mode(False):  # as when vLLM builds its layers
        stacked: torch.Tensor = (torch.randn(SLOTS, 1, *shape) / shape[-1] ** 0.5).to(dtype)
        if free_last:
            stacked[-1] = 0
        return stacked


def both(tokens: list[int], prompts: list[int] | None = None) -> tuple[PunicaWrapperCPU, GroupedPunicaWrapper]:
    stock, ours = (c(256, 128, device="cpu") for c in (PunicaWrapperCPU, GroupedPunicaWrapper))
    for wrapper in (stock, ours):
        remap(wrapper, tokens, prompts)
    return stock, ours


def remap(wrapper: PunicaWrapperCPU, tokens: list[int], prompts: list[int] | None = None, ids: Any = IDS) -> None:
    mapping = LoRAMapping(tuple(tokens), tuple(prompts or tokens), is_prefill=True)
    wrapper.update_metadata(mapping, ids, SLOTS + 1, 1000)


@layouts
@dtypes
@pytest.mark.parametrize("widths", SLICES.values(), ids=SLICES.keys())
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_linear_is_vllms(layout: Any, dtype: Any, tolerance: Any, widths: Any, scale: Any) -> None:
    x, y = torch.randn(len(layout), WIDE).to(dtype), torch.randn(len(layout), sum(widths)).to(dtype)
    a = tuple(weights(RANK, WIDE, dtype=dtype) for _ in widths)
    b = tuple(weights(width, RANK, dtype=dtype) for width in widths)
    expected, got = y.clone(), y.clone()
    stock, ours = both(layout)
    stock.add_lora_linear(expected, x, a, b, scale, widths)
    ours.add_lora_linear(got, x, a, b, scale, widths)
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)
    assert torch.equal(got, y) == (set(layout) == {0})


@layouts
@dtypes
def test_logits_are_vllms(layout: Any, dtype: Any, tolerance: Any) -> None:
    """One row per prompt, which is another mapping than the tokens'; model and adapter pad the vocabulary unequally."""
    x, a = torch.randn(len(layout), WIDE).to(dtype), weights(RANK, WIDE, dtype=dtype)
    for y_width, b_width in ((64, 64), (64, 60), (60, 64)):
        y, b = torch.randn(len(layout), y_width).to(dtype), weights(b_width, RANK, dtype=dtype)
        expected, got = y.clone(), y.clone()
        for wrapper, out in zip(both([101] * 20, prompts=layout), (expected, got), strict=True):
            wrapper.add_lora_logits(out, x, a, b, 1.0)
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


@layouts
@dtypes
@pytest.mark.parametrize("add_inputs", [True, False])
def test_embedding_is_vllms(layout: Any, dtype: Any, tolerance: Any, add_inputs: Any) -> None:
    x, y, b = (
        torch.randn(len(layout), RANK).to(dtype),
        torch.randn(len(layout), 24).to(dtype),
        weights(24, RANK, dtype=dtype),
    )
    expected, got = y.clone(), y.clone()
    for wrapper, out in zip(both(layout), (expected, got), strict=True):
        wrapper.add_lora_embedding(out, x, b, add_inputs=add_inputs)
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def test_an_adapter_of_another_dtype_is_converted_as_vllm_does() -> None:
    layout = LAYOUTS["mixed"]
    x, y = torch.randn(len(layout), WIDE).bfloat16(), torch.randn(len(layout), 24).bfloat16()
    a, b = (weights(RANK, WIDE, dtype=torch.float16),), (weights(24, RANK, dtype=torch.float16),)
    expected, got = y.clone(), y.clone()
    for wrapper, out in zip(both(layout), (expected, got), strict=True):
        wrapper.add_lora_linear(out, x, a, b, 1.0, (24,))
    torch.testing.assert_close(got, expected, rtol=2e-2, atol=2e-2)


@layouts
@pytest.mark.parametrize("widths", SLICES.values(), ids=SLICES.keys())
def test_each_row_gets_its_own_adapter_and_no_other(layout: Any, widths: Any) -> None:
    """A reference that shares no code with vLLM; every slot is loaded, where vLLM gives base rows the last slot's."""
    x, y = torch.randn(len(layout), WIDE), torch.randn(len(layout), sum(widths))
    a = tuple(weights(RANK, WIDE, dtype=torch.float32, free_last=False) for _ in widths)
    b = tuple(weights(width, RANK, dtype=torch.float32, free_last=False) for width in widths)
    expected = y.clone()
    for row, adapter in enumerate(layout):
        if adapter:
            slot = IDS.index(adapter)
            delta = torch.cat([x[row] @ a_[slot, 0].T @ b_[slot, 0].T for a_, b_ in zip(a, b, strict=True)])
            expected[row] += delta
    got = y.clone()
    both(layout)[1].add_lora_linear(got, x, a, b, 1.0, widths)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    base = [row for row, adapter in enumerate(layout) if not adapter]
    assert torch.equal(got[base], y[base])


@pytest.mark.parametrize("when", ["before the first forward", "after it"])
def test_a_broken_adapter_harms_only_its_own_rows(when: str) -> None:
    layout = LAYOUTS["mixed"]
    x, y = torch.randn(len(layout), WIDE), torch.randn(len(layout), 24)
    a, b = weights(RANK, WIDE, dtype=torch.float32), weights(24, RANK, dtype=torch.float32)
    wrapper = both(layout)[1]
    if when == "after it":
        wrapper.add_lora_linear(y, x, (a,), (b,), 1.0, (24,))
    a[IDS.index(103)] = b[IDS.index(103)] = float("nan")
    wrapper.loaded(IDS.index(103))
    wrapper.add_lora_linear(y, x, (a,), (b,), 1.0, (24,))
    assert y.isnan().any(dim=1).tolist() == [adapter == 103 for adapter in layout]


def test_a_broken_adapter_that_was_alone_harms_only_its_own_rows_once_others_join() -> None:
    a, b = weights(RANK, WIDE, dtype=torch.float32), weights(24, RANK, dtype=torch.float32)
    b[0] = float("inf")
    wrapper = both([101, 101])[1]
    wrapper.add_lora_linear(torch.zeros(2, 24), torch.randn(2, WIDE), (a,), (b,), 1.0, (24,))
    remap(wrapper, [101, 0])
    y = torch.zeros(2, 24)
    wrapper.add_lora_linear(y, torch.randn(2, WIDE), (a,), (b,), 1.0, (24,))
    assert y.isfinite().all(dim=1).tolist() == [False, True]


def test_an_adapter_that_overflows_harms_only_its_own_rows() -> None:
    layout = LAYOUTS["mixed"]
    x, y = torch.full((len(layout), WIDE), 9.0), torch.randn(len(layout), 24)
    a, b = weights(RANK, WIDE, dtype=torch.float32), weights(24, RANK, dtype=torch.float32)
    a[IDS.index(103)] = 1e38
    both(layout)[1].add_lora_linear(y, x, (a,), (b,), 1.0, (24,))
    assert (~y.isfinite()).any(dim=1).tolist() == [adapter == 103 for adapter in layout]


@pytest.mark.parametrize("rows", [cpu_layer.FEW, cpu_layer.FEW + 1])
def test_many_rows_are_computed_adapter_by_adapter_and_few_all_at_once(rows: int) -> None:
    layout = [(101, 0, 103)[i % 3] for i in range(rows)]
    a, b = weights(RANK, WIDE, dtype=torch.float32), weights(24, RANK, dtype=torch.float32)
    x, y = torch.randn(rows, WIDE), torch.randn(rows, 24)
    stock, ours = both(layout)
    start, expected = y.clone(), y.clone()
    stock.add_lora_linear(expected, x, (a,), (b,), 1.0, (24,))
    ours.add_lora_linear(y, x, (a,), (b,), 1.0, (24,))
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    (layer,) = ours.layers.values()
    assert set(layer._made) == {(0,), (2,)}
    for _ in range(cpu_layer.LASTING + 1):
        ours.begin()
    before = y.clone()
    ours.add_lora_linear(y, x, (a,), (b,), 1.0, (24,))
    torch.testing.assert_close(y - before, expected - start, rtol=1e-4, atol=1e-4)
    side_by_side = set() if rows > cpu_layer.FEW else {(0, 2)}
    assert set(layer._made) - {(0,), (2,)} == side_by_side, "once they have met for long enough to be worth it"
    ours.loaded(2)
    ours.begin()
    ours.add_lora_linear(y, x, (a,), (b,), 1.0, (24,))
    assert set(layer._made) == {(0,), (2,)}, "others now"


def test_what_was_loaded_is_laid_out_over_several_passes_and_meant_by_all_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each pass lays out one slot of one layer at least; the others compute the same without."""
    monkeypatch.setattr(cpu_layer, "LAY_OUT_S", 1e-9)
    layout = LAYOUTS["mixed"]
    wrapper = both(layout)[1]
    layers = [
        (weights(RANK, WIDE, dtype=torch.float32), weights(24, RANK, dtype=torch.float32, free_last=False))
        for _ in range(3)
    ]

    def passes() -> list[int]:
        """How many slots of layers are laid out, after each of some passes."""
        told = []
        for _ in range(11):
            wrapper.begin()
            for a, b in layers:
                x, y = torch.randn(len(layout), WIDE), torch.zeros(len(layout), 24)
                wrapper.add_lora_linear(y, x, (a,), (b,), 1.0, (24,))
                for row, adapter in enumerate(layout):
                    slot = IDS.index(adapter) if adapter else None
                    expected = torch.zeros(24) if slot is None else x[row] @ a[slot, 0].T @ b[slot, 0].T
                    torch.testing.assert_close(y[row], expected, rtol=1e-5, atol=1e-5)
            told.append(sum(len(layer._made) for layer in wrapper.layers.values()))
        return told

    assert passes() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9]
    for a, b in layers:
        a[1], b[1] = torch.randn_like(a[1]), torch.randn_like(b[1])
    wrapper.loaded(1)
    wrapper.begin()
    assert sum((1,) in layer._made for layer in wrapper.layers.values()) == 1, "before anybody asks for it"
    assert passes()[:3] == [8, 9, 9]


def test_a_layer_that_no_adapter_changes_is_passed_over() -> None:
    """As the head is: vLLM asks about it with other rows than were mapped where a prompt's tokens are scored."""
    x, y = torch.randn(5, WIDE), torch.randn(5, 24)
    a, b = weights(RANK, WIDE, dtype=torch.float32), torch.zeros(SLOTS, 1, 24, RANK)
    wrapper, got = both([101, 102])[1], y.clone()
    wrapper.add_lora_logits(got, x, a, b, 1.0)
    assert torch.equal(got, y)
    b[0] = 1.0
    wrapper.loaded(0)
    with pytest.raises(AssertionError, match="5 outputs, 5 inputs, 2 rows mapped"):
        wrapper.add_lora_logits(got, x, a, b, 1.0)


def test_who_made_products_is_told_of_what_vllm_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    class Manager:
        lora_index_to_id: ClassVar = [7, None]
        punica_wrapper_mapping: ClassVar = {"model": both([101])[1]}
        _active_adapters: ClassVar = {7: None}
        modules: ClassVar = {"o_proj": torch.nn.Module()}

    def write(manager: Any, adapter: int) -> bool:
        if adapter in manager._active_adapters:
            return False
        manager.lora_index_to_id = [7, adapter]
        b[1] = 2 * b[1]
        if adapter == 13:
            raise RuntimeError("cut off in the midst of it")
        return True

    monkeypatch.setattr(cpu_lora, "vllm_activate", write)
    wrapper, manager = Manager.punica_wrapper_mapping["model"], Manager()
    a, b = weights(RANK, WIDE, dtype=torch.float32), weights(24, RANK, dtype=torch.float32)
    x = torch.randn(1, WIDE)

    def added() -> torch.Tensor:
        wrapper.begin()
        y = torch.zeros(1, 24)
        wrapper.add_lora_linear(y, x, (a,), (b,), 1.0, (24,))
        return y

    module = manager.modules["o_proj"]
    module.base_layer = torch.nn.Identity()
    remap(wrapper, [102])
    before = added()
    assert cpu_lora.activate_adapter(manager, 12)
    torch.testing.assert_close(added(), 2 * before)
    assert vars(module)["base_layer"] is dict(module.named_children())["base_layer"], (
        "found at once, and still a module"
    )
    (layer,) = wrapper.layers.values()
    manager._active_adapters[12], laid_out = None, layer._made[1,]
    wrapper.spare.left_s = 0.0
    assert not cpu_lora.activate_adapter(manager, 12) and layer._made[1,] is laid_out, "vLLM asks before each step"
    mapped: list[object] = []
    monkeypatch.setattr(cpu_lora, "vllm_map", lambda manager, mapping: mapped.append(mapping))
    cpu_lora.set_adapter_mapping(manager, mapping := LoRAMapping((), ()))
    assert mapped == [mapping] and wrapper.spare.left_s == cpu_layer.LAY_OUT_S
    with pytest.raises(RuntimeError, match="cut off"):
        cpu_lora.activate_adapter(manager, 13)
    torch.testing.assert_close(added(), 4 * before)


@pytest.mark.parametrize("widths", SLICES.values(), ids=SLICES.keys())
def test_loads_remaps_and_slot_changes_after_the_first_forward_are_seen(widths: Any) -> None:
    a = tuple(weights(RANK, WIDE, dtype=torch.float32) for _ in widths)
    b = tuple(weights(width, RANK, dtype=torch.float32) for width in widths)
    wrappers = both([101, 102, 0])

    def agree() -> torch.Tensor:
        x, y = torch.randn(3, WIDE), torch.zeros(3, sum(widths))
        expected = y.clone()
        for wrapper, out in zip(wrappers, (expected, y), strict=True):
            wrapper.add_lora_linear(out, x, a, b, 1.0, widths)
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
        return y

    agree()
    for a_, b_ in zip(a, b, strict=True):  # an adapter of half the rank is loaded as vLLM does it: into the tensors
        a_[0], b_[0] = 0, 0
        a_[0, 0, : RANK // 2].copy_(torch.randn(RANK // 2, WIDE))
        b_[0, 0, :, : RANK // 2].copy_(torch.randn(b_.shape[2], RANK // 2))
    wrappers[1].loaded(0)
    agree()
    for wrapper in wrappers:
        remap(wrapper, [0, 102, 101])
    assert agree().any(dim=1).tolist() == [False, True, True]
    for wrapper in wrappers:  # the same mapping, other slots
        remap(wrapper, [0, 102, 101], ids=[102, 101, None, None])
    agree()


@pytest.mark.parametrize("layout", [[101, 0, 103, 102], [103, 0], [103, 103]])
def test_a_layer_that_an_adapter_leaves_alone_costs_it_nothing_until_one_that_changes_it_comes(layout: Any) -> None:
    a, b = weights(RANK, WIDE, dtype=torch.float32), weights(24, RANK, dtype=torch.float32)
    a[2] = b[2] = 0  # as vLLM writes 103, which has no weights for this layer
    wrappers = both(layout)
    x, embedded, before = torch.randn(len(layout), WIDE), torch.randn(len(layout), RANK), torch.randn(len(layout), 24)

    def agree() -> torch.Tensor:
        results = []
        for wrapper in wrappers:
            y, z = before.clone(), before.clone()
            wrapper.add_lora_linear(y, x, (a,), (b,), 1.0, (24,))
            wrapper.add_lora_embedding(z, embedded, b)
            results.append(torch.cat([y, z], 1))
        torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-5)
        return results[1]

    left_alone = [adapter in (0, 103) for adapter in layout]
    assert (agree() == torch.cat([before, before], 1)).all(dim=1).tolist() == left_alone
    (layer,) = wrappers[1].layers.values()
    assert set(layer._made) == ({(0,), (1,)} if 101 in layout else set())
    a[2], b[2] = torch.randn(RANK, WIDE), torch.randn(24, RANK)
    wrappers[1].loaded(2)
    assert (agree() == torch.cat([before, before], 1)).all(dim=1).tolist() == [adapter == 0 for adapter in layout]


def test_products_of_adapters_that_met_once_are_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_layer, "LASTING", 0)
    a, b = weights(RANK, WIDE, dtype=torch.float32, free_last=False), weights(24, RANK, dtype=torch.float32)
    b[-1] = b[0]
    wrapper = both([101])[1]
    kept = []
    for met in range(1, 2**SLOTS):  # every set of adapters
        met_ids = [11 + slot for slot in range(SLOTS) if met >> slot & 1]
        remap(wrapper, [*met_ids, 0], ids=[11, 12, 13, 14])
        wrapper.begin()
        wrapper.add_lora_linear(
            torch.zeros(len(met_ids) + 1, 24), torch.ones(len(met_ids) + 1, WIDE), (a,), (b,), 1, (24,)
        )
        (layer,) = wrapper.layers.values()
        kept.append(len(layer._made))
    assert max(kept) == 2 * SLOTS < len(kept)


def test_empty_batch_and_unknown_rows() -> None:
    assert group_rows(torch.tensor([], dtype=torch.long)) == RowGroups(0, ())
    a, b = weights(RANK, WIDE, dtype=torch.float32), weights(24, RANK, dtype=torch.float32)
    ours = both([101, 102])[1]
    with pytest.raises(AssertionError, match="3 outputs, 3 inputs, 2 rows mapped"):
        ours.add_lora_linear(torch.zeros(3, 24), torch.randn(3, WIDE), (a,), (b,), 1.0, (24,))


def test_register_installs_on_a_cpu_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SpinCondition.__init__, "__defaults__", SpinCondition.__init__.__defaults__)
    monkeypatch.setattr(SpinCondition, "notify", SpinCondition.notify)
    monkeypatch.setattr(shm_broadcast, "SHM_READER_RECHECK_INTERVAL_MS", 5000)
    monkeypatch.setattr(LoRAModelManager, "activate_adapter", cpu_lora.vllm_activate)
    monkeypatch.setattr(topk_topp_sampler, "apply_top_k_top_p", cpu_sampler.vllm_apply)
    for platform in (CpuPlatform, UnspecifiedPlatform):  # put back what register() sets
        monkeypatch.setattr(platform, "get_punica_wrapper", platform.get_punica_wrapper)
    unchanged = UnspecifiedPlatform.get_punica_wrapper
    monkeypatch.setattr(vllm.platforms, "current_platform", UnspecifiedPlatform())
    cpu.register()
    assert UnspecifiedPlatform.get_punica_wrapper == unchanged

    monkeypatch.setattr(vllm.platforms, "current_platform", CpuPlatform())
    monkeypatch.setattr("vllm.lora.punica_wrapper.punica_selector.current_platform", CpuPlatform())
    assert type(get_punica_wrapper(16, max_batches=4, device="cpu")) is PunicaWrapperCPU
    for _ in range(2):
        cpu.register()
        assert type(get_punica_wrapper(16, max_batches=4, device="cpu")) is GroupedPunicaWrapper
    waiting = SpinCondition(is_reader=True, context=zmq.Context.instance(), notify_address="inproc://nobody")
    assert waiting.busy_loop_s == cpu.SPIN_S
    assert SpinCondition.notify is cpu._notify
    slept = shm_broadcast.MessageQueue.ReadTimeoutWithWarnings(timeout=None, should_warn=False)
    assert slept.timeout_ms() == cpu.LOOK_MS, "a lost wake-up costs no more"
    assert LoRAModelManager.activate_adapter is cpu_lora.activate_adapter
    assert topk_topp_sampler.apply_top_k_top_p is cpu_sampler.apply_top_k_top_p


def test_no_notification_is_dropped_however_soon_it_follows() -> None:
    context = zmq.Context()
    address = get_open_zmq_ipc_path()
    writer, reader = (SpinCondition(is_reader, context, address) for is_reader in (False, True))
    inbox = reader.local_notify_socket
    deadline = time.monotonic() + 10
    while not inbox.poll(10):  # until the writer knows of the reader
        cpu._notify(writer)
        assert time.monotonic() < deadline
    dropped = 0
    for _ in range(50):
        while inbox.poll(20):
            inbox.recv()
        for _ in range(2):
            cpu._notify(writer)
            if inbox.poll(1000):
                inbox.recv()
            else:
                dropped += 1
    context.destroy(linger=0)
    assert dropped == 0


def test_top_p_keeps_the_tokens_that_a_whole_sort_keeps() -> None:
    """Rows of all kinds in one batch: sharp ones that the first look settles, flat ones that need the whole sort."""
    sharpness = torch.tensor([12.0, 6.0, 4.5, 3.5, 2.0, 1.0, 0.0, 6.0, 6.0, 6.0])
    p = torch.tensor([0.9, 0.9, 0.9, 0.95, 0.9, 0.9, 0.9, 1e-6, 1.0, 0.5])
    logits = torch.randn(len(p), 5000) * sharpness[:, None] + torch.rand(len(p), 5000) * 1e-3  # without ties
    ours = cpu_sampler.apply_top_k_top_p(logits.clone(), None, p)
    torch.testing.assert_close(ours, cpu_sampler.vllm_apply(logits.clone(), None, p), rtol=0, atol=0)
    kept = ours.isfinite().sum(dim=1).tolist()
    assert kept[0] < 64 < kept[3] < 1024 < kept[5] and kept[7] == 1 and kept[8] == 5000
    tiny = torch.randn(3, 7)  # a vocabulary smaller than the first look
    agreed = cpu_sampler.vllm_apply(tiny.clone(), None, p[:3])
    torch.testing.assert_close(cpu_sampler.apply_top_k_top_p(tiny.clone(), None, p[:3]), agreed)


@pytest.mark.parametrize("looked_at", [(64, 1024), (2,), ()])
def test_top_p_never_leaves_a_row_without_its_likeliest_token(looked_at: tuple[int, ...]) -> None:
    logits = torch.randn(5, 3000)
    p = torch.tensor([0.0, 1e-300, 1e-45, 1e-6, 0.9])
    ours = cpu_sampler._top_p(logits.clone(), logits.logsumexp(dim=-1, keepdim=True), p, looked_at)
    assert ours.argmax(dim=1).tolist() == logits.argmax(dim=1).tolist()
    assert ours.isfinite().sum(dim=1).tolist()[:4] == [1, 1, 1, 1]


def test_top_k_and_no_filter_are_left_to_vllm() -> None:
    logits, k, p = torch.randn(2, 300), torch.tensor([5, 300]), torch.tensor([0.9, 0.9])
    for top_k, top_p in ((k, p), (k, None), (None, None)):
        expected = cpu_sampler.vllm_apply(logits.clone(), top_k, top_p)
        torch.testing.assert_close(cpu_sampler.apply_top_k_top_p(logits.clone(), top_k, top_p), expected)


def test_importing_the_entry_point_costs_nothing() -> None:
    code = "import sys, kto_ray.serve.policy.cpu; sys.exit(bool({'torch', 'vllm'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
