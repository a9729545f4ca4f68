"""attach() finds the optimizer whose step moves the parameters, or says that there is none."""

import copy

import pytest
import torch
from torch import nn

from supple import L2Regularizer, NetworkReset, PlasticityMonitor, ReDo, ShrinkAndPerturb, SpectralRegularizer
from supple.mitigators.optimizers import step_size
from support.resting import resting


class Lookahead(torch.optim.Optimizer):
    """As timm's and jettify's: no call of super().__init__(), its own step() around the other's."""

    def __init__(self, inner, name="base_optimizer", every=2):
        setattr(self, name, inner)
        self.name, self.every, self.count = name, every, 0
        self.param_groups, self.defaults, self.state = inner.param_groups, inner.defaults, {}
        self.slow = [p.detach().clone() for group in self.param_groups for p in group["params"]]

    @torch.no_grad()
    def step(self, closure=None):
        loss = getattr(self, self.name).step(closure)
        self.count += 1
        if self.count % self.every == 0:
            for slow, p in zip(self.slow, (p for g in self.param_groups for p in g["params"]), strict=True):
                slow.lerp_(p, 0.5)
                p.copy_(slow)
        return loss


class SAM(torch.optim.Optimizer):
    """As davda54's: two half-steps, called by name."""

    def __init__(self, parameters, base, **options):
        super().__init__(parameters, options)
        self.base_optimizer = base(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self):
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["old"] = p.clone()
                p.add_(p.grad, alpha=0.05)
        self.zero_grad()

    @torch.no_grad()
    def second_step(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.copy_(self.state[p]["old"])
        self.base_optimizer.step()
        self.zero_grad()


class NoOptimizer:
    """As schedule-free's wrapper: no subclass of torch's."""

    def __init__(self, base):
        self.base = base

    def step(self):
        self.base.step()

    def zero_grad(self):
        self.base.zero_grad()

    def state_dict(self):
        return {}


class Container(torch.optim.Optimizer):
    """As torchtitan's: an optimizer for each part of the network."""

    def __init__(self, optimizers):
        self.optimizers = optimizers
        super().__init__([p for o in optimizers for g in o.param_groups for p in g["params"]], {})

    def step(self, closure=None):
        for optimizer in self.optimizers:
            optimizer.step()


def stretched(sigma=3.0):
    network = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    for layer in network:
        nn.init.orthogonal_(layer.weight, sigma)
    return network


def sgd(network, lr=0.01):
    return torch.optim.SGD(network.parameters(), lr=lr)


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize(
    "name", ["base_optimizer", "_base_optimizer", "original_optimizer", "base", "optim", "optimizer", "anything", "_it"]
)
def test_an_optimizer_inside_another(name, decoupled):
    plain, network = stretched(), stretched()
    network.load_state_dict(plain.state_dict())
    inner, outer = sgd(plain), Lookahead(sgd(network), name, every=10**9)
    by_hand = SpectralRegularizer(plain, 1.0, decoupled=decoupled).attach(inner)
    method = SpectralRegularizer(network, 1.0, decoupled=decoupled).attach(outer)
    for _ in range(5):
        for module, optimizer in ((plain, inner), (network, outer)):
            resting(module)
            optimizer.step()
            module.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), network.parameters(), strict=True))
    assert method.steps == by_hand.steps == (5,)
    assert not torch.allclose(network[0].weight, stretched()[0].weight)


def test_an_optimizer_in_a_slot():
    class Slim:
        __slots__ = ("inside",)

        def __init__(self, inside):
            self.inside = inside

        step = zero_grad = lambda self: None

    network = stretched()
    assert SpectralRegularizer(network).attach(Slim(sgd(network))).steps == (0,)


def test_wrappers_within_wrappers_and_those_that_are_no_optimizers():
    network = stretched()
    method = SpectralRegularizer(network, 1.0).attach(NoOptimizer(Lookahead(sgd(network))))
    assert repr(method).endswith("attached to SGD (0 steps))")


@pytest.mark.parametrize("decoupled", [False, True])
def test_two_half_steps_are_one_step(decoupled):
    network = stretched()
    optimizer = SAM(network.parameters(), torch.optim.SGD, lr=0.01)
    method = SpectralRegularizer(network, 1.0, decoupled=decoupled).attach(optimizer)
    for step in range(60):
        resting(network)
        optimizer.first_step()
        assert method.steps == (step,)
        resting(network)
        optimizer.second_step()
    assert method.steps == (60,)
    assert all(layer.weight.norm() < 0.9 * 3 * 8**0.5 for layer in network)


