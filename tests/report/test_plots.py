"""Figures say which arm is which: labels stand at their points, and the legend names every line."""

import pytest

from glot.report import cost_plots, plots
from glot.study.statistics import spread

SCORES = {
    ("a", "mean"): [0.1, 0.2],
    ("a", "glot"): [0.3, 0.4],
    ("a", "own"): [0.5, 0.5],
    ("b", "alignment"): [0.6, 0.7],
    ("b", "mean"): [0.8, 0.9],
}
"""(panel, arm) -> scores of two seeds; the panels have other arms."""


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved, in order."""
    figures = []
    for module in (plots, cost_plots):
        monkeypatch.setattr(module, "save_figure", lambda figure, path: figures.append(figure))
    return figures


def test_each_point_stands_beside_its_own_name(drawn, tmp_path):
    rows = [(panel, arm, "accuracy", spread(scores)) for (panel, arm), scores in SCORES.items()]
    plots.plot_arms(rows, tmp_path / "x.png")
    for axes in drawn[0].axes:
        names = dict(zip(axes.get_yticks(), [label.get_text() for label in axes.get_yticklabels()], strict=True))
        found = {names[bars[0].get_ydata()[0]]: bars[0].get_xdata()[0] for bars in axes.containers}
        assert found == {arm: sum(scores) / 2 for (panel, arm), scores in SCORES.items() if panel == axes.get_title()}
        low, high = sorted(axes.get_ylim())
        assert low < 0 and high > len(names) - 1


def test_panels_of_the_same_arms_share_their_names(drawn, tmp_path):
    rows = [(panel, arm, "accuracy", spread([0.1, 0.2])) for panel in "ab" for arm in ("mean", "glot")]
    plots.plot_arms(rows, tmp_path / "x.png")
    first, second = drawn[0].axes
    assert [label.get_text() for label in first.get_yticklabels()] == ["mean", "glot"]
    assert not any(label.get_text() for label in second.get_yticklabels()) and first.get_ylim() == second.get_ylim()


def test_the_legend_names_the_lines_of_every_panel_and_no_two_look_alike(drawn, tmp_path):
    lines = [(panel, float(x), arm, spread([score, score])) for (panel, arm), scores in SCORES.items() for x, score in enumerate(scores)]
    plots.plot_lines(lines, {}, "epoch", {"a": "accuracy", "b": "accuracy"}, tmp_path / "x.png")
    weights = {place: {"0": spread([0.4, 0.4]), "1": spread([0.6, 0.6])} for place in SCORES}
    plots.plot_layer_weights(weights, tmp_path / "x.png")
    for figure in drawn:
        legend = figure.axes[-1].get_legend()
        assert {text.get_text() for text in legend.get_texts()} == {arm for _, arm in SCORES}
        looks = [(line.get_color(), line.get_marker()) for line in legend.get_lines()]
        assert len({*looks}) == len(looks)
    looks = plots.looks_of([f"arm {place}" for place in range(24)])
    assert len({*looks.values()}) == 24


def test_odd_names_and_equal_sizes_are_shown(drawn, tmp_path):
    rows = [(22, "one", "_x", spread([0.1])), (22, "two", "_x", spread([0.2])), (99, "three", "", spread([0.3]))]
    plots.plot_sizes(rows, tmp_path / "x.png")
    (axes,) = drawn[0].axes
    assert [label.get_text().split("\n")[0] for label in axes.get_xticklabels()] == ["one", "two", "three"]
    places = axes.get_xticks().tolist()
    assert places[0] < places[1] < places[2] and axes.get_xticklabels()[0].get_text() == "one\n22"
    assert [text.get_text().strip() for text in axes.get_legend().get_texts()] == ["_x", "run"]


def test_no_number_of_an_axis_is_a_formula(drawn, tmp_path):
    cost_plots.plot_cost([("mean", 0.0017, 0.25), ("lora", None, 1.1)], tmp_path / "a.png")
    cost_plots.plot_score_by_seconds([("mean", "mcc", [(8.0, 0.1), (900.0, 0.2)])], tmp_path / "b.png")
    cost_plots.plot_score_by_seconds([("mean", "mcc", [(0.017, 0.1), (0.066, 0.2)]), ("glot", "mcc", [(0.03, 0.1)])], tmp_path / "c.png")
    narrow = drawn.pop().axes[0]
    low, high = narrow.get_xlim()
    ticks = zip(narrow.get_xticks(), narrow.get_xticklabels(), strict=True)
    assert {label.get_text() for place, label in ticks if low <= place <= high} == {"0.02", "0.05"}
    assert len(drawn) == 2
    for figure in drawn:
        words = [label.get_text() for label in figure.axes[0].get_xticklabels()]
        assert "100" in words and not any("$" in word for word in words), words
