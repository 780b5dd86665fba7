"""generate() under a reduction equals generate() of the whole model with the dropped tokens hidden.

The reference is stock transformers with the masks of `tokenreduce.testing.oracle.masked`: it runs
every token through every layer, with its own cache, and knows only which tokens were kept.
"""

from __future__ import annotations

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

import tokenreduce as tr
from tests.pairwise import pairwise
from tokenreduce.testing.batches import batch
from tokenreduce.testing.models import FAMILIES, IMAGE, WORDS
from tokenreduce.testing.oracle import masked

LLAVA = FAMILIES["llava"]
ENDLESS = {"do_sample": False, "eos_token_id": WORDS, "pad_token_id": 0}
"""Up to a token that no model says; up to transformers 5.12 prompt lookup needs one to be named."""
RETURN = {"return_dict_in_generate": True, "output_logits": True}
STRATEGIES = ["random", "pyramid_drop", "fastv"]


def generate(model, prompt, **options):
    torch.manual_seed(0)
    options = {"max_new_tokens": 6, "do_sample": False} | RETURN | options
    return model.generate(**prompt.inputs, **options)


def agree(model, prompt, reduction, out, repeat=1, **options):
    """The hidden-token reference gives the same tokens and logits."""
    visual = prompt.visual.repeat_interleave(repeat, dim=0)
    with masked(model, visual, reduction.kept):
        reference = generate(model, prompt, **options)
    assert torch.equal(out.sequences, reference.sequences)
    for ours, theirs in zip(out.logits, reference.logits, strict=True):
        torch.testing.assert_close(ours, theirs, atol=3e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "side", "attention"), pairwise(STRATEGIES, ["left", "right"], ["sdpa", "eager"])
)
def test_greedy(name, side, attention, schedule):
    model = LLAVA.model(attention)
    prompt = batch(LLAVA, (1, 0, 2), side=side)
    if side == "right":
        prompt = prompt.row(2)  # generate() takes left padding only
    plain = generate(model, prompt)
    with tr.reduce(model, name, schedule, positions="keep") as reduction:
        out = generate(model, prompt)
    agree(model, prompt, reduction, out)
    assert any((a - b).abs().max() > 0.01 for a, b in zip(out.logits, plain.logits, strict=True))


def test_keeping_everything_changes_no_bit(llava):
    prompt = batch(LLAVA)
    plain = generate(llava, prompt)
    everything = tr.Explicit(layers=(0, 3), keeps=(1.0, 1.0))
    with tr.reduce(llava, "pyramid_drop", everything, positions="keep"):
        out = generate(llava, prompt)
    assert torch.equal(out.sequences, plain.sequences)
    assert all(torch.equal(a, b) for a, b in zip(out.logits, plain.logits, strict=True))


def test_sampling_with_several_return_sequences(llava, schedule):
    prompt = batch(LLAVA, (1, 2))
    options = {"do_sample": True, "temperature": 2.0, "num_return_sequences": 3}
    with tr.reduce(llava, "random", schedule) as reduction:
        out = generate(llava, prompt, **options)
    assert len(reduction.report.visual_tokens) == 6
    agree(llava, prompt, reduction, out, repeat=3, **options)
    assert len({tuple(row) for row in out.sequences[:3, -6:].tolist()}) > 1


@pytest.mark.parametrize("positions", ["keep", "compact"])
@pytest.mark.parametrize("images", [(1, 1), (2, 1)])
def test_beams_follow_the_cache(llava, schedule, positions, images):
    """Cached and uncached beam search agree; `random` plans the same at every step."""
    prompt = batch(LLAVA, images)
    options = {"num_beams": 3, "num_return_sequences": 2, "output_scores": True}
    options["suppress_tokens"] = [IMAGE]  # without a cache, transformers itself trips over one
    found = {}
    for cached in (True, False):
        with tr.reduce(llava, "random", schedule, positions=positions) as reduction:
            found[cached] = generate(llava, prompt, use_cache=cached, **options)
        if cached:
            kept = reduction.kept
    assert len(kept[2]) == 3 * len(images)
    if positions == "keep":
        with masked(llava, prompt.visual.repeat_interleave(3, dim=0), kept):
            reference = generate(llava, prompt, **options)
        assert torch.equal(found[True].sequences, reference.sequences)
    plain = [generate(llava, prompt, use_cache=cached, **options) for cached in (True, False)]
    if not torch.equal(plain[0].sequences, plain[1].sequences):
        pytest.skip("this transformers mixes up the images of beams without a cache")
    assert torch.equal(found[True].sequences, found[False].sequences)
    torch.testing.assert_close(
        found[True].sequences_scores, found[False].sequences_scores, atol=2e-5, rtol=1e-5
    )


