"""For how long an agent is silent: of its own time, not of the orchestrator's."""

from __future__ import annotations

from distsec.core.node_silence import Silence


def ticked(silence: Silence, *moments: float) -> Silence:
    for moment in moments:
        silence = silence.tick(moment, connected=True)
    return silence


def test_is_lost_after_five_seconds_and_not_before() -> None:
    heard = Silence().heard(100.5)
    assert not ticked(heard, 101, 102, 103, 104, 105).lost
    assert ticked(heard, 101, 102, 103, 104, 105, 106).lost


def test_a_word_begins_it_anew() -> None:
    silence = ticked(Silence().heard(100), 101, 102, 103, 104).heard(104.9)
    assert not ticked(silence, 105, 106, 107, 108, 109).lost


def test_the_time_in_which_the_orchestrator_was_away_is_nobodys_silence() -> None:
    silence = ticked(Silence().heard(100), 100.5, 101.5)
    assert not ticked(silence, 5000, 5001).lost


def test_an_agent_that_is_not_connected_is_not_silent() -> None:
    silence = Silence().heard(100)
    for moment in range(101, 120):
        silence = silence.tick(moment, connected=False)
    assert not silence.lost
    assert not silence.tick(120, connected=True).lost
