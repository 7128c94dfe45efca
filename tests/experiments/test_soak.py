"""The soak: what it draws is within the run, and what it compares it really compares."""

import json
import random
import shutil

import pytest

from experiments import soak
from fftlm_jax.runtime import faults
from fftlm_jax.training import run
from tests.tiny import tiny_values


@pytest.mark.parametrize("seed", range(5))
def test_every_death_is_a_place_that_exists_and_lies_ahead(seed):
    rng, kills = random.Random(seed), 50
    total = (3 * kills + 6) * soak.INTERVAL
    done, seen = 0, set()
    for left in range(kills, 0, -1):
        kill = soak.next_kill(rng, done, left, total)
        faults.arm(kill.fault)  # Refuses what does not exist.
        seen.add(kill.place)
        number = int(kill.fault.partition(":")[2] or 0)
        assert number == 0 or done + soak.INTERVAL < number < total
        if kill.place != "in_compile":
            done = max(done + 2 * soak.INTERVAL, number // soak.INTERVAL * soak.INTERVAL)
        assert done < total
    faults.arm("")
    assert {None, "in_compile", "before_raise_save", "during_deletion", "mid_step", "before_manifest"} <= seen


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    small = {"model__n_layers": 1, "model__projections": False, "model__chunk": 1, "objective__name": "next_byte"}
    values = tiny_values(**small, train__epochs=1, curriculum__rule="none", sample__bytes=0)
    run(values, folder / "straight")
    shutil.copytree(folder / "straight", folder / "killed")
    return folder


def test_equal_runs_are_equal_and_any_difference_is_said(runs, tmp_path):
    assert soak.differences(runs / "straight", runs / "killed", 4) == []
    file = runs / "killed" / "metrics.jsonl"
    lines = file.read_text().splitlines()
    number = next(i for i, line in enumerate(lines) if '"train"' in line)
    record = json.loads(lines[number])
    lines[number] = json.dumps({**record, "bytes_per_second": 1})
    file.write_text("\n".join(lines) + "\n")
    assert soak.differences(runs / "straight", runs / "killed", 4) == [], "times may differ"
    file.write_text("\n".join([*lines[: number + 1], lines[number], *lines[number + 1 :]]) + "\n")
    assert "differs at record" in soak.differences(runs / "straight", runs / "killed", 4)[0], "a step twice"
    (runs / "killed" / "checkpoints" / "4" / "stray").write_text("x")
    assert "'stray' is not in its manifest" in soak.differences(runs / "straight", runs / "killed", 4)[0]
