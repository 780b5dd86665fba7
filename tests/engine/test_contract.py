"""What the engine relies on is checked: each way in which a model may break it is told, once.

Deliberate faults in stubs of transformers' own classes, since one that a release really has was
found only when its answers had changed.
"""

import inspect
import re

import pytest
import torch
import transformers
from torch import nn
from transformers.cache_utils import DynamicCache

import tokenreduce as tr
from tokenreduce.engine import call, contract, wiring
from tokenreduce.engine.call import LayerCall, cache_of, with_cache
from tokenreduce.testing.batches import batch
from tokenreduce.testing.models import FAMILIES
from tokenreduce.testing.oracle import decoder_of

TEXT = torch.tensor([[5, 7, 9, 11]])
AT = tr.Explicit((2, 4), (0.5, 0.25))


@pytest.fixture
def llava():
    return FAMILIES["llava"].model()


@pytest.fixture
def prompt():
    return batch(FAMILIES["llava"], (1,))


def kind_of(layer, **methods):
    """The layer's class with other methods."""
    layer.__class__ = type(f"Stub{type(layer).__name__}", (type(layer),), methods)


def computes_its_loss(model, shifted):
    """The model with a forward that hands its loss what comes with the labels, or does not."""
    plain = type(model).forward

    def handing_on(self, input_ids=None, labels=None, **rest):
        out = plain(self, input_ids=input_ids, **rest)
        if labels is not None:
            out.loss = self.loss_function(logits=out.logits, labels=labels, vocab_size=99, **rest)
        return out

    def keeping(self, input_ids=None, labels=None, **rest):
        out = plain(self, input_ids=input_ids, **rest)
        if labels is not None:
            out.loss = self.loss_function(logits=out.logits, labels=labels, vocab_size=99)
        return out

    kind_of(model, forward=handing_on if shifted else keeping)


# -- before anything runs --------------------------------------------------------------------------


def test_a_renamed_argument_of_a_layer_is_refused_in_one_line_with_the_way_out(llava):
    plain = type(decoder_of(llava).layers[0]).forward

    def forward(self, hidden_states, attention_mask=None, cache=None, tables=None, **rest):
        return plain(self, hidden_states, attention_mask, position_embeddings=tables, **rest)

    for layer in decoder_of(llava).layers:
        kind_of(layer, forward=forward)
    with pytest.raises(tr.ContractError) as error:
        tr.reduce(llava, "pyramid_drop")
    said = str(error.value)
    assert "\n" not in said
    for part in (transformers.__version__, "LlavaForCond", "position_embeddings", "5.24"):
        assert part in said


def test_a_decoder_without_keywords_is_refused(llava):
    decoder = decoder_of(llava)

    def forward(self, input_ids=None, inputs_embeds=None, attention_mask=None):
        raise AssertionError("never runs")

    kind_of(decoder, forward=forward)
    with pytest.raises(tr.ContractError, match=r"takes no \*\*kwargs"):
        tr.reduce(llava, "fastv")


def test_attention_that_writes_into_another_layer_of_the_cache_is_refused(llava):
    decoder_of(llava).layers[3].self_attn.layer_idx = 2
    with pytest.raises(tr.ContractError, match="3 writes into cache layer 2"):
        tr.reduce(llava, "fastv")


def test_cache_layers_that_cannot_be_short_are_refused_by_their_kind():
    model = FAMILIES["llava"].model()
    config = decoder_of(model).config
    config.layer_types = ["linear_attention", *["full_attention"] * (config.num_hidden_layers - 1)]
    with pytest.raises(tr.ContractError, match="linear_attention"):
        tr.reduce(model, "fastv")


@pytest.mark.parametrize("shifted", [True, False])
def test_a_loss_that_knows_no_aligned_labels_is_refused_with_text_logits(llava, prompt, shifted):
    """As those of Gemma 3, ViP-LLaVA, Qwen3-VL and GLM-4.1V are, up to transformers 5.16."""
    computes_its_loss(llava, shifted)
    given = {**prompt.inputs, "labels": prompt.labels}
    with torch.no_grad(), tr.reduce(llava, "pyramid_drop", AT):
        full = llava(**given).loss
    with torch.no_grad(), tr.reduce(llava, "pyramid_drop", AT, logits="text"):
        if shifted:
            torch.testing.assert_close(llava(**given).loss, full)
            return
        with pytest.raises(tr.ContractError) as error:
            llava(**given)
        assert llava(**prompt.inputs).logits.shape[1] < prompt.visual.shape[1]  # without labels
    said = str(error.value)
    assert "\n" not in said
    for part in (transformers.__version__, "LlavaForCond", "shift_labels", 'logits="full"'):
        assert part in said


