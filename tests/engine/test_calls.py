"""A call's state begins and ends with the call: interrupts, threads, packed rows, replicas."""

import asyncio
import copy
import pickle
import threading
import warnings

import pytest
import torch
from torch import nn
from transformers.cache_utils import DynamicCache

import tokenreduce as tr
from tokenreduce.engine.call import cache_of, with_cache
from tokenreduce.scheduler import Stop
from tokenreduce.testing.batches import batch
from tokenreduce.testing.models import FAMILIES
from tokenreduce.testing.oracle import decoder_of
from tokenreduce.tokens import Plan

AT = tr.Explicit((2, 4), (0.5, 0.25))
LLAVA = FAMILIES["llava"]


@pytest.fixture
def llava():
    return LLAVA.model()


@pytest.fixture
def prompt():
    return batch(LLAVA, (1,))


def hooks_of(model):
    """How many hooks of ours are on a model: transformers puts on some for its outputs."""
    hooks = [
        hook
        for part in model.modules()
        for hook in (*part._forward_pre_hooks.values(), *part._forward_hooks.values())
    ]
    return sum(type(h).__module__.startswith("tokenreduce") or _made_by_us(h) for h in hooks)


def _made_by_us(hook):
    return str(getattr(hook, "__module__", "")).startswith("tokenreduce")


# -- whatever ends a call, the next one starts clean -----------------------------------------------


@pytest.mark.parametrize("logits", ["full", "text"])
@pytest.mark.parametrize("strategy", ["pyramid_drop", "fastv"])
@pytest.mark.parametrize("where", ["layer", "attention", "decoder"])
def test_an_interrupt_leaves_nothing_for_the_next_call(llava, prompt, logits, strategy, where):
    with tr.reduce(llava, strategy, AT, logits=logits), torch.no_grad():
        plain = llava(**prompt.inputs).logits
    layers = decoder_of(llava).layers
    module = {"layer": layers[3], "attention": layers[3].self_attn, "decoder": layers[0].mlp}[where]

    def stop(*_):
        raise KeyboardInterrupt

    with tr.reduce(llava, strategy, AT, logits=logits), torch.no_grad():
        before = hooks_of(llava)
        handle = module.register_forward_pre_hook(stop)
        with pytest.raises(KeyboardInterrupt):
            llava(**prompt.inputs, labels=prompt.labels)
        handle.remove()
        again = llava(**prompt.inputs).logits
        assert hooks_of(llava) == before
    assert torch.equal(plain, again)
    assert not hooks_of(llava)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_hooks_of_a_pass_are_gone_when_the_reduction_is(llava, prompt, error):
    def stop(*_):
        raise error

    reduction = tr.reduce(llava, "fastv", tr.Single(3, 0.5))
    handle = decoder_of(llava).layers[2].register_forward_pre_hook(stop)
    with pytest.raises(error):
        llava(**prompt.inputs)
    handle.remove()
    reduction._applied = True
    reduction.remove()
    assert not hooks_of(llava)


# -- what a caller says holds where the caller is --------------------------------------------------


def in_thread(call):
    found = []

    def run():
        try:
            found.append(call())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


@pytest.fixture
def marked():
    model, given = FAMILIES["llama"].model(), batch(FAMILIES["llama"], (1,))
    return model, given


def test_a_task_sees_the_marks_of_its_caller(marked):
    model, given = marked
    reduction = tr.reduce(model, "stride", AT)
    with reduction, torch.no_grad(), reduction.visual(given.visual):
        here = model(**given.inputs).logits
        there = asyncio.run(asyncio.to_thread(lambda: model(**given.inputs).logits))
    assert torch.equal(here, there)


