"""Active learning in the app: strategies that need scores, the scores in the background, and what is said meanwhile."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_app import (  # noqa: F401 - fixtures
    AppUnderTest,
    fixture_under_test,
    load_app_class,
    sibling,
)

from ctseg.errors import ConfigError, InputError
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
    moves: float = 0.0
    dropout: bool = False

    def explore(self, study: Any, look: Callable[..., Any]) -> Any:
        source = study.source
        self.asked.append(source.name.partition(".")[0])
        if self.asked[-1] == self.broken:
            raise InputError(f"{source} is broken")
        value = 0.3 if self.asked[-1] == "case2" else -20.0
        network = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), *([torch.nn.Dropout(0.5)] if self.dropout else []))
        network.eval()

        def run(image: torch.Tensor) -> torch.Tensor:
            """The grey value moves the logit, and so does a dropout that is switched on."""
            moved = value + (image[:, :1] - 0.5) * self.moves
            return moved + network[1](torch.full_like(moved, 0.2)) - 0.2 if self.dropout else moved

        return look(torch.full((1, 1, 6, 6, 2), 0.5), run, network)


@pytest.fixture
def asked(under_test: AppUnderTest) -> list[str]:
    """The cases that the network was asked for, in order."""
    asked: list[str] = []
    under_test.app._networks.load = lambda info, device: Explorer(info, asked)
    return asked


def finished(app: Any, model: str = MODEL, **asked: Any) -> dict[str, Any]:
    scoring = sibling("app_scoring")
    scores = app._scores.get(model, scoring.Scoring(**asked) if asked else None)
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
    assert finished(app)["scored"]["case1"]["disagreement"] == {} and len(asked) == 2
    app.next_sample({"strategy": "disagreement", "model": MODEL})
    told = finished(app, way="augment", runs=3)
    assert told["scored"]["case1"]["disagreement"] == {"aaa": 0.0} and (told["way"], told["runs"]) == ("augment", 3)
    assert len(asked) == 4
    assert finished(app)["scored"]["case1"]["disagreement"] == {}, "entropies of one run and of several do not mix"


@pytest.mark.parametrize("way", ["augment", "dropout"])
def test_uncertainty_by_several_runs_is_a_choice_of_the_request(under_test: AppUnderTest, way: str) -> None:
    """Augmented grey values and switched-on dropout each give other probabilities than the plain run: sigmoid(0.3)."""
    app, asked = under_test.app, list[str]()
    app._networks.load = lambda info, device: Explorer(info, asked, moves=2.0, dropout=True)
    app.next_sample({"strategy": "uncertainty", "model": MODEL})
    plain = finished(app)["scored"]["case2"]
    request = {"strategy": "uncertainty", "model": MODEL, "way": way, "runs": 4}
    app.next_sample(request)
    several = finished(app, way=way, runs=4)["scored"]["case2"]
    assert several["entropy"]["aaa"] != pytest.approx(plain["entropy"]["aaa"], abs=1e-4)
    assert several["voxels"] == plain["voxels"] and several["expected_dice"] == plain["expected_dice"]
    assert app.next_sample({**request, "seed": 1})["scores"]["entropy"] == several["entropy"]
    assert sorted(asked) == ["case1", "case1", "case2", "case2"], "each way scores a case once"
    kept = under_test.studies / "ctseg" / MODEL
    assert (kept / "scores.json").is_file() and (kept / f"scores_{way}4.json").is_file()


def test_the_way_is_an_option_of_the_server_and_shown_to_viewers(
    under_test: AppUnderTest, asked: list[str], tmp_path: Path
) -> None:
    told = under_test.app.info()["strategies"]
    assert told["uncertainty"]["config"] == {"way": ["plain", "augment", "dropout"], "runs": 3}
    assert told["disagreement"]["config"] == {"way": ["augment", "dropout"], "runs": 3}
    assert "config" not in told["first"] and "config" not in told["diversity"]
    conf = {"bundles": str(under_test.bundles), "uncertainty": "dropout", "uncertainty_runs": "5"}
    app = load_app_class()(under_test.app.app_dir, str(under_test.studies), conf)
    made = []
    app._networks.load = lambda info, device: made.append(info.name) or Explorer(info, asked, dropout=True)
    assert app.info()["strategies"]["uncertainty"]["config"] == {"way": ["dropout", "plain", "augment"], "runs": 5}
    config = app.info()["strategies"]["disagreement"]["config"]
    app.next_sample({"strategy": "disagreement", "model": MODEL, **config})  # a client that sends all options back
    assert set(finished(app, way="dropout", runs=5)["scored"]) == {"case1", "case2"}
    app.next_sample({"strategy": "diversity", "model": MODEL})
    finished(app)
    assert len(asked) == 2, "the usual scores serve the others too"


def test_a_network_without_dropout_is_one_sentence_and_not_one_for_each_case(under_test: AppUnderTest) -> None:
    app, asked = under_test.app, list[str]()
    app._networks.load = lambda info, device: Explorer(info, asked)
    request = {"strategy": "uncertainty", "model": MODEL, "way": "dropout"}
    app.next_sample(request)
    told = finished(app, way="dropout", runs=3)
    assert "has no dropout layer: use augment" in told["problem"] and told["failed"] == {} and asked == ["case1"]
    answer = app.next_sample(request)
    assert answer["chosen_by"] == "random" and answer["problem"] == told["problem"]


@pytest.mark.parametrize(
    ("key", "value"), [("way", "guess"), ("runs", 0), ("runs", 21), ("runs", "many"), ("runs", True)]
)
def test_ways_that_there_are_not_are_refused(under_test: AppUnderTest, key: str, value: Any) -> None:
    with pytest.raises(HTTPException, match="expected") as caught:
        under_test.app.next_sample({"strategy": "uncertainty", "model": MODEL, "way": "augment", key: value})
    assert caught.value.status_code == 400
    with pytest.raises(ConfigError, match="expected"):
        sibling("app_scoring").scoring_of(
            {"uncertainty": "augment", {"way": "uncertainty"}.get(key, "uncertainty_runs"): value}
        )


def test_a_score_says_what_quality_to_expect(under_test: AppUnderTest, asked: list[str]) -> None:
    """Made of the same probabilities, p = sigmoid(0.3) in all 72 voxels, by the bundle's own line."""
    file = under_test.bundles / MODEL / "configs" / "metadata.json"
    told = json.loads(file.read_text())
    line = {"slope": 2.0, "intercept": -1.0, "patients": 15, "error": 0.02, "pearson": 0.7, "spearman": 0.5}
    told["ctseg"]["quality"] = {"aaa": line}
    file.write_text(json.dumps(told))
    under_test.app.next_sample({"strategy": "uncertainty", "model": MODEL})
    scored = finished(under_test.app)["scored"]
    p = 1 / (1 + np.exp(-0.3))
    expected = 2 * p / (p + 1)
    (organ,) = scored["case2"]["quality"]["organs"].values()
    assert organ["expected_dice"] == pytest.approx(expected, abs=1e-4)
    assert organ["dice"] == pytest.approx(2 * expected - 1, abs=1e-3) and organ["error"] == 0.02
    assert scored["case1"]["quality"] is None, "nothing was found"
    chosen = under_test.app.next_sample({"strategy": "uncertainty", "model": MODEL, "seed": 1})
    assert chosen["scores"] == scored["case2"]


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