def test_a_forward_whose_loss_cannot_be_read_is_believed(llava):
    assert contract.aligned_loss(llava)
    space = {}
    exec("def forward(self, input_ids=None, **rest): return self.plain(input_ids, **rest)", space)
    llava.forward = space["forward"].__get__(llava)  # no source: read from the class behind it
    assert contract.aligned_loss(llava)
    assert contract.aligned_loss(torch.nn.Linear(1, 1))


def test_pictures_that_the_model_would_leave_out_are_refused(llava, prompt):
    """Encoded beforehand, for a release whose models do not know the argument (up to 5.17)."""
    base = llava.model
    encoded = base.get_image_features(prompt.inputs.pop("pixel_values"), return_dict=True)
    plain = type(base).forward

    def forward(self, input_ids=None, attention_mask=None, **rest):
        return plain(self, input_ids=input_ids, attention_mask=attention_mask)

    kind_of(base, forward=forward)
    match = r"no `mm_encoder_outputs`.*pass the pixel values"
    with pytest.raises(tr.ContractError, match=match), tr.reduce(llava, "random", AT):
        base(**prompt.inputs, mm_encoder_outputs={"image": encoded})


def test_nothing_stays_on_a_model_that_was_refused(llava):
    decoder_of(llava).layers[3].self_attn.layer_idx = 2
    with pytest.raises(tr.ContractError):
        tr.reduce(llava, "fastv")
    assert not any(module._forward_pre_hooks for module in llava.modules())


@pytest.mark.parametrize("broken", ["update", "get_mask_sizes"])
def test_a_cache_without_what_is_used_of_it_is_refused(llava, monkeypatch, broken):
    layer = type("Cut", (), {})
    monkeypatch.setattr(contract, "CACHE_PARTS", {layer: (broken,)})
    with pytest.raises(tr.ContractError, match=f"Cut has no `{broken}`"):
        tr.reduce(llava, "fastv")


@pytest.mark.parametrize("version", ["5.90.1", "6.0.0.dev0", "5.1.0"])
def test_an_unmeasured_transformers_is_told_once(llava, monkeypatch, version):
    monkeypatch.setattr(contract, "installed", lambda: version)
    monkeypatch.setattr(contract, "_told", set())
    with pytest.warns(tr.ReductionWarning, match=re.escape(version)):
        tr.reduce(llava, "none").remove()
    tr.reduce(llava, "none").remove()  # a second warning would be an error


def test_the_installed_release_is_a_measured_one():
    number = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    assert contract.OLDEST <= number <= contract.NEWEST


# -- at a pass -------------------------------------------------------------------------------------


def test_a_cache_is_found_under_any_name(llava, prompt):
    """A layer that calls it otherwise is served: its answers are those of the usual names."""
    with tr.reduce(llava, "pyramid_drop", AT):
        usual = llava.generate(**prompt.inputs, max_new_tokens=4, do_sample=False)
    name = call.cache_name(decoder_of(llava).layers[0].forward)
    plain = type(decoder_of(llava).layers[0]).forward

    def forward(self, hidden_states, attention_mask=None, position_embeddings=None, **rest):
        rest[name] = rest.pop("storage")
        return plain(
            self, hidden_states, attention_mask, position_embeddings=position_embeddings, **rest
        )

    def called(self, *args, **kwargs):
        kwargs["storage"] = kwargs.pop(name)
        return nn.Module.__call__(self, *args, **kwargs)

    for layer in decoder_of(llava).layers:
        kind_of(layer, forward=forward, __call__=called)
    with tr.reduce(llava, "pyramid_drop", AT) as reduction:
        renamed = llava.generate(**prompt.inputs, max_new_tokens=4, do_sample=False)
    assert torch.equal(usual, renamed)
    assert reduction.report.applied == [True]


