"""What is read of LLaVA's files, of saved datasets and of rendered scenes; what is refused."""

from __future__ import annotations

import json
import pickle
import sys

import numpy as np
import pytest
from PIL import Image

from tokenreduce.data import rows as row_checks
from tokenreduce.data.conversations import (
    Unusable,
    hold_out,
    read_folder,
    read_llava,
    shapes_conversations,
)

ASK = {"from": "human", "value": "<image>\nWhat is this?"}
SAY = {"from": "gpt", "value": "A cat."}
GOOD = {"id": "good", "image": "a.png", "conversations": [ASK, SAY]}


def text(words):
    return {"type": "text", "text": words}


@pytest.fixture
def folder(tmp_path):
    for i, name in enumerate(("a.png", "b.png")):
        Image.new("RGB", (8 + i, 6), (200, 10 * i, 0)).save(tmp_path / name)
    return tmp_path


def lines(folder, *rows):
    path = folder / "rows.jsonl"
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows) + "\n")
    return path


def turns(*pairs):
    return {"conversations": [{"from": who, "value": what} for who, what in pairs]}


def chat(*pairs, **fields):
    return {"messages": [{"role": who, "content": what} for who, what in pairs], **fields}


# -- what is read ----------------------------------------------------------------------------------


@pytest.mark.parametrize("named", [{}, {"image": None}, {"image": []}, {"images": None}])
def test_a_row_of_text_names_no_image(folder, named):
    [found] = read_llava(lines(folder, {**turns(("human", "Who?"), ("gpt", "I.")), **named}))
    assert found.images == ()
    assert found.pictures() == []


def test_a_llava_row(folder):
    [found] = read_llava(lines(folder, GOOD))
    assert found.name == "good"
    assert found.images == (folder / "a.png",)
    assert found.messages == (
        {"role": "user", "content": [{"type": "image"}, text("What is this?")]},
        {"role": "assistant", "content": [text("A cat.")]},
    )
    [picture] = found.pictures()
    assert (picture.mode, picture.size) == ("RGB", (8, 6))
    assert picture.getpixel((0, 0)) == (200, 0, 0)


def test_markers_stand_where_they_stood(folder):
    row = turns(
        ("system", "Be short."),
        ("human", "One <image> and\n<image>\nTwo?"),
        ("gpt", " Yes. \n"),
        ("human", "Sure?"),
        ("gpt", "No."),
    )
    [found] = read_llava(lines(folder, {"image": ["b.png", "a.png"], **row}))
    assert [path.name for path in found.images] == ["b.png", "a.png"]
    system, asked, answer, again, last = found.messages
    assert system == {"role": "system", "content": [text("Be short.")]}
    mark = {"type": "image"}
    assert asked["content"] == [text("One"), mark, text("and"), mark, text("Two?")]
    assert answer["content"] == [text("Yes.")]
    assert (again["role"], last["role"]) == ("user", "assistant")
    assert found.name == "rows.jsonl:1"


@pytest.mark.parametrize(
    "content", ["<image> Which?", [{"type": "image", "text": None}, {**text("Which?")}]]
)
def test_chat_messages(folder, content):
    row = chat(("user", content), ("assistant", "This"), images=["a.png"], id=7)
    [found] = read_llava(lines(folder, row))
    assert found.name == "7"
    assert found.messages[0]["content"] == [{"type": "image"}, text("Which?")]


def test_text_alone(folder):
    row = turns(("human", "Which?"), ("gpt", "This"))
    [found] = read_llava(lines(folder, row))
    assert found.images == ()
    assert found.pictures() == []


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_one_list_is_the_same_as_lines(folder, indent, start):
    other = {"id": "größer", "image": "b.png", **turns(("human", "<image> ö?"), ("gpt", "日本"))}
    rows = [GOOD, other, {**GOOD, "id": None}]
    path = folder / "rows.json"
    path.write_text(start + json.dumps(rows, indent=indent, ensure_ascii=False))
    found = list(read_llava(path))
    expected = list(read_llava(lines(folder, *rows)))
    assert [f.messages for f in found] == [e.messages for e in expected]
    assert [f.images for f in found] == [e.images for e in expected]
    shown = path.read_text(encoding="utf-8-sig").splitlines()
    last = 1 if indent is None else max(i for i, line in enumerate(shown, 1) if line == " {")
    assert [f.name for f in found] == ["good", "größer", f"rows.json:{last}"]


def test_lines_are_counted_with_the_empty_ones(folder):
    path = lines(folder, "", GOOD, "", {**GOOD, "id": None})
    assert [found.name for found in read_llava(path)] == ["good", "rows.jsonl:4"]
    path = folder / "rows.json"
    path.write_text(f'[\n\n{json.dumps(GOOD)},\n\n{{"conversations": []}}]')
    with pytest.raises(ValueError, match=r"rows\.json:5: no answer"):
        read_llava(path)


