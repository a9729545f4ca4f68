"""FSDP2 and tensor parallelism as people use them, against the same training in one process."""

import copy
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from supple import (
    HareAndTortoise,
    L2InitRegularizer,
    L2Regularizer,
    SpectralNormRegularizer,
    SpectralRegularizer,
    StreamingEWC,
    WeightClipping,
    mitigators,
)
from supple.integrations import lightning, transformers
from supple.kernels.sharding import local
from supple.mitigators import Mitigator
from supple.mitigators.states import State
from support.modules import module_at
from support.ranks import run_checks
from support.resting import resting


def test_fsdp():
    run_checks(__file__, 2)


class Block(nn.Module):
    """Fused attention projection, norms, an MLP; 10 and 6 rows and less do not divide evenly by 4 ranks."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 10), nn.GELU(), nn.Linear(10, width))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        x = x + self.attention(h, h, h, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class PositionEmbeddings(nn.Module):
    """A type whose name says that its table is a matrix."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.position_embeddings = nn.Parameter(0.1 * torch.randn(1, 5, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.position_embeddings


class Transformer(nn.Module):
    """With an embedding that is the head's weight too."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, width)
        self.positions = PositionEmbeddings(width)
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.head = nn.Linear(width, 9)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(self.blocks(self.positions(self.embedding(tokens))))
        return logits.clone()  # FSDP2 warns of views


def convolutional() -> nn.Module:
    """Plain, grouped and depthwise; the last layers have fewer rows than there are ranks."""
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, groups=2),
        nn.Conv2d(6, 6, 2, groups=6),
        nn.ConvTranspose2d(6, 4, 2, groups=2),
        nn.Flatten(),
        nn.Linear(16, 3),
        nn.Tanh(),
        nn.Linear(3, 1),
    )


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def tokens(step: int) -> Tensor:
    return torch.randint(9, (8, 5), generator=torch.Generator().manual_seed(step))


def numbers(step: int, *shape: int) -> Tensor:
    return torch.randn(8, *shape, generator=torch.Generator().manual_seed(step), dtype=torch.float64)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor]]] = {
    "mlp": (mlp, lambda step: numbers(step, 4)),
    "transformer": (Transformer, tokens),
    "conv": (convolutional, lambda step: numbers(step, 2, 4, 4)),
}


def line() -> DeviceMesh:
    return init_device_mesh("cpu", (distributed.get_world_size(),))


def build(kind: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[kind][0]().to(dtype)


def shard(network: nn.Module, **options: object) -> nn.Module:
    """Each block for itself, as is usual."""
    options.setdefault("mesh", line())
    for module in network.modules():
        if isinstance(module, Block):
            fully_shard(module, **options)
    return fully_shard(network, **options)


def loss_of(kind: str, step: int, network: nn.Module, part: slice = slice(None)) -> Tensor:
    inputs = NETWORKS[kind][1](step)[part]
    if inputs.is_floating_point():
        inputs = inputs.to(next(network.parameters()).dtype)
    return network(inputs).square().mean()


def momentum(network: nn.Module) -> torch.optim.Optimizer:
    """Not Adam, which divides rounding errors by themselves: a key's bias has no gradient at all."""
    return torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9)


def my_part() -> slice:
    share = 8 // distributed.get_world_size()
    return slice(distributed.get_rank() * share, (distributed.get_rank() + 1) * share)


def train(
    kind: str, network: nn.Module, optimizer: torch.optim.Optimizer, steps: Iterable[int], part: slice = slice(None)
) -> None:
    network.eval()  # batch norm sees other batches on each rank
    for step in steps:
        optimizer.zero_grad()
        loss_of(kind, step, network, part).backward()
        optimizer.step()


def assert_alike(network: nn.Module, shards: nn.Module, what: object, tolerance: float = 1e-10) -> None:
    for (name, parameter), other in zip(network.named_parameters(), shards.parameters(), strict=True):
        whole = other.full_tensor() if isinstance(other, DTensor) else other
        torch.testing.assert_close(
            whole, parameter, rtol=tolerance, atol=tolerance, msg=lambda m, name=name: f"{what}: {name}: {m}"
        )


