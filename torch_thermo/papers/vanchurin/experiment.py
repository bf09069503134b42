"""The paper's figures and its table, each made from the stored runs of one budget.

All of a budget share their runs: ``<out>/vanchurin/<budget>/<net>/seed<k>/``; figures, their data
and tables go to ``<out>/vanchurin/<budget>/``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from torch_thermo.figures.paper import Panel
from torch_thermo.papers.drawing import write_figure
from torch_thermo.papers.reproduction import Outcome, Session, write_csv, write_markdown
from torch_thermo.papers.vanchurin import bulk_course, claims, laws, panels
from torch_thermo.papers.vanchurin.bulk_training import bulk_training
from torch_thermo.papers.vanchurin.measuring import EXACT_SAMPLES
from torch_thermo.papers.vanchurin.preparing import prepare
from torch_thermo.papers.verdicts import Row
from torch_thermo.store import Run, load_run

__all__ = ["fig1", "fig2", "fig3", "fig4", "fig5", "fig6", "fig7", "table", "training_on_bulk"]

PAPER = "vanchurin"
NETS = ("deep", "shallow")
OURS = "The panels are our choice; the paper's numbers are marked as its own."


def fig1(session: Session) -> Outcome:
    """Minus the free energy's Laplacian of a two-level spectrum (eqs. 9.3, 9.4)."""
    caption = (
        "Two levels with det G = 1: a share γ of the eigenvalues at λ, the rest at "
        f"λ^(γ/(γ-1)). Formulas alone, no training. {OURS}"
    )
    return _made(session, "fig1", panels.free_energy_panels(), caption, claims.free_energy_rows())


def fig2(session: Session) -> Outcome:
    """Bulk and boundary loss of the deep net."""
    return _losses(session, "fig2", "deep")


def fig3(session: Session) -> Outcome:
    """Bulk and boundary loss of the shallow net."""
    return _losses(session, "fig3", "shallow")


def fig4(session: Session) -> Outcome:
    """The distribution of the eigenvalues of log G and its moments."""
    nets = _runs(session, *NETS)
    text = (
        f"{_setting(nets)} Eigenvalues of log G, G = (1 - f'w)^T (1 - f'w) at the mean state, with "
        f"|log λ| > {claims.THRESHOLD}. {OURS}"
    )
    return _made(session, "fig4", panels.spectrum_panels(nets), text, claims.moment_rows(nets))


def fig5(session: Session) -> Outcome:
    """The sorted eigenvalues of log G and the gaps between them."""
    nets = _runs(session, *NETS)
    text = (
        f"{_setting(nets)} The lowest {panels.LOWEST} eigenvalues of log G of seed 0. Brackets: "
        "all gaps of at least half the widest's size, with the number of eigenvalues below. "
        f"{OURS}"
    )
    return _made(session, "fig5", panels.gap_panels(nets), text, claims.gap_rows(nets["deep"]))


def fig6(session: Session) -> Outcome:
    """The complexities C_20 and C_834 against the logarithm of the bulk loss."""
    runs = _runs(session, "deep")
    text = (
        f"{_setting(runs)} C_n = -1/2 sum over the n largest log λ + N/2 log 2π, from epoch "
        f"{claims.FIT_EPOCHS[0]:g} to at most {claims.FIT_EPOCHS[1]:g}. {OURS}"
    )
    found = panels.complexity_panels(runs["deep"])
    return _made(session, "fig6", found, text, claims.complexity_rows(runs["deep"]))


def fig7(session: Session) -> Outcome:
    """Temperatures and the laws of learning."""
    runs = _runs(session, "deep")
    text = (
        f"{_setting(runs)} Canonical ensemble of the propagator's exact spectrum; U: mean bulk "
        f"loss, logit; terms of the first law from one measurement to the next. {OURS}"
    )
    found = panels.thermodynamic_panels(runs["deep"])
    return _made(session, "fig7", found, text, laws.thermodynamic_rows(runs["deep"]))


def training_on_bulk(session: Session) -> Outcome:
    """Training on the bulk loss beside training on the boundary loss: not a figure of the paper."""
    runs = bulk_training(
        session.out / "vanchurin",
        session.budget,
        session.images(PAPER),
        session.epochs,
        session.progress,
    )
    drawn, rows = bulk_course.bulk_training_panels(runs), bulk_course.bulk_training_rows(runs)
    caption = bulk_course.bulk_training_caption(runs)
    return _made(session, "bulk-training", drawn, caption, rows)