def unread(monkeypatch):
    """The line that reads the cache is gone."""
    read = LayerCall.read.__func__

    def without(cls, *given):
        found = read(cls, *given)
        found.cache = None
        return found

    monkeypatch.setattr(LayerCall, "read", classmethod(without))


@pytest.mark.parametrize("padded", [False, True])
def test_a_cache_that_no_layer_is_seen_to_get_is_an_error(llava, monkeypatch, padded):
    unread(monkeypatch)
    given = batch(FAMILIES["llava"], (1, 2) if padded else (1,))
    with pytest.raises(tr.ContractError), tr.reduce(llava, "pyramid_drop", AT):
        llava.generate(**given.inputs, max_new_tokens=3)
    with tr.reduce(llava, "pyramid_drop", AT) as reduction:  # training has no cache to lose
        llava(**given.inputs, use_cache=False)
    assert all(reduction.report.applied)


def skipping(decoder, gone):
    """A decoder that leaves one layer out."""

    class Some(nn.ModuleList):
        def __getitem__(self, at):
            found = super().__getitem__(at)
            if not isinstance(at, slice):
                return found
            return [layer for i, layer in enumerate(found) if i != gone]

    decoder.layers.__class__ = Some


def test_a_stop_that_is_never_reached_is_an_error(llava, prompt):
    skipping(decoder_of(llava), 4)
    match = "stop at layer 4 was never reached"
    with pytest.raises(tr.ContractError, match=match), tr.reduce(llava, "pyramid_drop", AT):
        llava(**prompt.inputs, use_cache=False)


def test_a_layer_behind_a_stop_that_is_skipped_leaves_a_plain_cache_and_that_is_an_error(
    llava, prompt
):
    skipping(decoder_of(llava), 5)
    match = "layer 5 of the cache is a plain DynamicLayer"
    with pytest.raises(tr.ContractError, match=match), tr.reduce(llava, "pyramid_drop", AT):
        llava(**prompt.inputs, use_cache=True)


def test_a_layer_that_stores_nothing_is_an_error(llava, prompt):
    attention = decoder_of(llava).layers[3].self_attn
    plain = type(attention).forward

    def forward(self, hidden_states, **given):
        return plain(self, hidden_states, **{**given, call.cache_name(plain): None})

    kind_of(attention, forward=forward)
    with (
        pytest.raises(tr.ContractError, match="layer 3 wrote none"),
        tr.reduce(llava, "pyramid_drop", AT),
    ):
        llava(**prompt.inputs, use_cache=True)


def test_a_decoder_that_drops_unknown_keywords_is_an_error(llava, prompt):
    decoder = decoder_of(llava)
    plain = type(decoder).forward

    def forward(self, *args, **kwargs):
        return plain(self, *args, **{k: v for k, v in kwargs.items() if k != wiring.KEY})

    kind_of(decoder, forward=forward)
    with (
        pytest.raises(tr.ContractError, match="layer 2 was never reached"),
        tr.reduce(llava, "pyramid_drop", AT),
    ):
        llava(**prompt.inputs)


class Proxy:
    """Stands before a cache, as a monitor or an offloader may."""

    def __init__(self, cache):
        self._cache = cache

    def __getattr__(self, name):
        return getattr(self._cache, name)


class Paged:
    """Stores keys and values, and has no length (transformers' continuous batching)."""

    def update(self, keys, values, layer, **rest):
        return keys, values


@pytest.mark.parametrize("strange", [lambda: Proxy(DynamicCache()), Paged], ids=["proxy", "paged"])
def test_pictures_are_refused_in_a_strange_cache(llava, prompt, strange):
    match = f"no transformers Cache.*{transformers.__version__}"
    given = prompt.inputs | {"position_ids": prompt.positions()}
    with pytest.raises(tr.ContractError, match=match), tr.reduce(llava, "pyramid_drop", AT):
        llava(**given, **with_cache(llava, strange()))


