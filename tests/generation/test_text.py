"""Text as it is shown: the same however it arrives, ended at stop strings, and harmless to a terminal."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fftlm_jax.generation import StopStrings, TerminalText, terminal_text, until_stopped
from fftlm_jax.generation.sampling import DecodedBytes

AB = st.text(alphabet="ab", max_size=12).map(str.encode)


def pieces_of(text: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[a:b] for a, b in zip(edges, edges[1:])]


def cut_at_stop(text: bytes, stops: list[bytes]) -> bytes:
    """By the definition: byte by byte, until the text ends with a stop string; the longest then counts."""
    for end in range(len(text) + 1):
        met = [stop for stop in stops if text[:end].endswith(stop)]
        if met:
            return text[: end - max(map(len, met))]
    return text


@settings(deadline=None)
@given(AB, st.lists(AB.filter(bool), max_size=3), st.lists(st.integers(0, 99), max_size=5))
def test_stop_strings_end_a_text_wherever_it_is_cut_into_pieces(text, stops, cuts):
    stop = StopStrings(stops)
    shown = b"".join(stop.feed(piece) for piece in pieces_of(text, cuts)) + stop.finish()
    assert shown == cut_at_stop(text, stops)
    assert stop.stopped == any(s in text for s in stops)


def test_nothing_is_held_back_that_cannot_begin_a_stop_string():
    stop = StopStrings([b"\n\n", b"END"])
    assert [stop.feed(piece) for piece in (b"one", b" E", b"N", b"d\n", b"x\n", b"\nrest", b"more")] == [
        b"one", b" ", b"", b"ENd", b"\nx", b"", b"",
    ]  # fmt: skip


def test_rows_stop_by_themselves_and_the_last_one_ends_it():
    def blocks():
        yield DecodedBytes([b"ab", b"x."], 0, 0)
        yield DecodedBytes([b"cd.", b"lost"], 0, 0)
        raise AssertionError("every row had stopped")

    assert list(until_stopped(blocks(), 2, [b"."])) == [[b"ab", b"x"], [b"cd", b""]]
    assert list(until_stopped([DecodedBytes([b"a<"], 0, 0)], 1, [b"<e>"])) == [[b"a"], [b"<"]], (
        "no stop: what was held comes"
    )


@pytest.mark.parametrize(
    "data,text",
    (
        (b"plain\ntext", "plain\ntext"),
        ("é 漢".encode(), "é 漢"),
        (b"\x1b[2J", "\\x1b[2J"),
        (b"\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        (b"\x07\r\x00\x08\x7f", "\\x07\\r\\x00\\x08\\x7f"),
        (b"\xff\x80", "\\xff\\x80"),
        ("\u009b31m\u202e".encode(), "\\x9b31m\\u202e"),
        (b"cut \xe6\xbc", "cut \\xe6\\xbc"),
    ),
)
def test_generated_bytes_cannot_drive_a_terminal(data, text):
    assert terminal_text(data) == text


@settings(deadline=None)
@given(st.one_of(st.binary(max_size=20), st.text(max_size=8).map(str.encode)), st.lists(st.integers(0, 99), max_size=4))
def test_characters_cut_in_two_are_shown_whole(data, cuts):
    terminal = TerminalText()
    shown = "".join(terminal.feed(piece) for piece in pieces_of(data, cuts)) + terminal.feed(b"", final=True)
    assert shown == terminal_text(data)
    assert all(c.isprintable() or c == "\n" for c in shown)
