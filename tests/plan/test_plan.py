"""Bounds, tables and pictures of plans; and whole plans of a machine whose compiler is at hand: a CPU's."""

import dataclasses
import json

import jax
import pytest

from fftlm_jax.checkpoints.run_directory import RunDirectory
from fftlm_jax.config.reading import read_config, to_dict
from fftlm_jax.plan import machines, plan_run, programs, report
from fftlm_jax.plan.estimate import bound_of, place_of, purpose_of, traffic_of
from fftlm_jax.plan.machines import Chip, Machine, machine_named
from fftlm_jax.plan.program_text import Collective
from tests.raft.raft_run import raft_values
from tests.tiny import main_here, tiny, write_config

# A chip that runs this suite, so that everything but the description of a machine is tried without any extra.
HERE = Machine("here-1", Chip("cpu", "this processor", 2**30, 1e12, 1e11, 1e10), (1,))
PARAMETERS = ((6, 512, 1024), (256, 512), (6, 512))
NOTHING = dict(flops=0.0, useful_flops=0.0, state_bytes=0, collectives=(), is_float32=False)


def collective(kind, shape, op_name="", size=1000, times=1):
    return Collective(kind, shape, size, times, op_name)


@pytest.mark.parametrize(
    "found,place,purpose",
    (
        (collective("all-reduce", "f32[99]"), "end of step", "gradients"),
        (collective("all-gather", "bf16[1,512,1024]", "jit(s)/jvp()/while"), "forward", "parameters"),
        (collective("all-gather", "bf16[512,1024]", "jit(s)/transpose(jvp())/remat"), "backward", "parameters"),
        (collective("all-gather", "f32[6,512]", "jit(s)/jvp()/x"), "forward", "parameters"),
        (collective("all-gather", "f32[8,1024,77]", "jit(s)/jvp()/x"), "forward", "activations"),
        (collective("all-gather", "f32[2,128,4,512]", "jit(s)/jvp()/x"), "forward", "activations"),
        (
            collective("all-gather", "f32[2,128,4,512]", "jit(s)/transpose(jvp())/sharding_constraint"),
            *("backward", "parameters"),
        ),
        (collective("all-to-all", "f32[3,512,64]", "jit(s)/optimizer/x"), "optimizer", "optimizer"),
        (collective("collective-permute", "f32[8]", "jit(s)/transpose(jvp())/dot"), "backward", "gradients"),
    ),
)
def test_what_a_collective_is_for(found, place, purpose):
    assert (place_of(found), purpose_of(found, PARAMETERS)) == (place, purpose)


def test_collectives_of_one_purpose_are_added_up():
    two = [collective("all-gather", "f32[6,512]", "jvp()", times=n) for n in (2, 3)]
    small = collective("all-reduce", "f32[1]", size=1)
    rows = traffic_of([small, *two], PARAMETERS)
    assert [(row.purpose, row.times, row.moved) for row in rows] == [("parameters", 5, 5000), ("gradients", 1, 1)]


def test_a_step_takes_at_least_its_arithmetic_its_state_and_its_links():
    machine = machine_named("v5e-4")
    chip = machine.chip
    assert bound_of(machine, **{**NOTHING, "flops": 4 * chip.flops}).seconds == pytest.approx(1)
    assert bound_of(machine, **{**NOTHING, "state_bytes": int(chip.memory_rate)}).seconds == pytest.approx(1)
    reduced = [collective("all-reduce", "f32[1]", size=int(chip.links))]
    assert bound_of(machine, **{**NOTHING, "collectives": reduced}).seconds == pytest.approx(1.5), "there and back"
    both = {**NOTHING, "flops": 4 * chip.flops, "useful_flops": 2 * chip.flops, "collectives": reduced}
    bound = bound_of(machine, **both)
    assert bound.seconds == pytest.approx(1.5) and bound.seconds_apart == pytest.approx(2.5)
    assert bound.utilisation == pytest.approx(2 / 4 / 1.5)