@pytest.mark.parametrize("positions", ["keep", "compact"])
@pytest.mark.parametrize("layer", [0, 3])
def test_cached_equals_uncached(llava, positions, layer):
    prompt = batch(LLAVA, (1, 0, 2))
    outputs = []
    for cached in (True, False):
        with tr.reduce(llava, "random", tr.Single(layer, 0.4), positions=positions):
            outputs.append(generate(llava, prompt, use_cache=cached, suppress_tokens=[IMAGE]))
    assert torch.equal(outputs[0].sequences, outputs[1].sequences)
    for a, b in zip(outputs[0].logits, outputs[1].logits, strict=True):
        torch.testing.assert_close(a, b, atol=3e-5, rtol=1e-5)


@pytest.mark.parametrize("layer", [0, 3])
@pytest.mark.parametrize("name", ["random", "fastv"])
def test_prompt_lookup_crops_the_cache(llava, name, layer):
    prompt = batch(LLAVA, (1,))
    plan = tr.Single(layer, 0.4)
    with tr.reduce(llava, name, plan, positions="keep") as reduction:
        out = llava.generate(
            **prompt.inputs, max_new_tokens=12, prompt_lookup_num_tokens=3, **ENDLESS
        )
    with masked(llava, prompt.visual, reduction.kept):
        reference = llava.generate(**prompt.inputs, max_new_tokens=12, **ENDLESS)
    length = reference.shape[1]
    assert out.shape[1] - length in (0, 1)  # older releases take one draft too many at the end
    assert torch.equal(out[:, :length], reference)


def test_an_assistant_model_drafts(llava, schedule):
    prompt = batch(LLAVA, (1,))
    assistant = LLAVA.model()
    with torch.no_grad():
        assistant.lm_head.weight.add_(torch.randn_like(assistant.lm_head.weight) * 0.05)
    try:
        plain = llava.generate(
            **prompt.inputs, max_new_tokens=8, do_sample=False, assistant_model=assistant
        )
    except Exception as error:
        pytest.fail(f"transformers itself cannot draft for LLaVA any more: {error}")
    assert plain.shape[1] == prompt.visual.shape[1] + 8
    with tr.reduce(llava, "random", schedule) as reduction:
        out = llava.generate(
            **prompt.inputs, max_new_tokens=8, do_sample=False, assistant_model=assistant
        )
    with masked(llava, prompt.visual, reduction.kept):
        reference = llava.generate(**prompt.inputs, max_new_tokens=8, do_sample=False)
    assert torch.equal(out, reference)


@pytest.mark.parametrize("name", ["pyramid_drop", "fastv"])
def test_drafts_do_not_ask(llava, schedule, name):
    """The first pass of assisted decoding holds drafts as well; the prompt's last token asks."""
    prompt = batch(LLAVA, (1,))
    with torch.no_grad(), tr.reduce(llava, name, schedule) as reduction:
        greedy = llava.generate(**prompt.inputs, max_new_tokens=8, **ENDLESS)
        kept = reduction.kept
        drafted = llava.generate(
            **prompt.inputs, max_new_tokens=8, prompt_lookup_num_tokens=3, **ENDLESS
        )
        again = reduction.kept
    assert torch.equal(greedy, drafted)
    for layer in kept:
        assert torch.equal(kept[layer][0], again[layer][0])


class Force(LogitsProcessor):
    """Makes the model say `token` at every step."""

    def __init__(self, token):
        self.token = token

    def __call__(self, input_ids, scores):
        forced = torch.full_like(scores, float("-inf"))
        forced[:, self.token] = 0.0
        return forced


@pytest.mark.parametrize("cached", [True, False])
def test_a_generated_placeholder_is_text(llava, schedule, cached):
    """Where every step merges the features anew, transformers itself trips over the extra id."""
    prompt = batch(LLAVA, (1, 2))
    force = LogitsProcessorList([Force(IMAGE)])
    if not cached:
        with pytest.raises(ValueError, match="do not match"):
            generate(llava, prompt, use_cache=False, logits_processor=force)
        return
    with tr.reduce(llava, "pyramid_drop", schedule, positions="keep") as reduction:
        out = generate(llava, prompt, logits_processor=force)
    assert (out.sequences[:, -6:] == IMAGE).all()
    assert reduction.report.visual_tokens == prompt.counts
    agree(llava, prompt, reduction, out, logits_processor=force)