def table(session: Session) -> Outcome:
    """All numbers of the paper beside ours."""
    nets = _runs(session, *NETS)
    rows = _all_rows(nets)
    several = ""
    quick = _stored(session, "quick", nets) if len(nets["deep"]) == 1 else {}
    if quick:
        rows = _with_spread(rows, _all_rows(quick), quick["deep"][0])
        several = f" over the {len(quick['deep'])} seeds of the quick budget"
    folder = _folder(session)
    files = (
        write_csv(rows, folder / "table.csv"),
        write_markdown(
            rows,
            folder / "table.md",
            "Numbers of V. Vanchurin, Towards a theory of machine learning (arXiv:2004.09280)",
            f"{_setting(nets)} Made by `torch-thermo reproduce vanchurin/table --budget "
            f"{session.budget} --data {session.images(PAPER)}`. Spread: standard deviation"
            f"{several or ' over seeds'}; of orders of magnitude in decades, as is their "
            "tolerance.",
        ),
    )
    return Outcome(files, tuple(rows))


def _all_rows(nets: Mapping[str, Sequence[Run]]) -> list[Row]:
    return [
        *(row for net in NETS for row in claims.loss_rows(net, nets[net])),
        *claims.moment_rows(nets),
        *claims.free_energy_rows(),
        *claims.gap_rows(nets["deep"]),
        *claims.complexity_rows(nets["deep"]),
        *laws.thermodynamic_rows(nets["deep"]),
    ]


def _with_spread(rows: Sequence[Row], others: Sequence[Row], lender: Run) -> list[Row]:
    """The rows of one seed judged with the spread that several seeds of another budget have."""
    known = {row.quantity: row.spread for row in others}
    meta = lender.meta
    said = (
        f"spread borrowed from the {meta.get('budget', 'quick')} budget (batch {meta['batch']}, "
        f"{meta['epochs']} epochs)"
    )
    judged = []
    for row in rows:
        lent = known[row.quantity]
        parts = [row.note, said] if math.isfinite(lent) else [row.note]
        judged.append(row.claim.judge(row.ours, lent, "; ".join(filter(None, parts))))
    return judged


def _stored(
    session: Session, budget: str, nets: Mapping[str, Sequence[Run]]
) -> dict[str, list[Run]]:
    """The runs of another budget on the same data, if those of both nets are there.

    Nothing is trained for them. Other data, or another number of samples, have another spread.
    """
    folder = session.out / "vanchurin" / budget
    found = {net: sorted((folder / net).glob("seed*/thermo/run.json")) for net in NETS}
    if not all(len(files) > 1 for files in found.values()):
        return {}
    stored = {net: [load_run(file.parent) for file in files] for net, files in found.items()}
    same = all(
        run.meta.get(name) == nets[net][0].meta.get(name)
        for net, runs in stored.items()
        for run in runs
        for name in ("fingerprint", "samples")
    )
    return stored if same else {}


def _losses(session: Session, name: str, net: str) -> Outcome:
    runs = _runs(session, net)
    text = (
        f"{_setting(runs)} Boundary: 1/2 |t - o|^2; bulk: minimum over the hidden states, method "
        f"logit on all samples; of seed 0 exact on the first {EXACT_SAMPLES}, with logit on the "
        f"same. {OURS}"
    )
    rows = claims.loss_rows(net, runs[net])
    return _made(session, name, panels.loss_panels(runs[net]), text, rows)


def _runs(session: Session, *nets: str) -> dict[str, list[Run]]:
    return {net: session.once(f"vanchurin/{net}", partial(_prepared, session, net)) for net in nets}


def _prepared(session: Session, net: str) -> list[Run]:
    out = session.out / "vanchurin"
    found = prepare(
        out, session.budget, session.images(PAPER), (net,), session.epochs, session.progress
    )
    return found[net]


def _setting(nets: Mapping[str, Sequence[Run]]) -> str:
    """Data, nets and training, in a line for captions."""
    runs = [run for found in nets.values() for run in found]
    meta = runs[0].meta
    shapes = {net: "-".join(map(str, found[0].meta["sizes"])) for net, found in nets.items()}
    named = " and ".join(f"{net} {shape}" for net, shape in shapes.items())
    net_s = "net" if len(nets) == 1 else "nets"
    seeds = len(next(iter(nets.values())))
    several = f"{seeds} seeds" if seeds > 1 else "one seed"
    epochs = {f"{int(found[0].meta['epochs']):,}" for found in nets.values()}
    return (
        f"{meta['data']}, {meta['samples']:,} samples; tanh {net_s}, {named}; SGD, batch "
        f"{meta['batch']}, rate {meta['lr']:g}, {' and '.join(sorted(epochs))} epochs, {several}."
    )


def _folder(session: Session) -> Path:
    return session.out / "vanchurin" / session.budget


def _made(
    session: Session, name: str, drawn: Sequence[Panel], caption: str, rows: Sequence[Row]
) -> Outcome:
    return write_figure(_folder(session), name, drawn, caption, rows)