def test_images_come_from_a_folder_of_their_own(folder, tmp_path_factory):
    path = lines(tmp_path_factory.mktemp("texts"), GOOD)
    assert read_llava(path, images=folder)[0].images == (folder / "a.png",)
    with pytest.raises(ValueError, match="missing image file"):
        read_llava(path)


def test_indices(folder):
    found = read_llava(lines(folder, GOOD, {**GOOD, "id": "last"}))
    assert found[-1].name == found[1].name == "last"
    for index in (2, -3):
        with pytest.raises(IndexError):
            found[index]
    assert [c.name for c in found.select([1, 0, 1])] == ["last", "good", "last"]


def test_nothing_of_a_large_file_stays_in_memory(folder, monkeypatch):
    def opened(*_):
        raise AssertionError("an image was opened")

    monkeypatch.setattr(row_checks, "load_image", opened)
    size = 3000
    for path in (folder / "rows.jsonl", folder / "rows.json"):
        rows = [{**GOOD, "id": str(i), "note": "x" * 500} for i in range(size)]
        if path.suffix == ".json":
            path.write_text(json.dumps(rows))
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        found = read_llava(path)
        assert len(found) == size
        stored = pickle.dumps(found)  # and workers get it as it is
        assert len(stored) < 30 * size
        assert pickle.loads(stored)[1234].name == "1234"


def test_a_row_that_changed_later(folder):
    path = lines(folder, GOOD)
    found = read_llava(path)
    (folder / "a.png").write_bytes(b"no picture")
    with pytest.raises(Unusable) as caught:
        found[0].pictures()
    assert caught.value.reason == "an image cannot be opened"
    assert "known format" in caught.value.detail
    (folder / "a.png").unlink()
    with pytest.raises(Unusable, match="missing image file"):
        found[0]


# -- what is refused -------------------------------------------------------------------------------

UNNAMED = {key: value for key, value in GOOD.items() if key != "id"}
BAD_ROWS = {
    "broken JSON": ['{"id": ', "[", '{"id": 1} {"id": 2}'],
    "not an object": ["7", '["a"]', "null"],
    "missing field": [
        {"image": "a.png"},
        {"conversations": "a"},
        {"conversations": [{"from": "human"}, SAY]},
        {"conversations": [{"value": "a"}, SAY]},
        {"conversations": ["a"]},
        {"messages": [{"role": "user", "content": 7}]},
    ],
    "unknown role": [turns(("humann", "a"), ("gpt", "b")), chat(("tool", "a")), chat((1, "a"))],
    "turns out of order": [
        turns(("gpt", "b"), ("human", "a")),
        turns(("human", "a"), ("human", "a"), ("gpt", "b")),
        turns(("human", "a"), ("gpt", "b"), ("gpt", "b")),
        turns(("human", "a"), ("system", "a"), ("gpt", "b")),
    ],
    "no answer": [
        turns(("human", "a")),
        turns(),
        turns(("human", "a"), ("gpt", "")),
        turns(("human", "a"), ("gpt", " \n")),
        turns(("human", "a"), ("gpt", "b"), ("human", "a")),
        chat(("user", "a"), ("assistant", [])),
    ],
    "empty question": [turns(("human", " "), ("gpt", "b"))],
    "image marker in an answer": [
        {"image": "a.png", **turns(("human", "a"), ("gpt", "see <image>"))},
        {"image": "a.png", **turns(("system", "<image>"), ("human", "a"), ("gpt", "b"))},
        chat(("user", "a"), ("assistant", [{"type": "image"}]), images=["a.png"]),
    ],
    "more images than markers": [
        {"image": "a.png", **turns(("human", "a"), ("gpt", "b"))},
        {**UNNAMED, "image": ["a.png", "b.png"]},
    ],
    "more markers than images": [
        {"conversations": [ASK, SAY]},
        {"image": "a.png", **turns(("human", "<image> <image>"), ("gpt", "b"))},
    ],
    "missing image file": [{**UNNAMED, "image": "c.png"}, {**UNNAMED, "image": "sub"}],
    "image outside the folder": [
        {**UNNAMED, "image": "../a.png"},
        {**UNNAMED, "image": "sub/../../a.png"},
        {**UNNAMED, "image": "/a.png"},
        {**UNNAMED, "image": "https://example.org/a.png"},
    ],
    "not a path of an image": [{**UNNAMED, "image": x} for x in (7, [""], "", [None])],
    "a video": [
        {"video": "a.mp4", **turns(("human", "<video>\nwhat happens?"), ("gpt", "b"))},
        turns(("human", "<video> what happens?"), ("gpt", "b")),
    ],
    "unknown part of a content": [
        chat(("user", [{"type": "video"}]), ("assistant", "b")),
        chat(("user", ["a"]), ("assistant", "b")),
        chat(("user", [{"type": "text"}]), ("assistant", "b")),
    ],
}  # fmt: skip
CASES = [(reason, row) for reason, rows in BAD_ROWS.items() for row in rows]


