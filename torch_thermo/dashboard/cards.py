"""A text card for each observable: what am I looking at, what is healthy, where is it from."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch_thermo.dashboard.tags import ROOT, tag

__all__ = ["CARDS", "Card", "write_cards", "write_layer_note"]

LI = 'S. W. M. Li, "Complexity from Adaptive-Symmetries Breaking"'
VANCHURIN = 'V. Vanchurin, "Towards a theory of machine learning"'


@dataclass(frozen=True)
class Card:
    """What a newcomer has to know of an observable.

    Attributes:
        title: its name in words.
        shows: what one looks at, curve by curve.
        healthy: what a net that learns shows, what the paper expects, and what is a bad sign.
        floor: what to read it beside: its error, floor or null.
        source: paper, equation, figure.
    """

    title: str
    shows: str
    healthy: str
    floor: str
    source: str

    def markdown(self) -> str:
        """The card as TensorBoard's text tab shows it."""
        return "\n\n".join(
            (
                f"### {self.title}",
                f"**What am I looking at?** {self.shows}",
                f"**What is healthy?** {self.healthy}",
                f"**Read it beside:** {self.floor}",
                f"**From:** {self.source}",
            )
        )


_SYMMETRY_SHOWS = (
    "`sign_balance`: (n+ - n-)/(n+ + n-), with its 95 % interval `low`, `high`. `w_sym`: how far "
    "the sample is from its mirror image, W1(v, -v) / 2E|v|: 0 symmetric, 1 one-sided. "
    "`odd_moment`: sum v^3 / sum |v|^3. `butler`, `butler_p`: Butler's test of symmetry. "
)
_SYMMETRY_FLOOR = (
    "`w_sym_null`, what `w_sym` is when the same sizes get random signs: only a `w_sym` clearly "
    "above it is an asymmetry. "
)
_DEPENDENT = (
    "Entries of one net depend on each other, so intervals and p-values describe and do not test."
)