def test_float32_products_on_a_gpu_have_half_the_peak_and_one_device_sends_nothing():
    half = {**NOTHING, "flops": 989e12, "is_float32": True, "collectives": [collective("all-reduce", "f32[1]")]}
    bound = bound_of(machine_named("h100-1"), **half)
    assert bound.arithmetic == pytest.approx(2) and bound.links == 0


def test_hosts_are_joined_by_a_slower_network():
    gathered = {**NOTHING, "collectives": [collective("all-gather", "f32[1]", size=10**9)]}
    inside, across = (bound_of(machine_named(name), **gathered).links for name in ("h100-16", "h100-2x8"))
    assert inside == pytest.approx(1e9 * 15 / 16 / 450e9)
    assert across == pytest.approx(1e9 * 15 / 16 / 500e9), "by either way at once"
    spread = bound_of(machine_named("h100-8x1"), **gathered).links
    assert spread == pytest.approx(1e9 * (7 / 8) / 50e9), "all of it by the network"


@pytest.fixture(scope="module")
def plan():
    config = tiny(curriculum__ladder=(5, "full"), train__accum_steps=2)
    return plan_run._plan_config(config, HERE, jax.devices()[:1])


def test_a_plan_holds_every_program_of_the_run(plan):
    assert {program.kind for program in plan.programs} == {"step", "evaluation", "decoding"}
    assert plan.fits and plan.days > 0
    for program in plan.programs:
        assert sum(report.memory_parts(plan, program).values()) == program.findings.peak, program.name
        assert program.findings.flops > 0 and not program.findings.holds_float64
    step = plan.programs[0].findings
    state = plan.state.parameters + plan.state.optimizer + plan.state.average
    assert plan.state.parameters == 4 * plan.parameters
    assert state <= step.arguments <= state + 2000 and step.updated_in_place >= state


def test_a_plan_can_be_read_in_three_forms(plan, tmp_path):
    text, values = report.as_text(plan), json.loads(report.as_json(plan))
    assert "fits: yes" in text and "no collectives" in text and "A bound, not a prediction" in text
    assert all(program.name in text for program in plan.programs)
    assert values["fits"] and values["programs"][0]["memory"]["parameters"] == plan.state.parameters
    report.draw(plan, tmp_path / "plan.png")
    assert (tmp_path / "plan.png").read_bytes()[:4] == b"\x89PNG"


def test_what_does_not_fit_is_told_with_how_much_is_missing(plan):
    small = dataclasses.replace(HERE, chip=dataclasses.replace(HERE.chip, memory=1000, usable=0.5))
    tight = dataclasses.replace(plan, machine=small)
    assert not tight.fits and "fits: NO" in report.as_text(tight)
    assert "more than the 0.5 KiB it gets" in tight.shortage(plan.programs[0].findings)
    refused = dataclasses.replace(plan.programs[0].findings, refusal="Ran out of memory on HBM")
    assert plan.shortage(refused) == "Ran out of memory on HBM"


def test_advice_tries_larger_batches_where_a_run_fits(plan):
    values = to_dict(tiny(train__accum_steps=2))
    tried = [what for what, _ in plan_run._changes(plan, values)]
    assert tried[0] == f"train.batch_size={2 * values['train']['batch_size']}"
    line = plan_run._tried("twice", {"train.batch_size": 4}, values, HERE, jax.devices()[:1])
    assert line.startswith("tried twice: FITS with")
    wrong = plan_run._tried("none", {"train.batch_size": 0}, values, HERE, jax.devices()[:1])
    assert wrong.startswith("tried none: refused (") and "batch_size" in wrong


def test_advice_makes_a_run_smaller_that_does_not_fit(plan):
    small = dataclasses.replace(HERE, chip=dataclasses.replace(HERE.chip, memory=1000), shape=(2,))
    tight = dataclasses.replace(plan, machine=small)
    tried = [what for what, _ in plan_run._changes(tight, to_dict(tiny(train__batch_size=8)))]
    assert "model.remat=blocks" in tried and "mesh.fsdp=2 mesh.data=1" in tried
    assert "train.batch_size=2 train.accum_steps=" in " ".join(tried)


