import pytest
import torch
from torch import nn

from torch_thermo import FunctionalHessianOperator, HessianOperator, Risk
from torch_thermo.operators import memory
from torch_thermo.operators.memory import available_bytes, gib, graph_bytes


def test_available_is_positive_and_below_what_there_is():
    available = available_bytes(torch.device("cpu"))
    assert 2**20 < available < 2**50


def test_graph_bytes_by_hand():
    """sin saves its argument, exp its result; a product saves both factors."""
    x = torch.ones(10, dtype=torch.float64, requires_grad=True)
    a = x.sin()  # saves x: 80
    b = a.exp()  # saves b: 80
    assert graph_bytes([b]) == 160
    c = b * a  # saves b (counted) and a: 80; c itself: 80
    assert graph_bytes([c]) == 320
    assert graph_bytes([c, c, b]) == 320


def test_graph_bytes_counts_storages():
    x = torch.ones(10, 10, dtype=torch.float64, requires_grad=True)
    part = x[:1, :1].sin()  # a view of 800 bytes keeps all of them; the result has 8
    assert graph_bytes([part]) == 808
    assert graph_bytes([]) == 0
    assert graph_bytes([torch.ones(3)]) == 12  # no graph, but memory


def test_graph_bytes_of_a_custom_function():
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(torch.ones(5, dtype=torch.float64))
            return 2 * x

        @staticmethod
        def backward(ctx, g):
            return 2 * g

    x = torch.ones(1, dtype=torch.float64, requires_grad=True)
    assert graph_bytes([Double.apply(x)]) == 48


def test_graph_bytes_of_a_sparse_gradient():
    """Of 3 rows of 4 numbers and their indices, not of the whole table."""
    gradient = torch.sparse_coo_tensor(
        torch.tensor([[0, 5, 9]]),
        torch.ones(3, 4, dtype=torch.float64),
        (10**6, 4),
        check_invariants=True,
    )
    assert graph_bytes([gradient]) == 3 * 8 + 3 * 4 * 8


@pytest.mark.parametrize("operator", [HessianOperator, FunctionalHessianOperator])
def test_embeddings_with_sparse_gradients(operator):
    x, y = torch.tensor([[0, 2], [3, 0], [1, 1]]), torch.tensor([0, 1, 1])
    products = []
    for sparse in (False, True):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = nn.Sequential(
                nn.Embedding(5, 3, sparse=sparse), nn.Flatten(), nn.Tanh(), nn.Linear(6, 2)
            ).double()
        risk = Risk(net, nn.CrossEntropyLoss(), [(x, y)])
        products.append(operator(risk) @ torch.ones(risk.numel, dtype=torch.float64))
    torch.testing.assert_close(products[1], products[0], rtol=1e-12, atol=1e-14)


def test_graph_bytes_of_a_deep_graph():
    x = torch.ones(1, requires_grad=True)
    y = x
    for _ in range(5000):  # deeper than Python's stack
        y = y + 1
    assert graph_bytes([y]) == 4


def test_kept_graphs_stay_within_their_share(named, monkeypatch):
    """All graphs are kept or none, at the documented share of what is free."""
    risk = named("tanh-squared-error").risk()
    v = torch.ones(risk.numel, dtype=torch.float64)
    kept = HessianOperator(risk, keep_graph=True)
    kept @ v
    needed = sum(graph_bytes(graph) for graph, _ in kept._graphs)
    for free, expected in ((needed / 0.4 + 8, 3), (needed / 0.4 - 8, 0)):
        monkeypatch.setattr(
            "torch_thermo.operators.base.available_bytes", lambda device, free=free: free
        )
        operator = HessianOperator(risk)
        operator @ v
        assert len(operator._graphs) == expected


class TestContainer:
    def write(self, root, limit, used, statistics=None):
        (root / "memory.max").write_text(f"{limit}\n")
        (root / "memory.current").write_text(f"{used}\n")
        if statistics is not None:
            (root / "memory.stat").write_text(statistics)

    def test_limit(self, tmp_path):
        self.write(tmp_path, 1000, 300)
        assert memory._container_available(tmp_path) == 700

    def test_cached_files_are_free(self, tmp_path):
        """After a data set was read the cache fills the container: that is no lack of memory."""
        self.write(tmp_path, 1000, 990, "anon 90\nfile 900\ninactive_file 800\nactive_file 100\n")
        assert memory._container_available(tmp_path) == 810

    def test_no_limit(self, tmp_path):
        self.write(tmp_path, "max", 300)
        assert memory._container_available(tmp_path) is None
        assert memory._container_available(tmp_path / "absent") is None

    def test_first_version_of_cgroups(self, tmp_path):
        folder = tmp_path / "memory"
        folder.mkdir()
        (folder / "memory.limit_in_bytes").write_text("1000\n")
        (folder / "memory.usage_in_bytes").write_text("400\n")
        assert memory._container_available(tmp_path) == 600

    def test_the_least_counts(self, monkeypatch):
        monkeypatch.setattr(memory, "_kernel_available", lambda: 5000)
        monkeypatch.setattr(memory, "_container_available", lambda: 600)
        assert available_bytes(torch.device("cpu")) == 600
        monkeypatch.setattr(memory, "_container_available", lambda: None)
        assert available_bytes(torch.device("cpu")) == 5000


@pytest.mark.parametrize(("count", "text"), [(0, "0.00 GiB"), (3 * 2**29, "1.50 GiB")])
def test_gib(count, text):
    assert gib(count) == text