@pytest.mark.parametrize("said", ["visual", "labels"])
def test_a_thread_that_does_not_see_the_marks_warns(marked, said):
    model, given = marked
    with tr.reduce(model, "stride", AT) as reduction, torch.no_grad():
        what = {"visual": given.visual, "labels": given.labels}[said]
        with (
            getattr(reduction, said)(what),
            pytest.warns(tr.ReductionWarning, match="this thread .* does not see"),
        ):
            in_thread(lambda: model(**given.inputs))
        reduction._applied = True


def test_a_thread_that_does_not_see_the_labels_of_pictures_warns(llava, prompt):
    """Placeholders mark the picture in every thread; which token asks is said in one alone."""
    with tr.reduce(llava, "pyramid_drop", AT) as reduction, torch.no_grad():
        with (
            reduction.labels(prompt.labels),
            pytest.warns(tr.ReductionWarning, match="this thread .* does not see"),
        ):
            in_thread(lambda: llava(**prompt.inputs))
        in_thread(lambda: llava(**prompt.inputs))  # the block is closed: a warning is an error


def test_a_thread_with_marks_of_its_own_is_quiet(marked):
    model, given = marked

    def own():
        with reduction.visual(given.visual):
            return model(**given.inputs).logits

    with tr.reduce(model, "stride", AT) as reduction, reduction.visual(given.visual):
        here, there = model(**given.inputs).logits, in_thread(own)
    assert torch.equal(here, there)


# -- rows that hold several prompts ----------------------------------------------------------------


def packed(family="llava"):
    one, two = batch(FAMILIES[family], (1,)), batch(FAMILIES[family], (1,), seed=3)
    names = [name for name in one.inputs if name not in ("input_ids", "attention_mask")]
    inputs = {name: torch.cat([one.inputs[name], two.inputs[name]]) for name in names}
    ids = torch.cat([one.inputs["input_ids"], two.inputs["input_ids"]], dim=1)
    at = torch.cat([torch.arange(x.inputs["input_ids"].shape[1]) for x in (one, two)])[None]
    return inputs | {"input_ids": ids}, at


@pytest.mark.parametrize("positions", ["keep", "compact"])
def test_packed_rows_are_refused_in_one_line(llava, positions):
    given, at = packed()
    refused = pytest.raises(tr.ContractError, match="packed into one row")
    with refused as error, tr.reduce(llava, "pyramid_drop", AT, positions=positions):
        llava(**given, position_ids=at)
    assert "\n" not in str(error.value)
    length = torch.tensor([0, 3, at.shape[1]], dtype=torch.int32)
    with refused, tr.reduce(llava, "pyramid_drop", AT, positions=positions):
        llava(**given, cu_seq_lens_q=length, cu_seq_lens_k=length)


@pytest.mark.parametrize("floating", [False, True])
def test_rows_packed_by_a_mask_alone_are_refused(llava, floating):
    """Blocks of a mask keep the samples apart, though positions count on."""
    given, at = packed()
    n, total = int((at[0] == 0).nonzero()[-1]), at.shape[1]
    whole = torch.ones(total, total, dtype=torch.bool).tril()
    apart = whole.clone()
    apart[n:, :n] = False
    as_given = (lambda x: torch.where(x, 0.0, float("-inf"))) if floating else (lambda x: x)
    with tr.reduce(llava, "fastv", AT), torch.no_grad():
        with pytest.raises(tr.ContractError, match="packed into one row"):
            llava(**given, attention_mask=as_given(apart)[None, None])
        one = llava(**given, attention_mask=as_given(whole)[None, None]).logits
        assert torch.allclose(one, llava(**given).logits, atol=1e-5)


def test_positions_that_only_count_on_are_one_prompt(llava):
    """Those of `generate`: padding counts as nothing, text goes on behind a picture."""
    given = batch(LLAVA, (1, 2), "left")
    with tr.reduce(llava, "pyramid_drop", AT) as reduction:
        llava(**given.inputs, position_ids=given.positions())
    assert all(reduction.report.applied)