def test_continuous_batching_of_text_passes_untouched(llava):
    """Its paged cache has no length: an exception there would be an empty answer."""
    options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": -1, "pad_token_id": 0}
    known = inspect.signature(transformers.ContinuousBatchingConfig).parameters
    page = "page_size" if "page_size" in known else "block_size"  # up to transformers 5.17
    small = transformers.ContinuousBatchingConfig(num_blocks=8, max_batch_tokens=32, **{page: 32})
    config = transformers.GenerationConfig(**options)

    def answers():
        found = llava.generate_batch(
            inputs=[[5, 7, 9, 11], [6, 8, 10]],
            generation_config=config,
            continuous_batching_config=small,
            progress_bar=False,
        )
        return [one.generated_tokens for one in found.values()]

    try:
        plain = answers()
    except AttributeError:
        pytest.skip("this transformers cannot batch LLaVA continuously, reduced or not")
    assert [len(answer) for answer in plain] == [3, 3]
    reduction = tr.reduce(llava, "pyramid_drop", AT)
    assert answers() == plain
    with pytest.warns(tr.ReductionWarning, match="without having reduced"):
        reduction.remove()


def test_a_decoding_pass_without_the_cache_of_its_prompt_is_an_error(llava, prompt):
    length = prompt.inputs["input_ids"].shape[1]
    step = {"input_ids": TEXT[:, :1], "attention_mask": torch.ones(1, length + 1)}
    with tr.reduce(llava, "pyramid_drop", AT):
        first = llava(**prompt.inputs, use_cache=True)
        with pytest.raises(tr.ContractError, match="none of its arguments is a cache"):
            llava(**step, use_cache=True)
        llava(**step, **with_cache(llava, cache_of(first)))


def test_a_report_after_every_fault_never_says_that_all_was_kept(llava, prompt, monkeypatch):
    unread(monkeypatch)
    reduction = tr.reduce(llava, "pyramid_drop", AT)
    with pytest.raises(tr.ContractError):
        llava(**prompt.inputs)
    with pytest.raises(RuntimeError, match="no prompt has passed"):
        _ = reduction.report


@pytest.mark.parametrize("family", ["llama", "llava", "qwen2_vl", "gemma3"])
def test_the_names_of_this_release_are_the_ones_that_models_take(family):
    """A cache is handed on without transformers' remark on a name that is gone."""
    model = FAMILIES[family].model()
    with torch.no_grad():
        first = model(input_ids=TEXT, use_cache=True)
        again = model(input_ids=TEXT, **with_cache(model, cache_of(first)))
    assert cache_of(again) is cache_of(first)
    assert cache_of(again).get_seq_length() == 2 * TEXT.shape[1]
    decoder = decoder_of(model)
    assert call.cache_name(decoder.layers[0].forward) == call.cache_name(decoder.forward)


def test_caches_are_found_in_tuples_and_outputs_and_not_in_dictionaries():
    cache = DynamicCache()
    assert cache_of((torch.zeros(1), cache)) is cache
    assert cache_of((torch.zeros(1),)) is None
    assert call.cache_in({"options": {}, "kept": cache}) is cache
    assert call.cache_in({"options": {}, "names": ()}) is None


NAMES = r"(?:past_key_values?|cache)"
SPELLED = re.compile(
    rf"\.past_key_values?\b|\bpast_key_values?\s*=|(?:model|decoder|layer|generate)\(.*\bcache="
    rf"|\b(?:out|output|turn|first)\.cache\b"
    rf"|[\[{{(,]\s*['\"]{NAMES}['\"]"
)


def test_nothing_else_names_the_cache_to_transformers():
    """A name that transformers changes is known to `engine/call.py`, and to nobody besides."""
    from tests.test_imports import ROOT, written

    own = {
        ROOT / "tokenreduce/engine/call.py",
        ROOT / "tests/engine/test_contract.py",
        ROOT / "CHANGELOG.md",
    }
    rooms = ("tokenreduce", "plugins", "tests", "docs", "scripts")
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in written()
        if path not in own and path.relative_to(ROOT).parts[0] in rooms
        for number, line in enumerate(path.read_text(errors="ignore").splitlines(), 1)
        if path.suffix in (".py", ".md", ".toml") and SPELLED.search(line)
    ]
    assert found == []


def test_the_search_would_find_one():
    for line in (
        "out.past_key_values",
        'kwargs.get("cache")',
        "model(ids, cache=kept)",
        "first.cache",
    ):
        assert SPELLED.search(line), line
