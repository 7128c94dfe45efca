"""Tasks of RAFT: labels are right, nothing else passes, and a verifier judges any bytes without ever running them."""

import ast
import itertools
import pathlib
import subprocess
import sys
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fftlm_jax.raft import tasks
from fftlm_jax.raft.tasks import END, TASKS, Verdict, fingerprint, judge, make_task
from fftlm_jax.raft.tasks.countdown import evaluate, reachable
from fftlm_jax.raft.tasks.task import shuffled
from tests.tiny import ROOT

ALL = (
    make_task("add", 2),
    make_task("add", 3, reversed_answer=True),
    make_task("add_long", 6),
    make_task("sort", 5),
    make_task("dyck", 16),
    make_task("dyck", 10),
    make_task("countdown", 3),
    make_task("countdown", 4),
)
SINGLE = [task for task in ALL if not task.multi_answer]
EVERY = pytest.mark.parametrize("task", ALL, ids=repr)


def first(task, count=300, seed=0):
    return list(itertools.islice(task.problems(seed), count))


# Checkers that share no code with the verifiers.


def is_balanced(text: bytes) -> bool:
    """By taking out neighbours that match until none is left."""
    shorter = text.replace(b"()", b"").replace(b"[]", b"")
    return not text or (shorter != text and is_balanced(shorter))


def countdown_answers(numbers: tuple[int, ...], longest: int) -> dict[bytes, Fraction]:
    """Every expression of some of the numbers that the grammar has, and its value: by writing down whole trees."""

    def trees(chosen):
        if len(chosen) == 1:
            yield str(chosen[0]), Fraction(chosen[0])
        for cut in range(1, len(chosen)):
            for (left, a), (right, b) in itertools.product(trees(chosen[:cut]), trees(chosen[cut:])):
                for sign, value in (("+", a + b), ("-", a - b), ("*", a * b)):
                    yield f"({left}{sign}{right})", value

    found = {}
    for size in range(1, len(numbers) + 1):
        for chosen in itertools.permutations(numbers, size):
            found |= {text.encode(): value for text, value in trees(chosen)}
    return {text: value for text, value in found.items() if len(text) < longest}


def is_right(task, prompt: bytes, completion: bytes) -> bool:
    """The definition of each task, written down a second time."""
    body = completion[:-1]
    if completion[-1:] != END or END in body:
        return False
    text = body.decode("latin-1")
    if task.name == "dyck":
        return len(prompt + body) == task.length and set(body) <= set(b"()[]") and is_balanced(prompt + body)
    if task.name == "countdown":
        given, target = prompt[:-1].decode().split(">")
        used = "".join(c if c.isdigit() else " " for c in text).split()
        rest = given.split()
        return (
            len(completion) <= task.longest_answer
            and all(n in rest and (rest.remove(n) or True) for n in used)
            and value_of(text) == int(target)
        )
    if task.name == "sort":
        return sorted(text) == list(text) and sorted(text) == sorted(prompt[:-1].decode())
    a, b = prompt[:-1].decode().split("+")
    width = len(a) + 1
    backward = task.name == "add_long" or task.reversed_answer
    return text == str(int(a) + int(b)).rjust(width, "0")[:: -1 if backward else 1]


def value_of(text: str):
    """Recursive descent, in place of the verifier's stacks; None for what is no expression."""

    def factor(at):
        if at < len(text) and text[at] == "(":
            value, at = terms(at + 1)
            if text[at : at + 1] != ")":
                raise ValueError
            return value, at + 1
        end = at
        while end < len(text) and text[end] in "0123456789":
            end += 1
        if end == at or (text[at] == "0" and end > at + 1):
            raise ValueError
        return int(text[at:end]), end

    def factors(at):
        value, at = factor(at)
        while text[at : at + 1] == "*":
            other, at = factor(at + 1)
            value *= other
        return value, at

    def terms(at):
        value, at = factors(at)
        while text[at : at + 1] in ("+", "-"):
            other, end = factors(at + 1)
            value, at = (value + other if text[at] == "+" else value - other), end
        return value, at

    try:
        value, at = terms(0)
    except ValueError:
        return None
    return value if at == len(text) else None


# Labels and streams.