# -- the query token -------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["pyramid_drop", "fastv"])
def test_padding_behind_a_completion_does_not_move_the_query_token(llava, strategy):
    """Log-probabilities of completions, as RL trainers ask for them: the choice of the rollout."""
    prompt, completion = batch(LLAVA, (1,)), torch.tensor([[11, 12, 13]])
    n = completion.shape[1]
    for filler in (0, 2, 5):
        ids = torch.cat(
            [prompt.inputs["input_ids"], completion, torch.zeros(1, filler, dtype=torch.long)], 1
        )
        mask = torch.ones_like(ids)
        mask[:, ids.shape[1] - filler :] = 0
        inputs = prompt.inputs | {"input_ids": ids, "attention_mask": mask}
        with tr.reduce(llava, strategy, AT) as reduction, torch.no_grad():
            llava(**inputs, logits_to_keep=n + filler + 1, use_cache=False)
            there = reduction.kept
            llava(**prompt.inputs)
            rollout = reduction.kept
        assert all(torch.equal(there[i][0], rollout[i][0]) for i in rollout)


@pytest.mark.parametrize("strategy", ["pyramid_drop", "fastv"])
def test_positions_whose_logits_are_wanted_ask_as_their_number_does(llava, prompt, strategy):
    length = prompt.inputs["input_ids"].shape[1]
    with tr.reduce(llava, strategy, AT) as reduction, torch.no_grad():

        def kept(**wanted):
            llava(**prompt.inputs, **wanted)
            return {i: index[0].tolist() for i, index in reduction.kept.items()}

        for n in (1, 3, 5):
            as_number = kept(logits_to_keep=n)
            assert kept(logits_to_keep=torch.arange(length - n, length)) == as_number
        # wanted from before the picture on: no answer begins there, and the last token asks
        usual = kept()
        assert kept(logits_to_keep=length) == kept(logits_to_keep=10**6) == usual
        assert kept(logits_to_keep=torch.arange(length)) == usual


# -- plans and budgets -----------------------------------------------------------------------------


class Fewer(tr.Stride):
    """Marks one kept token of each sample as filler."""

    def plan(self, tokens, budget):
        plan = super().plan(tokens, budget)
        valid = torch.ones_like(plan.keep, dtype=torch.bool)
        valid[:, 0] = False
        return Plan(plan.keep, valid)


def test_a_plan_with_fewer_valid_tokens_than_its_budget_is_refused(llava, prompt):
    refused = pytest.raises(ValueError, match=r"Fewer marked .* keeps exactly its budget")
    with refused, tr.reduce(llava, Fewer(), AT):
        llava(**prompt.inputs)


WRONG = {
    "twice": lambda keep: keep * 0,
    "descending": lambda keep: keep.flip(1),
    "beyond": lambda keep: keep + 20,
    "negative": lambda keep: keep - 1,
    "swapped": lambda keep: torch.cat([keep[:, :1], keep[:, 2:3], keep[:, 1:2], keep[:, 3:]], 1),
    "int32": lambda keep: keep.int(),
    "float": lambda keep: keep.float(),
}


@pytest.mark.parametrize("how", WRONG)
@pytest.mark.parametrize("images", [(1,), (2, 1)])
def test_a_plan_of_what_is_no_token_is_refused_by_name(llava, how, images):
    class Odd(tr.Stride):
        def plan(self, tokens, budget):
            k = max(budget)
            keep = torch.arange(k).expand(len(budget), -1)
            valid = keep < torch.tensor(budget)[:, None]
            return Plan(WRONG[how](keep), valid.flip(1) if how == "descending" else valid)

    match = r"Odd kept .*at layer 2.*(`keep` ascends, from 0 to|torch\.long)"
    with pytest.raises(ValueError, match=match), tr.reduce(llava, Odd(), AT):
        llava(**batch(LLAVA, images).inputs)


