"""What goes wrong around a reduction, and that nothing of it is left behind."""

from __future__ import annotations

import copy
import io
import pickle
import threading
import warnings

import pytest
import torch

import tokenreduce as tr
from tests.pairwise import pairwise
from tokenreduce.testing.batches import batch
from tokenreduce.testing.models import FAMILIES
from tokenreduce.testing.oracle import masked

LLAVA = FAMILIES["llava"]
OPTIONS = {"max_new_tokens": 5, "do_sample": False}


def traces(model):
    """Every hook, and every attribute that a module has of its own, anywhere in a model."""
    found = {}
    for name, module in model.named_modules():
        hooks = (module._forward_pre_hooks, module._forward_hooks, module._backward_hooks)
        found[name] = ([len(h) for h in hooks], sorted(module.__dict__))
    return found


def run(model, prompt, **options):
    with torch.no_grad():
        return model(**prompt.inputs, **options).logits


@pytest.mark.parametrize("name", ["random", "pyramid_drop", "fastv"])
@pytest.mark.parametrize("how", ["block", "remove"])
def test_nothing_is_left_after_removal(llava, schedule, name, how):
    prompt = batch(LLAVA, (1, 2))
    plain, config = run(llava, prompt), copy.deepcopy(llava.config.to_dict())
    before, weights = traces(llava), {k: v.clone() for k, v in llava.state_dict().items()}
    if how == "block":
        with tr.reduce(llava, name, schedule):
            run(llava, prompt)
            assert llava.state_dict().keys() == weights.keys()
    else:
        reduction = tr.reduce(llava, name, schedule)
        llava.generate(**prompt.inputs, **OPTIONS)
        reduction.remove()
        reduction.remove()  # twice is fine
    assert traces(llava) == before
    assert torch.equal(run(llava, prompt), plain)
    assert llava.config.to_dict() == config
    assert all(torch.equal(v, weights[k]) for k, v in llava.state_dict().items())


@pytest.mark.parametrize("place", ["mlp", "plan", "vision", "budget"])
@pytest.mark.parametrize("logits", ["full", "text"])
def test_an_exception_leaves_the_model_usable(llava, schedule, place, logits):
    prompt = batch(LLAVA, (1, 2))
    armed = [True]

    class Trip(tr.FastV):
        def plan(self, tokens, budget):
            if place == "plan" and armed:
                raise FloatingPointError("tripped")
            if place == "budget" and armed:
                budget = [n - 1 for n in budget]
            return super().plan(tokens, budget)

    def fail(module, args):
        if armed:
            raise FloatingPointError("tripped")

    run(llava, prompt)  # transformers puts its own hooks on at the first call
    before = traces(llava)
    reduction = tr.reduce(llava, Trip(), schedule, logits=logits)
    wired = traces(llava)
    part = {"mlp": llava.get_decoder().layers[1].mlp, "vision": llava.model.vision_tower}.get(place)
    handle = part.register_forward_pre_hook(fail) if part is not None else None
    for _ in range(2):
        with pytest.raises((FloatingPointError, ValueError), match=r"tripped|kept .* tokens of 2"):
            run(llava, prompt, labels=prompt.labels)
    if handle is not None:
        handle.remove()
    armed.clear()
    assert traces(llava) == wired  # no capture still watches
    fresh = LLAVA.model()
    with tr.reduce(fresh, "fastv", schedule, logits=logits) as other:
        wanted = run(fresh, prompt)
    assert torch.equal(run(llava, prompt), wanted)  # no labels, rows or masks of the failed call
    for a, b in zip(reduction.kept[2], other.kept[2], strict=True):
        assert torch.equal(a, b)
    reduction.remove()
    assert traces(llava) == before


def test_an_exception_in_the_block_takes_the_hooks_off(llava, schedule):
    before = traces(llava)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the error says enough: no warning on top
        with pytest.raises(RuntimeError, match="mine"), tr.reduce(llava, "random", schedule):
            raise RuntimeError("mine")
    assert traces(llava) == before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["random", "pyramid_drop", "fastv"])
