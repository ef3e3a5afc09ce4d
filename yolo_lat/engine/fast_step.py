"""A training step that never waits for the device: averaging, clipping, optimizers, and the step itself as CUDA graphs.

What changes from step to step (learning rates, momentum, the average's weight) lies in tensors on the device, which are
filled before a step and read within it, so that a graph captured once goes on being right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from ultralytics.optim import MuSGD
from ultralytics.optim.muon import muon_update
from ultralytics.utils.torch_utils import ModelEMA, unwrap_model

from yolo_lat.engine.distillation import Distillation
from yolo_lat.engine.ranks import sum_over_ranks
from yolo_lat.engine.static_loss import StaticDetectionLoss, StaticE2ELoss
from yolo_lat.errors import UserError
from yolo_lat.nn.experts import RoutedFFN, with_balance

INPUTS = ("img", "boxes", "labels", "valid")
# Eager steps before the first capture, in which cuDNN chooses its kernels and lazy initialisation happens; the other
# kinds of steps, of which some come once an epoch, have only their own shapes' choices to make, at the first step.
WARM_UP_STEPS = 3


class FusedEMA(ModelEMA):
    """Ultralytics' moving average of a model, its weight in a tensor on the device.

    Args:
        model: the model to follow.
        decay: largest decay.
        tau: updates after which the decay has come up to 63 % of it.
        updates: updates already made.

    Attributes:
        weight: share of the model in the next average, a scalar tensor that `advance` fills and `blend` reads.
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999, tau: float = 2000, updates: int = 0) -> None:
        super().__init__(model, decay, tau, updates)
        self.weight = next(self.ema.parameters()).new_zeros(())
        self.tensors: tuple[list[Tensor], list[Tensor]] | None = None

    def update(self, model: nn.Module) -> None:
        """Count an update and average."""
        self.advance()
        self.blend(model)

    def advance(self) -> None:
        """Count an update and give its weight to the device; to be called before a graph with `blend` is replayed."""
        if self.enabled:
            self.updates += 1
        self.weight.fill_(1 - self.decay(self.updates) if self.enabled else 0)

    @torch.no_grad()
    def blend(self, model: nn.Module) -> None:
        """Move the average towards `model` by `weight`; parameters and floating buffers, the others stay."""
        if self.tensors is None:
            state = unwrap_model(model).state_dict()
            own = {name: value for name, value in self.ema.state_dict().items() if value.is_floating_point()}
            self.tensors = list(own.values()), [state[name] for name in own]
        averages, values = self.tensors
        # _foreach_lerp_ takes its weight from the host
        steps = torch._foreach_sub(values, averages)
        torch._foreach_mul_(steps, self.weight)
        torch._foreach_add_(averages, steps)


