"""Many questions about one image: each is answered as if it stood alone."""

from __future__ import annotations

import torch
from PIL import Image
from tokenreduce_tiny.build import build_model, build_processor
from tokenreduce_tiny.packing import Packer, score

from tokenreduce.data import sample


def test_a_packed_question_is_answered_as_if_alone() -> None:
    """Packed logits = logits of the stock model on the processor's own single prompt, to 1e-5."""
    vision = {"patch_size": 8, "width": 32, "feed_forward": 64, "layers": 2, "heads": 2}
    text = {
        "width": 32, "feed_forward": 64, "layers": 3, "heads": 2,
        "positions": 512, "rope_theta": 1e5,
    }  # fmt: skip
    model = build_model({"vision": vision, "text": text}, seed=0).eval()
    processor = build_processor(patch_size=8)
    packer = Packer(processor, visual_tokens=144)
    samples = [sample(0, "train", 0, questions=5), sample(0, "train", 1, questions=5)]
    batch = packer(samples)
    assert batch.blocks[0, -1] == -1 or batch.blocks[1, -1] == -1  # one row is padded
    with torch.no_grad():
        packed = model(**batch.inputs).logits
        for row, item in enumerate(samples):
            for number, question in enumerate(item.questions, start=1):
                prompt = processor(
                    text=f"USER: <image>\n{question.text} ASSISTANT:{question.answer}",
                    images=Image.fromarray(item.image),
                    return_tensors="pt",
                )
                alone = model(**prompt).logits[0, 146:]
                together = packed[row, batch.blocks[row] == number][:-1]
                assert torch.allclose(alone, together, atol=1e-5)


def test_an_answer_counts_only_when_every_token_is_right() -> None:
    batch = Packer(build_processor(patch_size=8), visual_tokens=144)(
        [sample(0, "train", i, questions=4) for i in range(3)]
    )
    predicted = torch.zeros_like(batch.labels)
    predicted[:, :-1] = batch.labels[:, 1:]
    assert score(predicted, batch).all()
    place = int((batch.labels[1] >= 0).nonzero()[-1])  # the end token of row 1's last answer
    predicted[1, place - 1] += 1
    assert score(predicted, batch).flatten().tolist() == [True] * 7 + [False] + [True] * 4
