"""What goes to TensorBoard and how it is laid out.

Tags are ``thermo/<observable>/<quantity>[/<layer>]``. The custom-scalars tab shows the quantities
that belong together as one page, the text tab says what each observable is; histograms and images
go to the tabs of their own. A writer is anything with the methods of
``torch.utils.tensorboard.SummaryWriter``, such as the ``experiment`` of Lightning's
``TensorBoardLogger``.
"""

from torch_thermo.dashboard.cards import CARDS, Card, write_cards, write_layer_note
from torch_thermo.dashboard.histograms import (
    decade_floor,
    histogram_arrays,
    layer_histograms,
    signed_log,
    write_histogram,
)
from torch_thermo.dashboard.layout import custom_scalar_layout, write_layout
from torch_thermo.dashboard.pictures import write_density, write_figure, write_ridgeline
from torch_thermo.dashboard.tags import layer_of, shown_layers, tag

__all__ = [
    "CARDS",
    "Card",
    "custom_scalar_layout",
    "decade_floor",
    "histogram_arrays",
    "layer_histograms",
    "layer_of",
    "shown_layers",
    "signed_log",
    "tag",
    "write_cards",
    "write_density",
    "write_figure",
    "write_histogram",
    "write_layer_note",
    "write_layout",
    "write_ridgeline",
]