@pytest.mark.parametrize("positions", ["keep", "compact"])
def test_inputs_embeds_alone(llama, schedule, positions):
    prompt = batch(FAMILIES["llama"], (1, 2))
    with tr.reduce(llama, "fastv", schedule, positions=positions) as reduction:
        with prompt.shown(reduction):
            out = generate(llama, prompt)
        kept = reduction.kept
    assert [len(x) for x in kept[2]] == [round(0.5 * n) for n in prompt.counts]
    if positions == "keep":
        agree(llama, prompt, reduction, out)


def test_inputs_embeds_of_a_multimodal_model_are_marked_by_the_caller(llava, schedule):
    prompt = batch(LLAVA, (1, 2))
    with torch.no_grad():
        embeds = llava.get_input_embeddings()(prompt.inputs["input_ids"])
        features = torch.cat(
            llava.model.get_image_features(
                pixel_values=prompt.inputs["pixel_values"], return_dict=True
            ).pooler_output
        )
        embeds = embeds.masked_scatter(prompt.visual[..., None], features)
    mask = prompt.inputs["attention_mask"]
    with tr.reduce(llava, "pyramid_drop", schedule, positions="keep") as reduction:
        a = generate(llava, prompt)
        with reduction.visual(prompt.visual):
            b = llava.generate(
                inputs_embeds=embeds, attention_mask=mask, max_new_tokens=6, do_sample=False
            )
    assert torch.equal(a.sequences[:, -6:], b)


@pytest.mark.parametrize("keep", [1, 3, torch.tensor([0, 5, -1])])
def test_logits_to_keep(llava, schedule, keep):
    prompt = batch(LLAVA, (1, 2))
    with torch.no_grad(), tr.reduce(llava, "random", schedule):
        whole = llava(**prompt.inputs).logits
        some = llava(**prompt.inputs, logits_to_keep=keep).logits
    wanted = whole[:, -keep:] if isinstance(keep, int) else whole[:, keep]
    torch.testing.assert_close(some, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("images", [(1, 2), (0, 1), (2,)])
@pytest.mark.parametrize("layers", [(2, 4), (0, 5)])
def test_hidden_states_are_whole_and_right(llava, images, layers):
    """Every hidden state has the caller's length, and the reference's values at what is left."""
    prompt = batch(LLAVA, images)
    if images == (0, 1):  # the text-only sample is the longest: shortened rows keep the length
        prompt.inputs["input_ids"][0] = torch.arange(10, 10 + prompt.visual.shape[1])
        prompt.inputs["attention_mask"][0] = 1
        prompt.real[0] = True
    schedule = tr.Explicit(layers=layers, keeps=(0.5, 0.2))
    with torch.no_grad():
        with tr.reduce(llava, "random", schedule) as reduction:
            ours = llava(**prompt.inputs, output_hidden_states=True).hidden_states
        with masked(llava, prompt.visual, reduction.kept):
            theirs = llava(**prompt.inputs, output_hidden_states=True).hidden_states
    assert [x.shape for x in ours] == [x.shape for x in theirs]
    text = prompt.real & ~prompt.visual
    for j, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        torch.testing.assert_close(a[text], b[text], atol=3e-5, rtol=1e-5)
        present = prompt.real if j <= layers[0] and (j or layers[0]) else text
        torch.testing.assert_close(a[present], b[present], atol=3e-5, rtol=1e-5)


def test_chosen_hidden_states(llava, schedule):
    """Newer transformers returns those of chosen layers alone, and None for the others."""
    prompt, chosen = batch(LLAVA, (1, 2)), [0, 3, -1]
    with torch.no_grad():
        plain = llava(**prompt.inputs, output_hidden_states=chosen).hidden_states
        full = llava(**prompt.inputs, output_hidden_states=True).hidden_states
        same = [a is None or torch.equal(a, b) for a, b in zip(plain, full, strict=False)]
        if not any(state is None for state in plain) or len(plain) != len(full) or not all(same):
            pytest.skip("this transformers cannot choose among hidden states")
        with tr.reduce(llava, "random", schedule):
            every = llava(**prompt.inputs, output_hidden_states=True).hidden_states
            some = llava(**prompt.inputs, output_hidden_states=chosen).hidden_states
    assert len(some) == len(plain)
    for one, other, whole in zip(some, plain, every, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, whole)


def test_generate_returns_hidden_states(llava, schedule):
    prompt = batch(LLAVA, (1,))
    with tr.reduce(llava, "random", schedule):
        out = generate(llava, prompt, output_hidden_states=True)
    lengths = {tuple(x.shape[1] for x in step) for step in out.hidden_states}
    assert lengths == {(prompt.visual.shape[1],) * 7, (1,) * 7}