CARDS: dict[str, Card] = {
    "order_parameter": Card(
        title="Plasticity order parameter ||grad R||^2, on the probe",
        shows="`value`: the squared gradient of the risk R over the probe, how strongly the "
        "weights still respond to the examples. `risk`: R itself. `layer/...`: the share of each "
        "parameter. `scaled`: each parameter group times its learning rate, the fall of R a step.",
        healthy="It falls with the risk, both over decades: to exactly 0 with a hinge loss that "
        "every example meets. A value near 0 while R stays high means a stuck net: dead units, or "
        "too few of them. A value that grows with R means too large a learning rate.",
        floor="`stderr`. The probe is a sample: for the set it was drawn from, `value` is too "
        "large by tr(Sigma)/B. `unbiased` is not, and may be negative: within 3 `stderr` of 0 it "
        "is 0.",
        source=f"{LI}, eq. 15, Fig. 4b.",
    ),
    "order_parameter_minibatch": Card(
        title="Order parameter of each minibatch",
        shows="`value`: the squared norm of the gradient that a step of the training used, before "
        "clipping, with the weight decay that is part of the loss. `scaled`: each parameter group "
        "times its learning rate.",
        healthy="A cloud above the curve on the probe that comes down with it. Lone spikes are "
        "hard batches; a cloud that goes up while the probe's curve goes down is noise that the "
        "batch is too small for.",
        floor="the order parameter on the probe: a minibatch of B examples lies above it by "
        "tr(Sigma)/B on average, so late in training this is mostly noise.",
        source=f"{LI}, eq. 15, Fig. 4b.",
    ),
    "hessian_extremes": Card(
        title="Edges of the Hessian's spectrum",
        shows="`lambda_min` and `lambda_max`: smallest and largest eigenvalue of the Hessian of "
        "the risk on the probe. `centre`: the middle between them, 0 for a symmetric spectrum; "
        "the margin chart shows it as the line, and the spectrum's range as the band around it.",
        healthy="The paper expects a band about 0 (a symmetric spectrum, always with a way down) "
        "that narrows as the net learns. With cross entropy it leans upwards once the net is "
        "trained. `lambda_min` at 0 while R is high means that no direction leads down: a "
        "frustrated net.",
        floor="`residual_min`, `residual_max`: an eigenvalue lies within that distance of each "
        "end. A `lambda_min` within its residual of 0 has no sign.",
        source=f"{LI}, Figs. 6 and 8a.",
    ),
    "hessian_density": Card(
        title="Spectral density of the Hessian",
        shows="The picture: how the eigenvalues are distributed, on a signed logarithmic axis; in "
        "the ridgeline a row for each of some steps. `trace`: their sum. `odd3`: sum lambda^3 / "
        "sum |lambda|^3, 0 for a symmetric spectrum, 1 for one without negative eigenvalues. "
        "`negative_mass`: the share of negative eigenvalues.",
        healthy="A tall peak at 0 (most directions are flat) and a few large eigenvalues. For a "
        "bias-free ReLU net with hinge loss the paper expects symmetry: `odd3` and `trace` near 0. "
        "With cross entropy the spectrum leans to the right, `odd3` .65 and more when trained.",
        floor="the standard errors `..._stderr` over the random probe vectors (the band in the "
        "picture); below the height of one eigenvalue the picture ends.",
        source=f"{LI}, Figs. 6 and 8a.",
    ),
    "functional_density": Card(
        title="Spectral density of the Hessian's functional part",
        shows="The same for F, the part of the Hessian that comes from the net's own curvature: "
        "H = Gauss-Newton + F. It is what the paper's claim of symmetry is about; with a hinge "
        "loss it is all of H.",
        healthy="Symmetric about 0 for a ReLU net with any loss: `trace` near 0 and |`odd3`| "
        "small (deep nets keep one below .2). tanh and GELU nets need not be.",
        floor="the standard errors `..._stderr`; a spectrum counts as symmetric where |`odd3`| "
        "is below .25 by two errors.",
        source=f"{LI}, Figs. 6 and 8a.",
    ),
    "gauss_newton_density": Card(
        title="Spectral density of the Gauss-Newton matrix",
        shows="The part of the Hessian that comes from the loss' own curvature, J^T l'' J: "
        "positive semidefinite for a convex loss.",
        healthy="No eigenvalue below 0, a few large ones: about one a class. With a hinge loss it "
        "is the zero operator.",
        floor="the standard errors `..._stderr` over the random probe vectors.",
        source=f"{LI}, Fig. 6 (the other part of the Hessian).",
    ),
    "hessian_entries": Card(
        title="Entries of the Hessian, example by example",
        shows="E = l' d2T / dtheta_i dtheta_j of each example, for random pairs of weights. "
        "`share_below`: how many have a normalised mean |z_1| = |mean / sd| below .15; "
        "`share_below_moving`: of those that are not 0 in every example; `share_below_active`: of "
        "these, over the examples with a loss alone. `correlation`: mean |r| between entries, "
        "`correlated_share`: the pairs that are more than chance; `..._active`: over the examples "
        "with a loss alone.",
        healthy="The paper expects entries with mean 0 (>= 95 % below .15, 98 % late) and few of "
        "them correlated. As the share p of active examples falls, all |z_1| fall with it whatever "
        "the net has learned: believe a rise of `share_below` only if `share_below_active` rises "
        "too.",
        floor="`bound` = sqrt(p / (1 - p)), which no |z_1| exceeds; `correlation_sign_null`, the "
        "mean |r| of the same magnitudes with random signs, which grows as examples get fewer "
        "(`correlation_null`, of shuffled examples, is lower where magnitudes go together: that "
        "is no correlation). `structural_share` of the "
        "entries are 0 because no path passes both weights. With few active examples chance alone "
        "gives z of 1 / sqrt(n).",
        source=f"{LI}, Figs. 6 and 7.",
    ),
    "phase": Card(
        title="Phase: solved, plastic or frustrated",
        shows="The text beside this card names the phase and what it was decided by. `code`: 0 "
        "solved (the risk R within `tolerance` of 0), 1 plastic (R above it, the order parameter "
        "||grad R||^2 above 0, `lambda_min` of the Hessian below 0, the functional part's spectrum "
        "symmetric), 2 frustrated (R above it, the order parameter 0); no point: undecided.",
        healthy="Plastic from the start until it is solved. A `zero_output_share` or, in "
        "nets with biases, a `dead_share` near 1 means that all units of a layer are dead; "
        "frustrated with a `lambda_min` of 0 the net sits in "
        "a minimum.",
        floor="`order_parameter_stderr` and `order_parameter_incoherent`, what orthogonal "
        "gradients of the micro-batches would give: within 3 errors and below a tenth of that it "
        "is 0. `lambda_min_bound`: a `lambda_min` within it has no sign. `odd_3_stderr`: symmetric "
        "is |`odd_3`| below .25 by two errors.",
        source=f"{LI}, Figs. 4b and 8.",
    ),
    "assumptions": Card(
        title="The theory's identities and assumptions on this net",
        shows="The table beside this card: each identity of bias-free piecewise-linear nets, "
        "whether it holds here and to what error (`error_...`, `holds_...`). Of assembly symmetry: "
        "how symmetric `weights_...`, `gradient_...`, `circuits_...` and the functional part's "
        "spectrum (`spectrum_odd_3`) are. Of diversity: `entries_share_below`, the share of "
        "Hessian entries with a normalised mean below .15, and how they are correlated.",
        healthy="What the table expects of this architecture holds throughout: it is a theorem. "
        "Another row may hold by accident for a while, as homogeneity in 2 layers with biases "
        "while the loss's slopes sum to 0. Biases and BatchNorm break the homogeneity and keep the "
        "trace at 0; tanh and GELU break all. The assumptions are of degree, and the paper expects "
        "both to last.",
        floor="`..._w_sym_null` for each `..._w_sym`, `spectrum_odd_3_stderr`, `entries_bound` "
        "(which makes the share rise as examples become inactive, whatever the entries are), "
        "`entries_share_below_active` and `entries_correlation_sign_null`. " + _DEPENDENT,
        source=f"{LI}, Figs. 3, 4, 6, 7 and 8a.",
    ),
    "weight_symmetry": Card(
        title="Symmetry of the weights",
        shows=_SYMMETRY_SHOWS + "`layer/...`, `w_sym/...`: of each parameter. Histograms and the "
        "ridgeline show the weights themselves.",
        healthy="Symmetric at initialisation: `w_sym` at its floor, `sign_balance` within its "
        "interval of 0. With training the histograms skew a little: that is learned structure. "
        "One layer that jumps alone is worth a look.",
        floor=_SYMMETRY_FLOOR + _DEPENDENT,
        source=f"{LI}, Fig. 3a.",
    ),
    "gradient_symmetry": Card(
        title="Symmetry of the gradient",
        shows=_SYMMETRY_SHOWS + "`layer/...`, `w_sym/...`: of each parameter, of the risk's "
        "gradient on the probe.",
        healthy="The paper expects the entries of all layers together to be nearly symmetric; "
        "single layers are not, and the last layer of a ReLU net is one-sided by construction. "
        "Exact zeros (dead units) carry no sign.",
        floor=_SYMMETRY_FLOOR + _DEPENDENT,
        source=f"{LI}, Fig. 4a.",
    ),
    "bulk_boundary": Card(
        title="Bulk and boundary loss",
        shows="`boundary`: half the squared distance (or the training's own loss) between output "
        "and target. `bulk`: the least that the hidden neurons' own mismatch and the output's "
        "together can be when input and output are clamped to the data. Means, medians, and "
        "`ratio` = bulk / boundary of the means.",
        healthy="Both fall over decades, bulk below boundary in each example; their ratio stays "
        "between .15 and .7 on the paper's nets. Late in training a misclassified few carry the "
        "mean: the median tells of the many.",
        floor="`bulk_stderr`, `boundary_stderr` over the examples, and `converged`, the share of "
        "examples whose search ended at a stationary point: far below 1, the means are bounds from "
        "above. Behind a bent output activation a lower minimum may lie elsewhere.",
        source=f"{VANCHURIN}, eqs. 2.11, 3.1 and 3.2, Figs. 2 and 3.",
    ),
    "propagator_spectrum": Card(
        title="Spectrum of the propagator",
        shows="G = (1 - f'w)^T (1 - f'w), w the weights between all neurons and f' the slopes of "
        "their activations at the mean state over the probe: its eigenvalues lambda say how "
        "stiffly the neurons resist a change of their states. The picture: how log lambda is "
        "distributed, with a tall peak at 0 of the neurons that nothing moves. `mu2`, `mu3`: the "
        "sums of log^2 lambda and log^3 lambda. `mu2_above_t`, `mu3_above_t`: their means over the "
        "`count_above_t` eigenvalues with |log lambda| > t, which is what the paper quotes. `min`, "
        "`max`: the extremes of log lambda.",
        healthy="`mu2` says how strongly the neurons are coupled. On the paper's nets it starts at "
        "200, falls to a quarter with the first steps, which bend the units, and comes back to 150 "
        "and more. `mu3` is 0 for a net without hidden layer and below 0 for a chain of layers: "
        "near -150 with two hidden tanh layers, and less in size when trained. It goes to 0 where "
        "the outputs saturate, for these then answer to nothing.",
        floor="`log_det`, which is 0 for every feed-forward net: how far from it, says what the "
        "quadrature of a large net is worth, as do `mu2_stderr` and `mu3_stderr` over its random "
        "probe vectors (0 where all eigenvalues are known). Counts and means above a threshold are "
        "rough there.",
        source=f"{VANCHURIN}, eqs. 5.4, 5.6 and 7.7, Fig. 5.",
    ),
    "circuit_symmetry": Card(
        title="All circuits of the net, exactly",
        shows="A circuit is a path from an input to the output, one weight a layer; its product "
        "with the input, summed over all paths, is the output T; paths from biases count too, a "
        "bias has the input 1. `sign_balance`: S, positive minus "
        "negative paths as a share. `mass_asymmetry`: y T/A, the output over the sum of all sizes. "
        "`positive`: the share of examples with y T/A > 0, with its 95 % interval "
        "`positive_low`, `positive_high`. `alive_log10`: log10 of the number of alive paths.",
        healthy="At initialisation S and y T/A are near 0 and `positive` near one half: the paths "
        "cancel. With training y T/A turns positive on nearly all examples, though it stays tiny "
        "in a deep net (1e-8 of 10 layers): the symmetry breaks towards the target. `positive` at "
        "one half means that nothing is learned.",
        floor="`sign_balance_stderr`, `mass_asymmetry_stderr` over the examples; 0, the symmetric "
        "net.",
        source=f"{LI}, eqs. 10, 11, 16 and 19, Fig. 3b.",
    ),
    "circuit_sample": Card(
        title="Sampled circuits",
        shows="Alive paths drawn at random, each the product of its weights and its input. "
        + _SYMMETRY_SHOWS
        + "The histogram is of t = sign (log10|v| - floor): 0 is the floor, 3 is three decades "
        "above it, -3 the same size of the other sign.",
        healthy="Two equal humps left and right of 0, `w_sym` at its floor, before and after "
        "training: a product of many signed factors looks symmetric on its own, so this does not "
        "show what was learned. y T/A of all circuits does.",
        floor=_SYMMETRY_FLOOR + "It is high, .14 for 10,000 paths of 12 factors: a few large "
        "products carry it.",
        source=f"{LI}, eqs. 10, 11 and 16, Fig. 3b.",
    ),
    **{
        f"circuit_sample_order{order}": Card(
            title=f"Sampled circuits of order {order}",
            shows=f"The same paths with {divided} divided out: terms of the entries of "
            f"{derivative}. {_SYMMETRY_SHOWS}The histogram is read as that of `circuit_sample`.",
            healthy="What order 0 shows: two equal humps, before and after training. A product of "
            "many signed factors stays one with a factor or two less.",
            floor=_SYMMETRY_FLOOR + "It is high for products: a few large ones carry it.",
            source=f"{LI}, eqs. 16 and 19, Fig. 3b.",
        )
        for order, divided, derivative in (
            (1, "one weight", "the output's gradient"),
            (2, "two weights of different layers", "the output's Hessian"),
        )
    },
}
"""What each observable is, for the text tab and the docs."""


