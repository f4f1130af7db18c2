"""Active learning in the app: strategies that need scores, the scores in the background, and what is said meanwhile."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_app import (  # noqa: F401 - fixtures
    AppUnderTest,
    fixture_under_test,
)

from ctseg.errors import InputError
from ctseg.registry import BundleInfo

pytest.importorskip("monailabel", reason="the server's extra is not installed")
from fastapi import HTTPException

MODEL = "aaa_ct_segmentation"


@dataclass
class Explorer:
    """A predictor whose network is unsure of case2 and sees nothing in case1; it notes what it is asked."""

    bundle: BundleInfo
    asked: list[str]
    broken: str = ""

    def explore(self, source: Path, look: Callable[..., Any]) -> Any:
        self.asked.append(source.name.partition(".")[0])
        if self.asked[-1] == self.broken:
            raise InputError(f"{source} is broken")
        value = 0.3 if self.asked[-1] == "case2" else -20.0
        network = torch.nn.Conv2d(1, 1, 1)
        return look(torch.rand(1, 1, 6, 6, 2), lambda image: torch.full((1, 1, *image.shape[2:]), value), network)


@pytest.fixture
def asked(under_test: AppUnderTest) -> list[str]:
    """The cases that the network was asked for, in order."""
    asked: list[str] = []
    under_test.app._networks.load = lambda info, device: Explorer(info, asked)
    return asked


def finished(app: Any, model: str = MODEL) -> dict[str, Any]:
    scores = app._scores.get(model)
    assert scores.idle.wait(60)
    told: dict[str, Any] = scores.told()
    return told


def test_the_strategies_are_there(under_test: AppUnderTest) -> None:
    strategies = under_test.app.info()["strategies"]
    assert list(strategies) == ["random", "first", "foreground", "uncertainty", "diversity", "disagreement"]
    assert all(entry["description"] for entry in strategies.values())


def test_a_choice_does_not_wait_for_scores_and_then_goes_by_them(under_test: AppUnderTest, asked: list[str]) -> None:
    app = under_test.app
    first = app.next_sample({"strategy": "uncertainty", "model": MODEL})
    assert first["chosen_by"] in ("random", "uncertainty") and first["id"] in ("case1", "case2")
    told = finished(app)
    assert set(told["scored"]) == {"case1", "case2"} and told["left"] == [] and told["version"]
    assert told["scored"]["case2"]["entropy"]["aaa"] > 0.9 and told["scored"]["case1"]["entropy"]["aaa"] == 0
    for seed in range(5):  # the noise cannot make up for a million to one
        chosen = app.next_sample({"strategy": "uncertainty", "model": MODEL, "seed": seed})
        assert chosen["id"] == "case2" and chosen["chosen_by"] == "uncertainty" and chosen["scored_cases"] == 2
        assert chosen["scores"]["voxels"] == {"aaa": 6 * 6 * 2}
    assert sorted(asked) == ["case1", "case2"], "no case is scored twice"


def test_scores_outlive_the_server_and_not_their_network(under_test: AppUnderTest, asked: list[str]) -> None:
    app = under_test.app
    app.next_sample({"strategy": "foreground"})
    finished(app)
    kept = under_test.studies / "ctseg" / MODEL / "scores.json"
    assert kept.is_file()
    app._scores.forget()
    app._scores.get(MODEL).start()
    finished(app)
    assert len(asked) == 2
    kept.write_text(kept.read_text().replace('"version": "', '"version": "0'))
    app._scores.forget()
    app._scores.get(MODEL).start()
    finished(app)
    assert len(asked) == 4


def test_disagreement_needs_runs_that_other_strategies_do_without(under_test: AppUnderTest, asked: list[str]) -> None:
    app = under_test.app
    app.next_sample({"strategy": "uncertainty", "model": MODEL})
    assert "disagreement" not in next(iter(finished(app)["scored"].values())) or len(asked) == 2
    app.next_sample({"strategy": "disagreement", "model": MODEL})
    assert finished(app)["scored"]["case1"]["disagreement"] == {"aaa": 0.0}
    assert len(asked) == 4


def test_a_case_that_cannot_be_scored_is_named_and_does_not_stop_the_rest(under_test: AppUnderTest) -> None:
    app, asked = under_test.app, list[str]()
    app._networks.load = lambda info, device: Explorer(info, asked, broken="case1")
    app.next_sample({"strategy": "diversity", "model": MODEL})
    told = finished(app)
    assert set(told["scored"]) == {"case2"} and "is broken" in told["failed"]["case1"] and told["left"] == []
    assert app.next_sample({"strategy": "diversity", "model": MODEL})["id"] == "case2"


def test_models_that_cannot_score(under_test: AppUnderTest, asked: list[str]) -> None:
    app = under_test.app
    with pytest.raises(HTTPException, match="no model 'nope' that scores"):
        app.next_sample({"strategy": "uncertainty", "model": "nope"})
    untrained = app.next_sample({"strategy": "uncertainty", "model": "new_ct_segmentation"})
    assert untrained["chosen_by"] == "random" and not asked


def test_a_label_submitted_in_the_page_is_in_the_audit(under_test: AppUnderTest) -> None:
    under_test.app.label_stored("1.2.3", "1.2.9")
    (line,) = (under_test.studies / "ctseg" / "audit.jsonl").read_text().splitlines()
    told = json.loads(line)
    assert (told["what"], told["case"], told["label"]) == ("label saved", "1.2.3", "1.2.9") and told["when"]


def test_labelled_cases_are_not_offered(under_test: AppUnderTest, asked: list[str]) -> None:
    app = under_test.app
    label = under_test.studies / "case2.nii.gz"
    store = app.datastore()
    store.get_unlabeled_images = lambda *_: ["case1"]
    app.next_sample({"strategy": "uncertainty", "model": MODEL})
    finished(app)
    assert app.next_sample({"strategy": "uncertainty", "model": MODEL})["id"] == "case1" and asked == ["case1"]
    store.get_unlabeled_images = lambda *_: []
    assert not app.next_sample({"strategy": "uncertainty"}) and label.is_file()