@pytest.mark.parametrize(
    ("reason", "row"), CASES, ids=[f"{r}-{i}" for i, (r, _) in enumerate(CASES)]
)
def test_a_bad_row(folder, reason, row):
    (folder / "sub").mkdir()
    path = lines(folder, GOOD, row, {**GOOD, "id": "after"})
    with pytest.raises(ValueError, match=rf"rows\.jsonl:2: {reason}.*bad=skip"):
        read_llava(path)
    found = read_llava(path, bad="skip")
    assert [c.name for c in found] == ["good", "after"]
    assert found.skipped == [("rows.jsonl:2", reason)]
    assert found.summary() == {reason: 1}


def test_reasons_are_counted(folder):
    silent = turns(("human", "a"))
    path = lines(folder, silent, "{", GOOD, {"id": "x", **silent})
    found = read_llava(path, bad="skip")
    assert found.skipped[2] == ("x", "no answer")
    assert list(found.summary().items()) == [("no answer", 2), ("broken JSON", 1)]
    with pytest.raises(ValueError, match=r"no usable row among 1 \(no answer: 1\)"):
        read_llava(lines(folder, silent), bad="skip")
    with pytest.raises(ValueError, match="no usable row among 0"):
        read_llava(lines(folder, ""))


def test_the_id_is_told(folder):
    path = lines(folder, {"id": "seven", **turns(("human", "a"))})
    with pytest.raises(ValueError, match=r"rows\.jsonl:1 \(seven\): no answer"):
        read_llava(path)


@pytest.mark.parametrize("end", ["", ",", " x]", ', {"a"'])
def test_a_list_that_is_cut_short(folder, end):
    path = folder / "rows.json"
    path.write_text(f"[{json.dumps(GOOD)}{end}")
    for bad in ("error", "skip"):
        with pytest.raises(ValueError, match=r"rows\.json: broken JSON.*one object per line"):
            read_llava(path, bad=bad)


def test_arguments(folder):
    with pytest.raises(ValueError, match="no file"):
        read_llava(folder / "none.json")
    with pytest.raises(ValueError, match="no folder"):
        read_llava(lines(folder, GOOD), images=folder / "none")
    with pytest.raises(ValueError, match="did you mean 'skip'"):
        read_llava(lines(folder, GOOD), bad="skp")
    with pytest.raises(ValueError, match="bad"):
        read_folder(folder, bad="skp")