def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale gradients down to a total norm of `max_norm`, in a few kernels, and return the norm they had."""
    return nn.utils.clip_grad_norm_(list(parameters), max_norm, foreach=True)


class DeviceSchedule(Optimizer):
    """Part of an optimizer: its learning rates and momenta on the device too.

    `param_groups` keep plain floats, which schedulers replace and checkpoints store. `publish` brings what changed to
    the device, and `step` reads it there; a step outside a capture publishes by itself.

    Attributes:
        scalars: tensors by key (`lr`, `momentum`, and `rest`, one less momentum), group by group.
        scalar_dtype: what the kernels take their scalars in; None for the parameters' own.
    """

    param_groups: list[dict[str, Any]]
    scalar_dtype: torch.dtype | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._forget_scalars()
        super().__init__(*args, **kwargs)

    def __setstate__(self, state: dict[str, Any]) -> None:
        if not hasattr(self, "scalars"):  # a copy; load_state_dict comes here too, and graphs hold the tensors
            self._forget_scalars()
        super().__setstate__(state)

    def _forget_scalars(self) -> None:
        self.scalars: list[dict[str, Tensor]] = []
        self._published: list[dict[str, float]] = []

    def publish(self) -> None:
        """Bring learning rates and momenta that changed to the device; no wait, and nothing if none did."""
        parameter = self._any_parameter()
        dtype = self.scalar_dtype or parameter.dtype
        for i, group in enumerate(self.param_groups):
            if i == len(self.scalars):
                self.scalars.append({})
                self._published.append({})
            values = {"lr": float(group["lr"])}
            if "momentum" in group:
                values |= {"momentum": group["momentum"], "rest": 1 - group["momentum"]}
            for key, value in values.items():
                if key not in self.scalars[i]:
                    self.scalars[i][key] = parameter.new_full((), value, dtype=dtype)
                elif value != self._published[i][key]:
                    self.scalars[i][key].fill_(value)
            self._published[i] = values

    def _any_parameter(self) -> Tensor:
        """Return a parameter, for its device and dtype; some groups are empty."""
        return next(p for group in self.param_groups for p in group["params"])

    def _publish_unless_capturing(self) -> None:
        if not self._any_parameter().is_cuda or not torch.cuda.is_current_stream_capturing():
            self.publish()

    def _active(self) -> Iterator[tuple[dict[str, Any], dict[str, Tensor], list[Tensor]]]:
        """Yield groups, their scalars, and those of their parameters that have gradients."""
        for group, scalars in zip(self.param_groups, self.scalars, strict=True):
            if params := [p for p in group["params"] if p.grad is not None]:
                yield group, scalars, params


class FastSGD(DeviceSchedule, SGD):
    """SGD with momentum, as torch's with dampening 0, in foreach kernels."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters."""
        loss = _evaluate(closure)
        self._publish_unless_capturing()
        for group, scalars, params in self._active():
            _sgd(group, scalars, params, _buffers(self.state, params, "momentum_buffer"), scalars["lr"])
        return loss


class FastMuSGD(DeviceSchedule, MuSGD):
    """Ultralytics' mixture of Muon (https://kellerjordan.github.io/posts/muon) and SGD, its scalars on the device."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters."""
        loss = _evaluate(closure)
        self._publish_unless_capturing()
        for group, scalars, params in self._active():
            buffers, lr = _buffers(self.state, params, "momentum_buffer"), scalars["lr"]
            if group["use_muon"]:
                self._muon(group, scalars, params, buffers)
                buffers, lr = _buffers(self.state, params, "momentum_buffer_SGD"), lr * self.sgd
            _sgd(group, scalars, params, buffers, lr)
        return loss

    def _muon(
        self, group: dict[str, Any], scalars: dict[str, Tensor], params: list[Tensor], buffers: list[Tensor]
    ) -> None:
        gradients: Any = [p.grad for p in params]
        momentum, averages = scalars["momentum"], buffers
        shares = torch._foreach_mul(gradients, scalars["rest"])
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, shares)
        if group["nesterov"]:
            averages = list(torch._foreach_mul(buffers, momentum))
            torch._foreach_add_(averages, shares)
        # With beta=1 muon_update leaves the averages as they are and only makes its result of them orthogonal.
        updates = muon_update(gradients, averages, beta=1.0, nesterov=False)
        torch._foreach_sub_(params, torch._foreach_mul(updates, scalars["lr"] * self.muon))


class _FusedAdam(DeviceSchedule):
    """What Adam and AdamW share here: torch's fused kernels, the learning rate as a tensor."""

    state: Any
    scalar_dtype = torch.float32

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._use_kernels()

    def _use_kernels(self) -> None:
        """Set the groups, which a checkpoint may have brought along, to fused kernels that can be captured."""
        for group in self.param_groups:
            group.update(fused=True, foreach=None, capturable=self._any_parameter().is_cuda)
        for parameter, values in self.state.items():
            values["step"] = torch.as_tensor(values["step"], dtype=torch.float32).to(parameter.device)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters."""
        self._publish_unless_capturing()
        rates = [group["lr"] for group in self.param_groups]
        for group, scalars in zip(self.param_groups, self.scalars, strict=True):
            group["lr"] = scalars["lr"]
        try:
            return super().step(closure)
        finally:
            for group, rate in zip(self.param_groups, rates, strict=True):
                group["lr"] = rate


class FastAdam(_FusedAdam, Adam):
    """torch's Adam, fused, its learning rate on the device."""