def test_findings_are_kept_by_program_and_found_anew_where_they_are_damaged(monkeypatch, tmp_path):
    config = dataclasses.replace(tiny(), compile_cache=str(tmp_path))
    monkeypatch.delenv("CI", raising=False)
    said = []
    find = lambda: programs.programs_of(config, HERE, jax.devices()[:1], said.append, only_last_step=True)
    first = find()
    assert find() == first and len(said) == 1
    (kept,) = (tmp_path / "plans").glob("*.json")
    kept.write_text("{")
    assert find()[0].findings.flops == first[0].findings.flops and len(said) == 2
    assert json.loads(kept.read_text())["flops"] == first[0].findings.flops


@pytest.mark.parametrize("trained", ("full", "lora"))
def test_a_fine_tuning_run_is_planned_by_its_steps_and_its_sampling(trained):
    values = raft_values(raft__trained=trained)
    plan = plan_run._plan_config(read_config(values), HERE, jax.devices()[:1])
    kinds = [(program.kind, program.name) for program in plan.programs]
    steps = {name for kind, name in kinds if kind == "step"}
    assert steps == {f"step of fine-tuning ({t})" for t in {trained, values.raft.sft_trained}}
    assert kinds[-1] == ("decoding", f"rounds of sampling {values.raft.rows} completions")
    assert plan.days is None and all(program.findings.flops > 0 for program in plan.programs)
    for program in plan.programs:
        assert sum(report.memory_parts(plan, program).values()) == program.findings.peak, program.name


@pytest.fixture
def at_hand(monkeypatch):
    """The machine `here-1` can be asked for by name; what planning sets of JAX is undone."""
    monkeypatch.setattr(machines, "prepare", lambda target, environment: HERE)
    monkeypatch.setattr(machines, "devices_of", lambda machine: jax.devices()[:1])
    before = jax.config.jax_enable_compilation_cache
    yield
    jax.config.update("jax_enable_compilation_cache", before)


def test_a_plan_of_a_config_file_writes_where_it_is_asked_to_and_needs_no_corpus(at_hand, tmp_path, capsys):
    config = write_config(tmp_path / "mine.py", "tests.tiny.tiny_values")
    options = ["--dry_run", "--target=here-1", f"--out={tmp_path / 'plan'}", "--config.data.path=nowhere.txt"]
    assert main_here(config, "--config.data.source=files", *options) == 0
    assert "fits: yes" in capsys.readouterr().out
    assert {file.name for file in (tmp_path / "plan").iterdir()} == {"plan.json", "plan.png"}
    (tmp_path / "taken").touch()
    assert main_here(config, "--dry_run", "--target=here-1", f"--out={tmp_path / 'taken'}") != 0
    assert "the plan cannot be written there" in capsys.readouterr().err


def test_a_run_directory_is_planned_by_its_own_config(at_hand, tmp_path, capsys):
    directory = RunDirectory(tmp_path / "run")
    directory.root.mkdir()
    directory.config.write_text(json.dumps(to_dict(tiny())))
    before = sorted(directory.root.rglob("*"))
    assert plan_run.main([str(tmp_path / "run"), "--target=here-1"]) == 0
    assert "fits: yes" in capsys.readouterr().out and sorted(directory.root.rglob("*")) == before
    assert plan_run.main([str(tmp_path / "nothing"), "--target=here-1"]) == 1
    assert "holds no run" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options,sentence",
    (
        (["--target=v5e-4"], "add --dry_run"),
        (["--advise"], "belong to a plan"),
        (["--dry_run", "--out=somewhere"], "belong to a plan"),
        (["--dry_run", "--target=v5e-5"], "is no slice of this TPU"),
    ),
)
def test_options_that_make_no_sense_are_refused(options, sentence, capsys):
    assert main_here("--config=configs/quickstart.py", *options) == 1
    assert sentence in capsys.readouterr().err