def test_a_container_of_optimizers():
    network = stretched()
    optimizer = Container([sgd(network[0]), torch.optim.Adam(network[1].parameters(), lr=0.01)])
    method = SpectralRegularizer(network, 1.0, decoupled=True).attach(optimizer)
    before = copy.deepcopy(network)
    for _ in range(3):
        resting(network)
        optimizer.step()
    assert method.steps == (3, 3)
    assert all(not torch.equal(a.weight, b.weight) for a, b in zip(network, before, strict=True))
    with pytest.raises(RuntimeError, match="same one twice"):
        method.attach(optimizer)


def test_the_monitor_counts_the_inner_ones_steps():
    network = stretched()
    optimizer = Lookahead(sgd(network))
    seen = []
    monitor = PlasticityMonitor(network, every=2, callback=seen.append).attach(optimizer)
    for _ in range(4):
        resting(network)
        optimizer.step()
    assert len(seen) == 2
    assert monitor.steps == 4
    assert repr(monitor).endswith("every 2 steps, 4 so far, attached to SGD)")


def test_the_monitor_measures_after_the_last_of_several():
    network = stretched()
    optimizer, seen = Container([sgd(layer) for layer in network]), []
    PlasticityMonitor(network, every=1, diagnostics=["weight_norm"], callback=seen.append).attach(optimizer)
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert seen == [PlasticityMonitor(network, diagnostics=["weight_norm"]).measure()]


def test_a_reset_clears_what_the_inner_one_remembers():
    network = stretched()
    inner = torch.optim.Adam(network.parameters(), lr=0.01)
    NetworkReset(network, every=3).attach(Lookahead(inner))
    for _ in range(3):
        network(torch.randn(4, 8)).square().sum().backward()
        inner.step()
    assert all(not inner.state[p]["exp_avg"].any() for p in network.parameters())
    method = NetworkReset(network, every=1)
    network(torch.randn(4, 8)).square().sum().backward()
    inner.step()
    assert inner.state[network[0].weight]["exp_avg"].any()
    method.after_step(Lookahead(inner))
    assert not inner.state[network[0].weight]["exp_avg"].any()


# Refused.


def refused(optimizer, network, message, error=ValueError, **options):
    method = SpectralRegularizer(network, 1.0, **options)
    with pytest.raises(error, match=message):
        method.attach(optimizer)
    assert method.steps == ()


def test_an_optimizer_that_runs_no_hooks():
    class Own(torch.optim.Optimizer):
        def __init__(self, parameters):
            self.param_groups = [{"params": list(parameters), "lr": 0.1}]

        def step(self, closure=None):
            pass

    network = stretched()
    refused(Own(network.parameters()), network, r"Own.*super\(\).__init__\(\).*before_step\(\)")


def test_half_steps_without_an_optimizer_inside():
    class Halves(torch.optim.SGD):
        def first_step(self):
            pass

        def second_step(self):
            pass

    network = stretched()
    refused(Halves(network.parameters(), lr=0.1), network, r"second_step\(\).*before_step\(\)")


def test_copies_of_the_parameters():
    """Float32 master weights, as mixed-precision optimizers of old keep them."""

    class Master:
        def __init__(self, parameters):
            self.fp16_groups = [list(parameters)]
            self.optimizer = torch.optim.SGD([p.detach().clone().requires_grad_() for p in self.fp16_groups[0]], lr=0.1)

        step = zero_grad = state_dict = lambda self: None

    network = stretched()
    refused(Master(network.parameters()), network, r"holds none of them.*master weights.*penalty\(\)")


def test_master_weights_that_overwrite_what_comes_after_a_step():
    network = stretched()
    optimizer = sgd(network)
    optimizer.master_weights = True
    refused(optimizer, network, "master weights.*decoupled=False", decoupled=True)
    SpectralRegularizer(network).attach(optimizer)


@pytest.mark.parametrize("held", ["param_groups_master", "param_groups_full_precision"])
def test_master_weights_under_other_names(held):
    network = stretched()
    optimizer = sgd(network)
    setattr(optimizer, held, [{"params": [p.detach().clone() for p in network.parameters()]}])
    refused(optimizer, network, "master weights.*decoupled=False", decoupled=True)
    SpectralRegularizer(network).attach(optimizer)


def test_gradients_in_buffers_of_the_optimizers_own():
    network = stretched()
    optimizer = sgd(network)
    optimizer.state["buckets"] = []
    refused(optimizer, network, r"reads the parameters' .grad.*penalty\(\)")


