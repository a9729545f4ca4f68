"""What every method promises, whatever it does: one test for all that the library exports."""

import copy
import math
import pickle
from collections.abc import Callable, Iterable
from functools import cache, partial

import pytest
import torch
from torch import Tensor, nn

from oracles.regularizers import matrices, owned
from supple import L2Regularizer, Population
from supple.mitigators import Mitigator
from supple.mitigators.kernels import Update
from supple.mitigators.states import GLOBAL
from support.method_cases import (
    CASES,
    NETWORKS,
    SEED,
    adamw,
    backward,
    build,
    every_case,
    every_case_that_acts_in_steps,
    every_network,
    make_network,
    mlp,
    same,
    same_state,
    sgd,
    strength_of,
    tensors,
    train,
    where_taken,
)
from support.waits import Waits
from support.zoo import spread

with_penalty = pytest.mark.parametrize(
    "case", [case for case, (method, _) in CASES.items() if method._penalty is not Mitigator._penalty]
)


@cache
def trained_without(
    kind: str,
    optimizer: Callable[[nn.Module], torch.optim.Optimizer],
    device: str,
    frozen: frozenset[str] = frozenset(),
) -> nn.Module:
    """A network after ten steps without a method, once for all methods; parameters in ``frozen`` are not trained."""
    network = make_network(kind, device=device)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in frozen)
    train(kind, network, optimizer(network))
    return network


@every_case
@every_network
def test_strength_zero_is_no_method(case, kind, make, device):
    network = make(kind)
    optimizer = adamw(network)
    build(case, network, strength=0.0).attach(optimizer)
    train(kind, network, optimizer)
    assert same(trained_without(kind, adamw, device), network)


@every_case
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_no_strength_gives_a_gradient_to_what_has_none(case, share, make, device):
    """An optimizer skips such parameters, but decays those whose gradient is zero."""
    plain, network = (nn.Sequential(make("mlp"), nn.Linear(5, 5, device=device)) for _ in range(2))
    with torch.no_grad():
        network[1].load_state_dict(plain[1].state_dict())
    optimizer = adamw(network)
    build(case, network, strength=share * strength_of(case)).attach(optimizer)
    train("mlp", plain[0], adamw(plain), range(4))
    train("mlp", network[0], optimizer, range(4))
    assert same(plain[1], network[1])
    assert all(parameter.grad is None for parameter in network[1].parameters())
    assert same(plain[0], network[0]) or share > 0


@every_case_that_acts_in_steps
@every_network
def test_it_acts(case, kind, make, device):
    network = make(kind)
    optimizer = sgd(network)
    build(case, network).attach(optimizer)
    train(kind, network, optimizer)
    assert not same(trained_without(kind, sgd, device), network)


@every_case
@every_network
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_types_are_kept_and_values_finite(case, kind, dtype, make):
    network = make(kind, dtype)
    optimizer = sgd(network)
    method = build(case, network).attach(optimizer)
    types = types_of(method)
    train(kind, network, optimizer)
    for parameter in network.parameters():
        assert parameter.dtype == parameter.grad.dtype == dtype
        assert parameter.isfinite().all()
    after = types_of(method)
    if dtype == torch.bfloat16:
        after.pop("/rounding steps", None)  # counted from the first one
    assert after == types
    assert all(tensor.isfinite().all() for tensor in tensors(method))
    assert method.penalty().isfinite()


@every_case
def test_a_default_device_is_not_where_its_own_numbers_are(case):
    """``torch.set_default_device("cuda")`` is common; here the device is one on which nothing can be computed."""
    networks = [make_network("mlp") for _ in range(2)]
    for network, default in zip(networks, ("cpu", "meta"), strict=True):
        optimizer = sgd(network)
        with torch.device(default):
            method = build(case, network).attach(optimizer)
        for step in range(5):
            backward("mlp", step, network, optimizer)
            with torch.device(default):
                optimizer.step()
                method.state_dict()
    assert same(*networks)


def types_of(method: Mitigator) -> dict[str, torch.dtype]:
    entries = method.state_dict().items()
    return {f"{name}/{key}": tensor.dtype for name, entry in entries for key, tensor in entry.items()}


# What each is for.


def clipped(method: Mitigator, initial: nn.Module, network: nn.Module) -> bool:
    fan_in = {module: matrices(module, name, p)[0].shape[1] for _, module, name, p in owned(network) if p.ndim > 1}
    largest = {module: max(p.abs().max().item() for p in module.parameters(recurse=False)) for module in fan_in}
    return all(largest[module] <= (1 + 1e-6) / (2 * math.sqrt(fan_in[module])) for module in fan_in)