def test_links_of_the_folders_owner_are_followed(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("disk")
    Image.new("RGB", (3, 3)).save(other / "c.png")
    (folder / "linked").symlink_to(other)
    [found] = read_llava(lines(folder, {**GOOD, "image": "linked/c.png"}))
    assert found.pictures()[0].size == (3, 3)


def test_unusable_survives_a_process():
    error = pickle.loads(pickle.dumps(Unusable("why", "this one")))
    assert (error.reason, error.detail, str(error)) == ("why", "this one", "why: this one")


# -- saved datasets --------------------------------------------------------------------------------

datasets = pytest.importorskip("datasets")


def picture(size, value=50):
    return Image.new("RGB", size, (value, 0, 0))


def save(folder, rows, features=None):
    path = folder / "saved"
    datasets.Dataset.from_list(rows, features=features).save_to_disk(path)
    return path


def features(image, field="conversations"):
    who, what = ("from", "value") if field == "conversations" else ("role", "content")
    value = datasets.Value("string")
    one = {"id": value, field: datasets.List({who: value, what: value})}
    if image is not None:
        one["images" if isinstance(image, datasets.List) else "image"] = image
    return datasets.Features(one)


def saved(folder, image="image", **more):
    kind = datasets.Image() if image == "image" else datasets.List(datasets.Image())
    asked = {
        "from": "human",
        "value": "<image> What?" if image == "image" else "<image> or <image>",
    }
    content = picture((8, 6)) if image == "image" else [picture((8, 6)), picture((3, 4), 70)]
    row = {"id": "r", image: content, "conversations": [asked, SAY], **more}
    plain = {"id": None, image: None, "conversations": [{"from": "human", "value": "a"}, SAY]}
    return save(folder, [row, plain], features(kind))


@pytest.mark.parametrize("image", ["image", "images"])
def test_a_saved_dataset(folder, image):
    found = read_folder(saved(folder, image))
    first, second = found
    assert (first.name, second.name) == ("r", "saved:1")
    assert second.images == ()
    sizes = [(8, 6)] if image == "image" else [(8, 6), (3, 4)]
    assert [p.size for p in first.pictures()] == sizes
    assert [p.getpixel((0, 0))[0] for p in first.pictures()] == [50, 70][: len(sizes)]
    assert first.messages[-1]["content"] == [text("A cat.")]
    again = pickle.loads(pickle.dumps(found))
    assert again[0].pictures()[0].tobytes() == first.pictures()[0].tobytes()


def test_saved_messages(folder):
    row = {
        "id": "m",
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
    }
    [found] = read_folder(save(folder, [row], features(None, "messages")))
    assert [m["role"] for m in found.messages] == ["user", "assistant"]


def test_saved_paths(folder):
    row = {"id": None, "image": "p.png", "conversations": [ASK, SAY]}
    path = save(folder, [row, {**row, "image": "../a.png"}], features(datasets.Value("string")))
    Image.new("RGB", (2, 2)).save(path / "p.png")
    found = read_folder(path, bad="skip")
    assert [c.images for c in found] == [(path / "p.png",)]
    assert found.skipped == [("saved:1", "image outside the folder")]


def test_saved_splits(folder):
    rows = datasets.Dataset.from_list([{"conversations": [{**ASK, "value": "a"}, SAY]}])
    path = folder / "both"
    datasets.DatasetDict(train=rows, test=rows).save_to_disk(path)
    assert read_folder(path, "test")[0].name == "test:0"
    for split, hint in ((None, "known: train, test"), ("tests", "did you mean 'test'")):
        with pytest.raises(ValueError, match=f"no split.*{hint}"):
            read_folder(path, split)
    with pytest.raises(ValueError, match="has no splits"):
        read_folder(path / "train", "train")


def test_a_bad_saved_row(folder):
    rows = [
        {"id": "x", "image": None, "conversations": [ASK, SAY]},
        {"id": "y", "image": picture((4, 4)), "conversations": [ASK, SAY]},
        {"id": "z", "image": picture((4, 4)), "conversations": [ASK]},
    ]
    path = save(folder, rows, features(datasets.Image()))
    with pytest.raises(ValueError, match=r"saved row 0 \(x\): more markers than images"):
        read_folder(path)
    found = read_folder(path, bad="skip")
    assert [c.name for c in found] == ["y"]
    assert found.skipped == [("x", "more markers than images"), ("z", "no answer")]


def test_saved_pictures_go_through_the_same_checks(folder):
    row = {"id": "x", "image": {"bytes": b"damaged", "path": None}, "conversations": [ASK, SAY]}
    found = read_folder(save(folder, [row], features(datasets.Image())))
    with pytest.raises(Unusable, match=r"cannot be opened.*image of x.*known format"):
        found[0]


def test_no_saved_dataset(folder, monkeypatch):
    with pytest.raises(ValueError, match="not a saved dataset"):
        read_folder(folder)
    with pytest.raises(ValueError, match=r"neither a column.*has: id.*rename_column"):
        read_folder(save(folder, [{"id": "a"}]))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r'pip install "tokenreduce\[train\]"'):
        read_folder(folder)


# -- rendered scenes -------------------------------------------------------------------------------


def test_scenes():
    found = shapes_conversations(3, "train", size=5, questions=4, difficulty=0.0)
    assert len(found) == 5
    one = found[2]
    assert [m["role"] for m in one.messages] == ["user", "assistant"] * 4
    assert [p["type"] for m in one.messages for p in m["content"]] == ["image"] + ["text"] * 8
    [image] = one.pictures()
    assert image.size == (96, 96)
    assert found[2].messages == one.messages
    assert np.array_equal(found[2].pictures()[0], image)
    other = shapes_conversations(3, "heldout", size=5, questions=4, difficulty=0.0)
    assert other[2].messages != one.messages
    assert len(list(found)) == 5
    assert found.summary() == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "test"}, "no split 'test'"),
        ({"size": 0}, "at least 1"),
        ({"questions": 0}, "least"),
    ],
)
def test_scenes_that_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        shapes_conversations(**options)


# -- held out --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "number"), [(0.0, 0), (0.25, 5), (0.01, 1)])
def test_a_share_is_held_out(share, number):
    whole = shapes_conversations(size=20)
    rest, held = hold_out(whole, share, seed=1)
    names = [c.name for c in rest], [c.name for c in held]
    assert len(held) == number
    assert sorted(names[0] + names[1]) == sorted(c.name for c in whole)
    assert [names[1], names[0]] == [[c.name for c in part] for part in hold_out(whole, share, 1)][
        ::-1
    ]
    if number == 5:
        assert names[1] != [c.name for c in hold_out(whole, share, seed=2)[1]]


@pytest.mark.parametrize("share", [-0.1, 1.0, 0.99])
def test_shares_that_are_refused(share):
    with pytest.raises(ValueError, match="holdout"):
        hold_out(shapes_conversations(size=3), share)