def test_two_threads_generate_at_once(llava, schedule, name):
    prompts = [batch(LLAVA, (1, 2)), batch(LLAVA, (2,), seed=4), batch(LLAVA, (0, 1), seed=9)]
    with tr.reduce(llava, name, schedule):
        alone = [llava.generate(**p.inputs, **OPTIONS) for p in prompts]
        found: dict[int, list] = {i: [] for i in range(len(prompts))}
        start = threading.Barrier(len(prompts))

        def work(i):
            try:
                start.wait()
                for _ in range(4):
                    found[i].append(llava.generate(**prompts[i].inputs, **OPTIONS))
            except BaseException as error:
                found[i].append(error)

        threads = [threading.Thread(target=work, args=(i,)) for i in found]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    for i, outputs in found.items():
        assert len(outputs) == 4
        for out in outputs:
            assert isinstance(out, torch.Tensor), out
            assert torch.equal(out, alone[i])


@pytest.mark.parametrize("positions", ["keep", "compact"])
def test_interleaved_generations(llava, schedule, positions):
    """Two conversations step by step in turns, each on its own cache."""
    prompts = [batch(LLAVA, (1,)), batch(LLAVA, (2,), seed=4)]
    with torch.no_grad(), tr.reduce(llava, "fastv", schedule, positions=positions):
        alone = [llava.generate(**p.inputs, **OPTIONS)[:, -5:] for p in prompts]
        caches, nexts, said = [None, None], [None, None], [[], []]
        for step in range(5):
            for i, p in enumerate(prompts):
                inputs = p.inputs if not step else {"input_ids": nexts[i]}
                out = llava(**inputs, **tr.with_cache(llava, caches[i]), use_cache=True)
                caches[i] = tr.cache_of(out)
                nexts[i] = out.logits[:, -1:].argmax(-1)
                said[i].append(nexts[i])
    for i in range(2):
        assert torch.equal(torch.cat(said[i], dim=1), alone[i])


