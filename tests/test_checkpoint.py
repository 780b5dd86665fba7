"""A reduction saved beside a checkpoint is re-applied as it was, or refused with one clear line."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch

import tokenreduce as tr
from tokenreduce.checkpoint import FILE, FORMAT, WEIGHTS
from tokenreduce.reduction import load
from tokenreduce.testing.batches import batch
from tokenreduce.testing.models import FAMILIES

LLAVA = FAMILIES["llava"]


@pytest.fixture
def saved(tmp_path):
    with tr.reduce(LLAVA.model(), "random", tr.Single(2, 0.5)) as reduction:
        reduction._applied = True  # nothing is run: no warning about it
        reduction.save(tmp_path)
    return tmp_path


def change(folder, **entries):
    path = folder / FILE
    content = json.loads(path.read_text())
    for name, value in entries.items():
        *way, last = name.split("__")
        part = content
        for key in way:
            part = part[key]
        if value is None:
            part.pop(last)
        else:
            part[last] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("strategy", "scheduler", "options"),
    [
        ("pyramid_drop", None, {}),
        ("random", tr.Explicit((1, 0.5), (0.6, 0.2), "floor"), {"seed": 7, "positions": "compact"}),
        (tr.FastV("received"), tr.Single(0.5, 0.25, "ceil"), {"logits": "text"}),
        ("stride", tr.Pyramid(stages=3, ratio=0.4), {"positions": "keep"}),
    ],
)
def test_what_is_loaded_is_what_was_saved(tmp_path, strategy, scheduler, options):
    model, prompt = LLAVA.model(), batch(LLAVA, (1, 2))
    with torch.no_grad():
        with tr.reduce(model, strategy, scheduler, **options) as first:
            wanted = model(**prompt.inputs).logits
            path = first.save(tmp_path / "deep" / "folder")
        assert path == tmp_path / "deep" / "folder" / FILE
        assert [p.name for p in path.parent.iterdir()] == [FILE]
        with tr.load(model, path.parent) as second:
            assert torch.equal(model(**prompt.inputs).logits, wanted)
    assert repr(second) == repr(first)
    assert (second.seed, second.logits) == (first.seed, first.logits)
    assert type(second.adapter) is type(first.adapter)
    for layer, samples in first.kept.items():
        assert all(torch.equal(a, b) for a, b in zip(samples, second.kept[layer], strict=True))


WITH_MODELS = [name for name in tr.strategies if not tr.strategies.build(name).acts_on_pixels]


@pytest.mark.parametrize("name", sorted(WITH_MODELS))
def test_every_strategy_can_be_saved(tmp_path, name):
    model = LLAVA.model()
    reduction = tr.reduce(model, name, tr.Single(2, 1.0))
    reduction.save(tmp_path)
    reduction.remove()
    loaded = load(model, tmp_path)
    loaded.remove()
    assert repr(loaded) == repr(reduction)


@pytest.mark.parametrize("name", sorted(tr.schedulers))
def test_every_scheduler_can_be_saved(tmp_path, name):
    model = LLAVA.model()
    options = {"layers": (1, 3), "keeps": (0.5, 0.2)} if name == "explicit" else {}
    defaults = tr.schedulers.build(name, **options)
    for depth_bound in ("first", "last"):  # the defaults of some are for 32 layers
        if hasattr(defaults, depth_bound):
            options |= {"first": 1, "last": 4}
    reduction = tr.reduce(model, "none", tr.schedulers.build(name, **options))
    reduction.save(tmp_path)
    reduction.remove()
    loaded = load(model, tmp_path)
    loaded.remove()
    assert loaded.scheduler == reduction.scheduler


def test_the_file_is_plain_data(saved):
    content = json.loads((saved / FILE).read_text())
    assert content == {
        "format": 1,
        "tokenreduce": tr.__version__,
        "strategy": {"name": "random", "options": {}},
        "scheduler": {
            "name": "single",
            "options": {"layer": 2, "keep": 0.5, "rounding": "nearest", "at_least": None},
        },
        "adapter": "llava",
        "positions": "keep",
        "logits": "full",
        "seed": 0,
        "model": {"family": "llava", "depth": 6},
    }


@dataclass
class Mine(tr.Random):
    """Registered nowhere."""


def test_what_nobody_could_make_again_is_not_saved(tmp_path):
    model = LLAVA.model()
    reduction = tr.reduce(model, Mine(), tr.Single(2, 1.0))
    with pytest.raises(ValueError, match=r"Mine is not a registered .*strategies\.register"):
        reduction.save(tmp_path)
    reduction.remove()
    assert not list(tmp_path.iterdir())


def test_an_option_that_is_not_kept_cannot_be_saved(tmp_path, monkeypatch):
    monkeypatch.setitem(tr.strategies._entries, "odd", Odd)
    reduction = tr.reduce(LLAVA.model(), "odd", tr.Single(2, 1.0))
    with pytest.raises(ValueError, match=r"'odd' cannot be saved .*no attribute 'secret'"):
        reduction.save(tmp_path)
    reduction.remove()
    assert not list(tmp_path.iterdir())


class Odd(tr.Random):
    def __init__(self, secret=1):
        pass


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"strategy__name": "randm"}, "no strategy 'randm'; did you mean 'random'"),
        ({"scheduler__name": "singel"}, "no scheduler 'singel'; did you mean 'single'"),
        ({"adapter": "lava"}, "no adapter 'lava'; did you mean 'llava'"),
        ({"scheduler__options__kept": 1}, "'single' has no option 'kept'; did you mean 'keep'"),
        ({"scheduler__options__keep": 2}, "cannot be re-applied: keep must be a number between"),
        ({"format": FORMAT + 1, "tokenreduce": "9.1"}, r"written by tokenreduce 9\.1.*newer"),
        ({"format": None}, "is broken"),
        ({"format": "one"}, "is broken"),
        ({"strategy": None}, "is broken .strategy.name is None"),
        ({"strategy": "random"}, "is broken .strategy.name is None"),
        ({"scheduler__options": [1]}, "is broken .scheduler.options is .1"),
        ({"scheduler__options__keep": "much"}, "'single': keep must be a number, not 'much'"),
        ({"scheduler__options__layer": 10**400}, "'single': layer must be a number, not 1000"),
        (
            {"strategy": {"name": "pact", "options": {"cutoff": float("nan")}}},
            "'pact': cutoff must",
        ),
        ({"strategy": {"name": "pact", "options": {"reach": float("inf")}}}, "not inf$"),
        ({"strategy": {"name": "prumerge", "options": {"plus": "x"}}}, "plus must be true or fal"),
        ({"strategy": {"name": "scorer_mlp", "options": {"weights": 5}}}, "weights must be a word"),
        ({"strategy": {"name": "dart", "options": {"text_pivots": 1.5}}}, "be a whole number"),
        ({"seed": "zero"}, "is broken .seed is 'zero'"),
        ({"seed": True}, "is broken .seed is True"),
        ({"seed": 10**400}, r"is broken .seed is 10*\.\.\."),
        ({"model__depth": True}, "is broken .model.depth is True"),
        ({"min_tokens": "x"}, "min_tokens must be a whole number"),
        ({"positions": ""}, "no positions ''"),
        ({"logits": ""}, "no logits ''"),
        ({"adapter": ""}, "no adapter ''"),
        ({"positions": "kept"}, "no positions 'kept'; did you mean 'keep'"),
        ({"model__depth": 32}, "a llava model of 32 layers, but this is a llava model of 6"),
        ({"model__family": "llava_next"}, "a llava_next model of 6 layers, but this is a llava"),
    ],
)
def test_mismatches_are_refused_in_one_line(saved, entries, message):
    change(saved, **entries)
    model = LLAVA.model()
    with pytest.raises(ValueError, match=message) as refusal:
        load(model, saved)
    assert "\n" not in str(refusal.value)
    tr.reduce(model, "none").remove()  # nothing of the refused one is left on the model


def test_another_model_is_refused(saved):
    with pytest.raises(ValueError, match="llava model of 6 layers, but this is a llama model of 6"):
        load(FAMILIES["llama"].model(), saved)
    with pytest.raises(ValueError, match="but this is a Linear model of 0"):
        load(torch.nn.Linear(2, 2), saved)


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "3", "null", '"text"', DEEP, "\x80"])
def test_a_broken_file_is_refused(saved, text):
    (saved / FILE).write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match="is broken") as refusal:
        load(LLAVA.model(), saved)
    assert "\n" not in str(refusal.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no tokenreduce\.json in .*reduction\.save"):
        load(LLAVA.model(), tmp_path / "nowhere")


def test_a_second_save_replaces_the_first(saved):
    reduction = tr.reduce(LLAVA.model(), "stride", tr.Single(1, 1.0))
    reduction.save(str(saved))
    reduction.remove()
    assert json.loads((saved / FILE).read_text())["strategy"]["name"] == "stride"
    assert [p.name for p in saved.iterdir()] == [FILE]


def test_a_peft_model_is_seen_through(saved):
    peft = pytest.importorskip("peft")
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT reads renamed attributes
        model = peft.get_peft_model(LLAVA.model(), peft.LoraConfig(target_modules=["q_proj"]))
    with torch.no_grad(), load(model, saved) as reduction:
        model(**batch(LLAVA, (1,)).inputs)
    assert reduction.report.applied == [True]


# -- parameters of learned strategies --------------------------------------------------------------


@pytest.fixture
def learned(tmp_path):
    """A folder with a trained scorer, and what the model said under it."""
    model, prompt = LLAVA.model(), batch(LLAVA, (1, 2))
    strategy = tr.ScorerMLP(hidden=8, text=True)
    with tr.reduce(model, strategy, tr.Single(1, 0.5), seed=3) as reduction, torch.no_grad():
        for parameter in reduction.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        wanted = model(**prompt.inputs).logits
        reduction.save(tmp_path)
    return tmp_path, wanted, strategy


def test_a_learned_strategy_travels_with_its_parameters(learned):
    folder, wanted, strategy = learned
    assert sorted(p.name for p in folder.iterdir()) == [FILE, WEIGHTS]
    model = LLAVA.model()
    with torch.no_grad(), load(model, folder) as loaded:  # and nobody calls it untrained
        assert torch.equal(model(**batch(LLAVA, (1, 2)).inputs).logits, wanted)
    for name, x in strategy.state_dict().items():
        assert torch.equal(loaded.strategy.state_dict()[name], x), name
    loaded.save(folder / "again")
    assert (folder / "again" / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()


def test_where_weights_once_came_from_is_not_told(learned, tmp_path):
    strategy = learned[2]
    path = strategy.save_weights(tmp_path / "elsewhere.safetensors")
    options = {"hidden": 8, "text": True, "weights": str(path)}
    reduction = tr.reduce(LLAVA.model(), tr.ScorerMLP(**options), tr.Single(1, 1.0))
    reduction.save(tmp_path / "new")
    reduction.remove()
    path.unlink()
    assert "elsewhere" not in (tmp_path / "new" / FILE).read_text()
    load(LLAVA.model(), tmp_path / "new").remove()


def test_a_plain_strategy_saved_over_a_learned_one_leaves_no_weights(learned):
    folder = learned[0]
    reduction = tr.reduce(LLAVA.model(), "stride", tr.Single(1, 1.0))
    reduction.save(folder)
    reduction.remove()
    assert [p.name for p in folder.iterdir()] == [FILE]


def test_missing_or_other_weights_are_refused_in_one_line(learned):
    folder, model = learned[0], LLAVA.model()

    def refused(kind, message):
        with pytest.raises(kind, match=message) as refusal:
            load(model, folder)
        assert "\n" not in str(refusal.value)
        tr.reduce(model, "none").remove()  # nothing of the refused one is left on the model

    right = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).unlink()
    refused(FileNotFoundError, r"no tokenreduce\.safetensors in .*parameters of 'scorer_mlp'")
    (folder / WEIGHTS).write_bytes(right[:-8])
    refused(ValueError, r"safetensors is not the file that was saved with tokenreduce\.json")
    (folder / WEIGHTS).write_bytes(right)
    change(folder, strategy__options__hidden=9)
    refused(ValueError, r"has last\.weight \(1, 8\), but this ScorerMLP \(1, 9\)")
    change(folder, strategy__options__hidden=8, weights=None)
    refused(ValueError, "is broken .weights is None")
    change(folder, weights={"file": "../other.safetensors", "sha256": ""})
    refused(ValueError, "is broken .weights is")


def test_weights_are_written_whole_or_not_at_all(learned, monkeypatch):
    import safetensors.torch

    folder, _, strategy = learned
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(tensors, path):
        path.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    reduction = tr.reduce(LLAVA.model(), strategy, tr.Single(1, 1.0))
    with pytest.raises(OSError, match="no space"):
        reduction.save(folder)
    reduction.remove()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("fails", [1, 2, 3])
def test_a_save_that_breaks_off_leaves_a_reduction_that_loads(learned, monkeypatch, fails):
    """The old one until `tokenreduce.json` is replaced, by the second of three renames."""
    import os

    folder, _, strategy = learned
    old = strategy.last.bias.item()
    calls, real = [], os.replace

    def replace(*names):
        calls.append(names)
        if len(calls) == fails:
            raise OSError("no space left")
        return real(*names)

    reduction = tr.reduce(LLAVA.model(), strategy, tr.Single(1, 1.0))
    with torch.no_grad():
        strategy.last.bias += 1
    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="no space"):
        reduction.save(folder)
    reduction.remove()
    monkeypatch.undo()
    again = load(LLAVA.model(), folder)
    again.strategy.silence_untrained()
    assert again.strategy.last.bias.item() == pytest.approx(old + (fails == 3))
    assert again.stops[0].keep == (1.0 if fails == 3 else 0.5)
    again._applied = True
    again.save(folder)
    assert sorted(p.name for p in folder.iterdir()) == [FILE, WEIGHTS]
    again.remove()


# -- several processes, and threads ----------------------------------------------------------------


def one_of_several(number):
    """A reduction whose parameters and options are those of one number alone."""
    scorer = tr.ScorerMLP(hidden=8)
    reduction = tr.reduce(LLAVA.model(), scorer, tr.Single(1, 1.0), seed=number)
    with torch.no_grad():
        for parameter in reduction.parameters():
            parameter.fill_(number)
    return reduction


def is_whole(folder):
    """Which save a folder holds: the number in its weights is that of its JSON."""
    with load(LLAVA.model(), folder) as loaded:
        loaded._applied = True
        assert {x.detach().mean().item() for x in loaded.parameters()} == {float(loaded.seed)}
    return loaded.seed


def test_threads_that_save_into_one_folder(tmp_path):
    """Each save is whole, also to those who load in between, and the last one stands."""
    reductions = [one_of_several(number) for number in range(1, 5)]
    is_there = threading.Event()
    stop = threading.Event()
    found, errors = [], []

    def attempt(act):
        try:
            act()
        except BaseException as error:
            errors.append(error)

    def write(reduction):
        for _ in range(8):
            reduction.save(tmp_path)
            is_there.set()

    def read():
        is_there.wait(timeout=60)
        while not stop.is_set():
            found.append(is_whole(tmp_path))

    writers = [threading.Thread(target=attempt, args=(partial(write, r),)) for r in reductions]
    reader = threading.Thread(target=attempt, args=(read,))
    for thread in (*writers, reader):
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    reader.join()
    assert errors == []
    assert set(found) <= {1, 2, 3, 4}
    assert sorted(p.name for p in tmp_path.iterdir()) == [FILE, WEIGHTS]
    reductions[2].save(tmp_path)
    assert is_whole(tmp_path) == 3
    plain = tr.reduce(LLAVA.model(), "stride", tr.Single(1, 1.0))
    plain.save(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [FILE]
    for reduction in (*reductions, plain):
        reduction._applied = True
        reduction.remove()


@pytest.mark.parametrize("locks", [True, False])
def test_a_save_that_another_machine_disturbs_is_made_again(tmp_path, monkeypatch, locks):
    """Where no lock reaches, the drafts of one save may be taken away by another."""
    import os

    from tokenreduce import checkpoint

    real, calls = os.replace, []

    def replace(source, target):
        calls.append(target)
        if len(calls) == 3:  # the JSON is there, and its weights are not yet
            os.unlink(source)
        return real(source, target)

    if not locks:
        monkeypatch.setattr(checkpoint, "folder_locked", lambda *_, **__: nullcontext())
    reduction = one_of_several(7)
    monkeypatch.setattr(os, "replace", replace)
    reduction.save(tmp_path)
    monkeypatch.undo()
    reduction._applied = True
    reduction.remove()
    assert is_whole(tmp_path) == 7
    assert sorted(p.name for p in tmp_path.iterdir()) == [FILE, WEIGHTS]


SAVING = """
import sys
from tests.test_checkpoint import one_of_several
reduction = one_of_several(int(sys.argv[2]))
print("ready", flush=True)
sys.stdin.readline()
for _ in range(15):
    reduction.save(sys.argv[1])
"""


@pytest.mark.slow
def test_processes_that_save_into_one_folder(tmp_path):
    """As every rank of a training does."""
    root = Path(__file__).resolve().parents[1]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", SAVING, tmp_path / "out", str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=root,
        )
        for number in (1, 2, 3)
    ]
    for rank in ranks:
        assert rank.stdout.readline() == b"ready\n"
    for rank in ranks:
        rank.stdin.write(b"go\n")
        rank.stdin.flush()
    for rank in ranks:
        rank.communicate(timeout=120)
        assert rank.returncode == 0
    assert is_whole(tmp_path / "out") in (1, 2, 3)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [FILE, WEIGHTS]