def test_two_of_a_class_that_share_nothing_in_the_optimizer():
    first, shared, last = (nn.Linear(2, 2) for _ in range(3))
    optimizer = torch.optim.SGD([*first.parameters(), *last.parameters()], lr=0.1)
    for network in (nn.Sequential(first, shared), nn.Sequential(shared, last)):
        SpectralRegularizer(network).attach(optimizer)


@pytest.mark.parametrize("lr", ["none", "absent"])
def test_a_method_that_needs_a_step_size_asks_for_one(lr):
    network = stretched()
    optimizer = sgd(network)
    if lr == "none":
        optimizer.param_groups[0]["lr"] = None
    else:
        del optimizer.param_groups[0]["lr"]
    refused(optimizer, network, r"step size \(lr\) for '0.weight'.*SGD.*decoupled=False", decoupled=True)
    attached = sgd(network)
    SpectralRegularizer(resting(network), decoupled=True).attach(attached)
    attached.param_groups[0]["lr"] = torch.tensor(0.1)
    attached.step()
    with pytest.raises(ValueError, match="step size"):
        ShrinkAndPerturb(network, variant="step-noise").attach(optimizer)
    with pytest.raises(ValueError, match="step size"):
        SpectralRegularizer(network, decoupled=True).after_step(optimizer)
    SpectralRegularizer(network).attach(optimizer)
    L2Regularizer(network).attach(optimizer)


def test_the_step_size_is_lr_times_the_estimate_of_prodigy():
    moved = []
    for lr, estimate in ((1e-3, None), (1.0, 1e-3), (1.0, torch.tensor(1e-3))):
        torch.manual_seed(0)
        network = stretched()
        optimizer = sgd(network, lr)
        if estimate is not None:
            optimizer.param_groups[0]["d"] = estimate
        SpectralRegularizer(resting(network), 1.0, decoupled=True).attach(optimizer)
        optimizer.step()
        moved.append(network[0].weight.detach().clone())
    torch.testing.assert_close(moved[1], moved[0])
    torch.testing.assert_close(moved[2], moved[0])


def test_the_d_of_torchs_adafactor_is_no_estimate():
    network = stretched()
    assert step_size(torch.optim.Adafactor(network.parameters(), lr=0.5, d=3.0).param_groups[0]) == 0.5


@pytest.mark.parametrize("name", ["DAdaptSGD", "AdamWScheduleFreeReference", "FTRL"])
def test_optimizers_that_compute_parameters_anew_would_undo_it(name):
    network = stretched()
    kind = type(name, (torch.optim.SGD,), {})
    refused(kind(network.parameters(), 0.1), network, f"{name}.*overwrite.*decoupled=False", decoupled=True)
    SpectralRegularizer(network).attach(kind(network.parameters(), 0.1))


def test_a_part_of_the_parameters_as_copies():
    """As Megatron's: what is float32 already is moved itself, the rest in copies."""

    class Half:
        def __init__(self, network):
            self.float16_groups = [[layer.weight for layer in network]]
            copies = [layer.weight.detach().clone() for layer in network]
            self.optimizer = torch.optim.SGD([*copies, *(layer.bias for layer in network)], 0.1)

        step = zero_grad = lambda self: None

    network = stretched()
    refused(Half(network), network, r"inner optimizer lacks '0.weight'.*penalty\(\)")


def test_one_that_takes_the_optimizer_over_is_noticed():
    network = stretched()
    optimizer = sgd(network)
    SpectralRegularizer(network).attach(optimizer)
    optimizer.param_groups[0]["params"] = [p.detach().clone() for p in network.parameters()]
    with pytest.raises(ValueError, match="none of them any more"):
        optimizer.step()


@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated")
@pytest.mark.parametrize("decoupled", [False, True])
def test_zero_redundancy(decoupled, tmp_path):
    """Each rank's optimizer holds a share of the parameters: here the only one's, all of them."""
    from torch import distributed
    from torch.distributed.optim import ZeroRedundancyOptimizer

    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        networks = [stretched(), stretched()]
        networks[1].load_state_dict(networks[0].state_dict())
        optimizers = [
            torch.optim.Adam(networks[0].parameters(), lr=0.01),
            ZeroRedundancyOptimizer(networks[1].parameters(), torch.optim.Adam, lr=0.01),
        ]
        for network, optimizer in zip(networks, optimizers, strict=True):
            method = SpectralRegularizer(network, 0.1, decoupled=decoupled).attach(optimizer)
            reset = NetworkReset(network, every=3).attach(optimizer)
            for _ in range(3):
                optimizer.zero_grad()
                network(torch.ones(3, 8)).square().mean().backward()
                optimizer.step()
            assert method.steps == reset.steps == (3,)
        assert all(torch.equal(a, b) for a, b in zip(*(n.parameters() for n in networks), strict=True))
        assert not any(optimizers[1].optim.state[p]["exp_avg"].any() for p in networks[1].parameters())
    finally:
        distributed.destroy_process_group()