def projected(method: Mitigator, initial: nn.Module, network: nn.Module) -> bool:
    pairs = zip(norms(initial), norms(network), strict=True)
    return all(math.isclose(before, after, rel_tol=1e-6) for before, after in pairs)


def norms(network: nn.Module) -> list[float]:
    return [m.norm().item() for _, module, name, p in owned(network) if p.ndim > 1 for m in matrices(module, name, p)]


INVARIANTS = {"WeightClipping": (clipped, 2.0), "NormalizeAndProject": (projected, 1.0)}


@pytest.mark.parametrize("name", INVARIANTS)
@every_network
def test_the_invariant_holds_after_training_and_not_without(name, kind, make):
    holds, strength = INVARIANTS[name]
    for method_strength in (strength, 0.0):
        network = make(kind)
        initial = copy.deepcopy(network)
        optimizer = sgd(network)
        method = build(name, network, strength=method_strength).attach(optimizer)
        train(kind, network, optimizer, range(50))
        assert holds(method, initial, network) == (method_strength > 0)


@with_penalty
@every_network
def test_the_penalty_is_smaller_after_training_with_it(case, kind, make):
    penalties = []
    steps = 50 if case.startswith("Parseval") or case.endswith("mean") else 20  # these pull small networks weakly
    for strength in (strength_of(case), 0.0):
        network = make(kind)
        optimizer = sgd(network)
        method = build(case, network, strength=strength).attach(optimizer)
        train(kind, network, optimizer, range(steps))
        method.strength = 1.0
        penalties.append(method.penalty().item())
    assert penalties[0] < 0.9 * penalties[1]


@with_penalty
@every_network
def test_the_gradient_added_is_that_of_the_penalty(case, kind, make):
    network = make(kind, torch.float64)
    method = build(case, network, **where_taken(case, decoupled=False, power_iterations=40))
    for _ in range(3):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.03 * torch.randn_like(parameter))
                parameter.grad = torch.randn_like(parameter)
        given = {name: parameter.grad.clone() for name, parameter in network.named_parameters()}
        method.before_step()
    added = {name: parameter.grad - given[name] for name, parameter in network.named_parameters()}
    assert any(gradient.any() for gradient in added.values())
    network.zero_grad()
    method.penalty().backward()
    for name, parameter in network.named_parameters():
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(
            added[name], expected, rtol=1e-6, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}"
        )


@with_penalty
def test_looking_at_the_penalty_changes_nothing(case, make):
    network = make("mlp")
    optimizer = sgd(network)
    method = build(case, network).attach(optimizer)
    train("mlp", network, optimizer, range(3))
    before = tensors(method)
    with torch.no_grad():
        method.penalty()
    assert same_state(before, tensors(method))


# State.


@every_case
@every_network
def test_a_run_resumed_from_its_state_gives_the_same_bits(case, kind, tmp_path, make):
    def begin(seed):
        network = make(kind, seed=seed)
        optimizer = adamw(network)
        return network, optimizer, build(case, network).attach(optimizer)

    network, optimizer, method = parts = begin(0)
    train(kind, network, optimizer, range(5))
    torch.save([part.state_dict() for part in parts], tmp_path / "state.pt")
    train(kind, network, optimizer, range(5, 10))
    resumed = begin(1)
    for part, state in zip(resumed, torch.load(tmp_path / "state.pt"), strict=True):
        part.load_state_dict(state)
    train(kind, *resumed[:2], range(5, 10))
    assert same(network, resumed[0])
    assert same_state(tensors(method), tensors(resumed[2]))


@every_case
def test_the_global_random_state_is_left_alone(case, make):
    network = make("mlp")
    optimizer = sgd(network)
    before = torch.get_rng_state()
    build(case, network).attach(optimizer)
    train("mlp", network, optimizer, range(3))
    assert torch.equal(before, torch.get_rng_state())


# Populations.


