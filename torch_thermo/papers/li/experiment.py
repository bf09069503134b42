"""The paper's figures and its table, each made from the stored runs of one budget.

S. W. M. Li, *Complexity from Adaptive-Symmetries Breaking* (arXiv:2201.07934). All of a budget
share their runs: ``<out>/li/<budget>/<net>/seed<k>/``; figures, their data and tables go to
``<out>/li/<budget>/``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from torch_thermo.figures.paper import Drawable
from torch_thermo.papers.courses import course
from torch_thermo.papers.drawing import write_figure
from torch_thermo.papers.li import claims, curvature, curvature_panels, entries, panels
from torch_thermo.papers.li.measuring import PROBE, SAMPLED
from torch_thermo.papers.li.preparing import prepare
from torch_thermo.papers.li.recipe import BUDGETS, NETS
from torch_thermo.papers.reproduction import Outcome, Session, write_csv, write_markdown
from torch_thermo.papers.verdicts import Row
from torch_thermo.store import Run

__all__ = [
    "fig3a",
    "fig3b",
    "fig4a",
    "fig4b",
    "fig6a",
    "fig6b",
    "fig6c",
    "fig7a",
    "fig7b",
    "fig7c",
    "fig8a",
    "fig8b",
    "functional",
    "table",
]

PAPER = "li"
OTHERS = ("vgg-ce", "resnet")
OURS = "The panels are our choice."


def fig3a(session: Session) -> Outcome:
    """Distribution of the weights over training."""
    runs = _runs(session)
    text = (
        "W_sym: mean distance of the weights to their own mirror image over twice their mean size, "
        "0 symmetric, 1 of one sign; floor: the same weights with random signs."
    )
    return _made(session, "fig3a", panels.weight_panels(runs), runs, text, claims.weight_rows(runs))


def fig3b(session: Session) -> Outcome:
    """Sampled circuits, and the exact sums over all of them."""
    runs = _runs(session)
    text = (
        f"{course(runs, 'circuit_sample/n').mean[-1]:,.0f} circuits are drawn uniformly from those "
        f"that are alive, of {min(SAMPLED, _probe(runs[0]))} examples; order: how many weights "
        f"are divided out. Exact sums over all circuits of each of {_summed(runs[0])} examples: "
        "T = sum of x psi, A = sum of |x psi|, S = (N+ - N-) / N; y = ±1."
    )
    return _made(
        session, "fig3b", panels.circuit_panels(runs), runs, text, claims.circuit_rows(runs)
    )


def fig4a(session: Session) -> Outcome:
    """Distribution of the gradient's entries over training."""
    runs = _runs(session)
    text = (
        f"Gradient of the risk of {_probe(runs[0]):,} training images. "
        "W_sym: mean distance of the entries to their own mirror image over twice their mean size; "
        "floor: the same entries with random signs. The last layer is one-sided by construction: "
        "its inputs are not negative."
    )
    return _made(
        session, "fig4a", panels.gradient_panels(runs), runs, text, claims.gradient_rows(runs)
    )


def fig4b(session: Session) -> Outcome:
    """The plasticity order parameter beside the risk."""
    runs = _runs(session)
    text = (
        f"R and OP = |grad R|^2 of {_probe(runs[0]):,} training images; the control, with the "
        f"share p that has a loss, of the first {_curved(runs[0]):,} of them. Where R = 0 there is "
        "no ratio."
    )
    return _made(session, "fig4b", panels.order_panels(runs), runs, text, claims.order_rows(runs))


def fig6a(session: Session) -> Outcome:
    """Distribution of the normalised means of Hessian entries."""
    runs = _runs(session)
    drawn = curvature_panels.mean_panels(runs)
    return _made(session, "fig6a", drawn, runs, _entries(runs), entries.share_rows(runs))


def fig6b(session: Session) -> Outcome:
    """The share of normalised means below .15 over training."""
    runs = _runs(session)
    drawn = curvature_panels.share_panels(runs)
    text = f"{_entries(runs)} z of a minibatch of B is sqrt(B) z_1; the paper does not state B."
    return _made(session, "fig6b", drawn, runs, text, entries.share_rows(runs))


def fig6c(session: Session) -> Outcome:
    """The control of Fig. 6: the same of the active examples alone."""
    runs = _runs(session)
    drawn = curvature_panels.given_active_panels(runs)
    text = (
        f"{_entries(runs)} If all means were 0, chance would put 2 Φ(.15 √n) - 1 of those of n "
        "active examples below .15."
    )
    return _made(session, "fig6c", drawn, runs, text, entries.mean_rows(runs))


def fig7a(session: Session) -> Outcome:
    """Correlations of Hessian entries, at the start."""
    return _correlations(session, "fig7a", 0)


def fig7b(session: Session) -> Outcome:
    """The same in the middle."""
    return _correlations(session, "fig7b", 1)


def fig7c(session: Session) -> Outcome:
    """The same at the end."""
    return _correlations(session, "fig7c", 2)


def fig8a(session: Session) -> Outcome:
    """The spectrum of the Hessian over training."""
    runs = _runs(session)
    text = (
        f"The Hessian H of the risk of {_curved(runs[0]):,} training images; with a hinge loss it "
        "is its functional part F. Lanczos quadrature, heights of the densities logarithmic; in "
        "odd_3 eigenvalues that Lanczos found count once, the rest by the quadrature; residual "
        f"bounds of the ends at most {curvature.loosest_end(runs):.1g} of the largest |lambda|."
    )
    drawn = curvature_panels.spectrum_panels(runs)
    return _made(session, "fig8a", drawn, runs, text, curvature.spectrum_rows(runs))


