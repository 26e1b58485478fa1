"""Verdicts on masks."""

from experiments.masks_verdicts import ranking


def test_the_same_variance_under_another_gate_is_no_rival_of_the_response():
    ranks = {"mean": 0.4, "jacobian": 0.7, "response": 0.74, "response_open": 0.74}
    rows = {name: {"spearman": value} for name, value in ranks.items()}
    assert ranking(rows)[1:] == ["Spearman 0.74 against 0.70 of the next", "confirmed"]
    rows["jacobian"] = {"spearman": 0.75}
    assert ranking(rows)[2] == "overturned"
    rows["jacobian"] = {"spearman": float("nan")}
    assert ranking(rows)[1] == "Spearman 0.74 against 0.40 of the next"
