"""The curriculum's experiment: valid arms, and the table of places in words."""

import json

import pytest

from experiments import curriculum_ablation as ablation
from experiments.outcomes import Outcome
from experiments.trials import Trial


@pytest.mark.parametrize("arm", ablation.ARMS)
def test_every_arm_is_a_valid_config(arm):
    config = ablation.config_of(ablation.ARMS[arm])
    assert config.total_steps == 600


def test_two_arms_are_looked_at_in_every_epoch():
    watched = {trial.arm for trial in ablation.trials(1) if "eval.every=50" in trial.overrides}
    assert watched == set(ablation._WATCHED) and len(ablation.trials(2)) == 2 * len(ablation.ARMS)


def test_the_table_shows_each_cutoff_just_before_it_is_left(tmp_path):
    outcomes = []
    for seed, arm in enumerate(ablation._WATCHED):
        records = [
            {
                "kind": "eval",
                "step": step,
                "bpb_by_word_place": {"word_first": 4.0 + seed, "word_inner": 2, "outside": 1},
            }
            for step in (50, 100, 600)
        ]
        if arm != ablation.BASE:
            records.append({"kind": "event", "event": "cutoff_raised", "step": 100, "from": 16, "to": 32})
        outcomes.append(Outcome(Trial(arm, (), seed), "finished", {}))
        (tmp_path / outcomes[-1].trial.name).mkdir()
        text = "".join(json.dumps(record) + "\n" for record in records)
        (tmp_path / outcomes[-1].trial.name / "metrics.jsonl").write_text(text)
    rows = ablation.words_table(outcomes, tmp_path).splitlines()[2:]
    assert rows == [
        "| 100 | full | none | 4.000 | 2.000 | 1.000 |",
        "| 100 | 16 | schedule 2/5/10 | 5.000 | 2.000 | 1.000 |",
        "| 600 | full | none | 4.000 | 2.000 | 1.000 |",
        "| 600 | full | schedule 2/5/10 | 5.000 | 2.000 | 1.000 |",
    ]