@pytest.mark.parametrize("count", [1, 4, 5, 100])
def test_a_share_above_nothing_leaves_a_token(count):
    assert tr.Stop(0, 0.098).count(count) == max(round(0.098 * count), 1)
    assert tr.Stop(0, 0.098, at_least=0).count(count) == round(0.098 * count)
    assert tr.Stop(0, 0.0).count(count) == 0
    assert tr.Stop(0, 0.098).count(0) == 0
    (stop,) = tr.Single(0, 0.098, at_least=3).stops(4)
    assert stop.count(count) == max(round(0.098 * count), min(3, count))


def test_the_report_says_where_a_floor_has_raised_a_budget(llava, prompt):
    with tr.reduce(llava, "stride", tr.Single(2, 0.01)) as reduction:
        llava(**prompt.inputs)
    assert reduction.report.stops[0]["kept"] == [1]
    assert reduction.report.stops[0]["raised"] == [True]
    assert "at least 1" in str(reduction.report)


@pytest.mark.parametrize("strategy", ["fastv", "sparsevlm", "pyramid_drop"])
def test_dropout_draws_what_it_draws_without_a_reduction(llava, prompt, strategy):
    """Law 1 in training, as with LoRA: measuring moves no random number on."""

    class Dropped(nn.Linear):
        def forward(self, x):
            return super().forward(nn.functional.dropout(x, 0.5, self.training))

    for layer in decoder_of(llava).layers:
        layer.self_attn.q_proj.__class__ = layer.self_attn.k_proj.__class__ = Dropped
    llava.train()

    def loss(**how):
        torch.manual_seed(0)
        return llava(**prompt.inputs, labels=prompt.labels, use_cache=False).loss

    plain = loss()
    with tr.reduce(llava, strategy, tr.Single(2, 1.0)):
        assert torch.equal(loss(), plain)
    with tr.reduce(llava, strategy, tr.Single(5, 0.5)):
        torch.manual_seed(0)
        states = []
        decoder_of(llava).layers[4].register_forward_pre_hook(
            lambda *_: states.append(torch.get_rng_state())
        )
        llava(**prompt.inputs, labels=prompt.labels, use_cache=False)
    torch.manual_seed(0)
    llava(**prompt.inputs, labels=prompt.labels, use_cache=False)
    assert torch.equal(*states)


@pytest.mark.parametrize(("keep", "watched"), [(1.0, 0), (0.5, 1)])
def test_nothing_is_measured_where_all_tokens_stay(llava, prompt, keep, watched):
    before, seen = decoder_of(llava).layers[1], []
    with tr.reduce(llava, "fastv", tr.Single(2, keep)):
        before.input_layernorm.register_forward_hook(
            lambda *_: seen.append(hooks_of(before.self_attn.k_proj))
        )
        llava(**prompt.inputs)
    assert seen[-1] == watched


# -- a reduction as an object ----------------------------------------------------------------------


def test_a_second_block_applies_the_reduction_again(llava, prompt):
    reduction = tr.reduce(llava, "stride", AT)
    lengths = []
    for _ in range(2):
        with reduction:
            cache = cache_of(llava(**prompt.inputs))
            lengths.append([layer.keys.shape[-2] for layer in cache.layers])
    assert lengths[0] == lengths[1]
    assert len(set(lengths[0])) > 1
    assert not hooks_of(llava)


@pytest.mark.parametrize("strategy", ["stride", tr.ToMe(tower="merged")])
def test_a_block_within_a_block_ends_alone(llava, prompt, strategy):
    """The outer block is as reduced behind the inner one as before it."""
    reduction = tr.reduce(llava, strategy)
    with torch.no_grad():
        with reduction:
            before = llava(**prompt.inputs).logits
            with reduction:
                assert torch.equal(llava(**prompt.inputs).logits, before)
            assert torch.equal(llava(**prompt.inputs).logits, before)
        assert not hooks_of(llava)
        assert not torch.equal(llava(**prompt.inputs).logits, before)


