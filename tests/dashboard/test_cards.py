from __future__ import annotations

import re

import pytest
from torch.utils.tensorboard import SummaryWriter

from tests.dashboard.support import OBSERVABLES, events
from torch_thermo import dashboard


def text(folder, tag: str) -> list[str]:
    read = events(folder).Tensors(f"{tag}/text_summary")
    return [event.tensor_proto.string_val[0].decode() for event in read]


@pytest.mark.parametrize("observable", OBSERVABLES)
def test_a_card_answers_what_a_newcomer_asks(observable):
    card = dashboard.CARDS[observable]
    text = card.markdown()
    for question in ("What am I looking at?", "What is healthy?", "Read it beside:", "From:"):
        assert text.count(f"**{question}**") == 1
    assert re.search(r"(eq|Fig)s?\. \d", card.source), "paper and equation or figure"
    assert min(len(part) for part in (card.shows, card.healthy, card.floor)) > 30
    # markdown would read them as emphasis
    assert not re.search(r"(?<!\*)\*(?!\*)", text.replace("**", ""))
    assert text.count("`") % 2 == 0


def test_cards_come_back_from_the_text_tab(tmp_path):
    with SummaryWriter(tmp_path) as writer:
        dashboard.write_cards(writer, ["bulk_boundary", "circuit_sample", "of somebody else"])
    for observable in ("bulk_boundary", "circuit_sample"):
        (card,) = text(tmp_path, f"thermo/{observable}/about")
        assert card == dashboard.CARDS[observable].markdown()
    (start,) = text(tmp_path, "thermo/about")
    assert "Smoothing" in start
    assert len(events(tmp_path).Tags()["tensors"]) == 3


def test_nothing_measured_has_no_cards(tmp_path):
    with SummaryWriter(tmp_path) as writer:
        dashboard.write_cards(writer, [])
    assert events(tmp_path).Tags()["tensors"] == []


def test_what_is_not_shown_is_said(tmp_path):
    with SummaryWriter(tmp_path) as writer:
        dashboard.write_layer_note(writer, "weight_symmetry", 64, 161)
    (note,) = text(tmp_path, "thermo/weight_symmetry/layers")
    assert "64 of 161 layers" in note