def test_a_stopped_generation_disturbs_nobody(llava, schedule):
    """A prompt encoded, never run to its end, and then another one."""
    from transformers import StoppingCriteria, StoppingCriteriaList

    class Quit(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            raise KeyboardInterrupt

    prompt, other = batch(LLAVA, (1, 2)), batch(LLAVA, (2, 1), seed=2)
    with tr.reduce(llava, "pyramid_drop", schedule) as reduction:
        wanted = llava.generate(**other.inputs, **OPTIONS)
        with pytest.raises(KeyboardInterrupt):
            llava.generate(
                **prompt.inputs, **OPTIONS, stopping_criteria=StoppingCriteriaList([Quit()])
            )
        assert torch.equal(llava.generate(**other.inputs, **OPTIONS), wanted)
        assert reduction.report.visual_tokens == other.counts


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save", "twice"])
@pytest.mark.parametrize("family", ["llava", "llava_next", "llama"])
def test_a_copy_of_a_reduced_model_is_plain(way, family, schedule):
    family = FAMILIES[family]
    model, prompt = family.model(), batch(family, (1, 2))
    plain = run(family.model(), prompt)
    if "copy" in way or way == "twice":
        run(model, prompt)  # transformers' own hooks, put on at the first call, cannot be pickled
    with tr.reduce(model, "fastv", schedule) as reduction, prompt.shown(reduction):
        if way == "deepcopy":
            twin = copy.deepcopy(model)
        elif way == "twice":
            twin = copy.deepcopy(copy.deepcopy(model))
        elif way == "pickle":
            twin = pickle.loads(pickle.dumps(model))
        else:
            buffer = io.BytesIO()
            torch.save(model, buffer)
            buffer.seek(0)
            twin = torch.load(buffer, weights_only=False)
        assert torch.equal(run(twin, prompt), plain)
        reduced = run(model, prompt)  # the original goes on
        assert not torch.equal(reduced, plain)
    with tr.reduce(twin, "fastv", schedule) as again, prompt.shown(again):  # and can be reduced
        assert torch.equal(run(twin, prompt), reduced)
        if not prompt.bare:
            said = twin.generate(**prompt.inputs, **OPTIONS)
            assert said.shape[1] == prompt.visual.shape[1] + 5
    assert torch.equal(run(twin, prompt), plain)
    assert torch.equal(run(model, prompt), plain)
    parameters = {id(p) for p in model.parameters()}
    assert not any(id(p) in parameters for p in twin.parameters())


def test_nested_reduction_is_refused(llava, schedule):
    prompt = batch(LLAVA, (1,))
    with tr.reduce(llava, "random", schedule):
        wired = traces(llava)
        with pytest.raises(ValueError, match=r"already reduced: remove\(\) the other"):
            tr.reduce(llava, "fastv")
        with pytest.raises(ValueError, match="already reduced"):
            tr.reduce(llava.model, "fastv")
        assert traces(llava) == wired
        run(llava, prompt)
    with tr.reduce(llava, "fastv", schedule) as second:
        run(llava, prompt)
    assert second.report.applied == [True]


def test_reduce_remove_reduce_with_another_strategy(llava):
    prompt = batch(LLAVA, (1, 2))
    plain = run(llava, prompt)
    for name, layer, keep in (("random", 1, 0.5), ("pyramid_drop", 0, 0.2), ("vtw", 3, 0.0)):
        with tr.reduce(llava, name, tr.Single(layer, keep)) as reduction:
            first = run(llava, prompt)
            assert torch.equal(run(llava.train(), prompt), run(llava.eval(), prompt))
        assert [len(x) for x in reduction.kept[layer]] == [round(n * keep) for n in prompt.counts]
        assert not torch.equal(first, plain)
        assert torch.equal(run(llava, prompt), plain)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_contexts_without_gradients(llava, schedule, context):
    prompt = batch(LLAVA, (1, 2))
    with tr.reduce(llava, "pyramid_drop", schedule) as reduction:
        with context():
            out = llava(**prompt.inputs)
            step = llava(
                input_ids=torch.tensor([[20], [21]]),
                **tr.with_cache(llava, tr.cache_of(out)),
                attention_mask=torch.nn.functional.pad(
                    prompt.inputs["attention_mask"], (0, 1), value=1
                ),
            )
        kept = reduction.kept
        with torch.enable_grad():  # and a gradient afterwards, from the same reduction
            llava(**prompt.inputs, labels=prompt.labels).loss.backward()
    assert step.logits.shape[1] == 1
    assert [len(x) for x in kept[2]] == [12, 25]


@pytest.mark.parametrize(
    ("name", "when", "attention"),
    pairwise(["random", "pyramid_drop", "fastv"], ["before", "after"], ["sdpa", "eager"]),
)
def test_a_bf16_model(name, when, attention, schedule):
    model, prompt = LLAVA.model(attention), batch(LLAVA, (1, 0, 2))
    seen = []

    class Look(type(tr.strategies.build(name))):
        def plan(self, tokens, budget):
            seen.extend(tokens[need].dtype for need in self.needs)
            return super().plan(tokens, budget)

    if when == "before":
        model.to(torch.bfloat16)
    with torch.no_grad(), tr.reduce(model, Look(), schedule, positions="keep") as reduction:
        if when == "after":
            model(**prompt.inputs)
            model.to(torch.bfloat16)
        inputs = prompt.inputs | {"pixel_values": prompt.inputs["pixel_values"].bfloat16()}
        logits = model(**inputs).logits
        model.generate(**inputs, **OPTIONS)
        model(**inputs)
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()
    assert set(seen) <= {torch.float32}  # ranked in fp32
    with torch.no_grad(), masked(model, prompt.visual, reduction.kept):
        wanted = model(**inputs).logits
    text = prompt.real & ~prompt.visual
    assert (logits[text] - wanted[text]).float().abs().max() < 0.25
    assert reduction.report.kv_bytes_full == 2 * 2 * 16 * 6 * int(prompt.real.sum())


def test_positions_are_refused_where_they_are_not_defined(llava):
    class Learned(type(tr.adapters["llava"]())):
        positions = frozenset({"keep"})

    with pytest.raises(ValueError, match="positions='compact' is not defined for Learned"):
        tr.reduce(llava, "random", adapter=Learned(), positions="compact")
    with tr.reduce(llava, "pyramid_drop", tr.Single(2), adapter=Learned()) as reduction:
        assert reduction.positions == "keep"
        run(llava, batch(LLAVA, (1,)))
    with pytest.raises(ValueError, match="no positions 'kept'; did you mean 'keep'"):
        tr.reduce(llava, "random", positions="kept")
    with pytest.raises(ValueError, match="no logits 'txt'; did you mean 'text'"):
        tr.reduce(llava, "random", logits="txt")


def test_wrong_masks_are_refused(llama, schedule):
    prompt = batch(FAMILIES["llama"], (1, 2))
    before = traces(llama)
    with tr.reduce(llama, "random", schedule) as reduction:
        for wrong in (prompt.visual[0], prompt.visual.float(), prompt.visual.tolist()):
            with pytest.raises(TypeError, match="bool tensor of shape"), reduction.visual(wrong):
                pass
        with reduction.visual(prompt.visual[:, :-3]):  # shorter: what follows is text
            run(llama, prompt)
        with (
            pytest.raises(ValueError, match=r"the visual mask has 3 rows, .* called with 2"),
            reduction.visual(torch.cat([prompt.visual, prompt.visual[:1]])),
        ):
            run(llama, prompt)
        with reduction.visual(prompt.visual):
            run(llama, prompt)
    assert reduction.report.visual_tokens == prompt.counts
    assert traces(llama) == before


def test_a_reduction_that_does_nothing_warns(llava, llama, schedule):
    prompt = batch(FAMILIES["llama"], (1,))
    with (
        pytest.warns(tr.ReductionWarning, match=r"mark them with `reduction.visual\(mask\)`"),
        tr.reduce(llama, "random", schedule),
    ):
        run(llama, prompt)  # nobody said which inputs are visual
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with tr.reduce(llava, "none"):
            run(llava, batch(LLAVA, (1,)))
        with tr.reduce(llava, "random", tr.Single(2, 1.0)):
            run(llava, batch(LLAVA, (1,)))
        with tr.reduce(llava, "random", schedule):
            run(llava, batch(LLAVA, (0,)))
            run(llava, batch(LLAVA, (1,)))


def test_arguments_are_checked_before_the_model_is_touched(llava):
    before = traces(llava)
    with pytest.raises(KeyError, match="did you mean 'pyramid_drop'"):
        tr.reduce(llava, "pyramid_dorp")
    with pytest.raises(TypeError, match="a strategy is a registered name or an instance"):
        tr.reduce(llava, tr.PyramidDrop)
    with pytest.raises(ValueError, match="outside a decoder of 6 layers"):
        tr.reduce(llava, "random", tr.Single(6, 0.5))
    with pytest.raises(ValueError, match="no adapter reads the model family"):
        tr.reduce(torch.nn.Linear(2, 2), "random")
    assert traces(llava) == before


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # read by PEFT
@pytest.mark.parametrize(
    ("order", "logits", "name"),
    pairwise(["lora first", "reduce first"], ["full", "text"], ["pyramid_drop", "fastv"]),
)
def test_lora(order, logits, name, schedule):
    """PEFT before or after reduce(): the same loss, gradients, and words."""
    peft = pytest.importorskip("peft")
    prompt = batch(LLAVA, (1, 0, 2))
    config = peft.LoraConfig(
        r=4, target_modules=r".*language_model.*(q_proj|k_proj|v_proj|up_proj)",
        init_lora_weights=False, lora_dropout=0.0,
    )  # fmt: skip

    def wrapped(model):
        torch.manual_seed(3)
        return peft.get_peft_model(model, config)

    plain = wrapped(LLAVA.model())
    merged = wrapped(LLAVA.model()).merge_and_unload()
    model = LLAVA.model()
    if order == "lora first":
        model = wrapped(model)
        reduction = tr.reduce(model, name, schedule, logits=logits, positions="keep")
    else:
        reduction = tr.reduce(model, name, schedule, logits=logits, positions="keep")
        model = wrapped(model)
    loss = model(**prompt.inputs, labels=prompt.labels).loss
    loss.backward()
    kept = reduction.kept
    gradients = [p.grad for n, p in model.named_parameters() if "lora_" in n]
    assert gradients
    assert all(g is not None and g.abs().sum() > 0 for g in gradients)
    said = model.eval().generate(**prompt.inputs, **OPTIONS)
    reduction.remove()
    with tr.reduce(merged, name, schedule, logits=logits, positions="keep") as other:
        with torch.no_grad():
            wanted = merged(**prompt.inputs, labels=prompt.labels).loss
        for layer in (2, 4):
            for a, b in zip(kept[layer], other.kept[layer], strict=True):
                assert torch.equal(a, b)
        assert torch.equal(said, merged.generate(**prompt.inputs, **OPTIONS))
    torch.testing.assert_close(loss, wanted, atol=1e-5, rtol=1e-5)
    assert torch.equal(run(model, prompt), run(plain.eval(), prompt))
