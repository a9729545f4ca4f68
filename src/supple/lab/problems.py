"""The problems by name: data set, shift, and training protocol."""

from typing import Any

from supple.errors import called, known
from supple.lab.problem import Problem, Scale

__all__ = ["PROBLEMS", "Problem", "Scale", "find", "title_of"]
# A step of the MLP takes about ten milliseconds on one core, a step of a large network takes seconds.
_QUICK_MLP: dict[str, Any] = {"examples": 2560, "epochs": 40, "tasks": 20}
_QUICK_LARGE: dict[str, Any] = {"examples": 400, "batch_size": 50, "epochs": 5, "tasks": 3}


def _reduced(epochs: int) -> dict[str, Any]:
    """A narrow network, and fewer images and tasks: 160 steps per task at batch 250. See docs/reduced.md for why."""
    return {"model": "resnet18-narrow", "examples": 40_000 // epochs, "tasks": 10}


def _mnist(dataset: str, **changes: Any) -> Problem:
    """Lewandowski et al. (2025), App. B: 12,800 images in batches of 512, the MLP of 4 x 256."""
    protocol: dict[str, Any] = {"batch_size": 512, "epochs": 40, "tasks": 50, "quick": _QUICK_MLP}
    return Problem(dataset=dataset, **(protocol | changes))


def _emnist(**changes: Any) -> Problem:
    """From the same paper: 100,000 images in batches of 500."""
    quick: dict[str, Any] = {"examples": 5000, "epochs": 10, "tasks": 20}
    protocol: dict[str, Any] = {"batch_size": 500, "epochs": 20, "tasks": 200, "quick": quick}
    return Problem(dataset="emnist", **(protocol | changes))


def _colour(dataset: str, **changes: Any) -> Problem:
    """From the same paper, with ResNet-18; its second network is ``--model vit-tiny``."""
    protocol: dict[str, Any] = {"model": "resnet18", "batch_size": 250, "epochs": 20, "quick": _QUICK_LARGE}
    protocol |= changes
    # A step on images of 64x64 takes five times as long as on those of 32x32.
    smaller = {"dataset": "imagenet32"} if dataset == "tiny-imagenet" else {}
    reduced = _reduced(protocol["epochs"]) | smaller
    if protocol["shift"] == "random-labels":
        reduced["epochs"] = protocol["epochs"] // 2  # with all, the narrow network memorizes every label, slowly or not
    return Problem(dataset=dataset, **{"reduced": reduced, **protocol})


def _arriving(shift: str, dataset: str, what: str, **changes: Any) -> Problem:
    """Data that arrive, as in Ash & Adams (2020): batches of 128, and a new Adam at each task.

    They train to a training accuracy of 99 %; here the number of epochs is fixed, and enough for about that accuracy.
    """
    title, tasks = {"warm-start": ("Warm start", 2), "ten-chunks": ("Ten chunks", 10)}[shift]
    summary = {
        "warm-start": f"half of {what}, then all",
        "ten-chunks": f"{what}, a tenth at first and one more each task",
    }
    protocol: dict[str, Any] = {"optimizer": "adam-restarted", "batch_size": 128, "tasks": tasks, "published": False}
    described = {"title": f"{title}, {_data(what)}", "summary": summary[shift], "shift": shift, "dataset": dataset}
    return Problem(**(described | protocol | changes))


def _labels(what: str) -> dict[str, Any]:
    summary = f"memorize new random labels for {what}"
    return {"title": f"Random labels, {_data(what)}", "summary": summary, "shift": "random-labels"}


def _pixels(what: str) -> dict[str, Any]:
    summary = f"{what}, the pixels in a new order each task"
    return {"title": f"Pixel permutation, {_data(what)}", "summary": summary, "shift": "pixel-permutation"}


def _flip(what: str) -> dict[str, Any]:
    summary = f"{what}, the classes' labels permuted each task"
    return {"title": f"Label flip, {_data(what)}", "summary": summary, "shift": "label-flip"}


def _data(what: str) -> str:
    """The data set, without the number of images: "MNIST" of "12,800 of MNIST"."""
    return what.rpartition(" of ")[2]


PROBLEMS: dict[str, Problem] = {
    "random-label-digits": Problem(
        **_labels("1,797 scans of digits"),
        dataset="digits",
        batch_size=256,
        epochs=40,
        tasks=30,
        published=False,
    ),
    "random-label-mnist": _mnist("mnist", **_labels("12,800 of MNIST")),
    "random-label-fashion-mnist": _mnist("fashion-mnist", **_labels("12,800 of Fashion-MNIST")),
    "random-label-emnist": _emnist(**_labels("100,000 of EMNIST"), epochs=100, tasks=50),
    "pixel-permutation-emnist": _emnist(**_pixels("100,000 of EMNIST")),
    "label-flip-emnist": _emnist(**_flip("100,000 of EMNIST")),
    "random-label-svhn": _colour("svhn", **_labels("50,000 of SVHN"), batch_size=500, tasks=25),
    "pixel-permutation-svhn": _colour("svhn", **_pixels("50,000 of SVHN"), batch_size=500, epochs=10, tasks=100),
    "random-label-cifar10": _colour("cifar10", **_labels("CIFAR-10"), tasks=30),
    "pixel-permutation-cifar10": _colour("cifar10", **_pixels("CIFAR-10"), epochs=10, tasks=100),
    "random-label-cifar100": _colour("cifar100", **_labels("CIFAR-100"), tasks=30),
    "pixel-permutation-cifar100": _colour("cifar100", **_pixels("CIFAR-100"), epochs=10, tasks=100),
    "random-label-tiny-imagenet": _colour("tiny-imagenet", **_labels("tiny-ImageNet"), tasks=30),
    "pixel-permutation-tiny-imagenet": _colour("tiny-imagenet", **_pixels("tiny-ImageNet"), tasks=100),
    "label-flip-tiny-imagenet": _colour("tiny-imagenet", **_flip("tiny-ImageNet"), tasks=100),
    "class-incremental-tiny-imagenet": _colour(
        "tiny-imagenet",
        title="Class-incremental, tiny-ImageNet",
        summary="tiny-ImageNet's classes, five at first and five more each task",
        shift="class-incremental",
        tasks=40,
        quick={"examples": None, "batch_size": 50, "epochs": 2, "tasks": 3},
        # 75 images of each class: the first task's five classes fill a batch.
        reduced={"model": "resnet18-narrow", "dataset": "imagenet32-75", "examples": None, "tasks": 10},
    ),
    "continual-imagenet": Problem(
        title="Continual ImageNet",
        # Dohare et al. (2024) train a larger network for 250 epochs, with momentum, and reset its last layer each task.
        summary="classify two ImageNet classes, two others each task (Kumar et al., 2023; not Dohare et al.'s)",
        dataset="imagenet32",
        shift="class-pairs",
        model="conv",
        batch_size=100,
        epochs=10,
        tasks=500,
        quick={"tasks": 25},
    ),
    "permuted-mnist-kumar": Problem(
        title="Pixel permutation, MNIST (Kumar et al.)",
        summary="10,000 other images of MNIST each task, seen once, pixels in a new order (Kumar et al., 2023)",
        dataset="mnist-60000-from-minus-1",
        shift="sampled-pixel-permutation",
        model="mlp-2x100",
        optimizer="sgd",
        step_size=1e-2,
        batch_size=16,
        epochs=1,
        tasks=500,
        online=True,
        quick={"tasks": 50},
    ),
    "random-label-mnist-kumar": Problem(
        title="Random labels, MNIST (Kumar et al.)",
        summary="memorize the shuffled labels of 1,200 MNIST images (Kumar et al., 2023)",
        dataset="mnist-60000-from-minus-1",
        examples=1_200,
        shift="shuffled-labels",
        model="mlp-2x100",
        batch_size=16,
        epochs=400,
        tasks=50,
        online=True,
        quick={"epochs": 50, "tasks": 20},
    ),
    "online-permuted-mnist": Problem(
        title="Pixel permutation, MNIST (Dohare et al.)",
        summary="all MNIST images one by one, pixels in a new order each task (Dohare et al., 2024)",
        dataset="mnist-60000-from-0",
        shift="pixel-permutation",
        model="mlp-3x2000-kaiming",
        optimizer="sgd",
        step_size=3e-3,
        batch_size=1,
        epochs=1,
        tasks=800,
        online=True,
        quick={"examples": 1_000, "tasks": 10},
    ),
    "random-label-mnist-lillo": Problem(
        title="Random labels, MNIST (Lillo & Cheney)",
        summary="memorize random labels for 1,200 MNIST images in a fixed order (Lillo & Cheney, 2025)",
        dataset="mnist-1200-from-0",
        shift="ordered-random-labels",
        model="mlp-2x100",
        step_size=1e-4,
        batch_size=16,
        epochs=400,
        tasks=50,
        online=True,
        quick={"epochs": 50, "tasks": 20},
    ),
    "streamed-permuted-mnist": Problem(
        title="Pixel permutation, MNIST (Elsayed et al.)",
        summary="50,000 MNIST images one by one, pixels in a new order each task (Elsayed et al., 2024)",
        dataset="mnist-60000-from-minus-1",
        shift="pixel-permutation-of-50000",
        model="mlp-300-150-leaky",
        step_size=1e-4,
        batch_size=1,
        epochs=1,
        tasks=300,
        online=True,
        quick={"shift": "pixel-permutation-of-5000", "tasks": 10},
    ),
    "input-permuted-mnist": Problem(
        title="Pixel permutation, MNIST (UPGD)",
        summary="5,000 MNIST images one by one, pixels in a new order each task (Elsayed & Mahmood, 2024)",
        dataset="mnist-60000-from-minus-1",
        shift="pixel-permutation-of-5000",
        model="mlp-300-150",
        optimizer="sgd",
        step_size=1e-2,
        batch_size=1,
        epochs=1,
        tasks=200,
        online=True,
        quick={"tasks": 20},
    ),
    "label-permuted-emnist": Problem(
        title="Label flip, EMNIST (UPGD)",
        summary="2,500 EMNIST images one by one, labels permuted each task (Elsayed & Mahmood, 2024)",
        dataset="emnist-112800-from-minus-1",
        shift="label-flip-of-2500",
        model="mlp-300-150",
        optimizer="sgd",
        step_size=1e-2,
        batch_size=1,
        epochs=1,
        tasks=400,
        online=True,
        quick={"tasks": 20},
    ),
    "warm-start-digits": _arriving("warm-start", "digits-1300", "1,300 scans of digits", epochs=40),
    "warm-start-mnist": _arriving("warm-start", "mnist-validated", "12,800 of MNIST", model="conv", epochs=20),
    "warm-start-cifar10": _arriving(
        "warm-start",
        "cifar10",
        "CIFAR-10",
        epochs=100,
        reduced={"model": "resnet18-narrow", "examples": 10_000, "epochs": 25},
    ),
    "ten-chunks-digits": _arriving("ten-chunks", "digits-1300", "1,300 scans of digits", epochs=40),
    "ten-chunks-mnist": _arriving("ten-chunks", "mnist-validated", "12,800 of MNIST", model="conv", epochs=20),
    "ten-chunks-cifar10": _arriving(
        "ten-chunks",
        "cifar10",
        "CIFAR-10",
        examples=10_000,
        epochs=100,
        reduced={"model": "resnet18-narrow", "examples": 3_000, "epochs": 25},
    ),
    "drifting-label-mnist": _mnist(
        "mnist",
        title="Drifting labels, MNIST",
        summary="random labels for MNIST; a task is one epoch, and each changes one label in forty",
        shift="drifting-labels",
        examples=2560,
        epochs=1,
        tasks=800,
        quick={},
        published=False,
    ),
    "drifting-pixel-mnist": _mnist(
        "mnist",
        title="Drifting pixels, MNIST",
        summary="MNIST; a task is one epoch, and each moves one pixel in forty",
        shift="drifting-pixels",
        examples=2560,
        epochs=1,
        tasks=800,
        quick={},
        published=False,
    ),
}


def find(name: str) -> Problem:
    """The problem with this name: an entry of ``PROBLEMS``, or from a ``package.module:function`` that returns one."""
    if ":" in name:
        made = called(name)
        if not isinstance(made, Problem):
            raise ValueError(f"expected a Problem from {name}, got {type(made).__name__}: return one")
        return made
    return PROBLEMS[known(name, PROBLEMS, "problem or package.module:function")]


def protocol_of(name: str, scale: Scale) -> dict[str, Any]:
    """The protocol of a problem at a scale; empty if the problem has no such scale, or no longer exists.

    The data set is the one in the problem's title, also at a scale that uses a smaller one.
    """
    problem = _present(name)
    return problem.protocol(scale) | {"dataset": problem.dataset} if problem and scale in problem.scales else {}


def is_online(name: str) -> bool:
    """Whether a problem's authors report online accuracy."""
    problem = _present(name)
    return bool(problem and problem.online)


def title_of(name: str) -> str:
    """The title of a problem in charts and tables; its name if it has no title or no longer exists."""
    problem = _present(name)
    return (problem and problem.title) or name


def _present(name: str) -> Problem | None:
    """The problem with this name, or None if it does not exist on this machine: the run may be from another one."""
    if ":" not in name:
        return PROBLEMS.get(name)
    try:
        return find(name)
    except (Exception, SystemExit):  # the user's own code may raise anything
        return None