@EVERY
def test_every_label_is_right_and_fits(task):
    for seed in (0, 1):
        for prompt, answer in first(task, 400, seed):
            assert task.verify(prompt, answer) == Verdict(True, "right") == judge(task, prompt, answer)
            assert is_right(task, prompt, answer)
            assert len(prompt) <= task.longest_prompt and len(answer) <= task.longest_answer
            assert 1 <= task.level(prompt) <= task.levels


@EVERY
def test_streams_are_a_function_of_the_seed_and_never_repeat_a_prompt(task):
    problems = first(task, 2000)
    assert first(task, 2000) == problems != first(task, 2000, seed=1)
    assert len({p.prompt for p in problems}) == len(problems)


def test_streams_and_fingerprints_are_the_same_in_every_process():
    made = "[(next(t.problems(5)), fingerprint(t)) for t in (make_task('add', 2), make_task('dyck', 16))]"
    code = f"from fftlm_jax.raft.tasks import *; print({made})"
    said = [
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        for seed in ("1", "2")
    ]
    here = [(next(t.problems(5)), fingerprint(t)) for t in (make_task("add", 2), make_task("dyck", 16))]
    assert said == [f"{here}\n"] * 2


@pytest.mark.parametrize(
    "task,prompts,keys",
    (
        (make_task("add", 1), 100, 55),
        (make_task("add", 2), 10_000, 5050),
        (make_task("add_long", 1), 100, 55),
        (make_task("add_long", 2), 100 + 90 * 90, 55 + 90 * 91 // 2),
        (make_task("sort", 3), 1000 - 220, 220 - 10),
        (make_task("dyck", 16), 408, 408),
    ),
    ids=str,
)
def test_finite_streams_hold_the_whole_space_and_end(task, prompts, keys):
    problems = list(task.problems(3))
    assert len({p.prompt for p in problems}) == len(problems) == prompts
    assert len({task.key(p.prompt) for p in problems}) == keys


def test_the_shuffle_is_a_permutation_of_any_number():
    orders = {tuple(shuffled(4, str(seed))) for seed in range(2000)}
    assert orders == set(itertools.permutations(range(4)))
    assert list(shuffled(0, "x")) == []
    huge = list(itertools.islice(shuffled(10**40, "x"), 1000))
    assert len(set(huge)) == 1000 and max(huge) > 10**38


def test_lengths_of_add_long_take_turns_until_they_run_out():
    task = make_task("add_long", 4)
    levels = [task.level(p.prompt) for p in first(task, 700)]
    assert levels[:400] == [1, 2, 3, 4] * 100 and levels[400:] == [2, 3, 4] * 100


@pytest.mark.parametrize(
    "task,same,other",
    (
        (make_task("add", 2), (b"12+07=", b"07+12="), b"11+08="),
        (make_task("add_long", 3), (b"12+70=", b"70+12="), b"7+2="),
        (make_task("sort", 3), (b"121>", b"211>"), b"122>"),
        (make_task("dyck", 10), (b"([(",), b"[(["),
        (make_task("countdown", 3), (b"3 5 8>24=", b"8 3 5>24="), b"3 5 8>23="),
    ),
    ids=str,
)
def test_keys_are_equal_for_the_same_question_only(task, same, other):
    assert len({task.key(prompt) for prompt in same}) == 1
    assert task.key(other) != task.key(same[0])


def test_every_right_end_of_dyck_is_drawn_for_some_seed():
    task = make_task("dyck", 8)
    ends = {p.answer for seed in range(200) for p in task.problems(seed) if p.prompt == b"([("}
    right = {bytes(c) + END for c in itertools.product(b"()[]", repeat=5) if is_balanced(b"([(" + bytes(c))}
    assert ends == right and len(right) > 4


def test_countdown_asks_for_whatever_can_be_reached_and_nothing_else():
    task = make_task("countdown", 3)
    asked = {}
    for prompt, _ in task.problems(0):
        numbers, target = prompt[:-1].decode().split(">")
        asked.setdefault(tuple(map(int, numbers.split())), set()).add(int(target))
    for numbers in ((3, 5, 8), (8, 5, 3), (1, 1, 1), (9, 9, 9), (2, 2, 7)):
        values = set(countdown_answers(numbers, longest=99).values())
        expected = {int(v) for v in values if 1 <= v <= 99} - set(numbers)
        assert asked.get(numbers, set()) == expected
        texts = reachable(tuple(sorted(numbers)), 99)
        assert all(value_of(text.decode()) == value for value, text in texts.items())


# What is not right.

TAILS = {  # Name -> (what becomes of an answer, reasons it may be given).
    "empty": (lambda answer: b"", {"truncated"}),
    "only the end": (lambda answer: END, {"malformed"}),
    "no end": (lambda answer: answer[:-1], {"truncated"}),
    "bytes after the end": (lambda answer: answer + b"0", {"malformed"}),
    "two ends": (lambda answer: answer + END, {"malformed"}),
    "two answers": (lambda answer: answer + answer, {"malformed"}),
    "an end before it": (lambda answer: END + answer, {"malformed"}),
    "another line end": (lambda answer: answer[:-1] + b"\r\n", {"malformed"}),
    "leading zero": (lambda answer: b"0" + answer, {"malformed"}),
    "plus sign": (lambda answer: b"+" + answer, {"malformed"}),
    "minus sign": (lambda answer: b"-" + answer, {"malformed"}),
    "leading space": (lambda answer: b" " + answer, {"malformed"}),
    "trailing space": (lambda answer: answer[:-1] + b" \n", {"malformed"}),
    "underscore": (lambda answer: answer[:1] + b"_" + answer[1:], {"malformed"}),
    "NUL": (lambda answer: b"\0" + answer, {"malformed"}),
    "NUL at the end": (lambda answer: answer[:-1] + b"\0\n", {"malformed"}),
    "NUL for the first byte": (lambda answer: b"\0" + answer[1:], {"malformed"}),
    "0xFF": (lambda answer: b"\xff" + answer[1:], {"malformed"}),
    "Arabic-Indic": (lambda answer: in_script(answer, 0x0660), {"malformed"}),
    "full-width": (lambda answer: in_script(answer, 0xFF10), {"malformed"}),
    "overlong": (lambda answer: answer[:-1] * 1000 + END, {"malformed"}),
    "overlong without end": (lambda answer: answer[:-1] * 1000, {"truncated"}),
}


def in_script(answer: bytes, zero: int) -> bytes:
    """The digits of another script; brackets become their full-width forms."""
    wide = {"(": "\uff08", ")": "\uff09", "[": "\uff3b", "]": "\uff3d"}
    return "".join(chr(zero + int(c)) if c.isdigit() else wide.get(c, c) for c in answer.decode()).encode()


@pytest.mark.parametrize("case", TAILS)
@EVERY
def test_the_negative_corpus_scores_nothing(task, case):
    change, reasons = TAILS[case]
    for prompt, answer in first(task, 50):
        verdict = task.verify(prompt, change(answer))
        assert not verdict.ok and verdict.reason in reasons, change(answer)


@EVERY
def test_echoes_of_the_prompt_score_nothing(task):
    for prompt, answer in first(task, 50):
        for completion in (prompt, prompt + END, prompt + answer, prompt[:-1] + END):
            assert not task.verify(prompt, completion).ok


@pytest.mark.parametrize("task", SINGLE, ids=repr)
def test_one_changed_byte_makes_a_single_answer_not_right(task):
    for prompt, answer in first(task, 10):
        for place, byte in itertools.product(range(len(answer)), range(256)):
            changed = answer[:place] + bytes([byte]) + answer[place + 1 :]
            assert task.verify(prompt, changed).ok == (changed == answer)


@pytest.mark.parametrize("task", [task for task in ALL if task.multi_answer], ids=repr)
def test_one_changed_byte_is_judged_as_an_independent_checker_judges_it(task):
    right = 0
    for prompt, answer in first(task, 12):
        for place, byte in itertools.product(range(len(answer)), range(256)):
            changed = answer[:place] + bytes([byte]) + answer[place + 1 :]
            assert task.verify(prompt, changed).ok == is_right(task, prompt, changed), (prompt, changed)
            right += changed == answer
    assert right == sum(len(p.answer) for p in first(task, 12))


@pytest.mark.parametrize(
    "task,prompt,completion,reason",
    (
        (make_task("add", 2), b"12+07=", b"020\n", "wrong"),
        (make_task("add", 2), b"12+07=", b"910\n", "wrong"),
        (make_task("add", 2, reversed_answer=True), b"12+07=", b"910\n", "right"),
        (make_task("add", 2, reversed_answer=True), b"12+07=", b"019\n", "wrong"),
        (make_task("add", 2), b"12+07=", b"19\n", "malformed"),
        (make_task("add_long", 10), b"123+456=", b"9750\n", "right"),
        (make_task("add_long", 10), b"123+456=", b"975\n", "malformed"),
        (make_task("add_long", 10), b"7+5=", b"21\n", "right"),
        (make_task("sort", 5), b"31524>", b"12345\n", "right"),
        (make_task("sort", 5), b"31524>", b"11111\n", "wrong"),
        (make_task("sort", 5), b"31524>", b"54321\n", "wrong"),
        (make_task("dyck", 16), b"([](((", b")))[][]())\n", "right"),
        (make_task("dyck", 16), b"([](((", b")))[][]()]\n", "wrong"),
        (make_task("dyck", 16), b"([]((]", b"))()[][]()\n", "error"),
        (make_task("dyck", 16), b"([](()", b"))()[][]()\n", "right"),
        (make_task("dyck", 16), b"([](()", b"))()[][](]\n", "wrong"),
        (make_task("dyck", 16), b"([](()", b"))\n", "malformed"),
        (make_task("countdown", 3), b"3 5 8>24=", b"3*8\n", "right"),
        (make_task("countdown", 3), b"3 5 8>24=", b"(8)*3\n", "right"),
        (make_task("countdown", 3), b"3 5 8>16=", b"3+5+8\n", "right"),
        (make_task("countdown", 3), b"3 5 8>16=", b"8+8\n", "wrong"),
        (make_task("countdown", 3), b"8 5 8>16=", b"8+8\n", "right"),
        (make_task("countdown", 3), b"3 5 8>24=", b"24\n", "wrong"),
        (make_task("countdown", 3), b"3 5 8>24=", b"4*6\n", "wrong"),
        (make_task("countdown", 3), b"3 5 8>24=", b"3*8+0\n", "wrong"),
        (make_task("countdown", 3), b"3 5 8>24=", b"3*08\n", "malformed"),
        (make_task("countdown", 3), b"3 5 8>24=", b"8(3)\n", "malformed"),
        (make_task("countdown", 3), b"3 5 8>24=", b"3**8\n", "malformed"),
        (make_task("countdown", 3), b"3 5 8>24=", b"3*8()\n", "malformed"),
        (make_task("countdown", 3), b"3 5 8>24=", b"3*8)\n", "malformed"),
        (make_task("countdown", 3), b"3 5 8>24=", b"(3*8\n", "malformed"),
        (make_task("countdown", 3), b"3 5 8>24=", b"3 * 8\n", "malformed"),
        (make_task("countdown", 3), b"3 5 8>24=", b"((((3*8))))\n", "malformed"),
        (make_task("countdown", 3), b"3 5 8>24=", b"(" * 10**6 + b"3*8" + b")" * 10**6 + END, "malformed"),
        (make_task("countdown", 3), b"3 5 8>24=", b"9" * 10**5 + END, "malformed"),
        (make_task("countdown", 3), b"3 5 8>24=", b"exit(3)*8\n", "malformed"),
    ),
)
def test_verdicts(task, prompt, completion, reason):
    assert task.verify(prompt, completion) == Verdict(reason == "right", reason)


@pytest.mark.parametrize("length,prompts", ((8, 14), (10, 2)))
def test_dyck_agrees_with_a_brute_force_over_all_texts(length, prompts):
    task = make_task("dyck", length)
    for prompt, _ in first(task, prompts):
        for brackets in itertools.product(b"()[]", repeat=length - len(prompt)):
            expected = is_balanced(prompt + bytes(brackets))
            verdict = Verdict(expected, "right" if expected else "wrong")
            assert task.verify(prompt, bytes(brackets) + END) == verdict


def test_countdown_agrees_with_a_brute_force_over_all_expressions():
    task = make_task("countdown", 3)
    for numbers, target in (((3, 5, 8), 24), ((2, 2, 7), 28), ((1, 4, 9), 5), ((6, 1, 1), 7)):
        prompt = b"%d %d %d>%d=" % (*numbers, target)
        verdicts = set()
        for text, value in countdown_answers(numbers, task.longest_answer).items():
            verdict = task.verify(prompt, text + END)
            assert verdict == Verdict(value == target, "right" if value == target else "wrong"), text
            verdicts.add(verdict.ok)
        assert verdicts == {True, False}


@given(st.text(alphabet="0123456789+-*()", max_size=14))
@example("1-2-3")
@example("2*(3-4)*5+6")
@example("10*0")
def test_expressions_are_worth_what_a_recursive_reader_finds(text):
    found = evaluate(text.encode())
    assert (None if found is None else found.value) == value_of(text)


def test_deep_nesting_needs_no_recursion():
    assert evaluate(b"(" * 10**5 + b"7" + b")" * 10**5) == (7, (7,))


LIKELY = st.lists(st.sampled_from([bytes([b]) for b in b"0123456789+-*()[]= >\n\0\xff"]), max_size=14).map(b"".join)


@given(st.data())
def test_any_bytes_are_judged_and_only_right_ones_pass(data):
    task = data.draw(st.sampled_from(ALL))
    prompt, _ = data.draw(st.sampled_from(PROBLEMS[task]))
    completion = data.draw(st.one_of(st.binary(max_size=40), LIKELY, LIKELY.map(lambda text: text + END)))
    verdict = task.verify(prompt, completion)
    assert verdict.ok == is_right(task, prompt, completion) == (verdict.reason == "right")
    assert verdict.reason in ("right", "wrong", "malformed", "truncated")
    assert (verdict.reason == "truncated") == (END not in completion)


PROBLEMS = {task: first(task, 30) for task in ALL}


@given(st.data())
def test_any_bytes_may_stand_where_a_prompt_should(data):
    task = data.draw(st.sampled_from(ALL))
    prompt = data.draw(st.one_of(st.binary(max_size=12), LIKELY))
    verdict = task.verify(prompt, data.draw(LIKELY))
    try:
        task.key(prompt), task.level(prompt)
    except ValueError as error:
        assert verdict == Verdict(False, "error") and str(error).endswith(f"is no prompt of {task.name}.")
    else:
        assert verdict.reason != "error"


@pytest.mark.parametrize(
    "name,size,prompt",
    (
        ("add", 2, b"12+7="), ("add", 2, b"123+123="), ("add", 2, b"12+07"), ("add", 2, b"12+07=="),
        ("add", 2, b""), ("add", 2, b"+="), ("add", 2, b"-1+01="), ("add", 1, "1+\u0661=".encode()),
        ("add_long", 3, b"01+10="), ("add_long", 3, b"1234+1234="), ("add_long", 3, b"1+12="),
        ("sort", 5, b"1234>"), ("sort", 5, b"123456>"), ("sort", 5, b"12a45>"), ("sort", 5, b"12345"),
        ("dyck", 16, b"([]("), ("dyck", 16, b"())((("), ("dyck", 16, b"([)((("), ("dyck", 16, b"(x)((("),
        ("countdown", 3, b"3 5>8="), ("countdown", 3, b"3 5 0>8="), ("countdown", 3, b"3 5 8>08="),
        ("countdown", 3, b"3 5 8>100="), ("countdown", 3, b"3 5 8>="), ("countdown", 3, b"3  5 8>24="),
        ("countdown", 3, b"3 5 8>24"), ("countdown", 3, b"3 5 8>-4="),
    ),
)  # fmt: skip
def test_prompts_of_another_task_are_an_error_and_not_a_wrong_answer(name, size, prompt):
    task = make_task(name, size)
    assert task.verify(prompt, b"0\n").reason == "error"
    for read in (task.key, task.level):
        with pytest.raises(ValueError, match="is no prompt of"):
            read(prompt)


class Broken:
    def verify(self, prompt, completion):
        raise RecursionError("too deep")


def test_a_verifier_that_raises_is_an_error():
    assert judge(Broken(), b"1+1=", b"2\n") == Verdict(False, "error")


# Making tasks.


def test_fingerprints_tell_apart_what_judges_differently():
    variants = [make_task(name, size) for name in ("add", "add_long", "sort") for size in (2, 3)]
    variants += [make_task("add", 2, reversed_answer=True), make_task("dyck", 8), make_task("countdown", 2)]
    prints = [fingerprint(task) for task in variants]
    assert len(set(prints)) == len(prints) and all(len(p) == 64 for p in prints)
    assert fingerprint(make_task("add", 2)) == prints[0]


@pytest.mark.parametrize("name", TASKS)
def test_tasks_bear_the_name_they_are_made_by(name):
    assert make_task(name, 8 if name == "dyck" else 3).name == name


@pytest.mark.parametrize(
    "arguments,message",
    (
        (("add", 0), "add takes digits from 1 to 16, not 0."),
        (("add", True), "add takes digits from 1 to 16, not True."),
        (("add", 2.0), "add takes digits from 1 to 16, not 2.0."),
        (("add_long", 101), "add_long takes digits of its longest numbers from 1 to 100, not 101."),
        (("sort", 1), "sort takes digits from 2 to 64, not 1."),
        (("dyck", 9), "dyck takes an even length from 8 to 256, not 9."),
        (("dyck", 6), "dyck takes an even length from 8 to 256, not 6."),
        (("countdown", 5), "countdown takes numbers from 2 to 4, not 5."),
        (("sort", 5, True), "reversed_answer is for add, not for sort; leave it out."),
        (("add_lon", 5), "There is no task 'add_lon'; did you mean 'add_long'?"),
        (("chess", 5), "There is no task 'chess'; there are add, add_long, countdown, dyck, sort."),
    ),
)
def test_tasks_and_sizes_that_there_are_not_get_one_sentence(arguments, message):
    with pytest.raises(ValueError) as error:
        make_task(*arguments)
    assert str(error.value) == message


@pytest.mark.parametrize("name,size", (("add", 16), ("add_long", 100), ("sort", 64), ("dyck", 256), ("countdown", 4)))
def test_the_largest_sizes_work(name, size):
    task = make_task(name, size)
    for prompt, answer in first(task, 20):
        assert task.verify(prompt, answer).ok and is_right(task, prompt, answer)


# Nothing generated is ever executed.

FOLDER = pathlib.Path(tasks.__file__).parent
RUNNERS = {"eval", "exec", "compile", "__import__", "getattr", "globals", "open", "input", "breakpoint"}
HARMLESS = {"collections", "dataclasses", "difflib", "fftlm_jax", "functools", "hashlib", "itertools", "json", "random"}


def suspects(source: str) -> set[str]:
    """Names that could run or reach something, and modules that are not on the list."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name):
            found |= {node.id} & RUNNERS
        elif isinstance(node, ast.Attribute):
            found |= {node.attr} & (RUNNERS | {"system", "run", "Popen", "loads"})
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names} - HARMLESS
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module.split(".")[0]} - HARMLESS - {"typing"}
    return found


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.py")), ids=lambda file: file.name)
def test_nothing_in_the_package_can_run_bytes(file):
    own_modules = {"importlib", "pkgutil", "getattr"}  # By which the folder finds its modules and their tables.
    assert suspects(file.read_text()) == (own_modules if file.name == "__init__.py" else set())
    assert not {m for m in imported(file) if m.startswith("fftlm_jax") and not m.startswith("fftlm_jax.raft.tasks")}


def imported(file: pathlib.Path) -> set[str]:
    return {node.module for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)}


@pytest.mark.parametrize(
    "source",
    ("eval(x)", "f = exec", "compile(x, '', 'eval')", "__import__(x)", "import subprocess", "import os"),
)
def test_the_search_for_runners_finds_them(source):
    assert suspects(source)


def test_bytes_that_would_do_harm_if_run_do_none(tmp_path):
    mark = tmp_path / "mark"
    texts = [f"open({str(mark)!r},'w')", f"__import__('os').system('touch {mark}')", "(lambda:1)()", "[x for x in ()]"]
    for task, text in itertools.product(ALL, texts):
        assert task.verify(first(task, 1)[0].prompt, text.encode() + END).reason == "malformed"
    assert not mark.exists()