def test_remove_takes_a_model():
    with pytest.raises(TypeError, match="takes the model that reduce"):
        tr.remove("org/name")


def test_a_reduction_that_fails_half_way_leaves_nothing(llava, monkeypatch):
    def broken(self, base):
        raise RuntimeError("an adapter's own mistake")

    monkeypatch.setattr(type(tr.adapters["llava"]()), "tower", broken)
    with pytest.raises((RuntimeError, tr.ContractError), match="own mistake"):
        tr.reduce(llava, "stride")
    assert not hooks_of(llava)
    monkeypatch.undo()
    tr.reduce(llava, "none").remove()


def test_remove_takes_off_what_nobody_holds(llava, prompt):
    tr.reduce(llava, "none")
    assert hooks_of(llava)
    assert tr.remove(llava)
    assert not hooks_of(llava)
    assert not tr.remove(llava)
    assert "get_image_features" not in vars(llava.model)


@pytest.mark.parametrize("name", ["qwen3_vl", "llava_next", "gemma3", "idefics3", "paligemma"])
def test_an_adapter_is_not_taken_at_its_word(name):
    """Named for a model of another build, it is refused for what it would have misread."""
    model = FAMILIES["glm4v" if name != "qwen3_vl" else "perception_lm"].model()
    with pytest.raises(ValueError, match=r"(?i)adapter|built otherwise|none of"):
        tr.reduce(model, "fastv", adapter=name)
    assert not hooks_of(model)


@pytest.mark.parametrize("family", ["llava", "llava_onevision", "perception_lm", "qwen3_vl"])
def test_every_adapter_says_at_once_what_it_misses(family):
    """A pass under any adapter that is named for a model runs, or `reduce` has refused it."""
    model, given = FAMILIES[family].model(), batch(FAMILIES[family], (1,))
    refused = []
    for name in tr.adapters:
        try:
            reduction = tr.reduce(model, "stride", AT, adapter=name)
        except (ValueError, TypeError):
            refused.append(name)
            continue
        try:
            with torch.no_grad():
                model(**given.inputs)
        finally:
            reduction._applied = True  # a bare decoder's adapter knows no placeholder
            reduction.remove()
    assert refused
    assert FAMILIES[family].adapter not in refused


def test_a_name_in_place_of_a_model_is_told(llava):
    with pytest.raises(TypeError, match="a model that is loaded, not 'org/name'"):
        tr.reduce("org/name", "fastv")


def test_a_model_without_weights_is_refused():
    with torch.device("meta"):
        model = type(LLAVA.model())(LLAVA.model().config)
    with pytest.raises(tr.ContractError, match="meta device"):
        tr.reduce(model, "fastv")


def test_replicas_are_refused(llava, prompt):
    with tr.reduce(llava, "none"):
        replica = llava._replicate_for_data_parallel()
        with pytest.raises(tr.ContractError, match=r"nn\.DataParallel"):
            replica(**prompt.inputs)


def test_a_text_prompt_beside_a_picture_keeps_the_record(llava, prompt):
    """Classifier-free guidance runs a second, text-only prompt with a cache of its own."""
    text = torch.tensor([[5, 7, 9]])
    with tr.reduce(llava, "stride", AT) as reduction:
        first = llava(**prompt.inputs)
        llava(input_ids=text, use_cache=True)
        llava(input_ids=text[:, :1], **with_cache(llava, cache_of(first)))
        assert reduction.report.visual_tokens == prompt.counts
        del first
        llava(input_ids=text, use_cache=True)
        assert reduction.report.visual_tokens == [0]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@pytest.mark.parametrize("family", ["llava", "gemma3"])
def test_a_reduced_cache_can_be_copied_and_pickled(copied, family):
    model, prompt = FAMILIES[family].model(), batch(FAMILIES[family], (1,))
    with tr.reduce(model, "stride", AT), torch.no_grad():
        one = cache_of(model(**prompt.inputs))
        two = copied(one)
        step = {"input_ids": torch.tensor([[9]])}
        out = [model(**step, **with_cache(model, cache)).logits for cache in (one, two)]
    assert torch.equal(*out)