def fig8b(session: Session) -> Outcome:
    """Risk and accuracy over training."""
    runs = _runs(session)
    held = runs[0].meta.get("held_out")  # runs before it was stored lack it
    text = f"All training images and all {f'{held:,} ' if held else ''}held-out ones."
    return _made(session, "fig8b", panels.risk_panels(runs), runs, text, claims.risk_rows(runs))


def functional(session: Session) -> Outcome:
    """Cross entropy and a ResNet: the functional part of the Hessian stays symmetric."""
    runs = {"vgg": _runs(session), **{net: _runs(session, net) for net in OTHERS}}
    others = {net: runs[net] for net in OTHERS}
    named = "; ".join(
        f"{net}: {_net(found[0])}, {_seeds(found)}, spectra of {_curved(found[0]):,} images"
        for net, found in runs.items()
    )
    text = (
        f"{_data(runs['vgg'][0])} {named}. H = GGN + F, F the Hessian of the output with the "
        f"loss's slope held fixed; Lanczos quadrature. {OURS}"
    )
    drawn = curvature_panels.functional_panels(runs)
    rows = curvature.functional_rows(others)
    return write_figure(_folder(session), "functional", drawn, text, rows)


def table(session: Session) -> Outcome:
    """All statements of the paper beside ours."""
    runs = _runs(session)
    rows = [
        *claims.order_rows(runs),
        *claims.weight_rows(runs),
        *claims.gradient_rows(runs),
        *claims.circuit_rows(runs),
        *entries.share_rows(runs),
        *entries.mean_rows(runs),
        *entries.correlation_rows(runs),
        *curvature.spectrum_rows(runs),
        *claims.risk_rows(runs),
        *curvature.functional_rows({net: _runs(session, net) for net in OTHERS}),
    ]
    folder = _folder(session)
    command = f"torch-thermo reproduce li/table --budget {session.budget}"
    files = (
        write_csv(rows, folder / "table.csv"),
        write_markdown(
            rows,
            folder / "table.md",
            "Statements of S. W. M. Li, Complexity from Adaptive-Symmetries Breaking "
            "(arXiv:2201.07934)",
            f"{_setting(runs)} Made by `{command} --data {Path(session.images(PAPER)).name}`. "
            "Spread: standard deviation over seeds.",
        ),
    )
    return Outcome(files, tuple(rows))


def _correlations(session: Session, name: str, place: int) -> Outcome:
    runs = _runs(session)
    drawn = curvature_panels.correlation_panels(runs, place)
    text = (
        f"{_entries(runs)} Correlations over the active examples of entries that are not 0 in ten "
        "of them; null: random signs, which keep the magnitudes that entries share, or where those "
        "were not stored the examples permuted for each entry alone."
    )
    return _made(session, name, drawn, runs, text, entries.correlation_rows(runs))


def _entries(runs: Sequence[Run]) -> str:
    step = runs[0].array_steps("hessian_entries")[0]
    arrays = runs[0].arrays("hessian_entries", step)
    columns, rows = (len(arrays[name]) for name in ("columns", "rows"))
    samples = runs[0].series("hessian_entries/samples").values[0]
    return (
        f"Entries of the Hessian of each of {samples:g} examples, {columns} columns by {rows} rows "
        "drawn at random; z_1: mean over standard deviation over the examples."
    )


def _runs(session: Session, net: str = "vgg") -> list[Run]:
    return session.once(f"{PAPER}/{net}", partial(_prepared, session, net))


def _prepared(session: Session, net: str) -> list[Run]:
    """The runs of a net: of the paper's own those of all seeds, of the others one."""
    seeds = BUDGETS[session.budget].seeds[:1] if net in OTHERS else None
    found = prepare(
        session.out,
        session.budget,
        session.images(PAPER),
        (net,),
        seeds=seeds,
        epochs=session.epochs,
        progress=session.progress,
    )
    return found[net]


def _setting(runs: Sequence[Run]) -> str:
    """Data, net and training, in a few lines for captions."""
    return f"{_data(runs[0])} Net: {_net(runs[0])}, {_seeds(runs)}."


def _seeds(runs: Sequence[Run]) -> str:
    return f"{len(runs)} seeds" if len(runs) > 1 else "one seed"


def _probe(run: Run) -> int:
    """Images that order parameter and gradient are measured on."""
    return min(PROBE, int(run.meta["samples"]))


def _curved(run: Run) -> int:
    """Images that the Hessian is measured on."""
    return int(run.series("hessian_entries/samples").values[0])


def _summed(run: Run) -> int:
    """Images that circuits are summed over and drawn from."""
    return len(run.arrays("circuit_symmetry", run.array_steps("circuit_symmetry")[0])["alive"])


def _data(run: Run) -> str:
    meta = run.meta
    minus, plus = meta["classes"]
    note = f", {meta['note']}" if meta["note"] else ""
    return f"{meta['data']}{note}: {minus} against {plus}, {meta['samples']:,} training images."


def _net(run: Run) -> str:
    meta, kind = run.meta, NETS[run.meta["net"]]
    return (
        f"{meta['title']}, {meta['depth']} weight layers, {meta['parameters']:,} parameters, "
        f"{kind.loss}, SGD, batch {meta['batch']}, rate {meta['lr']:g}, {meta['epochs']} epochs"
    )


def _folder(session: Session) -> Path:
    return session.out / PAPER / session.budget


def _made(
    session: Session,
    name: str,
    drawn: Sequence[Drawable],
    runs: Sequence[Run],
    text: str,
    rows: Sequence[Row],
) -> Outcome:
    caption = f"{_setting(runs)} {text} {OURS}"
    return write_figure(_folder(session), name, drawn, caption, rows)