@every_case
@every_network
def test_members_of_a_population_are_lone_networks_on_the_cpu(case, kind, device):
    """Also their random numbers: a member with seed s draws what a lone network's method does with s more."""
    seeds = [3, 4, 5]
    strengths = strength_of(case) * torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    population = Population(lambda: spread(NETWORKS[kind][0]()).double(), seeds)
    members = [population.member(index) for index in range(3)]
    optimizer = sgd(population.to(device))
    method = build(case, population, strength=strengths.to(device), **where_taken(case, seed=SEED)).attach(optimizer)
    train(kind, population, optimizer)
    penalties = method.penalty().expand(3)
    for index, (member, seed) in enumerate(zip(members, seeds, strict=True)):
        alone = sgd(member)
        its_method = build(case, member, strength=strengths[index].item(), **where_taken(case, seed=SEED + seed))
        its_method.attach(alone)
        train(kind, member, alone)
        assert_close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-6, check_device=False)
        for (name, a), b in zip(member.named_parameters(), population.member(index).parameters(), strict=True):
            assert_close(b, a, msg=lambda m, at=(index, name): f"{at}: {m}")
        assert_close(penalties[index], its_method.penalty())


@every_case
def test_a_population_knows_its_own_random_numbers(case, device):
    """Members that start alike and have one strength, but not one seed, go apart where the method is random."""
    torch.manual_seed(0)
    start = mlp()
    population = Population(lambda: copy.deepcopy(start), [1, 2]).to(device)
    optimizer = sgd(population)
    method = build(case, population).attach(optimizer)
    train("mlp", population, optimizer)
    assert same(population.member(0), population.member(1)) != bool(method._generators)


# On anyone's optimizer.


@pytest.mark.parametrize(
    ("case", "built_on_the_compiled"),
    [*((case, True) for case in CASES), *((case, False) for case, (method, _) in CASES.items() if method.observes)],
)
def test_compiled_networks(case, built_on_the_compiled, make):
    torch.compiler.reset()
    plain, network = make("mlp"), make("mlp")
    compiled = torch.compile(network, backend="eager")
    for module, forward in ((plain, plain), (compiled if built_on_the_compiled else network, compiled)):
        optimizer = sgd(module)
        build(case, module).attach(optimizer)
        train("mlp", forward, optimizer, range(6))
    assert same(plain, network)


@pytest.mark.parametrize("case", [case for case, (method, _) in CASES.items() if method.traceable])
def test_a_compiler_sees_through_what_calls_itself_traceable(case, make):
    torch.compiler.reset()

    @torch.no_grad()
    def act(method, parameters, gradients, state):
        method.add_gradients(parameters, gradients, state, strength_of(case))
        update = Update(dict.fromkeys(parameters, 0.1), {name: {} for name in parameters})
        method.change_parameters(parameters, state, strength_of(case), update)

    results = []
    for function in (act, torch.compile(act, backend="eager", fullgraph=True)):
        method = build(case, make("mlp"))
        parameters = {name: (1.1 * parameter).detach() for name, parameter in method.parameters.items()}
        gradients = {name: torch.ones_like(parameter) for name, parameter in parameters.items()}
        for _ in range(2):
            function(method, parameters, gradients, method.state)
        results.append([*parameters.values(), *gradients.values(), *tensors(method)])
    torch.testing.assert_close(*results)  # to rounding: compiled, each matrix is worked out by itself


@every_case_that_acts_in_steps
def test_two_methods_on_one_optimizer_both_act(case, make):
    networks = []
    for methods in ([build], [another], [build, another]):
        network = make("mlp")
        optimizer = sgd(network)
        for method in methods:
            method(case, network).attach(optimizer)
        train("mlp", network, optimizer)
        networks.append(network)
    alone, other, both = networks
    assert not same(both, alone)
    assert not same(both, other)


def another(case: str, network: nn.Module) -> Mitigator:
    return build("L2InitRegularizer" if CASES[case][0] is L2Regularizer else "L2Regularizer", network, strength=0.05)


@every_case
def test_once_a_step_whatever_the_parameter_groups(case, make):
    """Attached as in a loop that says each moment once."""
    attached, by_hand = make("mlp"), make("mlp")
    for network in (attached, by_hand):
        first, *rest = network.parameters()
        optimizer = torch.optim.SGD([{"params": [first], "lr": 0.1}, {"params": rest, "lr": 0.03}])
        method = build(case, network)
        if network is attached:
            method.attach(optimizer)
        else:
            method.observe()
        for step in range(9):
            backward("mlp", step, network, optimizer)
            if network is attached:
                optimizer.step()
            else:
                method.before_step()
                optimizer.step()
                method.after_step(optimizer)
    assert same(attached, by_hand)