def test_units_that_are_split_between_optimizers_are_refused_at_once():
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    method = ReDo(network)
    with pytest.raises(ValueError, match=r"units of '0' whole in one optimizer.*roles="):
        method.attach(sgd(network[0]))
    assert method.steps == ()
    method.attach(sgd(network))


def test_a_positional_argument_is_passed_on_as_it_came():
    class Own(torch.optim.SGD):
        def step(self, evaluate, times=1):
            for _ in range(times):
                loss = evaluate()
            super().step()
            return loss

    network = stretched()
    optimizer = Own(network.parameters(), 0.01)
    method = SpectralRegularizer(network, 1.0).attach(optimizer)
    calls = []

    def evaluate():
        calls.append(1)
        resting(network)
        return torch.zeros(())

    with torch.no_grad():
        expected = method.penalty()
    torch.testing.assert_close(optimizer.step(evaluate, 2), expected)
    assert len(calls) == 2
    assert method.steps == (1,), "though torch runs the hooks of super().step() as well"


@pytest.mark.parametrize("decoupled", [False, True])
def test_a_step_that_calls_its_parents_counts_once(decoupled):
    class Own(torch.optim.SGD):
        def step(self, closure=None):
            return super().step(closure)

    networks = [stretched(), stretched()]
    networks[1].load_state_dict(networks[0].state_dict())
    for network, kind in zip(networks, (torch.optim.SGD, Own), strict=True):
        optimizer = kind(network.parameters(), 0.01)
        method = SpectralRegularizer(network, 1.0, decoupled=decoupled).attach(optimizer)
        for closure in (None, lambda network=network: resting(network) and torch.zeros(())):
            resting(network)
            optimizer.step(closure)
        assert method.steps == (2,)
    assert all(torch.equal(a, b) for a, b in zip(*(n.parameters() for n in networks), strict=True))


def test_it_acts_again_after_a_step_that_failed():
    class Fails(torch.optim.SGD):
        fails = True

        def step(self, closure=None):
            if self.fails:
                raise RuntimeError("out of memory")
            return super().step(closure)

    network = stretched()
    optimizer = Fails(network.parameters(), 0.01)
    method = SpectralRegularizer(network, 1.0, decoupled=True).attach(optimizer)
    resting(network)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="out of memory"):
            optimizer.step()
    optimizer.fails = False
    for _ in range(3):
        optimizer.step()
    assert method.steps == (3,)


def test_an_argument_that_cannot_be_called_is_no_closure():
    class Own(torch.optim.SGD):
        def step(self, scale):
            super().step()
            return scale

    network = stretched()
    optimizer = Own(resting(network).parameters(), 0.01)
    method = SpectralRegularizer(network, 1.0).attach(optimizer)
    assert optimizer.step(3.0) == 3.0
    assert method.steps == (1,)
    assert network[0].weight.grad.any()


def test_a_readable_repr():
    network = stretched()
    method = SpectralRegularizer(network, 0.5, target="initial", decoupled=True, exponent=3)
    assert repr(method) == (
        "SpectralRegularizer(strength=0.5, target='initial', decoupled=True, exponent=3, "
        "4 parameters, 2 of them matrices, not attached)"
    )
    optimizer = sgd(network)
    method.attach(optimizer)
    resting(network)
    optimizer.step()
    assert repr(method).endswith("attached to SGD (1 steps))")
    assert copy.deepcopy((network, optimizer, method))[2].steps == (1,)


def test_an_embedding_that_was_resized_is_named():
    network = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 2))
    optimizer = sgd(network)
    methods = [SpectralRegularizer(network), L2Regularizer(network), NetworkReset(network)]
    for method in methods:
        method.attach(optimizer)
    network[0].weight.data = torch.randn(7, 4)  # as resize_token_embeddings() of transformers does
    resting(network)
    with pytest.raises(ValueError, match=r"'0.weight' of shape \(5, 4\).*got \(7, 4\): resize embeddings first"):
        optimizer.step()
    for method in methods:
        with pytest.raises(ValueError, match="resize embeddings first"):
            method.before_step() if method.acts_on_gradients else method.after_step(optimizer)