class FastAdamW(_FusedAdam, AdamW):
    """torch's AdamW, fused, its learning rate on the device."""


def _evaluate(closure: Callable[[], Any] | None) -> Any:
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def _buffers(state: dict[Any, dict[str, Any]], params: list[Tensor], key: str) -> list[Tensor]:
    """Return a buffer for each parameter from the optimizer's state, zeros where there is none yet."""
    for parameter in params:
        if state[parameter].get(key) is None:
            state[parameter][key] = torch.zeros_like(parameter)
    return [state[parameter][key] for parameter in params]


def _sgd(
    group: dict[str, Any], scalars: dict[str, Tensor], params: list[Tensor], buffers: list[Tensor], lr: Tensor
) -> None:
    """Step by `lr` along the momentum, with weight decay and, where the group says so, Nesterov's look ahead."""
    gradients: Any = [p.grad for p in params]
    if group["weight_decay"] != 0:
        gradients = torch._foreach_add(gradients, params, alpha=group["weight_decay"])
    torch._foreach_mul_(buffers, scalars["momentum"])
    torch._foreach_add_(buffers, gradients)
    if group["nesterov"]:
        updates = torch._foreach_mul(buffers, scalars["momentum"])
        torch._foreach_add_(updates, gradients)
        torch._foreach_mul_(updates, lr)
    else:
        updates = torch._foreach_mul(buffers, lr)
    torch._foreach_sub_(params, updates)


def fast_optimizer(optimizer: Any) -> Optimizer:
    """Return an optimizer of the same results that reads its schedule on the device.

    SGD, MuSGD, Adam and AdamW have such a form. It takes over groups and state, and its `state_dict` is the original's
    in form, so checkpoints go both ways; build schedulers on what is returned. Others are returned as they are:
    `why_not_capturable` tells.
    """
    kind, groups = type(optimizer), [dict(group) for group in optimizer.param_groups]
    fast: Optimizer
    if kind is MuSGD:
        fast = FastMuSGD(groups, muon=optimizer.muon, sgd=optimizer.sgd)
    elif kind is SGD and not any(group["dampening"] or group["maximize"] for group in groups):
        fast = FastSGD(groups)
    elif kind in {Adam, AdamW}:
        for group in groups:
            group.update(fused=True, foreach=None)
        fast = (FastAdam if kind is Adam else FastAdamW)(groups, fused=True)
        fast._use_kernels()
    else:
        return optimizer
    if optimizer.state:
        fast.load_state_dict(optimizer.state_dict())
    return fast


def why_not_capturable(optimizer: Optimizer) -> str | None:
    """Return in a sentence why a step of `optimizer` cannot be captured as a CUDA graph, None if it can."""
    if isinstance(optimizer, DeviceSchedule):
        return None
    name = type(optimizer).__name__
    if name in {"SGD", "MuSGD", "Adam", "AdamW"}:
        return f"this {name} keeps its learning rate on the host; pass it through fast_optimizer"
    return f"{name} keeps its learning rate on the host; use optimizer=SGD, MuSGD, Adam or AdamW"


class GraphRecorder:
    """Captures CUDA graphs that share a pool of memory, on a stream of its own.

    Whatever a graph leaves behind must lie outside the pool, for any graph may overwrite what another had there.

    Raises:
        UserError: a device that is not CUDA's.
    """

    def __init__(self, device: torch.device) -> None:
        if device.type != "cuda":
            raise UserError(f"CUDA graphs need a CUDA device, not {device}; train without them")
        self.side = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def stream(self) -> Iterator[None]:
        """Run on the own stream, after what was queued before and before what is queued next.

        Steps outside graphs have to run there too: gradients are accumulated on the stream of a parameter's first use.
        """
        current = torch.cuda.current_stream(self.side.device)
        self.side.wait_stream(current)
        with torch.cuda.stream(self.side):
            yield
        current.wait_stream(self.side)

    def record(self, body: Callable[[], object]) -> Callable[[], None]:
        """Capture `body`, which does not run, and return what runs it.

        Raises:
            UserError: something in it that cannot be captured.
            torch.OutOfMemoryError: too little memory.
        """
        graph = torch.cuda.CUDAGraph()
        try:
            # thread_local: a data loader's pinning thread may allocate meanwhile
            with torch.cuda.graph(graph, pool=self.pool, stream=self.side, capture_error_mode="thread_local"):
                body()
        except Exception as error:
            cause: BaseException = error
            while cause.__context__ is not None:  # leaving a broken capture fails once more, saying less
                cause = cause.__context__
            if isinstance(cause, torch.cuda.OutOfMemoryError):
                raise cause from None
            told = str(cause).strip().partition("\n")[0] or type(cause).__name__
            raise UserError(f"the training step cannot be captured as a CUDA graph: {told}; train without") from error
        return graph.replay


