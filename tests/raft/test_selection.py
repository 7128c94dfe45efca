"""What is kept: right answers only, capped, blind to the order of prompts; the control differs in nothing else."""

import random

from fftlm_jax.raft.selection import Candidate, select, select_random


def candidates(prompts=20, samples=8, seed=0):
    rng = random.Random(seed)
    found = []
    for i in range(prompts):
        for sample in range(samples):
            ok = rng.random() < i / prompts
            answer = b"%d\n" % (i if ok else 1000 + rng.randrange(5))
            found.append(Candidate(b"q%d=" % i, answer + (b"!" * rng.randrange(3) if ok else b""), ok, sample))
    return found


def test_nothing_wrong_is_ever_kept_nor_topped_up():
    pool = candidates()
    kept = select(pool, per_prompt=4, seed=0, budget=1000)
    assert kept and all(c.ok for c in kept)
    assert select([c for c in pool if not c.ok], per_prompt=4, seed=0) == []


def test_the_order_of_prompts_and_samples_does_not_matter():
    pool = candidates()
    for seed in range(3):
        wanted = select(pool, per_prompt=2, seed=seed, budget=17)
        for shuffle in range(5):
            mixed = pool[:]
            random.Random(shuffle).shuffle(mixed)
            assert select(mixed, per_prompt=2, seed=seed, budget=17) == wanted
            assert select_random(mixed, per_prompt=2, seed=seed, count=17) == select_random(
                pool, per_prompt=2, seed=seed, count=17
            )


def test_the_seed_decides_ties():
    pool = candidates()
    assert select(pool, per_prompt=1, seed=0, budget=8) != select(pool, per_prompt=1, seed=1, budget=8)


def test_duplicates_go_and_the_cap_holds():
    pool = [Candidate(b"q=", b"1\n", True)] * 5 + [Candidate(b"q=", b"01\n", True), Candidate(b"r=", b"2\n", True)]
    assert sorted(select(pool, per_prompt=4, seed=0)) == sorted({*pool})
    assert len(select(pool, per_prompt=1, seed=0)) == 2


def test_solved_prompts_can_be_left_out():
    pool = [Candidate(b"q=", b"1\n", True), Candidate(b"r=", b"2\n", True), Candidate(b"r=", b"3\n", False)]
    assert select(pool, per_prompt=4, seed=0, drop_solved=True) == [pool[1]]


def test_a_budget_takes_prompts_from_the_whole_list():
    """Half of the kept set, under rewards of 0 and 1, must not be the first half of the prompts."""
    pool = [Candidate(b"%d=" % i, b"1\n", True) for i in range(400)]
    numbers = [int(c.prompt[:-1]) for c in select(pool, per_prompt=4, seed=0, budget=200)]
    assert 70 < sum(n < 200 for n in numbers) < 130


def test_the_control_keeps_as_many_whatever_they_are():
    pool = candidates()
    kept = select(pool, per_prompt=4, seed=0)
    control = select_random(pool, per_prompt=4, seed=0, count=len(kept))
    assert len(control) == len(kept)
    assert max(sum(c.prompt == p for c in control) for p in {c.prompt for c in control}) <= 4


def test_the_control_is_a_fair_coin():
    """Right answers agree and wrong ones differ; that must not make right ones rarer among what is drawn."""
    rng = random.Random(0)
    pool = []
    for i in range(500):
        for sample in range(8):
            ok = rng.random() < i / 500
            answer = b"right\n" if ok else b"%d\n" % rng.randrange(1000)
            pool.append(Candidate(b"q%d=" % i, answer, ok, sample))
    control = select_random(pool, per_prompt=4, seed=0, count=1000)
    share = sum(c.ok for c in pool) / len(pool)
    assert abs(sum(c.ok for c in control) / len(control) - share) < 0.05