METHODS: tuple[Callable[[nn.Module], Mitigator], ...] = (
    partial(SpectralRegularizer, strength=0.1),
    partial(SpectralRegularizer, strength=1.0, decoupled=True),
    partial(SpectralNormRegularizer, strength=0.1),
    partial(L2Regularizer, strength=0.1),
    partial(L2InitRegularizer, strength=0.1),
    partial(StreamingEWC, strength=0.1),
    partial(WeightClipping, strength=2.0),
    partial(HareAndTortoise, every=2, strength=0.5, decay=0.9),
)


STATEFUL = METHODS[0], *METHODS[4:6], METHODS[7]
"""Methods with a state, one of each kind: the other spectral ones hold what the first one holds."""


def check_methods_train_as_in_one_process(folder: Path) -> None:
    for kind in NETWORKS:
        for method in METHODS if kind == "mlp" else METHODS[:2]:
            network = build(kind)
            shards = shard(copy.deepcopy(network))
            optimizers = [momentum(n) for n in (network, shards)]
            for n, optimizer in zip((network, shards), optimizers, strict=True):
                method(n).attach(optimizer)
            plain = build(kind)
            train(kind, plain, momentum(plain), range(4))
            train(kind, network, optimizers[0], range(4))
            train(kind, shards, optimizers[1], range(4), my_part())
            assert_alike(network, shards, (kind, method))
            with pytest.raises(AssertionError):
                assert_alike(plain, shards, "without the method")


def check_penalty_in_the_loss(folder: Path) -> None:
    for kind in NETWORKS:
        network = build(kind).eval()
        shards = shard(copy.deepcopy(network))
        regularizers = [SpectralRegularizer(n, strength=0.1) for n in (network, shards)]
        optimizers = [torch.optim.SGD(n.parameters(), lr=0.01) for n in (network, shards)]
        for step in range(3):
            for n, regularizer, optimizer, part in zip(
                (network, shards), regularizers, optimizers, (slice(None), my_part()), strict=True
            ):
                optimizer.zero_grad()
                (loss_of(kind, step, n, part) + regularizer.penalty()).backward()
                optimizer.step()
        assert_alike(network, shards, kind)


def check_one_small_all_reduce_a_step_and_no_gathering(folder: Path) -> None:
    shards = shard(build("transformer"))
    optimizer = torch.optim.SGD(shards.parameters(), lr=0.01)
    regularizer = SpectralRegularizer(shards).attach(optimizer)
    loss_of("transformer", 0, shards).backward()
    with patch.object(distributed, "all_reduce", wraps=distributed.all_reduce) as sent, CommDebugMode() as seen:
        optimizer.step()
    assert seen.get_total_counts() == sent.call_count == 1, seen.get_comm_counts()
    roles = regularizer.roles.values()
    columns = sum(role.sizes[0] * (role.sizes[2] + 1) for role in roles if role.kind == "matrix")
    vectors = sum(role.kind == "vector" for role in roles)
    assert sent.call_args.args[0].numel() == columns + vectors


def check_the_page_about_scale_counts_what_is_sent(folder: Path) -> None:
    scale = module_at(Path(__file__).parents[2] / "benchmarks" / "scale.py")
    model = scale.Model("small", layers=2, width=8, inner=12, keys=4, vocabulary=16)
    shards = shard(nn.Sequential(*(nn.Linear(columns, rows, bias=False) for rows, columns in model.matrices())))
    regularizer = SpectralRegularizer(shards)
    resting(shards)
    with patch.object(distributed, "all_reduce", wraps=distributed.all_reduce) as sent:
        regularizer.before_step()
    assert sent.call_count == 1
    assert sent.call_args.args[0].numel() == scale.message(model)