def test_an_offloaded_cache_is_refused(llava, prompt):
    cache = DynamicCache(config=llava.config.get_text_config())
    cache.offloading = True
    refused = pytest.raises(ValueError, match="offload")
    with refused, tr.reduce(llava, "stride", AT):
        llava(**prompt.inputs, **with_cache(llava, cache))


def test_a_picture_given_by_hand_without_what_is_read_of_it_is_refused(llava):
    embeds = torch.zeros(1, 20, llava.get_input_embeddings().weight.shape[1])
    mask = torch.zeros(1, 20, dtype=torch.bool).index_fill(1, torch.arange(2, 18), True)
    refused = pytest.raises(ValueError, match="needs 'class_attention', which a picture")
    reduction = tr.reduce(llava, "fastervlm", AT)
    with refused, reduction.visual(mask, [tr.Picture.grid(4, 4)]):
        llava(inputs_embeds=embeds)


@pytest.mark.slow
def test_a_reduced_model_is_not_exported(llava, prompt):
    with tr.reduce(llava, "none"), pytest.raises(Exception, match="cannot be exported"):
        torch.export.export(llava, (), prompt.inputs, strict=False)


@pytest.mark.filterwarnings("ignore")  # torch.jit.trace warns of itself
def test_a_reduced_model_is_not_traced(llava, prompt):
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = llava

        def forward(self, ids, pixels):
            return self.model(input_ids=ids, pixel_values=pixels, use_cache=False).logits

    given = prompt.inputs["input_ids"], prompt.inputs["pixel_values"]
    with tr.reduce(llava, "none"), pytest.raises(tr.ContractError, match="exported or traced"):
        torch.jit.trace(Root(), given, check_trace=False)


def test_weights_that_come_when_they_are_needed(llava, prompt):
    """`accelerate.cpu_offload` keeps them elsewhere: a layer's own are on the meta device."""
    accelerate = pytest.importorskip("accelerate")
    with tr.reduce(llava, "fastv", AT), torch.no_grad():
        plain = llava(**prompt.inputs).logits
    accelerate.cpu_offload(llava, execution_device=torch.device("cpu"))
    with tr.reduce(llava, "fastv", AT), torch.no_grad():
        assert torch.equal(llava(**prompt.inputs).logits, plain)


class FirstThen(tr.Scheduler):
    """One stop, which moves when training begins."""

    def __init__(self, first, then):
        self.first, self.then = first, then

    def stops(self, depth, progress=1.0):
        return (Stop(self.first if progress == 1 else self.then, 0.5),)


@pytest.mark.parametrize(("first", "then"), [(1, 2), (3, 1)])
def test_stops_that_move_during_a_pass_move_after_it(llava, prompt, first, then):
    with tr.reduce(llava, "random", FirstThen(first, then)) as reduction, torch.no_grad():
        layer = reduction.decoder.layers[1]
        handle = layer.register_forward_hook(lambda *_: setattr(reduction, "progress", 0.5))
        llava(**prompt.inputs)
        assert list(reduction.kept) == [first]
        assert [stop["layer"] for stop in reduction.report.stops] == [first]
        handle.remove()
        llava(**prompt.inputs)
        assert list(reduction.kept) == [then]


def test_what_goes_along_comes_back_and_is_taken_off_before_a_warning(llava):
    other = copy.deepcopy(llava)
    reduction, along = tr.reduce(llava, "random", AT), tr.reduce(other, "random", AT)
    reduction.take_along(along)
    on = hooks_of(other)
    for _ in range(2):  # applied again by the second block
        reduction.__enter__()
        assert hooks_of(other) == on > 0
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(tr.ReductionWarning):
                reduction.__exit__(None, None, None)
        assert hooks_of(other) == 0