_START = """### How to read these pages

1. **Custom scalars** is the overview, from the loss down to the symmetry.
2. Set **Smoothing** to 0, at the left: measurements are few, and a smoothed curve lies beside them.
3. Where a title says *log axis*, press the middle button below the chart. The right one fits the
   axes; without *Ignore outliers*, at the left, the first steps are not cut off.
4. *Matches* below a chart names its curves. An empty chart is of something that this net or its
   loss does not allow: the log of the training says why.
5. The cards here say of each observable what it is, what is healthy, and what to read it beside.
6. **Images**: spectral densities, and ridgelines with a row for each of some steps. **Histograms**:
   weights, gradients and circuits, all together and layer by layer.

A step is a completed update of the weights: the initial weights are step 0.
"""


def write_cards(writer: Any, observables: Collection[str]) -> None:
    """Write to the text tab how to read the pages, and the cards of what is measured.

    Args:
        writer: a TensorBoard writer.
        observables: their names; one without a card gets none, and without any nothing is
            written.
    """
    known = [observable for observable in observables if observable in CARDS]
    if known:
        writer.add_text(f"{ROOT}/about", _START, global_step=0)
    for observable in known:
        writer.add_text(tag(observable, "about"), CARDS[observable].markdown(), global_step=0)


def write_layer_note(writer: Any, observable: str, shown: int, layers: int) -> None:
    """Write to the text tab that not all layers are shown, and where the others are.

    Args:
        writer: a TensorBoard writer.
        observable: its name.
        shown: how many layers have curves.
        layers: how many there are.
    """
    text = (
        f"{shown} of {layers} layers are shown, spread evenly over the depth, for TensorBoard "
        "becomes unusable with thousands of curves. The store keeps all: `load_run(...).series("
        f'"{observable}/<quantity>/<layer>")`.'
    )
    writer.add_text(tag(observable, "layers"), text, global_step=0)
