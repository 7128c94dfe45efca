"""Pools of problems: disjoint by what is asked, full, a function of the seed, and one sentence where they cannot be."""

import dataclasses
from collections import Counter
from typing import ClassVar

import pytest

from fftlm_jax.raft.tasks import Problem, make_pools, make_task
from fftlm_jax.raft.tasks import task as pools_module

SIZES = {"sft": 30, "raft": 120, "held_out": 60}
TASKS = (
    make_task("add", 2),
    make_task("add_long", 5),
    make_task("sort", 4),
    make_task("dyck", 16),
    make_task("countdown", 3),
)
EVERY = pytest.mark.parametrize("task", TASKS, ids=repr)


def keys_of(task, pools):
    return [{task.key(problem.prompt) for problem in pool} for pool in pools]


def assert_disjoint(task, pools):
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert not keys_of(task, pools)[a] & keys_of(task, pools)[b]


@EVERY
@pytest.mark.parametrize("seed", (0, 1, 2))
def test_pools_are_full_and_share_no_question(task, seed):
    pools = make_pools(task, **SIZES, seed=seed)
    assert tuple(map(len, pools)) == (30, 120, 60)
    assert_disjoint(task, pools)
    prompts = [problem.prompt for pool in pools for problem in pool]
    assert len(set(prompts)) == len(prompts)
    assert all(task.verify(*problem).ok for pool in pools for problem in pool)


@EVERY
def test_pools_are_a_function_of_the_seed(task):
    pools = make_pools(task, **SIZES, seed=5)
    assert make_pools(task, **SIZES, seed=5) == pools
    other = make_pools(task, **SIZES, seed=6)
    assert all(set(a) != set(b) for a, b in zip(pools, other))


@EVERY
def test_pools_keep_the_order_of_the_stream(task):
    order = {problem.prompt: place for place, problem in zip(range(2000), task.problems(3))}
    for pool in make_pools(task, **SIZES, seed=3):
        places = [order[problem.prompt] for problem in pool]
        assert places == sorted(places)


@pytest.mark.parametrize(
    "task,sizes",
    (
        (make_task("dyck", 16), (40, 160, 200)),
        (make_task("dyck", 16), (0, 208, 200)),
        (make_task("dyck", 16), (136, 136, 136)),
        (make_task("add", 1), (30, 30, 35)),
        (make_task("add", 2), (300, 1500, 8000)),
        (make_task("sort", 2), (14, 15, 16)),
    ),
    ids=str,
)
@pytest.mark.parametrize("seed", range(5))
def test_small_spaces_are_used_up_almost_or_wholly(task, sizes, seed):
    """Dyck of 16 bytes has 408 beginnings, addition of single digits 100 problems."""
    pools = make_pools(task, sft=sizes[0], raft=sizes[1], held_out=sizes[2], seed=seed)
    assert tuple(map(len, pools)) == sizes
    assert_disjoint(task, pools)


def test_labelled_problems_keep_to_their_levels():
    task = make_task("add_long", 5)
    for level in (1, 2, 5):
        pools = make_pools(task, sft=40, raft=200, held_out=100, seed=0, sft_level=level)
        assert {task.level(p.prompt) for p in pools.sft} == set(range(1, level + 1))
        for pool in (pools.raft, pools.held_out):
            counts = Counter(task.level(p.prompt) for p in pool)
            assert set(counts) == {1, 2, 3, 4, 5}
            assert min(counts[n] for n in (2, 3, 4, 5)) > len(pool) / 10, "spread over the lengths"
        assert_disjoint(task, pools)
    assert make_pools(task, **SIZES, seed=0, sft_level=5) == make_pools(task, **SIZES, seed=0)


@pytest.mark.parametrize("sft", (60, 90, 100))
def test_the_labelled_pool_comes_first_where_its_levels_are_scarce(sft):
    task = make_task("add_long", 2)
    pools = make_pools(task, sft=sft, raft=400, held_out=200, seed=0, sft_level=1)
    assert tuple(map(len, pools)) == (sft, 400, 200)
    assert_disjoint(task, pools)


def test_empty_pools_are_no_fault():
    task = make_task("add", 2)
    assert make_pools(task, sft=0, raft=0, held_out=0, seed=0) == ((), (), ())
    assert tuple(map(len, make_pools(task, sft=0, raft=5, held_out=0, seed=0))) == (0, 5, 0)


@pytest.mark.parametrize(
    "task,sizes,level,message",
    (
        (
            make_task("dyck", 16), (40, 160, 209), None,
            "dyck: all 408 problems are too few for disjoint pools of 40, 160 and 209; "
            "lower sft, raft or held_out, or raise the size of the task.",
        ),
        (
            make_task("add", 1), (50, 50, 50), None,
            "add: all 100 problems, in 55 groups that ask the same, are too few for disjoint pools of 50, 50 and 50; "
            "lower sft, raft or held_out, or raise the size of the task.",
        ),
        (
            make_task("add_long", 2), (101, 50, 50), 1,
            "add_long: of all 8200 problems only 100 are of level 1 or below, too few for 101 labelled ones; "
            "lower sft, or raise sft_level.",
        ),
        (make_task("add", 2), (1, -2, 3), None, "A pool cannot have -2 problems."),
    ),
)  # fmt: skip
def test_too_few_problems_get_one_sentence(task, sizes, level, message):
    with pytest.raises(ValueError) as error:
        make_pools(task, sft=sizes[0], raft=sizes[1], held_out=sizes[2], seed=0, sft_level=level)
    assert str(error.value) == message


@dataclasses.dataclass(frozen=True)
class Counting:
    """An endless stream of which only every `rare`-th problem is easy."""

    name: ClassVar[str] = "counting"
    levels: ClassVar[int] = 2

    rare: int

    def problems(self, seed):
        number = 0
        while True:
            yield Problem(b"%d" % number, b"\n")
            number += 1

    def key(self, prompt):
        return prompt

    def level(self, prompt):
        return 2 if int(prompt) % self.rare else 1


def test_an_endless_stream_is_read_only_as_far_as_needed(monkeypatch):
    pools = make_pools(Counting(rare=50), sft=20, raft=20, held_out=20, seed=0, sft_level=1)
    assert all(int(p.prompt) % 50 == 0 for p in pools.sft)
    assert max(int(p.prompt) for pool in pools for p in pool) < 4000
    monkeypatch.setattr(pools_module, "MOST_READ", 500)
    with pytest.raises(ValueError, match="of the first 500 problems only 10 are of level 1 or below, too few for 20"):
        make_pools(Counting(rare=50), sft=20, raft=20, held_out=20, seed=0, sft_level=1)
    with pytest.raises(ValueError, match="the first 500 problems are too few for disjoint pools of 200, 200 and 200"):
        make_pools(Counting(rare=1), sft=200, raft=200, held_out=200, seed=0)
