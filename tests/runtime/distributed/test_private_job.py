"""Privacy rules where each rank keeps its own ledger: drawn for all, dealt out whole, paid for once."""

from __future__ import annotations

import pytest

from tests.runtime.distributed.test_job_ranks import EVERY, _fresh, bodies, verified
from tests.runtime.distributed.test_private_ranks import RULES, WHO, assert_same, both

DRAWN = {"who": WHO, "count": 6, "seeds": [2, 2]}


@pytest.mark.parametrize(
    ("wrap", "options"), [(None, {}), ("ddp", {"clipping": "layer"}), ("fsdp", {"withhold": True})]
)
def test_without_noise_two_ranks_train_what_one_process_trains_on_the_draws_of_both(lab, site, wrap, options):
    task = {"model": "layers", "privacy": {"silent": True, **options}, "drawn": DRAWN}
    first, second, alone = both(site, lab.policy + RULES, [], wrap=wrap, job=EVERY, **task)
    assert_same(first, second, alone)
    report = verified(site)
    assert (report.status, report.findings) == ("OK", ())
    spent = [
        [body["privacy"]["quiet"]["steps"] for body in bodies(site, rank, "committed")] for rank in (0, 1)
    ]
    assert spent == [list(range(1, 7))] * 2
    assert report.facts["privacy"]["quiet"]["steps"] == 6
    bounds = report.facts["epsilon_bounds"]["quiet"]
    assert float(bounds["low"]) <= float(report.facts["privacy"]["quiet"]["epsilon"]) <= float(bounds["high"])
    assert bodies(site, 1, "opened")[0]["privacy"][0]["on_trust"] == ""


@pytest.mark.parametrize("wrap", ["ddp", pytest.param("fsdp", marks=pytest.mark.soak)])
def test_a_crash_and_a_way_back_are_paid_for_once_by_both(lab, site, pairs, wrap):
    """Rank 1 is killed before it records that step 4 was refused, and so counts it; rank 0 did not.

    Both go back to the weights from before step 2: what was spent since stays spent.
    """
    task = {"model": "layers", "privacy": {"silent": True, "noise_seed": None}, "wrap": wrap, "job": EVERY}
    more = {2: {"save": "early.safetensors"}, 4: {"spoil": [1, "die late"]}}
    first, second = site.train(lab.policy + RULES, [], drawn={**DRAWN, "count": 5, "more": more}, **task)
    assert second is None
    assert first["error"][0] == "RankError"
    report = verified(site)
    assert report.status == "INCOMPLETE"
    assert {finding.ranks for finding in report.findings if finding.code == "cut_off"} == {(1,)}
    site.pair.stop()
    pairs.append(type(site.pair)(_fresh(site)))
    site.pair = pairs[-1]
    again = {**DRAWN, "count": 2, "seeds": [3, 3]}
    first, second = site.train(lab.policy + RULES, [], drawn=again, rewind="early.safetensors", **task)
    assert (first["error"], second["error"], first["first"], second["first"]) == (None, None, 5, 5)
    assert first["weights"] == second["weights"]
    report = verified(site)
    assert (report.status, report.findings) == ("OK", ())
    assert [body["rules"] for body in bodies(site, 0, "paid")] == [{"quiet": 5}]
    assert bodies(site, 1, "paid") == []
    assert report.facts["privacy"]["quiet"]["steps"] == 7
    for rank in (0, 1):
        (back,) = bodies(site, rank, "rewound")
        assert (back["checkpoint"]["step"], back["abandoned"], back["effective"]) == (2, [[2, 5]], 2)
    alone = site.alone(
        lab.policy + RULES,
        [],
        drawn=again,
        load=str(site.folder / "pair" / "early.safetensors"),
        **{key: task[key] for key in ("model", "privacy")},
    )
    assert_same(first, second, alone)


def test_ranks_that_draw_apart_are_told_before_anything_moves(lab, site):
    task = {"model": "layers", "privacy": {"silent": True}, "job": EVERY}
    for answer in site.train(lab.policy + RULES, [], drawn={**DRAWN, "seeds": [2, 3]}, **task):
        assert answer["error"][0] == "RankError"
        assert "have drawn other private examples" in answer["error"][1]
    assert bodies(site, 0, "committed") == []


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ({"job": EVERY}, "a sampler must"),
        ({"job": {"every": 2, "placement": "by_example"}, "drawn": DRAWN}, "knows no homes"),
    ],
)
def test_privacy_that_ranks_cannot_keep_apart_is_refused(lab, site, task, words):
    for answer in site.train(lab.policy + RULES, [], privacy={}, **task):
        assert words in answer["error"][1]