@every_case
def test_detach_ends_it(case, make):
    network = make("mlp")
    optimizer = sgd(network, momentum=0.0)
    method = build(case, network).attach(optimizer)
    train("mlp", network, optimizer, range(5))
    plain = copy.deepcopy(network)
    method.detach()
    before = tensors(method)
    train("mlp", network, optimizer)
    train("mlp", plain, sgd(plain, momentum=0.0))
    assert same(network, plain)
    assert same_state(before, tensors(method))


@every_case_that_acts_in_steps
@every_network
def test_frozen_parameters_are_left_alone(case, kind, make, device):
    frozen = {name for name, parameter in make(kind).named_parameters() if parameter.ndim > 1}
    frozen = set(sorted(frozen)[:1]) | {next(name for name, _ in make(kind).named_parameters() if "bias" in name)}
    network = make(kind)
    before = copy.deepcopy(network)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in frozen)
    optimizer = sgd(network)
    build(case, network).attach(optimizer)
    train(kind, network, optimizer)
    for (name, old), parameter in zip(before.named_parameters(), network.parameters(), strict=True):
        if name in frozen:
            assert torch.equal(old, parameter), name
            assert parameter.grad is None, name
    assert not same(trained_without(kind, sgd, device, frozenset(frozen)), network), "it acts on the others"


# torch.amp.GradScaler, which leaves the gradients of a fused optimizer scaled until inside its step.


@every_case
@pytest.mark.parametrize("fused", [torch.optim.SGD, torch.optim.AdamW])
def test_scaled_gradients_give_the_same_bits(case, fused, make, device):
    networks = [make("mlp"), make("mlp")]
    for network in networks:
        optimizer = fused(network.parameters(), lr=0.01, fused=True)
        build(case, network).attach(optimizer)
        scaler = torch.amp.GradScaler(device, init_scale=2.0**10, enabled=network is networks[0])
        for step in range(9):
            backward("mlp", step, network, optimizer, scaler.get_scale())
            scaler.scale(torch.zeros((), device=device))  # starts the scaler
            scaler.step(optimizer)
            scaler.update()
    assert same(*networks)


@every_case
def test_a_step_skipped_for_an_overflow_does_no_lasting_harm(case, make, device):
    network = make("mlp")
    optimizer = sgd(network, fused=True)
    method = build(case, network).attach(optimizer)
    scaler = torch.amp.GradScaler(device, init_scale=2.0**10)
    scaler.scale(torch.zeros((), device=device))
    for step in range(9):
        before = copy.deepcopy(network)
        backward("mlp", step, network, optimizer, math.inf if step == 3 else scaler.get_scale())
        scaler.step(optimizer)
        scaler.update()
        assert same(before, network) == (step == 3)
        assert all(tensor.isfinite().all() for tensor in [*network.parameters(), *tensors(method)])


@pytest.mark.parametrize("case", [case for case, (method, _) in CASES.items() if not method.observes])
@pytest.mark.parametrize("members", [0, 2])
def test_autocast_around_it_changes_no_bit(case, members, make, device):
    """As where the penalty joins the loss inside the forward pass's autocast."""
    results = []
    for enabled in (False, True):
        network = Population(mlp, seeds=range(members)).to(device) if members else make("mlp")
        method, optimizer = build(case, network), sgd(network)
        for parameter in network.parameters():
            parameter.grad = torch.full_like(parameter, 0.1)
        with torch.autocast(device, torch.bfloat16, enabled=enabled):
            penalty = method.penalty().sum().detach()
            method.before_step()
            method.after_step(optimizer)
            method.attach(optimizer)
            optimizer.step()
            if method.acts_on_gradients:
                penalty = penalty + optimizer.step(lambda: 0.0)
        results.append([penalty, *network.parameters(), *(parameter.grad for parameter in network.parameters())])
    assert all(map(torch.equal, *results))


# What happens to a network in mid-run.


@every_case
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda parts: pickle.loads(pickle.dumps(parts))])
def test_a_copy_of_network_optimizer_and_method_goes_on_by_itself(case, duplicate, make):
    network = make("mlp")
    optimizer = adamw(network)
    method = build(case, network).attach(optimizer)
    train("mlp", network, optimizer, range(5))
    other, its_optimizer, its_method = duplicate((network, optimizer, method))
    train("mlp", network, optimizer, range(5, 11))
    after = tensors(method)
    train("mlp", other, its_optimizer, range(5, 11))
    assert same(network, other)
    assert same_state(after, tensors(its_method))
    assert same_state(after, tensors(method)), "the two share nothing"
    with pytest.raises(RuntimeError, match="same one twice"):
        its_method.attach(its_optimizer)