def check_mixed_precision_and_offload(folder: Path) -> None:
    """The parameters and the regularizer are in float32: what it adds is what it adds to a network in float32."""
    policies = {
        "mixed": {"mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)},
        "offload": {"offload_policy": CPUOffloadPolicy(pin_memory=False)},
    }
    for policy, options in policies.items():
        network = build("transformer", torch.float32)
        shards = shard(copy.deepcopy(network), **options)
        optimizer = torch.optim.SGD(shards.parameters(), lr=0.01)
        train("transformer", shards, optimizer, range(2), my_part())
        with torch.no_grad():
            for parameter, other in zip(network.parameters(), shards.parameters(), strict=True):
                parameter.copy_(other.full_tensor())
        pair = [SpectralRegularizer(n, strength=0.1) for n in (network, shards)]
        for method, parameters in zip(pair, (network.parameters(), shards.parameters()), strict=True):
            for parameter in parameters:
                parameter.grad = torch.zeros_like(parameter)
            method.before_step()
            method.before_step()
        for parameter, other in zip(network.parameters(), shards.parameters(), strict=True):
            torch.testing.assert_close(other.grad.full_tensor(), parameter.grad, rtol=1e-5, atol=1e-6)
        pair[1].attach(optimizer)
        train("transformer", shards, optimizer, range(2, 4), my_part())
        assert all(parameter.to_local().isfinite().all() for parameter in shards.parameters()), policy


def check_gradient_accumulation_and_clipping(folder: Path) -> None:
    network = build("mlp")
    shards = shard(copy.deepcopy(network))
    for n, part in ((network, slice(None)), (shards, my_part())):
        optimizer = torch.optim.SGD(n.parameters(), lr=0.01)
        SpectralRegularizer(n, strength=0.1).attach(optimizer)
        for step in range(2):
            optimizer.zero_grad()
            for micro in range(2):
                if n is shards:
                    shards.set_requires_gradient_sync(micro == 1)
                loss_of("mlp", 2 * step + micro, n, part).backward()
            nn.utils.clip_grad_norm_(n.parameters(), 0.1)
            optimizer.step()
    assert_alike(network, shards, "clipped")


def parts(method: Callable[[nn.Module], Mitigator], mesh: DeviceMesh | None, seed: int) -> dict[str, object]:
    torch.manual_seed(seed)
    network = Transformer().double()
    if mesh is not None:
        shard(network, mesh=mesh)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    return {"network": network, "optimizer": optimizer, "method": method(network).attach(optimizer)}


def check_a_checkpoint_resumes_on_another_number_of_ranks(folder: Path) -> None:
    """Saved by all, read by half of them, and by one rank whose network is not sharded."""
    half = list(range(distributed.get_world_size() // 2))
    group, mesh = distributed.new_group(half), None
    for index, method in enumerate(STATEFUL):
        begun = parts(method, line(), seed=0)
        train("transformer", begun["network"], begun["optimizer"], range(3))
        state = {"network": get_model_state_dict(begun["network"]), "method": begun["method"].state_dict()}
        checkpoint.save(state, checkpoint_id=folder / str(index))
        train("transformer", begun["network"], begun["optimizer"], range(3, 5))
        final = {name: parameter.full_tensor() for name, parameter in begun["network"].named_parameters()}
        if distributed.get_rank() in half:
            mesh = mesh or DeviceMesh.from_group(group, "cpu", mesh=torch.tensor(half))
            for where in (mesh, None):
                resumed = parts(method, where, seed=1)
                state = {"network": get_model_state_dict(resumed["network"]), "method": resumed["method"].state_dict()}
                checkpoint.load(state, checkpoint_id=folder / str(index), process_group=group)
                set_model_state_dict(resumed["network"], state["network"])
                resumed["method"].load_state_dict(state["method"])
                train("transformer", resumed["network"], resumed["optimizer"], range(3, 5))
                for name, parameter in resumed["network"].named_parameters():
                    whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
                    torch.testing.assert_close(whole, final[name], rtol=1e-10, atol=1e-12, msg=f"{method} {name}")
        distributed.barrier()


def check_the_callbacks_of_trainers_save_all_shards(folder: Path) -> None:
    """They write what rank 0 has, and every rank loads it."""
    network = fully_shard(nn.Linear(3, 4))
    method = L2InitRegularizer(network, 0.1)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    callback = transformers.MitigatorCallback(method)
    (folder / "checkpoint-1").mkdir(exist_ok=True)
    arguments, state = SimpleNamespace(output_dir=folder), trainer_state(0)
    callback.on_train_begin(arguments, state, None, optimizer=optimizer)
    before = method.state_dict()
    state = trainer_state(1)
    callback.on_save(arguments, state, None)
    saved = lightning.MitigatorCallback(method).state_dict()
    callback.on_train_end(arguments, state, None)
    distributed.barrier()
    for parameter in network.parameters():
        parameter.data.mul_(0)
    other = L2InitRegularizer(network, 0.1)
    transformers.MitigatorCallback(other).on_train_begin(arguments, trainer_state(1), None, optimizer=optimizer)
    assert_same_shards(other.state_dict(), before)
    other.detach()
    another = L2InitRegularizer(network, 0.1)
    lightning.MitigatorCallback(another).load_state_dict(saved)
    assert_same_shards(another.state_dict(), before)


def trainer_state(step: int) -> SimpleNamespace:
    rank = distributed.get_rank()
    return SimpleNamespace(global_step=step, trial_params=None, is_world_process_zero=rank == 0)


def assert_same_shards(state: State, expected: State) -> None:
    assert state.keys() == expected.keys()
    for name, entry in expected.items():
        for key, tensor in entry.items():
            assert (local(state[name][key]) == local(tensor)).all(), (name, key)


def check_a_state_saved_in_one_process(folder: Path) -> None:
    """What torch.save wrote, read by ranks: whole tensors into pieces."""
    for method in STATEFUL:
        single = parts(method, None, seed=0)
        train("transformer", single["network"], single["optimizer"], range(3))
        ranks = parts(method, line(), seed=0)
        train("transformer", ranks["network"], ranks["optimizer"], range(3))
        ranks["method"].load_state_dict(single["method"].state_dict())
        for part in (single, ranks):
            train("transformer", part["network"], part["optimizer"], range(3, 5))
        assert_alike(single["network"], ranks["network"], method)


def check_shards_on_two_dimensions(folder: Path) -> None:
    if distributed.get_world_size() < 4:
        return
    square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("outer", "inner"))
    for kind in NETWORKS:
        network = build(kind)
        hybrid = shard(copy.deepcopy(network), mesh=square)
        for n, part in ((network, slice(None)), (hybrid, my_part())):
            optimizer = torch.optim.SGD(n.parameters(), lr=0.01)
            SpectralRegularizer(n, strength=0.1).attach(optimizer)
            train(kind, n, optimizer, range(3), part)
        assert_alike(network, hybrid, ("hybrid", kind))


def check_tensor_parallelism(folder: Path) -> None:
    """Alone and under FSDP2; rows on their ranks in the first layer, columns in the second."""
    ranks = distributed.get_world_size()
    square = init_device_mesh("cpu", (ranks // 2, 2), mesh_dim_names=("data", "tensor"))
    for with_fsdp in (False, True):
        network = nn.Sequential(nn.Linear(4, 10), nn.GELU(), nn.Linear(10, 6), nn.LayerNorm(6)).double()
        shards = copy.deepcopy(network)
        parallelize_module(shards, square["tensor"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
        if with_fsdp:
            fully_shard(shards, mesh=square["data"])
        placements = {
            placement for parameter in shards.parameters() for placement in getattr(parameter, "placements", ())
        }
        assert {Shard(0), Shard(1)} <= placements
        for n in (network, shards):
            optimizer = torch.optim.SGD(n.parameters(), lr=0.01)
            SpectralRegularizer(n, strength=0.1).attach(optimizer)
            for step in range(3):
                optimizer.zero_grad()
                n(numbers(step, 4)).square().mean().backward()
                optimizer.step()
        assert_alike(network, shards, ("tensor", with_fsdp))


def check_columns_that_fsdp_shards(folder: Path) -> None:
    network = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 4)).double()
    placed = {"shard_placement_fn": lambda parameter: Shard(parameter.ndim - 1)}
    shards = fully_shard(copy.deepcopy(network), mesh=line(), **placed)
    for n in (network, shards):
        optimizer = torch.optim.SGD(n.parameters(), lr=0.01)
        SpectralRegularizer(n, strength=0.1).attach(optimizer)
        for step in range(3):
            optimizer.zero_grad()
            n(numbers(step, 8)).square().mean().backward()
            optimizer.step()
    assert_alike(network, shards, "columns")


WORK = {"HareAndTortoise", "L2InitRegularizer", "L2Regularizer", "SpectralNormRegularizer", "SpectralRegularizer"}
WORK |= {"StreamingEWC", "WeightClipping"}


def check_methods_that_need_all_of_a_tensor_say_so(folder: Path) -> None:
    shards = shard(build("mlp"))
    for name, method in vars(mitigators).items():
        if name in WORK:
            method(shards)
        elif isinstance(method, type) and issubclass(method, Mitigator) and method is not Mitigator:
            with pytest.raises(ValueError, match=r"got the sharded '0\.weight'.*DistributedDataParallel"):
                method(shards)


def check_flat_parameters_are_refused(folder: Path) -> None:
    for original in (False, True):
        flat = FullyShardedDataParallel(mlp(), use_orig_params=original, device_id=torch.device("cpu"))
        for network in (flat, flat.module) if original else (flat,):
            for method in (SpectralRegularizer, L2Regularizer):
                with pytest.raises(ValueError, match=r"expected parameters with their shapes.*FSDP2.*fully_shard"):
                    method(network)


def check_built_after_a_forward_pass(folder: Path) -> None:
    """When FSDP2 shows the outermost parameters as it has gathered them, which no optimizer knows."""
    pair = []
    for looks in (False, True):
        shards = shard(build("transformer"))
        optimizer = momentum(shards)
        loss = loss_of("transformer", 0, shards, my_part())
        if looks:
            assert not all(isinstance(parameter, DTensor) for parameter in shards.parameters())
        regularizer = SpectralRegularizer(shards, strength=0.1) if looks else None
        loss.backward()
        regularizer = (regularizer or SpectralRegularizer(shards, strength=0.1)).attach(optimizer)
        optimizer.step()
        train("transformer", shards, optimizer, [1], my_part())
        pair.append([parameter.full_tensor() for parameter in shards.parameters()])
    assert all(torch.equal(*parameters) for parameters in zip(*pair, strict=True))


def check_gradient_scaling(folder: Path) -> None:
    network = build("mlp", torch.float32)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    SpectralRegularizer(network, strength=0.1).attach(optimizer)
    train("mlp", network, optimizer, range(3))
    for fused in (False, True):
        shards = shard(build("mlp", torch.float32))
        optimizer = torch.optim.Adam(shards.parameters(), lr=0.01, fused=fused)
        SpectralRegularizer(shards, strength=0.1).attach(optimizer)
        scaler = torch.amp.GradScaler("cpu")
        for step in range(3):
            optimizer.zero_grad()
            scaler.scale(loss_of("mlp", step, shards, my_part())).backward()
            scaler.step(optimizer)
            scaler.update()
        assert_alike(network, shards, "scaled", tolerance=1e-4)


def check_built_before_sharding(folder: Path) -> None:
    network = mlp()
    regularizer = SpectralRegularizer(network)
    shard(network)
    with pytest.raises(
        ValueError, match=r"expected the parameters that this SpectralRegularizer was built with.*sharding"
    ):
        regularizer.attach(torch.optim.SGD(network.parameters(), lr=0.1))