class TrainStep:
    """Forward, loss and backward of a batch, and every so often the update of parameters and average.

    Without `capture` this is Ultralytics' step. With it, each kind of step (shapes of images and boxes, update or not)
    runs as it is at first and is a CUDA graph from then on. Gradients then stay where they are and are set to zero
    after an update. What is a plain number at the capture remains so in the graph: the gains of the losses
    (`model.args`), weight decay, `max_norm`. After layers were frozen or switched to evaluation, call `forget`; loading
    the optimizer's state does.

    Args:
        model: the model, in training mode; its output goes to `criterion`. The student of a `Distillation` has
            `criterion` already, and it alone is averaged.
        criterion: the loss, called with predictions and batch; `capture` needs that of `static_criterion`.
        optimizer: the optimizer; `capture` needs that of `fast_optimizer`.
        ema: the model's average, or None.
        scaler: scaler of the gradients, or None; not with `capture`, unless it is disabled.
        autocast_dtype: what autocast computes in; None for no autocast.
        capture: use CUDA graphs.
        max_norm: norm to which gradients are clipped.

    Attributes:
        names: names of the losses that `step` returns, after the first step.
        loss: the loss of the last step, a scalar on the device.

    Raises:
        UserError: something that cannot be captured.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Callable[[Any, dict[str, Tensor]], tuple[Tensor, dict[str, Tensor]]],
        optimizer: Optimizer,
        ema: FusedEMA | None,
        scaler: torch.amp.GradScaler | None,
        autocast_dtype: torch.dtype | None,
        capture: bool,
        max_norm: float = 10.0,
    ) -> None:
        self.model, self.criterion, self.optimizer, self.ema = model, criterion, optimizer, ema
        self.scaler = scaler if scaler is not None and scaler.is_enabled() else None
        self.autocast_dtype, self.max_norm = autocast_dtype, max_norm
        self.parameters = list(model.parameters())
        self.device = self.parameters[0].device
        self.names: tuple[str, ...] = ()
        self.loss: Tensor | None = None
        self.recorder: GraphRecorder | None = None
        if capture:
            self._check_capturable()
            self.recorder = GraphRecorder(self.device)
            optimizer.register_load_state_dict_post_hook(lambda _: self.forget())
        self._inputs: dict[tuple[Any, ...], Tensor] = {}
        self._gradients: dict[Tensor, Tensor] = {}
        self._result: Tensor | None = None
        self.forget()

    def _check_capturable(self) -> None:
        if problem := why_not_capturable(self.optimizer):
            raise UserError(f"a training step as a CUDA graph: {problem}, or train without graphs")
        if self.scaler is not None:
            raise UserError("a scaler of gradients decides on the host whether to step; use amp=bf16 with CUDA graphs")
        if not isinstance(self.criterion, StaticDetectionLoss | StaticE2ELoss):
            raise UserError(
                f"{type(self.criterion).__name__} waits for the device, which a CUDA graph cannot; give the loss of "
                "static_criterion"
            )
        if any(isinstance(module, RoutedFFN) for module in self.model.modules()):
            raise UserError("cuda_graph=True does not go with experts, whose numbers of tokens change; drop cuda_graph")

    def forget(self) -> None:
        """Drop the graphs: what they hold has changed, and each kind of step is captured anew."""
        self._graphs: dict[tuple[Any, ...], Callable[[], None]] = {}
        self._seen: Counter[tuple[Any, ...]] = Counter()

    def step(self, batch: dict[str, Any], update: bool) -> Tensor:
        """Train on a batch and return its losses (box, class, distribution) on the device.

        Args:
            batch: `img` (B, 3, H, W), uint8 or floats in [0, 1], and the objects as `StaticDetectionLoss` takes them.
            update: step the optimizer and average the model after this batch.
        """
        with self.recorder.stream() if self.recorder else nullcontext():
            result = self._step_recorded(batch, update) if self.recorder else self._step_eager(batch, update)
        self.loss = result[-1]
        return result[:-1]

    def _step_eager(self, batch: dict[str, Any], update: bool) -> Tensor:
        self._advance(update)
        return self._compute(batch, update)

    def _step_recorded(self, batch: dict[str, Any], update: bool) -> Tensor:
        assert self.recorder is not None
        self._keep_gradients()
        kind = (batch["img"].shape, batch["img"].dtype, batch["boxes"].shape, update)
        if kind not in self._graphs:
            self._seen[kind] += 1
            if self._seen[kind] <= (1 if self._graphs else WARM_UP_STEPS):
                result = self._step_eager(batch, update)
                self._keep_gradients()
                return result
        inputs = self._stage(batch)
        if self._result is None:
            self._result = torch.zeros(len(self.names) + 1, device=self.device)
        place = self._result
        if kind not in self._graphs:
            self._graphs[kind] = self.recorder.record(lambda: place.copy_(self._compute(inputs, update)))
        self._advance(update)
        self._graphs[kind]()
        return place.clone()

    def _keep_gradients(self) -> None:
        """Put back gradients that were set to None or replaced: graphs add to those they were captured with."""
        for parameter in self.parameters:
            kept, found = self._gradients.get(parameter), parameter.grad
            if kept is None and found is not None:
                self._gradients[parameter] = found
            elif kept is not None and found is not kept:
                if found is None:
                    kept.zero_()
                else:
                    kept.copy_(found)
                parameter.grad = kept

    def _stage(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Copy a batch to where graphs read it; images have one place for all numbers of objects."""
        staged = {}
        for name in INPUTS:
            value = batch[name]
            place = (name, value.shape, value.dtype)
            if place not in self._inputs:
                self._inputs[place] = torch.empty_like(value, device=self.device)
            staged[name] = self._inputs[place].copy_(value, non_blocking=True)
        return staged

    def _advance(self, update: bool) -> None:
        """Bring what the host decides about this step to the device."""
        if update and isinstance(self.optimizer, DeviceSchedule):
            self.optimizer.publish()
        if update and self.ema is not None:
            self.ema.advance()

    def _compute(self, batch: dict[str, Any], update: bool) -> Tensor:
        """Run everything that a graph holds; the losses and their sum, (4,)."""
        # A cast weight that was cached before a capture would stay the same in the graph for ever.
        cached = self.recorder is None
        with torch.autocast(
            self.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None, cache_enabled=cached
        ):
            batch = {**batch, "img": self._scaled(batch["img"])}
            if isinstance(self.model, Distillation):
                loss, items = self.model.loss(batch)
            else:
                loss, items = self.criterion(self.model(batch["img"]), batch)
                loss = with_balance(loss, self.model, len(batch["img"]))
            total = loss.sum()
        (total if self.scaler is None else self.scaler.scale(total)).backward()
        if update:
            self._update()
        self.names = tuple(items)
        return torch.stack([*items.values(), total.detach()])

    def _scaled(self, images: Tensor) -> Tensor:
        """Bring bytes to [0, 1], at once in what autocast computes in: the same numbers as by way of float32."""
        if images.dtype != torch.uint8:
            return images
        return images.to(self.autocast_dtype or self.parameters[0].dtype) / 255

    def _update(self) -> None:
        sum_over_ranks([p.grad for p in self.parameters if p.grad is not None])
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        clip_gradients(self.parameters, self.max_norm)
        if self.scaler is not None:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        if self.recorder is None:
            self.optimizer.zero_grad()
        else:
            torch._foreach_zero_([p.grad for p in self.parameters if p.grad is not None])
        if self.ema is not None:
            self.ema.blend(self.model.student_model if isinstance(self.model, Distillation) else self.model)