class Agent(nn.Module):
    """Holds its optimizer and its method."""

    def __init__(self, case, network):
        super().__init__()
        self.network = network
        self.optimizer = adamw(self.network)
        self.method = build(case, self).attach(self.optimizer)

    def forward(self, x):
        return self.network(x)


@every_case
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda parts: pickle.loads(pickle.dumps(parts))])
def test_a_network_that_holds_its_method_can_be_copied(case, duplicate, make):
    agent = Agent(case, make("mlp"))
    train("mlp", agent, agent.optimizer, range(5))
    other = duplicate(agent)
    for holder in (agent, other):
        train("mlp", holder, holder.optimizer, range(5, 11))
    assert same(agent, other)
    assert same_state(tensors(agent.method), tensors(other.method))


@every_case_that_acts_in_steps
@pytest.mark.parametrize(
    ("kind", "there"), [("mlp", torch.float64), ("conv", torch.bfloat16), ("transformer", torch.bfloat16)]
)
def test_the_type_may_change_in_mid_run(case, kind, there, make):
    """Forth and back; it acts in each."""
    network = make(kind)
    optimizer = sgd(network, momentum=0.0)  # the optimizer's own memory would not follow
    build(case, network).attach(optimizer)
    for dtype in (torch.float32, there, torch.float32):
        network.to(dtype)
        plain = copy.deepcopy(network)
        train(kind, network, optimizer, range(5))  # every method acts at least once in five steps
        assert all(parameter.isfinite().all() for parameter in network.parameters())
        if dtype != torch.bfloat16:  # there a small pull may be lost in rounding
            train(kind, plain, sgd(plain, momentum=0.0), range(5))
            assert not same(network, plain)


@every_case
def test_parameters_without_entries_are_no_trouble(case, make, device):
    plain, network = make("mlp"), make("mlp")
    for module in (plain, network):
        optimizer = sgd(module)
        if module is network:
            module.register_parameter("empty", nn.Parameter(torch.zeros(0, device=device)))
            module[0].register_parameter("wide", nn.Parameter(torch.zeros(0, 5, device=device)))
            optimizer.add_param_group({"params": [module.empty, module[0].wide]})
        method = build(case, module).attach(optimizer)
        train("mlp", module, optimizer, range(9))
        assert method.describe()
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), without_empty(network), strict=True))


def without_empty(network: nn.Module) -> Iterable[Tensor]:
    return [parameter for parameter in network.parameters() if parameter.numel()]


@every_case
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_run_restored_after_weights_that_were_not_finite_gives_the_same_bits(case, poison, make):
    def begin():
        network = make("mlp")
        optimizer = adamw(network)
        return network, optimizer, build(case, network).attach(optimizer)

    runs = [begin(), begin()]
    for parts in runs:
        train("mlp", *parts[:2], range(5))
    poisoned = network, optimizer, _ = runs[1]
    saved = copy.deepcopy([part.state_dict() for part in poisoned])
    with torch.no_grad():
        network[0].weight[0, 0] = poison
    train("mlp", network, optimizer, range(5, 7))
    for part, state in zip(poisoned, saved, strict=True):
        part.load_state_dict(state)
    for parts in runs:
        train("mlp", *parts[:2], range(5, 11))
    assert same(runs[0][0], network)
    assert same_state(*(tensors(parts[2]) for parts in runs))


@every_case
@pytest.mark.parametrize("members", [None, 3])
def test_no_step_waits_for_the_device(case, members, make, device):
    network = Population(mlp, range(members)).to(device) if members else make("mlp")
    optimizer = sgd(network)
    method = build(case, network).attach(optimizer)
    train("mlp", network, optimizer, range(4))  # the first to act may look whether it sees anything at all
    for step in range(4, 12):
        backward("mlp", step, network, optimizer)
        remembered = [tensor for name, entry in method.state.items() if name != GLOBAL for tensor in entry.values()]
        gradients = [parameter.grad for parameter in network.parameters()]
        with Waits([*network.parameters(), *network.buffers(), *gradients, *remembered]) as waits:
            optimizer.step()
        assert waits.found == []


def test_a_wait_would_be_found():
    parameter, count = torch.ones(3), torch.zeros(())
    with Waits([parameter]) as waits:
        int(count.add_(1))
        assert waits.found == []
        if (2 * parameter).sum() > 1:
            parameter[parameter > 0] += 1
    assert waits.found == ["aten._local_scalar_dense.default", "aten.index.Tensor", "aten.index_put_.default"]
