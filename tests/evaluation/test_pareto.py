"""Pictures of cost and accuracy: a line for each model, every kind, any name; never the end."""

from __future__ import annotations

from typing import Any

import pytest
from matplotlib.figure import Figure

from tokenreduce.evaluation import pareto


def row(role: str, cost: float, right: float, model: str = "m", *kinds: str) -> dict[str, Any]:
    share = {"accuracy": right, "interval": [right - 0.1, right + 0.1]}
    return {
        "role": role,
        "model": model,
        "change": None,
        "strategy": None if role == "full" else {"name": "a", "option": f"$x_^{cost}$"},
        "seeds": [0],
        "flops_share": cost,
        "prefill": None if role == "full" else {"prefill_ratio": cost},
        **share,
        "kinds": dict.fromkeys(kinds or ("one", "two"), share),
    }


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that is saved."""
    found: list[Figure] = []
    real = Figure.savefig

    def savefig(figure: Figure, *given: Any, **options: Any) -> None:
        found.append(figure)
        real(figure, *given, **options)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return found


def test_names_hold_any_sign(tmp_path, figures):
    kinds = ("$100 or x_^$", "two")
    rows = [row("full", 1, 0.9, "m", *kinds), row("tested", 0.5, 0.8, "m", *kinds)]
    rows.append(row("tested", 0.4, 0.7, "m", *kinds))
    made = pareto.draw(tmp_path, rows)
    assert [path.name for path in made] == ["pareto.png", "pareto_kinds.png"]
    assert [axis.get_title() for axis in figures[1].axes[:2]] == list(kinds)
    (legend,) = figures[0].legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "full model",
        "a(option=$x_^0.5$)",
        "a(option=$x_^0.4$)",
    ]


def test_a_front_is_of_one_model(tmp_path, figures):
    rows = [
        row("full", 1, 0.9, "m", "one"), row("baseline", 0.4, 0.7, "m", "one"),
        row("tested", 0.6, 0.8, "m", "one"), row("full", 1, 0.5, "n", "two"),
        row("tested", 0.3, 0.2, "n", "two"), row("tested", 0.5, 0.4, "n", "two"),
    ]  # fmt: skip
    pareto.draw(tmp_path, rows)
    lines = [line.get_xydata().tolist() for line in figures[0].axes[0].lines]
    assert [[0.4, 0.7], [0.6, 0.8]] in lines
    assert [[0.3, 0.2], [0.5, 0.4]] in lines
    assert [axis.get_title() for axis in figures[1].axes[:2]] == ["one", "two"]
    (legend,) = figures[0].legends
    names = [text.get_text() for text in legend.get_texts()]
    assert {"m: full model", "n: full model"} <= set(names)
    assert len(names) == len(set(names)) == 6


def test_what_cannot_be_drawn_is_warned_of(tmp_path, monkeypatch):
    def fails(*given: Any, **options: Any) -> None:
        raise RuntimeError("no font")

    monkeypatch.setattr(Figure, "savefig", fails)
    with pytest.warns(UserWarning, match="no pictures of cost and accuracy: no font"):
        assert pareto.draw(tmp_path, [row("full", 1, 0.9), row("tested", 0.5, 0.8)]) == []


def test_equal_budgets_are_dots_and_no_vertical_line(tmp_path, figures):
    (tmp_path / "pareto.png").touch()  # of the table before its last row came
    kinds = ("$100 or x_^$", "two")
    rows = [row("full", 1, 0.9, "m", *kinds)]
    rows += [row("tested", cost, right, "m", *kinds) for cost, right in ((0.5, 0.8), (0.51, 0.7))]
    made = pareto.draw(tmp_path, rows)
    assert [path.name for path in made] == ["accuracy.png", "accuracy_kinds.png"]
    assert sorted(path.name for path in tmp_path.glob("*.png")) == [path.name for path in made]
    (axis,) = figures[0].axes
    assert [text.get_text() for text in axis.get_yticklabels()] == [
        "full model", "a(option=$x_^0.5$)", "a(option=$x_^0.51$)"
    ]  # fmt: skip
    dots_at = [line.get_xydata().tolist() for line in axis.lines if line.get_marker() == "o"]
    assert dots_at == [[[0.9, 0]], [[0.8, 1]], [[0.7, 2]]]
