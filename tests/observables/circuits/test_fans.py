import pytest
import torch
from torch import nn

from torch_thermo.network import Network
from torch_thermo.network.operations import AveragePool, Reshape, Weighted
from torch_thermo.observables.circuits import circuit_sums, fans, sample_circuits
from torch_thermo.observables.circuits.fans import Fan, Table


def batch_norm(kind, channels):
    layer = kind(channels)
    layer.running_mean.copy_(torch.randn(channels, generator=torch.Generator().manual_seed(1)))
    layer.running_var.copy_(torch.arange(channels) + 0.5)
    return layer


class Times(nn.Module):
    """A multiple by a weight."""

    def __init__(self, *shape):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(2)))

    def forward(self, x):
        return x * self.weight + 0.5


class Part(nn.Module):
    """A multiple by a number."""

    def forward(self, x):
        return x / 7


LAYERS = [
    (nn.Linear(5, 3), (5,)),
    (nn.Linear(4, 3), (2, 3, 4)),
    (nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), (4, 9)),
    (nn.Conv1d(2, 3, 4, padding="same"), (2, 7)),
    (nn.Conv2d(3, 4, (2, 3), stride=(1, 2), padding=(1, 0), dilation=(2, 1)), (3, 5, 7)),
    (nn.Conv2d(4, 4, 3, padding=1, groups=4), (4, 3, 3)),
    (nn.Conv3d(2, 3, (1, 2, 2), stride=(1, 1, 2)), (2, 3, 3, 4)),
    (batch_norm(nn.BatchNorm1d, 3), (3,)),
    (batch_norm(nn.BatchNorm2d, 2), (2, 2, 3)),
    (Part(), (3, 5)),
    (nn.AvgPool1d(2, stride=1), (3, 5)),
    (nn.AvgPool2d(3, stride=2, padding=1, ceil_mode=True, count_include_pad=False), (2, 6, 5)),
    (nn.AdaptiveAvgPool2d((2, 3)), (2, 5, 4)),
]


# an even kernel pads one side more than the other: torch says that this costs a copy
@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize(
    ("module", "shape"), LAYERS, ids=[f"{type(m).__name__}-{shape}" for m, shape in LAYERS]
)
def test_the_fan_rebuilds_the_jacobian(module, shape):
    module = module.double().eval()
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    # a pool alone is no network: one weight of 1 stands before it
    model = nn.Sequential(nn.Linear(shape[-1], shape[-1], bias=False).double(), module).eval()
    operations = Network.from_module(model, x).operations
    operation = operations[-1]
    assert isinstance(operation, Weighted | AveragePool)
    assert not any(isinstance(o, Reshape) for o in operations)
    jacobian = torch.autograd.functional.jacobian(module, x[:1])
    outputs = module(x[:1]).numel()
    jacobian = jacobian.reshape(outputs, -1)

    fan = Fan.of(operation, shape)
    units = torch.arange(outputs)
    sources = fan.sources(fan.row(units))
    if isinstance(operation, AveragePool):
        coefficient = operation.coefficient(shape).flatten()
        factors = coefficient[units % len(coefficient)][:, None].expand(sources.shape)
    else:
        weight = operation.weight.reshape(len(operation.weight), -1)
        factors = weight[units // len(fan.windows) % len(weight)]
    rebuilt = torch.zeros(outputs, jacobian.shape[1] + 1, dtype=torch.float64)
    rebuilt.scatter_add_(1, sources % rebuilt.shape[1], factors.detach())
    torch.testing.assert_close(rebuilt[:, :-1], jacobian)
    assert sources.shape[1] == fan.channels * fan.windows.shape[1]


@pytest.mark.parametrize("shape", [(1,), (3, 1), (4,), (2, 3, 4)])
def test_weights_of_any_shape_pass_paths(shape):
    x = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = nn.Sequential(Times(*shape), nn.Flatten(), nn.Linear(24, 1)).double()
    with torch.no_grad():
        model[2].weight.copy_(torch.arange(24) - 11.5)
    network = Network.from_module(model, x)
    sums = circuit_sums(network, x)
    weight = (model[0].weight.expand(2, 3, 4).reshape(-1) * model[2].weight[0]).detach()
    starts = (0.5 * model[2].weight[0]).detach().abs().sum() + model[2].bias.detach().abs()
    expected = (x.flatten(1) * weight).abs().sum(1) + starts
    torch.testing.assert_close(sums.absolute, expected)
    torch.testing.assert_close(sums.output, model(x)[:, 0].detach())
    assert sums.alive.tolist() == [49, 49]
    sample = sample_circuits(network, x, 20000)
    mean = (sample.inputs * sample.values()).abs().mean()
    assert abs(float(mean / sums.absolute.mean()) * 49 - 1) < 0.05


def test_a_table_draws_no_candidate_of_mass_0():
    masses = torch.zeros(400, 7, dtype=torch.float64)
    # alone at the first, at the last and at a place between, next to an empty row
    for row, candidate in ((0, 6), (1, 0), (3, 6), (4, 3), (398, 6), (399, 0)):
        masses[row, candidate] = 1e30 if row % 2 else 1.0
    row = torch.tensor([0, 1, 3, 4, 398, 399]).repeat(2000)
    drawn = Table(masses).draw(row, torch.Generator().manual_seed(0))
    assert torch.equal(drawn, torch.tensor([6, 0, 6, 3, 6, 0]).repeat(2000))


@pytest.mark.parametrize(("chance", "candidate"), [(0.0, 1), (1 - 2**-53, 2)])
def test_a_table_stays_in_its_row_at_the_ends_of_the_range(chance, candidate, monkeypatch):
    # in rows far down the table, the sum of row and chance rounds up to the next row
    monkeypatch.setattr(
        torch, "rand", lambda *size, **_: torch.full(size, chance, dtype=torch.float64)
    )
    masses = torch.tensor([[0.0, 2.0, 1.0, 0.0]], dtype=torch.float64).repeat(5000, 1)
    drawn = Table(masses).draw(torch.arange(5000), torch.Generator())
    assert (drawn == candidate).all()


def test_large_tables_are_searched_row_by_row_with_the_same_result(monkeypatch):
    generator = torch.Generator().manual_seed(1)
    masses = torch.rand(40, 30, generator=generator, dtype=torch.float64)
    row = torch.randint(40, (3000,), generator=generator)
    plain = Table(masses).draw(row, torch.Generator().manual_seed(0))
    monkeypatch.setattr(fans, "_CACHED", 100)
    searched = []
    find = torch.searchsorted
    monkeypatch.setattr(
        torch, "searchsorted", lambda t, v, **o: (searched.append(v), find(t, v, **o))[1]
    )
    by_row = Table(masses).draw(row, torch.Generator().manual_seed(0))
    assert torch.equal(by_row, plain)
    assert (searched[0].floor().diff() >= 0).all()
